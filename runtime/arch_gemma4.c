/* gemma4 (mixtures of experts): windowed layers with heads and a rotation of their own; values are normed, and in full layers
 * the keys before their norm; a dense and a routed FFN side by side, each between norms of its own; a scaled embedding, a
 * scale per layer, capped logits. */
#include <math.h>

#include "runtime/arch.h"
#include "runtime/forward_internal.h"

static uint64_t half_full_rot(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->rope[0].n_rot / 2;
}

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_Q, "attn_q.weight", dim_q, dim_embd, NEED_ALWAYS, NULL},
    {LT_K, "attn_k.weight", dim_k, dim_embd, NEED_ALWAYS, NULL},
    {LT_V, "attn_v.weight", dim_v, dim_embd, NEED_OPTIONAL, NULL},
    HEAD_NORM_RULES(NEED_ALWAYS),
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_ATTN_POST_NORM, "post_attention_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    DENSE_FFN_RULES(NEED_ALWAYS),
    {LT_DENSE_POST_NORM, "post_ffw_norm_1.weight", dim_one, dim_embd, NEED_IN_MOE, NULL},
    {LT_MOE_PRE_NORM, "pre_ffw_norm_2.weight", dim_one, dim_embd, NEED_IN_MOE, NULL},
    {LT_MOE_POST_NORM, "post_ffw_norm_2.weight", dim_one, dim_embd, NEED_IN_MOE, NULL},
    {LT_FFN_POST_NORM, "post_ffw_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_ROUTER_SCALE, "ffn_gate_inp.scale", dim_one, dim_embd, NEED_IN_MOE, NULL},
    {LT_OUTPUT_SCALE, "layer_output_scale.weight", dim_one, dim_one, NEED_OPTIONAL, NULL},
};

static const struct tensor_rule GLOBALS[] = {
    {GT_ROPE_FREQS, "rope_freqs.weight", dim_one, half_full_rot, NEED_OPTIONAL, NULL},
};

static const char *const KEYS[] = {HPARAMS_WINDOW_KEYS, "attention.shared_kv_layers",
                                   "embedding_length_per_layer_input", "final_logit_softcapping", NULL};

/* What smaller models of the family have beside this. */
static enum ps_status expect_zero(const struct gguf *gguf, const char *suffix, struct ps_error *err)
{
    uint32_t value = 0;
    enum ps_status status = hparam_u32(gguf, "gemma4", suffix, false, &value, err);
    if (status == PS_OK && value != 0)
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "gemma4.%s: %u is not supported, only 0", suffix, value);
    return status;
}

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status;
    if ((status = hparams_windows(hp, gguf, "gemma4", 6, false, err)) != PS_OK ||
        (status = expect_zero(gguf, "attention.shared_kv_layers", err)) != PS_OK ||
        (status = expect_zero(gguf, "embedding_length_per_layer_input", err)) != PS_OK ||
        (status = hparam_f32(gguf, "gemma4", "final_logit_softcapping", false, &hp->logit_softcap, err)) !=
            PS_OK)
        return status;
    hp->embedding_scale = sqrtf((float)hp->n_embd);
    hp->router_input_scale = 1.0f / sqrtf((float)hp->n_embd);
    hp->rope[1].factors = false;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        hp->layer[il].attention_scale = 1.0f;
        if (hp->layer[il].head_dim_k != hp->layer[il].head_dim_v)
            return ps_error_set(err, PS_ERR_UNSUPPORTED, "gemma4: layer %u: keys of %u and values of %u", il,
                                hp->layer[il].head_dim_k, hp->layer[il].head_dim_v);
    }
    return PS_OK;
}

/* The router reads the residual stream by a norm of its own: into hidden, which is free until the last layer is done. */
static void router_input(struct forward *f, uint32_t token, void *arg)
{
    const struct weight *scale = arg;
    const struct hparams *hp = &f->model->hp;
    size_t at = (size_t)token * hp->n_embd;
    float *out = f->s.hidden + at;
    f->model->ops->rms_norm(out, f->s.x + at, scale->data, hp->n_embd, hp->norm_eps);
    f->model->ops->scale(out, out, hp->router_input_scale, hp->n_embd);
}

/* branch = rms(dense) + rms(routed), each with its weights; the routed sum is in hidden. */
static void join(struct forward *f, uint32_t token, void *arg)
{
    const struct weight *w = arg;
    const struct hparams *hp = &f->model->hp;
    const struct vector_ops *ops = f->model->ops;
    size_t at = (size_t)token * hp->n_embd;
    float *dense = f->s.branch + at;
    float *routed = f->s.hidden + at;
    ops->rms_norm(dense, dense, w[LT_DENSE_POST_NORM].data, hp->n_embd, hp->norm_eps);
    ops->rms_norm(routed, routed, w[LT_MOE_POST_NORM].data, hp->n_embd, hp->norm_eps);
    ops->add(dense, dense, routed, hp->n_embd);
}

static void scale_output(struct forward *f, uint32_t token, void *arg)
{
    const struct weight *scale = arg;
    size_t n = f->model->hp.n_embd;
    float *x = f->s.x + token * n;
    f->model->ops->scale(x, x, *(const float *)scale->data, n);
}

static enum ps_status dense_and_routed(struct forward *f, uint32_t il, struct ps_error *err)
{
    struct weight *w = f->model->layers[il].w;
    for_each_token(f, router_input, &w[LT_ROUTER_SCALE]);
    block_dense_ffn(f, il, &(struct ffn_options){.activation = FFN_GEGLU, .keep_branch = true});
    norm_chunk(f, &w[LT_MOE_PRE_NORM], &w[LT_FFN_NORM_BIAS], f->s.x, f->s.normed);
    const struct moe_options options = {
        .activation = FFN_GEGLU, .input_ready = true, .router_input = f->s.hidden, .out = f->s.hidden};
    enum ps_status status = block_moe(f, il, &options, err);
    if (status != PS_OK)
        return status;
    for_each_token(f, join, w);
    add_branch(f, f->s.branch, &w[LT_FFN_POST_NORM]);
    return PS_OK;
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    struct weight *w = f->model->layers[il].w;
    enum ps_status status = PS_OK;
    block_attention(f, il, &(struct attention_options){.rope = ROPE_NEOX, .norm_values = true});
    if (layer_is_moe(f, il))
        status = dense_and_routed(f, il, err);
    else
        block_dense_ffn(f, il, &(struct ffn_options){.activation = FFN_GEGLU});
    if (status == PS_OK && w[LT_OUTPUT_SCALE].format)
        for_each_token(f, scale_output, &w[LT_OUTPUT_SCALE]);
    if (layer_is_moe(f, il))
        predict_ahead(f, (int)il, PREDICT_AT_END);
    return status;
}

const struct arch ARCH_GEMMA4 = {
    .name = "gemma4",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .global_rules = GLOBALS,
    .n_global_rules = sizeof(GLOBALS) / sizeof(GLOBALS[0]),
    .known_keys = KEYS,
    .renormalize = true,
    .router_norm = LT_ROUTER_SCALE,
    .hparams = hparams,
    .layer = layer,
};
