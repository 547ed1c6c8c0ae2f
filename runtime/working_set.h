/* Working set: the experts most worth keeping when a run ended, kept in a small file so that the next run can read them
 * into empty slots while the drive has nothing else to do. It is a hint: it decides what is read early, never what is
 * computed, and a file that does not fit is as good as none. */
#ifndef PENSTOCK_RUNTIME_WORKING_SET_H
#define PENSTOCK_RUNTIME_WORKING_SET_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/expert_cache.h"
#include "storage/gguf.h"
#include "storage/shard_map.h"
#include "storage/status.h"

enum {
    WORKING_SET_POLICY_SIZE = 16,      /* bytes of a policy's name that are kept */
    WORKING_SET_SCORE_MAX = UINT16_MAX /* stands for 1 */
};

struct working_set_entry {
    uint32_t shard;
    uint16_t score; /* of the cache policy, 0..1 in WORKING_SET_SCORE_MAXths */
    bool resident;  /* in memory when it was taken; not in the file */
};

struct working_set {
    uint64_t model;                       /* working_set_model_id */
    char policy[WORKING_SET_POLICY_SIZE]; /* whose scores they are; padded with zeros */
    uint32_t n;
    struct working_set_entry *entries; /* [n] best first; owned */
};

void working_set_deinit(struct working_set *set);

/* Tells models apart by what the header says, not by where the file is: sizes, tensor directory, and metadata but for the
 * contents of arrays. Two fine-tunes may share one if not even their names differ; they then share a working set. */
uint64_t working_set_model_id(const struct gguf *gguf);

/* What is in the cache, and what was known to be better (a read that was not done in time): as many as there are slots.
 * PS_ERR_NOMEM. */
enum ps_status working_set_take(struct working_set *set, uint64_t model, struct expert_cache *cache,
                                const struct shard_map *map, const char *policy, struct ps_error *err);
/* Gives the experts their scores, if they are of the cache's own policy. set must fit map; the cache was not used yet. */
void working_set_prime(const struct working_set *set, struct expert_cache *cache, const struct shard_map *map,
                       const char *policy);
/* Starts reading the experts into empty slots, best first, at the lowest priority. */
void working_set_preload(const struct working_set *set, struct expert_cache *cache,
                         const struct shard_map *map);

/* No such file: PS_OK and an empty set. PS_ERR_IO; PS_ERR_FORMAT: not a working set, damaged, or of another model;
 * PS_ERR_UNSUPPORTED: another version; PS_ERR_NOMEM. The set is empty on failure. */
enum ps_status working_set_read(struct working_set *set, const char *path, uint64_t model, uint32_t n_shards,
                                struct ps_error *err);
/* Written aside and renamed into place. Only a working set, of whatever model, is replaced. PS_ERR_IO, PS_ERR_NOMEM. */
enum ps_status working_set_write(const struct working_set *set, const char *path, struct ps_error *err);

#endif
