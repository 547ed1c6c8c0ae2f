/* What the files of matmul share: activation blocks, the arithmetic all levels follow, and the levels' tables.
 *
 * Quantized weights times quantized activations give the same bits at every level. Per (row, token) an F32
 * accumulator starts at 0 and takes the row in chunks of 256 values, in order. Integer sums are exact; a float
 * operation is one rounding.
 *
 * Formats with blocks of 32, activations ACT_Q8_0 ("block32"): for block i of the chunk
 *     f[i] = (float)(sum of w * x over the block)       s[i] = weight scale * activation scale
 *     pair[j] = fma(f[2j+1], s[2j+1], f[2j] * s[2j])
 *     acc += (pair[0] + pair[1]) + (pair[2] + pair[3])
 *   The blocks that a row's last chunk lacks count as f = s = 0.
 *   With a min m for each block (Q4_1, Q5_1: weights d * q + m), after that
 *     pair[j] = fma(m[2j+1], n[2j+1], fma(m[2j], n[2j], pair[j]))    n[i] = activation scale * (float)(sum of x)
 *   With a scale for each run of 16 (NVFP4), f and s are of runs, four to a pair, added in order
 *     pair[j] = fma(f[4j+3], s[4j+3], fma(f[4j+2], s[4j+2], fma(f[4j+1], s[4j+1], f[4j] * s[4j])))
 *
 * Superblock formats, activations ACT_Q8_K: a chunk is one superblock, weights d * scale * q - dmin * min, with
 * unsigned q and integer scales and mins for each 16 values
 *     acc = fma((float)(sum of scale * q * x), d * dx, acc)
 *     acc = fma((float)(sum of min * x), -(dmin * dx), acc)
 *   Where the offset is in units of d (Q6_K: min = 32 * scale) or q is signed (IQ4_XS), it is taken off the first sum and the second step
 *   is left out.
 *
 * With F32 activations each level has its own order of lanes. */
#ifndef PENSTOCK_KERNELS_MATMUL_INTERNAL_H
#define PENSTOCK_KERNELS_MATMUL_INTERNAL_H

#include <stdbool.h>

#include "kernels/matmul.h"

enum {
    CHUNK = 256,               /* values */
    CHUNK_BLOCKS = CHUNK / 32, /* blocks of 32 */
    CHUNK_SUBS = CHUNK / 16,   /* runs of 16 with a scale of their own */
};

struct act_q8_0 { /* 32 values d * q */
    float d;      /* holds an F16 value */
    int32_t sum;  /* of q */
    int8_t q[32]; /* -127..127 */
};

struct act_q8_k { /* 256 values d * q */
    float d;
    int8_t q[256];    /* -127..127 */
    int16_t sums[16]; /* of 16 q each */
};

/* How each level rounds a block of each type; NULL for ACT_F32, which is copied. A block with a NaN or an infinity among
 * its values gets scale NaN and all q = 0: its products are NaN. */
extern act_block_fn *const act_blocks_scalar[ACT_N_TYPES];
extern act_block_fn *const act_blocks_avx2[ACT_N_TYPES];
extern act_block_fn *const act_blocks_neon[ACT_N_TYPES];

typedef void matmul_fn(const struct weight *w, uint64_t row_begin, uint64_t row_end, enum act_type act,
                       const void *acts, size_t act_stride, uint32_t n_tokens, float *out, size_t out_stride);

matmul_fn matmul_scalar, matmul_avx2, matmul_avxvnni, matmul_avx512, matmul_avx512vnni;
matmul_fn matmul_neon, matmul_neondot, matmul_neoni8mm;

/* All that this CPU can run, more than one of a level, for tests; NULL past the last. */
const struct matmul_kernels *matmul_variant_at(unsigned index);

static inline const uint8_t *weight_row(const struct weight *w, uint64_t row)
{
    return (const uint8_t *)w->data + row * w->row_bytes;
}

#endif
