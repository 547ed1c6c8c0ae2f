/* minimax-m2: q/k norm over all heads at once, a rotation of part of each head, sigmoid scores with a selection bias. */
#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    QKV_RULES(NEED_ALWAYS),
    {LT_Q_NORM, "attn_q_norm.weight", dim_one, dim_q, NEED_ALWAYS, NULL},
    {LT_K_NORM, "attn_k_norm.weight", dim_one, dim_k, NEED_ALWAYS, NULL},
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_MOE, NULL},
};

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope = ROPE_NEOX, .norm_whole_row = true});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_MINIMAX_M2 = {
    .name = "minimax-m2",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .gating = GATING_SIGMOID,
    .renormalize = true,
    .layer = layer,
};
