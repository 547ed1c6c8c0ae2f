/* The grids of the IQ formats: rows of 8 or 4 values that an index stands for. The grid_*.inc files list each row as a
 * code, a digit for each value; the tables spell the codes out the way kernels look them up.
 * Grids: ggml's ggml-common.h (iq1s_grid, iq2xxs_grid and so on; constants only).
 *
 * Rows of 8 have digits of 2 bits: value 2k at bits 2k, value 2k + 1 at bits 8 + 2k. Rows of 4 have digits of 4 bits:
 * values 0, 1, 2, 3 at bits 0, 8, 4, 12. */
#ifndef PENSTOCK_KERNELS_GRID_TABLES_H
#define PENSTOCK_KERNELS_GRID_TABLES_H

#include <stdint.h>

/* Added to the signed values, which makes bytes that are positive with either sign. */
enum {
    IQ1_OFFSET = 8,
    IQ2_OFFSET = 43,
    IQ3_XXS_OFFSET = 62,
    IQ3_S_OFFSET = 15,
};

/* Value i, plus the offset, in byte i of a row. IQ2 and IQ3 are magnitudes; IQ1 is 8 times -1, 0, 1. */
extern const uint64_t GRID_IQ1[2048];
extern const uint64_t GRID_IQ2_XXS[256];
extern const uint64_t GRID_IQ2_XS[512];
extern const uint64_t GRID_IQ2_S[1024];
extern const uint32_t GRID_IQ3_XXS[256];
extern const uint32_t GRID_IQ3_S[512];

/* The same by digits, for tables that fit vector registers; what a digit stands for, plus the offset. */
extern const uint16_t GRID_IQ3_XXS_CODES[256];
extern const uint16_t GRID_IQ3_S_CODES[512];
extern const uint8_t GRID_IQ3_XXS_DIGITS[16];
extern const uint8_t GRID_IQ3_S_DIGITS[16];

#endif
