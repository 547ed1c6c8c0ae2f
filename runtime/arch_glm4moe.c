/* glm4moe: (GLM-4.5, GLM-4.6): a rotation of part of each head; leading dense layers; sigmoid scores with a selection
 * bias; a shared expert. The norm before the FFN is stored as post_attention_norm. */
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
    {LT_Q_NORM, "attn_q_norm.weight", dim_one, dim_head_k, NEED_OPTIONAL, NULL},
    {LT_K_NORM, "attn_k_norm.weight", dim_one, dim_head_k, NEED_OPTIONAL, NULL},
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_FFN_NORM, "post_attention_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_FFN_GATE, "ffn_gate.weight", dim_ff, dim_embd, NEED_IN_DENSE, NULL},
    {LT_FFN_UP, "ffn_up.weight", dim_ff, dim_embd, NEED_IN_DENSE, NULL},
    {LT_FFN_DOWN, "ffn_down.weight", dim_embd, dim_ff, NEED_IN_DENSE, NULL},
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_MOE, NULL},
    {LT_SHARED_GATE, "ffn_gate_shexp.weight", dim_shared_ff, dim_embd, NEED_IN_MOE | NEED_OPTIONAL, NULL},
    {LT_SHARED_UP, "ffn_up_shexp.weight", dim_shared_ff, dim_embd, NEED_IN_MOE | NEED_OPTIONAL, NULL},
    {LT_SHARED_DOWN, "ffn_down_shexp.weight", dim_embd, dim_shared_ff, NEED_IN_MOE | NEED_OPTIONAL, NULL},
};

static const char *const KEYS[] = {"rope.dimension_sections" /* of images; one position for text */, NULL};

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope = ROPE_NEOX});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_GLM4MOE = {
    .name = "glm4moe",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .known_keys = KEYS,
    .gating = GATING_SIGMOID,
    .layer = layer,
};
