/* What the machine gives at most, for comparison with kernels: reading memory, and the multiplications that a level's
 * products are made of. Single-threaded; callers run them on every thread and take the time. */
#ifndef PENSTOCK_KERNELS_PROBE_H
#define PENSTOCK_KERNELS_PROBE_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu.h"

struct probe_kernels {
    /* Loads every byte of data; bytes is a multiple of 512. The result depends on all of them. */
    uint64_t (*read)(const void *data, size_t bytes);
    /* Rounds of independent multiply-adds out of registers; returns how many operations (a multiplication and an
     * addition are two) they are. int8: the product of unsigned and signed bytes, summed in int32. */
    uint64_t (*multiply_int8)(uint64_t rounds);
    uint64_t (*multiply_f32)(uint64_t rounds);
};

/* Made of the same instructions as matmul_kernels_get(level); level must be available. */
const struct probe_kernels *probe_kernels_get(enum cpu_level level);

#endif
