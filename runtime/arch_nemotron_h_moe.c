/* nemotron_h_moe: every layer is one of Mamba-2, attention without rotation and FFN, with one norm and one residual; experts
 * without a gate, relu squared, in some models on a latent row. Sigmoid scores, chosen with a bias; a shared expert. */
#include <stdio.h>

#include "runtime/arch.h"
#include "runtime/forward.h"
#include "runtime/recurrent.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_IN_ATTENTION | NEED_IN_RECURRENT, NULL},
    {LT_SSM_IN, "ssm_in.weight", dim_mamba2_in, dim_embd, NEED_IN_RECURRENT, NULL},
    {LT_SSM_CONV, "ssm_conv1d.weight", dim_ssm_conv, dim_taps, NEED_IN_RECURRENT, NULL},
    {LT_SSM_CONV_BIAS, "ssm_conv1d.bias", dim_one, dim_ssm_conv, NEED_IN_RECURRENT | NEED_OPTIONAL, NULL},
    {LT_SSM_DT_BIAS, "ssm_dt.bias", dim_one, dim_ssm_heads, NEED_IN_RECURRENT, NULL},
    {LT_SSM_A, "ssm_a", dim_ssm_heads, dim_one, NEED_IN_RECURRENT, NULL},
    {LT_SSM_D, "ssm_d", dim_ssm_heads, dim_one, NEED_IN_RECURRENT, NULL},
    {LT_SSM_NORM, "ssm_norm.weight", dim_ssm_groups, dim_ssm_group, NEED_IN_RECURRENT | NEED_F32, NULL},
    {LT_SSM_OUT, "ssm_out.weight", dim_embd, dim_ssm_inner, NEED_IN_RECURRENT, NULL},
    QKV_RULES(NEED_IN_ATTENTION),
    QKV_BIAS_RULES(NEED_IN_ATTENTION | NEED_OPTIONAL),
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_IN_ATTENTION, NULL},
    {LT_ATTN_OUTPUT_BIAS, "attn_output.bias", dim_one, dim_embd, NEED_IN_ATTENTION | NEED_OPTIONAL, NULL},
    {LT_FFN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_IN_MOE | NEED_IN_DENSE, NULL},
    {LT_FFN_UP, "ffn_up.weight", dim_ff, dim_embd, NEED_IN_DENSE, NULL},
    {LT_FFN_DOWN, "ffn_down.weight", dim_embd, dim_ff, NEED_IN_DENSE, NULL},
    {LT_FFN_UP_BIAS, "ffn_up.bias", dim_one, dim_ff, NEED_IN_DENSE | NEED_OPTIONAL, NULL},
    {LT_FFN_DOWN_BIAS, "ffn_down.bias", dim_one, dim_embd, NEED_IN_DENSE | NEED_OPTIONAL, NULL},
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_MOE, NULL},
    {LT_LATENT_DOWN, "ffn_latent_down.weight", dim_expert_embd, dim_embd, NEED_IN_MOE | NEED_OPTIONAL, NULL},
    {LT_LATENT_UP, "ffn_latent_up.weight", dim_embd, dim_expert_embd, NEED_IN_MOE | NEED_OPTIONAL, NULL},
    {LT_SHARED_UP, "ffn_up_shexp.weight", dim_shared_ff, dim_embd, NEED_IN_MOE, NULL},
    {LT_SHARED_DOWN, "ffn_down_shexp.weight", dim_embd, dim_shared_ff, NEED_IN_MOE, NULL},
};

static const char *const KNOWN_KEYS[] = {HPARAMS_SSM_KEYS, "moe_latent_size", NULL};

static bool has(const struct gguf *gguf, uint32_t il, const char *name)
{
    char full[64];
    snprintf(full, sizeof(full), "blk.%u.%s", il, name);
    return gguf_tensor_find(gguf, full);
}

/* A layer is of one kind: FFN where it has a width, else attention where it has key heads, else Mamba-2. */
static enum ps_status tell_layers_apart(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        struct layer_hparams *layer = &hp->layer[il];
        bool routes = has(gguf, il, "ffn_gate_inp.weight");
        if (layer->n_ff == 0 && routes)
            return ps_error_set(err, PS_ERR_UNSUPPORTED,
                                "blk.%u.ffn_gate_inp.weight: experts in a layer without an FFN", il);
        if (layer->n_ff > 0)
            layer->n_head = layer->n_kv_head = 0;
        else if (layer->n_kv_head == 0)
            layer_make_recurrent(layer, mamba2_state_floats(hp));
        bool down = has(gguf, il, "ffn_latent_down.weight");
        bool up = has(gguf, il, "ffn_latent_up.weight");
        if (routes && (down != up || (!down && hp->n_embd_expert != hp->n_embd)))
            return ps_error_set(err, PS_ERR_FORMAT, "blk.%u.ffn_latent_%s.weight: tensor is missing", il,
                                down ? "up" : "down");
    }
    return PS_OK;
}

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status;
    uint32_t latent = 0;
    if ((status = hparams_mamba2(hp, gguf, "nemotron_h_moe", err)) != PS_OK ||
        (status = hparam_u32(gguf, "nemotron_h_moe", "moe_latent_size", false, &latent, err)) != PS_OK)
        return status;
    if (latent > 0)
        hp->n_embd_expert = latent;
    return tell_layers_apart(hp, gguf, err);
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    if (layer_is_recurrent(f, il))
        block_mamba2(f, il);
    else if (layer_attends(f, il))
        block_attention(f, il, &(struct attention_options){.rope = ROPE_NONE});
    else
        return block_ffn(f, il, FFN_RELU_SQUARED, err);
    return PS_OK;
}

const struct arch ARCH_NEMOTRON_H_MOE = {
    .name = "nemotron_h_moe",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .known_keys = KNOWN_KEYS,
    .gating = GATING_SIGMOID,
    .ungated_experts = true,
    .hparams = hparams,
    .layer = layer,
};
