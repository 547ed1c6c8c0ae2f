/* Expert cache: a bounded set of slots in one arena that holds the experts used last, filled by the async reader.
 *
 * A slot is empty, loading, ready, or ready and pinned. One caller at a time (the forward pass) walks a set:
 *
 *     expert_set_begin(cache, &set, layer, ids, n);        reads of misses start here
 *     while ((n = expert_set_next(cache, &set, views, max, &err)) > 0)
 *         compute the views, then expert_set_release(cache, &set, views, n);
 *     status = expert_set_end(cache, &set, &err);
 *
 * next() gives what is in memory first (hits), then misses as they land, and blocks only when nothing
 * of the set is ready. A set may be larger than the cache: reads for the rest start as slots are released, each
 * expert being read once. Which bytes are handed out never depends on the order in which they arrive.
 *
 * Slots come in pools of equal slot size, one pool per size class of the model's shards, in one mmap'd arena. */
#ifndef PENSTOCK_STORAGE_EXPERT_CACHE_H
#define PENSTOCK_STORAGE_EXPERT_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/cache_policy.h"
#include "storage/io_reader.h"
#include "storage/shard_map.h"
#include "storage/status.h"

struct expert_cache;

enum expert_verify { EXPERT_VERIFY_OFF, EXPERT_VERIFY_FIRST, EXPERT_VERIFY_ALWAYS };

struct expert_cache_config {
    const struct cache_policy *policy;
    uint32_t min_slots;        /* in every pool, at least; 0: one */
    enum expert_verify verify; /* of a container: which reads have their checksum compared */
    uint32_t unpack_threads;   /* most threads that check and unpack; 0: one */
};

/* What the arena and the bookkeeping would be for a budget; the memory plan uses it before anything is allocated. */
struct expert_cache_size {
    uint64_t arena_bytes;    /* slots, whole pages */
    uint64_t overhead_bytes; /* tables, policy state, jobs, what unpacking takes */
    uint32_t slots;          /* over all pools */
};

/* Smallest working cache: min_slots slots in every pool. */
void expert_cache_min_size(const struct shard_map *map, const struct expert_cache_config *config,
                           struct expert_cache_size *out);
/* Largest cache with arena + overhead <= bytes; no more slots than shards; every pool holds about the same share of
 * its shards. False: even the minimum, which out then holds, does not fit. */
bool expert_cache_fit(const struct shard_map *map, const struct expert_cache_config *config, uint64_t bytes,
                      struct expert_cache_size *out);
/* The pool of a layer that has experts; pool 0 has the largest slots. */
uint32_t expert_cache_layer_pool(const struct shard_map *map, uint32_t layer);

/* bytes: as for expert_cache_fit. map and reader are borrowed and must outlive the cache. A map without shards is
 * fine: the cache is then empty. PS_ERR_BUDGET, PS_ERR_NOMEM. */
enum ps_status expert_cache_new(struct expert_cache **out, const struct shard_map *map,
                                struct io_reader *reader, const struct expert_cache_config *config,
                                uint64_t bytes, struct ps_error *err);
void expert_cache_free(struct expert_cache *cache); /* waits for reads in flight; NULL is fine */

/* One expert in memory; borrowed (its slot is pinned) until released. */
struct expert_view {
    uint32_t index; /* position in the ids given to begin() */
    uint32_t expert;
    uint32_t shard;
    const uint8_t *part[SHARD_N_PARTS]; /* NULL when absent; no alignment beyond the file's own */
};

/* A walk over one set; the caller's, on its stack. Fields are the cache's own. */
struct expert_set {
    uint32_t layer;
    const uint32_t *ids; /* [n] borrowed until end() */
    uint32_t n;
    uint32_t n_delivered;
    uint32_t next_read; /* no id before it waits for a slot */
    bool starved;       /* next() was called with every slot pinned by views not yet released */
};

/* One set at a time. ids: distinct, each < n_experts of the layer. token: counter for the policy (grows by one per token; for a chunk of
 * tokens, that of its last). weight of use: each id counts as one access. */
void expert_set_begin(struct expert_cache *cache, struct expert_set *set, uint32_t layer, const uint32_t *ids,
                      uint32_t n, uint64_t token);
/* Up to max (> 0) views; 0 when all were handed out or on failure (then expert_set_end returns the error). */
uint32_t expert_set_next(struct expert_cache *cache, struct expert_set *set, struct expert_view *views,
                         uint32_t max);
void expert_set_release(struct expert_cache *cache, struct expert_set *set, const struct expert_view *views,
                        uint32_t n);
/* Ends the walk at any point: cancels reads not yet issued, waits for the others, unpins what is left. Returns the
 * first failure of the walk: a read that failed for good, or an extent that was found damaged twice (PS_ERR_FORMAT), naming
 * expert, file and offset; PS_ERR_ARGUMENT when next()
 * could hand out nothing because the caller held every slot. A failed shard's slot is empty again; the cache stays
 * usable. */
enum ps_status expert_set_end(struct expert_cache *cache, struct expert_set *set, struct ps_error *err);

/* ---- ahead of the walk: same thread, outside or inside one ---- */

enum expert_prefetch {
    EXPERT_PREFETCH_STARTED,
    EXPERT_PREFETCH_PRESENT, /* in memory, or its read is under way */
    EXPERT_PREFETCH_NO_SLOT, /* every slot is pinned, being filled, or holds what was read ahead for a layer to come */
};
/* Starts a speculative read. It is taken back, as far as it was not issued, when the next set of its layer begins and
 * does not hold the expert. A failed one leaves no trace: the demand read that may follow reports. */
enum expert_prefetch expert_cache_prefetch(struct expert_cache *cache, uint32_t layer, uint32_t expert);
/* The score that an expert had in an earlier run. Before the first set. */
void expert_cache_prime(struct expert_cache *cache, uint32_t layer, uint32_t expert, double score);
enum expert_presence {
    EXPERT_MISSING,
    EXPERT_HELD, /* read ahead for its layer's next turn, landed or not */
    EXPERT_KEPT,
    EXPERT_PRESENCES
};
enum expert_presence expert_cache_presence(struct expert_cache *cache, uint32_t layer, uint32_t expert);
/* Reads an expert into an empty slot at the lowest priority; never evicts, and gives its slot up to any other read while it
 * waits. False: no slot is empty. */
bool expert_cache_preload(struct expert_cache *cache, uint32_t layer, uint32_t expert);
bool expert_cache_is_resident(struct expert_cache *cache, uint32_t layer,
                              uint32_t expert); /* in memory now */
double expert_cache_score(const struct expert_cache *cache, uint32_t layer, uint32_t expert);

struct expert_cache_stats {
    uint64_t hits;         /* experts of a set found in memory */
    uint64_t late;         /* found being read ahead */
    uint64_t misses;       /* experts that had to be read */
    uint64_t bytes_useful; /* read ahead, by what came of it: of hits, */
    uint64_t bytes_late;   /* of late ones, */
    uint64_t
        bytes_wasted; /* of experts that left unused, or whose layer has passed them by and that are unused yet */
    uint64_t bytes_warm; /* read by preload */
    uint64_t withdrawn;  /* reads ahead taken back before anything was issued */
    uint64_t evictions;  /* shards that left to make room */
    double stall_s;      /* time next() blocked with nothing ready */
    /* Of a container. */
    uint64_t checked;        /* extents whose checksum was compared */
    uint64_t reread_sound;   /* damaged when read first, and not when read again */
    uint64_t bytes_unpacked; /* made of compressed extents */
    double check_s;          /* time of unpacking threads, */
    double unpack_s;         /* likewise */
};
void expert_cache_get_stats(struct expert_cache *cache, struct expert_cache_stats *stats);
void expert_cache_reset_stats(struct expert_cache *cache);
void expert_cache_get_size(const struct expert_cache *cache, struct expert_cache_size *size);

#endif
