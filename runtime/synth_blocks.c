/* Recipes for random blocks: fill with random bytes, then put right the fields that hold scales. Block layouts are
 * ggml's (ggml-common.h; facts only). */
#include "runtime/synth_blocks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/block_format.h"
#include "kernels/block_layout.h"
#include "kernels/vector_ops.h"
#include "storage/gguf.h"

/* ---- random bytes ---- */

/* Eight interleaved xoshiro256++ generators (Blackman and Vigna 2021), so that compilers vectorise the step. */
enum { LANES = 8 };

struct random_lanes {
    uint64_t s[4][LANES];
};

/* SplitMix64 (Steele et al. 2014): the seeding that xoshiro's authors recommend. */
static uint64_t splitmix(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void random_seed(struct random_lanes *random, uint64_t seed, uint32_t tensor, uint64_t unit)
{
    uint64_t state = seed;
    state = splitmix(&state) ^ tensor;
    state = splitmix(&state) ^ unit;
    for (unsigned i = 0; i < 4; i++) {
        for (unsigned lane = 0; lane < LANES; lane++)
            random->s[i][lane] = splitmix(&state);
    }
}

static inline uint64_t rotate_left(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

static void random_step(struct random_lanes *random, uint64_t out[LANES])
{
    uint64_t(*s)[LANES] = random->s;
    for (unsigned i = 0; i < LANES; i++) {
        out[i] = rotate_left(s[0][i] + s[3][i], 23) + s[0][i];
        uint64_t t = s[1][i] << 17;
        s[2][i] ^= s[0][i];
        s[3][i] ^= s[1][i];
        s[1][i] ^= s[2][i];
        s[0][i] ^= s[3][i];
        s[2][i] ^= t;
        s[3][i] = rotate_left(s[3][i], 45);
    }
}

static void random_bytes(struct random_lanes *random, uint8_t *out, size_t n)
{
    uint64_t words[LANES];
    for (; n >= sizeof(words); n -= sizeof(words), out += sizeof(words)) {
        random_step(random, words);
        memcpy(out, words, sizeof(words));
    }
    random_step(random, words);
    memcpy(out, words, n);
}

/* ---- recipes ---- */

enum { ABSENT = 0xffff };

struct synth_recipe {
    uint32_t type;
    uint16_t scale_at; /* F16 scale d: byte offset in the block */
    uint16_t min_at;   /* F16 that shifts the quants' mean to 0 */
    float min_factor;  /* min = min_factor * d */
    bool random_sign;  /* d of either sign, where the quants have no minimum and a mean of -1/2 or so */
    float moment;      /* mean of (value / d)^2 */
    void (*finish)(const struct synth_fill *fill, uint8_t *block);
};

/* 12 bytes of eight 6-bit scales and eight 6-bit minima: scales uniform in 32..63, minima equal to them. */
static void finish_k_scales(const struct synth_fill *fill, uint8_t *block)
{
    (void)fill;
    uint8_t *q = block + 4;
    for (unsigned i = 0; i < 4; i++) {
        q[i] |= 0xa0;
        q[4 + i] = q[i];
        q[8 + i] = (uint8_t)((q[8 + i] & 0x0f) * 0x11);
    }
}

/* Sixteen bytes, scale in the low nibble, minimum in the high one: uniform in 8..15, equal. */
static void finish_q2_scales(const struct synth_fill *fill, uint8_t *block)
{
    (void)fill;
    for (unsigned i = 0; i < 16; i++)
        block[i] = (uint8_t)(((block[i] & 7) | 8) * 0x11);
}

/* Sixteen int8 scales: -128..-65 or 64..127. */
static void finish_q6_scales(const struct synth_fill *fill, uint8_t *block)
{
    (void)fill;
    for (unsigned i = 192; i < 208; i++) {
        uint8_t b = block[i] & 0xbf;
        block[i] = (uint8_t)(b | ((~b >> 1) & 0x40));
    }
}

/* ggml never writes -128, and symmetric quants have a mean of 0. */
static void finish_q8(const struct synth_fill *fill, uint8_t *block)
{
    (void)fill;
    for (unsigned i = 2; i < 34; i++)
        block[i] = block[i] == 0x80 ? 0 : block[i];
}

static void finish_mxfp4(const struct synth_fill *fill, uint8_t *block)
{
    block[0] = (uint8_t)(fill->exponent + (block[0] < fill->exponent_threshold));
}

static void finish_nvfp4(const struct synth_fill *fill, uint8_t *block)
{
    for (unsigned i = 0; i < 4; i++)
        block[i] = (uint8_t)(fill->exponent + (block[i] < fill->exponent_threshold));
}

/* Two bits 0, 1, 2: ggml never writes 3, which becomes 1 and makes the mean 1. */
static void finish_tq2(const struct synth_fill *fill, uint8_t *block)
{
    (void)fill;
    for (unsigned i = 0; i < 64; i++)
        block[i] &= (uint8_t) ~(block[i] & (block[i] << 1) & 0xaa);
}

/* d stands in the high nibbles of four u16, low one first; the random ones choose it, of either sign. */
static void finish_iq1_m(const struct synth_fill *fill, uint8_t *block)
{
    uint8_t *scales = block + 48;
    uint16_t d = fill->scale[(scales[1] >> 4) % SYNTH_SCALES] | (uint16_t)((scales[3] & 0x10) << 11);
    for (unsigned i = 0; i < 4; i++)
        scales[2 * i + 1] = (uint8_t)((scales[2 * i + 1] & 0x0f) | (d >> (4 * i) & 0x0f) << 4);
}

/* Mean squares: of q uniform over n integers about their mean, (n^2 - 1) / 12, plus the mean's square where it is not
 * shifted away; times that of the integer scales. */
#define SQUARE_K_SCALES 2341.5f /* 32..63 */
#define SQUARE_SIGNED_6 341.5f  /* -32..31 */
#define SQUARE_IQ4_NL   4548.0f /* its 16 values */
#define SQUARE_ODD_16   341.0f  /* 2 s + 1, s in 0..15 */
#define SQUARE_ODD_8    85.0f   /* s in 0..7 */
#define SQUARE_IQ1      0.6098f /* over its grid, with the deltas of 1/8; so the others below */

static const struct synth_recipe recipes[] = {
    {BLOCK_F32, ABSENT, ABSENT, 0, false, 0, NULL},
    {BLOCK_F16, ABSENT, ABSENT, 0, false, 0, NULL},
    {BLOCK_BF16, ABSENT, ABSENT, 0, false, 0, NULL},
    {BLOCK_Q8_0, 0, ABSENT, 0, false, 5397.5f, finish_q8},
    {BLOCK_Q6_K, 208, ABSENT, 0, true, SQUARE_SIGNED_6 * 9557.5f, finish_q6_scales},
    {BLOCK_Q5_K, 0, 2, 15.5f, false, 85.25f * SQUARE_K_SCALES, finish_k_scales},
    {BLOCK_Q4_K, 0, 2, 7.5f, false, 21.25f * SQUARE_K_SCALES, finish_k_scales},
    {BLOCK_Q3_K, 108, ABSENT, 0, true, 5.5f * SQUARE_SIGNED_6, NULL},
    {BLOCK_Q2_K, 80, 82, 1.5f, false, 1.25f * 137.5f, finish_q2_scales},
    {BLOCK_Q5_1, 0, 2, -15.5f, false, 85.25f, NULL},
    {BLOCK_Q5_0, 0, ABSENT, 0, true, 85.5f, NULL},
    {BLOCK_Q4_1, 0, 2, -7.5f, false, 21.25f, NULL},
    {BLOCK_Q4_0, 0, ABSENT, 0, true, 21.5f, NULL},
    {BLOCK_IQ4_XS, 0, ABSENT, 0, true, SQUARE_SIGNED_6 *SQUARE_IQ4_NL, NULL},
    {BLOCK_IQ4_NL, 0, ABSENT, 0, true, SQUARE_IQ4_NL, NULL},
    {BLOCK_MXFP4, ABSENT, ABSENT, 0, false, 34.25f, finish_mxfp4},
    {BLOCK_NVFP4, ABSENT, ABSENT, 0, false, 34.25f, finish_nvfp4},
    {BLOCK_Q1_0, 0, ABSENT, 0, false, 1.0f, NULL},
    {BLOCK_Q2_0, 0, ABSENT, 0, true, 1.5f, NULL},
    {BLOCK_IQ3_S, 0, ABSENT, 0, false, 57.672f * SQUARE_ODD_16, NULL},
    {BLOCK_IQ3_XXS, 0, ABSENT, 0, false, 951.64f / 16 * SQUARE_ODD_16, NULL},
    {BLOCK_IQ2_S, 0, ABSENT, 0, false, 596.84f / 64 * SQUARE_ODD_16, NULL},
    {BLOCK_IQ2_XS, 0, ABSENT, 0, false, 586.48f / 64 * SQUARE_ODD_16, NULL},
    {BLOCK_IQ2_XXS, 0, ABSENT, 0, false, 534.43f / 64 * SQUARE_ODD_16, NULL},
    {BLOCK_IQ1_M, ABSENT, ABSENT, 0, false, SQUARE_IQ1 *SQUARE_ODD_8, finish_iq1_m},
    {BLOCK_IQ1_S, 0, ABSENT, 0, true, SQUARE_IQ1 *SQUARE_ODD_8, NULL},
    {BLOCK_TQ2_0, 64, ABSENT, 0, false, 0.5f, finish_tq2},
    {BLOCK_TQ1_0, 52, ABSENT, 0, true, 171.0f / 256, NULL},
};

enum { N_RECIPES = sizeof(recipes) / sizeof(recipes[0]) };

const struct synth_recipe *synth_recipe_find(uint32_t type)
{
    for (size_t i = 0; i < N_RECIPES; i++) {
        if (recipes[i].type == type)
            return &recipes[i];
    }
    return NULL;
}

uint32_t synth_recipe_at(uint32_t index)
{
    return index < N_RECIPES ? recipes[index].type : UINT32_MAX;
}

static bool is_float_type(uint32_t type)
{
    return type == BLOCK_F32 || type == BLOCK_F16 || type == BLOCK_BF16;
}

/* ---- distributions ---- */

void synth_gauss_table(float gauss[SYNTH_GAUSS_SIZE])
{
    double square = 0;
    double upper[SYNTH_GAUSS_SIZE / 2];
    for (unsigned i = 0; i < SYNTH_GAUSS_SIZE / 2; i++) {
        double tail = (SYNTH_GAUSS_SIZE / 2 - i - 0.5) / SYNTH_GAUSS_SIZE;
        double low = 0, high = 8; /* bisect for the x with P(X > x) = tail */
        for (unsigned step = 0; step < 50; step++) {
            double middle = (low + high) / 2;
            if (erfc(middle * M_SQRT1_2) / 2 > tail)
                low = middle;
            else
                high = middle;
        }
        upper[i] = low;
        square += 2 * low * low;
    }
    double scale = sqrt(SYNTH_GAUSS_SIZE / square);
    for (unsigned i = 0; i < SYNTH_GAUSS_SIZE / 2; i++) {
        gauss[SYNTH_GAUSS_SIZE / 2 + i] = (float)(upper[i] * scale);
        gauss[SYNTH_GAUSS_SIZE / 2 - 1 - i] = (float)(-upper[i] * scale);
    }
}

static uint16_t to_f16(float x)
{
    uint16_t bits;
    vector_ops_get(CPU_SCALAR)->f32_to_f16(&bits, &x, 1);
    return bits;
}

static float from_f16(uint16_t bits)
{
    float x;
    vector_ops_get(CPU_SCALAR)->f16_to_f32(&x, &bits, 1);
    return x;
}

static uint32_t float_bits(uint32_t type, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    if (type == BLOCK_F32)
        return bits;
    if (type == BLOCK_F16)
        return to_f16(x);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* BF16, nearest even */
}

/* Scales spread over 0.75..1.25 of d, with a mean square of d^2. */
static void init_scales(struct synth_fill *fill, float d)
{
    const struct synth_recipe *recipe = fill->recipe;
    float factor[SYNTH_SCALES], square = 0;
    for (unsigned i = 0; i < SYNTH_SCALES; i++) {
        factor[i] = 0.75f + 0.5f * (float)i / (SYNTH_SCALES - 1);
        square += factor[i] * factor[i];
    }
    float norm = d / sqrtf(square / SYNTH_SCALES);
    for (unsigned i = 0; i < SYNTH_SCALES; i++) {
        fill->scale[i] = to_f16(factor[i] * norm);
        fill->min[i] = to_f16(from_f16(fill->scale[i]) * recipe->min_factor);
    }
}

/* Powers of two only: two neighbours are mixed so that the mean square is d^2. */
static void init_exponent(struct synth_fill *fill, float d)
{
    int exponent;
    float fraction = frexpf(d, &exponent); /* d = 2 fraction * 2^(exponent - 1), 2 fraction in [1, 2) */
    float next = (4 * fraction * fraction - 1) / 3; /* share of the upper one */
    int biased = exponent - 1 + 128;                /* a block's scale is 2^(e - 128) */
    fill->exponent = (uint8_t)(biased < 1 ? 1 : biased > 253 ? 253 : biased);
    fill->exponent_threshold = (uint8_t)(next * 256);
}

/* The code of the largest UE4M3 scale up to d, mixed with the next one so that the mean square is d^2. */
static void init_ue4m3(struct synth_fill *fill, float d)
{
    uint8_t code = 0;
    while (code < 0x7d && ue4m3_half((uint8_t)(code + 1)) <= d)
        code++;
    float low = ue4m3_half(code), high = ue4m3_half((uint8_t)(code + 1));
    float next = fminf((d * d - low * low) / (high * high - low * low), 0.999f);
    fill->exponent = code;
    fill->exponent_threshold = (uint8_t)(next * 256);
}

bool synth_fill_init(struct synth_fill *fill, uint32_t type, float mean, float std,
                     const float gauss[SYNTH_GAUSS_SIZE])
{
    *fill = (struct synth_fill){.recipe = synth_recipe_find(type), .mean = mean, .std = std};
    if (!is_float_type(type)) {
        float d = std / sqrtf(fill->recipe->moment);
        if (type == BLOCK_MXFP4)
            init_exponent(fill, d);
        else if (type == BLOCK_NVFP4)
            init_ue4m3(fill, d);
        else
            init_scales(fill, d);
        return true;
    }
    fill->gauss = malloc(SYNTH_GAUSS_SIZE * sizeof(*fill->gauss));
    if (!fill->gauss)
        return false;
    for (unsigned i = 0; i < SYNTH_GAUSS_SIZE; i++)
        fill->gauss[i] = float_bits(type, mean + std * gauss[i]);
    return true;
}

void synth_fill_deinit(struct synth_fill *fill)
{
    free(fill->gauss);
}

/* ---- generation ---- */

enum { UNIT_BYTES = 64 << 10 };

uint64_t synth_unit_bytes(const struct synth_recipe *recipe)
{
    uint32_t block = gguf_type_find(recipe->type)->bytes;
    return UNIT_BYTES / block * block;
}

static void map_f32(const uint32_t *gauss, uint8_t *out, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 4) {
        uint32_t bits;
        memcpy(&bits, out + i, 4);
        memcpy(out + i, &gauss[bits % SYNTH_GAUSS_SIZE], 4);
    }
}

static void map_16_bit(const uint32_t *gauss, uint8_t *out, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 2) {
        uint16_t bits;
        memcpy(&bits, out + i, 2);
        bits = (uint16_t)gauss[bits % SYNTH_GAUSS_SIZE];
        memcpy(out + i, &bits, 2);
    }
}

/* The random bytes where the scale belongs choose which one goes there. */
static void set_scale(const struct synth_fill *fill, uint8_t *block)
{
    const struct synth_recipe *recipe = fill->recipe;
    uint8_t choice = block[recipe->scale_at];
    uint16_t sign = recipe->random_sign && (choice & 0x10) ? 0x8000 : 0;
    uint16_t scale = fill->scale[choice % SYNTH_SCALES] | sign;
    memcpy(block + recipe->scale_at, &scale, sizeof(scale));
    if (recipe->min_at != ABSENT)
        memcpy(block + recipe->min_at, &fill->min[choice % SYNTH_SCALES], sizeof(fill->min[0]));
}

void synth_fill_unit(const struct synth_fill *fill, uint64_t seed, uint32_t tensor, uint64_t unit,
                     uint8_t *out, size_t bytes)
{
    const struct synth_recipe *recipe = fill->recipe;
    struct random_lanes random;
    random_seed(&random, seed, tensor, unit);
    random_bytes(&random, out, bytes);
    if (recipe->type == BLOCK_F32) {
        map_f32(fill->gauss, out, bytes);
        return;
    }
    if (fill->gauss) {
        map_16_bit(fill->gauss, out, bytes);
        return;
    }
    size_t block_bytes = gguf_type_find(recipe->type)->bytes;
    for (size_t at = 0; at < bytes; at += block_bytes) {
        if (recipe->scale_at != ABSENT)
            set_scale(fill, out + at);
        if (recipe->finish)
            recipe->finish(fill, out + at);
    }
}
