/* ernie4_5-moe: leading dense layers; softmax scores with a selection bias; shared experts in one matrix. */
#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    QKV_RULES(NEED_ALWAYS),
    QKV_BIAS_RULES(NEED_OPTIONAL),
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_ATTN_OUTPUT_BIAS, "attn_output.bias", dim_one, dim_embd, NEED_OPTIONAL, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    DENSE_FFN_RULES(NEED_IN_DENSE),
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_MOE | NEED_OPTIONAL, NULL},
    SHARED_EXPERT_RULES(NEED_IN_MOE | NEED_OPTIONAL),
};

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope = ROPE_CONSECUTIVE});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_ERNIE4_5_MOE = {
    .name = "ernie4_5-moe",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .renormalize = true,
    .layer = layer,
};
