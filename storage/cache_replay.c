/* Replay of a routing trace: through a policy, in the order of calls of the expert cache, and through Belady's
 * optimum. Both walk the same visits and count the same way; they differ in what happens at a miss. */
#include "storage/cache_replay.h"

#include <stdlib.h>

enum { ABSENT = UINT32_MAX };

static const uint64_t NEVER = UINT64_MAX;

struct replay {
    const struct replay_trace *trace;
    uint32_t n_slots;
    uint32_t n_shards;
    uint32_t n_resident;
    uint64_t visit;        /* current, counted from 1 */
    uint32_t *layer_first; /* [n_layers + 1] */
    uint64_t *pinned;      /* [n_shards] last visit that chose the shard; 0: none yet */
    bool *resident;        /* [n_shards] */
};

static void replay_deinit(struct replay *replay)
{
    free(replay->layer_first);
    free(replay->pinned);
    free(replay->resident);
}

static enum ps_status check_visit(struct replay *replay, uint64_t v, struct ps_error *err)
{
    const struct replay_trace *trace = replay->trace;
    const struct replay_visit *visit = &trace->visits[v];
    if (visit->layer >= trace->n_layers)
        return ps_error_set(err, PS_ERR_ARGUMENT, "routing trace: visit %llu: layer %u of %u",
                            (unsigned long long)v, visit->layer, trace->n_layers);
    if (visit->n > replay->n_slots)
        return ps_error_set(err, PS_ERR_ARGUMENT, "cache replay: %u slots: a visit needs %u", replay->n_slots,
                            visit->n);
    for (uint32_t i = 0; i < visit->n; i++) {
        uint32_t expert = trace->ids[visit->first + i];
        if (expert >= trace->n_experts[visit->layer])
            return ps_error_set(err, PS_ERR_ARGUMENT,
                                "routing trace: visit %llu: layer %u has %u experts, not %u",
                                (unsigned long long)v, visit->layer, trace->n_experts[visit->layer], expert);
        uint64_t *pinned = &replay->pinned[replay->layer_first[visit->layer] + expert];
        if (*pinned == v + 1)
            return ps_error_set(err, PS_ERR_ARGUMENT,
                                "routing trace: visit %llu: layer %u chooses expert %u twice",
                                (unsigned long long)v, visit->layer, expert);
        *pinned = v + 1;
    }
    return PS_OK;
}

static enum ps_status check_trace(struct replay *replay, struct ps_error *err)
{
    for (uint64_t v = 0; v < replay->trace->n_visits; v++) {
        enum ps_status status = check_visit(replay, v, err);
        if (status != PS_OK)
            return status;
    }
    for (uint32_t shard = 0; shard < replay->n_shards; shard++)
        replay->pinned[shard] = 0;
    return PS_OK;
}

static enum ps_status replay_init(struct replay *replay, const struct replay_trace *trace, uint32_t n_slots,
                                  struct ps_error *err)
{
    *replay = (struct replay){.trace = trace, .n_slots = n_slots};
    replay->layer_first = malloc(((size_t)trace->n_layers + 1) * sizeof(*replay->layer_first));
    if (!replay->layer_first)
        return ps_error_set(err, PS_ERR_NOMEM, "cache replay: out of memory for %u layers", trace->n_layers);
    for (uint32_t l = 0; l < trace->n_layers; l++) {
        replay->layer_first[l] = replay->n_shards;
        if (__builtin_add_overflow(replay->n_shards, trace->n_experts[l], &replay->n_shards))
            return ps_error_set(err, PS_ERR_ARGUMENT, "routing trace: more than %u experts", UINT32_MAX);
    }
    replay->layer_first[trace->n_layers] = replay->n_shards;
    replay->pinned = calloc((size_t)replay->n_shards + 1, sizeof(*replay->pinned)); /* never of 0 bytes */
    replay->resident = calloc((size_t)replay->n_shards + 1, sizeof(*replay->resident));
    if (!replay->pinned || !replay->resident)
        return ps_error_set(err, PS_ERR_NOMEM, "cache replay: out of memory for %u experts",
                            replay->n_shards);
    return check_trace(replay, err);
}

static uint32_t shard_of(const struct replay *replay, const struct replay_visit *visit, uint32_t i)
{
    return replay->layer_first[visit->layer] + replay->trace->ids[visit->first + i];
}

/* First visit of the (skip + 1)-th token; n_visits when there are no more than skip. */
static uint64_t first_counted_visit(const struct replay_trace *trace, uint64_t skip)
{
    uint64_t n_tokens = 0;
    for (uint64_t v = 0; v < trace->n_visits; v++) {
        n_tokens += v == 0 || trace->visits[v].token != trace->visits[v - 1].token;
        if (n_tokens > skip)
            return v;
    }
    return trace->n_visits;
}

/* Begins visit v, before its misses are read: what it finds. */
static void count_visit(struct replay *replay, uint64_t v, uint64_t begin, struct replay_result *result)
{
    const struct replay_visit *visits = replay->trace->visits;
    replay->visit = v + 1;
    if (v >= begin)
        result->tokens += v == begin || visits[v].token != visits[v - 1].token;
    for (uint32_t i = 0; i < visits[v].n; i++) {
        uint32_t shard = shard_of(replay, &visits[v], i);
        if (v >= begin) {
            result->accesses++;
            result->hits += replay->resident[shard];
            result->cold += replay->pinned[shard] == 0;
        }
        replay->pinned[shard] = replay->visit;
    }
}

/* ---- a policy ---- */

static bool may_evict(void *ctx, uint32_t shard)
{
    const struct replay *replay = ctx;
    return replay->resident[shard] && replay->pinned[shard] != replay->visit;
}

static enum ps_status evict(struct replay *replay, const struct cache_policy *policy, void *state,
                            struct ps_error *err)
{
    uint32_t victim = policy->victim(state, may_evict, replay);
    if (victim >= replay->n_shards || !may_evict(replay, victim))
        return ps_error_set(err, PS_ERR_ARGUMENT, "cache policy %s: no victim among %u experts", policy->name,
                            replay->n_resident);
    policy->removed(state, victim);
    replay->resident[victim] = false;
    replay->n_resident--;
    return PS_OK;
}

static enum ps_status visit_with_policy(struct replay *replay, const struct replay_visit *visit,
                                        const struct cache_policy *policy, void *state, uint64_t *evictions,
                                        struct ps_error *err)
{
    for (uint32_t i = 0; i < visit->n; i++)
        policy->access(state, shard_of(replay, visit, i), visit->token);
    for (uint32_t i = 0; i < visit->n; i++) {
        uint32_t shard = shard_of(replay, visit, i);
        if (replay->resident[shard])
            continue;
        if (replay->n_resident == replay->n_slots) {
            enum ps_status status = evict(replay, policy, state, err);
            if (status != PS_OK)
                return status;
            ++*evictions;
        }
        policy->inserted(state, shard);
        replay->resident[shard] = true;
        replay->n_resident++;
    }
    return PS_OK;
}

enum ps_status cache_replay(const struct replay_trace *trace, const struct cache_policy *policy,
                            uint32_t n_slots, uint64_t skip, struct replay_result *out, struct ps_error *err)
{
    *out = (struct replay_result){0};
    struct replay replay;
    void *state = NULL;
    enum ps_status status = replay_init(&replay, trace, n_slots, err);
    if (status != PS_OK)
        goto done;
    state = policy->create(
        &(struct cache_policy_shape){replay.n_shards, n_slots, trace->n_layers, replay.layer_first});
    if (!state) {
        status = ps_error_set(err, PS_ERR_NOMEM, "cache policy %s: out of memory for %u experts",
                              policy->name, replay.n_shards);
        goto done;
    }
    uint64_t begin = first_counted_visit(trace, skip);
    for (uint64_t v = 0; v < trace->n_visits && status == PS_OK; v++) {
        uint64_t evictions = 0;
        count_visit(&replay, v, begin, out);
        status = visit_with_policy(&replay, &trace->visits[v], policy, state, &evictions, err);
        if (v >= begin)
            out->evictions += evictions;
    }
done:
    if (state)
        policy->destroy(state);
    replay_deinit(&replay);
    return status;
}

/* ---- Belady ---- */

/* The residents in a binary heap, the one used again last at the root. */
struct belady {
    struct replay replay;
    uint64_t *next_use; /* [accesses] of the same shard, as an index of an access; NEVER */
    uint64_t *due;      /* [n_shards] next use of a resident */
    uint32_t *heap;     /* [n_shards] the first n_resident are in use */
    uint32_t *position; /* [n_shards] in the heap */
};

static void belady_deinit(struct belady *belady)
{
    free(belady->next_use);
    free(belady->due);
    free(belady->heap);
    free(belady->position);
    replay_deinit(&belady->replay);
}

/* Only uses that are counted are worth a slot: until then the cache is filled for them. */
static void find_next_uses(struct belady *belady, uint64_t n_accesses, uint64_t begin)
{
    const struct replay_trace *trace = belady->replay.trace;
    for (uint32_t shard = 0; shard < belady->replay.n_shards; shard++)
        belady->due[shard] = NEVER;
    uint64_t access = n_accesses;
    for (uint64_t v = trace->n_visits; v-- > 0;) {
        const struct replay_visit *visit = &trace->visits[v];
        for (uint32_t i = visit->n; i-- > 0;) {
            uint32_t shard = shard_of(&belady->replay, visit, i);
            belady->next_use[--access] = belady->due[shard];
            if (v >= begin)
                belady->due[shard] = access;
        }
    }
}

static enum ps_status belady_init(struct belady *belady, const struct replay_trace *trace, uint32_t n_slots,
                                  uint64_t begin, struct ps_error *err)
{
    *belady = (struct belady){0};
    enum ps_status status = replay_init(&belady->replay, trace, n_slots, err);
    if (status != PS_OK)
        return status;
    uint64_t n_accesses = 0;
    for (uint64_t v = 0; v < trace->n_visits; v++)
        n_accesses += trace->visits[v].n;
    size_t n = (size_t)belady->replay.n_shards + 1;
    belady->next_use = calloc(n_accesses + 1, sizeof(*belady->next_use));
    belady->due = calloc(n, sizeof(*belady->due));
    belady->heap = calloc(n, sizeof(*belady->heap));
    belady->position = calloc(n, sizeof(*belady->position));
    if (!belady->next_use || !belady->due || !belady->heap || !belady->position)
        return ps_error_set(err, PS_ERR_NOMEM, "cache replay: out of memory for %llu accesses",
                            (unsigned long long)n_accesses);
    find_next_uses(belady, n_accesses, begin);
    return PS_OK;
}

static void place(struct belady *belady, uint32_t position, uint32_t shard)
{
    belady->heap[position] = shard;
    belady->position[shard] = position;
}

static void sift_up(struct belady *belady, uint32_t shard)
{
    uint32_t position = belady->position[shard];
    while (position > 0) {
        uint32_t parent = (position - 1) / 2;
        if (belady->due[belady->heap[parent]] >= belady->due[shard])
            break;
        place(belady, position, belady->heap[parent]);
        position = parent;
    }
    place(belady, position, shard);
}

static void sift_down(struct belady *belady, uint32_t shard)
{
    uint32_t n = belady->replay.n_resident;
    uint32_t position = belady->position[shard];
    for (;;) {
        uint32_t child = 2 * position + 1;
        if (child + 1 < n && belady->due[belady->heap[child + 1]] > belady->due[belady->heap[child]])
            child++;
        if (child >= n || belady->due[belady->heap[child]] <= belady->due[shard])
            break;
        place(belady, position, belady->heap[child]);
        position = child;
    }
    place(belady, position, shard);
}

static void belady_hit(struct belady *belady, uint32_t shard, uint64_t due)
{
    belady->due[shard] = due;
    sift_up(belady, shard); /* the next use is later than the one just made */
}

/* Returns whether a resident had to leave for the shard. */
static bool belady_miss(struct belady *belady, uint32_t shard, uint64_t due)
{
    struct replay *replay = &belady->replay;
    bool full = replay->n_resident == replay->n_slots;
    if (due == NEVER || (full && belady->due[belady->heap[0]] <= due))
        return false;
    belady->due[shard] = due;
    replay->resident[shard] = true;
    if (!full) {
        belady->position[shard] = replay->n_resident++;
        sift_up(belady, shard);
        return false;
    }
    replay->resident[belady->heap[0]] = false;
    belady->position[shard] = 0;
    sift_down(belady, shard);
    return true;
}

/* Hits first: a shard that is read may take the place of one that this visit has just used. One that leaves so is
 * used again later than all that stay, and is not let in again. Returns the evictions. */
static uint64_t visit_with_belady(struct belady *belady, const struct replay_visit *visit,
                                  const uint64_t *next_use)
{
    uint64_t evictions = 0;
    for (uint32_t i = 0; i < visit->n; i++) {
        uint32_t shard = shard_of(&belady->replay, visit, i);
        if (belady->replay.resident[shard])
            belady_hit(belady, shard, next_use[i]);
    }
    for (uint32_t i = 0; i < visit->n; i++) {
        uint32_t shard = shard_of(&belady->replay, visit, i);
        if (!belady->replay.resident[shard])
            evictions += belady_miss(belady, shard, next_use[i]);
    }
    return evictions;
}

enum ps_status cache_replay_belady(const struct replay_trace *trace, uint32_t n_slots, uint64_t skip,
                                   struct replay_result *out, struct ps_error *err)
{
    *out = (struct replay_result){0};
    struct belady belady;
    uint64_t begin = first_counted_visit(trace, skip);
    enum ps_status status = belady_init(&belady, trace, n_slots, begin, err);
    if (status != PS_OK)
        goto done;
    uint64_t access = 0;
    for (uint64_t v = 0; v < trace->n_visits; v++) {
        const struct replay_visit *visit = &trace->visits[v];
        count_visit(&belady.replay, v, begin, out);
        uint64_t evictions = visit_with_belady(&belady, visit, belady.next_use + access);
        access += visit->n;
        if (v >= begin)
            out->evictions += evictions;
    }
done:
    belady_deinit(&belady);
    return status;
}
