/* A routing trace in the expert cache: its layers by the pools whose slots they share, replayed through a policy. */
#ifndef PENSTOCK_RUNTIME_ROUTE_REPLAY_H
#define PENSTOCK_RUNTIME_ROUTE_REPLAY_H

#include "runtime/route_trace.h"

struct route_replay;

/* trace is borrowed. PS_ERR_NOMEM. */
enum ps_status route_replay_new(struct route_replay **out, const struct route_trace *trace,
                                struct ps_error *err);
/* Of visits as a cache sees them, n_tokens tokens from 0 up; pool[n_layers]. ids are borrowed, nothing else. PS_ERR_NOMEM. */
enum ps_status route_replay_of_visits(struct route_replay **out, const struct replay_trace *trace,
                                      const uint32_t *pool, uint64_t n_tokens, struct ps_error *err);
void route_replay_free(struct route_replay *replay); /* NULL is fine */

uint32_t route_replay_n_shards(const struct route_replay *replay); /* experts over all layers */
/* What one token needs in one layer, in every pool. */
uint32_t route_replay_least_slots(const struct route_replay *replay);

/* Every token by itself, without prefetch, from an empty cache; counts as cache_replay does. n_slots: at least the least,
 * divided among the pools as the expert cache divides them. policy NULL: Belady's optimum. */
enum ps_status route_replay_run(const struct route_replay *replay, const struct cache_policy *policy,
                                uint32_t n_slots, uint64_t skip, struct replay_result *out,
                                struct ps_error *err);

#endif
