/* Probes compiled for NEON and DotProd. */
#define PROBE_NAME probe_neondot
#define MATMUL_DOTPROD
#include "kernels/probe_neon_level.inc"
