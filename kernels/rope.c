/* Angles of rotary position embedding (Su et al. 2021, arXiv:2104.09864), with linear scaling and YaRN (Peng
 * et al. 2023, arXiv:2309.00071). Every step is in F32 and in ggml's order, so that angles agree with it to
 * the bit at positions where F32 no longer resolves them well. */
#include <math.h>

#include "kernels/vector_ops.h"

/* The pair whose wavelength makes `rotations` turns within the training context (YaRN, section 3.2). */
static float correction_pair(const struct rope_params *params, float rotations)
{
    const float two_pi = 2.0f * 3.14159265358979323846f;
    float n_rot = (float)params->n_rot;
    return n_rot * logf((float)params->n_ctx_orig / (rotations * two_pi)) / (2.0f * logf(params->freq_base));
}

/* How much of pair i's angle is extrapolated (1) rather than interpolated (0). */
static float ramp(float low, float high, uint32_t i)
{
    float y = ((float)i - low) / fmaxf(0.001f, high - low);
    return 1.0f - fminf(1.0f, fmaxf(0.0f, y));
}

void rope_cos_sin(const struct rope_params *params, int32_t position, float *cos_out, float *sin_out)
{
    float magnitude = params->attn_factor;
    float low = 0.0f;
    float high = 0.0f;
    if (params->ext_factor != 0.0f) {
        low = fmaxf(0.0f, floorf(correction_pair(params, params->beta_fast)));
        high = fminf((float)params->n_rot - 1.0f, ceilf(correction_pair(params, params->beta_slow)));
        magnitude *= 1.0f + 0.1f * logf(1.0f / params->freq_scale);
    }
    float theta_scale = powf(params->freq_base, -2.0f / (float)params->n_rot);
    float theta = (float)position;
    for (uint32_t i = 0; i < params->n_rot / 2; i++) {
        float extrapolated = params->freq_factors != NULL ? theta / params->freq_factors[i] : theta;
        float angle = params->freq_scale * extrapolated;
        if (params->ext_factor != 0.0f) {
            float mix = ramp(low, high, i) * params->ext_factor;
            angle = angle * (1.0f - mix) + extrapolated * mix;
        }
        cos_out[i] = cosf(angle) * magnitude;
        sin_out[i] = sinf(angle) * magnitude;
        theta *= theta_scale;
    }
}
