/* qwen3next: gated delta nets, and full attention with a gate beside each query in every fourth layer; a shared expert
 * scaled by its own sigmoid gate. Consecutive value heads share a key head. */
#include <stdio.h>

#include "runtime/arch.h"
#include "runtime/forward.h"
#include "runtime/recurrent.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_QKV, "attn_qkv.weight", dim_ssm_conv, dim_embd, NEED_IN_RECURRENT | NEED_OPTIONAL, NULL},
    {LT_SSM_GATE, "attn_gate.weight", dim_ssm_inner, dim_embd, NEED_IN_RECURRENT | NEED_OPTIONAL, NULL},
    {LT_SSM_IN, "ssm_in.weight", dim_delta_qkvz, dim_embd, NEED_IN_RECURRENT | NEED_OPTIONAL, NULL},
    {LT_SSM_BETA_ALPHA, "ssm_ba.weight", dim_delta_beta_alpha, dim_embd, NEED_IN_RECURRENT, NULL},
    {LT_SSM_CONV, "ssm_conv1d.weight", dim_ssm_conv, dim_taps, NEED_IN_RECURRENT, NULL},
    {LT_SSM_DT_BIAS, "ssm_dt.bias", dim_one, dim_ssm_heads, NEED_IN_RECURRENT, NULL},
    {LT_SSM_A, "ssm_a", dim_one, dim_ssm_heads, NEED_IN_RECURRENT, NULL},
    {LT_SSM_NORM, "ssm_norm.weight", dim_one, dim_ssm_head, NEED_IN_RECURRENT, NULL},
    {LT_SSM_OUT, "ssm_out.weight", dim_embd, dim_ssm_inner, NEED_IN_RECURRENT, NULL},
    {LT_Q, "attn_q.weight", dim_q_gated, dim_embd, NEED_IN_ATTENTION, NULL},
    {LT_K, "attn_k.weight", dim_k, dim_embd, NEED_IN_ATTENTION, NULL},
    {LT_V, "attn_v.weight", dim_v, dim_embd, NEED_IN_ATTENTION, NULL},
    HEAD_NORM_RULES(NEED_IN_ATTENTION),
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_IN_ATTENTION, NULL},
    {LT_FFN_NORM, "post_attention_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_ALWAYS, NULL},
    {LT_SHARED_ROUTER, "ffn_gate_inp_shexp.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    SHARED_EXPERT_RULES(NEED_ALWAYS),
};

static const char *const KNOWN_KEYS[] = {HPARAMS_DELTA_NET_KEYS, NULL};

static const struct gguf_tensor *find(const struct gguf *gguf, uint32_t il, const char *name)
{
    char full[64];
    snprintf(full, sizeof(full), "blk.%u.%s", il, name);
    return gguf_tensor_find(gguf, full);
}

/* The products before the convolution are in two tensors, or in one, as the first converters had it. */
static enum ps_status check_products(const struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        bool one = find(gguf, il, "ssm_in.weight");
        bool qkv = find(gguf, il, "attn_qkv.weight");
        bool gate = find(gguf, il, "attn_gate.weight");
        if (!hp->layer[il].recurrent)
            continue;
        if (!one && !(qkv && gate))
            return ps_error_set(err, PS_ERR_FORMAT, "blk.%u.%s.weight: tensor is missing", il,
                                qkv ? "attn_gate" : "attn_qkv");
        if (one && (qkv || gate))
            return ps_error_set(err, PS_ERR_FORMAT, "blk.%u.ssm_in.weight: is there beside attn_%s.weight",
                                il, qkv ? "qkv" : "gate");
    }
    return PS_OK;
}

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status = hparams_delta_net(hp, gguf, "qwen3next", err);
    return status == PS_OK ? check_products(hp, gguf, err) : status;
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    if (layer_is_recurrent(f, il))
        block_delta_net(f, il, &(struct delta_net_options){0});
    else
        block_attention(f, il, &(struct attention_options){.rope = ROPE_NEOX, .gate_in_q = true});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_QWEN3NEXT = {
    .name = "qwen3next",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .known_keys = KNOWN_KEYS,
    .renormalize = true,
    .gates_attention = true,
    .hparams = hparams,
    .layer = layer,
};
