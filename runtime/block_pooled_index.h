/* Attention over the blocks of tokens that an index chooses (Qwen4-Exp). A block's index row is the mean of its tokens'
 * index keys, normed, and rotated to its first token's place; tokens after the last full block are always seen. */
#ifndef PENSTOCK_RUNTIME_BLOCK_POOLED_INDEX_H
#define PENSTOCK_RUNTIME_BLOCK_POOLED_INDEX_H

#include "runtime/forward_internal.h"

/* Floats per token of scratch.mixer, from its start; and of the layer's state: the keys of a block that is not full. */
uint64_t pooled_index_mixer(const struct hparams *hp, const struct layer_hparams *l);
uint64_t pooled_index_state(const struct layer_hparams *l);

/* For attention_options.attend. */
void attend_pooled_index(struct forward *f, uint32_t layer);

#endif
