/* Forward pass: the blocks that architecture files are made of. A chunk of tokens of one sequence passes all
 * layers; every block works on the chunk's residual stream and keeps to fixed orders of reduction, so a token's
 * logits do not depend on the chunk it is in (DESIGN.md, invariant 2). */
#ifndef PENSTOCK_RUNTIME_FORWARD_H
#define PENSTOCK_RUNTIME_FORWARD_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/status.h"

struct forward;

struct attention_options {
    bool rope_neox;      /* pairs (i, i + n/2); else consecutive pairs */
    bool norm_whole_row; /* q/k norm over all heads at once; else per head. Only where the norms exist */
};

/* x += attention(norm(x)): norm, q/k/v with biases where the file has them, q/k norms likewise, RoPE, KV cache,
 * attention, output projection. */
void block_attention(struct forward *f, uint32_t layer, const struct attention_options *options);

/* x += down(silu(gate(norm(x))) * up(norm(x))). */
void block_dense_ffn(struct forward *f, uint32_t layer);

struct moe_options {
    bool renormalize; /* chosen softmax weights are divided by their sum */
};

/* x += sum of chosen experts by weight, in router rank order, on norm(x); softmax over all experts, then top-k. Where
 * the layer has a shared expert it is added, scaled by sigmoid(x . shared router) if there is one. */
enum ps_status block_moe(struct forward *f, uint32_t layer, const struct moe_options *options,
                         struct ps_error *err);

/* Whether a layer has routed experts. */
bool layer_is_moe(const struct forward *f, uint32_t layer);

#endif
