/* qwen3moe: per-head q and k RMS norm before RoPE; chosen softmax weights renormalised. */
#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", DIM_ONE, DIM_EMBD, NEED_ALWAYS},
    {LT_Q, "attn_q.weight", DIM_Q, DIM_EMBD, NEED_ALWAYS},
    {LT_K, "attn_k.weight", DIM_K, DIM_EMBD, NEED_ALWAYS},
    {LT_V, "attn_v.weight", DIM_V, DIM_EMBD, NEED_ALWAYS},
    {LT_Q_NORM, "attn_q_norm.weight", DIM_ONE, DIM_HEAD_K, NEED_ALWAYS},
    {LT_K_NORM, "attn_k_norm.weight", DIM_ONE, DIM_HEAD_K, NEED_ALWAYS},
    {LT_ATTN_OUTPUT, "attn_output.weight", DIM_EMBD, DIM_ATTN_OUT, NEED_ALWAYS},
    {LT_FFN_NORM, "ffn_norm.weight", DIM_ONE, DIM_EMBD, NEED_ALWAYS},
    {LT_ROUTER, "ffn_gate_inp.weight", DIM_EXPERTS, DIM_EMBD, NEED_ALWAYS},
};

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope_neox = true});
    return block_moe(f, il, &(struct moe_options){.renormalize = true}, err);
}

const struct arch ARCH_QWEN3MOE = {
    .name = "qwen3moe",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .layer = layer,
};
