/* The levels of recurrence_kernels, one file each; recurrence_kernels_get picks among them. */
#ifndef PENSTOCK_KERNELS_RECURRENCE_LEVELS_H
#define PENSTOCK_KERNELS_RECURRENCE_LEVELS_H

#include "kernels/recurrence.h"

extern const struct recurrence_kernels recurrence_avx2;
extern const struct recurrence_kernels recurrence_avx512;
extern const struct recurrence_kernels recurrence_neon;

#endif
