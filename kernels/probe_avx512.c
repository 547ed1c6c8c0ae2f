/* Probes compiled for AVX-512. */
#define PROBE_NAME  probe_avx512
#define MATMUL_BITS 512
#include "kernels/probe_level.inc"
