/* Decayed frequency: evict the shard whose layer has chosen it least often of late.
 *
 * A shard's score is the share of its layer's visits that chose it, where a visit n visits ago weighs DECAY^n.
 * Visits are counted per layer, so a layer that the current token has not reached yet does not look older than
 * those it has passed: below one token cycle that is what keeps a stable subset resident instead of evicting what
 * the ring needs next. Scores are kept for absent shards too, so a frequent expert re-enters with its history.
 * Of equal scores the shard leaves whose layer is visited again last; a layer just passed therefore gives up its
 * cold misses before older entries of the same worth are touched.
 *
 * Instead of shrinking every weight at every visit, the unit that a new visit adds grows by 1 / DECAY. The order of
 * a layer's shards then changes only for the shard accessed, and one binary heap per layer keeps it in O(log n). */
#include <math.h>
#include <stdlib.h>

#include "storage/cache_policy_internal.h"

enum { ABSENT = UINT32_MAX };

static const double DECAY = 0.97;     /* per visit: a half-life of 23 tokens */
static const double UNIT_MAX = 1e100; /* weights are scaled down here, long before a double overflows */
static const double PRIMED_TOTAL =
    33;                         /* of a layer: what its visits add up to in the long run, 1 / (1 - DECAY) */
static const double TIE = 1e-9; /* relative difference of scores that is only rounding */

struct decay_layer {
    uint64_t token;      /* of the last visit */
    double unit;         /* weight of the last visit */
    double total;        /* sum of the weights of all visits; 0 before the first */
    uint32_t first;      /* id of its first shard */
    uint32_t n_shards;   /* */
    uint32_t n_resident; /* heap[first .. first + n_resident) */
};

struct decay {
    uint32_t n_layers;
    uint32_t current;           /* layer accessed last */
    struct decay_layer *layers; /* [n_layers] */
    double *weight;             /* [n_shards] sum of the weights of the visits that chose the shard */
    uint32_t *layer_of;         /* [n_shards] */
    uint32_t *heap;             /* [n_shards] per layer: resident shards, the lightest at the root */
    uint32_t *position;         /* [n_shards] in its layer's heap; ABSENT when not resident */
};

static uint64_t decay_memory(const struct cache_policy_shape *shape)
{
    return sizeof(struct decay) + (uint64_t)shape->n_layers * sizeof(struct decay_layer) +
           (uint64_t)shape->n_shards * (sizeof(double) + 3 * sizeof(uint32_t));
}

static void *decay_create(const struct cache_policy_shape *shape)
{
    struct decay *decay = calloc(1, decay_memory(shape));
    if (!decay)
        return NULL;
    decay->n_layers = shape->n_layers;
    decay->layers = (struct decay_layer *)(decay + 1);
    decay->weight = (double *)(decay->layers + shape->n_layers);
    decay->layer_of = (uint32_t *)(decay->weight + shape->n_shards);
    decay->heap = decay->layer_of + shape->n_shards;
    decay->position = decay->heap + shape->n_shards;
    for (uint32_t l = 0; l < shape->n_layers; l++) {
        struct decay_layer *layer = &decay->layers[l];
        layer->first = shape->layer_first[l];
        layer->n_shards = shape->layer_first[l + 1] - layer->first;
        for (uint32_t i = 0; i < layer->n_shards; i++) {
            decay->layer_of[layer->first + i] = l;
            decay->position[layer->first + i] = ABSENT;
        }
    }
    return decay;
}

static void place(struct decay *decay, uint32_t *heap, uint32_t position, uint32_t shard)
{
    heap[position] = shard;
    decay->position[shard] = position;
}

/* Moves a shard towards the root while it is lighter than its parent. */
static void sift_up(struct decay *decay, struct decay_layer *layer, uint32_t shard)
{
    uint32_t *heap = decay->heap + layer->first;
    uint32_t position = decay->position[shard];
    while (position > 0) {
        uint32_t parent = (position - 1) / 2;
        if (decay->weight[heap[parent]] <= decay->weight[shard])
            break;
        place(decay, heap, position, heap[parent]);
        position = parent;
    }
    place(decay, heap, position, shard);
}

/* Moves a shard towards the leaves while it is heavier than a child. */
static void sift_down(struct decay *decay, struct decay_layer *layer, uint32_t shard)
{
    uint32_t *heap = decay->heap + layer->first;
    uint32_t position = decay->position[shard];
    for (;;) {
        uint32_t child = 2 * position + 1;
        if (child + 1 < layer->n_resident && decay->weight[heap[child + 1]] < decay->weight[heap[child]])
            child++;
        if (child >= layer->n_resident || decay->weight[heap[child]] >= decay->weight[shard])
            break;
        place(decay, heap, position, heap[child]);
        position = child;
    }
    place(decay, heap, position, shard);
}

static void begin_visit(struct decay *decay, struct decay_layer *layer, uint64_t token)
{
    layer->token = token;
    layer->unit = layer->total > 0 ? layer->unit / DECAY : 1;
    if (layer->unit > UNIT_MAX) {
        for (uint32_t i = 0; i < layer->n_shards; i++)
            decay->weight[layer->first + i] /= layer->unit;
        layer->total /= layer->unit;
        layer->unit = 1;
    }
    layer->total += layer->unit;
}

static void decay_access(void *state, uint32_t shard, uint64_t token)
{
    struct decay *decay = state;
    decay->current = decay->layer_of[shard];
    struct decay_layer *layer = &decay->layers[decay->current];
    if (layer->total <= 0 || layer->token != token)
        begin_visit(decay, layer, token);
    decay->weight[shard] += layer->unit;
    if (decay->position[shard] != ABSENT)
        sift_down(decay, layer, shard);
}

static void decay_inserted(void *state, uint32_t shard)
{
    struct decay *decay = state;
    struct decay_layer *layer = &decay->layers[decay->layer_of[shard]];
    decay->position[shard] = layer->n_resident++;
    sift_up(decay, layer, shard);
}

static void decay_removed(void *state, uint32_t shard)
{
    struct decay *decay = state;
    struct decay_layer *layer = &decay->layers[decay->layer_of[shard]];
    uint32_t *heap = decay->heap + layer->first;
    uint32_t position = decay->position[shard];
    uint32_t last = heap[--layer->n_resident];
    decay->position[shard] = ABSENT;
    if (last == shard)
        return;
    place(decay, heap, position, last);
    sift_up(decay, layer, last);
    sift_down(decay, layer, last);
}

struct search {
    struct decay *decay;
    struct decay_layer *layer;
    bool (*may_evict)(void *ctx, uint32_t shard);
    void *ctx;
    uint32_t lightest; /* found so far; ABSENT: none */
};

/* Lightest evictable shard below a heap position. Only shards that must stay are looked behind, so it visits few
 * more than those; as deep as the heap is high. */
static void search_lightest(struct search *search, uint32_t position)
{
    if (position >= search->layer->n_resident)
        return;
    const double *weight = search->decay->weight;
    uint32_t shard = search->decay->heap[search->layer->first + position];
    if (search->lightest != ABSENT && weight[search->lightest] <= weight[shard])
        return;
    if (search->may_evict(search->ctx, shard)) {
        search->lightest = shard;
        return;
    }
    search_lightest(search, 2 * position + 1);
    search_lightest(search, 2 * position + 2);
}

static uint32_t decay_victim(void *state, bool (*may_evict)(void *ctx, uint32_t shard), void *ctx)
{
    struct decay *decay = state;
    uint32_t victim = UINT32_MAX;
    double victim_score = INFINITY;
    for (uint32_t i = 0; i < decay->n_layers; i++) { /* the layer visited again last comes first */
        uint32_t l = (decay->current + decay->n_layers - i) % decay->n_layers;
        struct search search = {decay, &decay->layers[l], may_evict, ctx, ABSENT};
        search_lightest(&search, 0);
        if (search.lightest == ABSENT)
            continue;
        double weight = decay->weight[search.lightest];
        double score = weight > 0 ? weight / search.layer->total : 0;
        if (score < victim_score * (1 - TIE)) {
            victim = search.lightest;
            victim_score = score;
        }
    }
    return victim;
}

static double decay_score(const void *state, uint32_t shard)
{
    const struct decay *decay = state;
    double total = decay->layers[decay->layer_of[shard]].total;
    return total > 0 ? fmin(decay->weight[shard] / total, 1) : 0;
}

static void decay_prime(void *state, uint32_t shard, double score)
{
    struct decay *decay = state;
    struct decay_layer *layer = &decay->layers[decay->layer_of[shard]];
    if (layer->total <= 0) {
        layer->token = UINT64_MAX; /* no visit */
        layer->total = PRIMED_TOTAL;
        layer->unit = 1;
    }
    decay->weight[shard] = score * layer->total;
    if (decay->position[shard] == ABSENT)
        return;
    sift_up(decay, layer, shard);
    sift_down(decay, layer, shard);
}

const struct cache_policy cache_policy_decay = {
    .name = "decay",
    .summary = "evict the expert chosen least often of late",
    .create = decay_create,
    .destroy = free,
    .memory = decay_memory,
    .access = decay_access,
    .inserted = decay_inserted,
    .removed = decay_removed,
    .victim = decay_victim,
    .score = decay_score,
    .prime = decay_prime,
};
