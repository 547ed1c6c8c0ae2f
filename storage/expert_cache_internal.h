/* What the parts of the expert cache share: how a budget is divided among pools (expert_cache_plan.c), and the
 * cache's structures (expert_cache.c), whose sizes the plan counts. */
#ifndef PENSTOCK_STORAGE_EXPERT_CACHE_INTERNAL_H
#define PENSTOCK_STORAGE_EXPERT_CACHE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "storage/expert_cache.h"
#include "storage/unpacker.h"

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
    enum expert_verify verify;
    bool unpacks;                    /* some read is checked or unpacked */
    struct unpacker_config unpacker; /* if so; n_jobs is what the slots make it */
};

/* False: bytes do not hold min_slots slots in every pool, which the plan then has. */
bool expert_cache_plan_make(struct expert_cache_plan *plan, const struct shard_map *map,
                            const struct expert_cache_config *config, uint64_t bytes);
void expert_cache_plan_size(const struct expert_cache_plan *plan, struct expert_cache_size *out);
uint64_t expert_cache_verified_bytes(const struct expert_cache_plan *plan);
uint32_t expert_cache_plan_pool(const struct expert_cache_plan *plan,
                                uint64_t slot_bytes); /* its size class */
/* layer_first: see struct cache_policy_shape; NULL will do for memory(). */
struct cache_policy_shape expert_cache_plan_shape(const struct expert_cache_plan *plan, uint32_t pool,
                                                  const uint32_t *layer_first);

enum expert_slot_state {
    SLOT_EMPTY,
    SLOT_LOADING, /* being read, checked, unpacked, and if it was damaged read once more */
    SLOT_READY,
    SLOT_FAILED, /* holds the outcome of its read until the set ends, or until it is collected */
};

/* What is known of a shard that was read before its router asked for it. */
enum expert_ahead {
    AHEAD_NONE,   /* read on demand, or used since */
    AHEAD_HELD,   /* for a layer to come: stays until that has begun */
    AHEAD_WARM,   /* from an earlier run's working set, unused so far */
    AHEAD_PASSED, /* its layer went by without it */
};

enum {
    EXPERT_CACHE_MAX_HELD = 64, /* slots read ahead for layers to come, or being collected */
    EXPERT_CACHE_HELD_SHARE = 4 /* of a pool's slots, one in so many at most */
};

struct expert_slot {
    struct io_job job;       /* its buffer is the slot */
    struct io_range *ranges; /* [max_ranges of the pool] of the job */
    uint32_t shard;          /* pool order */
    uint32_t next_free;      /* in the pool's list of empty slots */
    uint32_t layer;          /* of the shard */
    atomic_uchar state;      /* enum expert_slot_state; another thread ends LOADING, under the lock */
    atomic_uchar ahead;      /* enum expert_ahead */
    bool pinned;             /* the set needs it: loading, or handed out, or about to be */
    bool wanted;             /* loading, and the set waits for it; under the lock */
    bool cancelled;          /* loading, but what was not issued of it was taken back */
    bool reread;             /* it was damaged when it was read first; under the lock */
    bool damaged;            /* FAILED because of that, not because of the read */
};

struct expert_pool {
    void *policy_state;
    uint32_t first_shard; /* pool order; the policy's ids start at 0 */
    uint32_t free_slot;   /* list of empty slots */
    uint32_t n_held;      /* slots on the cache's list of held ones */
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
    uint32_t *warm;                    /* [size.slots] slots of preloads in the order of their submission */
    uint32_t n_warm;                   /* the last of them gives way first */
    uint32_t held
        [EXPERT_CACHE_MAX_HELD]; /* slots read ahead whose layer has not begun, or still landing after it */
    uint32_t n_held;
    struct unpacker *unpacker; /* NULL: nothing is checked or unpacked */
    struct unpack_job *unpack; /* [size.slots] */

    /* The rest, and the state of loading slots, is shared with threads of reader and unpacker. All above is the caller's. Under
     * this lock the reader's and the unpacker's may be taken, never the other way round. */
    pthread_mutex_t lock;
    pthread_cond_t landed;
    uint32_t n_loading;   /* reads that the set waits for */
    uint32_t n_ahead;     /* other reads */
    uint32_t failed_slot; /* first read of the set that failed */
    struct expert_cache_stats stats;
    uint8_t *verified;                   /* a bit per shard whose checksum was right; NULL: not noted */
    struct unpacker_stats unpacker_base; /* at the last reset */
};

/* ---- expert_cache.c ---- */

uint32_t expert_cache_slot_index(const struct expert_cache *cache, const struct expert_slot *slot);
uint32_t expert_cache_slot_of(const struct expert_cache *cache, uint32_t layer, uint32_t expert);
/* An empty slot of the pool, made by giving up preloads or by eviction if need be; NULL when there can be none. */
struct expert_slot *expert_cache_take_slot(struct expert_cache *cache, uint32_t pool_index);
void expert_cache_leave_slot(struct expert_cache *cache, struct expert_slot *slot);
void expert_cache_start_read(struct expert_cache *cache, struct expert_slot *slot, uint32_t layer,
                             uint32_t expert, enum io_priority priority);

/* Ends LOADING; under the lock, on the thread that did the last of it. */
void expert_cache_end_loading(struct expert_cache *cache, struct expert_slot *slot, bool ok);

/* ---- expert_cache_unpack.c ---- */

bool expert_cache_unpack_init(struct expert_cache *cache);   /* false: no memory */
void expert_cache_unpack_deinit(struct expert_cache *cache); /* nothing is loading */
/* Where what is about to be read is to be checked or unpacked, lets the slot's job report to the unpacker. There is one; under
 * the lock. */
void expert_cache_unpack_begin(struct expert_cache *cache, struct expert_slot *slot,
                               const struct shard_location *location);
/* Compute has come to wait for the slot, which is loading; under the lock. */
void expert_cache_unpack_promote(struct expert_cache *cache, struct expert_slot *slot);
/* Why the slot is SLOT_FAILED and damaged. */
enum ps_status expert_cache_damage(const struct expert_cache *cache, const struct expert_slot *slot,
                                   struct ps_error *err);
void expert_cache_unpack_stats(struct expert_cache *cache,
                               struct expert_cache_stats *stats); /* adds its own */

/* ---- expert_cache_ahead.c ---- */

enum expert_found {
    EXPERT_ABSENT,
    EXPERT_READY,
    EXPERT_LANDING, /* was being read ahead, and is waited for now */
};
/* Finds and pins an expert that a set needs; counts it in found, where bytes_wasted is what is not wasted after all. */
enum expert_found expert_cache_claim(struct expert_cache *cache, uint32_t layer, uint32_t expert,
                                     struct expert_cache_stats *found);
/* The layer's set has been claimed: what else was read ahead for it was in vain. */
void expert_cache_pass_layer(struct expert_cache *cache, uint32_t layer);
/* Empties slots whose read ahead was cancelled or has failed. */
void expert_cache_collect(struct expert_cache *cache);
/* Frees the slot of the last preload that has not begun. False: there is none in the pool. */
bool expert_cache_yield_warm(struct expert_cache *cache, uint32_t pool_index);
/* Cancels all reads ahead and waits for those under way. */
void expert_cache_stop_ahead(struct expert_cache *cache);

#endif
