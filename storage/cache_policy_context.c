/* Context: evict the shard that is chosen least after tokens like the present ones.
 *
 * Each shard remembers which of the last HISTORY tokens chose it, one bit per token. As a token passes the layers it is
 * compared with every remembered token: they are alike as far as the layers passed of late chose the same experts, rare
 * ones counting more. What was chosen by the tokens that followed the like ones is expected next, each counting by a
 * softmax over the likeness. So every remembered token has a weight, and a shard's value is the weight of those that
 * chose it. The weights include plain frequency, forgotten slowly and quickly, for tokens that are like no other.
 *
 * Values are renewed for one layer at a time, after its visit: its turn is then farthest away, and what is kept of it
 * dearest. For an eviction a value is divided by the part of the ring to be passed until the layer's turn, since the
 * slot is occupied as long; so a layer just passed gives up its cold misses first.
 *
 * Cost: a visit takes time proportional to HISTORY, to the layer's shards and to their set bits, 3 microseconds for 6
 * of 128 experts; an eviction, to the number of layers, each of which keeps its residents in a heap. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "storage/cache_policy_internal.h"

enum {
    ABSENT = UINT32_MAX,
    WORD_BITS = 64,
    HISTORY_WORDS = 4,
    HISTORY = HISTORY_WORDS * WORD_BITS, /* tokens remembered */
    PRIOR_MAX = UINT8_MAX,               /* stands for a score of 1 */
};

/* The optimum is flat in all of these: a third more or less changes hit rates by a few thousandths. */
static const double LIKENESS_KEPT = 0.85; /* from one layer to the next: the last seven or so decide */
static const double SHARPNESS = 15;       /* of the softmax over likeness, which is 0..1 */
static const double AGEING = 0.01;   /* of a remembered token, in the exponent of the softmax, per token */
static const double FOLLOWING = 0.6; /* weight of each further token that came after a like one */
static const double SLOW = 0.95;     /* frequencies: kept per token */
static const double FAST = 0.6;
static const double SLOW_SHARE = 0.3; /* in a value, to 1 for the first token after a like one */
static const double FAST_SHARE = 0.4;
static const double RING_FLOOR = 0.25; /* added to the part of the ring until a layer's turn */
static const double PRIOR_VISITS = 20; /* that scores of an earlier run stand for: 1 / (1 - SLOW) */

struct context_layer {
    uint64_t visit;      /* token of its last visit, counted from 1; 0: none */
    uint32_t first;      /* id of its first shard */
    uint32_t n_shards;   /* */
    uint32_t n_resident; /* heap[first .. first + n_resident) */
};

struct context_shard {
    uint64_t chosen[HISTORY_WORDS]; /* bit t % HISTORY: by the t-th token */
    float value;
    uint32_t layer;
    uint32_t heap;     /* not of this shard: an entry of its layer's heap, the lowest value at the root */
    uint32_t position; /* in its layer's heap; ABSENT when not resident */
};

struct context {
    uint64_t token;    /* as the caller counts */
    uint64_t n_tokens; /* seen, the current one included */
    uint32_t n_layers;
    uint32_t current; /* layer accessed last */
    bool visiting;    /* its accesses are not yet accounted for */
    double prior_visits;
    double overlap_total;
    uint32_t n_chosen; /* by the current visit */
    uint32_t n_visits; /* of the current token */
    /* By t % HISTORY; those of the current token mean nothing. */
    float overlap[HISTORY];       /* of the current visit with the same layer's, in weights of the experts */
    float likeness[HISTORY];      /* 0..1, of the current token */
    float breadth[HISTORY];       /* experts chosen per visit: many, where a chunk of tokens counts as one */
    float weight[HISTORY];        /* in a value */
    struct context_layer *layers; /* [n_layers] */
    struct context_shard *shards; /* [n_shards] */
    uint8_t *prior;               /* [n_shards] score in an earlier run, of PRIOR_MAX */
};

static uint64_t context_memory(const struct cache_policy_shape *shape)
{
    return sizeof(struct context) + (uint64_t)shape->n_layers * sizeof(struct context_layer) +
           (uint64_t)shape->n_shards * (sizeof(struct context_shard) + sizeof(uint8_t));
}

static void *context_create(const struct cache_policy_shape *shape)
{
    struct context *context = calloc(1, context_memory(shape));
    if (!context)
        return NULL;
    context->n_layers = shape->n_layers;
    context->layers = (struct context_layer *)(context + 1);
    context->shards = (struct context_shard *)(context->layers + shape->n_layers);
    context->prior = (uint8_t *)(context->shards + shape->n_shards);
    for (uint32_t l = 0; l < shape->n_layers; l++) {
        struct context_layer *layer = &context->layers[l];
        layer->first = shape->layer_first[l];
        layer->n_shards = shape->layer_first[l + 1] - layer->first;
        for (uint32_t i = 0; i < layer->n_shards; i++) {
            context->shards[layer->first + i].layer = l;
            context->shards[layer->first + i].position = ABSENT;
        }
    }
    return context;
}

/* ---- a layer's heap ---- */

static void place(struct context *context, const struct context_layer *layer, uint32_t position,
                  uint32_t shard)
{
    context->shards[layer->first + position].heap = shard;
    context->shards[shard].position = position;
}

static uint32_t resident_at(const struct context *context, const struct context_layer *layer,
                            uint32_t position)
{
    return context->shards[layer->first + position].heap;
}

static float value_at(const struct context *context, const struct context_layer *layer, uint32_t position)
{
    return context->shards[resident_at(context, layer, position)].value;
}

static void sift_up(struct context *context, const struct context_layer *layer, uint32_t shard)
{
    uint32_t position = context->shards[shard].position;
    while (position > 0) {
        uint32_t parent = (position - 1) / 2;
        if (value_at(context, layer, parent) <= context->shards[shard].value)
            break;
        place(context, layer, position, resident_at(context, layer, parent));
        position = parent;
    }
    place(context, layer, position, shard);
}

static void sift_down(struct context *context, const struct context_layer *layer, uint32_t shard)
{
    uint32_t position = context->shards[shard].position;
    for (;;) {
        uint32_t child = 2 * position + 1;
        if (child + 1 < layer->n_resident &&
            value_at(context, layer, child + 1) < value_at(context, layer, child))
            child++;
        if (child >= layer->n_resident || value_at(context, layer, child) >= context->shards[shard].value)
            break;
        place(context, layer, position, resident_at(context, layer, child));
        position = child;
    }
    place(context, layer, position, shard);
}

static void rebuild_heap(struct context *context, const struct context_layer *layer)
{
    for (uint32_t i = layer->n_resident / 2; i-- > 0;)
        sift_down(context, layer, resident_at(context, layer, i));
}

static void context_inserted(void *state, uint32_t shard)
{
    struct context *context = state;
    struct context_layer *layer = &context->layers[context->shards[shard].layer];
    context->shards[shard].position = layer->n_resident++;
    sift_up(context, layer, shard);
}

static void context_removed(void *state, uint32_t shard)
{
    struct context *context = state;
    struct context_layer *layer = &context->layers[context->shards[shard].layer];
    uint32_t position = context->shards[shard].position;
    uint32_t last = resident_at(context, layer, --layer->n_resident);
    context->shards[shard].position = ABSENT;
    if (last == shard)
        return;
    place(context, layer, position, last);
    sift_up(context, layer, last);
    sift_down(context, layer, last);
}

/* ---- a visit: its accesses, then the values that follow from them ---- */

static uint32_t bit_of(uint64_t token)
{
    return (uint32_t)(token % HISTORY);
}

static uint32_t n_remembered(const struct context *context)
{
    return context->n_tokens < HISTORY ? (uint32_t)context->n_tokens : HISTORY;
}

static uint32_t times_chosen(const struct context_shard *shard)
{
    uint32_t n = 0;
    for (uint32_t word = 0; word < HISTORY_WORDS; word++)
        n += (uint32_t)__builtin_popcountll(shard->chosen[word]);
    return n;
}

/* Weight of the visits of n tokens, forgotten slowly. */
static double slow_visits(uint32_t n)
{
    return (1 - pow(SLOW, n)) / (1 - SLOW);
}

/* Likeness to a token becomes likeness to the one after it. */
static void begin_token(struct context *context, uint64_t token)
{
    context->token = token;
    context->n_tokens++;
    context->n_visits = 0;
    context->prior_visits *= SLOW;
    float last = context->likeness[HISTORY - 1];
    memmove(context->likeness + 1, context->likeness, (HISTORY - 1) * sizeof(context->likeness[0]));
    context->likeness[0] = last;
    context->likeness[bit_of(context->n_tokens)] = 0;
}

/* Forgets what the tokens that now take the place of others chose. */
static void begin_visit(struct context *context, struct context_layer *layer)
{
    uint64_t mask[HISTORY_WORDS] = {0};
    uint64_t n = context->n_tokens - layer->visit;
    for (uint64_t i = 0; i < n && i < HISTORY; i++) {
        uint32_t bit = bit_of(context->n_tokens - i);
        mask[bit / WORD_BITS] |= UINT64_C(1) << bit % WORD_BITS;
    }
    for (uint32_t i = 0; i < layer->n_shards; i++)
        for (uint32_t word = 0; word < HISTORY_WORDS; word++)
            context->shards[layer->first + i].chosen[word] &= ~mask[word];
    layer->visit = context->n_tokens;
}

/* From the overlap of this visit with those of the remembered tokens. One that chose more experts overlaps by
 * chance as much more. */
static void renew_likeness(struct context *context)
{
    float chosen = (float)context->n_chosen;
    float share = (float)((1 - LIKENESS_KEPT) / context->overlap_total) * chosen;
    for (uint32_t i = 0; i < HISTORY; i++)
        context->likeness[i] = (float)LIKENESS_KEPT * context->likeness[i] +
                               share * context->overlap[i] / fmaxf(context->breadth[i], chosen);
    memset(context->overlap, 0, sizeof(context->overlap));
    context->overlap_total = 0;

    float *breadth = &context->breadth[bit_of(context->n_tokens)];
    context->n_visits++;
    *breadth += (chosen - *breadth) / (float)context->n_visits;
    context->n_chosen = 0;
}

/* What having been chosen by each remembered token is worth at the coming visits of the layer just passed. */
static void renew_weights(struct context *context)
{
    uint32_t n = n_remembered(context);
    double like[HISTORY], sum = 0, greatest = 0;
    for (uint32_t age = 1; age < n; age++)
        greatest = fmax(greatest, context->likeness[bit_of(context->n_tokens - age)]);
    for (uint32_t age = 1; age < n; age++) {
        like[age] =
            exp(SHARPNESS * (context->likeness[bit_of(context->n_tokens - age)] - greatest) - AGEING * age);
        sum += like[age];
    }
    double slow = SLOW_SHARE / (slow_visits(n) + context->prior_visits), fast = FAST_SHARE * (1 - FAST);
    for (uint32_t age = 0; age < n; age++) {
        context->weight[bit_of(context->n_tokens - age)] = (float)(slow + fast);
        slow *= SLOW;
        fast *= FAST;
    }
    double following = 0;
    for (uint32_t age = n - 1; age > 0; age--) {
        following = FOLLOWING * following + like[age] / sum;
        context->weight[bit_of(context->n_tokens - age + 1)] += (float)following;
    }
}

static float value_of(const struct context *context, uint32_t shard)
{
    float value = 0;
    for (uint32_t word = 0; word < HISTORY_WORDS; word++)
        for (uint64_t bits = context->shards[shard].chosen[word]; bits; bits &= bits - 1)
            value += context->weight[word * WORD_BITS + (uint32_t)__builtin_ctzll(bits)];
    return value;
}

static void end_visit(struct context *context)
{
    const struct context_layer *layer = &context->layers[context->current];
    context->visiting = false;
    renew_likeness(context);
    renew_weights(context);
    double prior = SLOW_SHARE / PRIOR_MAX * context->prior_visits /
                   (slow_visits(n_remembered(context)) + context->prior_visits);
    for (uint32_t i = 0; i < layer->n_shards; i++) {
        uint32_t shard = layer->first + i;
        context->shards[shard].value = value_of(context, shard) + (float)(prior * context->prior[shard]);
    }
    rebuild_heap(context, layer);
}

static void context_access(void *state, uint32_t shard, uint64_t token)
{
    struct context *context = state;
    struct context_shard *chosen = &context->shards[shard];
    if (context->visiting && (chosen->layer != context->current || token != context->token))
        end_visit(context);
    if (context->n_tokens == 0 || token != context->token)
        begin_token(context, token);
    struct context_layer *layer = &context->layers[chosen->layer];
    if (layer->visit != context->n_tokens)
        begin_visit(context, layer);
    context->visiting = true;
    context->current = chosen->layer;

    /* The rarer an expert, the more it says of a token that it was chosen. */
    double weight = log((n_remembered(context) + 1.0) / (times_chosen(chosen) + 0.2));
    context->overlap_total += weight;
    context->n_chosen++;
    for (uint32_t word = 0; word < HISTORY_WORDS; word++)
        for (uint64_t bits = chosen->chosen[word]; bits; bits &= bits - 1)
            context->overlap[word * WORD_BITS + (uint32_t)__builtin_ctzll(bits)] += (float)weight;
    uint32_t bit = bit_of(context->n_tokens);
    chosen->chosen[bit / WORD_BITS] |= UINT64_C(1) << bit % WORD_BITS;
}

/* ---- eviction ---- */

struct search {
    const struct context *context;
    const struct context_layer *layer;
    bool (*may_evict)(void *ctx, uint32_t shard);
    void *ctx;
    uint32_t lowest; /* shard found so far; ABSENT: none */
};

/* Evictable shard of the lowest value below a heap position. Only shards that must stay are looked behind, so it
 * visits few more than those; as deep as the heap is high. */
static void search_lowest(struct search *search, uint32_t position)
{
    if (position >= search->layer->n_resident)
        return;
    const struct context_shard *shards = search->context->shards;
    uint32_t shard = resident_at(search->context, search->layer, position);
    if (search->lowest != ABSENT && shards[search->lowest].value <= shards[shard].value)
        return;
    if (search->may_evict(search->ctx, shard)) {
        search->lowest = shard;
        return;
    }
    search_lowest(search, 2 * position + 1);
    search_lowest(search, 2 * position + 2);
}

static uint32_t context_victim(void *state, bool (*may_evict)(void *ctx, uint32_t shard), void *ctx)
{
    struct context *context = state;
    if (context->visiting)
        end_visit(context);
    uint32_t victim = UINT32_MAX;
    double victim_value = INFINITY;
    for (uint32_t passed = 0; passed < context->n_layers; passed++) { /* since the layer's visit */
        uint32_t l = (context->current + context->n_layers - passed) % context->n_layers;
        struct search search = {context, &context->layers[l], may_evict, ctx, ABSENT};
        search_lowest(&search, 0);
        if (search.lowest == ABSENT)
            continue;
        double ring = (double)(context->n_layers - passed) / context->n_layers;
        double value = context->shards[search.lowest].value / (ring + RING_FLOOR);
        if (value < victim_value) {
            victim = search.lowest;
            victim_value = value;
        }
    }
    return victim;
}

/* ---- scores ---- */

/* The share of the remembered tokens that chose the shard. */
static double context_score(const void *state, uint32_t shard)
{
    const struct context *context = state;
    double prior = context->prior_visits * context->prior[shard] / PRIOR_MAX;
    double visits = context->prior_visits + n_remembered(context);
    return visits > 0 ? (prior + times_chosen(&context->shards[shard])) / visits : 0;
}

static void context_prime(void *state, uint32_t shard, double score)
{
    struct context *context = state;
    struct context_shard *primed = &context->shards[shard];
    if (context->prior_visits <= 0)
        context->prior_visits = PRIOR_VISITS;
    context->prior[shard] = (uint8_t)(fmin(fmax(score, 0), 1) * PRIOR_MAX + 0.5);
    primed->value = fmaxf(primed->value, (float)(SLOW_SHARE * score));
    if (primed->position == ABSENT)
        return;
    sift_down(context, &context->layers[primed->layer], shard);
}

const struct cache_policy cache_policy_context = {
    .name = "context",
    .summary = "evict the expert chosen least after tokens like the present ones",
    .create = context_create,
    .destroy = free,
    .memory = context_memory,
    .access = context_access,
    .inserted = context_inserted,
    .removed = context_removed,
    .victim = context_victim,
    .score = context_score,
    .prime = context_prime,
};
