/* Hyperparameters of multi-head latent attention. */
#include <math.h>
#include <stdio.h>

#include "runtime/arch.h"

enum {
    MAX_RANK = 1 << 16,
    MAX_HEADS_FLOATS = 1 << 26, /* per token, all heads together */
};

uint64_t dim_mla_q_rank(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->mla.q_rank;
}

uint64_t dim_mla_kv_rank(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->mla.kv_rank;
}

uint64_t dim_mla_kv_a(const struct hparams *hp, const struct layer_hparams *l)
{
    return (uint64_t)hp->mla.kv_rank + hp->rope[l->rope].n_rot;
}

uint64_t dim_mla_q(const struct hparams *hp, const struct layer_hparams *l)
{
    return hp->mla.q_rank > 0 ? 0 : dim_mla_q_b(hp, l);
}

uint64_t dim_mla_q_b(const struct hparams *hp, const struct layer_hparams *l)
{
    return (uint64_t)l->n_head * hp->mla.head_dim_k;
}

uint64_t dim_mla_kv_b(const struct hparams *hp, const struct layer_hparams *l)
{
    return hp->mla.absorbed ? 0 : l->n_head * (dim_mla_nope(hp, l) + hp->mla.head_dim_v);
}

uint64_t dim_mla_out(const struct hparams *hp, const struct layer_hparams *l)
{
    return (uint64_t)l->n_head * hp->mla.head_dim_v;
}

uint64_t dim_mla_nope(const struct hparams *hp, const struct layer_hparams *l)
{
    return hp->mla.head_dim_k - hp->rope[l->rope].n_rot;
}

uint64_t dim_mla_v(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->mla.head_dim_v;
}

static bool is_mla(const struct layer_hparams *l)
{
    return !l->recurrent && l->n_kv_head > 0;
}

static bool has_tensor(const struct gguf *gguf, uint32_t il, const char *name)
{
    char full[64];
    snprintf(full, sizeof(full), "blk.%u.%s", il, name);
    return gguf_tensor_find(gguf, full);
}

/* What the rules can not say: one way of making queries has to be there, and one form of attn_kv_b. */
static enum ps_status check_tensors(const struct hparams *hp, const struct gguf *gguf, uint32_t il,
                                    struct ps_error *err)
{
    const struct {
        const char *name;
        bool needed;
    } tensors[] = {
        {"attn_q.weight", hp->mla.q_rank == 0},       {"attn_q_a.weight", hp->mla.q_rank > 0},
        {"attn_q_a_norm.weight", hp->mla.q_rank > 0}, {"attn_q_b.weight", hp->mla.q_rank > 0},
        {"attn_k_b.weight", hp->mla.absorbed},        {"attn_v_b.weight", hp->mla.absorbed},
        {"attn_kv_b.weight", !hp->mla.absorbed},
    };
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        bool there = has_tensor(gguf, il, tensors[i].name);
        if (tensors[i].needed && !there)
            return ps_error_set(err, PS_ERR_FORMAT, "blk.%u.%s: tensor is missing", il, tensors[i].name);
        if (!tensors[i].needed && there)
            return ps_error_set(err, PS_ERR_UNSUPPORTED,
                                "blk.%u.%s: tensor does not fit the metadata and the other tensors", il,
                                tensors[i].name);
    }
    return PS_OK;
}

/* Growth of attention's temperature with YaRN's factor (arXiv:2309.00071, section 3.4). */
static float magnitude(float factor, float multiplier)
{
    return factor <= 1.0f ? 1.0f : 0.1f * multiplier * logf(factor) + 1.0f;
}

/* Rotated values are scaled by attn_factor and, in rope_cos_sin, by 1 + 0.1 ln(factor); what is meant to remain of that is the
 * ratio of the model's two multipliers, and the scale of q.k has the second, squared. Steps and order as in llama.cpp
 * (llama-context.cpp, models/deepseek2.cpp). */
static float scale_of(struct rope_hparams *rope, float multiplier, bool pairs_mscale, uint32_t head_dim)
{
    float factor = 1.0f / rope->freq_scale;
    if (rope->ext_factor != 0.0f) {
        float rotated = pairs_mscale ? multiplier : 1.0f;
        float ratio = multiplier != 0.0f ? magnitude(factor, rotated) / magnitude(factor, multiplier)
                                         : magnitude(factor, 1.0f);
        rope->attn_factor *= ratio * (1.0f / (1.0f + 0.1f * logf(factor)));
    }
    float original = rope->attn_factor * (1.0f + 0.1f * logf(factor));
    float scale = original * (1.0f + 0.1f * multiplier * logf(factor));
    return scale * scale / sqrtf((float)head_dim);
}

static enum ps_status read_mla(struct hparams *hp, const struct gguf *gguf, const char *arch,
                               const struct layer_hparams *first, struct ps_error *err)
{
    struct mla_hparams *mla = &hp->mla;
    enum ps_status status;
    if ((status = hparam_u32(gguf, arch, "attention.q_lora_rank", false, &mla->q_rank, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "attention.kv_lora_rank", true, &mla->kv_rank, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "attention.key_length_mla", false, &mla->head_dim_k, err)) !=
            PS_OK ||
        (status = hparam_u32(gguf, arch, "attention.value_length_mla", false, &mla->head_dim_v, err)) !=
            PS_OK)
        return status;
    mla->absorbed = mla->head_dim_k > 0 && mla->head_dim_v > 0;
    if (!mla->absorbed) {
        mla->head_dim_k = first->head_dim_k;
        mla->head_dim_v = first->head_dim_v;
    }
    /* Some files name a rank that they do not use. */
    if (has_tensor(gguf, (uint32_t)(first - hp->layer), "attn_q.weight"))
        mla->q_rank = 0;
    uint32_t n_rot = hp->rope[first->rope].n_rot;
    if (mla->kv_rank == 0 || mla->kv_rank > MAX_RANK || mla->q_rank > MAX_RANK)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: attention ranks %u (q) and %u (kv) are out of range",
                            arch, mla->q_rank, mla->kv_rank);
    if (mla->head_dim_k <= n_rot || mla->head_dim_k > MAX_RANK || mla->head_dim_v == 0 ||
        mla->head_dim_v > MAX_RANK)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s: head dimensions %u and %u with %u rotated values are out of range", arch,
                            mla->head_dim_k, mla->head_dim_v, n_rot);
    return PS_OK;
}

/* Per token: q and later the output; latent q; without absorption the latent row and what it expands to. */
static uint64_t dim_mixer(const struct hparams *hp, const struct layer_hparams *l)
{
    const struct mla_hparams *mla = &hp->mla;
    if (!is_mla(l))
        return 0;
    uint64_t widest = mla->head_dim_k > mla->head_dim_v ? mla->head_dim_k : mla->head_dim_v;
    uint64_t expanded = mla->absorbed ? 0 : dim_mla_kv_a(hp, l) + dim_mla_kv_b(hp, l);
    return l->n_head * widest + mla->q_rank + expanded;
}

enum ps_status hparams_mla(struct hparams *hp, const struct gguf *gguf, const char *arch, bool pairs_mscale,
                           struct ps_error *err)
{
    const struct layer_hparams *first = NULL;
    for (uint32_t il = 0; !first && il < hp->n_layers; il++)
        first = is_mla(&hp->layer[il]) ? &hp->layer[il] : NULL;
    if (!first)
        return PS_OK;
    float multiplier = 0.0f;
    enum ps_status status;
    if ((status = read_mla(hp, gguf, arch, first, err)) != PS_OK ||
        (status = hparam_f32(gguf, arch, "rope.scaling.yarn_log_multiplier", false, &multiplier, err)) !=
            PS_OK)
        return status;
    /* The file's number has the factor 0.1 of the formula in it. */
    float scale = scale_of(&hp->rope[first->rope], multiplier / 0.1f, pairs_mscale, hp->mla.head_dim_k);
    if (!isfinite(scale) || scale <= 0.0f)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.rope.scaling: the factors make no scale of attention",
                            arch);
    uint32_t kv_a = (uint32_t)dim_mla_kv_a(hp, first);
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        struct layer_hparams *l = &hp->layer[il];
        if (!is_mla(l))
            continue;
        if ((status = check_tensors(hp, gguf, il, err)) != PS_OK)
            return status;
        l->attention_scale = scale;
        l->v_in_k = hp->mla.absorbed;
        l->n_kv_head = hp->mla.absorbed ? 1 : l->n_head;
        l->head_dim_k = hp->mla.absorbed ? kv_a : hp->mla.head_dim_k;
        l->head_dim_v = hp->mla.absorbed ? hp->mla.kv_rank : hp->mla.head_dim_v;
    }
    uint64_t floats = hparams_most(hp, dim_mixer);
    if (floats > MAX_HEADS_FLOATS)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.attention: heads and ranks are out of range", arch);
    hp->mixer_floats = floats > hp->mixer_floats ? (uint32_t)floats : hp->mixer_floats;
    return PS_OK;
}
