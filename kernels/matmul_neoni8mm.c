/* matmul compiled for NEON, DotProd and I8MM. */
#define MATMUL_NAME matmul_neoni8mm
#define MATMUL_DOTPROD
#define MATMUL_I8MM
#include "kernels/matmul_neon_level.inc"
