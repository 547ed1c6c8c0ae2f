/* matmul compiled for AVX2 and AVX-VNNI. */
#define MATMUL_NAME matmul_avxvnni
#define MATMUL_BITS 256
#define MATMUL_VNNI
#include "kernels/matmul_level.inc"
