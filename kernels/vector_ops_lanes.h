/* One vector of F32 (f32v) under one set of names, so that kernels are written once for AVX2, AVX-512 and
 * NEON. Included only by files compiled for one of them. Loads and stores need no alignment. The _n
 * forms touch the first min(n, F32V_LANES) elements only and fill the rest of the register, so a tail takes
 * the path of full vectors. */
#ifndef PENSTOCK_KERNELS_VECTOR_OPS_LANES_H
#define PENSTOCK_KERNELS_VECTOR_OPS_LANES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define F32V_INLINE static inline __attribute__((always_inline, unused))

#if defined(__aarch64__)

#include "kernels/vector_ops_lanes_neon.h"

#elif defined(__AVX512F__)

#include <immintrin.h>

typedef __m512 f32v;
typedef struct {
    __m512d lo, hi;
} f64v; /* one F64 per F32 lane */
enum { F32V_LANES = 16 };

F32V_INLINE __mmask16 f32v_mask(size_t n)
{
    return (__mmask16)((1u << n) - 1);
}

F32V_INLINE f32v f32v_set(float x)
{
    return _mm512_set1_ps(x);
}
F32V_INLINE f32v f32v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
F32V_INLINE f32v f32v_load_n(const float *p, size_t n, float fill)
{
    return n >= F32V_LANES ? f32v_load(p) : _mm512_mask_loadu_ps(f32v_set(fill), f32v_mask(n), p);
}
F32V_INLINE void f32v_store(float *p, f32v v)
{
    _mm512_storeu_ps(p, v);
}
F32V_INLINE void f32v_store_n(float *p, f32v v, size_t n)
{
    if (n >= F32V_LANES) {
        f32v_store(p, v);
    } else {
        _mm512_mask_storeu_ps(p, f32v_mask(n), v);
    }
}
F32V_INLINE f32v f32v_load_f16_n(const uint16_t *p, size_t n) /* fills with 0 */
{
    return _mm512_cvtph_ps(n >= F32V_LANES ? _mm256_loadu_si256((const __m256i *)p)
                                           : _mm256_maskz_loadu_epi16(f32v_mask(n), p));
}
F32V_INLINE void f32v_store_f16_n(uint16_t *p, f32v v, size_t n)
{
    __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_mask_storeu_epi16(p, n >= F32V_LANES ? (__mmask16)0xffff : f32v_mask(n), half);
}
F32V_INLINE f32v f32v_load_i8(const int8_t *p) /* all lanes */
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
F32V_INLINE f32v f32v_set_f16(const uint8_t p[2])
{
    int16_t half;
    memcpy(&half, p, sizeof(half));
    return _mm512_cvtph_ps(_mm256_set1_epi16(half));
}

F32V_INLINE f32v f32v_add(f32v a, f32v b)
{
    return _mm512_add_ps(a, b);
}
F32V_INLINE f32v f32v_sub(f32v a, f32v b)
{
    return _mm512_sub_ps(a, b);
}
F32V_INLINE f32v f32v_mul(f32v a, f32v b)
{
    return _mm512_mul_ps(a, b);
}
F32V_INLINE f32v f32v_div(f32v a, f32v b)
{
    return _mm512_div_ps(a, b);
}
F32V_INLINE f32v f32v_fma(f32v a, f32v b, f32v c)
{
    return _mm512_fmadd_ps(a, b, c);
} /* a * b + c */
F32V_INLINE f32v f32v_fms(f32v a, f32v b, f32v c)
{
    return _mm512_fmsub_ps(a, b, c);
} /* a * b - c */
F32V_INLINE f32v f32v_fnma(f32v a, f32v b, f32v c)
{
    return _mm512_fnmadd_ps(a, b, c);
} /* c - a * b */
F32V_INLINE f32v f32v_max(f32v a, f32v b)
{
    return _mm512_max_ps(a, b);
} /* b where one is NaN */
F32V_INLINE f32v f32v_min(f32v a, f32v b)
{
    return _mm512_min_ps(a, b);
} /* b where one is NaN */
F32V_INLINE f32v f32v_round(f32v v)
{
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* v * 2^n, n integral; one rounding. */
F32V_INLINE f32v f32v_scale2(f32v v, f32v n)
{
    return _mm512_scalef_ps(v, n);
}

F32V_INLINE float f32v_sum(f32v v)
{
    return _mm512_reduce_add_ps(v);
}
F32V_INLINE float f32v_max_lane(f32v v)
{
    return _mm512_reduce_max_ps(v);
}

/* Lane i of the result: the sum of rows[i], every row by the same tree. */
F32V_INLINE f32v f32v_sum_rows(const f32v rows[F32V_LANES])
{
    f32v quad[4]; /* [i]: rows 4i .. 4i + 3, each summed within 128 bits */
    for (int i = 0; i < 4; i++) {
        const f32v *r = rows + 4 * i;
        f32v ab = f32v_add(_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
        f32v cd = f32v_add(_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
        __m512d ab2 = _mm512_castps_pd(ab);
        __m512d cd2 = _mm512_castps_pd(cd);
        quad[i] = f32v_add(_mm512_castpd_ps(_mm512_unpacklo_pd(ab2, cd2)),
                           _mm512_castpd_ps(_mm512_unpackhi_pd(ab2, cd2)));
    }
    f32v low =
        f32v_add(_mm512_shuffle_f32x4(quad[0], quad[1], 0x88), _mm512_shuffle_f32x4(quad[0], quad[1], 0xdd));
    f32v high =
        f32v_add(_mm512_shuffle_f32x4(quad[2], quad[3], 0x88), _mm512_shuffle_f32x4(quad[2], quad[3], 0xdd));
    return f32v_add(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}

F32V_INLINE f64v f64v_zero(void)
{
    return (f64v){_mm512_setzero_pd(), _mm512_setzero_pd()};
}
F32V_INLINE f64v f64v_add_f32(f64v acc, f32v v)
{
    acc.lo = _mm512_add_pd(acc.lo, _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
    acc.hi = _mm512_add_pd(acc.hi, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
    return acc;
}
F32V_INLINE double f64v_sum(f64v acc)
{
    return _mm512_reduce_add_pd(_mm512_add_pd(acc.lo, acc.hi));
}

/* Rotates the pairs (v[2i], v[2i + 1]) by c[2i], s[2i], which stand twice. */
F32V_INLINE f32v f32v_rotate_pairs(f32v v, f32v c, f32v s)
{
    return _mm512_fmaddsub_ps(v, c, f32v_mul(_mm512_permute_ps(v, 0xb1), s));
}
/* The first n / 2 values of p, each twice. */
F32V_INLINE f32v f32v_load_twice_n(const float *p, size_t n)
{
    __mmask8 mask = n >= F32V_LANES ? (__mmask8)0xff : (__mmask8)f32v_mask(n / 2);
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_maskz_loadu_ps(mask, p)));
}

#else

#include <immintrin.h>

typedef __m256 f32v;
typedef struct {
    __m256d lo, hi;
} f64v; /* one F64 per F32 lane */
enum { F32V_LANES = 8 };

F32V_INLINE __m256i f32v_mask(size_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

F32V_INLINE f32v f32v_set(float x)
{
    return _mm256_set1_ps(x);
}
F32V_INLINE f32v f32v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
F32V_INLINE f32v f32v_load_n(const float *p, size_t n, float fill)
{
    if (n >= F32V_LANES) {
        return f32v_load(p);
    }
    __m256i mask = f32v_mask(n);
    return _mm256_blendv_ps(f32v_set(fill), _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
}
F32V_INLINE void f32v_store(float *p, f32v v)
{
    _mm256_storeu_ps(p, v);
}
F32V_INLINE void f32v_store_n(float *p, f32v v, size_t n)
{
    if (n >= F32V_LANES) {
        f32v_store(p, v);
    } else {
        _mm256_maskstore_ps(p, f32v_mask(n), v);
    }
}
F32V_INLINE f32v f32v_load_f16_n(const uint16_t *p, size_t n) /* fills with 0 */
{
    if (n >= F32V_LANES) {
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
    }
    uint16_t padded[F32V_LANES] = {0};
    memcpy(padded, p, n * sizeof(*p));
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)padded));
}
F32V_INLINE void f32v_store_f16_n(uint16_t *p, f32v v, size_t n)
{
    __m128i half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    if (n >= F32V_LANES) {
        _mm_storeu_si128((__m128i *)p, half);
    } else {
        uint16_t padded[F32V_LANES];
        _mm_storeu_si128((__m128i *)padded, half);
        memcpy(p, padded, n * sizeof(*p));
    }
}
F32V_INLINE f32v f32v_load_i8(const int8_t *p) /* all lanes */
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
F32V_INLINE f32v f32v_set_f16(const uint8_t p[2])
{
    int16_t half;
    memcpy(&half, p, sizeof(half));
    return _mm256_cvtph_ps(_mm_set1_epi16(half));
}

F32V_INLINE f32v f32v_add(f32v a, f32v b)
{
    return _mm256_add_ps(a, b);
}
F32V_INLINE f32v f32v_sub(f32v a, f32v b)
{
    return _mm256_sub_ps(a, b);
}
F32V_INLINE f32v f32v_mul(f32v a, f32v b)
{
    return _mm256_mul_ps(a, b);
}
F32V_INLINE f32v f32v_div(f32v a, f32v b)
{
    return _mm256_div_ps(a, b);
}
F32V_INLINE f32v f32v_fma(f32v a, f32v b, f32v c)
{
    return _mm256_fmadd_ps(a, b, c);
} /* a * b + c */
F32V_INLINE f32v f32v_fms(f32v a, f32v b, f32v c)
{
    return _mm256_fmsub_ps(a, b, c);
} /* a * b - c */
F32V_INLINE f32v f32v_fnma(f32v a, f32v b, f32v c)
{
    return _mm256_fnmadd_ps(a, b, c);
} /* c - a * b */
F32V_INLINE f32v f32v_max(f32v a, f32v b)
{
    return _mm256_max_ps(a, b);
} /* b where one is NaN */
F32V_INLINE f32v f32v_min(f32v a, f32v b)
{
    return _mm256_min_ps(a, b);
} /* b where one is NaN */
F32V_INLINE f32v f32v_round(f32v v)
{
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* v * 2^n, n integral, |n| <= 252, in two steps, of which only the second can round. */
F32V_INLINE f32v f32v_scale2(f32v v, f32v n)
{
    __m256i whole = _mm256_cvtps_epi32(n);
    __m256i first = _mm256_srai_epi32(whole, 1);
    __m256i second = _mm256_sub_epi32(whole, first);
    const __m256i bias = _mm256_set1_epi32(127);
    f32v a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(first, bias), 23));
    f32v b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(second, bias), 23));
    return f32v_mul(f32v_mul(v, a), b);
}

F32V_INLINE float f32v_sum(f32v v)
{
    __m128 quad = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 pair = _mm_add_ps(quad, _mm_movehl_ps(quad, quad));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
F32V_INLINE float f32v_max_lane(f32v v)
{
    __m128 quad = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 pair = _mm_max_ps(quad, _mm_movehl_ps(quad, quad));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}

/* Lane i of the result: the sum of rows[i], every row by the same tree. */
F32V_INLINE f32v f32v_sum_rows(const f32v rows[F32V_LANES])
{
    f32v low = _mm256_hadd_ps(_mm256_hadd_ps(rows[0], rows[1]), _mm256_hadd_ps(rows[2], rows[3]));
    f32v high = _mm256_hadd_ps(_mm256_hadd_ps(rows[4], rows[5]), _mm256_hadd_ps(rows[6], rows[7]));
    return f32v_add(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

F32V_INLINE f64v f64v_zero(void)
{
    return (f64v){_mm256_setzero_pd(), _mm256_setzero_pd()};
}
F32V_INLINE f64v f64v_add_f32(f64v acc, f32v v)
{
    acc.lo = _mm256_add_pd(acc.lo, _mm256_cvtps_pd(_mm256_castps256_ps128(v)));
    acc.hi = _mm256_add_pd(acc.hi, _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
    return acc;
}
F32V_INLINE double f64v_sum(f64v acc)
{
    __m256d quad = _mm256_add_pd(acc.lo, acc.hi);
    __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(quad), _mm256_extractf128_pd(quad, 1));
    return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}

/* Rotates the pairs (v[2i], v[2i + 1]) by c[2i], s[2i], which stand twice. */
F32V_INLINE f32v f32v_rotate_pairs(f32v v, f32v c, f32v s)
{
    return _mm256_fmaddsub_ps(v, c, f32v_mul(_mm256_permute_ps(v, 0xb1), s));
}
/* The first n / 2 values of p, each twice. */
F32V_INLINE f32v f32v_load_twice_n(const float *p, size_t n)
{
    __m128 half =
        n >= F32V_LANES ? _mm_loadu_ps(p) : _mm_maskload_ps(p, _mm256_castsi256_si128(f32v_mask(n / 2)));
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(half), _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
}

#endif

/* Lanes left of n from i on, for the _n forms. */
F32V_INLINE size_t f32v_left(size_t i, size_t n)
{
    return n - i < F32V_LANES ? n - i : F32V_LANES;
}

/* e^v within 1 ulp or so: 2^k * p(r), r = v - k ln 2, polynomial and split of ln 2 from Cephes' expf
 * (Moshier). Beyond the clamps the result is exactly 0 or infinity; exp(0) is exactly 1; NaN stays NaN. */
F32V_INLINE f32v f32v_exp(f32v v)
{
    v = f32v_min(f32v_set(89.0f), f32v_max(f32v_set(-104.0f), v));
    f32v k = f32v_round(f32v_mul(v, f32v_set(1.44269504088896341f)));
    f32v r = f32v_fnma(k, f32v_set(0.693359375f), v);
    r = f32v_fnma(k, f32v_set(-2.12194440e-4f), r);
    f32v p = f32v_set(1.9875691500e-4f);
    p = f32v_fma(p, r, f32v_set(1.3981999507e-3f));
    p = f32v_fma(p, r, f32v_set(8.3334519073e-3f));
    p = f32v_fma(p, r, f32v_set(4.1665795894e-2f));
    p = f32v_fma(p, r, f32v_set(1.6666665459e-1f));
    p = f32v_fma(p, r, f32v_set(5.0000001201e-1f));
    p = f32v_add(f32v_fma(p, f32v_mul(r, r), r), f32v_set(1.0f));
    return f32v_scale2(p, k);
}

#endif
