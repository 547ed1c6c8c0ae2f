/* Correction of a stale gate: a linear map, learnt online, from the logits that a layer's router gives on an earlier
 * residual stream to those that it gives in the end, and how far off each estimate is on average.
 *
 * What the blocks in between add to the residual stream is partly a linear function of it, the same for every token; a
 * map of logits to logits catches much of that for a hundredth of the cost of another router. It begins as the identity,
 * so it is never worse than no map, and learns by normalised least mean squares (Widrow & Hoff 1960; step sizes below 2
 * are stable), which also follows the text. Measured on fable-moe, recall of the top k, without and with: 0.73 -> 0.77
 * one MoE block ahead, 0.38 -> 0.63 from the embedding to the first layer. */
#ifndef PENSTOCK_RUNTIME_PREDICTOR_CORRECTION_H
#define PENSTOCK_RUNTIME_PREDICTOR_CORRECTION_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/vector_ops.h"

struct correction {
    uint32_t n;        /* experts */
    uint32_t n_learnt; /* outcomes, up to a limit; 0: none yet */
    float *map;        /* [n][n]; NULL: the identity, not learnt */
    float *shift;      /* [n] */
    float *error;      /* [n] mean square of truth - estimate; of use once something is learnt */
};

/* Floats that a correction of n experts needs. */
uint64_t correction_floats(uint32_t n, bool with_map);
/* floats: correction_floats(n, with_map), borrowed. */
void correction_init(struct correction *correction, uint32_t n, bool with_map, float *floats);
/* x: the stale logits, less their mean. estimate[n], not x. */
void correction_apply(const struct correction *correction, const struct vector_ops *ops, const float *x,
                      float *estimate);
/* truth: the logits less their mean; estimate: what apply made of x, overwritten. Values that are not finite teach nothing. */
void correction_learn(struct correction *correction, const struct vector_ops *ops, const float *x,
                      float *estimate, const float *truth);
/* Subtracts the mean: only differences between logits choose experts. */
void correction_centre(float *logits, uint32_t n);
/* Standard error of an expert's estimate; a guess while nothing is learnt. */
float correction_error(const struct correction *correction, const float *estimate, uint32_t expert);

#endif
