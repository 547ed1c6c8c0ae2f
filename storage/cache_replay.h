/* Replay of a routing trace through a cache policy, without slots and I/O: the same policy code that runs live, told
 * the same things in the same order. Beside it Belady's optimum, which knows the future.
 *
 * A trace is a list of visits: one token at one layer with the experts that the router chose. Experts of all layers are
 * taken to be of one size, as in one pool of the expert cache. */
#ifndef PENSTOCK_STORAGE_CACHE_REPLAY_H
#define PENSTOCK_STORAGE_CACHE_REPLAY_H

#include <stdint.h>

#include "storage/cache_policy.h"
#include "storage/status.h"

struct replay_visit {
    uint64_t token; /* grows by one per token */
    uint32_t layer;
    uint32_t n;     /* experts chosen; distinct */
    uint64_t first; /* ids[first .. first + n) of the trace */
};

struct replay_trace {
    uint32_t n_layers;
    const uint32_t *n_experts; /* [n_layers] */
    uint64_t n_visits;
    const struct replay_visit *visits; /* in the order of the forward pass */
    const uint32_t *ids;               /* expert within its layer */
};

struct replay_result {
    uint64_t accesses; /* experts asked for by the tokens counted */
    uint64_t hits;
    uint64_t cold; /* misses of experts never asked for before: no policy avoids them */
    uint64_t evictions;
    uint64_t tokens; /* counted */
};

/* Counts from the (skip + 1)-th token on; the ones before only fill the cache. n_slots must hold the largest visit.
 * PS_ERR_ARGUMENT: a malformed trace, or too few slots; PS_ERR_NOMEM. */
enum ps_status cache_replay(const struct replay_trace *trace, const struct cache_policy *policy,
                            uint32_t n_slots, uint64_t skip, struct replay_result *out, struct ps_error *err);
/* Belady (1966) with bypass: of the residents and the expert just read, the one used again last does not stay. */
enum ps_status cache_replay_belady(const struct replay_trace *trace, uint32_t n_slots, uint64_t skip,
                                   struct replay_result *out, struct ps_error *err);

#endif
