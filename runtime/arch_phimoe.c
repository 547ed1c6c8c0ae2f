/* phimoe: RMS norms with biases, biases on all projections and on the logits, frequencies divided by factors for short or
 * long contexts. */
#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_ATTN_NORM_BIAS, "attn_norm.bias", dim_one, dim_embd, NEED_ALWAYS, NULL},
    QKV_RULES(NEED_ALWAYS),
    QKV_BIAS_RULES(NEED_OPTIONAL),
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_ATTN_OUTPUT_BIAS, "attn_output.bias", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_FFN_NORM_BIAS, "ffn_norm.bias", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
};

static const struct tensor_rule GLOBALS[] = {
    {GT_OUTPUT_NORM_BIAS, "output_norm.bias", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {GT_OUTPUT_BIAS, "output.bias", dim_one, dim_vocab, NEED_ALWAYS, NULL},
    {GT_ROPE_FACTORS_LONG, "rope_factors_long.weight", dim_one, dim_half_rot, NEED_OPTIONAL, NULL},
    {GT_ROPE_FACTORS_SHORT, "rope_factors_short.weight", dim_one, dim_half_rot, NEED_OPTIONAL, NULL},
};

static const char *const KEYS[] = {"attention.sliding_window", NULL};

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    uint32_t window = 0;
    enum ps_status status = hparam_u32(gguf, "phimoe", "attention.sliding_window", false, &window, err);
    if (status == PS_OK && window > 0 && window < hp->n_ctx_train)
        return ps_error_set(
            err, PS_ERR_UNSUPPORTED,
            "phimoe.attention.sliding_window: %u: only windows as long as the context are known", window);
    return status;
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope = ROPE_NEOX});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_PHIMOE = {
    .name = "phimoe",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .global_rules = GLOBALS,
    .n_global_rules = sizeof(GLOBALS) / sizeof(GLOBALS[0]),
    .known_keys = KEYS,
    .renormalize = true,
    .hparams = hparams,
    .layer = layer,
};
