/* matmul compiled for AVX2. */
#define MATMUL_NAME matmul_avx2
#define MATMUL_BITS 256
#include "kernels/matmul_level.inc"
