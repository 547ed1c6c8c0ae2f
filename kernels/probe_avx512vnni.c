/* Probes compiled for AVX-512 and VNNI. */
#define PROBE_NAME  probe_avx512vnni
#define MATMUL_BITS 512
#define MATMUL_VNNI
#include "kernels/probe_level.inc"
