/* granitemoe: factors on the embedding, the attention scores, both branches and the logits; an ungated shared expert. */
#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    QKV_RULES(NEED_ALWAYS),
    QKV_BIAS_RULES(NEED_OPTIONAL),
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_ATTN_OUTPUT_BIAS, "attn_output.bias", dim_one, dim_embd, NEED_OPTIONAL, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    SHARED_EXPERT_RULES(NEED_IN_MOE | NEED_OPTIONAL),
};

static const char *const KEYS[] = {"embedding_scale", "residual_scale", "logit_scale",
                                   "deepstack_mapping" /* of images */, NULL};

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status;
    float logit_divisor = 1.0f;
    bool rotates = true;
    if ((status = hparam_factor(gguf, "granitemoe", "embedding_scale", &hp->embedding_scale, err)) != PS_OK ||
        (status = hparam_factor(gguf, "granitemoe", "residual_scale", &hp->residual_scale, err)) != PS_OK ||
        (status = hparam_f32(gguf, "granitemoe", "logit_scale", true, &logit_divisor, err)) != PS_OK ||
        (status = hparam_bool(gguf, "granitemoe", "rope.scaling.finetuned", false, &rotates, err)) != PS_OK)
        return status;
    if (logit_divisor == 0.0f)
        return ps_error_set(err, PS_ERR_FORMAT, "granitemoe.logit_scale: is 0");
    hp->logit_scale = 1.0f / logit_divisor;
    for (uint32_t il = 0; il < hp->n_layers; il++)
        hp->layer[il].no_rope = !rotates; /* the key's meaning in Granite files */
    return PS_OK;
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_attention(f, il, &(struct attention_options){.rope = ROPE_CONSECUTIVE});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_GRANITEMOE = {
    .name = "granitemoe",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .known_keys = KEYS,
    .renormalize = true,
    .hparams = hparams,
    .layer = layer,
};
