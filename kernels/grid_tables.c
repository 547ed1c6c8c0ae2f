/* Grids of the IQ formats, spelled out from their codes. */
#include "kernels/grid_tables.h"

#define DIGIT_8(CODE, I) ((CODE) >> ((I) / 2 * 2 + (I) % 2 * 8) & 3)
#define DIGIT_4(CODE, I) ((CODE) >> ((I) / 2 * 4 + (I) % 2 * 8) & 15)

#define ROW_8(VALUE, CODE)                                                                                   \
    ((uint64_t)VALUE(DIGIT_8(CODE, 0)) | (uint64_t)VALUE(DIGIT_8(CODE, 1)) << 8 |                            \
     (uint64_t)VALUE(DIGIT_8(CODE, 2)) << 16 | (uint64_t)VALUE(DIGIT_8(CODE, 3)) << 24 |                     \
     (uint64_t)VALUE(DIGIT_8(CODE, 4)) << 32 | (uint64_t)VALUE(DIGIT_8(CODE, 5)) << 40 |                     \
     (uint64_t)VALUE(DIGIT_8(CODE, 6)) << 48 | (uint64_t)VALUE(DIGIT_8(CODE, 7)) << 56)
#define ROW_4(VALUE, CODE)                                                                                   \
    ((uint32_t)VALUE(DIGIT_4(CODE, 0)) | (uint32_t)VALUE(DIGIT_4(CODE, 1)) << 8 |                            \
     (uint32_t)VALUE(DIGIT_4(CODE, 2)) << 16 | (uint32_t)VALUE(DIGIT_4(CODE, 3)) << 24)

/* Digits to values plus the offset. */
#define VALUE_IQ1(DIGIT)     (8 * (DIGIT))
#define VALUE_IQ2(DIGIT)     (IQ2_OFFSET + ((DIGIT) == 0 ? 8 : (DIGIT) == 1 ? 25 : 43))
#define VALUE_IQ3_XXS(DIGIT) (IQ3_XXS_OFFSET + ((DIGIT) == 7 ? 62 : 4 + 8 * (DIGIT)))
#define VALUE_IQ3_S(DIGIT)   (IQ3_S_OFFSET + 1 + 2 * (DIGIT))

#define C(CODE) ROW_8(VALUE_IQ1, CODE)
const uint64_t GRID_IQ1[2048] = {
#include "kernels/grid_iq1.inc"
};
#undef C

#define C(CODE) ROW_8(VALUE_IQ2, CODE)
const uint64_t GRID_IQ2_XXS[256] = {
#include "kernels/grid_iq2_xxs.inc"
};
const uint64_t GRID_IQ2_XS[512] = {
#include "kernels/grid_iq2_xs.inc"
};
const uint64_t GRID_IQ2_S[1024] = {
#include "kernels/grid_iq2_s.inc"
};
#undef C

#define C(CODE) ROW_4(VALUE_IQ3_XXS, CODE)
const uint32_t GRID_IQ3_XXS[256] = {
#include "kernels/grid_iq3_xxs.inc"
};
#undef C

#define C(CODE) ROW_4(VALUE_IQ3_S, CODE)
const uint32_t GRID_IQ3_S[512] = {
#include "kernels/grid_iq3_s.inc"
};
#undef C

#define C(CODE) CODE
const uint16_t GRID_IQ3_XXS_CODES[256] = {
#include "kernels/grid_iq3_xxs.inc"
};
const uint16_t GRID_IQ3_S_CODES[512] = {
#include "kernels/grid_iq3_s.inc"
};
#undef C

const uint8_t GRID_IQ3_XXS_DIGITS[16] = {
    VALUE_IQ3_XXS(0), VALUE_IQ3_XXS(1), VALUE_IQ3_XXS(2), VALUE_IQ3_XXS(3),
    VALUE_IQ3_XXS(4), VALUE_IQ3_XXS(5), VALUE_IQ3_XXS(6), VALUE_IQ3_XXS(7),
};
const uint8_t GRID_IQ3_S_DIGITS[16] = {
    VALUE_IQ3_S(0), VALUE_IQ3_S(1), VALUE_IQ3_S(2), VALUE_IQ3_S(3),
    VALUE_IQ3_S(4), VALUE_IQ3_S(5), VALUE_IQ3_S(6), VALUE_IQ3_S(7),
};
