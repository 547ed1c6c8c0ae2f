/* Attention compiled for NEON. */
#include "kernels/attention_simd.inc"

const struct attention_kernels attention_neon = {
    .level = CPU_NEON, .item = attention_item, .combine = attention_combine};
