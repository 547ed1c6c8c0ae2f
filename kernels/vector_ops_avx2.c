/* vector_ops compiled for AVX2. */
#include "kernels/vector_ops_levels.h"
#include "kernels/vector_ops_simd.inc"

const struct vector_ops vector_ops_avx2 = VECTOR_OPS_TABLE(CPU_AVX2);
