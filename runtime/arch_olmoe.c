/* olmoe: q and k RMS norm over whole rows before the split into heads; softmax weights not renormalised. */
#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    QKV_RULES(NEED_ALWAYS),
    {LT_Q_NORM, "attn_q_norm.weight", dim_one, dim_q, NEED_ALWAYS, NULL},
    {LT_K_NORM, "attn_k_norm.weight", dim_one, dim_k, NEED_ALWAYS, NULL},
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_ALWAYS, NULL},
};

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope = ROPE_NEOX, .norm_whole_row = true});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_OLMOE = {
    .name = "olmoe",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .layer = layer,
};
