/* deepseek4 (DeepSeek-V4): several residual streams; attention over a window and compressed blocks, with queries by way of a
 * low rank and an output projection in two steps; experts by token id in the first layers, by score in the others. */
#include <math.h>
#include <stddef.h>

#include "runtime/arch.h"
#include "runtime/block_choice.h"
#include "runtime/block_compressed.h"
#include "runtime/block_hyper.h"

enum {
    INDEXED_BLOCK = 4, /* the two sizes of blocks that the family has: those that an index chooses among, */
    LONG_BLOCK = 128,  /* and those that are all seen */
};

static uint64_t dim_three(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)hp, (void)l;
    return 3;
}

static uint64_t dim_experts_used(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->n_expert_used;
}

enum {
    COMPRESSED = NEED_IN_COMPRESSED,
    INDEXED = NEED_IN_INDEXED,
};

static const struct tensor_rule RULES[] = {
    {LT_HC_ATTN_FN, "hc_attn_fn.weight", dim_hyper_mixes, dim_all_streams, NEED_ALWAYS, NULL},
    {LT_HC_ATTN_BASE, "hc_attn_base.weight", dim_one, dim_hyper_mixes, NEED_ALWAYS, NULL},
    {LT_HC_ATTN_SCALE, "hc_attn_scale.weight", dim_one, dim_three, NEED_ALWAYS, NULL},
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_Q_A, "attn_q_a.weight", dim_q_rank, dim_embd, NEED_ALWAYS, NULL},
    {LT_Q_A_NORM, "attn_q_a_norm.weight", dim_one, dim_q_rank, NEED_ALWAYS, NULL},
    {LT_Q_B, "attn_q_b.weight", dim_q, dim_q_rank, NEED_ALWAYS, NULL},
    {LT_KV_A, "attn_kv.weight", dim_head_k, dim_embd, NEED_ALWAYS, NULL},
    {LT_KV_A_NORM, "attn_kv_a_norm.weight", dim_one, dim_head_k, NEED_ALWAYS, NULL},
    {LT_ATTN_SINKS, "attn_sinks.weight", dim_one, dim_n_head, NEED_ALWAYS, NULL},
    {LT_COMPRESSOR_KV, "attn_compressor_kv.weight", dim_compressor, dim_embd, COMPRESSED, NULL},
    {LT_COMPRESSOR_GATE, "attn_compressor_gate.weight", dim_compressor, dim_embd, COMPRESSED, NULL},
    {LT_COMPRESSOR_APE, "attn_compressor_ape.weight", dim_block, dim_compressor, COMPRESSED, NULL},
    {LT_COMPRESSOR_NORM, "attn_compressor_norm.weight", dim_one, dim_head_k, COMPRESSED, NULL},
    {LT_INDEX_Q, "indexer.attn_q_b.weight", dim_index_q, dim_q_rank, INDEXED, NULL},
    {LT_INDEX_PROJ, "indexer.proj.weight", dim_index_heads, dim_embd, INDEXED, NULL},
    {LT_INDEX_COMPRESSOR_KV, "indexer_compressor_kv.weight", dim_index_compressor, dim_embd, INDEXED, NULL},
    {LT_INDEX_COMPRESSOR_GATE, "indexer_compressor_gate.weight", dim_index_compressor, dim_embd, INDEXED,
     NULL},
    {LT_INDEX_COMPRESSOR_APE, "indexer_compressor_ape.weight", dim_block, dim_index_compressor, INDEXED,
     NULL},
    {LT_INDEX_COMPRESSOR_NORM, "indexer_compressor_norm.weight", dim_one, dim_index, INDEXED, NULL},
    {LT_ATTN_OUTPUT_A, "attn_output_a.weight", dim_out_a, dim_out_group, NEED_ALWAYS, NULL},
    {LT_ATTN_OUTPUT_B, "attn_output_b.weight", dim_embd, dim_out_a, NEED_ALWAYS, NULL},
    {LT_HC_FFN_FN, "hc_ffn_fn.weight", dim_hyper_mixes, dim_all_streams, NEED_ALWAYS, NULL},
    {LT_HC_FFN_BASE, "hc_ffn_base.weight", dim_one, dim_hyper_mixes, NEED_ALWAYS, NULL},
    {LT_HC_FFN_SCALE, "hc_ffn_scale.weight", dim_one, dim_three, NEED_ALWAYS, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_ALWAYS, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_ROUTED, NULL},
    {LT_TOKEN_EXPERTS, "ffn_gate_tid2eid.weight", dim_vocab, dim_experts_used, NEED_IN_BY_TOKEN | HOLDS_IDS,
     NULL},
    SHARED_EXPERT_RULES(NEED_ALWAYS),
};

static const struct tensor_rule GLOBALS[] = {
    {GT_OUTPUT, "output.weight", dim_vocab, dim_embd, NEED_ALWAYS, NULL},
    {GT_OUTPUT_HC_FN, "output_hc_fn.weight", dim_streams, dim_all_streams, NEED_ALWAYS, NULL},
    {GT_OUTPUT_HC_BASE, "output_hc_base.weight", dim_one, dim_streams, NEED_ALWAYS, NULL},
    {GT_OUTPUT_HC_SCALE, "output_hc_scale.weight", dim_one, dim_one, NEED_ALWAYS, NULL},
};

static const char *const KEYS[] = {
    "attention.q_lora_rank",
    "attention.sliding_window",
    "attention.indexer.head_count",
    "attention.indexer.key_length",
    "attention.indexer.top_k",
    "attention.output_group_count",
    "attention.output_lora_rank",
    "attention.compress_ratios",
    "attention.compress_rope_freq_base",
    "hyper_connection.count",
    "hyper_connection.sinkhorn_iterations",
    "hyper_connection.epsilon",
    "hash_layer_count",
    "swiglu_clamp_exp",
    "swiglu_clamp_shexp",
    "embedding_length_out", /* of all streams */
    NULL,
};

/* Layers that see blocks have frequencies of their own, and YaRN without its magnitude. */
static enum ps_status read_ropes(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    struct rope_hparams *plain = &hp->rope[0], *of_blocks = &hp->rope[1];
    *of_blocks = *plain;
    of_blocks->attn_factor = plain->ext_factor == 0.0f || plain->freq_scale <= 0.0f
                                 ? 1.0f
                                 : 1.0f / (1.0f + 0.1f * logf(1.0f / plain->freq_scale));
    plain->freq_scale = plain->attn_factor = 1.0f;
    plain->ext_factor = 0.0f;
    hp->n_ropes = 2;
    return hparam_f32(gguf, "deepseek4", "attention.compress_rope_freq_base", true, &of_blocks->freq_base,
                      err);
}

static enum ps_status read_limits(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status = hparams_layer_f32(hp, gguf, "deepseek4", "swiglu_clamp_exp", true,
                                              offsetof(struct layer_hparams, swiglu_limit), err);
    if (status != PS_OK)
        return status;
    for (uint32_t il = 0; il < hp->n_layers; il++) /* where the file does not say */
        hp->layer[il].shared_swiglu_limit = hp->layer[il].swiglu_limit;
    return hparams_layer_f32(hp, gguf, "deepseek4", "swiglu_clamp_shexp", false,
                             offsetof(struct layer_hparams, shared_swiglu_limit), err);
}

static enum ps_status read_blocks(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    uint32_t blocks[MAX_MODEL_LAYERS];
    uint32_t window = 0, top = 0, by_token = 0;
    enum ps_status status;
    if ((status = hparam_size(gguf, "deepseek4", "attention.sliding_window", &window, err)) != PS_OK ||
        (status = hparam_size(gguf, "deepseek4", "attention.indexer.top_k", &top, err)) != PS_OK ||
        (status = hparam_u32(gguf, "deepseek4", "hash_layer_count", true, &by_token, err)) != PS_OK ||
        (status = hparam_layers_u32(gguf, "deepseek4", "attention.compress_ratios", true, hp->n_layers,
                                    blocks, err)) != PS_OK)
        return status;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        struct layer_hparams *l = &hp->layer[il];
        if (blocks[il] != 0 && blocks[il] != INDEXED_BLOCK && blocks[il] != LONG_BLOCK)
            return ps_error_set(err, PS_ERR_UNSUPPORTED,
                                "deepseek4.attention.compress_ratios: layer %u: %u is not one of 0, %d, %d",
                                il, blocks[il], INDEXED_BLOCK, LONG_BLOCK);
        l->window = window;
        l->v_in_k = true;
        l->block = blocks[il];
        l->compressed = blocks[il] > 0;
        l->rope = blocks[il] > 0;
        l->index_dim = blocks[il] == INDEXED_BLOCK ? hp->index.head_dim : 0;
        l->most_chosen = blocks[il] == INDEXED_BLOCK ? top : 0;
        l->experts_by_token = il < by_token;
    }
    return PS_OK;
}

static enum ps_status check(const struct hparams *hp, struct ps_error *err)
{
    if (hp->n_streams > MAX_STREAMS)
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "deepseek4.hyper_connection.count: %u is more than %d",
                            hp->n_streams, MAX_STREAMS);
    if (hp->hyper.iterations == 0 || hp->hyper.iterations > 1000)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "deepseek4.hyper_connection.sinkhorn_iterations: %u is not within 1..1000",
                            hp->hyper.iterations);
    if (hp->n_expert == 0)
        return ps_error_set(err, PS_ERR_FORMAT, "deepseek4.expert_count: there are no experts");
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        const struct layer_hparams *l = &hp->layer[il];
        if (l->n_kv_head != 1 || l->head_dim_k != l->head_dim_v || l->n_head % hp->n_out_groups != 0)
            return ps_error_set(err, PS_ERR_FORMAT,
                                "deepseek4: layer %u: %u heads of keys, of %u and %u values, or %u heads in "
                                "%u groups, are not what the architecture has",
                                il, l->n_kv_head, l->head_dim_k, l->head_dim_v, l->n_head, hp->n_out_groups);
    }
    return PS_OK;
}

static enum ps_status set_sizes(struct hparams *hp, struct ps_error *err)
{
    enum { MOST = 1 << 24 };
    uint64_t most = 0;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        struct layer_hparams *l = &hp->layer[il];
        struct compressed_mixer m = compressed_mixer_of(hp, l);
        most = m.end > most ? m.end : most;
        l->state_floats = l->compressed ? compressed_state_rows(l) * m.state_floats : 0;
    }
    uint64_t widest = hparams_most(hp, dim_attn_out);
    if (most > MOST || widest > MOST)
        return ps_error_set(err, PS_ERR_FORMAT, "deepseek4: ranks and heads are out of range");
    hp->mixer_floats = (uint32_t)most;
    hp->widest_mixer_row = (uint32_t)widest;
    return PS_OK;
}

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    static const char name[] = "deepseek4";
    enum ps_status status;
    if ((status = hparam_size(gguf, name, "attention.q_lora_rank", &hp->mla.q_rank, err)) != PS_OK ||
        (status = hparam_size(gguf, name, "attention.indexer.head_count", &hp->index.n_head, err)) != PS_OK ||
        (status = hparam_size(gguf, name, "attention.indexer.key_length", &hp->index.head_dim, err)) !=
            PS_OK ||
        (status = hparam_size(gguf, name, "attention.output_group_count", &hp->n_out_groups, err)) != PS_OK ||
        (status = hparam_size(gguf, name, "attention.output_lora_rank", &hp->out_rank, err)) != PS_OK ||
        (status = hparam_size(gguf, name, "hyper_connection.count", &hp->n_streams, err)) != PS_OK ||
        (status = hparam_u32(gguf, name, "hyper_connection.sinkhorn_iterations", true, &hp->hyper.iterations,
                             err)) != PS_OK ||
        (status = hparam_f32(gguf, name, "hyper_connection.epsilon", true, &hp->hyper.eps, err)) != PS_OK ||
        (status = read_ropes(hp, gguf, err)) != PS_OK || (status = read_limits(hp, gguf, err)) != PS_OK ||
        (status = read_blocks(hp, gguf, err)) != PS_OK ||
        (status = check_index_dim(hp, name, err)) != PS_OK || (status = check(hp, err)) != PS_OK)
        return status;
    return set_sizes(hp, err);
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    if (!layer_is_moe(f, il))
        return ps_error_set(err, PS_ERR_FORMAT, "blk.%u: there are no routed experts", il);
    hyper_begin(f, il, LT_HC_ATTN_FN, LT_ATTN_NORM);
    block_compressed_attention(f, il);
    hyper_end(f, f->s.branch);
    hyper_begin(f, il, LT_HC_FFN_FN, LT_FFN_NORM);
    struct moe_options options = {.activation = FFN_SWIGLU_CLAMP, .input_ready = true, .out = f->s.normed};
    enum ps_status status = block_moe(f, il, &options, err);
    if (status == PS_OK)
        hyper_end(f, f->s.normed);
    return status;
}

const struct arch ARCH_DEEPSEEK4 = {
    .name = "deepseek4",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .global_rules = GLOBALS,
    .n_global_rules = sizeof(GLOBALS) / sizeof(GLOBALS[0]),
    .known_keys = KEYS,
    .gating = GATING_SQRT_SOFTPLUS,
    .hparams = hparams,
    .layer = layer,
    .end = hyper_output,
};
