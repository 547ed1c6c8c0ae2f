/* gpt-oss: biases on all projections, the router and the experts; attention sinks; every other layer has a sliding
 * window; YaRN; weights are the softmax of the chosen experts' logits; a SwiGLU of its own. */
#include <stdio.h>

#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    QKV_RULES(NEED_ALWAYS),
    QKV_BIAS_RULES(NEED_OPTIONAL),
    {LT_ATTN_SINKS, "attn_sinks.weight", dim_one, dim_n_head, NEED_ALWAYS, NULL},
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_ATTN_OUTPUT_BIAS, "attn_output.bias", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_FFN_NORM, "post_attention_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_ALWAYS, NULL},
    {LT_ROUTER_BIAS, "ffn_gate_inp.bias", dim_one, dim_experts, NEED_ALWAYS, NULL},
};

static const char *const KEYS[] = {HPARAMS_WINDOW_KEYS, NULL};

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    static const char *const biases[] = {"gate", "up", "down"};
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        for (size_t i = 0; i < sizeof(biases) / sizeof(biases[0]); i++) {
            char name[64];
            snprintf(name, sizeof(name), "blk.%u.ffn_%s_exps.bias", il, biases[i]);
            if (!gguf_tensor_find(gguf, name))
                return ps_error_set(err, PS_ERR_FORMAT, "%s: tensor is missing", name);
        }
    }
    return hparams_windows(hp, gguf, "gpt-oss", 2, false, err);
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope = ROPE_NEOX});
    return block_ffn(f, il, FFN_SWIGLU_OAI, err);
}

const struct arch ARCH_GPT_OSS = {
    .name = "gpt-oss",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .known_keys = KEYS,
    .gating = GATING_SOFTMAX_OF_CHOSEN,
    .hparams = hparams,
    .layer = layer,
};
