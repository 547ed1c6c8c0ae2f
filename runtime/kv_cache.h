/* KV cache: what the layers keep of one sequence. Attention layers keep keys and values, per head, rows of consecutive
 * positions together; those with a sliding window only as many as it takes; recurrent layers a state of fixed size.
 * Layers that work on blocks of tokens keep rows of those, too, for the whole sequence. */
#ifndef PENSTOCK_RUNTIME_KV_CACHE_H
#define PENSTOCK_RUNTIME_KV_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/attention.h"
#include "runtime/hparams.h"

struct kv_layer {
    uint32_t n_kv_head;
    uint32_t cells;      /* rows of memory */
    uint32_t first;      /* position in row 0: 0 without a window */
    uint32_t window;     /* 0: none */
    uint32_t step;       /* first moves in multiples of it, so that it leaves no trace in the result */
    size_t k_row, v_row; /* bytes of one head's row; v_row 0: values lie in the keys */
    size_t index_row;    /* bytes of the row beside them, or of a block's; 0: none */
    uint32_t block;      /* tokens of a block; 0: index rows belong to cells */
    size_t block_row;    /* bytes of a block's compressed key; 0: none */
    uint8_t *k, *v;      /* [n_kv_head][cells] rows; v may be k */
    uint8_t *index;      /* [cells], or [ctx / block] rows */
    uint8_t *blocks;     /* [ctx / block] rows */
    float *state;        /* [state_floats] */
    uint64_t state_floats;
};

struct kv_cache {
    enum kv_type type;
    uint32_t ctx;    /* positions that there is room for */
    uint32_t n_used; /* positions that hold a token */
    uint32_t n_layers;
    struct kv_layer *layers;
    uint64_t bytes;
    uint8_t *memory;
};

/* Bytes that each token adds: layers without a window. */
uint64_t kv_token_bytes(const struct hparams *hp, enum kv_type type);
/* Bytes that do not grow with the sequence: windows when they are full, and recurrent states. */
uint64_t kv_fixed_bytes(const struct hparams *hp, enum kv_type type);
/* All of it; chunk: most tokens that are fed at once. */
uint64_t kv_cache_bytes(const struct hparams *hp, enum kv_type type, uint32_t ctx, uint32_t chunk);

/* 0, or -ENOMEM. */
int kv_cache_init(struct kv_cache *kv, const struct hparams *hp, enum kv_type type, uint32_t ctx,
                  uint32_t chunk);
void kv_cache_deinit(struct kv_cache *kv);

/* Makes room for n more tokens, n <= chunk: drops what the windows have left behind. */
void kv_cache_make_room(struct kv_cache *kv, uint32_t n);
/* Forgets tokens from the end until at most n are left: n, or 0 where a window or a state can not go back to n. Returns
 * how many are left. */
uint32_t kv_cache_truncate(struct kv_cache *kv, uint32_t n);
/* After a chunk that failed among the layers: forgets the whole sequence where recurrent layers are ahead of the others. */
void kv_cache_chunk_failed(struct kv_cache *kv);

/* Rows of a position that is in the cache, and of the first position that is. */
static inline uint8_t *kv_cache_k(const struct kv_layer *layer, uint32_t head, uint32_t position)
{
    return layer->k + ((uint64_t)head * layer->cells + (position - layer->first)) * layer->k_row;
}

static inline uint8_t *kv_cache_v(const struct kv_layer *layer, uint32_t head, uint32_t position)
{
    return layer->v + ((uint64_t)head * layer->cells + (position - layer->first)) * layer->v_row;
}

static inline uint8_t *kv_cache_index(const struct kv_layer *layer, uint32_t position)
{
    return layer->index + (uint64_t)(position - layer->first) * layer->index_row;
}

#endif
