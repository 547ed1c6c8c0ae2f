/* matmul compiled for AVX-512. */
#define MATMUL_NAME matmul_avx512
#define MATMUL_BITS 512
#include "kernels/matmul_level.inc"
