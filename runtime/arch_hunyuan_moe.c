/* hunyuan-moe: q/k norm after the rotation; an ungated shared expert. */
#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_Q, "attn_q.weight", dim_q, dim_embd, NEED_ALWAYS, NULL},
    {LT_K, "attn_k.weight", dim_k, dim_embd, NEED_ALWAYS, NULL},
    {LT_V, "attn_v.weight", dim_v, dim_embd, NEED_ALWAYS, NULL},
    {LT_Q_BIAS, "attn_q.bias", dim_one, dim_q, NEED_OPTIONAL, NULL},
    {LT_K_BIAS, "attn_k.bias", dim_one, dim_k, NEED_OPTIONAL, NULL},
    {LT_V_BIAS, "attn_v.bias", dim_one, dim_v, NEED_OPTIONAL, NULL},
    {LT_Q_NORM, "attn_q_norm.weight", dim_one, dim_head_k, NEED_ALWAYS, NULL},
    {LT_K_NORM, "attn_k_norm.weight", dim_one, dim_head_k, NEED_ALWAYS, NULL},
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_ATTN_OUTPUT_BIAS, "attn_output.bias", dim_one, dim_embd, NEED_OPTIONAL, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SHARED_GATE, "ffn_gate_shexp.weight", dim_shared_ff, dim_embd, NEED_IN_MOE | NEED_OPTIONAL, NULL},
    {LT_SHARED_UP, "ffn_up_shexp.weight", dim_shared_ff, dim_embd, NEED_IN_MOE | NEED_OPTIONAL, NULL},
    {LT_SHARED_DOWN, "ffn_down_shexp.weight", dim_embd, dim_shared_ff, NEED_IN_MOE | NEED_OPTIONAL, NULL},
};

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope = ROPE_NEOX, .norm_after_rope = true});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_HUNYUAN_MOE = {
    .name = "hunyuan-moe",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .renormalize = true,
    .layer = layer,
};
