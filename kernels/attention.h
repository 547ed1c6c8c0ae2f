/* Attention of a chunk of queries over the KV cache, with grouped query heads.
 *
 * Per (token, head): the visible cells in segments that depend on the token's position alone; in each segment an
 * online softmax over key blocks of fixed size and position, in order; the segments added up in order. So the result
 * depends neither on threads nor on how many tokens share the call, and a long context can be shared among threads.
 * F16 and Q8_0 cells count as the F32 values they stand for, exactly: a query is never rounded. No temporary
 * grows with context. */
#ifndef PENSTOCK_KERNELS_ATTENTION_H
#define PENSTOCK_KERNELS_ATTENTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu.h"
#include "kernels/kv_row.h"

enum {
    ATTENTION_KEY_BLOCK = 64, /* keys per softmax block; blocks start at multiples of it in the cache */
    ATTENTION_SEGMENT = 256,  /* cells of the shortest segment; doubles until a token has at most ... */
    ATTENTION_MAX_SEGMENTS = 16,
};

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
    float scale;           /* of q.k */
    uint32_t window;       /* 0: all of the past */
    bool window_in_chunks; /* token t sees the cells from pos[t] / window * window on instead */
    const float *sinks;    /* [n_head] extra logits in the denominator, or NULL */
    float *partials;       /* attention_partial_floats, shared by the threads; may be NULL where that is 0 */
};

/* How a call is divided into work items: made of args, the same whatever the threads. */
struct attention_work {
    uint32_t tile_tokens, tile_heads;     /* an item's queries share a kv head, and its loads of K and V */
    uint32_t n_token_tiles, n_head_tiles; /* per kv head */
    uint32_t n_parts;                     /* above 1: an item takes one segment and leaves a partial result */
    uint32_t n_items;
    uint32_t n_combines; /* second pass, when all items are done; often 0 */
};

struct attention_work attention_work_of(const struct attention_args *args);

struct attention_kernels {
    enum cpu_level level;
    /* scratch: attention_scratch_floats(args) floats, one per thread. */
    void (*item)(const struct attention_args *args, const struct attention_work *work, uint32_t item,
                 float *scratch);
    void (*combine)(const struct attention_args *args, const struct attention_work *work, uint32_t index);
};

/* Positions count from the first row of k and v. A cache that drops old rows of a window may let row 0 move in multiples of
 * this: segments then hold the same cells as before, and results keep their bits. */
uint32_t attention_window_step(uint32_t window);

/* Sizes that do for calls with up to args->n_tokens tokens and pos < n_cells. They look at n_tokens, n_head,
 * n_kv_head, head_dim_k, head_dim_v. */
size_t attention_scratch_floats(const struct attention_args *args);
size_t attention_partial_floats(const struct attention_args *args, uint64_t n_cells);

/* level must be available. */
const struct attention_kernels *attention_kernels_get(enum cpu_level level);

#endif
