#include "kernels/kv_row.h"

#include <string.h>

#include "kernels/block_layout.h"
#include "kernels/matmul_internal.h"
#include "kernels/vector_ops.h"

enum { BLOCK = 32 };

size_t kv_row_bytes(enum kv_type type, uint32_t n)
{
    switch (type) {
    case KV_F16:
        return n * sizeof(uint16_t);
    case KV_Q8_0:
        return ((size_t)n + BLOCK - 1) / BLOCK * sizeof(struct block_q8_0);
    default:
        return n * sizeof(float);
    }
}

static void store_q8_0(const struct matmul_kernels *matmul, struct block_q8_0 *row, const float *x,
                       uint32_t n)
{
    for (uint32_t i = 0; i < n; i += BLOCK, row++) {
        float padded[BLOCK] = {0};
        uint32_t left = n - i < BLOCK ? n - i : BLOCK;
        memcpy(padded, x + i, left * sizeof(*x));
        struct act_q8_0 block;
        act_quantize(matmul, ACT_Q8_0, padded, &block, BLOCK);
        uint16_t d = f32_to_f16_one(block.d); /* exact */
        memcpy(row->d, &d, sizeof(d));
        memcpy(row->q, block.q, sizeof(row->q));
    }
}

void kv_row_store(enum kv_type type, const struct vector_ops *ops, const struct matmul_kernels *matmul,
                  void *row, const float *x, uint32_t n)
{
    switch (type) {
    case KV_F16:
        ops->f32_to_f16(row, x, n);
        break;
    case KV_Q8_0:
        store_q8_0(matmul, row, x, n);
        break;
    default:
        memcpy(row, x, n * sizeof(*x));
        break;
    }
}
