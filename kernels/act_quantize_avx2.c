/* Quantized activations with AVX2: the bits of act_quantize.c. */
#include <immintrin.h>
#include <math.h>

#include "kernels/matmul_internal.h"

static float hmax(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* The largest magnitude; NaN when a value is not finite. */
static float largest_magnitude(const float *x, unsigned n)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 max = _mm256_setzero_ps();
    __m256 bad = _mm256_setzero_ps(); /* NaN in lanes that met x - x != 0 */
    for (unsigned i = 0; i < n; i += 8) {
        __m256 v = _mm256_loadu_ps(x + i);
        max = _mm256_max_ps(max, _mm256_andnot_ps(sign, v));
        bad = _mm256_add_ps(bad, _mm256_sub_ps(v, v));
    }
    return _mm256_movemask_ps(_mm256_cmp_ps(bad, bad, _CMP_UNORD_Q)) != 0 ? NAN : hmax(max);
}

/* The first value with magnitude amax. */
static float first_of_magnitude(const float *x, unsigned n, float amax)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (unsigned i = 0; i < n; i += 8) {
        __m256 equal =
            _mm256_cmp_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)), _mm256_set1_ps(amax), _CMP_EQ_OQ);
        int mask = _mm256_movemask_ps(equal);
        if (mask != 0) {
            return x[i + (unsigned)__builtin_ctz((unsigned)mask)];
        }
    }
    return amax; /* NaN */
}

/* 32 values x * scale as int8, ties to even. Both finite; |x * scale| < 127.5. */
static __m256i scale_32(const float *x, float scale)
{
    __m256 s = _mm256_set1_ps(scale);
    __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), s));
    __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), s));
    __m256i c = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 16), s));
    __m256i d = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 24), s));
    __m256i q = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    return _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* Sums of values 0..15 and 16..31. */
static void sum_16(__m256i q, int sums[2])
{
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
    __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    __m256i eights = _mm256_hadd_epi32(fours, fours);
    __m256i sixteens = _mm256_hadd_epi32(eights, eights);
    sums[0] = _mm256_extract_epi32(sixteens, 0);
    sums[1] = _mm256_extract_epi32(sixteens, 4);
}

static void quantize_q8_0(const float *x, void *block)
{
    struct act_q8_0 *out = block;
    float amax = largest_magnitude(x, 32);
    float scale = 127.0f / amax;
    __m256i q = isfinite(scale) ? scale_32(x, scale) : _mm256_setzero_si256();
    int sums[2];
    sum_16(q, sums);
    _mm256_storeu_si256((__m256i *)out->q, q);
    out->d = _cvtsh_ss(_cvtss_sh(amax / 127.0f, _MM_FROUND_TO_NEAREST_INT));
    out->sum = sums[0] + sums[1];
}

static void quantize_q8_k(const float *x, void *block)
{
    struct act_q8_k *out = block;
    float scale = -127.0f / first_of_magnitude(x, 256, largest_magnitude(x, 256));
    out->d = isinf(scale) ? 0.0f : 1.0f / scale;
    for (unsigned i = 0; i < 8; i++) {
        __m256i q = isfinite(scale) ? scale_32(x + 32 * i, scale) : _mm256_setzero_si256();
        int sums[2];
        sum_16(q, sums);
        _mm256_storeu_si256((__m256i *)(out->q + 32 * i), q);
        out->sums[2 * i] = (int16_t)sums[0];
        out->sums[2 * i + 1] = (int16_t)sums[1];
    }
}

act_block_fn *const act_blocks_avx2[ACT_N_TYPES] = {
    [ACT_Q8_0] = quantize_q8_0,
    [ACT_Q8_K] = quantize_q8_k,
};
