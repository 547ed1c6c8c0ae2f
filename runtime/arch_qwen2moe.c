/* qwen2moe: q/k/v biases; softmax weights not renormalised; a shared expert scaled by its own sigmoid gate. */
#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", DIM_ONE, DIM_EMBD, NEED_ALWAYS},
    {LT_Q, "attn_q.weight", DIM_Q, DIM_EMBD, NEED_ALWAYS},
    {LT_K, "attn_k.weight", DIM_K, DIM_EMBD, NEED_ALWAYS},
    {LT_V, "attn_v.weight", DIM_V, DIM_EMBD, NEED_ALWAYS},
    {LT_Q_BIAS, "attn_q.bias", DIM_ONE, DIM_Q, NEED_OPTIONAL},
    {LT_K_BIAS, "attn_k.bias", DIM_ONE, DIM_K, NEED_OPTIONAL},
    {LT_V_BIAS, "attn_v.bias", DIM_ONE, DIM_V, NEED_OPTIONAL},
    {LT_ATTN_OUTPUT, "attn_output.weight", DIM_EMBD, DIM_ATTN_OUT, NEED_ALWAYS},
    {LT_FFN_NORM, "ffn_norm.weight", DIM_ONE, DIM_EMBD, NEED_ALWAYS},
    {LT_ROUTER, "ffn_gate_inp.weight", DIM_EXPERTS, DIM_EMBD, NEED_ALWAYS},
    {LT_SHARED_ROUTER, "ffn_gate_inp_shexp.weight", DIM_ONE, DIM_EMBD, NEED_ALWAYS},
    {LT_SHARED_GATE, "ffn_gate_shexp.weight", DIM_SHARED_FF, DIM_EMBD, NEED_ALWAYS},
    {LT_SHARED_UP, "ffn_up_shexp.weight", DIM_SHARED_FF, DIM_EMBD, NEED_ALWAYS},
    {LT_SHARED_DOWN, "ffn_down_shexp.weight", DIM_EMBD, DIM_SHARED_FF, NEED_ALWAYS},
};

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope_neox = true});
    return block_moe(f, il, &(struct moe_options){.renormalize = false}, err);
}

const struct arch ARCH_QWEN2MOE = {
    .name = "qwen2moe",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .layer = layer,
};
