/* Recurrence compiled for AVX-512. */
#include "kernels/recurrence_simd.inc"

const struct recurrence_kernels recurrence_avx512 = {
    .level = CPU_AVX512, .advance = advance, .convolve = convolve};
