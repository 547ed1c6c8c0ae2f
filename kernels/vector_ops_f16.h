/* IEEE binary16 <-> binary32 in integer arithmetic, one value at a time: the scalar twin of F16C, to the bit.
 */
#ifndef PENSTOCK_KERNELS_VECTOR_OPS_F16_H
#define PENSTOCK_KERNELS_VECTOR_OPS_F16_H

#include <stdint.h>
#include <string.h>

static inline float f16_to_f32_one(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;
    uint32_t bits;
    if (exponent == 0x1f) {
        uint32_t quiet = mantissa != 0 ? 0x400000u : 0;
        bits = sign | 0x7f800000u | mantissa << 13 | quiet;
    } else if (exponent != 0) {
        bits = sign | (exponent + 127 - 15) << 23 | mantissa << 13;
    } else {
        float subnormal = (float)mantissa * 0x1p-24f; /* exact */
        memcpy(&bits, &subnormal, sizeof(bits));
        bits |= sign;
    }
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

/* Rounds to nearest even; too large gives infinity; a NaN stays a NaN. */
static inline uint16_t f32_to_f16_one(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    }
    if (magnitude >= 0x47800000u) { /* 2^16 */
        return (uint16_t)(sign | 0x7c00u);
    }
    uint32_t mantissa = magnitude & 0x7fffffu;
    uint32_t kept;
    uint32_t shift;
    if (magnitude >= 0x38800000u) { /* 2^-14, the smallest normal F16 */
        kept = magnitude - ((127 - 15) << 23);
        shift = 13;
    } else if (magnitude >= 0x33000000u) { /* 2^-25, half of the smallest subnormal */
        kept = mantissa | 0x800000u;
        shift = 126 - (magnitude >> 23);
    } else {
        return (uint16_t)sign;
    }
    uint32_t half = 1u << (shift - 1);
    uint32_t rest = kept & ((1u << shift) - 1);
    uint32_t result = kept >> shift;
    if (rest > half || (rest == half && (result & 1u) != 0)) {
        result++; /* a carry into the exponent is right, up to infinity */
    }
    return (uint16_t)(sign | result);
}

#endif
