/* Block formats in plain C: the table, and what a block stands for. The reference for every other kernel. */
#include "kernels/block_format.h"

#include <string.h>

#include "kernels/block_grid.h"
#include "kernels/block_layout.h"
#include "kernels/vector_ops_f16.h"

static void dequantize_f32(const void *blocks, float *out, size_t n)
{
    memcpy(out, blocks, n * sizeof(float));
}

static void dequantize_f16(const void *blocks, float *out, size_t n)
{
    const uint8_t *p = blocks;
    for (size_t i = 0; i < n; i++) {
        out[i] = f16_to_f32_one(load_u16(p + 2 * i));
    }
}

static void dequantize_bf16(const void *blocks, float *out, size_t n)
{
    const uint8_t *p = blocks;
    for (size_t i = 0; i < n; i++) {
        out[i] = f32_from_bits((uint32_t)load_u16(p + 2 * i) << 16);
    }
}

static void dequantize_q8_0(const void *blocks, float *out, size_t n)
{
    const struct block_q8_0 *b = blocks;
    for (size_t i = 0; i < n / 32; i++) {
        float d = load_f16(b[i].d);
        for (unsigned j = 0; j < 32; j++) {
            out[32 * i + j] = (float)b[i].q[j] * d;
        }
    }
}

static void dequantize_q4_0(const void *blocks, float *out, size_t n)
{
    const struct block_q4_0 *b = blocks;
    for (size_t i = 0; i < n / 32; i++) {
        float d = load_f16(b[i].d);
        for (unsigned j = 0; j < 16; j++) {
            out[32 * i + j] = (float)((b[i].q[j] & 15) - 8) * d;
            out[32 * i + 16 + j] = (float)((b[i].q[j] >> 4) - 8) * d;
        }
    }
}

static void dequantize_q4_1(const void *blocks, float *out, size_t n)
{
    const struct block_q4_1 *b = blocks;
    for (size_t i = 0; i < n / 32; i++) {
        float d = load_f16(b[i].d);
        float m = load_f16(b[i].m);
        for (unsigned j = 0; j < 16; j++) {
            out[32 * i + j] = (float)(b[i].q[j] & 15) * d + m;
            out[32 * i + 16 + j] = (float)(b[i].q[j] >> 4) * d + m;
        }
    }
}

static void dequantize_q5_0(const void *blocks, float *out, size_t n)
{
    const struct block_q5_0 *b = blocks;
    for (size_t i = 0; i < n; i++) {
        const struct block_q5_0 *block = &b[i / 32];
        unsigned j = i % 32;
        int low = (block->q[j % 16] >> (4 * (j / 16))) & 15;
        int high = (int)(load_u32(block->high) >> j) & 1;
        out[i] = (float)(low + 16 * high - 16) * load_f16(block->d);
    }
}

static void dequantize_q5_1(const void *blocks, float *out, size_t n)
{
    const struct block_q5_1 *b = blocks;
    for (size_t i = 0; i < n; i++) {
        const struct block_q5_1 *block = &b[i / 32];
        unsigned j = i % 32;
        int low = (block->q[j % 16] >> (4 * (j / 16))) & 15;
        int high = (int)(load_u32(block->high) >> j) & 1;
        out[i] = (float)(low + 16 * high) * load_f16(block->d) + load_f16(block->m);
    }
}

static void dequantize_q1_0(const void *blocks, float *out, size_t n)
{
    const struct block_q1_0 *b = blocks;
    for (size_t i = 0; i < n; i++) {
        const struct block_q1_0 *block = &b[i / 128];
        unsigned j = i % 128;
        int q = (block->q[j / 8] >> (j % 8)) & 1;
        out[i] = (float)(2 * q - 1) * load_f16(block->d);
    }
}

static void dequantize_q2_0(const void *blocks, float *out, size_t n)
{
    const struct block_q2_0 *b = blocks;
    for (size_t i = 0; i < n; i++) {
        const struct block_q2_0 *block = &b[i / 64];
        unsigned j = i % 64;
        int q = (block->q[j / 4] >> (2 * (j % 4))) & 3;
        out[i] = (float)(q - 1) * load_f16(block->d);
    }
}

static void dequantize_iq4_nl(const void *blocks, float *out, size_t n)
{
    const struct block_iq4_nl *b = blocks;
    for (size_t i = 0; i < n / 32; i++) {
        float d = load_f16(b[i].d);
        for (unsigned j = 0; j < 16; j++) {
            out[32 * i + j] = (float)IQ4_VALUES[b[i].q[j] & 15] * d;
            out[32 * i + 16 + j] = (float)IQ4_VALUES[b[i].q[j] >> 4] * d;
        }
    }
}

static void dequantize_mxfp4(const void *blocks, float *out, size_t n)
{
    const struct block_mxfp4 *b = blocks;
    for (size_t i = 0; i < n / 32; i++) {
        float d = e8m0_half(b[i].e);
        for (unsigned j = 0; j < 16; j++) {
            out[32 * i + j] = (float)MXFP4_VALUES[b[i].q[j] & 15] * d;
            out[32 * i + 16 + j] = (float)MXFP4_VALUES[b[i].q[j] >> 4] * d;
        }
    }
}

static void dequantize_nvfp4(const void *blocks, float *out, size_t n)
{
    const struct block_nvfp4 *b = blocks;
    for (size_t i = 0; i < n; i++) {
        const struct block_nvfp4 *block = &b[i / 64];
        unsigned sub = i % 64 / 16;
        int q = (block->q[sub][i % 8] >> (4 * (i % 16 / 8))) & 15;
        out[i] = (float)MXFP4_VALUES[q] * ue4m3_half(block->d[sub]);
    }
}

static void dequantize_q2_k(const void *blocks, float *out, size_t n)
{
    const struct block_q2_k *b = blocks;
    for (size_t i = 0; i < n / 256; i++) {
        float d = load_f16(b[i].d);
        float dmin = load_f16(b[i].dmin);
        for (unsigned j = 0; j < 256; j++) {
            uint8_t scale = b[i].scales[j / 16];
            int q = (b[i].q[32 * (j / 128) + j % 32] >> (2 * (j % 128 / 32))) & 3;
            out[256 * i + j] = d * (float)(scale & 15) * (float)q - dmin * (float)(scale >> 4);
        }
    }
}

static void dequantize_q3_k(const void *blocks, float *out, size_t n)
{
    const struct block_q3_k *b = blocks;
    for (size_t i = 0; i < n / 256; i++) {
        float d = load_f16(b[i].d);
        uint8_t scales[16];
        q3_k_scales_unpack(b[i].scales, scales);
        for (unsigned j = 0; j < 256; j++) {
            int low = (b[i].q[32 * (j / 128) + j % 32] >> (2 * (j % 128 / 32))) & 3;
            int high = (b[i].high[j % 32] >> (j / 32)) & 1;
            out[256 * i + j] = d * (float)(scales[j / 16] - 32) * (float)(low + 4 * high - 4);
        }
    }
}

static void dequantize_iq4_xs(const void *blocks, float *out, size_t n)
{
    const struct block_iq4_xs *b = blocks;
    for (size_t i = 0; i < n; i++) {
        const struct block_iq4_xs *block = &b[i / 256];
        unsigned sub = i % 256 / 32;
        int q = (block->q[16 * sub + i % 16] >> (4 * (i % 32 / 16))) & 15;
        float d = load_f16(block->d) * (float)(iq4_xs_scale(block, sub) - 32);
        out[i] = d * (float)IQ4_VALUES[q];
    }
}

static void dequantize_q4_k(const void *blocks, float *out, size_t n)
{
    const struct block_q4_k *b = blocks;
    for (size_t i = 0; i < n / 256; i++) {
        float d = load_f16(b[i].d);
        float dmin = load_f16(b[i].dmin);
        uint8_t scales[16];
        k_scales_unpack(b[i].scales, scales);
        for (unsigned j = 0; j < 256; j++) {
            unsigned sub = j / 32;
            int q = (b[i].q[32 * (j / 64) + j % 32] >> (4 * (sub % 2))) & 15;
            out[256 * i + j] = d * (float)scales[sub] * (float)q - dmin * (float)scales[8 + sub];
        }
    }
}

static void dequantize_q5_k(const void *blocks, float *out, size_t n)
{
    const struct block_q5_k *b = blocks;
    for (size_t i = 0; i < n / 256; i++) {
        float d = load_f16(b[i].d);
        float dmin = load_f16(b[i].dmin);
        uint8_t scales[16];
        k_scales_unpack(b[i].scales, scales);
        for (unsigned j = 0; j < 256; j++) {
            unsigned sub = j / 32;
            int low = (b[i].q[32 * (j / 64) + j % 32] >> (4 * (sub % 2))) & 15;
            int q = low + 16 * ((b[i].high[j % 32] >> sub) & 1);
            out[256 * i + j] = d * (float)scales[sub] * (float)q - dmin * (float)scales[8 + sub];
        }
    }
}

static void dequantize_q6_k(const void *blocks, float *out, size_t n)
{
    const struct block_q6_k *b = blocks;
    for (size_t i = 0; i < n / 256; i++) {
        float d = load_f16(b[i].d);
        for (unsigned j = 0; j < 256; j++) {
            unsigned half = j / 128;
            unsigned quarter = j % 128 / 32;
            int low = (b[i].low[64 * half + j % 64] >> (4 * (quarter / 2))) & 15;
            int high = (b[i].high[32 * half + j % 32] >> (2 * quarter)) & 3;
            out[256 * i + j] = d * (float)b[i].scales[j / 16] * (float)(low + 16 * high - 32);
        }
    }
}

static const struct block_format formats[] = {
    {BLOCK_F32, "F32", 1, 4, ACT_F32, dequantize_f32},
    {BLOCK_F16, "F16", 1, 2, ACT_F32, dequantize_f16},
    {BLOCK_BF16, "BF16", 1, 2, ACT_F32, dequantize_bf16},
    {BLOCK_Q8_0, "Q8_0", 32, sizeof(struct block_q8_0), ACT_Q8_0, dequantize_q8_0},
    {BLOCK_Q4_0, "Q4_0", 32, sizeof(struct block_q4_0), ACT_Q8_0, dequantize_q4_0},
    {BLOCK_Q4_1, "Q4_1", 32, sizeof(struct block_q4_1), ACT_Q8_0, dequantize_q4_1},
    {BLOCK_Q5_0, "Q5_0", 32, sizeof(struct block_q5_0), ACT_Q8_0, dequantize_q5_0},
    {BLOCK_Q5_1, "Q5_1", 32, sizeof(struct block_q5_1), ACT_Q8_0, dequantize_q5_1},
    {BLOCK_Q1_0, "Q1_0", 128, sizeof(struct block_q1_0), ACT_Q8_0, dequantize_q1_0},
    {BLOCK_Q2_0, "Q2_0", 64, sizeof(struct block_q2_0), ACT_Q8_0, dequantize_q2_0},
    {BLOCK_IQ4_NL, "IQ4_NL", 32, sizeof(struct block_iq4_nl), ACT_Q8_0, dequantize_iq4_nl},
    {BLOCK_NVFP4, "NVFP4", 64, sizeof(struct block_nvfp4), ACT_Q8_0, dequantize_nvfp4},
    {BLOCK_Q2_K, "Q2_K", 256, sizeof(struct block_q2_k), ACT_Q8_K, dequantize_q2_k},
    {BLOCK_Q3_K, "Q3_K", 256, sizeof(struct block_q3_k), ACT_Q8_K, dequantize_q3_k},
    {BLOCK_IQ4_XS, "IQ4_XS", 256, sizeof(struct block_iq4_xs), ACT_Q8_K, dequantize_iq4_xs},
    {BLOCK_MXFP4, "MXFP4", 32, sizeof(struct block_mxfp4), ACT_Q8_0, dequantize_mxfp4},
    {BLOCK_Q4_K, "Q4_K", 256, sizeof(struct block_q4_k), ACT_Q8_K, dequantize_q4_k},
    {BLOCK_Q5_K, "Q5_K", 256, sizeof(struct block_q5_k), ACT_Q8_K, dequantize_q5_k},
    {BLOCK_Q6_K, "Q6_K", 256, sizeof(struct block_q6_k), ACT_Q8_K, dequantize_q6_k},
    {BLOCK_IQ3_S, "IQ3_S", 256, sizeof(struct block_iq3_s), ACT_Q8_K, dequantize_iq3_s},
    {BLOCK_IQ3_XXS, "IQ3_XXS", 256, sizeof(struct block_iq3_xxs), ACT_Q8_K, dequantize_iq3_xxs},
    {BLOCK_IQ2_S, "IQ2_S", 256, sizeof(struct block_iq2_s), ACT_Q8_K, dequantize_iq2_s},
    {BLOCK_IQ2_XS, "IQ2_XS", 256, sizeof(struct block_iq2_xs), ACT_Q8_K, dequantize_iq2_xs},
    {BLOCK_IQ2_XXS, "IQ2_XXS", 256, sizeof(struct block_iq2_xxs), ACT_Q8_K, dequantize_iq2_xxs},
    {BLOCK_IQ1_M, "IQ1_M", 256, sizeof(struct block_iq1_m), ACT_Q8_K, dequantize_iq1_m},
    {BLOCK_IQ1_S, "IQ1_S", 256, sizeof(struct block_iq1_s), ACT_Q8_K, dequantize_iq1_s},
    {BLOCK_TQ2_0, "TQ2_0", 256, sizeof(struct block_tq2_0), ACT_Q8_K, dequantize_tq2_0},
    {BLOCK_TQ1_0, "TQ1_0", 256, sizeof(struct block_tq1_0), ACT_Q8_K, dequantize_tq1_0},
};

const struct block_format *block_format_at(uint32_t index)
{
    return index < sizeof(formats) / sizeof(formats[0]) ? &formats[index] : NULL;
}

const struct block_format *block_format_find(uint32_t type)
{
    for (uint32_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
        if (formats[i].type == type) {
            return &formats[i];
        }
    }
    return NULL;
}

size_t block_row_bytes(const struct block_format *format, uint64_t n)
{
    return (size_t)(n / format->values * format->bytes);
}
