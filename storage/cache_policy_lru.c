/* Least recently used: the yardstick. Layers are visited in a ring, so a cache below one token cycle evicts each
 * shard just before its next use and never hits; above two cycles it is a sound policy. */
#include <stdlib.h>

#include "storage/cache_policy_internal.h"

enum { ABSENT = UINT32_MAX };

/* Accesses are numbered from here; earlier numbers stand for those of an earlier run. */
static const uint64_t START = UINT64_C(1) << 40;

/* A circular list of the resident shards, newest first; index n_shards is its head. */
struct lru {
    uint64_t clock;  /* number of the last access */
    uint64_t *used;  /* [n_shards] its last access; 0: none */
    uint32_t head;   /* n_shards */
    uint32_t *older; /* [n_shards + 1] ABSENT when not resident */
    uint32_t *newer; /* [n_shards + 1] */
};

static uint64_t lru_memory(const struct cache_policy_shape *shape)
{
    return sizeof(struct lru) + shape->n_shards * sizeof(uint64_t) +
           2 * ((uint64_t)shape->n_shards + 1) * sizeof(uint32_t);
}

static void *lru_create(const struct cache_policy_shape *shape)
{
    struct lru *lru = calloc(1, lru_memory(shape));
    if (!lru)
        return NULL;
    lru->clock = START;
    lru->head = shape->n_shards;
    lru->used = (uint64_t *)(lru + 1);
    lru->older = (uint32_t *)(lru->used + shape->n_shards);
    lru->newer = lru->older + shape->n_shards + 1;
    for (uint32_t i = 0; i < shape->n_shards; i++)
        lru->older[i] = lru->newer[i] = ABSENT;
    lru->older[lru->head] = lru->newer[lru->head] = lru->head;
    return lru;
}

static void lru_removed(void *state, uint32_t shard)
{
    struct lru *lru = state;
    lru->older[lru->newer[shard]] = lru->older[shard];
    lru->newer[lru->older[shard]] = lru->newer[shard];
    lru->older[shard] = lru->newer[shard] = ABSENT;
}

static void link_behind(struct lru *lru, uint32_t newer, uint32_t shard)
{
    uint32_t older = lru->older[newer];
    lru->older[shard] = older;
    lru->newer[shard] = newer;
    lru->newer[older] = shard;
    lru->older[newer] = shard;
}

static void lru_inserted(void *state, uint32_t shard)
{
    struct lru *lru = state;
    uint32_t newer = lru->head;
    if (lru->used[shard] > 0 && lru->used[shard] < START) /* only used in an earlier run: among its like */
        for (newer = lru->newer[lru->head]; newer != lru->head && lru->used[newer] < lru->used[shard];)
            newer = lru->newer[newer];
    link_behind(lru, newer, shard);
}

static void lru_access(void *state, uint32_t shard, uint64_t token)
{
    struct lru *lru = state;
    (void)token;
    lru->used[shard] = ++lru->clock;
    if (lru->older[shard] == ABSENT)
        return;
    lru_removed(lru, shard);
    link_behind(lru, lru->head, shard);
}

static uint32_t lru_victim(void *state, bool (*may_evict)(void *ctx, uint32_t shard), void *ctx)
{
    struct lru *lru = state;
    for (uint32_t shard = lru->newer[lru->head]; shard != lru->head; shard = lru->newer[shard])
        if (may_evict(ctx, shard))
            return shard;
    return UINT32_MAX;
}

/* A half for the shard used as many accesses ago as there are shards. */
static double lru_score(const void *state, uint32_t shard)
{
    const struct lru *lru = state;
    if (lru->used[shard] == 0)
        return 0;
    return lru->head / (lru->head + (double)(lru->clock - lru->used[shard]));
}

static void lru_prime(void *state, uint32_t shard, double score)
{
    struct lru *lru = state;
    double age = score > 0 ? lru->head / score - lru->head : (double)START;
    lru->used[shard] = age < (double)START - 1 ? START - 1 - (uint64_t)age : 0;
}

const struct cache_policy cache_policy_lru = {
    .name = "lru",
    .summary = "evict the expert used longest ago; hits nothing when the cache is below one token cycle",
    .create = lru_create,
    .destroy = free,
    .memory = lru_memory,
    .access = lru_access,
    .inserted = lru_inserted,
    .removed = lru_removed,
    .victim = lru_victim,
    .score = lru_score,
    .prime = lru_prime,
};
