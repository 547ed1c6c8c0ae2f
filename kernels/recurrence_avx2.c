/* Recurrence compiled for AVX2. */
#include "kernels/recurrence_simd.inc"

const struct recurrence_kernels recurrence_avx2 = {
    .level = CPU_AVX2, .advance = advance, .convolve = convolve};
