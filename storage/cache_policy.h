/* Cache policy: decides which shard leaves when a slot is needed. A policy is a row of a table; it sees accesses
 * and answers with a victim. It knows no slots, no I/O and no models, so the same code runs live and in replay.
 *
 * A policy instance serves one pool of slots of equal size. Ids are dense, 0..n_shards-1, and count up layer by
 * layer in the order in which a token passes the layers. The owner serialises all calls on an instance. */
#ifndef PENSTOCK_STORAGE_CACHE_POLICY_H
#define PENSTOCK_STORAGE_CACHE_POLICY_H

#include <stdbool.h>
#include <stdint.h>

struct cache_policy_shape {
    uint32_t n_shards; /* ids that can occur */
    uint32_t n_slots;  /* shards the pool can hold */
    uint32_t n_layers; /* layers one token passes; some may have no shards here */
    const uint32_t
        *layer_first; /* [n_layers + 1]: layer l owns ids layer_first[l]..layer_first[l+1]-1; read by
                                    create() only, memory() does not look at it */
};

struct cache_policy {
    const char *name;
    const char *summary; /* one line for --help */
    /* NULL when memory runs out. */
    void *(*create)(const struct cache_policy_shape *shape);
    void (*destroy)(void *state);
    /* Bytes that create() takes; never less for a larger shape. */
    uint64_t (*memory)(const struct cache_policy_shape *shape);
    /* A router chose this shard (hit or miss alike); token is a counter that grows by one per token. All accesses of
     * one layer's set come before the first victim() on its behalf. */
    void (*access)(void *state, uint32_t shard, uint64_t token);
    /* The shard now occupies a slot / has left it. */
    void (*inserted)(void *state, uint32_t shard);
    void (*removed)(void *state, uint32_t shard);
    /* A resident shard that may leave: one for which may_evict(ctx, shard) is true. UINT32_MAX when none may. */
    uint32_t (*victim)(void *state, bool (*may_evict)(void *ctx, uint32_t shard), void *ctx);
    /* How much a shard is worth keeping, 0..1, more is better: for warm starts and displays. */
    double (*score)(const void *state, uint32_t shard);
    /* The score that a shard had in an earlier run. Before the first access. */
    void (*prime)(void *state, uint32_t shard, double score);
};

const struct cache_policy *cache_policy_find(const char *name); /* NULL when unknown */
const struct cache_policy *cache_policy_at(uint32_t index); /* NULL past the end; index 0 is the default */

#endif
