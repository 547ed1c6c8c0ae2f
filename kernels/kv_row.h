/* Rows of the KV cache: one head's key or value of one token, in the cache's type. */
#ifndef PENSTOCK_KERNELS_KV_ROW_H
#define PENSTOCK_KERNELS_KV_ROW_H

#include <stddef.h>
#include <stdint.h>

struct matmul_kernels;
struct vector_ops;

/* KV_Q8_0: blocks of 32 values as in GGUF's Q8_0, which is what llama.cpp keeps for cache type q8_0. A row is whole
 * blocks: where n is no multiple of 32, the last one is filled up with zeros. */
enum kv_type { KV_F32, KV_F16, KV_Q8_0, KV_N_TYPES };

size_t kv_row_bytes(enum kv_type type, uint32_t n); /* bytes of n values */

/* x[n] -> row. A Q8_0 block with a NaN or an infinity among its values becomes all NaN. The same bits at every
 * level. */
void kv_row_store(enum kv_type type, const struct vector_ops *ops, const struct matmul_kernels *matmul,
                  void *row, const float *x, uint32_t n);

#endif
