/* mimo2 (MiMo-V2): keys and values of different sizes; numbers of KV heads that differ between layers; sinks in layers with
 * a sliding window; a factor on the attention's output. */
#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_QKV, "attn_qkv.weight", dim_qkv, dim_embd, NEED_OPTIONAL, NULL},
    QKV_RULES(NEED_OPTIONAL),
    {LT_ATTN_SINKS, "attn_sinks.weight", dim_one, dim_n_head, NEED_OPTIONAL, NULL},
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    DENSE_FFN_RULES(NEED_IN_DENSE),
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_MOE | NEED_OPTIONAL, NULL},
};

static const char *const KEYS[] = {HPARAMS_WINDOW_KEYS, "attention.value_scale", NULL};

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status = hparams_windows(hp, gguf, "mimo2", 1, false, err);
    if (status != PS_OK)
        return status;
    return hparam_factor(gguf, "mimo2", "attention.value_scale", &hp->attention_out_scale, err);
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope = ROPE_NEOX});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_MIMO2 = {
    .name = "mimo2",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .known_keys = KEYS,
    .gating = GATING_SIGMOID,
    .renormalize = true,
    .hparams = hparams,
    .layer = layer,
};
