#include "runtime/synth_arch.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* ---- architectures ---- */

enum trait {
    QKV_BIAS = 1 << 0,
    HEAD_NORM = 1 << 1,    /* q/k norm per head */
    ROW_NORM = 1 << 2,     /* q/k norm over the whole row */
    SHARED = 1 << 3,       /* a shared expert behind a sigmoid gate */
    RENORM = 1 << 4,       /* weights of the chosen experts sum to 1 */
    EXPERT_WIDTH = 1 << 5, /* experts have a width of their own; else it is feed_forward_length */
    DENSE_FORM = 1 << 6,   /* works without experts */
    SQUARE_Q = 1 << 7,     /* heads x head_dim must be n_embd */
    ROPE_DIM = 1 << 8,     /* writes rope.dimension_count */
    ROUTED = 1 << 9,       /* of the shape: has experts */
    DENSE = 1 << 10,       /* of the shape: has none */
};

struct arch_row {
    const char *name;
    const char *preset; /* the shape that stands for it */
    unsigned traits;
};

static const struct arch_row arches[] = {
    {"qwen3moe", "qwen3-30b-a3b", HEAD_NORM | RENORM | EXPERT_WIDTH},
    {"llama", "mixtral-8x7b", RENORM | DENSE_FORM | ROPE_DIM},
    {"olmoe", "olmoe-1b-7b", ROW_NORM | SQUARE_Q},
    {"qwen2moe", "qwen1.5-moe-a2.7b", QKV_BIAS | SHARED | EXPERT_WIDTH | SQUARE_Q},
};

enum { N_ARCHES = sizeof(arches) / sizeof(arches[0]) };

static const struct arch_row *find_arch(const char *name)
{
    for (size_t i = 0; name && i < N_ARCHES; i++) {
        if (strcmp(arches[i].name, name) == 0)
            return &arches[i];
    }
    return NULL;
}

static unsigned shape_traits(const struct synth_shape *shape)
{
    return find_arch(shape->arch)->traits | (shape->n_experts ? ROUTED : DENSE);
}

bool synth_arch_renormalizes(const struct synth_shape *shape)
{
    return shape_traits(shape) & RENORM;
}

const char *synth_arch_at(uint32_t index)
{
    return index < N_ARCHES ? arches[index].name : NULL;
}

/* ---- public shapes, from the models' config.json ---- */

struct preset {
    const char *name;
    struct synth_shape shape;
};

static const struct preset presets[] = {
    {"qwen3-30b-a3b",
     {.arch = "qwen3moe",
      .n_layers = 48,
      .n_embd = 2048,
      .n_vocab = 151936,
      .n_ctx = 40960,
      .n_heads = 32,
      .n_kv_heads = 4,
      .head_dim = 128,
      .n_ff = 6144,
      .n_experts = 128,
      .n_top_k = 8,
      .n_ff_expert = 768,
      .rope_base = 1e6f,
      .norm_eps = 1e-6f}},
    {"qwen3-235b-a22b",
     {.arch = "qwen3moe",
      .n_layers = 94,
      .n_embd = 4096,
      .n_vocab = 151936,
      .n_ctx = 40960,
      .n_heads = 64,
      .n_kv_heads = 4,
      .head_dim = 128,
      .n_ff = 12288,
      .n_experts = 128,
      .n_top_k = 8,
      .n_ff_expert = 1536,
      .rope_base = 1e6f,
      .norm_eps = 1e-6f}},
    {"mixtral-8x7b",
     {.arch = "llama",
      .n_layers = 32,
      .n_embd = 4096,
      .n_vocab = 32000,
      .n_ctx = 32768,
      .n_heads = 32,
      .n_kv_heads = 8,
      .n_experts = 8,
      .n_top_k = 2,
      .n_ff_expert = 14336,
      .rope_base = 1e6f,
      .norm_eps = 1e-5f}},
    {"mixtral-8x22b",
     {.arch = "llama",
      .n_layers = 56,
      .n_embd = 6144,
      .n_vocab = 32000,
      .n_ctx = 65536,
      .n_heads = 48,
      .n_kv_heads = 8,
      .n_experts = 8,
      .n_top_k = 2,
      .n_ff_expert = 16384,
      .rope_base = 1e6f,
      .norm_eps = 1e-5f}},
    {"olmoe-1b-7b",
     {.arch = "olmoe",
      .n_layers = 16,
      .n_embd = 2048,
      .n_vocab = 50304,
      .n_ctx = 4096,
      .n_heads = 16,
      .n_kv_heads = 16,
      .n_experts = 64,
      .n_top_k = 8,
      .n_ff_expert = 1024,
      .rope_base = 1e4f,
      .norm_eps = 1e-5f}},
    {"qwen1.5-moe-a2.7b",
     {.arch = "qwen2moe",
      .n_layers = 24,
      .n_embd = 2048,
      .n_vocab = 151936,
      .n_ctx = 8192,
      .n_heads = 16,
      .n_kv_heads = 16,
      .n_ff = 5632,
      .n_experts = 60,
      .n_top_k = 4,
      .n_ff_expert = 1408,
      .n_ff_shared = 5632,
      .rope_base = 1e6f,
      .norm_eps = 1e-6f}},
    {"qwen2-57b-a14b",
     {.arch = "qwen2moe",
      .n_layers = 28,
      .n_embd = 3584,
      .n_vocab = 151936,
      .n_ctx = 32768,
      .n_heads = 28,
      .n_kv_heads = 4,
      .n_ff = 18944,
      .n_experts = 64,
      .n_top_k = 8,
      .n_ff_expert = 2560,
      .n_ff_shared = 20480,
      .rope_base = 1e6f,
      .norm_eps = 1e-6f}},
    {"llama-3.1-8b",
     {.arch = "llama",
      .n_layers = 32,
      .n_embd = 4096,
      .n_vocab = 128256,
      .n_ctx = 131072,
      .n_heads = 32,
      .n_kv_heads = 8,
      .n_ff = 14336,
      .rope_base = 5e5f,
      .norm_eps = 1e-5f}},
    {"tiny", /* a few megabytes, for trying things out */
     {.arch = "qwen3moe",
      .n_layers = 4,
      .n_embd = 256,
      .n_vocab = 512,
      .n_ctx = 4096,
      .n_heads = 4,
      .n_kv_heads = 2,
      .head_dim = 64,
      .n_ff = 1024,
      .n_experts = 32,
      .n_top_k = 4,
      .n_ff_expert = 256,
      .rope_base = 1e6f,
      .norm_eps = 1e-6f}},
};

enum { N_PRESETS = sizeof(presets) / sizeof(presets[0]) };

const char *synth_preset_at(uint32_t index)
{
    return index < N_PRESETS ? presets[index].name : NULL;
}

bool synth_preset_shape(const char *preset, struct synth_shape *shape)
{
    for (size_t i = 0; i < N_PRESETS; i++) {
        if (strcmp(presets[i].name, preset) == 0) {
            *shape = presets[i].shape;
            return true;
        }
    }
    return false;
}

bool synth_arch_shape(const char *arch, struct synth_shape *shape)
{
    const struct arch_row *row = find_arch(arch);
    return row && synth_preset_shape(row->preset, shape);
}

/* ---- checks ---- */

struct limit {
    const char *name; /* as the command line calls it */
    size_t offset;
    uint32_t min, max;
    unsigned needs; /* traits; the field must be 0 without them */
};

#define FIELD(field) offsetof(struct synth_shape, field)

/* 512 layers and experts are what llama.cpp takes (LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS). */
static const struct limit limits[] = {
    {"layers", FIELD(n_layers), 1, 512, 0},
    {"embd", FIELD(n_embd), 32, 1 << 16, 0},
    {"vocab", FIELD(n_vocab), 2, 1 << 24, 0},
    {"ctx", FIELD(n_ctx), 1, 1 << 30, 0},
    {"heads", FIELD(n_heads), 1, 1024, 0},
    {"kv-heads", FIELD(n_kv_heads), 1, 1024, 0},
    {"head-dim", FIELD(head_dim), 2, 1024, 0},
    {"ff", FIELD(n_ff), 32, 1 << 20, 0},
    {"experts", FIELD(n_experts), 2, 512, ROUTED},
    {"top-k", FIELD(n_top_k), 1, 512, ROUTED},
    {"expert-ff", FIELD(n_ff_expert), 32, 1 << 20, ROUTED},
    {"shared-ff", FIELD(n_ff_shared), 32, 1 << 20, SHARED},
};

static uint32_t field_u32(const struct synth_shape *shape, size_t offset)
{
    uint32_t value;
    memcpy(&value, (const char *)shape + offset, sizeof(value));
    return value;
}

static void derive(struct synth_shape *shape, unsigned traits)
{
    if (shape->head_dim == 0 && shape->n_heads != 0)
        shape->head_dim = shape->n_embd / shape->n_heads;
    if (traits & DENSE) {
        if (shape->n_ff == 0)
            shape->n_ff = shape->n_ff_expert;
        shape->n_top_k = shape->n_ff_expert = 0;
        return;
    }
    if (shape->n_top_k == 0)
        shape->n_top_k = 2;
    if (shape->n_ff_expert == 0 && !(traits & EXPERT_WIDTH))
        shape->n_ff_expert = shape->n_ff;
    if (shape->n_ff == 0)
        shape->n_ff = shape->n_ff_expert;
}

static enum ps_status check_limits(const struct synth_shape *shape, unsigned traits, struct ps_error *err)
{
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        const struct limit *limit = &limits[i];
        uint32_t value = field_u32(shape, limit->offset);
        bool present = (traits & limit->needs) == limit->needs;
        if (!present && value != 0)
            return ps_error_set(err, PS_ERR_ARGUMENT, "%s: %u, but this %s model has none", limit->name,
                                value, shape->arch);
        if (present && (value < limit->min || value > limit->max))
            return ps_error_set(err, PS_ERR_ARGUMENT, "%s: %u is out of range: use %u to %u", limit->name,
                                value, limit->min, limit->max);
    }
    return PS_OK;
}

enum ps_status synth_shape_resolve(struct synth_shape *shape, struct ps_error *err)
{
    if (!find_arch(shape->arch))
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "architecture '%s' is not one that can be synthesized",
                            shape->arch ? shape->arch : "");
    unsigned traits = shape_traits(shape);
    if ((traits & DENSE) && !(traits & DENSE_FORM))
        return ps_error_set(err, PS_ERR_ARGUMENT, "experts: 0, but %s has no dense form: use llama",
                            shape->arch);
    derive(shape, traits);
    enum ps_status status = check_limits(shape, traits, err);
    if (status != PS_OK)
        return status;
    if (shape->n_heads % shape->n_kv_heads != 0)
        return ps_error_set(err, PS_ERR_ARGUMENT, "kv-heads: %u does not divide %u heads", shape->n_kv_heads,
                            shape->n_heads);
    if (shape->head_dim % 2 != 0)
        return ps_error_set(err, PS_ERR_ARGUMENT, "head-dim: %u is odd, which rotary embedding cannot be",
                            shape->head_dim);
    if ((traits & SQUARE_Q) && (uint64_t)shape->n_heads * shape->head_dim != shape->n_embd)
        return ps_error_set(err, PS_ERR_ARGUMENT,
                            "heads: %u of %u are not the %u that embd is, as %s requires", shape->n_heads,
                            shape->head_dim, shape->n_embd, shape->arch);
    if (shape->n_top_k > shape->n_experts)
        return ps_error_set(err, PS_ERR_ARGUMENT, "top-k: %u is more than %u experts", shape->n_top_k,
                            shape->n_experts);
    if ((traits & ROUTED) && !(traits & EXPERT_WIDTH) && shape->n_ff != shape->n_ff_expert)
        return ps_error_set(err, PS_ERR_ARGUMENT, "ff: %u is not expert-ff %u, and %s has one width for both",
                            shape->n_ff, shape->n_ff_expert, shape->arch);
    if (!(shape->rope_base >= 1.0f && shape->rope_base <= 1e12f))
        return ps_error_set(err, PS_ERR_ARGUMENT, "rope-base: %g is out of range: use 1 to 1e12",
                            (double)shape->rope_base);
    return PS_OK;
}

/* ---- tensors ---- */

enum dim { NONE, EMBD, VOCAB, Q_ROW, KV_ROW, HEAD, EXPERTS, FF, FF_EXPERT, FF_SHARED };

static uint64_t dim_size(const struct synth_shape *shape, enum dim dim)
{
    switch (dim) {
    case NONE:
        return 1;
    case EMBD:
        return shape->n_embd;
    case VOCAB:
        return shape->n_vocab;
    case Q_ROW:
        return (uint64_t)shape->n_heads * shape->head_dim;
    case KV_ROW:
        return (uint64_t)shape->n_kv_heads * shape->head_dim;
    case HEAD:
        return shape->head_dim;
    case EXPERTS:
        return shape->n_experts;
    case FF:
        return shape->n_ff;
    case FF_EXPERT:
        return shape->n_ff_expert;
    case FF_SHARED:
        return shape->n_ff_shared;
    }
    return 1;
}

struct tensor_row {
    const char *name; /* of a layer's tensor: after "blk.N." */
    enum dim dims[3];
    enum synth_role role;
    unsigned needs; /* traits */
};

static const struct tensor_row model_rows[] = {
    {"token_embd.weight", {EMBD, VOCAB}, SYNTH_EMBED, 0},
    {"output_norm.weight", {EMBD}, SYNTH_NORM, 0},
    {"output.weight", {EMBD, VOCAB}, SYNTH_OUTPUT, 0},
};

static const struct tensor_row layer_rows[] = {
    {"attn_norm.weight", {EMBD}, SYNTH_NORM, 0},
    {"attn_q.weight", {EMBD, Q_ROW}, SYNTH_INPUT, 0},
    {"attn_k.weight", {EMBD, KV_ROW}, SYNTH_K, 0},
    {"attn_v.weight", {EMBD, KV_ROW}, SYNTH_V, 0},
    {"attn_q.bias", {Q_ROW}, SYNTH_BIAS, QKV_BIAS},
    {"attn_k.bias", {KV_ROW}, SYNTH_BIAS, QKV_BIAS},
    {"attn_v.bias", {KV_ROW}, SYNTH_BIAS, QKV_BIAS},
    {"attn_output.weight", {Q_ROW, EMBD}, SYNTH_ATTN_OUT, 0},
    {"attn_q_norm.weight", {HEAD}, SYNTH_NORM, HEAD_NORM},
    {"attn_k_norm.weight", {HEAD}, SYNTH_NORM, HEAD_NORM},
    {"attn_q_norm.weight", {Q_ROW}, SYNTH_NORM, ROW_NORM},
    {"attn_k_norm.weight", {KV_ROW}, SYNTH_NORM, ROW_NORM},
    {"ffn_norm.weight", {EMBD}, SYNTH_NORM, 0},
    {"ffn_gate_inp.weight", {EMBD, EXPERTS}, SYNTH_ROUTER, ROUTED},
    {"ffn_gate_exps.weight", {EMBD, FF_EXPERT, EXPERTS}, SYNTH_INPUT, ROUTED},
    {"ffn_up_exps.weight", {EMBD, FF_EXPERT, EXPERTS}, SYNTH_INPUT, ROUTED},
    {"ffn_down_exps.weight", {FF_EXPERT, EMBD, EXPERTS}, SYNTH_EXPERT_DOWN, ROUTED},
    {"ffn_gate_inp_shexp.weight", {EMBD}, SYNTH_SHARED_ROUTER, SHARED},
    {"ffn_gate_shexp.weight", {EMBD, FF_SHARED}, SYNTH_INPUT, SHARED},
    {"ffn_up_shexp.weight", {EMBD, FF_SHARED}, SYNTH_INPUT, SHARED},
    {"ffn_down_shexp.weight", {FF_SHARED, EMBD}, SYNTH_SHARED_DOWN, SHARED},
    {"ffn_gate.weight", {EMBD, FF}, SYNTH_INPUT, DENSE},
    {"ffn_up.weight", {EMBD, FF}, SYNTH_INPUT, DENSE},
    {"ffn_down.weight", {FF, EMBD}, SYNTH_DENSE_DOWN, DENSE},
};

static void set_dims(struct synth_tensor *tensor, const struct tensor_row *row,
                     const struct synth_shape *shape)
{
    tensor->role = row->role;
    tensor->n_dims = row->dims[2] ? 3 : row->dims[1] ? 2 : 1;
    for (unsigned i = 0; i < 3; i++)
        tensor->dims[i] = dim_size(shape, row->dims[i]);
    tensor->dims[3] = 1;
}

uint32_t synth_list_tensors(const struct synth_shape *shape, struct synth_tensor *out)
{
    unsigned traits = shape_traits(shape);
    uint32_t n = 0;
    for (size_t i = 0; i < sizeof(model_rows) / sizeof(model_rows[0]); i++, n++) {
        if (!out)
            continue;
        out[n] = (struct synth_tensor){0};
        snprintf(out[n].name, sizeof(out[n].name), "%s", model_rows[i].name);
        set_dims(&out[n], &model_rows[i], shape);
    }
    for (uint32_t layer = 0; layer < shape->n_layers; layer++) {
        for (size_t i = 0; i < sizeof(layer_rows) / sizeof(layer_rows[0]); i++) {
            if ((traits & layer_rows[i].needs) != layer_rows[i].needs)
                continue;
            if (out) {
                out[n] = (struct synth_tensor){.layer = layer};
                snprintf(out[n].name, sizeof(out[n].name), "blk.%u.%s", layer, layer_rows[i].name);
                set_dims(&out[n], &layer_rows[i], shape);
            }
            n++;
        }
    }
    return n;
}

/* ---- metadata ---- */

struct key_row {
    const char *suffix;
    size_t offset;
    bool is_float;
    unsigned needs; /* traits */
};

static const struct key_row keys[] = {
    {"context_length", FIELD(n_ctx), false, 0},
    {"embedding_length", FIELD(n_embd), false, 0},
    {"block_count", FIELD(n_layers), false, 0},
    {"vocab_size", FIELD(n_vocab), false, 0},
    {"feed_forward_length", FIELD(n_ff), false, 0},
    {"attention.head_count", FIELD(n_heads), false, 0},
    {"attention.head_count_kv", FIELD(n_kv_heads), false, 0},
    {"attention.key_length", FIELD(head_dim), false, 0},
    {"attention.value_length", FIELD(head_dim), false, 0},
    {"attention.layer_norm_rms_epsilon", FIELD(norm_eps), true, 0},
    {"rope.freq_base", FIELD(rope_base), true, 0},
    {"rope.dimension_count", FIELD(head_dim), false, ROPE_DIM},
    {"expert_count", FIELD(n_experts), false, ROUTED},
    {"expert_used_count", FIELD(n_top_k), false, ROUTED},
    {"expert_feed_forward_length", FIELD(n_ff_expert), false, ROUTED | EXPERT_WIDTH},
    {"expert_shared_feed_forward_length", FIELD(n_ff_shared), false, SHARED},
};

_Static_assert(sizeof(keys) / sizeof(keys[0]) <= SYNTH_MAX_KEYS, "room for every key");

uint32_t synth_list_keys(const struct synth_shape *shape, struct synth_key out[SYNTH_MAX_KEYS])
{
    unsigned traits = shape_traits(shape);
    uint32_t n = 0;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        if ((traits & keys[i].needs) != keys[i].needs)
            continue;
        out[n] = (struct synth_key){.suffix = keys[i].suffix, .is_float = keys[i].is_float};
        const char *field = (const char *)shape + keys[i].offset;
        memcpy(keys[i].is_float ? (void *)&out[n].f : (void *)&out[n].u, field, 4);
        n++;
    }
    return n;
}
