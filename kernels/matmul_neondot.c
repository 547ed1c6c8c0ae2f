/* matmul compiled for NEON and DotProd. */
#define MATMUL_NAME matmul_neondot
#define MATMUL_DOTPROD
#include "kernels/matmul_neon_level.inc"
