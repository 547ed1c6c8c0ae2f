/* qwen4exp (Qwen3.8-Flash-Next): several residual streams with gates of a low rank in place of norms; gated delta nets, and
 * attention over blocks that an index chooses; embeddings of n-grams in one layer. */
#include "runtime/arch.h"
#include "runtime/block_choice.h"
#include "runtime/block_gated_streams.h"
#include "runtime/block_hyper.h"
#include "runtime/block_ngrams.h"
#include "runtime/recurrent.h"

/* All attention layers have an index in the file; those without blocks do not use it. */
static const struct tensor_rule RULES[] = {
    {LT_HC_ATTN_NORM, "hc_attn_norm.weight", dim_streams, dim_embd, NEED_ALWAYS, NULL},
    {LT_HC_ATTN_DOWN, "hc_attn_down.weight", dim_low_rank, dim_all_streams, NEED_ALWAYS, NULL},
    {LT_HC_ATTN_UP, "hc_attn_up.weight", dim_all_streams, dim_low_rank, NEED_ALWAYS | IS_MATRIX, NULL},
    {LT_HC_ATTN_INJECT, "hc_attn_inject.weight", dim_streams, dim_all_streams, NEED_ALWAYS, NULL},
    {LT_QKV, "attn_qkv.weight", dim_ssm_conv, dim_embd, NEED_IN_RECURRENT, NULL},
    {LT_SSM_GATE, "attn_gate.weight", dim_ssm_inner, dim_embd, NEED_IN_RECURRENT, NULL},
    {LT_SSM_BETA, "ssm_beta.weight", dim_ssm_heads, dim_embd, NEED_IN_RECURRENT, NULL},
    {LT_SSM_ALPHA, "ssm_alpha.weight", dim_ssm_heads, dim_embd, NEED_IN_RECURRENT, NULL},
    {LT_SSM_CONV, "ssm_conv1d.weight", dim_ssm_conv, dim_taps, NEED_IN_RECURRENT, NULL},
    {LT_SSM_DT_BIAS, "ssm_dt.bias", dim_one, dim_ssm_heads, NEED_IN_RECURRENT, NULL},
    {LT_SSM_A, "ssm_a", dim_one, dim_ssm_heads, NEED_IN_RECURRENT, NULL},
    {LT_SSM_NORM, "ssm_norm.weight", dim_one, dim_ssm_head, NEED_IN_RECURRENT, NULL},
    {LT_SSM_OUT, "ssm_out.weight", dim_embd, dim_ssm_inner, NEED_IN_RECURRENT, NULL},
    {LT_Q, "attn_q.weight", dim_q_gated, dim_embd, NEED_IN_ATTENTION, NULL},
    {LT_K, "attn_k.weight", dim_k, dim_embd, NEED_IN_ATTENTION, NULL},
    {LT_V, "attn_v.weight", dim_v, dim_embd, NEED_IN_ATTENTION, NULL},
    HEAD_NORM_RULES(NEED_IN_ATTENTION),
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_IN_ATTENTION, NULL},
    {LT_INDEX_Q, "indexer.q_proj.weight", dim_index_q, dim_embd, NEED_IN_ATTENTION, NULL},
    {LT_INDEX_K, "indexer.k_proj.weight", dim_index, dim_embd, NEED_IN_ATTENTION, NULL},
    {LT_INDEX_Q_NORM, "indexer.q_norm.weight", dim_one, dim_index, NEED_IN_ATTENTION, NULL},
    {LT_INDEX_K_NORM, "indexer.k_norm.weight", dim_one, dim_index, NEED_IN_ATTENTION, NULL},
    {LT_PLE_KEY, "ple_key.weight", dim_all_streams, dim_ngram_all, NEED_IN_NGRAMS, NULL},
    {LT_PLE_VALUE, "ple_value.weight", dim_embd, dim_ngram_all, NEED_IN_NGRAMS, NULL},
    {LT_PLE_NORM_KEY, "ple_norm_key.weight", dim_streams, dim_embd, NEED_IN_NGRAMS, NULL},
    {LT_PLE_NORM_QUERY, "ple_norm_query.weight", dim_streams, dim_embd, NEED_IN_NGRAMS, NULL},
    {LT_PLE_NORM_CONV, "ple_norm_conv.weight", dim_streams, dim_embd, NEED_IN_NGRAMS, NULL},
    {LT_PLE_CONV, "ple_conv1d.weight", dim_all_streams, dim_ngram_taps, NEED_IN_NGRAMS, NULL},
    {LT_HC_FFN_NORM, "hc_ffn_norm.weight", dim_streams, dim_embd, NEED_ALWAYS, NULL},
    {LT_HC_FFN_DOWN, "hc_ffn_down.weight", dim_low_rank, dim_all_streams, NEED_ALWAYS, NULL},
    {LT_HC_FFN_UP, "hc_ffn_up.weight", dim_all_streams, dim_low_rank, NEED_ALWAYS | IS_MATRIX, NULL},
    {LT_HC_FFN_INJECT, "hc_ffn_inject.weight", dim_streams, dim_all_streams, NEED_ALWAYS, NULL},
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_ALWAYS, NULL},
    {LT_SHARED_ROUTER, "ffn_gate_inp_shexp.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    SHARED_EXPERT_RULES(NEED_ALWAYS),
};

/* The last mixing of the streams is the output norm. The table is there where some layer wants it. */
static const struct tensor_rule GLOBALS[] = {
    {GT_OUTPUT_NORM, "output_hc_norm.weight", dim_streams, dim_embd, NEED_ALWAYS, NULL},
    {GT_OUTPUT_HC_DOWN, "output_hc_down.weight", dim_low_rank, dim_all_streams, NEED_ALWAYS, NULL},
    {GT_OUTPUT_HC_UP, "output_hc_up.weight", dim_all_streams, dim_low_rank, NEED_ALWAYS | IS_MATRIX, NULL},
    {GT_LAYER_EMBD, "per_layer_token_embd.weight", dim_ngram_rows, dim_ngram_head,
     NEED_OPTIONAL | IS_MATRIX | STAYS_IN_FILE, NULL},
};

static const char *const KEYS[] = {
    HPARAMS_DELTA_NET_KEYS,
    HPARAMS_NGRAM_KEYS,
    "rope.dimension_sections",
    "hyper_connection.count",
    "hyper_connection.low_rank",
    "attention.indexer.head_count",
    "attention.indexer.key_length",
    "attention.indexer.top_k",
    "attention.compress_ratios",
    "embedding_length_out", /* of all streams */
    NULL,
};

static const char NAME[] = "qwen4exp";

/* The budget is beside the most tokens that there are after the last full block. */
static enum ps_status read_index(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum { MAX_BLOCK = 1 << 16 };
    uint32_t blocks[MAX_MODEL_LAYERS] = {0};
    uint32_t top = 0;
    enum ps_status status;
    if ((status = hparam_size(gguf, NAME, "attention.indexer.head_count", &hp->index.n_head, err)) != PS_OK ||
        (status = hparam_size(gguf, NAME, "attention.indexer.key_length", &hp->index.head_dim, err)) !=
            PS_OK ||
        (status = hparam_size(gguf, NAME, "attention.indexer.top_k", &top, err)) != PS_OK ||
        (status = hparam_layers_u32(gguf, NAME, "attention.compress_ratios", false, hp->n_layers, blocks,
                                    err)) != PS_OK)
        return status;
    if ((status = check_index_dim(hp, NAME, err)) != PS_OK)
        return status;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        struct layer_hparams *l = &hp->layer[il];
        if (l->recurrent || blocks[il] == 0)
            continue;
        if (blocks[il] > MAX_BLOCK)
            return ps_error_set(err, PS_ERR_FORMAT,
                                "%s.attention.compress_ratios: layer %u: %u is out of range", NAME, il,
                                blocks[il]);
        l->block = blocks[il];
        l->index_dim = hp->index.head_dim;
        l->most_chosen = top + blocks[il] - 1;
        l->state_floats = choice_state(l);
    }
    return PS_OK;
}

static enum ps_status check(const struct hparams *hp, struct ps_error *err)
{
    if (hp->n_streams < 2 || hp->n_streams > MAX_STREAMS)
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s.hyper_connection.count: %u is not within 2..%d",
                            NAME, hp->n_streams, MAX_STREAMS);
    if (hp->n_expert == 0)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.expert_count: there are no experts", NAME);
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        if (hp->layer[il].ngrams && !hp->layer[il].recurrent)
            return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s.ple.layers: layer %u is not recurrent", NAME,
                                il);
    }
    return PS_OK;
}

static enum ps_status set_sizes(struct hparams *hp, struct ps_error *err)
{
    enum ps_status status;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        struct layer_hparams *l = &hp->layer[il];
        l->state_floats += l->ngrams ? ngram_state(hp) : 0;
        if ((status = hparams_want_mixer(hp, NAME, choice_mixer(hp, l), err)) != PS_OK)
            return status;
    }
    if ((status = hparams_want_mixer(hp, NAME, gated_streams_mixer(hp), err)) != PS_OK ||
        (status = hparams_want_mixer(hp, NAME, ngram_mixer(hp), err)) != PS_OK)
        return status;
    return hparams_want_mixer(hp, NAME, hp->mixer_floats + gated_streams_kept(hp), err);
}

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status;
    if ((status = hparam_size(gguf, NAME, "hyper_connection.count", &hp->n_streams, err)) != PS_OK ||
        (status = hparam_size(gguf, NAME, "hyper_connection.low_rank", &hp->hyper.low_rank, err)) != PS_OK ||
        (status = hparams_delta_net(hp, gguf, NAME, err)) != PS_OK ||
        (status = hparams_rope_sections(hp, gguf, NAME, err)) != PS_OK ||
        (status = read_index(hp, gguf, err)) != PS_OK ||
        (status = hparams_ngrams(hp, gguf, NAME, err)) != PS_OK || (status = check(hp, err)) != PS_OK)
        return status;
    return set_sizes(hp, err);
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    enum ps_status status = PS_OK;
    if (!layer_is_moe(f, il))
        return ps_error_set(err, PS_ERR_FORMAT, "blk.%u: there are no routed experts", il);
    if (f->model->hp.layer[il].ngrams && (status = block_ngrams(f, il, err)) != PS_OK)
        return status;
    gated_streams_begin(f, il, BRANCH_ATTENTION);
    if (layer_is_recurrent(f, il))
        block_delta_net(
            f, il,
            &(struct delta_net_options){
                .tiled_keys = true, .sigmoid_gate = true, .input_ready = true, .keep_branch = true});
    else
        block_attention(f, il,
                        &(struct attention_options){.rope = ROPE_NEOX,
                                                    .gate_in_q = true,
                                                    .input_ready = true,
                                                    .keep_branch = true,
                                                    .attend = attend_chosen_blocks});
    gated_streams_end(f, f->s.branch);
    gated_streams_begin(f, il, BRANCH_FFN);
    struct moe_options options = {.activation = FFN_SWIGLU, .input_ready = true, .out = f->s.normed};
    status = block_moe(f, il, &options, err);
    if (status == PS_OK)
        gated_streams_end(f, f->s.normed);
    return status;
}

const struct arch ARCH_QWEN4EXP = {
    .name = "qwen4exp",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .global_rules = GLOBALS,
    .n_global_rules = sizeof(GLOBALS) / sizeof(GLOBALS[0]),
    .known_keys = KEYS,
    .renormalize = true,
    .gates_attention = true,
    .hparams = hparams,
    .layer = layer,
    .end = gated_streams_output,
};
