/* glm-dsa (GLM 5): latent attention to the cells that an index chooses, with an index of its own only in some layers; leading
 * dense layers; sigmoid scores with selection bias; a shared expert. */
#include <stdlib.h>

#include "runtime/arch.h"
#include "runtime/forward.h"

static const struct tensor_rule RULES[] = {
    {LT_ATTN_NORM, "attn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    MLA_RULES(NEED_ALWAYS),
    {LT_INDEX_Q, "indexer.attn_q_b.weight", dim_index_q, dim_mla_q_rank, NEED_IN_INDEXED, NULL},
    {LT_INDEX_K, "indexer.attn_k.weight", dim_index, dim_embd, NEED_IN_INDEXED, NULL},
    {LT_INDEX_K_NORM, "indexer.k_norm.weight", dim_one, dim_index, NEED_IN_INDEXED, NULL},
    {LT_INDEX_K_NORM_BIAS, "indexer.k_norm.bias", dim_one, dim_index, NEED_IN_INDEXED, NULL},
    {LT_INDEX_PROJ, "indexer.proj.weight", dim_index_heads, dim_embd, NEED_IN_INDEXED, NULL},
    /* Some files have copies in layers that take over a choice. */
    {LT_INDEX_Q, "indexer.attn_q_b.weight", dim_index_q, dim_mla_q_rank, NEED_UNUSED, NULL},
    {LT_INDEX_K, "indexer.attn_k.weight", dim_index, dim_embd, NEED_UNUSED, NULL},
    {LT_INDEX_K_NORM, "indexer.k_norm.weight", dim_one, dim_index, NEED_UNUSED, NULL},
    {LT_INDEX_K_NORM_BIAS, "indexer.k_norm.bias", dim_one, dim_index, NEED_UNUSED, NULL},
    {LT_INDEX_PROJ, "indexer.proj.weight", dim_index_heads, dim_embd, NEED_UNUSED, NULL},
    {LT_FFN_NORM, "ffn_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    DENSE_FFN_RULES(NEED_IN_DENSE),
    {LT_ROUTER, "ffn_gate_inp.weight", dim_experts, dim_embd, NEED_IN_MOE, NULL},
    {LT_SELECT_BIAS, "exp_probs_b.bias", dim_one, dim_experts, NEED_IN_MOE | NEED_OPTIONAL, NULL},
    SHARED_EXPERT_RULES(NEED_IN_MOE),
};

/* Sections of the rotation are for images; text has the same position in all. */
static const char *const KNOWN_KEYS[] = {"attention.q_lora_rank",        "attention.kv_lora_rank",
                                         "attention.key_length_mla",     "attention.value_length_mla",
                                         "attention.indexer.head_count", "attention.indexer.key_length",
                                         "attention.indexer.top_k",      "attention.indexer.types",
                                         "rope.dimension_sections",      NULL};

enum {
    MAX_INDEX_HEADS = 1024,
    MAX_INDEX_DIM = 4096,
    INDEX_DIM_STEP = 32, /* whole blocks of every cache type */
    LONG_CONTEXT = 1048576,
};

/* Files without the key: in GLM 5 and 5.1 all layers choose; in 5.2, known by its context, the first three and then every
 * fourth (its config.json). */
static uint32_t default_type(const struct hparams *hp, uint32_t il)
{
    return hp->n_ctx_train < LONG_CONTEXT || il < 2 || (il - 2) % 4 == 0;
}

static enum ps_status read_types(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    uint32_t *types = malloc(hp->n_layers * sizeof(*types));
    if (!types)
        return ps_error_set(err, PS_ERR_NOMEM, "hyperparameters: out of memory");
    for (uint32_t il = 0; il < hp->n_layers; il++)
        types[il] = default_type(hp, il);
    enum ps_status status = hparam_layers_u32(gguf, ARCH_GLM_DSA.name, "attention.indexer.types", false,
                                              hp->n_layers, types, err);
    for (uint32_t il = 0; status == PS_OK && il < hp->n_layers; il++)
        hp->layer[il].index_dim = types[il] ? hp->index.head_dim : 0;
    free(types);
    if (status == PS_OK && hp->layer[0].index_dim == 0)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s.attention.indexer.types: the first layer has no choice to take over",
                            ARCH_GLM_DSA.name);
    return status;
}

static enum ps_status read_index(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    const char *arch = ARCH_GLM_DSA.name;
    struct index_hparams *index = &hp->index;
    enum ps_status status;
    if ((status = hparam_u32(gguf, arch, "attention.indexer.head_count", true, &index->n_head, err)) !=
            PS_OK ||
        (status = hparam_u32(gguf, arch, "attention.indexer.key_length", true, &index->head_dim, err)) !=
            PS_OK ||
        (status = hparam_u32(gguf, arch, "attention.indexer.top_k", true, &index->top_k, err)) != PS_OK)
        return status;
    if (index->n_head == 0 || index->n_head > MAX_INDEX_HEADS || index->top_k == 0)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.attention.indexer: %u heads, top %u are out of range",
                            arch, index->n_head, index->top_k);
    if (index->head_dim % INDEX_DIM_STEP != 0 || index->head_dim < hp->rope[0].n_rot ||
        index->head_dim == 0 || index->head_dim > MAX_INDEX_DIM)
        return ps_error_set(err, PS_ERR_UNSUPPORTED,
                            "%s.attention.indexer.key_length: %u is not a multiple of %d up to %d, at least "
                            "%u",
                            arch, index->head_dim, INDEX_DIM_STEP, MAX_INDEX_DIM, hp->rope[0].n_rot);
    return read_types(hp, gguf, err);
}

static enum ps_status read_hparams(struct hparams *hp, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status = hparams_mla(hp, gguf, ARCH_GLM_DSA.name, false, err);
    if (status != PS_OK)
        return status;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        if (hp->layer[il].n_kv_head == 0 || !hp->mla.absorbed || hp->mla.q_rank == 0)
            return ps_error_set(err, PS_ERR_UNSUPPORTED,
                                "%s: only latent attention with latent queries and attn_kv_b in two parts "
                                "is supported, in every layer",
                                ARCH_GLM_DSA.name);
    }
    if ((status = read_index(hp, gguf, err)) != PS_OK)
        return status;
    hp->mixer_floats += (uint32_t)(dim_index_q(hp, NULL) + dim_index(hp, NULL) + dim_index_heads(hp, NULL));
    return PS_OK;
}

static enum ps_status layer(struct forward *f, uint32_t il, struct ps_error *err)
{
    block_mla(f, il, &(struct mla_options){.rope = ROPE_CONSECUTIVE});
    return block_ffn(f, il, FFN_SWIGLU, err);
}

const struct arch ARCH_GLM_DSA = {
    .name = "glm-dsa",
    .layer_rules = RULES,
    .n_layer_rules = sizeof(RULES) / sizeof(RULES[0]),
    .known_keys = KNOWN_KEYS,
    .gating = GATING_SIGMOID,
    .hparams = read_hparams,
    .layer = layer,
};
