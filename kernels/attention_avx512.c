/* Attention compiled for AVX-512. */
#include "kernels/attention_simd.inc"

const struct attention_kernels attention_avx512 = {
    .level = CPU_AVX512, .item = attention_item, .combine = attention_combine};
