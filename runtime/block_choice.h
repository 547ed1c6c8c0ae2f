/* Attention over the blocks of tokens that an index chooses, with tokens after the last full block always seen. Index keys are of
 * one head, index queries of several.
 *
 * By block (Qwen4-Exp): a block's index row is the mean of its tokens' keys, normed, and rotated to its first token's place;
 * heads add up. By cell (MiniMax-M3): a block counts as its best key does, and each head chooses for one head of keys. */
#ifndef PENSTOCK_RUNTIME_BLOCK_CHOICE_H
#define PENSTOCK_RUNTIME_BLOCK_CHOICE_H

#include "runtime/forward_internal.h"

/* Floats per token of scratch.mixer, from its start; and of the layer's state: the keys of a block that is not full. */
uint64_t choice_mixer(const struct hparams *hp, const struct layer_hparams *l);
uint64_t choice_state(const struct layer_hparams *l);
/* Of hp->index: no multiple of what cache rows are made of, or less than what is rotated. */
enum ps_status check_index_dim(const struct hparams *hp, const char *arch, struct ps_error *err);

/* For attention_options.attend; layers without an index see all. */
void attend_chosen_blocks(struct forward *f, uint32_t layer);

#endif
