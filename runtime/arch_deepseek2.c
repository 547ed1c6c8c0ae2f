/* deepseek2 (DeepSeek V2 to V3.1, Kimi K2, GLM 4.7 Flash) and mistral4: latent attention; leading dense layers; softmax or
 * sigmoid scores, selection bias, groups of experts; shared experts. */
#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    MLA_RULES(NEED_ALWAYS),
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    DENSE_FFN_RULES(NEED_IN_DENSE),
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_MOE | NEED_OPTIONAL, NULL},
    SHARED_EXPERT_RULES(NEED_IN_MOE),
};

static const char *const KNOWN_KEYS[] = {HPARAMS_MLA_KEYS, "attention.temperature_scale",
                                         "attention.temperature_length", NULL};

static enum ps_status read_temperature(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                       struct ps_error *err)
{
    enum ps_status status;
    if ((status = hparam_f32(gguf, arch, "attention.temperature_scale", false, &hp->temperature.scale,
                             err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "attention.temperature_length", false, &hp->temperature.length,
                             err)) != PS_OK)
        return status;
    if (hp->temperature.scale != 0.0f && hp->temperature.length == 0)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.attention.temperature_length: missing, or 0", arch);
    return PS_OK;
}

static enum ps_status read_hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status = hparams_mla(hp, gguf, ARCH_DEEPSEEK2.name, true, err);
    if (status != PS_OK)
        return status;
    /* As llama.cpp tells GLM 4.7 Flash from DeepSeek V2, where the file does not say how experts are scored. */
    uint32_t gating = 0;
    status = hparam_u32(gguf, ARCH_DEEPSEEK2.name, "expert_gating_func", false, &gating, err);
    if (gating == 0 && (hp->n_layers == 47 || hp->n_layers == 48) && hp->n_vocab == 154880)
        hp->gating = GATING_SIGMOID;
    return status != PS_OK ? status : read_temperature(hp, gguf, ARCH_DEEPSEEK2.name, err);
}

static enum ps_status read_mistral4(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status = hparams_mla(hp, gguf, ARCH_MISTRAL4.name, false, err);
    return status != PS_OK ? status : read_temperature(hp, gguf, ARCH_MISTRAL4.name, err);
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_mla(f, il, &(struct mla_options){.rope = ROPE_CONSECUTIVE, .scale_q = true});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_DEEPSEEK2 = {
    .name = "deepseek2",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .known_keys = KNOWN_KEYS,
    .hparams = read_hparams,
    .layer = layer,
};

const struct arch ARCH_MISTRAL4 = {
    .name = "mistral4",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .known_keys = KNOWN_KEYS,
    .hparams = read_mistral4,
    .layer = layer,
};
