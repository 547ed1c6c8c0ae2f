#include "runtime/hparams.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/arch.h"

enum { MAX_WIDTH = 1 << 20, MAX_EXPERTS = 4096, MAX_CONTEXT = 1 << 30 };

/* Read by hparams_read, or known not to change the computation of a supported family. */
static const char *const COMMON_KEYS[] = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "attention.scale",
    "attention.causal",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_weights_scale",
    "expert_weights_norm",
    "expert_gating_func",
    "expert_group_count",
    "expert_group_used_count",
    /* The tensors themselves say which layers have experts, and of what shape. */
    "expert_shared_count",
    "leading_dense_block_count",
    "interleave_moe_layer_step",
    "moe_every_n_layers",
    "nextn_predict_layers",
    "vocab_size",
    "tensor_data_layout",
    NULL,
};

static void key_name(char *out, size_t size, const char *arch, const char *suffix)
{
    snprintf(out, size, "%s.%s", arch, suffix);
}

enum ps_status hparam_u32(const struct gguf *gguf, const char *arch, const char *suffix, bool required,
                          uint32_t *out, struct ps_error *err)
{
    char key[128];
    key_name(key, sizeof(key), arch, suffix);
    uint64_t value = 0;
    if (!gguf_find(gguf, key)) {
        if (!required)
            return PS_OK;
        return ps_error_set(err, PS_ERR_FORMAT, "%s: metadata key is missing", key);
    }
    if (!gguf_get_u64(gguf, key, &value) || value > UINT32_MAX)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: not a 32-bit unsigned number", key);
    *out = (uint32_t)value;
    return PS_OK;
}

enum ps_status hparam_size(const struct gguf *gguf, const char *arch, const char *suffix, uint32_t *out,
                           struct ps_error *err)
{
    enum ps_status status = hparam_u32(gguf, arch, suffix, true, out, err);
    if (status == PS_OK && (*out == 0 || *out > MAX_WIDTH))
        return ps_error_set(err, PS_ERR_FORMAT, "%s.%s: %u is not within 1..%d", arch, suffix, *out,
                            MAX_WIDTH);
    return status;
}

enum ps_status hparam_f32(const struct gguf *gguf, const char *arch, const char *suffix, bool required,
                          float *out, struct ps_error *err)
{
    char key[128];
    key_name(key, sizeof(key), arch, suffix);
    double value = 0;
    if (!gguf_find(gguf, key)) {
        if (!required)
            return PS_OK;
        return ps_error_set(err, PS_ERR_FORMAT, "%s: metadata key is missing", key);
    }
    if (!gguf_get_f64(gguf, key, &value) || !isfinite(value))
        return ps_error_set(err, PS_ERR_FORMAT, "%s: not a finite number", key);
    *out = (float)value;
    return PS_OK;
}

enum ps_status hparam_factor(const struct gguf *gguf, const char *arch, const char *suffix, float *out,
                             struct ps_error *err)
{
    enum ps_status status = hparam_f32(gguf, arch, suffix, false, out, err);
    *out = *out == 0.0f ? 1.0f : *out;
    return status;
}

enum ps_status hparam_bool(const struct gguf *gguf, const char *arch, const char *suffix, bool required,
                           bool *out, struct ps_error *err)
{
    char key[128];
    key_name(key, sizeof(key), arch, suffix);
    if (!gguf_find(gguf, key)) {
        if (!required)
            return PS_OK;
        return ps_error_set(err, PS_ERR_FORMAT, "%s: metadata key is missing", key);
    }
    if (!gguf_get_bool(gguf, key, out))
        return ps_error_set(err, PS_ERR_FORMAT, "%s: not a boolean", key);
    return PS_OK;
}

/* The array under a key that holds a value per layer; NULL, PS_OK: one value for all, or none. */
static enum ps_status find_layers(const struct gguf *gguf, const char *key, uint32_t n_layers,
                                  const struct gguf_array **out, struct ps_error *err)
{
    const struct gguf_value *value = gguf_find(gguf, key);
    *out = NULL;
    if (!value || value->type != GGUF_ARRAY)
        return PS_OK;
    if (value->a.type == GGUF_STRING || value->a.type == GGUF_ARRAY || value->a.count < n_layers)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: not a number for each of %u layers", key, n_layers);
    *out = &value->a;
    return PS_OK;
}

enum ps_status hparam_layers_u32(const struct gguf *gguf, const char *arch, const char *suffix, bool required,
                                 uint32_t n_layers, uint32_t *out, struct ps_error *err)
{
    char key[128];
    key_name(key, sizeof(key), arch, suffix);
    const struct gguf_array *array;
    enum ps_status status = find_layers(gguf, key, n_layers, &array, err);
    if (status != PS_OK)
        return status;
    if (!array) {
        uint32_t one = out[0];
        bool there = gguf_find(gguf, key);
        status = hparam_u32(gguf, arch, suffix, required, &one, err);
        for (uint32_t il = 0; status == PS_OK && there && il < n_layers; il++)
            out[il] = one;
        return status;
    }
    for (uint32_t il = 0; il < n_layers; il++) {
        uint64_t value = gguf_array_u64(array, il);
        if (value > UINT32_MAX)
            return ps_error_set(err, PS_ERR_FORMAT, "%s: layer %u: not a 32-bit unsigned number", key, il);
        out[il] = (uint32_t)value;
    }
    return PS_OK;
}

uint64_t hparams_most(const struct hparams *hp, dim_fn *of)
{
    uint64_t most = 0;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        uint64_t value = of(hp, &hp->layer[il]);
        most = value > most ? value : most;
    }
    return most;
}

static bool listed(const char *const *list, const char *name, size_t length)
{
    for (; list && *list; list++) {
        if (strlen(*list) == length && memcmp(*list, name, length) == 0)
            return true;
    }
    return false;
}

static enum ps_status check_keys(const struct gguf *gguf, const char *arch, const char *const *known,
                                 struct ps_error *err)
{
    size_t prefix = strlen(arch);
    for (uint64_t i = 0; i < gguf_n_kv(gguf); i++) {
        struct gguf_string key = gguf_kv_at(gguf, i)->key;
        if (key.length <= prefix + 1 || memcmp(key.data, arch, prefix) != 0 || key.data[prefix] != '.')
            continue;
        const char *suffix = key.data + prefix + 1;
        size_t length = key.length - prefix - 1;
        if (!listed(COMMON_KEYS, suffix, length) && !listed(known, suffix, length))
            return ps_error_set(
                err, PS_ERR_UNSUPPORTED,
                "%.*s: metadata key is not handled for this architecture, and may change the result",
                (int)(key.length < 200 ? key.length : 200), key.data);
    }
    bool causal = true;
    char key[128];
    key_name(key, sizeof(key), arch, "attention.causal");
    if (gguf_get_bool(gguf, key, &causal) && !causal)
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s: models without causal attention are not supported",
                            key);
    return PS_OK;
}

enum { MAX_HEAD = 4096 };

/* A number per layer that the file may also give once for all, into a field of each layer. */
static enum ps_status read_layers_u32(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                      const char *suffix, bool required, size_t field, struct ps_error *err)
{
    uint32_t *values = malloc(hp->n_layers * sizeof(*values));
    if (!values)
        return ps_error_set(err, PS_ERR_NOMEM, "hyperparameters: out of memory");
    for (uint32_t il = 0; il < hp->n_layers; il++)
        memcpy(&values[il], (const char *)&hp->layer[il] + field, sizeof(values[il]));
    enum ps_status status = hparam_layers_u32(gguf, arch, suffix, required, hp->n_layers, values, err);
    for (uint32_t il = 0; status == PS_OK && il < hp->n_layers; il++)
        memcpy((char *)&hp->layer[il] + field, &values[il], sizeof(values[il]));
    free(values);
    return status;
}

enum ps_status hparams_layer_f32(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                 const char *suffix, bool required, size_t field, struct ps_error *err)
{
    char key[128];
    key_name(key, sizeof(key), arch, suffix);
    const struct gguf_array *array;
    enum ps_status status = find_layers(gguf, key, hp->n_layers, &array, err);
    float value = 0.0f;
    if (status == PS_OK && !array)
        status = hparam_f32(gguf, arch, suffix, required, &value, err);
    if (status != PS_OK || !gguf_find(gguf, key))
        return status;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        if (array)
            value = (float)gguf_array_f64(array, il);
        if (!isfinite(value))
            return ps_error_set(err, PS_ERR_FORMAT, "%s: layer %u: not a finite number", key, il);
        memcpy((char *)&hp->layer[il] + field, &value, sizeof(value));
    }
    return PS_OK;
}

#define LAYER_FIELD(field) offsetof(struct layer_hparams, field)

static enum ps_status read_attention(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                     struct ps_error *err)
{
    enum ps_status status =
        read_layers_u32(hp, gguf, arch, "attention.head_count", true, LAYER_FIELD(n_head), err);
    if (status != PS_OK)
        return status;
    uint32_t heads = 0;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        hp->layer[il].n_kv_head = hp->layer[il].n_head;
        heads = heads ? heads : hp->layer[il].n_head;
    }
    uint32_t head_dim = heads ? hp->n_embd / heads : 0;
    uint32_t head_dim_v = head_dim;
    float scale = 0.0f;
    if ((status = read_layers_u32(hp, gguf, arch, "attention.head_count_kv", false, LAYER_FIELD(n_kv_head),
                                  err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "attention.key_length", false, &head_dim, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "attention.value_length", false, &head_dim_v, err)) != PS_OK ||
        (status = hparam_f32(gguf, arch, "attention.scale", false, &scale, err)) != PS_OK)
        return status;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        hp->layer[il].head_dim_k = head_dim;
        hp->layer[il].head_dim_v = head_dim_v;
        hp->layer[il].attention_scale = scale;
    }
    const char *epsilon = "attention.layer_norm_rms_epsilon";
    char key[128];
    key_name(key, sizeof(key), arch, epsilon);
    if (!gguf_find(gguf, key)) {
        epsilon = "attention.layer_norm_epsilon";
        hp->norm_kind = NORM_LAYER;
    }
    return hparam_f32(gguf, arch, epsilon, true, &hp->norm_eps, err);
}

static bool string_is(struct gguf_string s, const char *text)
{
    return s.length == strlen(text) && memcmp(s.data, text, s.length) == 0;
}

/* Scaling as llama.cpp reads it: a factor of 0 counts as none; YaRN mixes fully unless the file says otherwise. */
static enum ps_status read_rope(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                struct ps_error *err)
{
    enum ps_status status;
    float factor = 0.0f;
    float ext_factor = -1.0f;
    struct rope_hparams *rope = &hp->rope[0];
    *rope = (struct rope_hparams){.n_rot = hp->layer[0].head_dim_k,
                                  .freq_base = 10000.0f,
                                  .attn_factor = 1.0f,
                                  .ctx_orig = hp->n_ctx_train,
                                  .factors = true};
    hp->n_ropes = 1;
    if ((status = hparam_u32(gguf, arch, "rope.dimension_count", false, &rope->n_rot, err)) != PS_OK ||
        (status = hparam_f32(gguf, arch, "rope.freq_base", false, &rope->freq_base, err)) != PS_OK ||
        (status = hparam_f32(gguf, arch, "rope.scale_linear", false, &factor, err)) != PS_OK ||
        (status = hparam_f32(gguf, arch, "rope.scaling.factor", false, &factor, err)) != PS_OK ||
        (status = hparam_f32(gguf, arch, "rope.scaling.attn_factor", false, &rope->attn_factor, err)) !=
            PS_OK ||
        (status = hparam_f32(gguf, arch, "rope.scaling.yarn_attn_factor", false, &rope->attn_factor, err)) !=
            PS_OK ||
        (status = hparam_f32(gguf, arch, "rope.scaling.yarn_ext_factor", false, &ext_factor, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "rope.scaling.original_context_length", false, &rope->ctx_orig,
                             err)) != PS_OK)
        return status;
    char key[128];
    struct gguf_string type = {.data = "linear", .length = 6};
    key_name(key, sizeof(key), arch, "rope.scaling.type");
    gguf_get_string(gguf, key, &type);
    bool yarn = string_is(type, "yarn");
    bool longrope = string_is(type, "longrope"); /* factors in tensors */
    if (!yarn && !longrope && !string_is(type, "linear") && !string_is(type, "none"))
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s: '%.*s' is not one of none, linear, yarn, longrope",
                            key, (int)(type.length < 60 ? type.length : 60), type.data);
    bool scaled = factor != 0.0f && !longrope && !string_is(type, "none");
    rope->freq_scale = scaled ? 1.0f / factor : 1.0f;
    rope->ext_factor = ext_factor < 0.0f ? (yarn ? 1.0f : 0.0f) : ext_factor;
    return PS_OK;
}

static enum ps_status read_gating(struct hparams *hp, const struct gguf *gguf, const struct arch *arch,
                                  struct ps_error *err)
{
    enum ps_status status;
    uint32_t gating = 0;
    hp->renormalize = arch->renormalize;
    if ((status = hparam_bool(gguf, arch->name, "expert_weights_norm", false, &hp->renormalize, err)) !=
            PS_OK ||
        (status = hparam_u32(gguf, arch->name, "expert_gating_func", false, &gating, err)) != PS_OK)
        return status;
    hp->gating = gating ? (enum gating)gating : arch->gating ? arch->gating : GATING_SOFTMAX;
    if (hp->gating > GATING_SQRT_SOFTPLUS)
        return ps_error_set(err, PS_ERR_UNSUPPORTED,
                            "%s.expert_gating_func: %u is not one of 1 (softmax), 2 (sigmoid), 3 (softmax of "
                            "the chosen), 4 (sqrt of softplus)",
                            arch->name, gating);
    if (hp->gating == GATING_SOFTMAX_OF_CHOSEN)
        hp->renormalize = true;
    hp->n_expert_groups = hp->n_expert_groups_used = 1;
    if ((status = hparam_u32(gguf, arch->name, "expert_group_count", false, &hp->n_expert_groups, err)) !=
            PS_OK ||
        (status = hparam_u32(gguf, arch->name, "expert_group_used_count", false, &hp->n_expert_groups_used,
                             err)) != PS_OK)
        return status;
    if (hp->n_expert_groups <= 1)
        hp->n_expert_groups = hp->n_expert_groups_used = 1;
    uint32_t of_group = hp->n_expert / hp->n_expert_groups;
    if (hp->n_expert > 0 &&
        (hp->n_expert_groups > MAX_EXPERT_GROUPS || hp->n_expert % hp->n_expert_groups != 0 ||
         hp->n_expert_groups_used == 0 || hp->n_expert_groups_used > hp->n_expert_groups ||
         hp->n_expert_used > hp->n_expert_groups_used * of_group))
        return ps_error_set(
            err, PS_ERR_FORMAT, "%s.expert_group_count: %u groups, %u used, do not fit %u experts, %u used",
            arch->name, hp->n_expert_groups, hp->n_expert_groups_used, hp->n_expert, hp->n_expert_used);
    return PS_OK;
}

static enum ps_status read_experts(struct hparams *hp, const struct gguf *gguf, const struct arch *arch,
                                   struct ps_error *err)
{
    enum ps_status status;
    if ((status = read_layers_u32(hp, gguf, arch->name, "feed_forward_length", false, LAYER_FIELD(n_ff),
                                  err)) != PS_OK ||
        (status = hparam_u32(gguf, arch->name, "expert_count", false, &hp->n_expert, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch->name, "expert_used_count", false, &hp->n_expert_used, err)) !=
            PS_OK ||
        (status = hparam_f32(gguf, arch->name, "expert_weights_scale", false, &hp->expert_weights_scale,
                             err)) != PS_OK)
        return status;
    if (hp->n_expert > MAX_EXPERTS)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.expert_count: %u is more than %d", arch->name,
                            hp->n_expert, MAX_EXPERTS);
    if (hp->n_expert > 0 && (hp->n_expert_used == 0 || hp->n_expert_used > hp->n_expert))
        return ps_error_set(err, PS_ERR_FORMAT, "%s.expert_used_count: %u is not within 1..%u experts",
                            arch->name, hp->n_expert_used, hp->n_expert);
    hp->n_embd_expert = hp->n_embd;
    hp->n_ff_expert = hp->n_expert > 0 ? hp->layer[0].n_ff : 0;
    if ((status = hparam_u32(gguf, arch->name, "expert_feed_forward_length", false, &hp->n_ff_expert, err)) !=
            PS_OK ||
        (status = hparam_u32(gguf, arch->name, "expert_shared_feed_forward_length", false, &hp->n_ff_shared,
                             err)) != PS_OK)
        return status;
    return read_gating(hp, gguf, arch, err);
}

/* ---- sliding windows ---- */

static enum ps_status read_pattern(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                   uint32_t period, bool dense_first, bool *windowed, struct ps_error *err)
{
    char key[128];
    key_name(key, sizeof(key), arch, "attention.sliding_window_pattern");
    const struct gguf_array *array;
    enum ps_status status = find_layers(gguf, key, hp->n_layers, &array, err);
    if (status == PS_OK && !array)
        status = hparam_u32(gguf, arch, "attention.sliding_window_pattern", false, &period, err);
    for (uint32_t il = 0; status == PS_OK && il < hp->n_layers; il++) {
        uint32_t full = dense_first ? 0 : period - 1;
        windowed[il] = array ? gguf_array_u64(array, il) != 0 : period == 0 || il % period != full;
    }
    return status;
}

enum ps_status hparams_windows(struct hparams *hp, const struct gguf *gguf, const char *arch,
                               uint32_t default_period, bool dense_first, struct ps_error *err)
{
    enum ps_status status;
    uint32_t window = 0;
    uint32_t head_dim_k = 0, head_dim_v = 0;
    struct rope_hparams rope = hp->rope[0];
    bool *windowed = calloc(hp->n_layers, sizeof(*windowed));
    if (!windowed)
        return ps_error_set(err, PS_ERR_NOMEM, "hyperparameters: out of memory");
    if ((status = hparam_u32(gguf, arch, "attention.sliding_window", false, &window, err)) != PS_OK ||
        (status = read_pattern(hp, gguf, arch, default_period, dense_first, windowed, err)) != PS_OK ||
        (status = hparam_f32(gguf, arch, "rope.freq_base_swa", false, &rope.freq_base, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "rope.dimension_count_swa", false, &rope.n_rot, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "attention.key_length_swa", false, &head_dim_k, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "attention.value_length_swa", false, &head_dim_v, err)) != PS_OK)
        goto done;
    hp->n_ropes = 2;
    hp->rope[1] = rope;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        struct layer_hparams *layer = &hp->layer[il];
        if (!windowed[il] || window == 0)
            continue;
        layer->window = window;
        layer->rope = 1;
        layer->head_dim_k = head_dim_k ? head_dim_k : layer->head_dim_k;
        layer->head_dim_v = head_dim_v ? head_dim_v : layer->head_dim_v;
    }
done:
    free(windowed);
    return status;
}

/* ---- rotation along several axes ---- */

enum ps_status hparams_rope_sections(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                     struct ps_error *err)
{
    enum { N_SECTIONS = 4, MAX_SECTION = 4096 };
    struct rope_hparams *rope = &hp->rope[0];
    uint32_t sections[N_SECTIONS] = {0};
    enum ps_status status =
        hparam_layers_u32(gguf, arch, "rope.dimension_sections", true, N_SECTIONS, sections, err);
    if (status != PS_OK)
        return status;
    for (uint32_t i = 0; i < N_SECTIONS; i++) {
        if (sections[i] > MAX_SECTION)
            return ps_error_set(err, PS_ERR_FORMAT, "%s.rope.dimension_sections: %u is out of range", arch,
                                sections[i]);
        rope->section_pairs += sections[i];
    }
    if (rope->section_pairs == 0)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.rope.dimension_sections: all are empty", arch);
    memcpy(rope->section, sections, sizeof(rope->section));
    return PS_OK;
}

/* ---- the whole ---- */

static enum ps_status read_sizes(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                 struct ps_error *err)
{
    enum ps_status status;
    if ((status = hparam_u32(gguf, arch, "block_count", true, &hp->n_layers, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "nextn_predict_layers", false, &hp->n_nextn, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "embedding_length", true, &hp->n_embd, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "context_length", true, &hp->n_ctx_train, err)) != PS_OK)
        return status;
    if (hp->n_layers == 0 || hp->n_layers > MAX_MODEL_LAYERS)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.block_count: %u is not within 1..%d", arch, hp->n_layers,
                            MAX_MODEL_LAYERS);
    if (hp->n_nextn >= hp->n_layers)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.nextn_predict_layers: %u of %u layers", arch, hp->n_nextn,
                            hp->n_layers);
    hp->n_layers -= hp->n_nextn;
    if (hp->n_embd == 0 || hp->n_embd > MAX_WIDTH)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.embedding_length: %u is not within 1..%d", arch,
                            hp->n_embd, MAX_WIDTH);
    if (hp->n_ctx_train == 0 || hp->n_ctx_train > MAX_CONTEXT)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.context_length: %u is out of range", arch,
                            hp->n_ctx_train);
    const struct gguf_tensor *embd = gguf_tensor_find(gguf, "token_embd.weight");
    if (!embd)
        return ps_error_set(err, PS_ERR_FORMAT, "token_embd.weight: tensor is missing");
    if (embd->dims[1] == 0 || embd->dims[1] > INT32_MAX)
        return ps_error_set(err, PS_ERR_FORMAT, "token_embd.weight: %llu rows",
                            (unsigned long long)embd->dims[1]);
    hp->n_vocab = (uint32_t)embd->dims[1];
    return PS_OK;
}

/* What the blocks rely on, whatever the family made of the numbers. */
static enum ps_status check_layer(const struct hparams *hp, const char *arch, uint32_t il,
                                  struct ps_error *err)
{
    const struct layer_hparams *layer = &hp->layer[il];
    if (hp->n_embd_expert > MAX_WIDTH || layer->n_head > MAX_WIDTH || layer->n_kv_head > MAX_WIDTH ||
        layer->n_ff > MAX_WIDTH)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: layer %u: heads or widths are out of range", arch, il);
    if (layer->recurrent || layer->n_kv_head == 0)
        return PS_OK;
    if (layer->index_dim > MAX_HEAD)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.attention.indexer.key_length: %u is out of range", arch,
                            layer->index_dim);
    if (layer->n_head == 0)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.attention.head_count: %u is out of range", arch,
                            layer->n_head);
    if (layer->n_head % layer->n_kv_head != 0)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.attention.head_count_kv: %u does not divide %u heads",
                            arch, layer->n_kv_head, layer->n_head);
    if (layer->head_dim_k == 0 || layer->head_dim_v == 0 || layer->head_dim_k > MAX_HEAD ||
        layer->head_dim_v > MAX_HEAD)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: head dimensions %u and %u are out of range", arch,
                            layer->head_dim_k, layer->head_dim_v);
    uint32_t n_rot = hp->rope[layer->rope].n_rot;
    if (n_rot % 2 != 0 || n_rot > layer->head_dim_k)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s.rope.dimension_count: %u is odd or larger than a head of %u", arch, n_rot,
                            layer->head_dim_k);
    return PS_OK;
}

static enum ps_status finish(struct hparams *hp, const char *arch, struct ps_error *err)
{
    enum ps_status status = PS_OK;
    if (hp->norm_eps < 0.0f)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: the norms' epsilon is negative", arch);
    for (uint32_t i = 0; i < hp->n_ropes; i++) {
        if (!(hp->rope[i].freq_base > 0.0f))
            return ps_error_set(err, PS_ERR_FORMAT, "%s.rope.freq_base: is not above 0", arch);
    }
    for (uint32_t il = 0; status == PS_OK && il < hp->n_layers; il++) {
        struct layer_hparams *layer = &hp->layer[il];
        if (layer->attention_scale == 0.0f && layer->head_dim_k > 0)
            layer->attention_scale = 1.0f / sqrtf((float)layer->head_dim_k);
        status = check_layer(hp, arch, il, err);
    }
    return status;
}

enum ps_status hparams_read(struct hparams *hp, const struct gguf *gguf, const struct arch *arch,
                            struct ps_error *err)
{
    *hp = (struct hparams){.n_streams = 1,
                           .embedding_scale = 1.0f,
                           .residual_scale = 1.0f,
                           .logit_scale = 1.0f,
                           .attention_out_scale = 1.0f,
                           .router_input_scale = 1.0f};
    enum ps_status status;
    if ((status = check_keys(gguf, arch->name, arch->known_keys, err)) != PS_OK ||
        (status = read_sizes(hp, gguf, arch->name, err)) != PS_OK)
        return status;
    hp->layer = calloc(hp->n_layers, sizeof(*hp->layer));
    if (!hp->layer)
        return ps_error_set(err, PS_ERR_NOMEM, "hyperparameters: out of memory");
    if ((status = read_attention(hp, gguf, arch->name, err)) != PS_OK ||
        (status = read_rope(hp, gguf, arch->name, err)) != PS_OK ||
        (status = read_experts(hp, gguf, arch, err)) != PS_OK ||
        (arch->hparams && (status = arch->hparams(hp, gguf, err)) != PS_OK))
        return status;
    return finish(hp, arch->name, err);
}

void hparams_deinit(struct hparams *hp)
{
    free(hp->layer);
    hp->layer = NULL;
}
