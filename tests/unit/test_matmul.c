/* Products of weights and activations: values, agreement of instruction sets, batch invariance. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/block_grid.h"
#include "kernels/block_layout.h"
#include "kernels/matmul.h"
#include "kernels/matmul_internal.h"
#include "thinned.h"

/* ---- random data ---- */

static uint64_t rng_state;

static uint32_t rng(void)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}

static unsigned rng_below(unsigned n)
{
    return rng() % n;
}

static float rng_float(void) /* -1..1 */
{
    return (float)rng_below(1u << 24) * 0x1p-23f - 1.0f;
}

static void *allocate(size_t size)
{
    void *p = malloc(size > 0 ? size : 1);
    assert_non_null(p);
    return p;
}

static void store_f16(uint8_t *p, float v)
{
    uint16_t h = f32_to_f16_one(v);
    memcpy(p, &h, sizeof(h));
}

/* Sets the scales of a block of any format; others than block formats get the value itself. */
static void set_scales(uint32_t type, uint8_t *block, float d)
{
    uint32_t bits;
    memcpy(&bits, &d, sizeof(bits));
    switch (type) {
    case BLOCK_F32:
        memcpy(block, &d, sizeof(d));
        break;
    case BLOCK_BF16:
        memcpy(block, (const uint8_t *)&bits + 2, 2);
        break;
    case BLOCK_MXFP4:
        block[0] = (uint8_t)(bits >> 23);
        break;
    case BLOCK_NVFP4: /* any byte is a scale */
        break;
    case BLOCK_Q2_K:
        store_f16(block + offsetof(struct block_q2_k, d), d);
        store_f16(block + offsetof(struct block_q2_k, dmin), d);
        break;
    case BLOCK_Q3_K:
        store_f16(block + offsetof(struct block_q3_k, d), d);
        break;
    case BLOCK_Q4_1:
    case BLOCK_Q5_1:
    case BLOCK_Q4_K:
    case BLOCK_Q5_K:
        store_f16(block, d);
        store_f16(block + 2, d);
        break;
    case BLOCK_Q6_K:
        store_f16(block + offsetof(struct block_q6_k, d), d);
        break;
    case BLOCK_TQ1_0:
        store_f16(block + offsetof(struct block_tq1_0, d), d);
        break;
    case BLOCK_TQ2_0:
        store_f16(block + offsetof(struct block_tq2_0, d), d);
        break;
    case BLOCK_IQ1_M: { /* a nibble in each of four words */
        uint8_t *scales = block + offsetof(struct block_iq1_m, scales);
        uint16_t h = f32_to_f16_one(d);
        for (unsigned i = 0; i < 4; i++) {
            scales[2 * i + 1] = (uint8_t)((scales[2 * i + 1] & 15) | (h >> (4 * i) & 15) << 4);
        }
        break;
    }
    default:
        store_f16(block, d);
    }
}

/* Random blocks with scales of an ordinary size, at an odd address, ending where the allocation ends. */
struct matrix {
    struct weight w;
    uint8_t *allocation;
};

static struct matrix matrix_new(const struct block_format *format, uint64_t n_rows, uint64_t n_cols)
{
    size_t row_bytes = block_row_bytes(format, n_cols);
    struct matrix m = {.allocation = allocate(n_rows * row_bytes + 1)};
    uint8_t *data = m.allocation + 1;
    for (size_t i = 0; i < n_rows * row_bytes; i++) {
        data[i] = (uint8_t)rng();
    }
    for (size_t i = 0; i < n_rows * row_bytes; i += format->bytes) {
        set_scales(format->type, data + i,
                   format->values == 1 ? rng_float() : 0.001f + fabsf(rng_float()) * 0.02f);
    }
    m.w = (struct weight){format, data, n_rows, n_cols, row_bytes};
    return m;
}

/* n_tokens rows of quantized activations, and the floats they stand for. */
struct acts {
    enum act_type type;
    uint32_t n_tokens;
    uint64_t n_cols;
    size_t stride; /* bytes */
    uint8_t *data;
    float *values;
};

static void act_values(enum act_type type, const void *data, float *out, uint64_t n)
{
    const struct act_q8_0 *q8_0 = data;
    const struct act_q8_k *q8_k = data;
    for (uint64_t i = 0; i < n; i++) {
        if (type == ACT_Q8_0) {
            out[i] = q8_0[i / 32].d * (float)q8_0[i / 32].q[i % 32];
        } else if (type == ACT_Q8_K) {
            out[i] = q8_k[i / 256].d * (float)q8_k[i / 256].q[i % 256];
        } else {
            memcpy(&out[i], (const uint8_t *)data + 4 * i, 4);
        }
    }
}

static struct acts acts_new(enum act_type type, uint32_t n_tokens, uint64_t n_cols)
{
    struct acts a = {.type = type, .n_tokens = n_tokens, .n_cols = n_cols};
    a.stride = act_row_bytes(type, n_cols) + 4 * rng_below(3);
    a.data = allocate(n_tokens * a.stride);
    a.values = allocate(n_tokens * n_cols * sizeof(float));
    float *x = allocate(n_cols * sizeof(float));
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (uint64_t i = 0; i < n_cols; i++) {
            x[i] = rng_float() * (rng_below(16) == 0 ? 8.0f : 1.0f);
        }
        act_quantize(matmul_kernels_get(CPU_SCALAR), type, x, a.data + t * a.stride, n_cols);
        act_values(type, a.data + t * a.stride, a.values + t * n_cols, n_cols);
    }
    free(x);
    return a;
}

static void acts_free(struct acts *a)
{
    free(a->data);
    free(a->values);
}

static uint64_t random_cols(const struct block_format *format, enum act_type act, unsigned max)
{
    uint32_t unit = format->values > act_block_values(act) ? format->values : act_block_values(act);
    return (1 + rng_below(max / unit)) * unit;
}

/* NaNs have many bit patterns; any of them will do. */
static bool same_float(float a, float b)
{
    return memcmp(&a, &b, sizeof(a)) == 0 || (isnan(a) && isnan(b));
}

/* ---- cases over formats and activation types ---- */

typedef void case_fn(const struct block_format *format, enum act_type act);

static void for_each_case(case_fn *fn)
{
    rng_state = 1;
    for (uint32_t i = 0; block_format_at(i) != NULL; i++) {
        const struct block_format *format = block_format_at(i);
        fn(format, format->act);
        if (format->act != ACT_F32) {
            fn(format, ACT_F32);
        }
    }
}

static float *product(const struct matmul_kernels *kernels, const struct matrix *m, const struct acts *x)
{
    float *out = allocate(x->n_tokens * m->w.n_rows * sizeof(float));
    kernels->matmul(&m->w, 0, m->w.n_rows, x->type, x->data, x->stride, x->n_tokens, out, m->w.n_rows);
    return out;
}

/* Sum of w * x in double, and of |w * x|. */
static double exact_dot(const struct matrix *m, uint64_t row, const float *x, double *magnitude)
{
    float *w = allocate(m->w.n_cols * sizeof(float));
    m->w.format->dequantize(weight_row(&m->w, row), w, m->w.n_cols);
    double sum = 0;
    *magnitude = 0;
    for (uint64_t i = 0; i < m->w.n_cols; i++) {
        sum += (double)w[i] * (double)x[i];
        *magnitude += fabs((double)w[i] * (double)x[i]);
    }
    free(w);
    return sum;
}

static void check_values(const struct block_format *format, enum act_type act)
{
    for (unsigned round = 0; round < 4; round++) {
        struct matrix m = matrix_new(format, 1 + rng_below(9), random_cols(format, act, 2600));
        struct acts x = acts_new(act, 1 + rng_below(3), m.w.n_cols);
        const struct matmul_kernels *kernels;
        for (unsigned v = 0; (kernels = matmul_variant_at(v)) != NULL; v++) {
            float *out = product(kernels, &m, &x);
            for (uint32_t t = 0; t < x.n_tokens; t++) {
                for (uint64_t r = 0; r < m.w.n_rows; r++) {
                    double magnitude;
                    double expected = exact_dot(&m, r, x.values + t * x.n_cols, &magnitude);
                    /* roundings per partial sum, each at most 2^-24 of what has been added up, cancel at random */
                    assert_true(fabs(out[t * m.w.n_rows + r] - expected) <= 4e-6 * magnitude + 1e-30);
                }
            }
            free(out);
        }
        free(m.allocation);
        acts_free(&x);
    }
}

static void products_match_double_precision(void **state)
{
    (void)state;
    for_each_case(check_values);
}

static void check_variants(const struct block_format *format, enum act_type act)
{
    if (act == ACT_F32) {
        return;
    }
    for (unsigned round = 0; round < 6; round++) {
        struct matrix m = matrix_new(format, 1 + rng_below(40), random_cols(format, act, 2600));
        struct acts x = acts_new(act, 1 + rng_below(20), m.w.n_cols);
        float *expected = product(matmul_variant_at(0), &m, &x);
        const struct matmul_kernels *kernels;
        for (unsigned v = 1; (kernels = matmul_variant_at(v)) != NULL; v++) {
            float *out = product(kernels, &m, &x);
            assert_memory_equal(out, expected, x.n_tokens * m.w.n_rows * sizeof(float));
            free(out);
        }
        free(expected);
        free(m.allocation);
        acts_free(&x);
    }
}

static void quantized_products_have_the_same_bits_at_every_level(void **state)
{
    (void)state;
    for_each_case(check_variants);
}

/* Both variants of a level, with and without VNNI, also where lanes differ between levels. */
static void check_levels(const struct block_format *format, enum act_type act)
{
    struct matrix m = matrix_new(format, 21, random_cols(format, act, 2600));
    struct acts x = acts_new(act, 11, m.w.n_cols);
    const struct matmul_kernels *kernels;
    for (unsigned v = 0; (kernels = matmul_variant_at(v)) != NULL; v++) {
        float *out = product(kernels, &m, &x);
        float *same_level = product(matmul_kernels_get(kernels->level), &m, &x);
        assert_memory_equal(out, same_level, x.n_tokens * m.w.n_rows * sizeof(float));
        free(out);
        free(same_level);
    }
    free(m.allocation);
    acts_free(&x);
}

static void variants_of_a_level_have_the_same_bits(void **state)
{
    (void)state;
    for_each_case(check_levels);
}

/* Every output of a call is what a call for its row and token alone gives. */
static void check_batch(const struct matmul_kernels *kernels, const struct block_format *format,
                        enum act_type act, uint32_t n_tokens)
{
    struct matrix m =
        matrix_new(format, 1 + rng_below(n_tokens > 40 ? 20 : 50), random_cols(format, act, 1500));
    struct acts x = acts_new(act, n_tokens, m.w.n_cols);
    uint64_t begin = rng_below((unsigned)m.w.n_rows);
    uint64_t end = begin + 1 + rng_below((unsigned)(m.w.n_rows - begin));
    size_t stride = end - begin + rng_below(4);
    float *out = allocate(n_tokens * stride * sizeof(float));
    memset(out, 0x5a, n_tokens * stride * sizeof(float));
    float untouched;
    memcpy(&untouched, out, sizeof(untouched));
    kernels->matmul(&m.w, begin, end, act, x.data, x.stride, n_tokens, out, stride);
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (uint64_t r = begin; r < end; r++) {
            float alone;
            kernels->matmul(&m.w, r, r + 1, act, x.data + t * x.stride, x.stride, 1, &alone, 1);
            assert_memory_equal(&out[t * stride + (r - begin)], &alone, sizeof(alone));
        }
        for (uint64_t i = end - begin; i < stride; i++) {
            assert_memory_equal(&out[t * stride + i], &untouched, sizeof(untouched));
        }
    }
    free(out);
    free(m.allocation);
    acts_free(&x);
}

static void check_batches(const struct block_format *format, enum act_type act)
{
    static const uint32_t counts[] = {1, 4, 9, 17, 2, 3, 5, 7, 8, 15, 33};
    enum { N_COUNTS = THINNED(sizeof(counts) / sizeof(counts[0]), 4) };
    const struct matmul_kernels *kernels;
    for (unsigned v = 0; (kernels = matmul_variant_at(v)) != NULL; v++) {
        if (kernels->level == CPU_SCALAR) {
            check_batch(kernels, format, act, 5); /* it computes each output alone */
            continue;
        }
        for (size_t i = 0; i < N_COUNTS; i++) {
            check_batch(kernels, format, act, counts[i]);
        }
        check_batch(kernels, format, act, 40 + rng_below(THINNED(261, 20)));
    }
}

static void outputs_do_not_depend_on_rows_or_tokens_beside_them(void **state)
{
    (void)state;
    for_each_case(check_batches);
}

/* Rows longer than what the kernels hold at a time. */
static void check_long_rows(const struct block_format *format, enum act_type act)
{
    struct matrix m = matrix_new(format, 3, 32 * 256 * 2 + 256);
    struct acts x = acts_new(act, 9, m.w.n_cols);
    const struct matmul_kernels *kernels;
    for (unsigned v = 0; (kernels = matmul_variant_at(v)) != NULL; v++) {
        float *out = product(kernels, &m, &x);
        for (uint32_t t = 0; t < x.n_tokens; t += THINNED(1, 4)) {
            float alone[3];
            kernels->matmul(&m.w, 0, 3, act, x.data + t * x.stride, x.stride, 1, alone, 3);
            assert_memory_equal(alone, out + 3 * t, sizeof(alone));
            double magnitude;
            double expected = exact_dot(&m, 2, x.values + t * x.n_cols, &magnitude);
            assert_true(fabs(out[3 * t + 2] - expected) <= 4e-6 * magnitude);
        }
        free(out);
    }
    free(m.allocation);
    acts_free(&x);
}

static void long_rows_are_summed_whole(void **state)
{
    (void)state;
    for_each_case(check_long_rows);
}

/* Largest weights times largest activations of either sign: a 16-bit sum that saturates would show. */
static void check_extremes(const struct block_format *format, enum act_type act)
{
    static const uint8_t patterns[] = {0x00, 0x80, 0x7f, 0xff, 0x88, 0x77};
    for (size_t i = 0; i < sizeof(patterns) && act != ACT_F32; i++) {
        struct matrix m = matrix_new(format, 16, 512);
        memset(m.allocation + 1, patterns[i], m.w.n_rows * m.w.row_bytes);
        for (size_t b = 0; b < m.w.n_rows * m.w.row_bytes; b += format->bytes) {
            set_scales(format->type, m.allocation + 1 + b, 0.5f);
        }
        struct acts x = acts_new(act, 4, 512);
        float values[512];
        for (unsigned j = 0; j < 512; j++) {
            values[j] = j < 256 ? -127.0f : 127.0f;
        }
        for (uint32_t t = 0; t < 4; t++) {
            values[t] = -values[t];
            act_quantize(matmul_kernels_get(CPU_SCALAR), act, values, x.data + t * x.stride, 512);
        }
        float *expected = product(matmul_variant_at(0), &m, &x);
        const struct matmul_kernels *kernels;
        for (unsigned v = 1; (kernels = matmul_variant_at(v)) != NULL; v++) {
            float *out = product(kernels, &m, &x);
            assert_memory_equal(out, expected, 4 * 16 * sizeof(float));
            float alone[16];
            kernels->matmul(&m.w, 0, 16, act, x.data, x.stride, 1, alone, 16);
            assert_memory_equal(alone, expected, sizeof(alone));
            free(out);
        }
        free(expected);
        free(m.allocation);
        acts_free(&x);
    }
}

static void extreme_values_do_not_saturate(void **state)
{
    (void)state;
    for_each_case(check_extremes);
}

/* A scale that is not finite spoils its own row, to the same NaN or infinity in any batch, and no other. */
static void check_bad_scales(const struct block_format *format, enum act_type act)
{
    const float bad[] = {NAN, INFINITY, -INFINITY};
    struct matrix m = matrix_new(format, 6, format->values == 1 ? 256 : format->values * 8);
    struct acts x = acts_new(act, 9, m.w.n_cols);
    /* every E8M0 and UE4M3 byte stands for a number here */
    bool no_bad = format->type == BLOCK_MXFP4 || format->type == BLOCK_NVFP4;
    for (unsigned i = 0; i < 3; i++) {
        const struct matmul_kernels *kernels;
        for (unsigned v = 0; (kernels = matmul_variant_at(v)) != NULL; v++) {
            float *before = product(kernels, &m, &x);
            uint8_t *block = m.allocation + 1 + (2 + i) * m.w.row_bytes +
                             m.w.row_bytes / format->bytes / 2 * format->bytes;
            uint8_t kept[256];
            memcpy(kept, block, format->bytes);
            set_scales(format->type, block, bad[i]);
            float *after = product(kernels, &m, &x);
            for (uint32_t t = 0; t < x.n_tokens; t++) {
                float alone[6];
                kernels->matmul(&m.w, 0, 6, act, x.data + t * x.stride, x.stride, 1, alone, 6);
                for (unsigned r = 0; r < 6; r++) {
                    assert_true(same_float(alone[r], after[6 * t + r]));
                    if (r != 2 + i) {
                        assert_true(same_float(before[6 * t + r], after[6 * t + r]));
                    } else if (!no_bad) {
                        assert_false(isfinite(after[6 * t + r]));
                    }
                }
            }
            memcpy(block, kept, format->bytes);
            free(before);
            free(after);
        }
    }
    free(m.allocation);
    acts_free(&x);
}

static void bad_scales_stay_in_their_row(void **state)
{
    (void)state;
    for_each_case(check_bad_scales);
}

/* ---- activations ---- */

static void check_act_blocks(enum act_type type, const float *x, size_t n)
{
    size_t size = act_row_bytes(type, n);
    uint8_t *expected = allocate(size);
    act_quantize(matmul_kernels_get(CPU_SCALAR), type, x, expected, n);
    const struct matmul_kernels *kernels;
    for (unsigned v = 1; (kernels = matmul_variant_at(v)) != NULL; v++) {
        uint8_t *out = allocate(size);
        act_quantize(kernels, type, x, out, n);
        for (size_t i = 0; i < size; i += 4) { /* scales that are NaN may differ in their bits */
            float a;
            float b;
            memcpy(&a, expected + i, 4);
            memcpy(&b, out + i, 4);
            assert_true(memcmp(expected + i, out + i, 4) == 0 || (isnan(a) && isnan(b)));
        }
        free(out);
    }
    free(expected);
}

static void activations_have_the_same_bits_at_every_level(void **state)
{
    (void)state;
    static const float specials[] = {0.0f,  -0.0f,  1e-45f,   -1e-40f,   1e-38f, 3e-37f, 4e-37f,
                                     1e-7f, 1e30f,  3e38f,    -3e38f,    0.5f,   -2.5f,  127.0f,
                                     65504, 8.4e6f, INFINITY, -INFINITY, NAN};
    enum { N = 512, N_SPECIALS = sizeof(specials) / sizeof(specials[0]) };
    rng_state = 2;
    float x[N];
    for (unsigned round = 0; round < 400; round++) {
        float spread = ldexpf(1.0f, (int)rng_below(40) - 20);
        for (unsigned i = 0; i < N; i++) {
            x[i] = round % 4 == 3 ? (float)((int)rng_below(255) - 127) / 2 : rng_float() * spread;
        }
        for (unsigned i = 0; round % 2 == 1 && i < 3; i++) {
            x[rng_below(N)] = specials[rng_below(N_SPECIALS)];
        }
        check_act_blocks(ACT_F32, x, N);
        check_act_blocks(ACT_Q8_0, x, N);
        check_act_blocks(ACT_Q8_K, x, N);
    }
    for (unsigned i = 0; i < N_SPECIALS; i++) {
        for (unsigned j = 0; j < N; j++) {
            x[j] = specials[i];
        }
        check_act_blocks(ACT_Q8_0, x, N);
        check_act_blocks(ACT_Q8_K, x, N);
    }
}

static void q8_0_activations_round_to_even_by_an_f16_scale(void **state)
{
    (void)state;
    float x[32] = {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -126.5f, 0.4f};
    struct act_q8_0 a;
    act_quantize(matmul_kernels_get(CPU_SCALAR), ACT_Q8_0, x, &a, 32);
    static const int8_t expected[8] = {127, 0, 2, 2, 0, -2, -126, 0};
    assert_memory_equal(a.q, expected, sizeof(expected));
    assert_true(a.d == 1.0f);
    assert_int_equal(a.sum, 127 + 2 + 2 - 2 - 126);
    x[0] = 100.0f;
    act_quantize(matmul_kernels_get(CPU_SCALAR), ACT_Q8_0, x, &a, 32);
    assert_true(a.d == f16_to_f32_one(f32_to_f16_one(126.5f / 127.0f)));
    assert_int_equal(a.q[6], -127);
}

static void q8_k_activations_have_the_sign_of_the_largest(void **state)
{
    (void)state;
    float x[256] = {0};
    x[3] = -63.5f; /* the first of the largest gives the sign */
    x[200] = 63.5f;
    x[201] = 0.25f;
    x[202] = 0.75f;
    struct act_q8_k a;
    act_quantize(matmul_kernels_get(CPU_SCALAR), ACT_Q8_K, x, &a, 256);
    assert_true(a.d == 1.0f / (-127.0f / -63.5f));
    assert_int_equal(a.q[3], -127);
    assert_int_equal(a.q[200], 127);
    assert_int_equal(a.q[201], 0); /* 0.5 to even */
    assert_int_equal(a.q[202], 2); /* 1.5 to even */
    assert_int_equal(a.sums[0], -127);
    assert_int_equal(a.sums[12], 129);
    x[3] = 63.5f;
    act_quantize(matmul_kernels_get(CPU_SCALAR), ACT_Q8_K, x, &a, 256);
    assert_true(a.d == 1.0f / (-127.0f / 63.5f));
    assert_int_equal(a.q[3], -127);
}

static void activations_that_are_not_finite_give_nan(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    rng_state = 3;
    for (uint32_t i = 0; block_format_at(i) != NULL; i++) {
        const struct block_format *format = block_format_at(i);
        struct matrix m = matrix_new(format, 5, 512);
        struct acts x = acts_new(format->act, 4, 512);
        for (unsigned b = 0; b < 3; b++) {
            memcpy(x.values + 512 + 300, &bad[b], sizeof(float)); /* token 1 */
            const struct matmul_kernels *kernels;
            for (unsigned v = 0; (kernels = matmul_variant_at(v)) != NULL; v++) {
                act_quantize(kernels, format->act, x.values + 512, x.data + x.stride, 512);
                float *out = product(kernels, &m, &x);
                for (unsigned j = 0; j < 4 * 5; j++) {
                    assert_true(isfinite(out[j]) == (j / 5 != 1));
                }
                free(out);
            }
        }
        free(m.allocation);
        acts_free(&x);
    }
}

static void activations_quantize_piecewise(void **state)
{
    (void)state;
    rng_state = 4;
    float x[1024];
    for (unsigned i = 0; i < 1024; i++) {
        x[i] = rng_float();
    }
    for (int type = 0; type < ACT_N_TYPES; type++) {
        uint32_t unit = act_block_values((enum act_type)type);
        size_t size = act_row_bytes((enum act_type)type, 1024);
        assert_int_equal(size % 4, 0);
        const struct matmul_kernels *kernels;
        for (unsigned v = 0; (kernels = matmul_variant_at(v)) != NULL; v++) {
            uint8_t *whole = allocate(size);
            uint8_t *pieces = allocate(size);
            act_quantize(kernels, (enum act_type)type, x, whole, 1024);
            for (unsigned i = 0; i < 1024; i += unit) {
                act_quantize(kernels, (enum act_type)type, x + i,
                             pieces + act_row_bytes((enum act_type)type, i), unit);
            }
            assert_memory_equal(whole, pieces, size);
            free(whole);
            free(pieces);
        }
    }
}

static const struct block_format *counted_format;
static size_t n_dequantized;

static void count_dequantized(const void *blocks, float *out, size_t n)
{
    n_dequantized += n;
    counted_format->dequantize(blocks, out, n);
}

static void check_dequantized_once(const struct block_format *format, enum act_type act)
{
    if (act == format->act) { /* rounded activations; or a value is a block, and nothing is copied */
        return;
    }
    struct block_format counting = *format;
    counting.dequantize = count_dequantized;
    counted_format = format;
    struct matrix m = matrix_new(format, 21, random_cols(format, act, 2600));
    struct acts x = acts_new(act, 150, m.w.n_cols);
    m.w.format = &counting;
    const struct matmul_kernels *kernels;
    for (unsigned v = 0; (kernels = matmul_variant_at(v)) != NULL; v++) {
        n_dequantized = 0;
        free(product(kernels, &m, &x));
        assert_int_equal(n_dequantized, m.w.n_rows * m.w.n_cols);
    }
    free(m.allocation);
    acts_free(&x);
}

static void f32_activations_dequantize_a_row_once_for_all_tokens(void **state)
{
    (void)state;
    for_each_case(check_dequantized_once);
}

static void every_available_level_has_kernels(void **state)
{
    (void)state;
    for (int level = 0; level < CPU_N_LEVELS; level++) {
        if (cpu_level_available((enum cpu_level)level)) {
            assert_non_null(matmul_kernels_get((enum cpu_level)level));
            assert_int_equal(matmul_kernels_get((enum cpu_level)level)->level, level);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_available_level_has_kernels),
        cmocka_unit_test(products_match_double_precision),
        cmocka_unit_test(quantized_products_have_the_same_bits_at_every_level),
        cmocka_unit_test(variants_of_a_level_have_the_same_bits),
        cmocka_unit_test(outputs_do_not_depend_on_rows_or_tokens_beside_them),
        cmocka_unit_test(long_rows_are_summed_whole),
        cmocka_unit_test(extreme_values_do_not_saturate),
        cmocka_unit_test(bad_scales_stay_in_their_row),
        cmocka_unit_test(activations_have_the_same_bits_at_every_level),
        cmocka_unit_test(q8_0_activations_round_to_even_by_an_f16_scale),
        cmocka_unit_test(q8_k_activations_have_the_sign_of_the_largest),
        cmocka_unit_test(activations_that_are_not_finite_give_nan),
        cmocka_unit_test(activations_quantize_piecewise),
        cmocka_unit_test(f32_activations_dequantize_a_row_once_for_all_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
