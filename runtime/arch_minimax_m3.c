/* minimax-m3: q/k norm and a rotation of part of each head; behind the leading dense layers, attention over blocks of tokens that
 * an index chooses for each head of keys; sigmoid scores with a selection bias, a shared expert, gpt-oss's activation. */
#include "runtime/arch.h"
#include "runtime/block_choice.h"
#include "runtime/recurrent.h"
#include "runtime/scratch.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    QKV_RULES(NEED_ALWAYS),
    HEAD_NORM_RULES(NEED_ALWAYS),
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_INDEX_Q, "indexer.q_proj.weight", dim_index_q, dim_embd, NEED_IN_INDEXED, NULL},
    {LT_INDEX_K, "indexer.k_proj.weight", dim_index, dim_embd, NEED_IN_INDEXED, NULL},
    {LT_INDEX_Q_NORM, "indexer.q_norm.weight", dim_one, dim_index, NEED_IN_INDEXED, NULL},
    {LT_INDEX_K_NORM, "indexer.k_norm.weight", dim_one, dim_index, NEED_IN_INDEXED, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    DENSE_FFN_RULES(NEED_IN_DENSE),
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_MOE, NULL},
    SHARED_EXPERT_RULES(NEED_IN_MOE),
};

static const char *const KEYS[] = {
    "attention.indexer.head_count", "attention.indexer.key_length",   "attention.indexer.top_k", /* blocks */
    "attention.indexer.block_size", "attention.indexer.local_blocks", NULL,
};

static const char NAME[] = "minimax-m3";

static enum ps_status read_index(struct hparams *hp, const struct gguf *gguf, uint32_t *block, uint32_t *top,
                                 struct ps_error *err)
{
    struct index_hparams *index = &hp->index;
    enum ps_status status;
    if ((status = hparam_size(gguf, NAME, "attention.indexer.head_count", &index->n_head, err)) != PS_OK ||
        (status = hparam_size(gguf, NAME, "attention.indexer.key_length", &index->head_dim, err)) != PS_OK ||
        (status = hparam_size(gguf, NAME, "attention.indexer.top_k", top, err)) != PS_OK ||
        (status = hparam_size(gguf, NAME, "attention.indexer.block_size", block, err)) != PS_OK ||
        (status = hparam_size(gguf, NAME, "attention.indexer.local_blocks", &index->last_blocks, err)) !=
            PS_OK ||
        (status = check_index_dim(hp, NAME, err)) != PS_OK)
        return status;
    if (*block > BLOCK_TILE || index->last_blocks > *top)
        return ps_error_set(err, PS_ERR_UNSUPPORTED,
                            "%s.attention.indexer: blocks of %u tokens, %u of %u always chosen, are not "
                            "handled",
                            NAME, *block, index->last_blocks, *top);
    return PS_OK;
}

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    uint32_t block, top;
    uint32_t n_dense = 0;
    enum ps_status status;
    if ((status = read_index(hp, gguf, &block, &top, err)) != PS_OK ||
        (status = hparam_u32(gguf, NAME, "leading_dense_block_count", false, &n_dense, err)) != PS_OK)
        return status;
    for (uint32_t il = n_dense; il < hp->n_layers; il++) {
        struct layer_hparams *l = &hp->layer[il];
        if (l->n_kv_head != hp->index.n_head)
            return ps_error_set(err, PS_ERR_UNSUPPORTED,
                                "%s.attention.indexer.head_count: %u, but layer %u has %u heads of keys",
                                NAME, hp->index.n_head, il, l->n_kv_head);
        l->block = block;
        l->index_by_cell = true;
        l->index_dim = hp->index.head_dim;
        l->most_chosen = top > UINT32_MAX / block ? UINT32_MAX : top * block;
        if ((status = hparams_want_mixer(hp, NAME, choice_mixer(hp, l), err)) != PS_OK)
            return status;
    }
    return PS_OK;
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope = ROPE_NEOX, .attend = attend_chosen_blocks});
    return block_ffn(f, il, FFN_SWIGLU_OAI, err);
}

const struct arch ARCH_MINIMAX_M3 = {
    .name = "minimax-m3",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .known_keys = KEYS,
    .gating = GATING_SIGMOID,
    .hparams = hparams,
    .layer = layer,
};
