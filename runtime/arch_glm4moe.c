/* glm4moe (GLM-4.5, GLM-4.6): a rotation of part of each head; leading dense layers; sigmoid scores with a selection
 * bias; a shared expert. The norm before the FFN is stored as post_attention_norm. */
#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    QKV_RULES(NEED_ALWAYS),
    QKV_BIAS_RULES(NEED_OPTIONAL),
    HEAD_NORM_RULES(NEED_OPTIONAL),
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_FFN_NORM, "post_attention_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    DENSE_FFN_RULES(NEED_IN_DENSE),
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_MOE, NULL},
    SHARED_EXPERT_RULES(NEED_IN_MOE | NEED_OPTIONAL),
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
