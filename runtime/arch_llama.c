/* llama: Llama 1-3 and Mistral (dense), Mixtral (routed). Consecutive-pair RoPE with optional frequency factors. */
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
    {LT_ATTN_OUTPUT_BIAS, "attn_output.bias", DIM_ONE, DIM_EMBD, NEED_OPTIONAL},
    {LT_FFN_NORM, "ffn_norm.weight", DIM_ONE, DIM_EMBD, NEED_ALWAYS},
    {LT_ROUTER, "ffn_gate_inp.weight", DIM_EXPERTS, DIM_EMBD, NEED_IN_MOE},
    {LT_FFN_GATE, "ffn_gate.weight", DIM_FF, DIM_EMBD, NEED_IN_DENSE},
    {LT_FFN_UP, "ffn_up.weight", DIM_FF, DIM_EMBD, NEED_IN_DENSE},
    {LT_FFN_DOWN, "ffn_down.weight", DIM_EMBD, DIM_FF, NEED_IN_DENSE},
};

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope_neox = false});
    if (layer_is_moe(f, il))
        return block_moe(f, il, &(struct moe_options){.renormalize = true}, err);
    block_dense_ffn(f, il);
    return PS_OK;
}

const struct arch ARCH_LLAMA = {
    .name = "llama",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .layer = layer,
};
