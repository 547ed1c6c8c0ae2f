/* vector_ops compiled for AVX-512. */
#include "kernels/vector_ops_levels.h"
#include "kernels/vector_ops_simd.inc"

const struct vector_ops vector_ops_avx512 = VECTOR_OPS_TABLE(CPU_AVX512);
