/* cohere2moe: LayerNorm; attention and FFN in parallel, from one norm; a rotation in layers with a sliding window and in the
 * leading dense ones; routed and shared experts are averaged. */
#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    QKV_RULES(NEED_ALWAYS),
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    DENSE_FFN_RULES(NEED_IN_DENSE),
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_MOE | NEED_OPTIONAL, NULL},
    SHARED_EXPERT_RULES(NEED_IN_MOE | NEED_OPTIONAL),
};

static const char *const KEYS[] = {HPARAMS_WINDOW_KEYS, "logit_scale", NULL};

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status;
    uint32_t n_dense = 0;
    if ((status = hparams_windows(hp, gguf, "cohere2moe", 4, true, err)) != PS_OK ||
        (status = hparam_u32(gguf, "cohere2moe", "leading_dense_block_count", false, &n_dense, err)) !=
            PS_OK ||
        (status = hparam_factor(gguf, "cohere2moe", "logit_scale", &hp->logit_scale, err)) != PS_OK)
        return status;
    for (uint32_t il = n_dense; il < hp->n_layers; il++)
        hp->layer[il].no_rope = hp->layer[il].window == 0;
    return PS_OK;
}

/* Attention leaves its input in place, and adding its branch first changes nothing for the FFN. */
static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope = ROPE_CONSECUTIVE});
    if (layer_is_moe(f, il))
        return block_moe(f, il, &(struct moe_options){.input_ready = true, .mean_with_shared = true}, err);
    block_dense_ffn(f, il, &(struct ffn_options){.input_ready = true});
    return PS_OK;
}

const struct arch ARCH_COHERE2MOE = {
    .name = "cohere2moe",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .known_keys = KEYS,
    .gating = GATING_SIGMOID,
    .renormalize = true,
    .router_norm = LT_ATTN_NORM,
    .hparams = hparams,
    .layer = layer,
};
