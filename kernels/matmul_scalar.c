/* matmul in plain C: the definition of the products (matmul_internal.h), to be checked by eye. */
#include <math.h>

#include "kernels/block_grid.h"
#include "kernels/block_layout.h"
#include "kernels/matmul_internal.h"

/* A chunk of weights in the terms of matmul_internal.h. */
struct block32_chunk {
    unsigned run;        /* values that share a scale: 32, or 16 */
    float d[CHUNK_SUBS]; /* of runs */
    bool has_mins;       /* else m is not used */
    float m[CHUNK_BLOCKS];
    int w[CHUNK]; /* signed */
};

struct superblock {
    float d;
    float dmin;
    bool has_mins;         /* else dmin and min are not used */
    int q[CHUNK];          /* unsigned, less the offset in units of d */
    int scale[CHUNK_SUBS]; /* per 16 values */
    int min[CHUNK_SUBS];
};

static void unpack_q8_0(const uint8_t *blocks, unsigned n_blocks, struct block32_chunk *out)
{
    const struct block_q8_0 *b = (const void *)blocks;
    for (unsigned i = 0; i < n_blocks; i++) {
        out->d[i] = load_f16(b[i].d);
        for (unsigned j = 0; j < 32; j++) {
            out->w[32 * i + j] = b[i].q[j];
        }
    }
}

static void unpack_q4_0(const uint8_t *blocks, unsigned n_blocks, struct block32_chunk *out)
{
    const struct block_q4_0 *b = (const void *)blocks;
    for (unsigned i = 0; i < n_blocks; i++) {
        out->d[i] = load_f16(b[i].d);
        for (unsigned j = 0; j < 16; j++) {
            out->w[32 * i + j] = (b[i].q[j] & 15) - 8;
            out->w[32 * i + 16 + j] = (b[i].q[j] >> 4) - 8;
        }
    }
}

static void unpack_q4_1(const uint8_t *blocks, unsigned n_blocks, struct block32_chunk *out)
{
    const struct block_q4_1 *b = (const void *)blocks;
    out->has_mins = true;
    for (unsigned i = 0; i < n_blocks; i++) {
        out->d[i] = load_f16(b[i].d);
        out->m[i] = load_f16(b[i].m);
        for (unsigned j = 0; j < 16; j++) {
            out->w[32 * i + j] = b[i].q[j] & 15;
            out->w[32 * i + 16 + j] = b[i].q[j] >> 4;
        }
    }
}

/* The 32 values of Q5_0 and Q5_1, unsigned. */
static void unpack_5_bits(const uint8_t q[16], const uint8_t high[4], int *out)
{
    for (unsigned j = 0; j < 32; j++) {
        int low = (q[j % 16] >> (4 * (j / 16))) & 15;
        out[j] = low + 16 * ((high[j / 8] >> (j % 8)) & 1);
    }
}

static void unpack_q5_0(const uint8_t *blocks, unsigned n_blocks, struct block32_chunk *out)
{
    const struct block_q5_0 *b = (const void *)blocks;
    for (unsigned i = 0; i < n_blocks; i++) {
        out->d[i] = load_f16(b[i].d);
        unpack_5_bits(b[i].q, b[i].high, out->w + 32 * i);
        for (unsigned j = 0; j < 32; j++) {
            out->w[32 * i + j] -= 16;
        }
    }
}

static void unpack_q5_1(const uint8_t *blocks, unsigned n_blocks, struct block32_chunk *out)
{
    const struct block_q5_1 *b = (const void *)blocks;
    out->has_mins = true;
    for (unsigned i = 0; i < n_blocks; i++) {
        out->d[i] = load_f16(b[i].d);
        out->m[i] = load_f16(b[i].m);
        unpack_5_bits(b[i].q, b[i].high, out->w + 32 * i);
    }
}

static void unpack_q1_0(const uint8_t *blocks, unsigned n_blocks, struct block32_chunk *out)
{
    const struct block_q1_0 *b = (const void *)blocks;
    for (unsigned j = 0; j < 32 * n_blocks; j++) {
        out->d[j / 32] = load_f16(b[j / 128].d);
        out->w[j] = ((b[j / 128].q[j % 128 / 8] >> (j % 8)) & 1) != 0 ? 1 : -1;
    }
}

static void unpack_q2_0(const uint8_t *blocks, unsigned n_blocks, struct block32_chunk *out)
{
    const struct block_q2_0 *b = (const void *)blocks;
    for (unsigned j = 0; j < 32 * n_blocks; j++) {
        out->d[j / 32] = load_f16(b[j / 64].d);
        out->w[j] = ((b[j / 64].q[j % 64 / 4] >> (2 * (j % 4))) & 3) - 1;
    }
}

static void unpack_iq4_nl(const uint8_t *blocks, unsigned n_blocks, struct block32_chunk *out)
{
    const struct block_iq4_nl *b = (const void *)blocks;
    for (unsigned i = 0; i < n_blocks; i++) {
        out->d[i] = load_f16(b[i].d);
        for (unsigned j = 0; j < 16; j++) {
            out->w[32 * i + j] = IQ4_VALUES[b[i].q[j] & 15];
            out->w[32 * i + 16 + j] = IQ4_VALUES[b[i].q[j] >> 4];
        }
    }
}

static void unpack_nvfp4(const uint8_t *blocks, unsigned n_blocks, struct block32_chunk *out)
{
    const struct block_nvfp4 *b = (const void *)blocks;
    out->run = 16;
    for (unsigned i = 0; i < 2 * n_blocks; i++) {
        unsigned sub = i % 4;
        out->d[i] = ue4m3_half(b[i / 4].d[sub]);
        for (unsigned j = 0; j < 8; j++) {
            out->w[16 * i + j] = MXFP4_VALUES[b[i / 4].q[sub][j] & 15];
            out->w[16 * i + 8 + j] = MXFP4_VALUES[b[i / 4].q[sub][j] >> 4];
        }
    }
}

static void unpack_mxfp4(const uint8_t *blocks, unsigned n_blocks, struct block32_chunk *out)
{
    const struct block_mxfp4 *b = (const void *)blocks;
    for (unsigned i = 0; i < n_blocks; i++) {
        out->d[i] = e8m0_half(b[i].e);
        for (unsigned j = 0; j < 16; j++) {
            out->w[32 * i + j] = MXFP4_VALUES[b[i].q[j] & 15];
            out->w[32 * i + 16 + j] = MXFP4_VALUES[b[i].q[j] >> 4];
        }
    }
}

static void unpack_q2_k(const uint8_t *block, struct superblock *out)
{
    const struct block_q2_k *b = (const void *)block;
    out->d = load_f16(b->d);
    out->dmin = load_f16(b->dmin);
    out->has_mins = true;
    for (unsigned i = 0; i < CHUNK_SUBS; i++) {
        out->scale[i] = b->scales[i] & 15;
        out->min[i] = b->scales[i] >> 4;
    }
    for (unsigned j = 0; j < CHUNK; j++) {
        out->q[j] = (b->q[32 * (j / 128) + j % 32] >> (2 * (j % 128 / 32))) & 3;
    }
}

static void unpack_q3_k(const uint8_t *block, struct superblock *out)
{
    const struct block_q3_k *b = (const void *)block;
    out->d = load_f16(b->d);
    out->has_mins = false;
    uint8_t scales[16];
    q3_k_scales_unpack(b->scales, scales);
    for (unsigned i = 0; i < CHUNK_SUBS; i++) {
        out->scale[i] = scales[i] - 32;
    }
    for (unsigned j = 0; j < CHUNK; j++) {
        int low = (b->q[32 * (j / 128) + j % 32] >> (2 * (j % 128 / 32))) & 3;
        out->q[j] = low + 4 * ((b->high[j % 32] >> (j / 32)) & 1) - 4;
    }
}

static void unpack_iq4_xs(const uint8_t *block, struct superblock *out)
{
    const struct block_iq4_xs *b = (const void *)block;
    out->d = load_f16(b->d);
    out->has_mins = false;
    for (unsigned i = 0; i < CHUNK_SUBS; i++) {
        out->scale[i] = iq4_xs_scale(b, i / 2) - 32;
    }
    for (unsigned j = 0; j < CHUNK; j++) {
        out->q[j] = IQ4_VALUES[(b->q[16 * (j / 32) + j % 16] >> (4 * (j % 32 / 16))) & 15];
    }
}

/* Scales and mins of Q4_K and Q5_K; each of the 8 stands for two runs of 16 values. */
static void unpack_k_scales(const uint8_t packed[12], struct superblock *out)
{
    uint8_t scales[16];
    k_scales_unpack(packed, scales);
    for (unsigned i = 0; i < CHUNK_SUBS; i++) {
        out->scale[i] = scales[i / 2];
        out->min[i] = scales[8 + i / 2];
    }
}

static void unpack_q4_k(const uint8_t *block, struct superblock *out)
{
    const struct block_q4_k *b = (const void *)block;
    out->d = load_f16(b->d);
    out->dmin = load_f16(b->dmin);
    out->has_mins = true;
    unpack_k_scales(b->scales, out);
    for (unsigned j = 0; j < CHUNK; j++) {
        out->q[j] = (b->q[32 * (j / 64) + j % 32] >> (4 * (j / 32 % 2))) & 15;
    }
}

static void unpack_q5_k(const uint8_t *block, struct superblock *out)
{
    const struct block_q5_k *b = (const void *)block;
    out->d = load_f16(b->d);
    out->dmin = load_f16(b->dmin);
    out->has_mins = true;
    unpack_k_scales(b->scales, out);
    for (unsigned j = 0; j < CHUNK; j++) {
        int low = (b->q[32 * (j / 64) + j % 32] >> (4 * (j / 32 % 2))) & 15;
        out->q[j] = low + 16 * ((b->high[j % 32] >> (j / 32)) & 1);
    }
}

static void unpack_q6_k(const uint8_t *block, struct superblock *out)
{
    const struct block_q6_k *b = (const void *)block;
    out->d = load_f16(b->d);
    out->has_mins = false;
    for (unsigned i = 0; i < CHUNK_SUBS; i++) {
        out->scale[i] = b->scales[i];
    }
    for (unsigned j = 0; j < CHUNK; j++) {
        unsigned half = j / 128;
        unsigned quarter = j % 128 / 32;
        int low = (b->low[64 * half + j % 64] >> (4 * (quarter / 2))) & 15;
        int high = (b->high[32 * half + j % 32] >> (2 * quarter)) & 3;
        out->q[j] = low + 16 * high - 32;
    }
}

static const struct format_unpack {
    uint32_t type; /* enum block_type; one of the two functions */
    void (*block32)(const uint8_t *blocks, unsigned n_blocks, struct block32_chunk *out); /* n_blocks of 32 */
    void (*superblock)(const uint8_t *block, struct superblock *out);
} unpacks[] = {
    {BLOCK_Q8_0, unpack_q8_0, NULL},     {BLOCK_Q4_0, unpack_q4_0, NULL}, {BLOCK_MXFP4, unpack_mxfp4, NULL},
    {BLOCK_Q4_1, unpack_q4_1, NULL},     {BLOCK_Q5_0, unpack_q5_0, NULL}, {BLOCK_Q5_1, unpack_q5_1, NULL},
    {BLOCK_Q1_0, unpack_q1_0, NULL},     {BLOCK_Q2_0, unpack_q2_0, NULL}, {BLOCK_IQ4_NL, unpack_iq4_nl, NULL},
    {BLOCK_NVFP4, unpack_nvfp4, NULL},   {BLOCK_Q2_K, NULL, unpack_q2_k}, {BLOCK_Q3_K, NULL, unpack_q3_k},
    {BLOCK_Q4_K, NULL, unpack_q4_k},     {BLOCK_Q5_K, NULL, unpack_q5_k}, {BLOCK_Q6_K, NULL, unpack_q6_k},
    {BLOCK_IQ4_XS, NULL, unpack_iq4_xs},
};

/* What blocks 2j and 2j + 1 of a chunk add, of which n blocks are there. */
static float dot_block32_pair(const struct block32_chunk *w, const struct act_q8_0 *x, unsigned n, unsigned j)
{
    float pair = 0;
    for (unsigned begin = 64 * j; begin < 64 * (j + 1) && begin < 32 * n; begin += w->run) {
        int sum = 0;
        for (unsigned i = begin; i < begin + w->run; i++) {
            sum += w->w[i] * x[i / 32].q[i % 32];
        }
        pair = fmaf((float)sum, w->d[begin / w->run] * x[begin / 32].d, pair);
    }
    for (unsigned i = 2 * j; i < 2 * j + 2 && i < n && w->has_mins; i++) {
        pair = fmaf(w->m[i], x[i].d * (float)x[i].sum, pair);
    }
    return pair;
}

static float dot_block32(const struct format_unpack *unpack, const struct block_format *format,
                         const uint8_t *row, const struct act_q8_0 *x, uint64_t n_blocks)
{
    float acc = 0;
    for (uint64_t begin = 0; begin < n_blocks; begin += CHUNK_BLOCKS) {
        unsigned n = n_blocks - begin < CHUNK_BLOCKS ? (unsigned)(n_blocks - begin) : CHUNK_BLOCKS;
        struct block32_chunk w = {.run = 32, .has_mins = false};
        unpack->block32(row + block_row_bytes(format, 32 * begin), n, &w);
        float pair[CHUNK_BLOCKS / 2];
        for (unsigned j = 0; j < CHUNK_BLOCKS / 2; j++) {
            pair[j] = dot_block32_pair(&w, x + begin, n, j);
        }
        acc += (pair[0] + pair[1]) + (pair[2] + pair[3]);
    }
    return acc;
}

static float dot_superblock(const struct format_unpack *unpack, const uint8_t *row, const struct act_q8_k *x,
                            uint64_t n_blocks, uint32_t block_bytes)
{
    float acc = 0;
    for (uint64_t b = 0; b < n_blocks; b++) {
        struct superblock w;
        unpack->superblock(row + b * block_bytes, &w);
        int sum = 0;
        for (unsigned j = 0; j < CHUNK; j++) {
            sum += w.scale[j / 16] * w.q[j] * x[b].q[j];
        }
        acc = fmaf((float)sum, w.d * x[b].d, acc);
        if (w.has_mins) {
            int min_sum = 0;
            for (unsigned j = 0; j < CHUNK; j++) {
                min_sum += w.min[j / 16] * x[b].q[j];
            }
            acc = fmaf((float)min_sum, -(w.dmin * x[b].d), acc);
        }
    }
    return acc;
}

static float dot_grid(grid_unpack_fn *unpack, const uint8_t *row, const struct act_q8_k *x, uint64_t n_blocks,
                      uint32_t block_bytes)
{
    float acc = 0;
    for (uint64_t b = 0; b < n_blocks; b++) {
        struct grid_block w;
        unpack(row + b * block_bytes, &w);
        int sum = 0;
        for (unsigned j = 0; j < CHUNK; j++) {
            sum += w.scale[j / 16] * w.q[j] * x[b].q[j];
        }
        acc = fmaf((float)sum, w.d * x[b].d, acc);
    }
    return acc;
}

/* One row with all tokens, for which it is dequantized once. out: of the first token. Sums of 256 values, added up in order:
 * the error grows with the chunks, not with the values. */
static void row_f32(const struct weight *w, const uint8_t *row, const uint8_t *acts, size_t act_stride,
                    uint32_t n_tokens, float *out, size_t out_stride)
{
    for (uint64_t begin = 0; begin < w->n_cols; begin += CHUNK) {
        size_t count = w->n_cols - begin < CHUNK ? (size_t)(w->n_cols - begin) : CHUNK;
        float values[CHUNK];
        w->format->dequantize(row + block_row_bytes(w->format, begin), values, count);
        for (uint32_t t = 0; t < n_tokens; t++) {
            const float *x = (const float *)(const void *)(acts + t * act_stride) + begin;
            float sum = 0;
            for (size_t j = 0; j < count; j++) {
                sum += values[j] * x[j];
            }
            float *acc = out + t * out_stride;
            *acc = (begin == 0 ? 0.0f : *acc) + sum;
        }
    }
}

static const struct format_unpack *find_unpack(uint32_t type)
{
    for (size_t i = 0; i < sizeof(unpacks) / sizeof(unpacks[0]); i++) {
        if (unpacks[i].type == type) {
            return &unpacks[i];
        }
    }
    return NULL;
}

/* Quantized activations. */
static float dot(const struct weight *w, const uint8_t *row, const void *x)
{
    const struct block_format *format = w->format;
    const struct format_unpack *unpack = find_unpack(format->type);
    grid_unpack_fn *grid = grid_unpack_find(format->type);
    if (format->act == ACT_Q8_0) {
        return dot_block32(unpack, format, row, x, w->n_cols / 32);
    }
    return grid != NULL ? dot_grid(grid, row, x, w->n_cols / 256, format->bytes)
                        : dot_superblock(unpack, row, x, w->n_cols / 256, format->bytes);
}

void matmul_scalar(const struct weight *w, uint64_t row_begin, uint64_t row_end, enum act_type act,
                   const void *acts, size_t act_stride, uint32_t n_tokens, float *out, size_t out_stride)
{
    for (uint64_t r = row_begin; r < row_end; r++) {
        float *products = out + (r - row_begin);
        if (act == ACT_F32) {
            row_f32(w, weight_row(w, r), acts, act_stride, n_tokens, products, out_stride);
            continue;
        }
        for (uint32_t t = 0; t < n_tokens; t++) {
            products[t * out_stride] = dot(w, weight_row(w, r), (const uint8_t *)acts + t * act_stride);
        }
    }
}
