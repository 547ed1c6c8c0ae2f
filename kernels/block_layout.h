/* The bytes of the quantized blocks, and the few decodings that every instruction set needs.
 *
 * Every struct is made of bytes, so it has no padding and may stand at any address. Little-endian, as GGUF is.
 * Layouts: ggml's ggml-common.h (facts only). */
#ifndef PENSTOCK_KERNELS_BLOCK_LAYOUT_H
#define PENSTOCK_KERNELS_BLOCK_LAYOUT_H

#include <stdint.h>
#include <string.h>

#include "kernels/vector_ops_f16.h"

struct block_q8_0 { /* 32 values d * q */
    uint8_t d[2];   /* F16 */
    int8_t q[32];
};

struct block_q4_0 { /* 32 values d * (q - 8); low nibbles are values 0..15, high nibbles 16..31 */
    uint8_t d[2];   /* F16 */
    uint8_t q[16];
};

struct block_mxfp4 { /* 32 values 2^(e-128) * MXFP4_VALUES[q]; nibbles as in Q4_0 */
    uint8_t e;
    uint8_t q[16];
};

struct block_q4_k {     /* 8 sub-blocks of 32 values d * scale * q - dmin * min */
    uint8_t d[2];       /* F16 */
    uint8_t dmin[2];    /* F16 */
    uint8_t scales[12]; /* 8 scales and 8 mins of 6 bits: k_scales_unpack */
    uint8_t q[128];     /* 32 bytes hold sub-block 2i in the low nibbles, 2i + 1 in the high ones */
};

struct block_q5_k { /* Q4_K with a fifth bit */
    uint8_t d[2];
    uint8_t dmin[2];
    uint8_t scales[12];
    uint8_t high[32]; /* bit s of byte j: bit 4 of value j of sub-block s */
    uint8_t q[128];
};

struct block_q6_k { /* 16 sub-blocks of 16 values d * scale * (q - 32) */
    uint8_t
        low[128]; /* per half of 128 values: 64 bytes; low nibbles are values 0..63, high nibbles 64..127 */
    uint8_t high[64]; /* per half: 32 bytes; bits 2i, 2i + 1 of byte j are bits 4, 5 of value 32i + j */
    int8_t scales[16];
    uint8_t d[2]; /* F16 */
};

/* Doubled E2M1 values (OCP Microscaling formats, v1.0, 5.3.3), so that they are integers. */
static const int8_t MXFP4_VALUES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

enum { MXFP4_OFFSET = 12 }; /* makes them unsigned */

static inline uint16_t load_u16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint32_t load_u32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline float f32_from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

static inline float load_f16(const uint8_t *p)
{
    return f16_to_f32_one(load_u16(p));
}

/* Half of the E8M0 scale 2^(e-127), because MXFP4_VALUES are doubled. The two smallest are subnormal. */
static inline float e8m0_half(uint8_t e)
{
    return f32_from_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

/* The 6-bit scales[8] and mins[8] of Q4_K and Q5_K: the first four of each stand in 6 low bits, the last four are
 * split between a nibble and two high bits. Four at a time. */
static inline void k_scales_unpack(const uint8_t packed[12], uint8_t out[16])
{
    uint32_t a = load_u32(packed);
    uint32_t b = load_u32(packed + 4);
    uint32_t c = load_u32(packed + 8);
    uint32_t words[4] = {
        a & 0x3f3f3f3fu,
        (c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u),
        b & 0x3f3f3f3fu,
        (c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u),
    };
    memcpy(out, words, sizeof(words));
}

#endif
