/* qwen3moe: per-head q and k RMS norm before RoPE; chosen softmax weights renormalised. */
#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    QKV_RULES(NEED_ALWAYS),
    HEAD_NORM_RULES(NEED_ALWAYS),
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_ALWAYS, NULL},
};

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope = ROPE_NEOX});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_QWEN3MOE = {
    .name = "qwen3moe",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .renormalize = true,
    .layer = layer,
};
