/* matmul compiled for NEON. */
#define MATMUL_NAME matmul_neon
#include "kernels/matmul_neon_level.inc"
