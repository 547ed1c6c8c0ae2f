/* Recurrence compiled for NEON. */
#include "kernels/recurrence_simd.inc"

const struct recurrence_kernels recurrence_neon = {
    .level = CPU_NEON, .advance = advance, .convolve = convolve};
