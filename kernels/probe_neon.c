/* Probes compiled for NEON. */
#define PROBE_NAME probe_neon
#include "kernels/probe_neon_level.inc"
