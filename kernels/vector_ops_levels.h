/* The levels of vector_ops, one file each; vector_ops_get picks among them. */
#ifndef PENSTOCK_KERNELS_VECTOR_OPS_LEVELS_H
#define PENSTOCK_KERNELS_VECTOR_OPS_LEVELS_H

#include "kernels/vector_ops.h"

/* Of GELU by tanh (Hendrycks and Gimpel 2016, arXiv:1606.08415): 2 * sqrt(2 / pi), as tanh is written with one exp. */
static const float GELU_SCALE = 1.5957691216057308f;
static const float GELU_CUBIC = 0.044715f;

/* The table a level's file makes of its functions, which have the same names in each. */
#define VECTOR_OPS_TABLE(LEVEL)                                                                              \
    {                                                                                                        \
        .level = (LEVEL), .rms_norm = rms_norm, .layer_norm = layer_norm, .swiglu = swiglu,                  \
        .swiglu_limit = swiglu_limit, .swiglu_clamp = swiglu_clamp, .swiglu_oai = swiglu_oai,                \
        .geglu = geglu, .relu_squared = relu_squared, .sigmoid = sigmoid, .silu = silu,                      \
        .softplus = softplus, .exp = exponential, .mul = mul, .softmax = softmax, .add = add,                \
        .scale = scale, .axpy = axpy, .axpy_relu = axpy_relu, .dot = dot, .rope = rope,                      \
        .f32_to_f16 = f32_to_f16, .f16_to_f32 = f16_to_f32,                                                  \
    }

extern const struct vector_ops vector_ops_scalar;
extern const struct vector_ops vector_ops_avx2;
extern const struct vector_ops vector_ops_avx512;
extern const struct vector_ops vector_ops_neon;

#endif
