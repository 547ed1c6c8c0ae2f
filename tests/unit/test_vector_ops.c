/* vector_ops, top_k and RoPE: every level against double-precision references, and against itself for
 * invariance. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/vector_ops.h"

enum { MAX_N = 300, GUARD = 4 };
static const float CANARY = 12345.0f;
static const size_t LENGTHS[] = {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 200, 257};
enum { N_LENGTHS = sizeof(LENGTHS) / sizeof(LENGTHS[0]) };

static uint32_t random_state = 1;

static uint32_t random_u32(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

static float random_float(float low, float high)
{
    return low + (high - low) * (float)(random_u32() >> 8) * 0x1p-24f;
}

static void fill(float *x, size_t n, float low, float high)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = random_float(low, high);
    }
}

static float from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

static uint32_t to_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    return bits;
}

static void assert_near(double got, double expected, double tolerance)
{
    if (!(fabs(got - expected) <= tolerance)) {
        fail_msg("got %.9g, expected %.9g, tolerance %.3g", got, expected, tolerance);
    }
}

static void assert_same_bits(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (to_bits(a[i]) != to_bits(b[i])) {
            fail_msg("[%zu]: %.9g and %.9g differ in bits", i, (double)a[i], (double)b[i]);
        }
    }
}

/* Runs check for each level that this CPU has, and for each length. */
static void at_each_level(void (*check)(const struct vector_ops *ops, size_t n))
{
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (!cpu_level_available(level)) {
            print_message("no %s here: skipped\n", cpu_level_name(level));
            continue;
        }
        const struct vector_ops *ops = vector_ops_get(level);
        assert_int_equal(ops->level, level);
        for (size_t i = 0; i < N_LENGTHS; i++) {
            check(ops, LENGTHS[i]);
        }
    }
}

static void check_rms_norm(const struct vector_ops *ops, size_t n)
{
    float x[MAX_N] = {0};
    float weight[MAX_N] = {0};
    float out[MAX_N] = {0};
    float plain[MAX_N] = {0};
    fill(x, n, -3.0f, 3.0f);
    fill(weight, n, 0.5f, 2.0f);
    ops->rms_norm(out, x, weight, n, 1e-5f);
    ops->rms_norm(plain, x, NULL, n, 1e-5f);
    double squares = 0.0;
    for (size_t i = 0; i < n; i++) {
        squares += (double)x[i] * (double)x[i];
    }
    double inverse = 1.0 / sqrt(squares / (double)n + (double)1e-5f);
    for (size_t i = 0; i < n; i++) {
        double expected = (double)x[i] * inverse;
        assert_near((double)plain[i], expected, fabs(expected) * 3e-7);
        assert_near((double)out[i], expected * (double)weight[i], fabs(expected * (double)weight[i]) * 4e-7);
    }
    ops->rms_norm(x, x, weight, n, 1e-5f);
    assert_same_bits(x, out, n);
}

static void rms_norm_matches_double_precision(void **state)
{
    (void)state;
    at_each_level(check_rms_norm);
}

static void rms_norm_of_a_long_row_keeps_its_precision(void **state)
{
    (void)state;
    enum { N = 16384 };
    float *x = malloc(2 * N * sizeof(float));
    assert_non_null(x);
    double squares = 0.0;
    for (size_t i = 0; i < N; i++) {
        x[i] = i == 0 ? 1000.0f : random_float(-0.1f, 0.1f);
        squares += (double)x[i] * (double)x[i];
    }
    double expected = 1000.0 / sqrt(squares / N + (double)1e-6f);
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (cpu_level_available(level)) {
            vector_ops_get(level)->rms_norm(x + N, x, NULL, N, 1e-6f);
            assert_near((double)x[N], expected, expected * 3e-7);
        }
    }
    free(x);
}

static void check_swiglu(const struct vector_ops *ops, size_t n)
{
    float gate[MAX_N] = {0};
    float up[MAX_N] = {0};
    float out[MAX_N] = {0};
    fill(gate, n, -30.0f, 30.0f);
    fill(up, n, -2.0f, 2.0f);
    ops->swiglu(out, gate, up, n);
    for (size_t i = 0; i < n; i++) {
        double g = (double)gate[i];
        double expected = g / (1.0 + exp(-g)) * (double)up[i];
        assert_near((double)out[i], expected, fabs(expected) * 5e-7);
    }
    ops->swiglu(gate, gate, up, n);
    assert_same_bits(gate, out, n);
}

static void check_swiglu_clamp(const struct vector_ops *ops, size_t n)
{
    const float limit = 1.5f;
    float gate[MAX_N] = {0};
    float up[MAX_N] = {0};
    float out[MAX_N] = {0};
    fill(gate, n, -30.0f, 5.0f);
    fill(up, n, -3.0f, 3.0f);
    ops->swiglu_clamp(out, gate, up, limit, n);
    for (size_t i = 0; i < n; i++) {
        double g = fmin((double)gate[i], (double)limit);
        double u = fmax(fmin((double)up[i], (double)limit), -(double)limit);
        double expected = g / (1.0 + exp(-g)) * u;
        assert_near((double)out[i], expected, fabs(expected) * 5e-7);
    }
    ops->swiglu_clamp(gate, gate, up, limit, n);
    assert_same_bits(gate, out, n);
}

static void clamped_swiglu_matches_double_precision(void **state)
{
    (void)state;
    at_each_level(check_swiglu_clamp);
}

static void swiglu_matches_double_precision(void **state)
{
    (void)state;
    at_each_level(check_swiglu);
}

static double clamped(double x, double limit)
{
    return x < -limit ? -limit : x > limit ? limit : x;
}

static double swish(double x, double k)
{
    return x / (1.0 + exp(-k * x));
}

/* The other activations, each against its definition. */
static void check_activations(const struct vector_ops *ops, size_t n)
{
    float gate[MAX_N] = {0};
    float up[MAX_N] = {0};
    float out[5][MAX_N] = {{0}};
    fill(gate, n, -20.0f, 20.0f);
    fill(up, n, -12.0f, 12.0f);
    ops->swiglu_limit(out[0], gate, up, 3.5f, n);
    ops->swiglu_oai(out[1], gate, up, 1.702f, 7.0f, n);
    ops->geglu(out[2], gate, up, n);
    ops->relu_squared(out[3], gate, n);
    ops->sigmoid(out[4], gate, n);
    for (size_t i = 0; i < n; i++) {
        double g = (double)gate[i];
        double u = (double)up[i];
        double inner = sqrt(2.0 / 3.14159265358979323846) * (g + 0.044715 * g * g * g);
        const double expected[5] = {
            fmin(swish(g, 1.0), 3.5) * clamped(u, 3.5),
            swish(fmin(g, 7.0), 1.702f) * (clamped(u, 7.0) + 1.0),
            0.5 * g * (1.0 + tanh(inner)) * u,
            g > 0.0 ? g * g : 0.0,
            1.0 / (1.0 + exp(-g)),
        };
        for (size_t k = 0; k < 5; k++) {
            /* Where 1 + tanh cancels, the double's own error is the larger one. */
            assert_near((double)out[k][i], expected[k], fabs(expected[k]) * 2e-6 + 1e-13);
        }
    }
    ops->geglu(gate, gate, up, n);
    assert_same_bits(gate, out[2], n);
}

static void activations_match_their_definitions(void **state)
{
    (void)state;
    at_each_level(check_activations);
}

static void check_layer_norm(const struct vector_ops *ops, size_t n)
{
    float x[MAX_N] = {0};
    float weight[MAX_N] = {0};
    float bias[MAX_N] = {0};
    float out[MAX_N] = {0};
    fill(x, n, 2.0f, 5.0f);
    fill(weight, n, -2.0f, 2.0f);
    fill(bias, n, -1.0f, 1.0f);
    ops->layer_norm(out, x, weight, bias, n, 1e-5f);
    double mean = 0.0;
    double squares = 0.0;
    for (size_t i = 0; i < n; i++) {
        mean += (double)x[i] / (double)n;
    }
    for (size_t i = 0; i < n; i++) {
        squares += ((double)x[i] - mean) * ((double)x[i] - mean);
    }
    double inverse = 1.0 / sqrt(squares / (double)n + (double)1e-5f);
    for (size_t i = 0; i < n; i++) {
        double expected = ((double)x[i] - mean) * inverse * (double)weight[i] + (double)bias[i];
        assert_near((double)out[i], expected, 2e-4); /* of one value: what rounding the mean leaves of it */
    }
    ops->layer_norm(x, x, weight, bias, n, 1e-5f);
    assert_same_bits(x, out, n);
}

static void layer_norm_matches_double_precision(void **state)
{
    (void)state;
    at_each_level(check_layer_norm);
}

static void swiglu_of_large_gates_saturates(void **state)
{
    (void)state;
    const float gate[4] = {-1000.0f, 1000.0f, 0.0f, FLT_MAX};
    const float up[4] = {3.0f, 3.0f, 3.0f, 0.5f};
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (cpu_level_available(level)) {
            float out[4];
            vector_ops_get(level)->swiglu(out, gate, up, 4);
            assert_true(out[0] == 0.0f);
            assert_true(out[1] == 3000.0f);
            assert_true(out[2] == 0.0f);
            assert_true(out[3] == FLT_MAX / 2);
        }
    }
}

/* silu, softplus and exp, alone and in place, of short and of long vectors to the same bits. */
static void check_exponentials(const struct vector_ops *ops, size_t n)
{
    float x[MAX_N] = {0};
    float silu[MAX_N] = {0};
    float softplus[MAX_N] = {0};
    float exponential[MAX_N] = {0};
    fill(x, n, -30.0f, 30.0f);
    silu[n] = softplus[n] = exponential[n] = CANARY;
    ops->silu(silu, x, n);
    ops->softplus(softplus, x, n);
    ops->exp(exponential, x, n);
    for (size_t i = 0; i < n; i++) {
        double v = (double)x[i];
        double expected = v / (1.0 + exp(-v));
        assert_near((double)silu[i], expected, fabs(expected) * 5e-7);
        expected = fmax(v, 0.0) + log1p(exp(-fabs(v)));
        assert_near((double)softplus[i], expected, expected * 3e-7);
        assert_near((double)exponential[i], exp(v), exp(v) * 3e-7);
        float one[3] = {x[i], x[i], x[i]};
        ops->silu(one, one, 1);
        ops->softplus(one + 1, one + 1, 1);
        ops->exp(one + 2, one + 2, 1);
        const float together[3] = {silu[i], softplus[i], exponential[i]};
        assert_same_bits(one, together, 3);
    }
    assert_true(silu[n] == CANARY && softplus[n] == CANARY && exponential[n] == CANARY);
}

static void silu_softplus_and_exp_match_double_precision(void **state)
{
    (void)state;
    at_each_level(check_exponentials);
}

static void exponentials_of_extremes_saturate(void **state)
{
    (void)state;
    const float x[5] = {-1000.0f, 1000.0f, 0.0f, FLT_MAX, NAN};
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (cpu_level_available(level)) {
            float out[5];
            vector_ops_get(level)->softplus(out, x, 5);
            assert_true(out[0] == 0.0f && out[1] == 1000.0f && out[3] == FLT_MAX && isnan(out[4]));
            assert_near((double)out[2], log(2.0), 1e-7);
            vector_ops_get(level)->exp(out, x, 5);
            assert_true(out[0] == 0.0f && out[1] == INFINITY && out[2] == 1.0f && isnan(out[4]));
            vector_ops_get(level)->silu(out, x, 5);
            assert_true(out[0] == 0.0f && out[1] == 1000.0f && out[2] == 0.0f && isnan(out[4]));
        }
    }
}

static void check_softmax(const struct vector_ops *ops, size_t n)
{
    float x[MAX_N] = {0};
    float out[MAX_N] = {0};
    fill(x, n, -20.0f, 20.0f);
    if (n > 2) {
        x[n / 2] = -INFINITY;
        x[n - 1] = -500.0f;
    }
    ops->softmax(out, x, n);
    double max = -INFINITY;
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        max = fmax(max, (double)x[i]);
    }
    for (size_t i = 0; i < n; i++) {
        sum += exp((double)x[i] - max);
    }
    for (size_t i = 0; i < n; i++) {
        /* x - max is rounded before the exponential: an error that grows with the difference. */
        double difference = (double)x[i] - max;
        double expected = exp(difference) / sum;
        assert_near((double)out[i], expected, expected * (4e-7 + fmin(-difference, 100.0) * 6e-8) + 1e-45);
    }
    if (n > 2) {
        assert_true(out[n / 2] == 0.0f);
    }
    ops->softmax(x, x, n);
    assert_same_bits(x, out, n);
}

static void softmax_matches_double_precision(void **state)
{
    (void)state;
    at_each_level(check_softmax);
}

static void check_softmax_extremes(const struct vector_ops *ops, size_t n)
{
    float x[MAX_N] = {0};
    for (size_t i = 0; i < n; i++) {
        x[i] = -INFINITY;
    }
    ops->softmax(x, x, n);
    for (size_t i = 0; i < n; i++) {
        assert_true(x[i] == 0.0f);
    }
    if (n == 0) {
        return;
    }
    for (size_t i = 0; i < n; i++) {
        x[i] = -FLT_MAX;
    }
    x[n - 1] = FLT_MAX;
    ops->softmax(x, x, n);
    for (size_t i = 0; i < n; i++) {
        assert_true(x[i] == (i == n - 1 ? 1.0f : 0.0f));
    }
    fill(x, n, -1.0f, 1.0f);
    x[n / 2] = NAN;
    ops->softmax(x, x, n);
    for (size_t i = 0; i < n; i++) {
        assert_true(isnan(x[i]));
    }
}

static void softmax_survives_infinities_and_nan(void **state)
{
    (void)state;
    at_each_level(check_softmax_extremes);
}

/* A softmax over {0, v} is 1 / (1 + e^v) in its first element for v < 0, and e^v / (1 + e^v) in its second,
 * which for v below -20 or so is e^v to within 1e-9: this shows the vector exponential down to the
 * subnormals. */
static void vector_exp_is_right_down_to_subnormals(void **state)
{
    (void)state;
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (!cpu_level_available(level)) {
            continue;
        }
        for (float v = -20.0f; v > -110.0f; v -= 0.0137f) {
            float x[2] = {0.0f, v};
            vector_ops_get(level)->softmax(x, x, 2);
            double expected = exp((double)v) / (1.0 + exp((double)v));
            assert_near((double)x[1], expected, expected * 1.5e-7 + 0x1p-149);
        }
    }
}

static void check_elementwise(const struct vector_ops *ops, size_t n)
{
    float a[MAX_N] = {0};
    float b[MAX_N] = {0};
    float out[MAX_N] = {0};
    fill(a, n, -1.0f, 1.0f);
    fill(b, n, -1.0f, 1.0f);
    ops->add(out, a, b, n);
    for (size_t i = 0; i < n; i++) {
        assert_true(out[i] == a[i] + b[i]);
    }
    ops->scale(out, a, 0.3f, n);
    for (size_t i = 0; i < n; i++) {
        assert_true(out[i] == 0.3f * a[i]);
    }
    memcpy(out, b, sizeof(out));
    ops->axpy(out, a, 0.3f, n);
    for (size_t i = 0; i < n; i++) {
        assert_true(out[i] == fmaf(0.3f, a[i], b[i]));
    }
    memcpy(out, b, sizeof(out));
    ops->axpy_relu(out, a, 0.3f, n);
    for (size_t i = 0; i < n; i++) {
        assert_true(out[i] == fmaf(0.3f, fmaxf(a[i], 0.0f), b[i]));
    }
}

static void add_scale_and_axpy_round_once(void **state)
{
    (void)state;
    at_each_level(check_elementwise);
}

static void check_dot(const struct vector_ops *ops, size_t n)
{
    float a[MAX_N] = {0};
    float b[MAX_N] = {0};
    fill(a, n, -1.0f, 1.0f);
    fill(b, n, -1.0f, 1.0f);
    double expected = 0.0;
    double magnitude = 0.0;
    for (size_t i = 0; i < n; i++) {
        expected += (double)a[i] * (double)b[i];
        magnitude += fabs((double)a[i] * (double)b[i]);
    }
    assert_near((double)ops->dot(a, b, n), expected, magnitude * 4e-7);
}

static void dot_matches_double_precision(void **state)
{
    (void)state;
    at_each_level(check_dot);
}

/* Runs every operation on x[0..n) at one offset in memory; results one after the other in out[OPERATIONS][MAX_N]. */
enum { OPERATIONS = 12 };

static void run_all(const struct vector_ops *ops, const float *x, const float *y, size_t n, float *out)
{
    float *r[OPERATIONS];
    for (size_t i = 0; i < OPERATIONS; i++) {
        r[i] = out + i * MAX_N;
    }
    ops->swiglu(r[0], x, y, n);
    ops->add(r[1], x, y, n);
    ops->scale(r[2], x, 1.7f, n);
    memcpy(r[3], y, n * sizeof(float));
    ops->axpy(r[3], x, -0.7f, n);
    uint16_t half[MAX_N] = {0};
    ops->f32_to_f16(half, x, n);
    ops->f16_to_f32(r[4], half, n);
    memcpy(r[5], x, n * sizeof(float));
    float angle[MAX_N] = {0};
    fill(angle, n, 0.25f, 0.25f);
    ops->rope(r[5], angle, angle, n / 2 * 2, false);
    ops->swiglu_limit(r[6], x, y, 0.5f, n);
    ops->swiglu_oai(r[7], x, y, 1.702f, 0.5f, n);
    ops->geglu(r[8], x, y, n);
    ops->relu_squared(r[9], x, n);
    ops->sigmoid(r[10], x, n);
    ops->mul(r[11], x, y, n);
}

static void check_position_independence(const struct vector_ops *ops, size_t n)
{
    static float whole[OPERATIONS * MAX_N];
    static float part[OPERATIONS * MAX_N];
    float x[MAX_N] = {0};
    float y[MAX_N] = {0};
    fill(x, n, -4.0f, 4.0f);
    fill(y, n, -4.0f, 4.0f);
    run_all(ops, x, y, n, whole);
    for (size_t begin = 0; begin < n; begin += 2) {
        size_t length = n - begin < 6 ? n - begin : 6;
        run_all(ops, x + begin, y + begin, length, part);
        for (size_t op = 0; op < OPERATIONS; op++) {
            size_t compared = op == 5 ? length / 2 * 2 : length;
            assert_same_bits(whole + op * MAX_N + begin, part + op * MAX_N, compared);
        }
    }
}

static void element_results_do_not_depend_on_position_or_length(void **state)
{
    (void)state;
    at_each_level(check_position_independence);
}

static void check_reductions_at_offsets(const struct vector_ops *ops, size_t n)
{
    float x[MAX_N] = {0};
    float shifted[MAX_N] = {0};
    float out[MAX_N] = {0};
    float out_shifted[MAX_N] = {0};
    fill(x, n, -4.0f, 4.0f);
    for (size_t offset = 1; offset < 16; offset += 3) {
        memcpy(shifted + offset, x, n * sizeof(float));
        ops->rms_norm(out, x, NULL, n, 1e-6f);
        ops->rms_norm(out_shifted + offset, shifted + offset, NULL, n, 1e-6f);
        assert_same_bits(out, out_shifted + offset, n);
        ops->softmax(out, x, n);
        ops->softmax(out_shifted + offset, shifted + offset, n);
        assert_same_bits(out, out_shifted + offset, n);
        float a = ops->dot(x, x, n);
        float b = ops->dot(shifted + offset, shifted + offset, n);
        assert_same_bits(&a, &b, 1);
    }
}

static void reductions_do_not_depend_on_alignment(void **state)
{
    (void)state;
    at_each_level(check_reductions_at_offsets);
}

static void check_bounds(const struct vector_ops *ops, size_t n)
{
    float a[MAX_N] = {0};
    float out[MAX_N] = {0};
    uint16_t half[MAX_N] = {0};
    fill(a, MAX_N, -1.0f, 1.0f);
    for (size_t op = 0; op < 15; op++) {
        fill(out, MAX_N, 0.0f, 1.0f);
        for (size_t i = n; i < n + GUARD; i++) {
            out[i] = CANARY;
            half[i] = 0xabcd;
        }
        switch (op) {
        case 0:
            ops->rms_norm(out, a, a, n, 1e-6f);
            break;
        case 1:
            ops->swiglu(out, a, a, n);
            break;
        case 2:
            ops->softmax(out, a, n);
            break;
        case 3:
            ops->add(out, a, a, n);
            break;
        case 4:
            ops->axpy(out, a, 2.0f, n);
            break;
        case 5:
            ops->rope(out, a, a, n / 2 * 2, false);
            break;
        case 6:
            ops->rope(out, a, a, n / 2 * 2, true);
            break;
        case 7:
            ops->swiglu_limit(out, a, a, 0.5f, n);
            break;
        case 8:
            ops->swiglu_oai(out, a, a, 1.702f, 0.5f, n);
            break;
        case 9:
            ops->geglu(out, a, a, n);
            break;
        case 10:
            ops->relu_squared(out, a, n);
            break;
        case 11:
            ops->sigmoid(out, a, n);
            break;
        case 12:
            ops->mul(out, a, a, n);
            break;
        case 13:
            ops->layer_norm(out, a, a, a, n, 1e-6f);
            break;
        default:
            ops->f32_to_f16(half, a, n);
            ops->f16_to_f32(out, half, n);
            break;
        }
        for (size_t i = n; i < n + GUARD; i++) {
            assert_true(out[i] == CANARY);
            assert_int_equal(half[i], 0xabcd);
        }
    }
}

static void nothing_is_written_past_the_end(void **state)
{
    (void)state;
    at_each_level(check_bounds);
}

static void check_strange_values(const struct vector_ops *ops, size_t n)
{
    const float strange[] = {NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, FLT_MIN / 8, -0.0f};
    float x[MAX_N] = {0};
    float out[MAX_N] = {0};
    uint16_t half[MAX_N] = {0};
    for (size_t i = 0; i < n; i++) {
        x[i] = strange[i % 7];
    }
    ops->rms_norm(out, x, x, n, 1e-6f);
    ops->softmax(out, x, n);
    ops->f32_to_f16(half, x, n);
    ops->swiglu(out, x, x, n);
    for (size_t i = 0; i < n; i += 7) {
        assert_true(isnan(out[i]));
    }
    (void)ops->dot(x, x, n);
}

static void nan_and_infinity_do_not_crash_and_nan_stays_nan(void **state)
{
    (void)state;
    at_each_level(check_strange_values);
}

static void check_all_f16(const struct vector_ops *ops)
{
    for (uint32_t h = 0; h <= 0xffff; h++) {
        uint16_t half = (uint16_t)h;
        uint32_t exponent = h >> 10 & 31;
        double mantissa = (double)(h & 1023);
        float value;
        ops->f16_to_f32(&value, &half, 1);
        if (exponent == 31 && mantissa != 0.0) {
            assert_true(isnan(value));
        } else {
            double magnitude = exponent == 31  ? INFINITY
                               : exponent == 0 ? ldexp(mantissa, -24)
                                               : ldexp(1024.0 + mantissa, (int)exponent - 25);
            assert_true((double)value == (h & 0x8000 ? -magnitude : magnitude));
            uint16_t back;
            ops->f32_to_f16(&back, &value, 1);
            assert_int_equal(back, half);
        }
    }
}

/* Between each two neighbours of F16: the middle, and one step of F32 to either side of it. */
static void check_f16_rounding(const struct vector_ops *ops)
{
    for (uint16_t h = 0; h < 0x7bff; h++) {
        uint16_t pair[2] = {h, (uint16_t)(h + 1)};
        float ends[2];
        ops->f16_to_f32(ends, pair, 2);
        float middle = (ends[0] + ends[1]) / 2;
        float x[6] = {nextafterf(middle, 0.0f), middle, nextafterf(middle, INFINITY)};
        for (size_t i = 0; i < 3; i++) {
            x[3 + i] = -x[i];
        }
        uint16_t out[6];
        ops->f32_to_f16(out, x, 6);
        uint16_t even = h & 1 ? pair[1] : pair[0];
        const uint16_t expected[3] = {pair[0], even, pair[1]};
        for (size_t i = 0; i < 3; i++) {
            assert_int_equal(out[i], expected[i]);
            assert_int_equal(out[3 + i], expected[i] | 0x8000);
        }
    }
    const float large[4] = {65519.99f, 65520.0f, 1e30f, -INFINITY};
    uint16_t out[4];
    ops->f32_to_f16(out, large, 4);
    assert_int_equal(out[0], 0x7bff);
    assert_int_equal(out[1], 0x7c00);
    assert_int_equal(out[2], 0x7c00);
    assert_int_equal(out[3], 0xfc00);
}

static void f16_conversion_is_exact_and_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (cpu_level_available(level)) {
            check_all_f16(vector_ops_get(level));
            check_f16_rounding(vector_ops_get(level));
        }
    }
}

static void f16_conversion_agrees_between_levels_to_the_bit(void **state)
{
    (void)state;
    const struct vector_ops *scalar = vector_ops_get(CPU_SCALAR);
    for (enum cpu_level level = CPU_AVX2; level < CPU_N_LEVELS; level++) {
        if (!cpu_level_available(level)) {
            continue;
        }
        for (size_t i = 0; i < 200000; i++) {
            float x = from_bits(random_u32());
            uint16_t a;
            uint16_t b;
            scalar->f32_to_f16(&a, &x, 1);
            vector_ops_get(level)->f32_to_f16(&b, &x, 1);
            assert_int_equal(a, b);
        }
        for (uint32_t h = 0; h <= 0xffff; h++) {
            uint16_t half = (uint16_t)h;
            float a;
            float b;
            scalar->f16_to_f32(&a, &half, 1);
            vector_ops_get(level)->f16_to_f32(&b, &half, 1);
            assert_int_equal(to_bits(a), to_bits(b));
        }
    }
}

static void check_rope(const struct vector_ops *ops, size_t n)
{
    size_t half = n / 2;
    float c[MAX_N] = {0};
    float s[MAX_N] = {0};
    float x[MAX_N] = {0};
    float out[MAX_N] = {0};
    for (size_t i = 0; i < half; i++) {
        float angle = random_float(-10.0f, 10.0f);
        c[i] = cosf(angle);
        s[i] = sinf(angle);
    }
    fill(x, MAX_N, -2.0f, 2.0f);
    for (int neox = 0; neox < 2; neox++) {
        memcpy(out, x, sizeof(out));
        ops->rope(out, c, s, 2 * half, neox != 0);
        for (size_t i = 0; i < half; i++) {
            size_t first = neox ? i : 2 * i;
            size_t second = neox ? i + half : 2 * i + 1;
            double a = (double)x[first];
            double b = (double)x[second];
            assert_near((double)out[first], a * (double)c[i] - b * (double)s[i], 4e-7);
            assert_near((double)out[second], a * (double)s[i] + b * (double)c[i], 4e-7);
        }
        assert_same_bits(out + 2 * half, x + 2 * half, MAX_N - 2 * half);
    }
}

static void rope_rotates_pairs_and_leaves_the_rest(void **state)
{
    (void)state;
    at_each_level(check_rope);
}

/* RoPE angles from the definition, in double precision: freq_base^(-2i/n_rot), and YaRN as in its paper. */
static void reference_cos_sin(const struct rope_params *p, int32_t position, uint32_t i, double *c, double *s)
{
    double base = (double)p->freq_base;
    double n_rot = (double)p->n_rot;
    double extrapolated = (double)position * pow(base, -2.0 * (double)i / n_rot);
    if (p->freq_factors != NULL) {
        extrapolated /= (double)p->freq_factors[i];
    }
    double angle = extrapolated * (double)p->freq_scale;
    double magnitude = (double)p->attn_factor;
    if (p->ext_factor != 0.0f) {
        double turns[2] = {(double)p->beta_fast, (double)p->beta_slow};
        double at[2];
        for (int k = 0; k < 2; k++) {
            at[k] = n_rot * log((double)p->n_ctx_orig / (turns[k] * 2.0 * acos(-1.0))) / (2.0 * log(base));
        }
        double low = fmax(floor(at[0]), 0.0);
        double high = fmin(ceil(at[1]), n_rot - 1.0);
        double keep = 1.0 - fmin(fmax(((double)i - low) / fmax(high - low, 0.001), 0.0), 1.0);
        keep *= (double)p->ext_factor;
        angle = angle * (1.0 - keep) + extrapolated * keep;
        magnitude *= 1.0 - 0.1 * log((double)p->freq_scale);
    }
    *c = cos(angle) * magnitude;
    *s = sin(angle) * magnitude;
}

static void check_angles(const struct rope_params *p)
{
    const int32_t positions[] = {0, 1, 2, 17, 100, 1000, 5000, 40000};
    float c[64];
    float s[64];
    for (size_t k = 0; k < sizeof(positions) / sizeof(positions[0]); k++) {
        rope_cos_sin(p, positions[k], c, s);
        for (uint32_t i = 0; i < p->n_rot / 2; i++) {
            double expected_cos;
            double expected_sin;
            reference_cos_sin(p, positions[k], i, &expected_cos, &expected_sin);
            /* Each F32 multiplication may move the angle by half a unit in its last place. */
            double tolerance = 3e-7 + (double)positions[k] * (2.0 + (double)i) * 0x1p-24;
            assert_near((double)c[i], expected_cos, tolerance);
            assert_near((double)s[i], expected_sin, tolerance);
        }
    }
}

static void rope_angles_match_the_definition(void **state)
{
    (void)state;
    struct rope_params p = {.n_rot = 128, .freq_base = 1e6f, .freq_scale = 1.0f, .attn_factor = 1.0f};
    check_angles(&p);
    p.freq_scale = 0.25f;
    check_angles(&p);
    p.n_rot = 64;
    p.freq_base = 10000.0f;
    p.attn_factor = 1.2f;
    float factors[32];
    fill(factors, 32, 1.0f, 8.0f);
    p.freq_factors = factors;
    check_angles(&p);
}

static void rope_angles_with_yarn_match_the_paper(void **state)
{
    (void)state;
    struct rope_params p = {.n_rot = 64,
                            .freq_base = 150000.0f,
                            .freq_scale = 1.0f / 32.0f,
                            .ext_factor = 1.0f,
                            .attn_factor = 1.0f,
                            .beta_fast = 32.0f,
                            .beta_slow = 1.0f,
                            .n_ctx_orig = 4096};
    check_angles(&p);
    p.ext_factor = 0.5f;
    check_angles(&p);
    p.ext_factor = 1.0f;
    p.n_ctx_orig = 4; /* both corrections outside the range of pairs */
    check_angles(&p);
}

static const float *sort_scores;

static int by_rank(const void *pa, const void *pb)
{
    uint32_t a = *(const uint32_t *)pa;
    uint32_t b = *(const uint32_t *)pb;
    float x = isnan(sort_scores[a]) ? -INFINITY : sort_scores[a];
    float y = isnan(sort_scores[b]) ? -INFINITY : sort_scores[b];
    if (x != y) {
        return x > y ? -1 : 1;
    }
    int nan_order = (isnan(sort_scores[a]) != 0) - (isnan(sort_scores[b]) != 0);
    return nan_order != 0 ? nan_order : a < b ? -1 : a > b;
}

static void check_top_k(const float *scores, uint32_t count)
{
    uint32_t sorted[200];
    uint32_t ids[200];
    for (uint32_t i = 0; i < count; i++) {
        sorted[i] = i;
    }
    sort_scores = scores;
    qsort(sorted, count, sizeof(sorted[0]), by_rank);
    for (uint32_t n = 0; n <= count; n++) {
        top_k(ids, n, scores, count);
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(ids[i], sorted[i]);
        }
    }
}

static void top_k_agrees_with_a_full_sort(void **state)
{
    (void)state;
    float scores[200] = {0};
    const float special[] = {NAN, -INFINITY, INFINITY, 0.0f, -0.0f};
    for (uint32_t count = 0; count <= 130; count += count < 20 ? 1 : 37) {
        fill(scores, count, -1.0f, 1.0f);
        check_top_k(scores, count);
        for (uint32_t i = 0; i < count; i++) {
            scores[i] = random_u32() % 3 ? (float)(random_u32() % 4) : special[random_u32() % 5];
        }
        check_top_k(scores, count);
    }
}

static void top_k_prefers_the_lower_index_and_puts_nan_last(void **state)
{
    (void)state;
    const float scores[6] = {NAN, 1.0f, 2.0f, -INFINITY, 2.0f, NAN};
    const uint32_t expected[6] = {2, 4, 1, 3, 0, 5};
    uint32_t ids[6];
    top_k(ids, 6, scores, 6);
    assert_memory_equal(ids, expected, sizeof(expected));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rms_norm_matches_double_precision),
        cmocka_unit_test(rms_norm_of_a_long_row_keeps_its_precision),
        cmocka_unit_test(swiglu_matches_double_precision),
        cmocka_unit_test(clamped_swiglu_matches_double_precision),
        cmocka_unit_test(activations_match_their_definitions),
        cmocka_unit_test(layer_norm_matches_double_precision),
        cmocka_unit_test(swiglu_of_large_gates_saturates),
        cmocka_unit_test(silu_softplus_and_exp_match_double_precision),
        cmocka_unit_test(exponentials_of_extremes_saturate),
        cmocka_unit_test(softmax_matches_double_precision),
        cmocka_unit_test(softmax_survives_infinities_and_nan),
        cmocka_unit_test(vector_exp_is_right_down_to_subnormals),
        cmocka_unit_test(add_scale_and_axpy_round_once),
        cmocka_unit_test(dot_matches_double_precision),
        cmocka_unit_test(element_results_do_not_depend_on_position_or_length),
        cmocka_unit_test(reductions_do_not_depend_on_alignment),
        cmocka_unit_test(nothing_is_written_past_the_end),
        cmocka_unit_test(nan_and_infinity_do_not_crash_and_nan_stays_nan),
        cmocka_unit_test(f16_conversion_is_exact_and_rounds_to_nearest_even),
        cmocka_unit_test(f16_conversion_agrees_between_levels_to_the_bit),
        cmocka_unit_test(rope_rotates_pairs_and_leaves_the_rest),
        cmocka_unit_test(rope_angles_match_the_definition),
        cmocka_unit_test(rope_angles_with_yarn_match_the_paper),
        cmocka_unit_test(top_k_agrees_with_a_full_sort),
        cmocka_unit_test(top_k_prefers_the_lower_index_and_puts_nan_last),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
