/* Instruction-set levels. A level is a complete set of kernels; results may differ between levels, but within one
 * level they are the same to the bit for any thread count, batch and chunk. */
#ifndef PENSTOCK_KERNELS_CPU_H
#define PENSTOCK_KERNELS_CPU_H

#include <stdbool.h>

enum cpu_level {
    CPU_SCALAR, /* plain C, every machine; the reference that a person can check by eye */
    CPU_AVX2,   /* AVX2, FMA, F16C */
    CPU_AVX512, /* AVX-512 F, BW, DQ, VL; VNNI where present (integer sums, so the same bits) */
    CPU_NEON,   /* every aarch64; DotProd and I8MM where present (likewise) */
    CPU_N_LEVELS,
};

bool cpu_level_available(enum cpu_level level);
enum cpu_level cpu_level_best(void);
const char *cpu_level_name(enum cpu_level level);              /* "scalar", "avx2", "avx512", "neon" */
bool cpu_level_parse(const char *name, enum cpu_level *level); /* false when unknown */

#endif
