/* Probes compiled for AVX2. */
#define PROBE_NAME  probe_avx2
#define MATMUL_BITS 256
#include "kernels/probe_level.inc"
