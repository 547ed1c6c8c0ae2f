/* Attention over rows that differ from token to token: chosen cells, or a window and compressed blocks. */
#ifndef PENSTOCK_RUNTIME_BLOCK_GATHER_H
#define PENSTOCK_RUNTIME_BLOCK_GATHER_H

#include "runtime/forward_internal.h"

/* A block's score is the sum over heads of weight * max(q . index row, 0) (DeepSeek-V3.2's lightning indexer). Where index rows
 * belong to cells, each head has scores of its own, for one head of keys: the most that q . index row is in the block. */
struct index_queries {
    const float *q;       /* per token of the chunk: hp.index.n_head rows of hp.index.head_dim */
    const float *weights; /* per token: [hp.index.n_head]; NULL: 1. Not by cell */
    size_t stride;        /* floats between tokens, of both */
};

/* scratch.attended of tokens [first, n_tokens) = attention of scratch.q over the keys that each of them sees. In a layer with
 * compressed blocks: the window's cells and the blocks' keys; else the cells of the blocks and those of the block that is
 * not full yet. Blocks are those that are full at the token: all, or with an index the best; layer.most_chosen cells, those after them
 * included. */
void attend_gathered(struct forward *f, uint32_t layer, uint32_t first, const struct index_queries *index);
/* scratch.attended of the chunk in a layer without compressed blocks: attend() while a token sees all cells, then the above. */
void attend_blocks(struct forward *f, uint32_t layer, const struct index_queries *index);

#endif
