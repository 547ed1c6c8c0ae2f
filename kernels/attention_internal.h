/* What the levels of attention share: which queries and cells a work item has, and where partial results stand. */
#ifndef PENSTOCK_KERNELS_ATTENTION_INTERNAL_H
#define PENSTOCK_KERNELS_ATTENTION_INTERNAL_H

#include <stdbool.h>

#include "kernels/attention.h"

enum {
    ATTENTION_TILE_ROWS =
        32, /* most queries of an item: enough to hide converting K and V, few enough for L1 and L2 */
    ATTENTION_PAD =
        32, /* scratch rows are filled up with zeros to a multiple: whole registers, Q8_0 blocks */
};

static inline size_t attention_padded(size_t dim)
{
    return (dim + ATTENTION_PAD - 1) / ATTENTION_PAD * ATTENTION_PAD;
}

/* Floats from row to row of a converted block: an odd number of cache lines, so that the same few columns of many
 * rows spread over all sets of L1. */
static inline size_t attention_packed(size_t dim)
{
    return attention_padded(dim) + 16;
}

/* What one token sees, and the segments this is taken in. */
struct attention_span {
    uint64_t first, end; /* visible cells */
    uint64_t cells;      /* per segment; segment i is cells [i * cells, (i + 1) * cells) */
};

struct attention_span attention_span_of(const struct attention_args *args, uint32_t token);

/* Number of segments with a visible cell. */
static inline uint32_t attention_n_segments(const struct attention_span *span)
{
    return span->end == 0 ? 0 : (uint32_t)((span->end - 1) / span->cells - span->first / span->cells + 1);
}

struct attention_range {
    uint64_t begin, end; /* cells; equal: none */
};

/* The visible part of a segment. */
struct attention_range attention_segment(const struct attention_span *span, uint64_t segment);

/* A work item: n_tokens x n_heads queries (rows, heads of a token together) of one kv head. */
struct attention_tile {
    uint32_t token, n_tokens;                         /* first token */
    uint32_t head, n_heads;                           /* first head */
    const char *k, *v;                                /* cell 0 of the kv head */
    struct attention_span spans[ATTENTION_TILE_ROWS]; /* [n_tokens] */
    uint64_t segment[ATTENTION_TILE_ROWS];            /* [n_tokens] the first one to take */
    uint32_t n_segments; /* to take, ascending; some may be empty for some tokens */
    uint32_t part;       /* of work->n_parts */
};

void attention_tile_at(const struct attention_args *args, const struct attention_work *work, uint32_t item,
                       struct attention_tile *tile);

/* A segment's result before the division: out = values / sum, relative to the largest logit. */
struct attention_partial {
    float max, sum;
    float values[]; /* [head_dim_v] */
};

static inline struct attention_partial *attention_partial_at(const struct attention_args *args,
                                                             const struct attention_work *work,
                                                             uint32_t token, uint32_t head, uint32_t part)
{
    size_t row = ((size_t)token * args->n_head + head) * work->n_parts + part;
    return (struct attention_partial *)(void *)(args->partials + row * (args->head_dim_v + 2));
}

extern const struct attention_kernels attention_scalar;
extern const struct attention_kernels attention_avx2;
extern const struct attention_kernels attention_avx512;
extern const struct attention_kernels attention_neon;

#endif
