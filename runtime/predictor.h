/* Predictor: which experts the next MoE layers will choose, before their turn. A later layer's router is applied to the
 * residual stream as it stands now, with that layer's norm ("stale gate"); the ranking it gives is turned into
 * probabilities by counting, per layer, distance and rank, how often such predictions came true.
 *
 * Routers are kept as Q8_0 copies, taken the first time each layer's weights are in memory: a quarter of the bytes of an
 * F32 router and in reach while trunk layers stream. Predictions never touch what is computed. */
#ifndef PENSTOCK_RUNTIME_PREDICTOR_H
#define PENSTOCK_RUNTIME_PREDICTOR_H

#include <stdint.h>

#include "runtime/penstock.h"
#include "storage/status.h"

struct forward;
struct ps_model;
struct predictor;

/* Bytes that a predictor takes for this model; 0: the model has too few MoE layers for one. */
uint64_t predictor_memory(const struct ps_model *model);
enum ps_status predictor_new(struct predictor **out, struct ps_model *model, struct ps_error *err);
void predictor_free(struct predictor *predictor); /* NULL is fine */

struct prediction {
    uint32_t layer; /* of the model */
    uint32_t n;
    const uint32_t *
        experts; /* [n] most likely first; borrowed until the next one of that distance for this or the second next MoE layer */
    const float *probabilities; /* [n] that some token of the chunk chooses the expert, not increasing */
};

/* For the step-th MoE layer after `layer` (-1: from the first on) when the residual stream lacks the output of
 * `distance` MoE blocks before it: 0 before the layer's own attention, 1 at the router of the layer before, 2 one further
 * back. False: there is no such layer, or its router was not seen yet. */
bool predictor_predict(struct predictor *predictor, struct forward *f, int layer, uint32_t step,
                       uint32_t distance, struct prediction *out);
/* The router of `layer` has chosen (f->s.chosen, f->s.router): takes its copy, and scores the predictions made for it. */
void predictor_observe(struct predictor *predictor, struct forward *f, uint32_t layer);

void predictor_get_stats(const struct predictor *predictor, struct ps_prediction_stats *stats);
double predictor_seconds(const struct predictor *predictor); /* spent in predict and observe */

#endif
