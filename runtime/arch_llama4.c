/* llama4: every few layers are routed, top-1, with the weight on the expert's input, beside a shared expert; three layers
 * with a rotation, a norm of q and k, and attention within chunks, then one without them, whose queries grow with
 * position. Constants that its files do not carry are those of the reference (transformers, modeling_llama4.py) as llama.cpp
 * has them. */
#include "runtime/arch.h"
#include "runtime/forward.h"

enum {
    FULL_EVERY = 4, /* layers */
    CHUNK = 8192,   /* positions */
    MAVERICK = 128, /* experts of the one whose q and k have no norm */
    GROWTH = 8192,  /* positions per step of a query's growth */
};

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    QKV_RULES(NEED_ALWAYS),
    QKV_BIAS_RULES(NEED_OPTIONAL),
    {LT_ATTN_OUTPUT, "attn_output.weight", dim_embd, dim_attn_out, NEED_ALWAYS, NULL},
    {LT_ATTN_OUTPUT_BIAS, "attn_output.bias", dim_one, dim_embd, NEED_OPTIONAL, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    DENSE_FFN_RULES(NEED_IN_DENSE),
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    SHARED_EXPERT_RULES(NEED_IN_MOE),
};

static const char *const KEYS[] = {"attention.sliding_window", NULL};

/* What llama.cpp makes of the key: 0 says that all layers rotate and see all of the past; no other number is looked at. */
static enum ps_status read_chunked(const struct hparams *hp, const struct gguf *gguf, bool *chunked,
                                   struct ps_error *err)
{
    uint32_t window = hp->n_expert > 0 ? CHUNK : 0; /* dense relatives: MobileLLM */
    enum ps_status status = hparam_u32(gguf, "llama4", "attention.sliding_window", false, &window, err);
    if (status == PS_OK && window != 0 && window != CHUNK)
        return ps_error_set(err, PS_ERR_UNSUPPORTED,
                            "llama4.attention.sliding_window: %u is not supported, only 0 and %d", window,
                            CHUNK);
    *chunked = window > 0;
    return status;
}

static enum ps_status hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    bool chunked = true;
    enum ps_status status = read_chunked(hp, gguf, &chunked, err);
    if (status != PS_OK)
        return status;
    hp->temperature.scale = 0.1f;
    hp->temperature.length = GROWTH;
    hp->temperature.offset = 1;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        struct layer_hparams *l = &hp->layer[il];
        bool full = il % FULL_EVERY == FULL_EVERY - 1;
        l->no_rope = chunked && full;
        l->window = chunked && !full ? CHUNK : 0;
        l->window_in_chunks = true;
    }
    return PS_OK;
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    const struct hparams *hp = hparams_of(f);
    bool no_rope = hp->layer[il].no_rope;
    block_attention(f, il,
                    &(struct attention_options){.rope = ROPE_CONSECUTIVE,
                                                .norm_unweighted = !no_rope && hp->n_expert != MAVERICK,
                                                .scale_q = no_rope});
    if (layer_is_moe(f, il))
        return block_moe(f, il, &(struct moe_options){.weigh_input = true}, err);
    block_dense_ffn(f, il, &(struct ffn_options){0});
    return PS_OK;
}

const struct arch ARCH_LLAMA4 = {
    .name = "llama4",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .known_keys = KEYS,
    .gating = GATING_SIGMOID,
    .hparams = hparams,
    .layer = layer,
};
