/* Routing: scores of the router's logits, the choice of experts, and their weights. */
#ifndef PENSTOCK_RUNTIME_ROUTE_H
#define PENSTOCK_RUNTIME_ROUTE_H

#include "runtime/forward_internal.h"

/* Fills scratch.router with the scores of all experts, .chosen and .weights. Fails where the file, or a replay, says that a
 * token goes to an expert that there is not. */
enum ps_status route(struct forward *f, uint32_t layer, struct acts *acts, struct ps_error *err);
/* Weights of the chunk's tokens from the scores once more, after something has changed the choice. */
void weigh_again(struct forward *f);

/* What the choice ranks experts by, up to a constant, from the router's logits (in place): the logits, or the score and its
 * selection bias ([n_expert], or NULL). Groups are left aside. */
void route_preference(const struct ps_model *model, const float *select_bias, float *logits);
/* The same from scores as scratch.router holds them. */
void route_preference_of_scores(const struct ps_model *model, const float *select_bias, const float *scores,
                                float *out);

#endif
