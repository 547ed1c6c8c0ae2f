/* Forward pass: the blocks that architecture files are made of. A chunk of tokens of one sequence passes all
 * layers; every block works on the chunk's residual stream and keeps to fixed orders of reduction, so a token's
 * logits do not depend on the chunk it is in (DESIGN.md, invariant 2). What a block does beyond its options follows
 * from the tensors that the layer has and from the hyperparameters. */
#ifndef PENSTOCK_RUNTIME_FORWARD_H
#define PENSTOCK_RUNTIME_FORWARD_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/hparams.h"
#include "storage/status.h"

struct forward;

const struct hparams *hparams_of(const struct forward *f);

enum rope_pairs {
    ROPE_NONE,
    ROPE_CONSECUTIVE, /* (2i, 2i + 1) */
    ROPE_NEOX,        /* (i, i + n_rot/2) */
};

struct attention_options {
    enum rope_pairs rope;
    bool norm_whole_row;  /* q/k norm over all heads at once; else per head. Only where the norms exist */
    bool norm_after_rope; /* q/k norm after the rotation; else before */
    bool norm_unweighted; /* q and k of each head are RMS-normed without weights, after the rotation */
    bool norm_values;     /* so are values */
    bool gate_in_q;       /* attn_q has [query | gate] per head; sigmoid(gate) scales the output */
    bool scale_q;         /* by hparams.temperature */
    bool input_ready;     /* scratch.normed holds the input; else norm(x) is made */
    bool keep_branch;     /* the output stays in scratch.branch and is not added to x */
    /* scratch.attended from scratch.q and the cache; scratch.normed still holds the input. NULL: all cells that the token
     * sees. */
    void (*attend)(struct forward *f, uint32_t layer);
};

/* x += attention(norm(x)): norm, q/k/v with biases, q/k norms, RoPE, KV cache, attention (sinks, window), gate, output
 * projection with bias, norm of the branch. Where the layer has no attn_v, values are the keys before norm and RoPE.
 * Leaves norm(x) in scratch.normed. */
void block_attention(struct forward *f, uint32_t layer, const struct attention_options *options);

struct delta_net_options {
    bool
        tiled_keys; /* value head h has key head h % key heads; else heads that follow each other share one */
    bool sigmoid_gate; /* of the output; else silu */
    bool input_ready;  /* as of attention */
    bool keep_branch;
};

/* x += gated delta net(norm(x)): its state in the KV cache. */
void block_delta_net(struct forward *f, uint32_t layer, const struct delta_net_options *options);

/* x += Kimi delta attention(norm(x)): its state in the KV cache. */
void block_kda(struct forward *f, uint32_t layer);

/* x += Mamba-2(norm(x)): its state in the KV cache. */
void block_mamba2(struct forward *f, uint32_t layer);

/* x += short convolution(norm(x)): the last inputs of the convolution in the KV cache. */
void block_short_conv(struct forward *f, uint32_t layer);

struct mla_options {
    enum rope_pairs rope; /* of the last n_rot values of q and of the key that all heads share */
    bool scale_q;         /* by hparams.temperature */
};

/* x += attention(norm(x)) with latent keys and values (hparams.mla): norm, q at once or by a latent row, latent row with norm,
 * RoPE, KV cache, attention, output projection. Where the file has it split, the expansion of latent rows to heads is taken
 * to the other side: into q before attention and into its output after, so that the cache holds latent rows. With
 * hparams.index a token attends to the cells that the layer, or the last one before it with an index, has chosen. */
void block_mla(struct forward *f, uint32_t layer, const struct mla_options *options);

/* What happens between a feed-forward network's first products and its last. */
enum ffn_activation {
    FFN_SWIGLU,       /* silu(gate) * up; with the layer's limit: min(silu(gate), limit) * clamp(up, limit) */
    FFN_SWIGLU_CLAMP, /* the same, but for the limit: silu(min(gate, limit)) * clamp(up, limit) */
    FFN_SWIGLU_OAI,   /* of gpt-oss */
    FFN_GEGLU,        /* gelu(gate) * up */
    FFN_RELU_SQUARED, /* max(up, 0)^2; there is no gate */
};

struct ffn_options {
    enum ffn_activation activation;
    bool input_ready; /* scratch.normed holds the input; else norm(x) is made */
    bool keep_branch; /* the output stays in scratch.branch and is not added to x */
};

/* x += down(activation(gate(norm(x)), up(norm(x)))), with norm of the branch. */
void block_dense_ffn(struct forward *f, uint32_t layer, const struct ffn_options *options);

struct moe_options {
    enum ffn_activation activation;
    bool input_ready;          /* as above */
    bool weigh_input;          /* weights multiply an expert's input, not its output */
    const float *router_input; /* [n_tokens][n_embd]; NULL: the experts' input */
    float output_scale;        /* of routed and shared experts together; 0: 1 */
    float *out;                /* [n_tokens][n_embd] gets the sum, which is then not added to x; NULL: x */
};

/* x += sum of chosen experts by weight, in router rank order, on norm(x), or between two products where the layer has those for
 * a latent row. Scores, groups and normalization of weights are
 * hyperparameters. Where the layer has a shared expert it is added, scaled by sigmoid(x . shared router) if there is
 * one. */
enum ps_status block_moe(struct forward *f, uint32_t layer, const struct moe_options *options,
                         struct ps_error *err);

/* Whether a layer has routed experts. */
bool layer_is_moe(const struct forward *f, uint32_t layer);
/* Whether it keeps keys and values. */
bool layer_attends(const struct forward *f, uint32_t layer);
/* Whether it keeps a state instead of keys and values. */
bool layer_is_recurrent(const struct forward *f, uint32_t layer);
/* block_moe or block_dense_ffn, as the layer is. */
enum ps_status block_ffn(struct forward *f, uint32_t layer, enum ffn_activation activation,
                         struct ps_error *err);

#endif
