/* Architectures: one row and one small file per family, over the shared blocks of forward.h.
 *
 * A family says which tensors it has and of which shape (a table), which extra keys it knows, and how one layer
 * is computed. It never sees files, slots or threads. See runtime/README.md for a worked example. */
#ifndef PENSTOCK_RUNTIME_ARCH_H
#define PENSTOCK_RUNTIME_ARCH_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/hparams.h"
#include "storage/gguf.h"
#include "storage/status.h"

/* Trunk tensors outside the layers. */
enum global_tensor {
    GT_TOKEN_EMBD,
    GT_OUTPUT_NORM,
    GT_OUTPUT_NORM_BIAS,
    GT_OUTPUT, /* absent: tied to the embedding */
    GT_OUTPUT_BIAS,
    GT_ROPE_FREQS,
    GT_ROPE_FACTORS_LONG, /* of longrope: contexts past rope.ctx_orig */
    GT_ROPE_FACTORS_SHORT,
    GT_OUTPUT_HC_FN, /* hyper-connections */
    GT_OUTPUT_HC_BASE,
    GT_OUTPUT_HC_SCALE,
    GT_OUTPUT_HC_NORM,
    GT_OUTPUT_HC_DOWN,
    GT_OUTPUT_HC_UP,
    GT_LAYER_EMBD, /* per-layer embeddings; or those of n-grams, which stay in the file */
    GT_COUNT,
};

/* Trunk tensors of one layer; routed experts are in the shard map. An id says what the tensor does in the graph; under which
 * name it is stored is the family's affair. */
enum layer_tensor {
    LT_NONE,
    LT_ATTN_NORM,
    LT_ATTN_NORM_BIAS,
    LT_Q,
    LT_K,
    LT_V,
    LT_QKV, /* rows of q, then k, then v */
    LT_Q_BIAS,
    LT_K_BIAS,
    LT_V_BIAS,
    LT_QKV_BIAS,
    LT_Q_NORM,
    LT_K_NORM,
    LT_ATTN_GATE,  /* sigmoid of it scales the attention's output: a row per head, or per value */
    LT_ATTN_SINKS, /* [n_head] */
    LT_ATTN_OUTPUT,
    LT_ATTN_OUTPUT_BIAS,
    LT_ATTN_POST_NORM, /* of the branch, before it is added */

    LT_Q_A, /* latent attention */
    LT_Q_A_NORM,
    LT_Q_B,
    LT_KV_A,
    LT_KV_A_NORM,
    LT_K_B,  /* a slice per head */
    LT_V_B,  /* likewise */
    LT_KV_B, /* both, rows of k, then v, per head: of older files */
    LT_ATTN_OUTPUT_A,
    LT_ATTN_OUTPUT_B,

    LT_INDEX_Q, /* choice of cells for sparse attention */
    LT_INDEX_Q_NORM,
    LT_INDEX_K,
    LT_INDEX_K_NORM,
    LT_INDEX_K_NORM_BIAS,
    LT_INDEX_PROJ,
    LT_COMPRESSOR_KV, /* compressed keys and values */
    LT_COMPRESSOR_GATE,
    LT_COMPRESSOR_APE,
    LT_COMPRESSOR_NORM,
    LT_INDEX_COMPRESSOR_KV,
    LT_INDEX_COMPRESSOR_GATE,
    LT_INDEX_COMPRESSOR_APE,
    LT_INDEX_COMPRESSOR_NORM,

    LT_SSM_IN, /* recurrent layers */
    LT_SSM_CONV,
    LT_SSM_CONV_BIAS,
    LT_SSM_CONV_Q,
    LT_SSM_CONV_K,
    LT_SSM_CONV_V,
    LT_SSM_DT_BIAS,
    LT_SSM_A,
    LT_SSM_D,
    LT_SSM_BETA,
    LT_SSM_ALPHA,
    LT_SSM_BETA_ALPHA,
    LT_SSM_F_A,
    LT_SSM_F_B,
    LT_SSM_G_A,
    LT_SSM_G_B,
    LT_SSM_GATE,
    LT_SSM_NORM,
    LT_SSM_OUT,
    LT_SHORTCONV_IN,
    LT_SHORTCONV_CONV,
    LT_SHORTCONV_OUT,

    LT_FFN_NORM,
    LT_FFN_NORM_BIAS,
    LT_FFN_POST_NORM, /* of the branch, before it is added */
    LT_FFN_GATE,
    LT_FFN_UP,
    LT_FFN_DOWN,
    LT_FFN_UP_BIAS,
    LT_FFN_DOWN_BIAS,
    LT_ROUTER,
    LT_ROUTER_BIAS,   /* added to the logits */
    LT_SELECT_BIAS,   /* added to the scores for the choice, not for the weights */
    LT_ROUTER_SCALE,  /* gemma4: of the router's input */
    LT_TOKEN_EXPERTS, /* deepseek4: experts by token id instead of a choice: rows of ids */
    LT_SHARED_ROUTER, /* sigmoid of it scales the shared expert's output */
    LT_SHARED_GATE,
    LT_SHARED_UP,
    LT_SHARED_DOWN,
    LT_MOE_PRE_NORM, /* gemma4: norms of the routed and the dense branch apart */
    LT_MOE_POST_NORM,
    LT_DENSE_POST_NORM,
    LT_LATENT_DOWN, /* experts work on a narrower row */
    LT_LATENT_UP,
    LT_OUTPUT_SCALE, /* of the whole residual stream */

    LT_HC_ATTN_FN, /* hyper-connections */
    LT_HC_ATTN_BASE,
    LT_HC_ATTN_SCALE,
    LT_HC_ATTN_NORM,
    LT_HC_ATTN_DOWN,
    LT_HC_ATTN_UP,
    LT_HC_ATTN_INJECT,
    LT_HC_FFN_FN,
    LT_HC_FFN_BASE,
    LT_HC_FFN_SCALE,
    LT_HC_FFN_NORM,
    LT_HC_FFN_DOWN,
    LT_HC_FFN_UP,
    LT_HC_FFN_INJECT,
    LT_PLE_KEY, /* n-gram embeddings */
    LT_PLE_VALUE,
    LT_PLE_NORM_KEY,
    LT_PLE_NORM_QUERY,
    LT_PLE_NORM_CONV,
    LT_PLE_CONV,
    LT_COUNT,
};

/* Families add functions of their own for shapes that no other has. */
dim_fn dim_one, dim_embd, dim_vocab;
dim_fn dim_head_k, dim_head_v;          /* one head */
dim_fn dim_n_head, dim_q, dim_k, dim_v; /* all heads */
dim_fn dim_qkv;                         /* q, k and v together */
dim_fn dim_attn_out;                    /* heads * head_dim_v */
dim_fn dim_q_gated;                     /* twice dim_q: query and gate */
dim_fn dim_ff, dim_shared_ff, dim_experts, dim_expert_embd;
dim_fn dim_half_rot;                                  /* of rope 0 */
dim_fn dim_mla_q_rank, dim_mla_kv_rank, dim_mla_kv_a; /* latent attention: latent rows */
dim_fn dim_mla_q;                               /* all heads, where there is no latent row for queries */
dim_fn dim_mla_q_b, dim_mla_kv_b, dim_mla_out;  /* all heads */
dim_fn dim_mla_nope, dim_mla_v;                 /* one head */
dim_fn dim_index, dim_index_heads, dim_index_q; /* choice of cells: one head, their number, all of them */

/* When a tensor must be there; it may not be there when it need not, but for optional ones. Layers of both kinds: alternatives
 * within a line are or-ed (none: any), lines are and-ed. */
enum tensor_need {
    NEED_ALWAYS = 0,
    NEED_OPTIONAL = 1 << 0,     /* in the layers that the other bits name */
    NEED_IN_MOE = 1 << 1,       /* layers with routed experts */
    NEED_IN_DENSE = 1 << 2,     /* layers with n_ff > 0 and no routed experts */
    NEED_IN_ATTENTION = 1 << 3, /* layers with n_kv_head > 0 that are not recurrent */
    NEED_IN_RECURRENT = 1 << 4,
    NEED_IN_WINDOWED = 1 << 5,
    NEED_IN_FULL = 1 << 6,       /* attention without a window */
    NEED_IN_COMPRESSED = 1 << 7, /* layers with compressed blocks */
    NEED_IN_INDEXED = 1 << 8,    /* layers that choose cells by an index */
    NEED_IN_BY_TOKEN = 1 << 9,   /* layers whose experts follow from the token id */
    NEED_IN_NGRAMS = 1 << 14,    /* layers with embeddings of n-grams */
    NEED_IN_ROUTED = 1 << 10,    /* layers whose experts are chosen by score */
    HOLDS_IDS = 1 << 11,         /* the tensor is I32 */
    IS_MATRIX = 1 << 12,         /* of a product, however narrow: any format will do */
    STAYS_IN_FILE = 1 << 13, /* a table too large for memory, rows of which are read when they are needed */
    NEED_F32 = 1 << 15,      /* several vectors, used as they are */
    NEED_UNUSED = 1 << 16,   /* may be there, is never read: where the computation does without */
};

struct tensor_rule {
    uint32_t id;         /* enum global_tensor or enum layer_tensor */
    const char *name;    /* without "blk.N." */
    dim_fn *rows, *cols; /* vectors: rows = dim_one. Vectors and what has rows of fewer than 32 are F32 */
    unsigned need;       /* enum tensor_need */
    dim_fn *slices;      /* third dimension, its rows after each other in the weight; NULL: 1 */
};

/* Rows that many families' tables have, with what decides on their presence. */
#define QKV_RULES(need)                                                                                      \
    {LT_Q, "attn_q.weight", dim_q, dim_embd, need, NULL},                                                    \
        {LT_K, "attn_k.weight", dim_k, dim_embd, need, NULL},                                                \
    {                                                                                                        \
        LT_V, "attn_v.weight", dim_v, dim_embd, need, NULL                                                   \
    }
#define QKV_BIAS_RULES(need)                                                                                 \
    {LT_Q_BIAS, "attn_q.bias", dim_one, dim_q, need, NULL},                                                  \
        {LT_K_BIAS, "attn_k.bias", dim_one, dim_k, need, NULL},                                              \
    {                                                                                                        \
        LT_V_BIAS, "attn_v.bias", dim_one, dim_v, need, NULL                                                 \
    }
#define HEAD_NORM_RULES(need)                                                                                \
    {LT_Q_NORM, "attn_q_norm.weight", dim_one, dim_head_k, need, NULL},                                      \
    {                                                                                                        \
        LT_K_NORM, "attn_k_norm.weight", dim_one, dim_head_k, need, NULL                                     \
    }
#define DENSE_FFN_RULES(need)                                                                                \
    {LT_FFN_GATE, "ffn_gate.weight", dim_ff, dim_embd, need, NULL},                                          \
        {LT_FFN_UP, "ffn_up.weight", dim_ff, dim_embd, need, NULL},                                          \
    {                                                                                                        \
        LT_FFN_DOWN, "ffn_down.weight", dim_embd, dim_ff, need, NULL                                         \
    }
#define SHARED_EXPERT_RULES(need)                                                                            \
    {LT_SHARED_GATE, "ffn_gate_shexp.weight", dim_shared_ff, dim_embd, need, NULL},                          \
        {LT_SHARED_UP, "ffn_up_shexp.weight", dim_shared_ff, dim_embd, need, NULL},                          \
    {                                                                                                        \
        LT_SHARED_DOWN, "ffn_down_shexp.weight", dim_embd, dim_shared_ff, need, NULL                         \
    }

/* The tensors of latent attention, queries' way and the split of attn_kv_b as hparams_mla has found them. */
#define MLA_RULES(need)                                                                                      \
    {LT_Q, "attn_q.weight", dim_mla_q, dim_embd, (need) | NEED_OPTIONAL, NULL},                              \
        {LT_Q_A, "attn_q_a.weight", dim_mla_q_rank, dim_embd, (need) | NEED_OPTIONAL, NULL},                 \
        {LT_Q_A_NORM, "attn_q_a_norm.weight", dim_one, dim_mla_q_rank, (need) | NEED_OPTIONAL, NULL},        \
        {LT_Q_B, "attn_q_b.weight", dim_mla_q_b, dim_mla_q_rank, (need) | NEED_OPTIONAL, NULL},              \
        {LT_KV_A, "attn_kv_a_mqa.weight", dim_mla_kv_a, dim_embd, (need), NULL},                             \
        {LT_KV_A_NORM, "attn_kv_a_norm.weight", dim_one, dim_mla_kv_rank, (need), NULL},                     \
        {LT_K_B, "attn_k_b.weight", dim_mla_kv_rank, dim_mla_nope, (need) | NEED_OPTIONAL, dim_n_head},      \
        {LT_V_B, "attn_v_b.weight", dim_mla_v, dim_mla_kv_rank, (need) | NEED_OPTIONAL, dim_n_head},         \
        {LT_KV_B, "attn_kv_b.weight", dim_mla_kv_b, dim_mla_kv_rank, (need) | NEED_OPTIONAL, NULL},          \
    {                                                                                                        \
        LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_mla_out, (need), NULL                            \
    }

struct forward;

struct arch {
    const char *name; /* general.architecture */
    const struct tensor_rule *layer_rules;
    uint32_t n_layer_rules;
    const struct tensor_rule *global_rules; /* beside those that all families share; may be NULL */
    uint32_t n_global_rules;
    const char *const *known_keys; /* suffixes beside the common ones; NULL-terminated; may be NULL */
    /* Where the metadata does not say. */
    enum gating gating;
    bool renormalize;
    bool ungated_experts;          /* up and down only */
    bool gates_attention;          /* block_attention needs scratch.gate */
    enum layer_tensor router_norm; /* the norm before the router, for prediction; LT_NONE: LT_FFN_NORM */
    /* Reads and checks what only this family has; the common part is in *hp. May be NULL. */
    enum ps_status (*hparams)(struct hparams *hp, const struct gguf *gguf, struct ps_error *err);
    enum ps_status (*layer)(struct forward *f, uint32_t layer, struct ps_error *err);
    /* scratch.hidden from scratch.x, when all layers are done; NULL: the output norm. */
    void (*end)(struct forward *f);
};

const struct arch *arch_find(struct gguf_string name); /* NULL when not supported */
const struct arch *arch_at(uint32_t index);            /* NULL past the end */

/* Rules that all families share. */
extern const struct tensor_rule GLOBAL_RULES[];
extern const uint32_t N_GLOBAL_RULES;

extern const struct arch ARCH_AFMOE;
extern const struct arch ARCH_BAILINGMOE2;
extern const struct arch ARCH_COHERE2MOE;
extern const struct arch ARCH_DEEPSEEK2;
extern const struct arch ARCH_DEEPSEEK4;
extern const struct arch ARCH_DOTS1;
extern const struct arch ARCH_ERNIE4_5_MOE;
extern const struct arch ARCH_EXAONE_MOE;
extern const struct arch ARCH_GEMMA4;
extern const struct arch ARCH_GLM_DSA;
extern const struct arch ARCH_GLM4MOE;
extern const struct arch ARCH_GPT_OSS;
extern const struct arch ARCH_GRANITEMOE;
extern const struct arch ARCH_HUNYUAN_MOE;
extern const struct arch ARCH_KIMI_LINEAR;
extern const struct arch ARCH_LFM2MOE;
extern const struct arch ARCH_LLAMA;
extern const struct arch ARCH_LLAMA4;
extern const struct arch ARCH_MIMO2;
extern const struct arch ARCH_MINIMAX_M2;
extern const struct arch ARCH_MINIMAX_M3;
extern const struct arch ARCH_MISTRAL4;
extern const struct arch ARCH_NEMOTRON_H_MOE;
extern const struct arch ARCH_OLMOE;
extern const struct arch ARCH_PHIMOE;
extern const struct arch ARCH_QWEN2MOE;
extern const struct arch ARCH_QWEN35MOE;
extern const struct arch ARCH_QWEN3MOE;
extern const struct arch ARCH_QWEN3NEXT;
extern const struct arch ARCH_QWEN4EXP;
extern const struct arch ARCH_STEP35;

#endif
