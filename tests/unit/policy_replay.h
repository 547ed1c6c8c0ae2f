/* Routing traces for tests, as a list of sets of expert ids, and their replay. Shared by the policy's and the cache's
 * tests. */
#ifndef PENSTOCK_TESTS_POLICY_REPLAY_H
#define PENSTOCK_TESTS_POLICY_REPLAY_H

#include <stdlib.h>

#include "storage/cache_replay.h"

enum { TRACE_MAX_IDS = 64 };

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

/* A trace as the replay takes it; points into the arrays below it. */
struct trace_view {
    struct replay_trace trace;
    uint32_t *n_experts;
    struct replay_visit *visits;
    uint32_t *ids;
};

static inline void trace_view_init(struct trace_view *view, const struct trace *trace)
{
    view->n_experts = malloc(trace->n_layers * sizeof(*view->n_experts));
    view->visits = malloc((trace->n_sets + 1) * sizeof(*view->visits));
    view->ids = malloc((trace->n_sets + 1) * TRACE_MAX_IDS * sizeof(*view->ids));
    for (uint32_t l = 0; l < trace->n_layers; l++)
        view->n_experts[l] = trace->n_experts;
    for (uint32_t s = 0; s < trace->n_sets; s++) {
        const struct trace_set *set = &trace->sets[s];
        view->visits[s] = (struct replay_visit){set->token, set->layer, set->n, (uint64_t)s * TRACE_MAX_IDS};
        for (uint32_t i = 0; i < set->n; i++)
            view->ids[s * TRACE_MAX_IDS + i] = set->ids[i];
    }
    view->trace =
        (struct replay_trace){trace->n_layers, view->n_experts, trace->n_sets, view->visits, view->ids};
}

static inline void trace_view_deinit(struct trace_view *view)
{
    free(view->n_experts);
    free(view->visits);
    free(view->ids);
}

/* Hits over the trace with n_slots slots; UINT64_MAX when the policy breaks its contract. A set must fit. */
static inline uint64_t replay_hits(const struct trace *trace, const struct cache_policy *policy,
                                   uint32_t n_slots)
{
    struct trace_view view;
    trace_view_init(&view, trace);
    struct replay_result result;
    enum ps_status status = cache_replay(&view.trace, policy, n_slots, 0, &result, NULL);
    trace_view_deinit(&view);
    return status == PS_OK ? result.hits : UINT64_MAX;
}

#endif
