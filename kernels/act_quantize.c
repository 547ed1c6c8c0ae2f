/* Quantized activations in plain C. Rounding and scales as ggml does them on x86 (quantize_row_q8_0, _q8_K). */
#include <math.h>
#include <string.h>

#include "kernels/matmul_internal.h"
#include "kernels/vector_ops_f16.h"

/* The value with the largest magnitude, the first of them; NaN when a value is not finite. */
static float largest_value(const float *x, unsigned n)
{
    float max = 0;
    bool finite = true;
    for (unsigned i = 0; i < n; i++) {
        finite = finite && isfinite(x[i]);
        if (fabsf(x[i]) > fabsf(max)) {
            max = x[i];
        }
    }
    return finite ? max : NAN;
}

/* Nearest integer to a finite v, ties to even: adding 1.5 * 2^23 leaves no bit for a fraction. |v| < 2^22. */
static int nearest_int(float v)
{
    float shifted = v + 0x1.8p23f;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof(bits));
    return (bits & 0x7fffff) - 0x400000;
}

/* q = x * scale; all zeros where the scale is not finite: no value worth keeping, or one that is not finite. */
static void scale_values(int8_t *q, const float *x, unsigned n, float scale)
{
    for (unsigned i = 0; i < n; i++) {
        q[i] = isfinite(scale) ? (int8_t)nearest_int(x[i] * scale) : 0;
    }
}

static int sum_values(const int8_t *q, unsigned n)
{
    int sum = 0;
    for (unsigned i = 0; i < n; i++) {
        sum += q[i];
    }
    return sum;
}

static void quantize_q8_0(const float *x, void *block)
{
    struct act_q8_0 *out = block;
    float amax = fabsf(largest_value(x, 32));
    out->d = f16_to_f32_one(f32_to_f16_one(amax / 127.0f));
    scale_values(out->q, x, 32, 127.0f / amax);
    out->sum = sum_values(out->q, 32);
}

static void quantize_q8_k(const float *x, void *block)
{
    struct act_q8_k *out = block;
    float scale = -127.0f / largest_value(x, 256);
    out->d = isinf(scale) ? 0.0f : 1.0f / scale;
    scale_values(out->q, x, 256, scale);
    for (unsigned i = 0; i < 16; i++) {
        out->sums[i] = (int16_t)sum_values(out->q + 16 * i, 16);
    }
}

act_block_fn *const act_blocks_scalar[ACT_N_TYPES] = {
    [ACT_Q8_0] = quantize_q8_0,
    [ACT_Q8_K] = quantize_q8_k,
};
