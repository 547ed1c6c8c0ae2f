/* Replays a routing trace through a cache policy alone: no slots, no I/O. Shared by the policy's and the cache's
 * tests. Shard ids are layer * n_experts + expert. */
#ifndef PENSTOCK_TESTS_POLICY_REPLAY_H
#define PENSTOCK_TESTS_POLICY_REPLAY_H

#include <stdlib.h>

#include "storage/cache_policy.h"

enum { TRACE_MAX_IDS = 16 };

struct trace_set {
    uint32_t token;
    uint32_t layer;
    uint32_t n;
    uint32_t ids[TRACE_MAX_IDS];
};

struct trace {
    uint32_t n_layers;
    uint32_t n_experts; /* per layer */
    uint32_t n_sets;
    struct trace_set *sets; /* in the order of the forward pass */
};

struct replay {
    const struct trace *trace;
    const struct trace_set *set; /* what is pinned */
    uint32_t n_resident;
    bool *resident;
};

static inline bool replay_may_evict(void *ctx, uint32_t shard)
{
    const struct replay *replay = ctx;
    if (!replay->resident[shard])
        return false;
    for (uint32_t i = 0; i < replay->set->n; i++)
        if (replay->set->layer * replay->trace->n_experts + replay->set->ids[i] == shard)
            return false;
    return true;
}

/* Hits over the trace with n_slots slots; UINT64_MAX when the policy breaks its contract. A set must fit. */
static inline uint64_t replay_hits(const struct trace *trace, const struct cache_policy *policy,
                                   uint32_t n_slots)
{
    uint32_t n_shards = trace->n_layers * trace->n_experts;
    uint32_t *layer_first = malloc((trace->n_layers + 1) * sizeof(*layer_first));
    for (uint32_t l = 0; l <= trace->n_layers; l++)
        layer_first[l] = l * trace->n_experts;
    void *state =
        policy->create(&(struct cache_policy_shape){n_shards, n_slots, trace->n_layers, layer_first});
    free(layer_first);
    struct replay replay = {.trace = trace, .resident = calloc(n_shards, sizeof(bool))};
    uint64_t hits = 0;
    for (uint32_t s = 0; s < trace->n_sets; s++) {
        const struct trace_set *set = replay.set = &trace->sets[s];
        uint32_t first = set->layer * trace->n_experts;
        for (uint32_t i = 0; i < set->n; i++) {
            policy->access(state, first + set->ids[i], set->token);
            hits += replay.resident[first + set->ids[i]];
        }
        for (uint32_t i = 0; i < set->n; i++) {
            uint32_t shard = first + set->ids[i];
            if (replay.resident[shard])
                continue;
            if (replay.n_resident == n_slots) {
                uint32_t victim = policy->victim(state, replay_may_evict, &replay);
                if (victim >= n_shards || !replay_may_evict(&replay, victim)) {
                    hits = UINT64_MAX;
                    goto done;
                }
                policy->removed(state, victim);
                replay.resident[victim] = false;
                replay.n_resident--;
            }
            policy->inserted(state, shard);
            replay.resident[shard] = true;
            replay.n_resident++;
        }
    }
done:
    policy->destroy(state);
    free(replay.resident);
    return hits;
}

#endif
