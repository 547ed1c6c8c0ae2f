/* What the parts of the expert cache share: how a budget is divided among pools (expert_cache_plan.c), and the
 * cache's structures (expert_cache.c), whose sizes the plan counts. */
#ifndef PENSTOCK_STORAGE_EXPERT_CACHE_INTERNAL_H
#define PENSTOCK_STORAGE_EXPERT_CACHE_INTERNAL_H

#include <pthread.h>

#include "storage/expert_cache.h"

enum { EXPERT_CACHE_MAX_POOLS = 8 };

/* One size class: layers whose slots are larger than floor_bytes and no larger than slot_bytes. */
struct expert_pool_plan {
    uint64_t slot_bytes;
    uint64_t floor_bytes;
    uint32_t n_shards;
    uint32_t n_slots;
    uint32_t max_ranges; /* per shard */
};

struct expert_cache_plan {
    const struct cache_policy *policy;
    uint32_t n_layers;
    uint32_t n_shards;
    uint32_t max_experts; /* of any layer */
    uint32_t n_pools;
    struct expert_pool_plan pools[EXPERT_CACHE_MAX_POOLS]; /* largest slots first */
};

/* False: bytes do not hold min_slots slots in every pool, which the plan then has. */
bool expert_cache_plan_make(struct expert_cache_plan *plan, const struct shard_map *map,
                            const struct cache_policy *policy, uint32_t min_slots, uint64_t bytes);
void expert_cache_plan_size(const struct expert_cache_plan *plan, struct expert_cache_size *out);
uint32_t expert_cache_plan_pool(const struct expert_cache_plan *plan,
                                uint64_t slot_bytes); /* its size class */
/* layer_first: see struct cache_policy_shape; NULL will do for memory(). */
struct cache_policy_shape expert_cache_plan_shape(const struct expert_cache_plan *plan, uint32_t pool,
                                                  const uint32_t *layer_first);

enum expert_slot_state {
    SLOT_EMPTY,
    SLOT_LOADING,
    SLOT_READY,
    SLOT_FAILED, /* holds the outcome of its read until the set ends */
};

struct expert_slot {
    struct io_job job;       /* its buffer is the slot */
    struct io_range *ranges; /* [max_ranges of the pool] of the job */
    uint32_t shard;          /* pool order */
    uint32_t next_free;      /* in the pool's list of empty slots */
    uint8_t state;           /* enum expert_slot_state */
    bool pinned;             /* the set needs it: loading, or handed out, or about to be */
};

struct expert_pool {
    void *policy_state;
    uint32_t first_shard; /* pool order; the policy's ids start at 0 */
    uint32_t free_slot;   /* list of empty slots */
};

struct expert_cache_layer {
    uint32_t pool;
    uint32_t first_shard; /* pool order */
};

/* Shards are numbered in pool order: pool by pool, and layer by layer in each. */
struct expert_cache {
    const struct shard_map *map;
    struct io_reader *reader;
    struct expert_cache_plan plan;
    struct expert_cache_size size;
    uint8_t *arena;
    struct expert_pool pools[EXPERT_CACHE_MAX_POOLS];
    struct expert_cache_layer *layers; /* [n_layers] */
    uint32_t *slot_of;                 /* [n_shards] */
    struct expert_slot *slots;         /* [size.slots] pool by pool */
    struct io_range *ranges;           /* of all slots */
    uint8_t *set_state;                /* [max_experts] per id of the set, enum in expert_cache.c */

    /* The rest, and the state of loading slots, is shared with the reader's thread. All above is the caller's. */
    pthread_mutex_t lock;
    pthread_cond_t landed;
    uint32_t n_loading;
    uint32_t failed_slot; /* first read of the set that failed */
    struct expert_cache_stats stats;
};

#endif
