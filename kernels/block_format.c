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
