/* Recurrence and convolution: every level against double precision, and against itself however calls are divided. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/recurrence.h"

enum { MAX_KEYS = 128, MAX_TOKENS = 5, STRIDE = 300, GUARD = 8 };
static const float CANARY = 12345.0f;

static uint32_t random_state = 1;

static float random_float(float low, float high)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return low + (high - low) * (float)(random_state >> 8) * 0x1p-24f;
}

static void fill(float *x, size_t n, float low, float high)
{
    for (size_t i = 0; i < n; i++)
        x[i] = random_float(low, high);
}

/* A case's memory: rows of tokens STRIDE floats apart, as in a layer's scratch. */
struct rows {
    float state[MAX_KEYS * RECURRENCE_COLUMNS + GUARD];
    float q[MAX_TOKENS * STRIDE], k[MAX_TOKENS * STRIDE], v[MAX_TOKENS * STRIDE];
    float decay[MAX_TOKENS * STRIDE], beta[MAX_TOKENS * STRIDE], out[MAX_TOKENS * STRIDE];
};

static struct rows rows, other;
static double state64[MAX_KEYS * RECURRENCE_COLUMNS];

static struct recurrence_args args_of(struct rows *r, uint32_t n_keys, uint32_t n_columns, bool delta,
                                      bool by_key)
{
    return (struct recurrence_args){.state = r->state,
                                    .n_keys = n_keys,
                                    .n_columns = n_columns,
                                    .n_tokens = MAX_TOKENS,
                                    .delta = delta,
                                    .decay_by_key = by_key,
                                    .q = r->q,
                                    .k = r->k,
                                    .v = r->v,
                                    .decay = r->decay,
                                    .beta = r->beta,
                                    .q_stride = STRIDE,
                                    .k_stride = STRIDE,
                                    .v_stride = STRIDE,
                                    .decay_stride = STRIDE,
                                    .beta_stride = STRIDE,
                                    .out = r->out,
                                    .out_stride = STRIDE};
}

static void fill_rows(struct rows *r, uint32_t n_keys, uint32_t n_columns)
{
    float size = 1.0f / sqrtf((float)n_keys);
    fill(r->state, (size_t)n_keys * n_columns, -1.0f, 1.0f);
    for (size_t i = (size_t)n_keys * n_columns; i < sizeof(r->state) / sizeof(*r->state); i++)
        r->state[i] = CANARY;
    fill(r->q, MAX_TOKENS * STRIDE, -size, size);
    fill(r->k, MAX_TOKENS * STRIDE, -size, size);
    fill(r->v, MAX_TOKENS * STRIDE, -1.0f, 1.0f);
    fill(r->decay, MAX_TOKENS * STRIDE, 0.3f, 1.0f);
    fill(r->beta, MAX_TOKENS * STRIDE, 0.0f, 1.0f);
    for (size_t i = 0; i < MAX_TOKENS * STRIDE; i++)
        r->out[i] = CANARY;
}

/* The definition, in doubles, column by column; checks out, then the state. */
static void check_values(const struct recurrence_args *before, const struct rows *got)
{
    uint32_t n = before->n_columns;
    for (size_t i = 0; i < (size_t)before->n_keys * n; i++)
        state64[i] = (double)before->state[i];
    for (uint32_t t = 0; t < MAX_TOKENS; t++) {
        const float *k = before->k + t * STRIDE;
        const float *q = before->q + t * STRIDE;
        const float *decay = before->decay + t * STRIDE;
        for (uint32_t c = 0; c < n; c++) {
            double answer = 0.0;
            double out = 0.0;
            for (uint32_t i = 0; i < before->n_keys; i++) {
                state64[i * n + c] *= (double)decay[before->decay_by_key ? i : 0];
                answer += (double)k[i] * state64[i * n + c];
            }
            double v = (double)before->v[t * STRIDE + c] - (before->delta ? answer : 0.0);
            for (uint32_t i = 0; i < before->n_keys; i++) {
                state64[i * n + c] += (double)k[i] * v * (double)before->beta[t * STRIDE];
                out += (double)q[i] * state64[i * n + c];
            }
            assert_true(fabs((double)got->out[t * STRIDE + c] - out) < 3e-6);
        }
        assert_true(got->out[t * STRIDE + n] == CANARY);
    }
    for (size_t i = 0; i < (size_t)before->n_keys * n; i++)
        assert_true(fabs((double)got->state[i] - state64[i]) < 3e-6);
    assert_true(got->state[(size_t)before->n_keys * n] == CANARY);
}

static void at_each_shape(void (*check)(const struct recurrence_kernels *, uint32_t n_keys,
                                        uint32_t n_columns, bool delta, bool by_key))
{
    static const uint32_t keys[] = {1, 2, 7, 32, 128};
    static const uint32_t columns[] = {1, 5, 8, 16, 31, 32, 48, 63, 64};
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (!cpu_level_available(level)) {
            print_message("no %s here: skipped\n", cpu_level_name(level));
            continue;
        }
        const struct recurrence_kernels *kernels = recurrence_kernels_get(level);
        assert_int_equal(kernels->level, level);
        for (size_t k = 0; k < sizeof(keys) / sizeof(*keys); k++) {
            for (size_t c = 0; c < sizeof(columns) / sizeof(*columns); c++) {
                for (unsigned kind = 0; kind < 4; kind++)
                    check(kernels, keys[k], columns[c], kind & 1, kind & 2);
            }
        }
    }
}

static void check_definition(const struct recurrence_kernels *kernels, uint32_t n_keys, uint32_t n_columns,
                             bool delta, bool by_key)
{
    fill_rows(&rows, n_keys, n_columns);
    other = rows;
    struct recurrence_args args = args_of(&rows, n_keys, n_columns, delta, by_key);
    struct recurrence_args before = args_of(&other, n_keys, n_columns, delta, by_key);
    kernels->advance(&args);
    check_values(&before, &rows);
}

static void advance_follows_its_definition(void **state)
{
    (void)state;
    at_each_shape(check_definition);
}

/* Token by token, and written over the values. */
static void check_division(const struct recurrence_kernels *kernels, uint32_t n_keys, uint32_t n_columns,
                           bool delta, bool by_key)
{
    fill_rows(&rows, n_keys, n_columns);
    other = rows;
    struct recurrence_args args = args_of(&rows, n_keys, n_columns, delta, by_key);
    kernels->advance(&args);
    args = args_of(&other, n_keys, n_columns, delta, by_key);
    args.n_tokens = 1;
    for (uint32_t t = 0; t < MAX_TOKENS; t++) {
        args.out = other.v + t * STRIDE;
        args.v = args.out;
        args.q = other.q + t * STRIDE;
        args.k = other.k + t * STRIDE;
        args.decay = other.decay + t * STRIDE;
        args.beta = other.beta + t * STRIDE;
        kernels->advance(&args);
        assert_memory_equal(args.out, rows.out + t * STRIDE, n_columns * sizeof(float));
    }
    assert_memory_equal(rows.state, other.state, sizeof(rows.state));
}

static void tokens_leave_no_trace_of_their_calls(void **state)
{
    (void)state;
    at_each_shape(check_division);
}

static void check_convolution(const struct recurrence_kernels *kernels, uint32_t taps, size_t n,
                              bool with_bias)
{
    enum { MAX_TAPS = 7, MAX_N = 80 };
    static float memory[MAX_TAPS][MAX_N], weights[MAX_TAPS * MAX_N], bias[MAX_N], out[MAX_N + 1];
    const float *input[MAX_TAPS];
    for (uint32_t tap = 0; tap < taps; tap++) {
        fill(memory[tap], MAX_N, -2.0f, 2.0f);
        input[tap] = memory[tap];
    }
    fill(weights, taps * n, -1.0f, 1.0f);
    fill(bias, n, -1.0f, 1.0f);
    out[n] = CANARY;
    kernels->convolve(out, input, weights, with_bias ? bias : NULL, taps, n);
    for (size_t c = 0; c < n; c++) {
        double sum = with_bias ? (double)bias[c] : 0.0;
        for (uint32_t tap = 0; tap < taps; tap++)
            sum += (double)weights[tap * n + c] * (double)memory[tap][c];
        assert_true(fabs((double)out[c] - sum) < 3e-6);
    }
    assert_true(out[n] == CANARY);
    float *newest = memory[taps - 1];
    kernels->convolve(newest, input, weights, with_bias ? bias : NULL, taps, n);
    assert_memory_equal(newest, out, n * sizeof(*out));
}

static void convolve_follows_its_definition(void **state)
{
    (void)state;
    static const size_t lengths[] = {1, 3, 8, 15, 16, 33, 64, 79};
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        for (uint32_t taps = 1; cpu_level_available(level) && taps <= 7; taps++) {
            for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
                check_convolution(recurrence_kernels_get(level), taps, lengths[i], false);
                check_convolution(recurrence_kernels_get(level), taps, lengths[i], true);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(advance_follows_its_definition),
        cmocka_unit_test(tokens_leave_no_trace_of_their_calls),
        cmocka_unit_test(convolve_follows_its_definition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
