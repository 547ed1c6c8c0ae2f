/* vector_ops compiled for NEON. */
#include "kernels/vector_ops_levels.h"
#include "kernels/vector_ops_simd.inc"

const struct vector_ops vector_ops_neon = VECTOR_OPS_TABLE(CPU_NEON);
