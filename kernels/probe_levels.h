/* The levels of probes, one file each; probe_kernels_get picks among them. */
#ifndef PENSTOCK_KERNELS_PROBE_LEVELS_H
#define PENSTOCK_KERNELS_PROBE_LEVELS_H

#include "kernels/probe.h"

extern const struct probe_kernels probe_avx2, probe_avxvnni, probe_avx512, probe_avx512vnni;
extern const struct probe_kernels probe_neon, probe_neondot, probe_neoni8mm;

#endif
