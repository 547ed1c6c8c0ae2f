/* lfm2moe: short convolutions and, where the file has key heads, attention; sigmoid scores, chosen with a bias. The last norm
 * goes by the name of the embedding's. */
#include "runtime/arch.h"
#include "runtime/forward.h"
#include "runtime/recurrent.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_SHORTCONV_IN, "shortconv.in_proj.weight", dim_short_conv, dim_embd, NEED_IN_RECURRENT, NULL},
    {LT_SHORTCONV_CONV, "shortconv.conv.weight", dim_embd, dim_taps, NEED_IN_RECURRENT, NULL},
    {LT_SHORTCONV_OUT, "shortconv.out_proj.weight", dim_embd, dim_embd, NEED_IN_RECURRENT, NULL},
    QKV_RULES(NEED_IN_ATTENTION),
    HEAD_NORM_RULES(NEED_IN_ATTENTION),
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_IN_ATTENTION, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    DENSE_FFN_RULES(NEED_IN_DENSE),
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_MOE, NULL},
};

static const struct tensor_rule GLOBALS[] = {
    {GT_OUTPUT_NORM, "token_embd_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
};

static const char *const KNOWN_KEYS[] = {"shortconv.l_cache", NULL};

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    return hparams_short_conv(hp, gguf, "lfm2moe", err);
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    if (layer_is_recurrent(f, il))
        block_short_conv(f, il);
    else
        block_attention(f, il, &(struct attention_options){.rope = ROPE_NEOX});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_LFM2MOE = {
    .name = "lfm2moe",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .global_rules = GLOBALS,
    .n_global_rules = sizeof(GLOBALS) / sizeof(GLOBALS[0]),
    .known_keys = KNOWN_KEYS,
    .gating = GATING_SIGMOID,
    .renormalize = true,
    .hparams = hparams,
    .layer = layer,
};
