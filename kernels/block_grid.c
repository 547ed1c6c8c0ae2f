/* The formats of about 1 to 3 bits in plain C: what a block stands for, to be checked by eye. */
#include "kernels/block_grid.h"

#include "kernels/block_format.h"
#include "kernels/block_layout.h"
#include "kernels/grid_tables.h"

/* n values of a row of a grid, less the offset; negative where `signs` has a bit set. */
static void put_row(int8_t *q, unsigned n, uint64_t row, int offset, unsigned signs)
{
    for (unsigned j = 0; j < n; j++) {
        int magnitude = (int)(row >> (8 * j) & 255) - offset;
        q[j] = (int8_t)(signs >> j & 1 ? -magnitude : magnitude);
    }
}

/* The eighth sign makes the number of negative values even. */
static unsigned signs_of_7(unsigned bits)
{
    bits &= 127;
    return bits | (unsigned)__builtin_parity(bits) << 7;
}

static int nibble(const uint8_t *p, unsigned i)
{
    return p[i / 2] >> (4 * (i % 2)) & 15;
}

static void unpack_iq2_xxs(const uint8_t *block, struct grid_block *out)
{
    const struct block_iq2_xxs *b = (const void *)block;
    out->d = load_f16(b->d) * 0.125f;
    for (unsigned i = 0; i < 32; i++) {
        const uint8_t *q = b->q + 8 * (i / 4);
        uint32_t bits = load_u32(q + 4);
        out->scale[i / 2] = (int16_t)(2 * (bits >> 28) + 1);
        put_row(out->q + 8 * i, 8, GRID_IQ2_XXS[q[i % 4]], IQ2_OFFSET, signs_of_7(bits >> (7 * (i % 4))));
    }
}

static void unpack_iq2_xs(const uint8_t *block, struct grid_block *out)
{
    const struct block_iq2_xs *b = (const void *)block;
    out->d = load_f16(b->d) * 0.125f;
    for (unsigned i = 0; i < 32; i++) {
        unsigned q = load_u16(b->q + 2 * i);
        out->scale[i / 2] = (int16_t)(2 * nibble(b->scales, i / 2) + 1);
        put_row(out->q + 8 * i, 8, GRID_IQ2_XS[q & 511], IQ2_OFFSET, signs_of_7(q >> 9));
    }
}

static void unpack_iq2_s(const uint8_t *block, struct grid_block *out)
{
    const struct block_iq2_s *b = (const void *)block;
    out->d = load_f16(b->d) * 0.125f;
    for (unsigned i = 0; i < 32; i++) {
        unsigned index = b->low[i] | (b->high[i / 4] >> (2 * (i % 4)) & 3u) << 8;
        out->scale[i / 2] = (int16_t)(2 * nibble(b->scales, i / 2) + 1);
        put_row(out->q + 8 * i, 8, GRID_IQ2_S[index], IQ2_OFFSET, b->signs[i]);
    }
}

static void unpack_iq3_xxs(const uint8_t *block, struct grid_block *out)
{
    const struct block_iq3_xxs *b = (const void *)block;
    out->d = load_f16(b->d) * 0.25f;
    for (unsigned i = 0; i < 64; i++) {
        uint32_t bits = load_u32(b->signs + 4 * (i / 8));
        unsigned signs = signs_of_7(bits >> (7 * (i / 2 % 4)));
        out->scale[i / 4] = (int16_t)(2 * (bits >> 28) + 1);
        put_row(out->q + 4 * i, 4, GRID_IQ3_XXS[b->low[i]], IQ3_XXS_OFFSET, signs >> (4 * (i % 2)));
    }
}

static void unpack_iq3_s(const uint8_t *block, struct grid_block *out)
{
    const struct block_iq3_s *b = (const void *)block;
    out->d = load_f16(b->d);
    for (unsigned i = 0; i < 64; i++) {
        unsigned index = b->low[i] | (b->high[i / 8] >> (i % 8) & 1u) << 8;
        out->scale[i / 4] = (int16_t)(2 * nibble(b->scales, i / 8) + 1);
        put_row(out->q + 4 * i, 4, GRID_IQ3_S[index], IQ3_S_OFFSET, b->signs[i / 2] >> (4 * (i % 2)));
    }
}

static void unpack_iq1_s(const uint8_t *block, struct grid_block *out)
{
    const struct block_iq1_s *b = (const void *)block;
    out->d = load_f16(b->d) * 0.125f;
    for (unsigned i = 0; i < 32; i++) {
        unsigned high = load_u16(b->high + 2 * (i / 4));
        unsigned index = b->low[i] | (high >> (3 * (i % 4)) & 7) << 8;
        out->scale[i / 2] = (int16_t)(2 * (high >> 12 & 7) + 1);
        put_row(out->q + 8 * i, 8, GRID_IQ1[index], high >> 15 ? IQ1_OFFSET + 1 : IQ1_OFFSET - 1, 0);
    }
}

static void unpack_iq1_m(const uint8_t *block, struct grid_block *out)
{
    const struct block_iq1_m *b = (const void *)block;
    uint16_t d = iq1_m_d(b->scales);
    out->d = f16_to_f32_one(d) * 0.125f;
    for (unsigned i = 0; i < 32; i++) {
        unsigned high = (unsigned)nibble(b->high, i);
        unsigned scales = load_u16(b->scales + 2 * (i / 8));
        unsigned index = b->low[i] | (high & 7) << 8;
        out->scale[i / 2] = (int16_t)(2 * (scales >> (3 * (i / 2 % 4)) & 7) + 1);
        put_row(out->q + 8 * i, 8, GRID_IQ1[index], high >> 3 ? IQ1_OFFSET + 1 : IQ1_OFFSET - 1, 0);
    }
}

static void set_scales_to_1(struct grid_block *out)
{
    for (unsigned i = 0; i < 16; i++) {
        out->scale[i] = 1;
    }
}

/* Trits 0..n_trits-1 of n bytes. */
static void put_trits(int8_t *q, const uint8_t *bytes, unsigned n, unsigned n_trits)
{
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    for (unsigned j = 0; j < n * n_trits; j++) {
        uint8_t rest = (uint8_t)(bytes[j % n] * powers[j / n]);
        q[j] = (int8_t)((rest * 3 >> 8) - 1);
    }
}

static void unpack_tq1_0(const uint8_t *block, struct grid_block *out)
{
    const struct block_tq1_0 *b = (const void *)block;
    out->d = load_f16(b->d);
    set_scales_to_1(out);
    put_trits(out->q, b->q, 32, 5);
    put_trits(out->q + 160, b->q + 32, 16, 5);
    put_trits(out->q + 240, b->q4, 4, 4);
}

static void unpack_tq2_0(const uint8_t *block, struct grid_block *out)
{
    const struct block_tq2_0 *b = (const void *)block;
    out->d = load_f16(b->d);
    set_scales_to_1(out);
    for (unsigned j = 0; j < 256; j++) {
        out->q[j] = (int8_t)((b->q[32 * (j / 128) + j % 32] >> (2 * (j / 32 % 4)) & 3) - 1);
    }
}

grid_unpack_fn *grid_unpack_find(uint32_t type)
{
    static const struct {
        uint32_t type;
        grid_unpack_fn *unpack;
    } rows[] = {
        {BLOCK_IQ2_XXS, unpack_iq2_xxs}, {BLOCK_IQ2_XS, unpack_iq2_xs}, {BLOCK_IQ2_S, unpack_iq2_s},
        {BLOCK_IQ3_XXS, unpack_iq3_xxs}, {BLOCK_IQ3_S, unpack_iq3_s},   {BLOCK_IQ1_S, unpack_iq1_s},
        {BLOCK_IQ1_M, unpack_iq1_m},     {BLOCK_TQ1_0, unpack_tq1_0},   {BLOCK_TQ2_0, unpack_tq2_0},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (rows[i].type == type) {
            return rows[i].unpack;
        }
    }
    return NULL;
}

/* Bit-exact in any order of operations: d (11 bits) times scale times q fits 24 bits. */
static void dequantize(grid_unpack_fn *unpack, size_t bytes, const uint8_t *blocks, float *out, size_t n)
{
    for (size_t i = 0; i < n / 256; i++) {
        struct grid_block w;
        unpack(blocks + i * bytes, &w);
        for (unsigned j = 0; j < 256; j++) {
            out[256 * i + j] = w.d * (float)(w.scale[j / 16] * w.q[j]);
        }
    }
}

#define DEQUANTIZE(NAME)                                                                                     \
    void dequantize_##NAME(const void *blocks, float *out, size_t n)                                         \
    {                                                                                                        \
        dequantize(unpack_##NAME, sizeof(struct block_##NAME), blocks, out, n);                              \
    }

DEQUANTIZE(iq2_xxs)
DEQUANTIZE(iq2_xs)
DEQUANTIZE(iq2_s)
DEQUANTIZE(iq3_xxs)
DEQUANTIZE(iq3_s)
DEQUANTIZE(iq1_s)
DEQUANTIZE(iq1_m)
DEQUANTIZE(tq1_0)
DEQUANTIZE(tq2_0)
