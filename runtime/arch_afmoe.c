/* afmoe (Trinity): norms before and after both branches; a sigmoid gate on the attention's output; three layers with a
 * sliding window and a rotation, then one without either, the rotation whatever the windows are; a scaled embedding. */
#include <math.h>

#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    QKV_RULES(NEED_ALWAYS),
    HEAD_NORM_RULES(NEED_ALWAYS),
    {LT_ATTN_GATE, "attn_gate.weight", dim_attn_out, dim_embd, NEED_ALWAYS, NULL},
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_ATTN_POST_NORM, "post_attention_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_FFN_POST_NORM, "post_ffw_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    DENSE_FFN_RULES(NEED_IN_DENSE),
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_MOE, NULL},
    SHARED_EXPERT_RULES(NEED_IN_MOE | NEED_OPTIONAL),
};

static const char *const KEYS[] = {HPARAMS_WINDOW_KEYS, NULL};

enum { PERIOD = 4 }; /* of layers, with and without a rotation */

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status = hparams_windows(hp, gguf, "afmoe", PERIOD, false, err);
    hp->embedding_scale = sqrtf((float)hp->n_embd);
    for (uint32_t il = 0; il < hp->n_layers; il++)
        hp->layer[il].no_rope = il % PERIOD == PERIOD - 1;
    return status;
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope = ROPE_NEOX});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_AFMOE = {
    .name = "afmoe",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .known_keys = KEYS,
    .gating = GATING_SIGMOID,
    .gates_attention = true,
    .hparams = hparams,
    .layer = layer,
};
