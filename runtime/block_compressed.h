/* Attention with compressed blocks (DeepSeek-V4): one head of keys, which are the values, too; of all heads' queries. What the
 * window has left behind is seen as one key per block of tokens. */
#ifndef PENSTOCK_RUNTIME_BLOCK_COMPRESSED_H
#define PENSTOCK_RUNTIME_BLOCK_COMPRESSED_H

#include "runtime/forward_internal.h"

enum { MAX_COMPRESSED_TOKENS = 256 }; /* that one block is made of */

/* A token's row of scratch.mixer, in floats; what a layer lacks is 0 wide. */
struct compressed_mixer {
    uint64_t q_a;
    uint64_t state; /* row that the layer keeps: of the key kv and score, of the index kv and score */
    uint64_t state_floats;
    uint64_t index_q, index_weights;
    uint64_t out_a;
    uint64_t angles, work; /* of a block that ends at the token */
    uint64_t end;
};
struct compressed_mixer compressed_mixer_of(const struct hparams *hp, const struct layer_hparams *l);

/* Tokens whose state rows a layer keeps: those of a block, and of the one before where blocks overlap. */
uint32_t compressed_state_rows(const struct layer_hparams *l);

/* Blocks with an index take from the block before them, too: twice as many values per token. */
dim_fn dim_compressor, dim_index_compressor, dim_block;
dim_fn dim_q_rank;
dim_fn dim_out_group, dim_out_a;

/* scratch.branch = attention of scratch.normed. */
void block_compressed_attention(struct forward *f, uint32_t layer);

#endif
