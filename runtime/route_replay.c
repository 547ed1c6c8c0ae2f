#include "runtime/route_replay.h"

#include <stdlib.h>

struct pool {
    uint32_t number; /* in the trace */
    uint32_t n_shards;
    uint32_t least; /* slots: its largest visit */
    struct replay_trace trace;
    uint32_t *n_experts;         /* [n_layers] 0: the layer is of another pool */
    struct replay_visit *visits; /* room for those of all pools */
};

struct route_replay {
    uint32_t n_shards;
    uint64_t n_tokens;
    uint32_t *ids; /* of all visits, ascending in each; NULL: another's */
    uint32_t n_pools;
    struct pool *pools; /* by number, as the expert cache has them */
};

static bool add_visits(struct pool *pool, const struct replay_trace *trace, const uint32_t *pool_of)
{
    pool->n_experts = calloc((size_t)trace->n_layers + 1, sizeof(*pool->n_experts));
    pool->visits = malloc((trace->n_visits + 1) * sizeof(*pool->visits));
    if (!pool->n_experts || !pool->visits)
        return false;
    for (uint32_t l = 0; l < trace->n_layers; l++) {
        if (pool_of[l] != pool->number)
            continue;
        pool->n_experts[l] = trace->n_experts[l];
        pool->n_shards += trace->n_experts[l];
    }
    uint64_t n = 0;
    for (uint64_t v = 0; v < trace->n_visits; v++) {
        if (pool_of[trace->visits[v].layer] != pool->number)
            continue;
        pool->visits[n++] = trace->visits[v];
        if (trace->visits[v].n > pool->least)
            pool->least = trace->visits[v].n;
    }
    pool->trace = (struct replay_trace){.n_layers = trace->n_layers,
                                        .n_experts = pool->n_experts,
                                        .n_visits = n,
                                        .visits = pool->visits,
                                        .ids = trace->ids};
    return true;
}

static int by_number(const void *a, const void *b)
{
    uint32_t x = ((const struct pool *)a)->number;
    uint32_t y = ((const struct pool *)b)->number;
    return (x > y) - (x < y);
}

/* One pool for each number that some layer has. */
static void find_pools(struct route_replay *replay, uint32_t n_layers, const uint32_t *pool_of)
{
    for (uint32_t l = 0; l < n_layers; l++) {
        uint32_t p = 0;
        while (p < replay->n_pools && replay->pools[p].number != pool_of[l])
            p++;
        if (p == replay->n_pools)
            replay->pools[replay->n_pools++].number = pool_of[l];
    }
    qsort(replay->pools, replay->n_pools, sizeof(*replay->pools), by_number);
}

enum ps_status route_replay_of_visits(struct route_replay **out, const struct replay_trace *trace,
                                      const uint32_t *pool_of, uint64_t n_tokens, struct ps_error *err)
{
    struct route_replay *replay = calloc(1, sizeof(*replay));
    bool ok = replay && (replay->pools = calloc((size_t)trace->n_layers + 1, sizeof(*replay->pools)));
    if (ok) {
        replay->n_tokens = n_tokens;
        find_pools(replay, trace->n_layers, pool_of);
    }
    for (uint32_t p = 0; ok && p < replay->n_pools; p++) {
        ok = add_visits(&replay->pools[p], trace, pool_of);
        replay->n_shards += replay->pools[p].n_shards;
    }
    *out = replay;
    if (ok)
        return PS_OK;
    route_replay_free(replay);
    *out = NULL;
    return ps_error_set(err, PS_ERR_NOMEM, "replay: out of memory for %llu visits",
                        (unsigned long long)trace->n_visits);
}

enum ps_status route_replay_new(struct route_replay **out, const struct route_trace *trace,
                                struct ps_error *err)
{
    struct replay_trace whole;
    uint32_t *ids;
    *out = NULL;
    enum ps_status status = route_trace_replay(trace, &whole, &ids, err);
    if (status == PS_OK)
        status = route_replay_of_visits(out, &whole, trace->pool, trace->n_tokens, err);
    if (status == PS_OK)
        (*out)->ids = ids;
    else
        free(ids);
    return status;
}

void route_replay_free(struct route_replay *replay)
{
    if (!replay)
        return;
    for (uint32_t p = 0; p < replay->n_pools; p++) {
        free(replay->pools[p].n_experts);
        free(replay->pools[p].visits);
    }
    free(replay->pools);
    free(replay->ids);
    free(replay);
}

uint32_t route_replay_n_shards(const struct route_replay *replay)
{
    return replay->n_shards;
}

uint32_t route_replay_least_slots(const struct route_replay *replay)
{
    uint32_t least = 0;
    for (uint32_t p = 0; p < replay->n_pools; p++)
        least += replay->pools[p].least;
    return least;
}

/* As expert_cache_plan.c: a slot goes to the pool that would hold the smallest share of its shards with it. */
static void divide_slots(const struct route_replay *replay, uint32_t n_slots, uint32_t *slots)
{
    uint32_t given = 0;
    for (uint32_t p = 0; p < replay->n_pools; p++)
        given += slots[p] = replay->pools[p].least;
    for (; given < n_slots; given++) {
        uint32_t best = replay->n_pools;
        for (uint32_t p = 0; p < replay->n_pools; p++) {
            uint32_t n_shards = replay->pools[p].n_shards;
            if (slots[p] < n_shards &&
                (best == replay->n_pools || (slots[p] + UINT64_C(1)) * replay->pools[best].n_shards <
                                                (slots[best] + UINT64_C(1)) * n_shards))
                best = p;
        }
        if (best == replay->n_pools)
            return;
        slots[best]++;
    }
}

/* Of the first `skip` tokens of the trace, those that this pool sees. */
static uint64_t tokens_before(const struct replay_trace *trace, uint64_t skip)
{
    uint64_t n = 0;
    for (uint64_t v = 0; v < trace->n_visits && trace->visits[v].token < skip; v++)
        n += v == 0 || trace->visits[v].token != trace->visits[v - 1].token;
    return n;
}

enum ps_status route_replay_run(const struct route_replay *replay, const struct cache_policy *policy,
                                uint32_t n_slots, uint64_t skip, struct replay_result *out,
                                struct ps_error *err)
{
    *out = (struct replay_result){.tokens = replay->n_tokens > skip ? replay->n_tokens - skip : 0};
    uint32_t least = route_replay_least_slots(replay);
    if (n_slots < least)
        return ps_error_set(err, PS_ERR_ARGUMENT,
                            "replay: %u slots are too few: one layer of a token needs %u", n_slots, least);
    uint32_t *slots = calloc((size_t)replay->n_pools + 1, sizeof(*slots));
    if (!slots)
        return ps_error_set(err, PS_ERR_NOMEM, "replay: out of memory");
    divide_slots(replay, n_slots, slots);
    enum ps_status status = PS_OK;
    for (uint32_t p = 0; p < replay->n_pools && status == PS_OK; p++) {
        const struct replay_trace *trace = &replay->pools[p].trace;
        uint64_t skipped = tokens_before(trace, skip);
        struct replay_result part;
        status = policy ? cache_replay(trace, policy, slots[p], skipped, &part, err)
                        : cache_replay_belady(trace, slots[p], skipped, &part, err);
        if (status != PS_OK)
            break;
        out->accesses += part.accesses;
        out->hits += part.hits;
        out->cold += part.cold;
        out->evictions += part.evictions;
    }
    free(slots);
    return status;
}
