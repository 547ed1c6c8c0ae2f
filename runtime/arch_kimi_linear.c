/* kimi-linear: Kimi delta attention, and latent attention without rotation in layers with key heads; leading dense layers; sigmoid
 * scores, chosen with a bias, shared experts. */
#include "runtime/arch.h"
#include "runtime/forward.h"
#include "runtime/recurrent.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_Q, "attn_q.weight", dim_ssm_inner, dim_embd, NEED_IN_RECURRENT, NULL},
    {LT_K, "attn_k.weight", dim_ssm_inner, dim_embd, NEED_IN_RECURRENT, NULL},
    {LT_V, "attn_v.weight", dim_ssm_inner, dim_embd, NEED_IN_RECURRENT, NULL},
    {LT_SSM_CONV_Q, "ssm_conv1d_q.weight", dim_ssm_inner, dim_taps, NEED_IN_RECURRENT, NULL},
    {LT_SSM_CONV_K, "ssm_conv1d_k.weight", dim_ssm_inner, dim_taps, NEED_IN_RECURRENT, NULL},
    {LT_SSM_CONV_V, "ssm_conv1d_v.weight", dim_ssm_inner, dim_taps, NEED_IN_RECURRENT, NULL},
    {LT_SSM_F_A, "ssm_f_a.weight", dim_kda_head, dim_embd, NEED_IN_RECURRENT, NULL},
    {LT_SSM_F_B, "ssm_f_b.weight", dim_ssm_inner, dim_kda_head, NEED_IN_RECURRENT, NULL},
    {LT_SSM_G_A, "ssm_g_a.weight", dim_kda_head, dim_embd, NEED_IN_RECURRENT, NULL},
    {LT_SSM_G_B, "ssm_g_b.weight", dim_ssm_inner, dim_kda_head, NEED_IN_RECURRENT, NULL},
    {LT_SSM_BETA, "ssm_beta.weight", dim_ssm_heads, dim_embd, NEED_IN_RECURRENT, NULL},
    {LT_SSM_DT_BIAS, "ssm_dt.bias", dim_one, dim_ssm_inner, NEED_IN_RECURRENT, NULL},
    {LT_SSM_A, "ssm_a", dim_ssm_heads, dim_one, NEED_IN_RECURRENT, NULL},
    {LT_SSM_NORM, "ssm_norm.weight", dim_one, dim_kda_head, NEED_IN_RECURRENT, NULL},
    {LT_SSM_OUT, "attn_output.weight", dim_embd, dim_ssm_inner, NEED_IN_RECURRENT, NULL},
    MLA_RULES(NEED_IN_ATTENTION),
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    DENSE_FFN_RULES(NEED_IN_DENSE),
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_MOE, NULL},
    SHARED_EXPERT_RULES(NEED_IN_MOE),
};

static const char *const KNOWN_KEYS[] = {HPARAMS_MLA_KEYS, "ssm.conv_kernel", "kda.head_dim", NULL};

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status = hparams_kda(hp, gguf, "kimi-linear", err);
    return status == PS_OK ? hparams_mla(hp, gguf, "kimi-linear", false, err) : status;
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    if (layer_is_recurrent(f, il))
        block_kda(f, il);
    else
        block_mla(f, il, &(struct mla_options){.rope = ROPE_NONE});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_KIMI_LINEAR = {
    .name = "kimi-linear",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .known_keys = KNOWN_KEYS,
    .gating = GATING_SIGMOID,
    .renormalize = true,
    .hparams = hparams,
    .layer = layer,
};
