/* Least recently used: the yardstick. Layers are visited in a ring, so a cache below one token cycle evicts each
 * shard just before its next use and never hits; above two cycles it is a sound policy. */
#include <stdlib.h>

#include "storage/cache_policy_internal.h"

enum { ABSENT = UINT32_MAX };

/* A circular list of the resident shards, newest first; index n_shards is its head. */
struct lru {
    uint32_t head;
    uint32_t *older; /* [n_shards + 1] ABSENT when not resident */
    uint32_t *newer; /* [n_shards + 1] */
};

static uint64_t lru_memory(const struct cache_policy_shape *shape)
{
    return sizeof(struct lru) + 2 * ((uint64_t)shape->n_shards + 1) * sizeof(uint32_t);
}

static void *lru_create(const struct cache_policy_shape *shape)
{
    struct lru *lru = malloc(lru_memory(shape));
    if (!lru)
        return NULL;
    lru->head = shape->n_shards;
    lru->older = (uint32_t *)(lru + 1);
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

static void lru_inserted(void *state, uint32_t shard)
{
    struct lru *lru = state;
    uint32_t second = lru->older[lru->head];
    lru->older[shard] = second;
    lru->newer[shard] = lru->head;
    lru->newer[second] = shard;
    lru->older[lru->head] = shard;
}

static void lru_access(void *state, uint32_t shard, uint64_t token)
{
    struct lru *lru = state;
    (void)token;
    if (lru->older[shard] == ABSENT)
        return;
    lru_removed(lru, shard);
    lru_inserted(lru, shard);
}

static uint32_t lru_victim(void *state, bool (*may_evict)(void *ctx, uint32_t shard), void *ctx)
{
    struct lru *lru = state;
    for (uint32_t shard = lru->newer[lru->head]; shard != lru->head; shard = lru->newer[shard])
        if (may_evict(ctx, shard))
            return shard;
    return UINT32_MAX;
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
};
