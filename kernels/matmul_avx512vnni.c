/* matmul compiled for AVX-512 and VNNI. */
#define MATMUL_NAME matmul_avx512vnni
#define MATMUL_BITS 512
#define MATMUL_VNNI
#include "kernels/matmul_level.inc"
