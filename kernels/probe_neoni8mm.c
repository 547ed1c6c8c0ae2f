/* Probes compiled for NEON, DotProd and I8MM. */
#define PROBE_NAME probe_neoni8mm
#define MATMUL_DOTPROD
#define MATMUL_I8MM
#include "kernels/probe_neon_level.inc"
