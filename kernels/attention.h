/* Attention of a chunk of queries over the KV cache, with grouped query heads.
 *
 * Per (token, head): scores in key blocks of fixed size and position, an online softmax over the blocks in order, so
 * the result depends neither on threads nor on how many tokens share the call. No temporary grows with context. */
#ifndef PENSTOCK_KERNELS_ATTENTION_H
#define PENSTOCK_KERNELS_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu.h"

enum kv_type { KV_F32, KV_F16, KV_N_TYPES };
enum { ATTENTION_KEY_BLOCK = 32 }; /* keys per softmax block; blocks start at multiples of it in the cache */

size_t kv_row_bytes(enum kv_type type, uint32_t n); /* bytes of n values */

struct attention_args {
    const float *q;  /* [n_tokens][n_head][head_dim_k], rope applied */
    size_t q_stride; /* floats between tokens */
    const void *k;   /* head h's row for cache cell c: k + h * k_head_stride + c * k_row_stride bytes */
    const void *v;   /* likewise; rows of head_dim_v */
    size_t k_head_stride, k_row_stride, v_head_stride, v_row_stride; /* bytes */
    enum kv_type type;                                               /* of k and v */
    float *out;                                                      /* [n_tokens][n_head][head_dim_v] */
    size_t out_stride;                                               /* floats between tokens */
    const int32_t
        *pos; /* [n_tokens]: token t sees cells c with c <= pos[t] and, if window > 0, pos[t] - c < window */
    uint32_t n_tokens, n_head,
        n_kv_head; /* n_head a multiple of n_kv_head; head h uses kv head h / (n_head/n_kv_head) */
    uint32_t head_dim_k, head_dim_v;
    float scale;        /* of q.k */
    uint32_t window;    /* 0: all of the past */
    const float *sinks; /* [n_head] extra logits in the denominator, or NULL */
};

struct attention_kernels {
    enum cpu_level level;
    /* Work item i of attention_n_items(args): one kv head of one token, i.e. n_head/n_kv_head query heads.
     * scratch: attention_scratch_floats(args) floats, one per thread. */
    void (*item)(const struct attention_args *args, uint32_t item, float *scratch);
};

uint32_t attention_n_items(const struct attention_args *args);
size_t attention_scratch_floats(const struct attention_args *args);
/* level must be available. */
const struct attention_kernels *attention_kernels_get(enum cpu_level level);

#endif
