/* Quantized activations with NEON: the bits of act_quantize.c. */
#include <arm_neon.h>
#include <math.h>

#include "kernels/matmul_internal.h"
#include "kernels/vector_ops_f16.h"

/* The largest magnitude; NaN when a value is not finite. */
static float largest_magnitude(const float *x, unsigned n)
{
    float32x4_t max = vdupq_n_f32(0.0f);
    float32x4_t bad = vdupq_n_f32(0.0f); /* NaN in lanes that met x - x != 0 */
    for (unsigned i = 0; i < n; i += 4) {
        float32x4_t v = vld1q_f32(x + i);
        max = vmaxq_f32(max, vabsq_f32(v));
        bad = vaddq_f32(bad, vsubq_f32(v, v));
    }
    return vaddvq_f32(bad) == 0.0f ? vmaxvq_f32(max) : NAN;
}

/* The first value with magnitude amax. */
static float first_of_magnitude(const float *x, unsigned n, float amax)
{
    for (unsigned i = 0; i < n; i += 4) {
        if (vmaxvq_u32(vceqq_f32(vabsq_f32(vld1q_f32(x + i)), vdupq_n_f32(amax))) != 0) {
            while (fabsf(x[i]) != amax) {
                i++;
            }
            return x[i];
        }
    }
    return amax; /* NaN */
}

/* Eight values x * scale as int16, ties to even. */
static int16x8_t scale_8(const float *x, float scale)
{
    int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), scale));
    int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4), scale));
    return vcombine_s16(vmovn_s32(a), vmovn_s32(b));
}

/* q = 16 values x * scale, all zeros where the scale is not finite; their sum. |x * scale| < 127.5. */
static int scale_16(int8_t *q, const float *x, float scale)
{
    int8x16_t v = vdupq_n_s8(0);
    if (isfinite(scale)) {
        v = vcombine_s8(vmovn_s16(scale_8(x, scale)), vmovn_s16(scale_8(x + 8, scale)));
    }
    vst1q_s8(q, v);
    return vaddlvq_s8(v);
}

static void quantize_q8_0(const float *x, void *block)
{
    struct act_q8_0 *out = block;
    float amax = largest_magnitude(x, 32);
    float scale = 127.0f / amax;
    out->d = f16_to_f32_one(f32_to_f16_one(amax / 127.0f));
    out->sum = scale_16(out->q, x, scale);
    out->sum += scale_16(out->q + 16, x + 16, scale);
}

static void quantize_q8_k(const float *x, void *block)
{
    struct act_q8_k *out = block;
    float scale = -127.0f / first_of_magnitude(x, 256, largest_magnitude(x, 256));
    out->d = isinf(scale) ? 0.0f : 1.0f / scale;
    for (unsigned i = 0; i < 16; i++) {
        out->sums[i] = (int16_t)scale_16(out->q + 16 * i, x + 16 * i, scale);
    }
}

act_block_fn *const act_blocks_neon[ACT_N_TYPES] = {
    [ACT_Q8_0] = quantize_q8_0,
    [ACT_Q8_K] = quantize_q8_k,
};
