/* The formats of about 1 to 3 bits: superblocks of 256 small integers, from grids (IQ) or of three values (TQ). Their
 * bytes, and what they stand for. Every struct is made of bytes, as in block_layout.h. Layouts and formulas: ggml's
 * ggml-common.h and ggml-quants.c (facts only). */
#ifndef PENSTOCK_KERNELS_BLOCK_GRID_H
#define PENSTOCK_KERNELS_BLOCK_GRID_H

#include <stddef.h>
#include <stdint.h>

/* Signs are a bit for each value, set where it is negative. Where 7 bits stand for 8 signs, the last sign makes the
 * number of negative values even. Scales are 2 s + 1 in the units named. */

struct block_iq2_xxs { /* d / 8 */
    uint8_t d[2];      /* F16 */
    uint8_t q[64];     /* per 32 values 8 bytes: 4 indices; then bits 0-27 4 times 7 signs, bits 28-31 s */
};

struct block_iq2_xs { /* d / 8 */
    uint8_t d[2];
    uint8_t q[64];     /* u16 for each 8 values: bits 0-8 index, 9-15 signs */
    uint8_t scales[8]; /* s of 16 values each, low nibble first */
};

struct block_iq2_s { /* d / 8 */
    uint8_t d[2];
    uint8_t low[32]; /* index bits 0-7, of 8 values each */
    uint8_t signs[32];
    uint8_t high[8]; /* index bits 8, 9: 2 bits each */
    uint8_t scales[8];
};

struct block_iq3_xxs { /* d / 4 */
    uint8_t d[2];
    uint8_t low[64];   /* indices, of 4 values each */
    uint8_t signs[32]; /* u32 for each 32 values: bits 0-27 4 times 7 signs, bits 28-31 s */
};

struct block_iq3_s { /* d */
    uint8_t d[2];
    uint8_t low[64]; /* index bits 0-7, of 4 values each */
    uint8_t high[8]; /* index bit 8 */
    uint8_t signs[32];
    uint8_t scales[4]; /* s of 32 values each, low nibble first */
};

struct block_iq1_s { /* d / 8: values 8 * grid + 1 or - 1 */
    uint8_t d[2];
    uint8_t low[32];  /* index bits 0-7, of 8 values each */
    uint8_t high[16]; /* u16 for each 32 values: 4 times index bits 8-10; bits 12-14 s; bit 15 set: - 1 */
};

struct block_iq1_m { /* as IQ1_S */
    uint8_t low[32];
    uint8_t high[16]; /* 4 bits for each 8 values: index bits 8-10; bit 3 set: - 1 */
    uint8_t
        scales[8]; /* 4 u16: 4 times s of 16 values (3 bits); bits 12-15 are a nibble of d, low one first */
};

struct block_tq1_0 { /* d * (trit - 1); byte b holds trits floor(3 ((b * 3^n) mod 256) / 256) */
    uint8_t q[48];   /* trit n of bytes 0-31 is a run of 32 values, n = 0..4; then 16 of bytes 32-47 */
    uint8_t q4[4];   /* n = 0..3: runs of 4 */
    uint8_t d[2];
};

struct block_tq2_0 { /* d * (q - 1) */
    uint8_t q[64];   /* per half of 128 values: bits 2i, 2i + 1 of byte j are value 32i + j */
    uint8_t d[2];
};

/* 256 values d * scale[j / 16] * q[j]. */
struct grid_block {
    float d;
    int16_t scale[16];
    int8_t q[256];
};

typedef void grid_unpack_fn(const uint8_t *block, struct grid_block *out);

/* Of enum block_type; NULL for the other formats. */
grid_unpack_fn *grid_unpack_find(uint32_t type);

/* For the table in block_format.c. */
typedef void grid_dequantize_fn(const void *blocks, float *out, size_t n);
grid_dequantize_fn dequantize_iq2_xxs, dequantize_iq2_xs, dequantize_iq2_s, dequantize_iq3_xxs,
    dequantize_iq3_s, dequantize_iq1_s, dequantize_iq1_m, dequantize_tq1_0, dequantize_tq2_0;

/* F16 bits of d. */
static inline uint16_t iq1_m_d(const uint8_t scales[8])
{
    return (uint16_t)(scales[1] >> 4 | (scales[3] & 0xf0) | (scales[5] & 0xf0) << 4 |
                      (scales[7] & 0xf0) << 8);
}

#endif
