/* Attention compiled for AVX2. */
#include "kernels/attention_simd.inc"

const struct attention_kernels attention_avx2 = {
    .level = CPU_AVX2, .item = attention_item, .combine = attention_combine};
