/* step35 (Step-3.5): numbers of heads that differ between layers; a sigmoid gate per head; layers with a sliding window
 * rotate whole heads, the others the first half, with other frequencies; clamped SwiGLU. */
#include <stddef.h>

#include "runtime/arch.h"
#include "runtime/forward.h"

static uint64_t half_head(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->rope[1].n_rot / 2;
}

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    QKV_RULES(NEED_ALWAYS),
    HEAD_NORM_RULES(NEED_ALWAYS),
    {LT_ATTN_GATE, "attn_gate.weight", dim_n_head, dim_embd, NEED_OPTIONAL, NULL},
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    DENSE_FFN_RULES(NEED_IN_DENSE),
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_MOE | NEED_OPTIONAL, NULL},
    SHARED_EXPERT_RULES(NEED_IN_MOE | NEED_OPTIONAL),
};

static const struct tensor_rule GLOBALS[] = {
    {GT_ROPE_FREQS, "rope_freqs.weight", dim_one, half_head, NEED_OPTIONAL, NULL},
};

static const char *const KEYS[] = {HPARAMS_WINDOW_KEYS, "swiglu_clamp_exp", "swiglu_clamp_shexp", NULL};

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status = hparams_windows(hp, gguf, "step35", 1, false, err);
    if (status != PS_OK)
        return status;
    hp->rope[0].n_rot /= 2;
    hp->rope[1].factors = false;
    status = hparams_layer_f32(hp, gguf, "step35", "swiglu_clamp_exp", false,
                               offsetof(struct layer_hparams, swiglu_limit), err);
    if (status != PS_OK)
        return status;
    return hparams_layer_f32(hp, gguf, "step35", "swiglu_clamp_shexp", false,
                             offsetof(struct layer_hparams, shared_swiglu_limit), err);
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope = ROPE_NEOX});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_STEP35 = {
    .name = "step35",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .global_rules = GLOBALS,
    .n_global_rules = sizeof(GLOBALS) / sizeof(GLOBALS[0]),
    .known_keys = KEYS,
    .gating = GATING_SIGMOID,
    .gates_attention = true,
    .hparams = hparams,
    .layer = layer,
};
