#include "runtime/hparams.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_LAYERS = 1024, MAX_WIDTH = 1 << 20, MAX_EXPERTS = 4096, MAX_CONTEXT = 1 << 30 };
enum { GATING_SOFTMAX = 1 }; /* llama.cpp's number for it in GGUF metadata */

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
    "expert_gating_func",
    "vocab_size",
    "tensor_data_layout",
    NULL,
};

static void key_name(char *out, size_t size, const char *arch, const char *suffix)
{
    snprintf(out, size, "%s.%s", arch, suffix);
}

/* One number for the whole model, also where a file repeats it per layer. */
static bool get_uniform_u64(const struct gguf *gguf, const char *key, uint64_t *out, bool *varies)
{
    if (gguf_get_u64(gguf, key, out))
        return true;
    const struct gguf_value *value = gguf_find(gguf, key);
    if (!value || value->type != GGUF_ARRAY || value->a.count == 0 || value->a.type == GGUF_STRING ||
        value->a.type == GGUF_ARRAY)
        return false;
    *out = gguf_array_u64(&value->a, 0);
    for (uint64_t i = 1; i < value->a.count; i++)
        *varies |= gguf_array_u64(&value->a, i) != *out;
    return true;
}

enum ps_status hparam_u32(const struct gguf *gguf, const char *arch, const char *suffix, bool required,
                          uint32_t *out, struct ps_error *err)
{
    char key[128];
    key_name(key, sizeof(key), arch, suffix);
    uint64_t value = 0;
    bool varies = false;
    if (!gguf_find(gguf, key)) {
        if (!required)
            return PS_OK;
        return ps_error_set(err, PS_ERR_FORMAT, "%s: metadata key is missing", key);
    }
    if (!get_uniform_u64(gguf, key, &value, &varies) || value > UINT32_MAX)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: not a 32-bit unsigned number", key);
    if (varies)
        return ps_error_set(err, PS_ERR_UNSUPPORTED,
                            "%s: differs between layers, which '%s' does not support", key, arch);
    *out = (uint32_t)value;
    return PS_OK;
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

static enum ps_status read_attention(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                     struct ps_error *err)
{
    enum ps_status status;
    hp->n_kv_head = 0;
    if ((status = hparam_u32(gguf, arch, "attention.head_count", true, &hp->n_head, err)) != PS_OK)
        return status;
    if (hp->n_head == 0 || hp->n_head > MAX_WIDTH)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.attention.head_count: %u is out of range", arch,
                            hp->n_head);
    hp->n_kv_head = hp->n_head;
    hp->head_dim_k = hp->head_dim_v = hp->n_embd / hp->n_head;
    if ((status = hparam_u32(gguf, arch, "attention.head_count_kv", false, &hp->n_kv_head, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "attention.key_length", false, &hp->head_dim_k, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "attention.value_length", false, &hp->head_dim_v, err)) != PS_OK)
        return status;
    if (hp->n_kv_head == 0 || hp->n_head % hp->n_kv_head != 0)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.attention.head_count_kv: %u does not divide %u heads",
                            arch, hp->n_kv_head, hp->n_head);
    if (hp->head_dim_k == 0 || hp->head_dim_v == 0 || hp->head_dim_k > 4096 || hp->head_dim_v > 4096)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: head dimensions %u and %u are out of range", arch,
                            hp->head_dim_k, hp->head_dim_v);
    hp->attention_scale = 0.0f;
    if ((status = hparam_f32(gguf, arch, "attention.scale", false, &hp->attention_scale, err)) != PS_OK)
        return status;
    if (hp->attention_scale == 0.0f)
        hp->attention_scale = 1.0f / sqrtf((float)hp->head_dim_k);
    return hparam_f32(gguf, arch, "attention.layer_norm_rms_epsilon", true, &hp->norm_eps, err);
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
    hp->n_rot = hp->head_dim_k;
    hp->rope_freq_base = 10000.0f;
    hp->rope_attn_factor = 1.0f;
    hp->rope_ctx_orig = hp->n_ctx_train;
    if ((status = hparam_u32(gguf, arch, "rope.dimension_count", false, &hp->n_rot, err)) != PS_OK ||
        (status = hparam_f32(gguf, arch, "rope.freq_base", false, &hp->rope_freq_base, err)) != PS_OK ||
        (status = hparam_f32(gguf, arch, "rope.scale_linear", false, &factor, err)) != PS_OK ||
        (status = hparam_f32(gguf, arch, "rope.scaling.factor", false, &factor, err)) != PS_OK ||
        (status = hparam_f32(gguf, arch, "rope.scaling.attn_factor", false, &hp->rope_attn_factor, err)) !=
            PS_OK ||
        (status = hparam_f32(gguf, arch, "rope.scaling.yarn_attn_factor", false, &hp->rope_attn_factor,
                             err)) != PS_OK ||
        (status = hparam_f32(gguf, arch, "rope.scaling.yarn_ext_factor", false, &ext_factor, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "rope.scaling.original_context_length", false, &hp->rope_ctx_orig,
                             err)) != PS_OK)
        return status;
    if (hp->n_rot % 2 != 0 || hp->n_rot > hp->head_dim_k)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s.rope.dimension_count: %u is odd or larger than a head of %u", arch, hp->n_rot,
                            hp->head_dim_k);
    char key[128];
    struct gguf_string type = {.data = "linear", .length = 6};
    key_name(key, sizeof(key), arch, "rope.scaling.type");
    gguf_get_string(gguf, key, &type);
    bool yarn = string_is(type, "yarn");
    if (!yarn && !string_is(type, "linear") && !string_is(type, "none"))
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s: '%.*s' is not one of none, linear, yarn", key,
                            (int)(type.length < 60 ? type.length : 60), type.data);
    hp->rope_freq_scale = factor == 0.0f || string_is(type, "none") ? 1.0f : 1.0f / factor;
    hp->rope_ext_factor = ext_factor < 0.0f ? (yarn ? 1.0f : 0.0f) : ext_factor;
    return PS_OK;
}

static enum ps_status read_experts(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                   struct ps_error *err)
{
    enum ps_status status;
    hp->n_expert = hp->n_expert_used = hp->n_ff = 0;
    hp->expert_weights_scale = 0.0f;
    if ((status = hparam_u32(gguf, arch, "feed_forward_length", false, &hp->n_ff, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "expert_count", false, &hp->n_expert, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "expert_used_count", false, &hp->n_expert_used, err)) != PS_OK ||
        (status = hparam_f32(gguf, arch, "expert_weights_scale", false, &hp->expert_weights_scale, err)) !=
            PS_OK)
        return status;
    uint32_t gating = GATING_SOFTMAX;
    if ((status = hparam_u32(gguf, arch, "expert_gating_func", false, &gating, err)) != PS_OK)
        return status;
    if (gating != GATING_SOFTMAX)
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s.expert_gating_func: %u is not softmax (%d)", arch,
                            gating, GATING_SOFTMAX);
    if (hp->n_expert > MAX_EXPERTS)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.expert_count: %u is more than %d", arch, hp->n_expert,
                            MAX_EXPERTS);
    if (hp->n_expert > 0 && (hp->n_expert_used == 0 || hp->n_expert_used > hp->n_expert))
        return ps_error_set(err, PS_ERR_FORMAT, "%s.expert_used_count: %u is not within 1..%u experts", arch,
                            hp->n_expert_used, hp->n_expert);
    hp->n_ff_expert = hp->n_expert > 0 ? hp->n_ff : 0;
    hp->n_ff_shared = 0;
    if ((status = hparam_u32(gguf, arch, "expert_feed_forward_length", false, &hp->n_ff_expert, err)) !=
        PS_OK)
        return status;
    return hparam_u32(gguf, arch, "expert_shared_feed_forward_length", false, &hp->n_ff_shared, err);
}

enum ps_status hparams_read(struct hparams *hp, const struct gguf *gguf, const char *arch,
                            const char *const *known, struct ps_error *err)
{
    *hp = (struct hparams){0};
    enum ps_status status;
    if ((status = check_keys(gguf, arch, known, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "block_count", true, &hp->n_layers, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "embedding_length", true, &hp->n_embd, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "context_length", true, &hp->n_ctx_train, err)) != PS_OK)
        return status;
    if (hp->n_layers == 0 || hp->n_layers > MAX_LAYERS)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.block_count: %u is not within 1..%d", arch, hp->n_layers,
                            MAX_LAYERS);
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
    if ((status = read_attention(hp, gguf, arch, err)) != PS_OK ||
        (status = read_rope(hp, gguf, arch, err)) != PS_OK)
        return status;
    return read_experts(hp, gguf, arch, err);
}
