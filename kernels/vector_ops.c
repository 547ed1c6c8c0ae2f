/* vector_ops in plain C, and the choice among the levels. */
#include "kernels/vector_ops.h"

#include <math.h>

#include "kernels/vector_ops_f16.h"
#include "kernels/vector_ops_levels.h"

static void rms_norm(float *out, const float *x, const float *weight, size_t n, float eps)
{
    double squares = 0.0;
    for (size_t i = 0; i < n; i++) {
        squares += (double)(x[i] * x[i]);
    }
    float inverse = 1.0f / sqrtf((float)(squares / (double)n) + eps);
    for (size_t i = 0; i < n; i++) {
        float v = x[i] * inverse;
        out[i] = weight != NULL ? v * weight[i] : v;
    }
}

static void swiglu(float *out, const float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    }
}

static void layer_norm(float *out, const float *x, const float *weight, const float *bias, size_t n,
                       float eps)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)x[i];
    }
    float mean = (float)(sum / (double)n);
    double squares = 0.0;
    for (size_t i = 0; i < n; i++) {
        float v = x[i] - mean;
        squares += (double)(v * v);
    }
    float inverse = 1.0f / sqrtf((float)(squares / (double)n) + eps);
    for (size_t i = 0; i < n; i++) {
        float v = (x[i] - mean) * inverse;
        v = weight != NULL ? v * weight[i] : v;
        out[i] = bias != NULL ? v + bias[i] : v;
    }
}

static float clamp(float x, float limit)
{
    return fminf(fmaxf(x, -limit), limit);
}

static void swiglu_limit(float *out, const float *gate, const float *up, float limit, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = fminf(gate[i] / (1.0f + expf(-gate[i])), limit) * clamp(up[i], limit);
    }
}

static void swiglu_clamp(float *out, const float *gate, const float *up, float limit, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float g = fminf(gate[i], limit);
        out[i] = g / (1.0f + expf(-g)) * clamp(up[i], limit);
    }
}

static void swiglu_oai(float *out, const float *gate, const float *up, float alpha, float limit, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float g = fminf(gate[i], limit);
        out[i] = g / (1.0f + expf(-alpha * g)) * (clamp(up[i], limit) + 1.0f);
    }
}

static void geglu(float *out, const float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float g = gate[i];
        float inner = GELU_SCALE * g * (1.0f + GELU_CUBIC * g * g);
        out[i] = g / (1.0f + expf(-inner)) * up[i];
    }
}

static void relu_squared(float *out, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float v = x[i] > 0.0f ? x[i] : 0.0f;
        out[i] = v * v;
    }
}

static void sigmoid(float *out, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = 1.0f / (1.0f + expf(-x[i]));
    }
}

static void silu(float *out, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = x[i] / (1.0f + expf(-x[i]));
    }
}

static void softplus(float *out, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = (x[i] < 0.0f ? 0.0f : x[i]) + log1pf(expf(-fabsf(x[i])));
    }
}

static void exponential(float *out, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = expf(x[i]);
    }
}

static void mul(float *out, const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = a[i] * b[i];
    }
}

static void softmax(float *out, const float *x, size_t n)
{
    float max = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        max = x[i] > max ? x[i] : max;
    }
    max = max == -INFINITY ? 0.0f : max; /* -INFINITY - -INFINITY would be NaN */
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        out[i] = expf(x[i] - max);
        sum += (double)out[i];
    }
    float divisor = sum == 0.0 ? 1.0f : (float)sum;
    for (size_t i = 0; i < n; i++) {
        out[i] /= divisor;
    }
}

static void add(float *out, const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = a[i] + b[i];
    }
}

static void scale(float *out, const float *x, float s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = s * x[i];
    }
}

static void axpy(float *out, const float *x, float s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = fmaf(s, x[i], out[i]);
    }
}

static void axpy_relu(float *out, const float *x, float s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = fmaf(s, x[i] > 0.0f ? x[i] : 0.0f, out[i]);
    }
}

static float dot(const float *a, const float *b, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)a[i] * (double)b[i];
    }
    return (float)sum;
}

static void rope(float *x, const float *c, const float *s, size_t n_rot, bool neox)
{
    size_t half = n_rot / 2;
    for (size_t i = 0; i < half; i++) {
        float *first = neox ? x + i : x + 2 * i;
        float *second = neox ? x + half + i : x + 2 * i + 1;
        float a = *first;
        float b = *second;
        *first = a * c[i] - b * s[i];
        *second = a * s[i] + b * c[i];
    }
}

static void f32_to_f16(uint16_t *out, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = f32_to_f16_one(x[i]);
    }
}

static void f16_to_f32(float *out, const uint16_t *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = f16_to_f32_one(x[i]);
    }
}

const struct vector_ops vector_ops_scalar = VECTOR_OPS_TABLE(CPU_SCALAR);

const struct vector_ops *vector_ops_get(enum cpu_level level)
{
#if defined(__x86_64__)
    switch (level) {
    case CPU_AVX2:
        return &vector_ops_avx2;
    case CPU_AVX512:
        return &vector_ops_avx512;
    default:
        break;
    }
#elif defined(__aarch64__)
    if (level == CPU_NEON) {
        return &vector_ops_neon;
    }
#else
    (void)level;
#endif
    return &vector_ops_scalar;
}
