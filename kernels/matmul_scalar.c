/* matmul in plain C: the definition of the products (matmul_internal.h), to be checked by eye. */
#include <math.h>

#include "kernels/block_grid.h"
#include "kernels/block_layout.h"
#include "kernels/matmul_internal.h"

/* A chunk of weights in the terms of matmul_internal.h. */
struct block32_chunk {
    float d[CHUNK_BLOCKS];
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
    void (*block32)(const uint8_t *blocks, unsigned n_blocks, struct block32_chunk *out);
    void (*superblock)(const uint8_t *block, struct superblock *out);
} unpacks[] = {
    {BLOCK_Q8_0, unpack_q8_0, NULL}, {BLOCK_Q4_0, unpack_q4_0, NULL}, {BLOCK_MXFP4, unpack_mxfp4, NULL},
    {BLOCK_Q4_K, NULL, unpack_q4_k}, {BLOCK_Q5_K, NULL, unpack_q5_k}, {BLOCK_Q6_K, NULL, unpack_q6_k},
};

static float dot_block32(const struct format_unpack *unpack, const uint8_t *row, const struct act_q8_0 *x,
                         uint64_t n_blocks, uint32_t block_bytes)
{
    float acc = 0;
    for (uint64_t begin = 0; begin < n_blocks; begin += CHUNK_BLOCKS) {
        unsigned n = n_blocks - begin < CHUNK_BLOCKS ? (unsigned)(n_blocks - begin) : CHUNK_BLOCKS;
        struct block32_chunk w;
        unpack->block32(row + begin * block_bytes, n, &w);
        float f[CHUNK_BLOCKS] = {0};
        float s[CHUNK_BLOCKS] = {0};
        for (unsigned i = 0; i < n; i++) {
            int sum = 0;
            for (unsigned j = 0; j < 32; j++) {
                sum += w.w[32 * i + j] * x[begin + i].q[j];
            }
            f[i] = (float)sum;
            s[i] = w.d[i] * x[begin + i].d;
        }
        float pair[CHUNK_BLOCKS / 2];
        for (unsigned j = 0; j < CHUNK_BLOCKS / 2; j++) {
            pair[j] = fmaf(f[2 * j + 1], s[2 * j + 1], f[2 * j] * s[2 * j]);
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

/* Sums of 256 values, added up in order: the error grows with the chunks, not with the values. */
static float dot_f32(const struct block_format *format, const uint8_t *row, const float *x, uint64_t n)
{
    float acc = 0;
    for (uint64_t begin = 0; begin < n; begin += CHUNK) {
        size_t count = n - begin < CHUNK ? (size_t)(n - begin) : CHUNK;
        float w[CHUNK];
        format->dequantize(row + block_row_bytes(format, begin), w, count);
        float sum = 0;
        for (size_t j = 0; j < count; j++) {
            sum += w[j] * x[begin + j];
        }
        acc += sum;
    }
    return acc;
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

static float dot(const struct weight *w, const uint8_t *row, enum act_type act, const void *x)
{
    const struct block_format *format = w->format;
    const struct format_unpack *unpack = find_unpack(format->type);
    grid_unpack_fn *grid = grid_unpack_find(format->type);
    switch (act) {
    case ACT_Q8_0:
        return dot_block32(unpack, row, x, w->n_cols / 32, format->bytes);
    case ACT_Q8_K:
        if (grid != NULL) {
            return dot_grid(grid, row, x, w->n_cols / 256, format->bytes);
        }
        return dot_superblock(unpack, row, x, w->n_cols / 256, format->bytes);
    default:
        return dot_f32(format, row, x, w->n_cols);
    }
}

void matmul_scalar(const struct weight *w, uint64_t row_begin, uint64_t row_end, enum act_type act,
                   const void *acts, size_t act_stride, uint32_t n_tokens, float *out, size_t out_stride)
{
    for (uint32_t t = 0; t < n_tokens; t++) {
        const uint8_t *x = (const uint8_t *)acts + t * act_stride;
        for (uint64_t r = row_begin; r < row_end; r++) {
            out[t * out_stride + (r - row_begin)] = dot(w, weight_row(w, r), act, x);
        }
    }
}
