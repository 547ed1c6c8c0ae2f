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

struct block_q4_1 { /* 32 values d * q + m; nibbles as in Q4_0 */
    uint8_t d[2];   /* F16 */
    uint8_t m[2];   /* F16 */
    uint8_t q[16];
};

struct block_q5_0 {  /* 32 values d * (q - 16) */
    uint8_t d[2];    /* F16 */
    uint8_t high[4]; /* bit j: bit 4 of value j */
    uint8_t q[16];   /* low bits, as in Q4_0 */
};

struct block_q5_1 { /* 32 values d * q + m; q as in Q5_0 */
    uint8_t d[2];   /* F16 */
    uint8_t m[2];   /* F16 */
    uint8_t high[4];
    uint8_t q[16];
};

struct block_q1_0 { /* 128 values d * (2q - 1); bit j % 8 of byte j / 8 */
    uint8_t d[2];   /* F16 */
    uint8_t q[16];
};

struct block_q2_0 { /* 64 values d * (q - 1); bits 2(j % 4) and above of byte j / 4 */
    uint8_t d[2];   /* F16 */
    uint8_t q[16];
};

struct block_iq4_nl { /* 32 values d * IQ4_VALUES[q]; nibbles as in Q4_0 */
    uint8_t d[2];     /* F16 */
    uint8_t q[16];
};

struct block_mxfp4 { /* 32 values 2^(e-128) * MXFP4_VALUES[q]; nibbles as in Q4_0 */
    uint8_t e;
    uint8_t q[16];
};

struct block_nvfp4 { /* 4 sub-blocks of 16 values ue4m3_half(d) * MXFP4_VALUES[q] */
    uint8_t d[4];    /* UE4M3 */
    uint8_t q[4][8]; /* low nibbles are values 0..7 of the sub-block, high nibbles 8..15 */
};

struct block_q2_k {     /* 16 sub-blocks of 16 values d * scale * q - dmin * min */
    uint8_t scales[16]; /* scale in the low nibble, min in the high one */
    uint8_t q[64];      /* per half of 128 values: 32 bytes; bits 2i, 2i + 1 of byte j are value 32i + j */
    uint8_t d[2];       /* F16 */
    uint8_t dmin[2];    /* F16 */
};

struct block_q3_k {     /* 16 sub-blocks of 16 values d * scale * (q - 4) */
    uint8_t high[32];   /* bit s of byte j: bit 2 of value 32s + j */
    uint8_t q[64];      /* low bits, as in Q2_K */
    uint8_t scales[12]; /* 6 bits each: q3_k_scales_unpack */
    uint8_t d[2];       /* F16 */
};

struct block_iq4_xs {       /* 8 sub-blocks of 32 values d * (scale - 32) * IQ4_VALUES[q] */
    uint8_t d[2];           /* F16 */
    uint8_t scales_high[2]; /* bits 2s, 2s + 1: bits 4, 5 of scale s */
    uint8_t scales_low[4];  /* nibbles; the low one first */
    uint8_t q[128];         /* 16 bytes for each sub-block, nibbles as in Q4_0 */
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

/* The 16 values of IQ4_NL and IQ4_XS (ggml's kvalues_iq4nl). */
static const int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};

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

/* Half of the UE4M3 scale, because MXFP4_VALUES are doubled: 4 bits of exponent (bias 7), 3 of mantissa, as in F16 with
 * another bias. The top bit is not used. ggml takes 0x7f, which stands for NaN, as 0. */
static inline float ue4m3_half(uint8_t e)
{
    return e == 0x7f ? 0.0f : f16_to_f32_one((uint16_t)((e & 0x7f) << 7)) * 0x1p7f;
}

/* The 16 scales of Q3_K, 0..63, 32 for zero: low nibbles in 8 bytes, then two high bits in 4 bytes. Four at a time. */
static inline void q3_k_scales_unpack(const uint8_t packed[12], uint8_t out[16])
{
    uint32_t a = load_u32(packed);
    uint32_t b = load_u32(packed + 4);
    uint32_t c = load_u32(packed + 8);
    uint32_t words[4] = {
        (a & 0x0f0f0f0fu) | (c << 4 & 0x30303030u),
        (b & 0x0f0f0f0fu) | (c << 2 & 0x30303030u),
        (a >> 4 & 0x0f0f0f0fu) | (c & 0x30303030u),
        (b >> 4 & 0x0f0f0f0fu) | (c >> 2 & 0x30303030u),
    };
    memcpy(out, words, sizeof(words));
}

/* The 8 scales of IQ4_XS, 0..63, 32 for zero. */
static inline uint8_t iq4_xs_scale(const struct block_iq4_xs *b, unsigned sub)
{
    int low = (b->scales_low[sub / 2] >> (4 * (sub % 2))) & 15;
    int high = (load_u16(b->scales_high) >> (2 * sub)) & 3;
    return (uint8_t)(low | high << 4);
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
