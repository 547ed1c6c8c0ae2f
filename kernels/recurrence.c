/* Recurrence in plain C, and the choice among the levels. */
#include "kernels/recurrence_levels.h"

/* sum[c] = row vector k times the decayed state. */
static void answer(const struct recurrence_args *a, const float *k, const float *decay, float *sum)
{
    for (uint32_t c = 0; c < a->n_columns; c++) {
        sum[c] = 0.0f;
    }
    for (uint32_t i = 0; i < a->n_keys; i++) {
        float weight = k[i] * decay[a->decay_by_key ? i : 0];
        for (uint32_t c = 0; c < a->n_columns; c++) {
            sum[c] += weight * a->state[(size_t)i * a->n_columns + c];
        }
    }
}

static void advance_token(const struct recurrence_args *a, uint32_t t)
{
    const float *q = a->q + t * a->q_stride;
    const float *k = a->k + t * a->k_stride;
    const float *v = a->v + t * a->v_stride;
    const float *decay = a->decay + t * a->decay_stride;
    float *out = a->out + t * a->out_stride;
    float update[RECURRENCE_COLUMNS] = {0};
    float sum[RECURRENCE_COLUMNS] = {0};
    if (a->delta) {
        answer(a, k, decay, update);
    }
    for (uint32_t c = 0; c < a->n_columns; c++) {
        update[c] = a->beta[t * a->beta_stride] * (v[c] - update[c]);
    }
    for (uint32_t i = 0; i < a->n_keys; i++) {
        float *row = a->state + (size_t)i * a->n_columns;
        float factor = decay[a->decay_by_key ? i : 0];
        for (uint32_t c = 0; c < a->n_columns; c++) {
            row[c] = row[c] * factor + k[i] * update[c];
            sum[c] += q[i] * row[c];
        }
    }
    for (uint32_t c = 0; c < a->n_columns; c++) {
        out[c] = sum[c];
    }
}

static void advance(const struct recurrence_args *a)
{
    for (uint32_t t = 0; t < a->n_tokens; t++) {
        advance_token(a, t);
    }
}

static void convolve(float *out, const float *const *rows, const float *weights, const float *bias,
                     uint32_t taps, size_t n)
{
    for (size_t c = 0; c < n; c++) {
        float sum = 0.0f;
        for (uint32_t tap = 0; tap < taps; tap++) {
            sum += weights[tap * n + c] * rows[tap][c];
        }
        out[c] = bias ? sum + bias[c] : sum;
    }
}

static const struct recurrence_kernels recurrence_scalar = {
    .level = CPU_SCALAR, .advance = advance, .convolve = convolve};

const struct recurrence_kernels *recurrence_kernels_get(enum cpu_level level)
{
#if defined(__x86_64__)
    switch (level) {
    case CPU_AVX2:
        return &recurrence_avx2;
    case CPU_AVX512:
        return &recurrence_avx512;
    default:
        break;
    }
#elif defined(__aarch64__)
    if (level == CPU_NEON) {
        return &recurrence_neon;
    }
#else
    (void)level;
#endif
    return &recurrence_scalar;
}
