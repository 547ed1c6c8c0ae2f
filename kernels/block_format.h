/* Block formats: how weights stand in a GGUF file. One row of a table per format.
 * Layouts and formulas: ggml's ggml-common.h and ggml-quants.c (facts only); ids are ggml's. */
#ifndef PENSTOCK_KERNELS_BLOCK_FORMAT_H
#define PENSTOCK_KERNELS_BLOCK_FORMAT_H

#include <stddef.h>
#include <stdint.h>

enum block_type { /* ggml type ids */
                  BLOCK_F32 = 0,
                  BLOCK_F16 = 1,
                  BLOCK_Q4_0 = 2,
                  BLOCK_Q4_1 = 3,
                  BLOCK_Q5_0 = 6,
                  BLOCK_Q5_1 = 7,
                  BLOCK_Q8_0 = 8,
                  BLOCK_Q2_K = 10,
                  BLOCK_Q3_K = 11,
                  BLOCK_Q4_K = 12,
                  BLOCK_Q5_K = 13,
                  BLOCK_Q6_K = 14,
                  BLOCK_IQ2_XXS = 16,
                  BLOCK_IQ2_XS = 17,
                  BLOCK_IQ3_XXS = 18,
                  BLOCK_IQ1_S = 19,
                  BLOCK_IQ4_NL = 20,
                  BLOCK_IQ3_S = 21,
                  BLOCK_IQ2_S = 22,
                  BLOCK_IQ4_XS = 23,
                  BLOCK_IQ1_M = 29,
                  BLOCK_BF16 = 30,
                  BLOCK_TQ1_0 = 34,
                  BLOCK_TQ2_0 = 35,
                  BLOCK_MXFP4 = 39,
                  BLOCK_NVFP4 = 40,
                  BLOCK_Q1_0 = 41,
                  BLOCK_Q2_0 = 42,
};

/* How activations are stored for a product with weights of a format. */
enum act_type {
    ACT_F32,  /* as they are */
    ACT_Q8_0, /* blocks of 32: int8 values, scale amax/127 rounded to F16 (ggml's Q8_0) */
    ACT_Q8_K, /* blocks of 256: int8 values, F32 scale, sums of 16 (ggml's Q8_K) */
    ACT_N_TYPES,
};

struct block_format {
    uint32_t type; /* enum block_type */
    const char *name;
    uint32_t values;   /* per block */
    uint32_t bytes;    /* per block */
    enum act_type act; /* the activations its fast kernels take; ACT_F32 works for every format */
    /* n values (a multiple of `values`) from whole blocks; bit-exact against ggml's own functions. */
    void (*dequantize)(const void *blocks, float *out, size_t n);
};

/* NULL when the type has no kernels. */
const struct block_format *block_format_find(uint32_t type);
const struct block_format *block_format_at(uint32_t index); /* NULL past the end; for listings and tests */
/* Bytes of a row of n values; n must be a multiple of format->values. */
size_t block_row_bytes(const struct block_format *format, uint64_t n);

#endif
