/* Recurrent layers: the state of linear attention as it moves from token to token, and the short convolutions before it.
 *
 * A head's state is a matrix with a row per key dimension and a column per value dimension. Columns do not depend on each other,
 * so heads and groups of columns are shared among threads; a call takes its tokens in order, with the same arithmetic for
 * each however many there are. Single-threaded, no allocation, pointers need no alignment. */
#ifndef PENSTOCK_KERNELS_RECURRENCE_H
#define PENSTOCK_KERNELS_RECURRENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu.h"

enum {
    /* Most columns of a call: with 128 keys their state, which each token passes twice, stays in 32 KiB. */
    RECURRENCE_COLUMNS = 64,
};

/* For each token: state = decay * state; u = beta * (v - k state), or beta * v; state += k u; out = q state. */
struct recurrence_args {
    float *state;                         /* [n_keys][n_columns] */
    uint32_t n_keys, n_columns, n_tokens; /* n_columns <= RECURRENCE_COLUMNS */
    bool delta;        /* the delta rule: what the state answers to k already is taken off v */
    bool decay_by_key; /* a decay per key, not one for all */
    const float *q, *k, *v, *decay,
        *beta; /* of the first token: [n_keys] twice, [n_columns], [n_keys] or one, one */
    size_t q_stride, k_stride, v_stride; /* floats between tokens */
    size_t decay_stride, beta_stride;
    float *out; /* [n_columns] per token; may be v with its stride */
    size_t out_stride;
};

struct recurrence_kernels {
    enum cpu_level level;
    /* The delta rule is that of gated delta networks (Yang et al. 2024, arXiv:2412.06464) and of Kimi's, which decay by key
     * (arXiv:2510.26692); without it, it is Mamba-2 (Dao and Gu 2024, arXiv:2405.21060): k is B, q is C, beta the time step. */
    void (*advance)(const struct recurrence_args *args);
    /* One token of a causal convolution per channel: out[c] = sum over taps of weights[tap * n + c] * rows[tap][c], the oldest
     * tap first, + bias[c]; bias NULL: 0. out may be a row. */
    void (*convolve)(float *out, const float *const *rows, const float *weights, const float *bias,
                     uint32_t taps, size_t n);
};

/* level must be available. */
const struct recurrence_kernels *recurrence_kernels_get(enum cpu_level level);

#endif
