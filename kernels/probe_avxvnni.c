/* Probes compiled for AVX2 and AVX-VNNI. */
#define PROBE_NAME  probe_avxvnni
#define MATMUL_BITS 256
#define MATMUL_VNNI
#include "kernels/probe_level.inc"
