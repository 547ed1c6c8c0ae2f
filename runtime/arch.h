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
    GT_OUTPUT, /* absent: tied to the embedding */
    GT_ROPE_FREQS,
    GT_COUNT,
};

/* Trunk tensors of one layer; routed experts are in the shard map. */
enum layer_tensor {
    LT_ATTN_NORM,
    LT_Q,
    LT_K,
    LT_V,
    LT_Q_BIAS,
    LT_K_BIAS,
    LT_V_BIAS,
    LT_Q_NORM,
    LT_K_NORM,
    LT_ATTN_OUTPUT,
    LT_ATTN_OUTPUT_BIAS,
    LT_FFN_NORM,
    LT_ROUTER,
    LT_FFN_GATE,
    LT_FFN_UP,
    LT_FFN_DOWN,
    LT_SHARED_ROUTER,
    LT_SHARED_GATE,
    LT_SHARED_UP,
    LT_SHARED_DOWN,
    LT_COUNT,
};

enum dimension {
    DIM_ONE,
    DIM_EMBD,
    DIM_VOCAB,
    DIM_HEAD_K,   /* one head */
    DIM_Q,        /* all query heads */
    DIM_K,        /* all key heads */
    DIM_V,        /* all value heads */
    DIM_ATTN_OUT, /* heads * head_dim_v */
    DIM_FF,
    DIM_SHARED_FF,
    DIM_EXPERTS,
    DIM_HALF_ROT,
};

enum tensor_need {
    NEED_ALWAYS,
    NEED_OPTIONAL,
    NEED_IN_MOE,   /* required in layers with routed experts, absent in others */
    NEED_IN_DENSE, /* the other way round */
};

struct tensor_rule {
    uint32_t id;               /* enum global_tensor or enum layer_tensor */
    const char *name;          /* without "blk.N." */
    enum dimension rows, cols; /* vectors: rows = DIM_ONE */
    enum tensor_need need;
};

struct forward;

struct arch {
    const char *name; /* general.architecture */
    const struct tensor_rule *layer_rules;
    uint32_t n_layer_rules;
    const char *const *known_keys; /* suffixes beside the common ones; NULL-terminated */
    /* Checks beyond the common ones; may be NULL. */
    enum ps_status (*check)(const struct hparams *hp, const struct gguf *gguf, struct ps_error *err);
    enum ps_status (*layer)(struct forward *f, uint32_t layer, struct ps_error *err);
};

const struct arch *arch_find(struct gguf_string name); /* NULL when not supported */
const struct arch *arch_at(uint32_t index);            /* NULL past the end */

/* Rules that all families share. */
extern const struct tensor_rule GLOBAL_RULES[];
extern const uint32_t N_GLOBAL_RULES;

extern const struct arch ARCH_LLAMA, ARCH_OLMOE, ARCH_QWEN2MOE, ARCH_QWEN3MOE;

#endif
