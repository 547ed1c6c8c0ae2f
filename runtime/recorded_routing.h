/* A routing trace in the place of a session's routers (ps_session_replay): token i of a sequence goes where token i of the
 * trace went, from the trace's first token again after its last. A layer that was not recorded for a token has no experts
 * for it, so that the cache is asked for what `simulate` has it asked for. Predictions are those recorded for tokens that
 * were computed by themselves, and are replayed to tokens that are. */
#ifndef PENSTOCK_RUNTIME_RECORDED_ROUTING_H
#define PENSTOCK_RUNTIME_RECORDED_ROUTING_H

#include "runtime/penstock.h"

struct recorded_routing;

struct recorded_routing_facts {
    const char *model; /* that was recorded; "": not known */
    uint64_t n_tokens;
    uint64_t n_tokens_predicted; /* tokens with predictions that can be replayed */
    uint64_t n_unrecorded;       /* (token, layer) pairs without experts, */
    uint64_t n_choices;          /* of so many */
    uint64_t n_weighed;          /* experts with weights, */
    uint64_t n_experts;          /* of so many */
    double expert_bytes;         /* mean of the layers; 0: not known */
};

/* top_k: experts per token, 0: the model's own number. PS_ERR_ARGUMENT where trace and model have other numbers of MoE layers,
 * experts or experts per token; else as route_trace_read. The model is not kept. */
enum ps_status recorded_routing_new(struct recorded_routing **out, const char *path,
                                    const struct ps_model *model, uint32_t top_k, struct ps_error *err);
void recorded_routing_free(struct recorded_routing *recorded); /* the session first; NULL is fine */

void recorded_routing_get_facts(const struct recorded_routing *recorded,
                                struct recorded_routing_facts *facts);
/* predictions: replays those as well. As ps_session_replay. */
enum ps_status recorded_routing_attach(struct recorded_routing *recorded, struct ps_session *session,
                                       bool predictions, struct ps_error *err);

#endif
