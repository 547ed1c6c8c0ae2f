/* Operations on vectors of F32: norms, rotary embedding, activations, softmax, top-k, sums.
 *
 * Element-wise results do not depend on an element's position or on the vector's length (tails use the same
 * arithmetic as full vectors), and reductions run in a fixed order, so within a level everything is
 * batch-invariant. Single-threaded, no allocation, pointers need no alignment; in-place (out == x) is
 * allowed unless said otherwise. */
#ifndef PENSTOCK_KERNELS_VECTOR_OPS_H
#define PENSTOCK_KERNELS_VECTOR_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu.h"

struct vector_ops {
    enum cpu_level level;
    /* out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]; weight NULL: 1. Mean over n. */
    void (*rms_norm)(float *out, const float *x, const float *weight, size_t n, float eps);
    /* out[i] = (x[i] - mean) / sqrt(variance + eps) * weight[i] + bias[i]; weight NULL: 1, bias NULL: 0. */
    void (*layer_norm)(float *out, const float *x, const float *weight, const float *bias, size_t n,
                       float eps);
    /* out[i] = silu(gate[i]) * up[i], silu(v) = v / (1 + exp(-v)). */
    void (*swiglu)(float *out, const float *gate, const float *up, size_t n);
    /* out[i] = min(silu(gate[i]), limit) * clamp(up[i], -limit, limit) (Step-3.5). */
    void (*swiglu_limit)(float *out, const float *gate, const float *up, float limit, size_t n);
    /* out[i] = silu(min(gate[i], limit)) * clamp(up[i], -limit, limit) (DeepSeek-V4). */
    void (*swiglu_clamp)(float *out, const float *gate, const float *up, float limit, size_t n);
    /* g = min(gate[i], limit), u = clamp(up[i], -limit, limit): out[i] = g / (1 + exp(-alpha * g)) * (u + 1) (gpt-oss). */
    void (*swiglu_oai)(float *out, const float *gate, const float *up, float alpha, float limit, size_t n);
    /* out[i] = gelu(gate[i]) * up[i], gelu(v) = v / (1 + exp(-2 * sqrt(2/pi) * (v + 0.044715 v^3))): by tanh, as trained. */
    void (*geglu)(float *out, const float *gate, const float *up, size_t n);
    void (*relu_squared)(float *out, const float *x, size_t n);        /* max(x[i], 0)^2 */
    void (*sigmoid)(float *out, const float *x, size_t n);             /* 1 / (1 + exp(-x[i])) */
    void (*silu)(float *out, const float *x, size_t n);                /* x[i] / (1 + exp(-x[i])) */
    void (*softplus)(float *out, const float *x, size_t n);            /* ln(1 + exp(x[i])) */
    void (*exp)(float *out, const float *x, size_t n);                 /* exp(x[i]) */
    void (*mul)(float *out, const float *a, const float *b, size_t n); /* a * b */
    /* out[i] = exp(x[i] - max) / sum. -INFINITY gives 0. */
    void (*softmax)(float *out, const float *x, size_t n);
    void (*add)(float *out, const float *a, const float *b, size_t n); /* a + b */
    void (*scale)(float *out, const float *x, float s, size_t n);      /* s * x */
    void (*axpy)(float *out, const float *x, float s, size_t n);       /* out += s * x, one rounding (fma) */
    void (*axpy_relu)(float *out, const float *x, float s, size_t n); /* out += s * max(x, 0), one rounding */
    float (*dot)(const float *a, const float *b, size_t n);
    /* Rotates pairs of one head: pair i < n_rot/2 by angle with cosine c[i], sine s[i].
     * neox: (x[i], x[i + n_rot/2]); else NORM: (x[2i], x[2i+1]). Values from n_rot on stay. */
    void (*rope)(float *x, const float *c, const float *s, size_t n_rot, bool neox);
    void (*f32_to_f16)(uint16_t *out, const float *x, size_t n); /* nearest even */
    void (*f16_to_f32)(float *out, const uint16_t *x, size_t n);
};

/* level must be available. */
const struct vector_ops *vector_ops_get(enum cpu_level level);

/* The n largest of scores[count], best first; equal scores: the lower index first; NaN counts as the lowest.
 * n <= count. Plain C at every level. */
void top_k(uint32_t *ids, uint32_t n, const float *scores, uint32_t count);

/* RoPE frequencies with YaRN (Peng et al. 2023, arXiv:2309.00071; formula as ggml's rope_yarn). */
struct rope_params {
    uint32_t n_rot;      /* rotated values per head, even */
    float freq_base;     /* theta: 10000 etc. */
    float freq_scale;    /* 1 / scaling factor (linear and YaRN); 1: none */
    float ext_factor;    /* YaRN interpolation mix: 1 with YaRN, 0 without */
    float attn_factor;   /* multiplies cos and sin, before YaRN's own magnitude 1 + 0.1 ln(1/freq_scale) */
    float beta_fast;     /* 32 */
    float beta_slow;     /* 1 */
    uint32_t n_ctx_orig; /* context length of training, for YaRN's corrections */
    const float *freq_factors; /* [n_rot/2] divisors (rope_freqs.weight), or NULL */
};
/* cos[n_rot/2], sin[n_rot/2] for one position. The angle base grows by repeated multiplication in F32, as ggml
 * does, so that logits agree to its noise floor. Plain C at every level. */
void rope_cos_sin(const struct rope_params *params, int32_t position, float *cos_out, float *sin_out);

#endif
