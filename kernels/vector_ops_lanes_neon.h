/* f32v (vector_ops_lanes.h) for NEON: two registers, whose chains hide each other's latency. */
#ifndef PENSTOCK_KERNELS_VECTOR_OPS_LANES_NEON_H
#define PENSTOCK_KERNELS_VECTOR_OPS_LANES_NEON_H

#include <arm_neon.h>

typedef struct {
    float32x4_t lo, hi;
} f32v;
typedef struct {
    float64x2_t part[4];
} f64v; /* one F64 per F32 lane */
enum { F32V_LANES = 8 };

F32V_INLINE f32v f32v_set(float x)
{
    return (f32v){vdupq_n_f32(x), vdupq_n_f32(x)};
}
F32V_INLINE f32v f32v_load(const float *p)
{
    return (f32v){vld1q_f32(p), vld1q_f32(p + 4)};
}
F32V_INLINE void f32v_store(float *p, f32v v)
{
    vst1q_f32(p, v.lo);
    vst1q_f32(p + 4, v.hi);
}
F32V_INLINE f32v f32v_load_n(const float *p, size_t n, float fill)
{
    if (n >= F32V_LANES) {
        return f32v_load(p);
    }
    float padded[F32V_LANES];
    f32v_store(padded, f32v_set(fill));
    memcpy(padded, p, n * sizeof(*p));
    return f32v_load(padded);
}
F32V_INLINE void f32v_store_n(float *p, f32v v, size_t n)
{
    if (n >= F32V_LANES) {
        f32v_store(p, v);
    } else {
        float padded[F32V_LANES];
        f32v_store(padded, v);
        memcpy(p, padded, n * sizeof(*p));
    }
}
F32V_INLINE f32v f32v_load_f16_n(const uint16_t *p, size_t n) /* fills with 0 */
{
    uint16x8_t half;
    if (n >= F32V_LANES) {
        half = vld1q_u16(p);
    } else {
        uint16_t padded[F32V_LANES] = {0};
        memcpy(padded, p, n * sizeof(*p));
        half = vld1q_u16(padded);
    }
    return (f32v){vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(half))),
                  vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(half)))};
}
F32V_INLINE void f32v_store_f16_n(uint16_t *p, f32v v, size_t n)
{
    uint16x8_t half =
        vcombine_u16(vreinterpret_u16_f16(vcvt_f16_f32(v.lo)), vreinterpret_u16_f16(vcvt_f16_f32(v.hi)));
    if (n >= F32V_LANES) {
        vst1q_u16(p, half);
    } else {
        uint16_t padded[F32V_LANES];
        vst1q_u16(padded, half);
        memcpy(p, padded, n * sizeof(*p));
    }
}
F32V_INLINE f32v f32v_load_i8(const int8_t *p) /* all lanes */
{
    int16x8_t wide = vmovl_s8(vld1_s8(p));
    return (f32v){vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))),
                  vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)))};
}
F32V_INLINE f32v f32v_set_f16(const uint8_t p[2])
{
    uint16_t half;
    memcpy(&half, p, sizeof(half));
    float32x4_t one = vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half)));
    return (f32v){one, one};
}

F32V_INLINE f32v f32v_add(f32v a, f32v b)
{
    return (f32v){vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)};
}
F32V_INLINE f32v f32v_sub(f32v a, f32v b)
{
    return (f32v){vsubq_f32(a.lo, b.lo), vsubq_f32(a.hi, b.hi)};
}
F32V_INLINE f32v f32v_mul(f32v a, f32v b)
{
    return (f32v){vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi)};
}
F32V_INLINE f32v f32v_div(f32v a, f32v b)
{
    return (f32v){vdivq_f32(a.lo, b.lo), vdivq_f32(a.hi, b.hi)};
}
F32V_INLINE f32v f32v_fma(f32v a, f32v b, f32v c)
{
    return (f32v){vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi)};
} /* a * b + c */
F32V_INLINE f32v f32v_fms(f32v a, f32v b, f32v c)
{
    return (f32v){vfmaq_f32(vnegq_f32(c.lo), a.lo, b.lo), vfmaq_f32(vnegq_f32(c.hi), a.hi, b.hi)};
} /* a * b - c */
F32V_INLINE f32v f32v_fnma(f32v a, f32v b, f32v c)
{
    return (f32v){vfmsq_f32(c.lo, a.lo, b.lo), vfmsq_f32(c.hi, a.hi, b.hi)};
} /* c - a * b */
F32V_INLINE f32v f32v_max(f32v a, f32v b)
{
    return (f32v){vbslq_f32(vcgtq_f32(a.lo, b.lo), a.lo, b.lo), vbslq_f32(vcgtq_f32(a.hi, b.hi), a.hi, b.hi)};
} /* b where one is NaN */
F32V_INLINE f32v f32v_min(f32v a, f32v b)
{
    return (f32v){vbslq_f32(vcltq_f32(a.lo, b.lo), a.lo, b.lo), vbslq_f32(vcltq_f32(a.hi, b.hi), a.hi, b.hi)};
} /* b where one is NaN */
F32V_INLINE f32v f32v_round(f32v v)
{
    return (f32v){vrndnq_f32(v.lo), vrndnq_f32(v.hi)};
}
F32V_INLINE float32x4_t f32v_scale2_half(float32x4_t v, float32x4_t n)
{
    int32x4_t whole = vcvtnq_s32_f32(n);
    int32x4_t first = vshrq_n_s32(whole, 1);
    int32x4_t second = vsubq_s32(whole, first);
    const int32x4_t bias = vdupq_n_s32(127);
    float32x4_t a = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(first, bias), 23));
    float32x4_t b = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(second, bias), 23));
    return vmulq_f32(vmulq_f32(v, a), b);
}
/* v * 2^n, n integral, |n| <= 252, in two steps, of which only the second can round. */
F32V_INLINE f32v f32v_scale2(f32v v, f32v n)
{
    return (f32v){f32v_scale2_half(v.lo, n.lo), f32v_scale2_half(v.hi, n.hi)};
}

F32V_INLINE float f32v_sum(f32v v)
{
    return vaddvq_f32(vaddq_f32(v.lo, v.hi));
}
F32V_INLINE float f32v_max_lane(f32v v)
{
    return vmaxvq_f32(f32v_max(v, (f32v){v.hi, v.lo}).lo);
}

/* Lane i of the result: the sum of rows[i], every row by the same tree. */
F32V_INLINE f32v f32v_sum_rows(const f32v rows[F32V_LANES])
{
    float32x4_t quad[F32V_LANES];
    for (int i = 0; i < F32V_LANES; i++) {
        quad[i] = vaddq_f32(rows[i].lo, rows[i].hi);
    }
    return (f32v){vpaddq_f32(vpaddq_f32(quad[0], quad[1]), vpaddq_f32(quad[2], quad[3])),
                  vpaddq_f32(vpaddq_f32(quad[4], quad[5]), vpaddq_f32(quad[6], quad[7]))};
}

F32V_INLINE f64v f64v_zero(void)
{
    const float64x2_t zero = vdupq_n_f64(0.0);
    return (f64v){{zero, zero, zero, zero}};
}
F32V_INLINE f64v f64v_add_f32(f64v acc, f32v v)
{
    acc.part[0] = vaddq_f64(acc.part[0], vcvt_f64_f32(vget_low_f32(v.lo)));
    acc.part[1] = vaddq_f64(acc.part[1], vcvt_high_f64_f32(v.lo));
    acc.part[2] = vaddq_f64(acc.part[2], vcvt_f64_f32(vget_low_f32(v.hi)));
    acc.part[3] = vaddq_f64(acc.part[3], vcvt_high_f64_f32(v.hi));
    return acc;
}
F32V_INLINE double f64v_sum(f64v acc)
{
    return vaddvq_f64(vaddq_f64(vaddq_f64(acc.part[0], acc.part[1]), vaddq_f64(acc.part[2], acc.part[3])));
}

F32V_INLINE float32x4_t f32v_rotate_half(float32x4_t v, float32x4_t c, float32x4_t s)
{
    const uint32x4_t even_sign = vreinterpretq_u32_u64(vdupq_n_u64(0x80000000u));
    float32x4_t crossed = vmulq_f32(vrev64q_f32(v), s);
    crossed = vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(crossed), even_sign));
    return vfmaq_f32(crossed, v, c);
}
/* Rotates the pairs (v[2i], v[2i + 1]) by c[2i], s[2i], which stand twice. */
F32V_INLINE f32v f32v_rotate_pairs(f32v v, f32v c, f32v s)
{
    return (f32v){f32v_rotate_half(v.lo, c.lo, s.lo), f32v_rotate_half(v.hi, c.hi, s.hi)};
}
/* The first n / 2 values of p, each twice. */
F32V_INLINE f32v f32v_load_twice_n(const float *p, size_t n)
{
    float32x4_t half;
    if (n >= F32V_LANES) {
        half = vld1q_f32(p);
    } else {
        float padded[F32V_LANES / 2] = {0};
        memcpy(padded, p, n / 2 * sizeof(*p));
        half = vld1q_f32(padded);
    }
    return (f32v){vzip1q_f32(half, half), vzip2q_f32(half, half)};
}

#endif
