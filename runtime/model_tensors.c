/* Matches the file's tensors with the architecture's rules: shapes, formats, presence, and nothing left over. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/model.h"

static uint64_t dimension_size(const struct hparams *hp, enum dimension dimension)
{
    switch (dimension) {
    case DIM_ONE:
        return 1;
    case DIM_EMBD:
        return hp->n_embd;
    case DIM_VOCAB:
        return hp->n_vocab;
    case DIM_HEAD_K:
        return hp->head_dim_k;
    case DIM_Q:
        return (uint64_t)hp->n_head * hp->head_dim_k;
    case DIM_K:
        return (uint64_t)hp->n_kv_head * hp->head_dim_k;
    case DIM_V:
        return (uint64_t)hp->n_kv_head * hp->head_dim_v;
    case DIM_ATTN_OUT:
        return (uint64_t)hp->n_head * hp->head_dim_v;
    case DIM_FF:
        return hp->n_ff;
    case DIM_SHARED_FF:
        return hp->n_ff_shared;
    case DIM_EXPERTS:
        return hp->n_expert;
    case DIM_HALF_ROT:
        return hp->n_rot / 2;
    }
    return 0;
}

static const char *type_name(uint32_t type)
{
    const struct gguf_type_info *info = gguf_type_find(type);
    return info ? info->name : "unknown";
}

static enum ps_status find_format(const char *name, uint32_t type, const struct block_format **format,
                                  struct ps_error *err)
{
    *format = block_format_find(type);
    if (*format)
        return PS_OK;
    return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s: block format %s is not supported", name,
                        type_name(type));
}

static enum ps_status make_weight(const struct ps_model *model, const struct gguf_tensor *tensor,
                                  const struct tensor_rule *rule, struct weight *w, struct ps_error *err)
{
    uint64_t rows = dimension_size(&model->hp, rule->rows);
    uint64_t cols = dimension_size(&model->hp, rule->cols);
    if (tensor->dims[0] != cols || tensor->dims[1] != rows || tensor->dims[2] != 1 || tensor->dims[3] != 1)
        return ps_error_set(
            err, PS_ERR_FORMAT, "%s: shape is %llu x %llu x %llu x %llu, the metadata says %llu x %llu",
            tensor->name, (unsigned long long)tensor->dims[0], (unsigned long long)tensor->dims[1],
            (unsigned long long)tensor->dims[2], (unsigned long long)tensor->dims[3],
            (unsigned long long)cols, (unsigned long long)rows);
    const struct block_format *format;
    enum ps_status status = find_format(tensor->name, tensor->type, &format, err);
    if (status != PS_OK)
        return status;
    if (rule->rows == DIM_ONE && tensor->type != BLOCK_F32)
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s: a vector in %s is not supported, only f32",
                            tensor->name, format->name);
    *w = (struct weight){
        .format = format, .n_rows = rows, .n_cols = cols, .row_bytes = block_row_bytes(format, cols)};
    return PS_OK;
}

struct binding {
    struct ps_model *model;
    bool *claimed; /* per tensor of the directory */
};

static bool needed(enum tensor_need need, bool moe)
{
    return need == NEED_ALWAYS || (need == NEED_IN_MOE && moe) || (need == NEED_IN_DENSE && !moe);
}

static enum ps_status bind_group(struct binding *binding, const struct tensor_rule *rules, uint32_t n_rules,
                                 const char *prefix, bool moe, struct weight *weights,
                                 struct tensor_group *group, struct ps_error *err)
{
    struct ps_model *model = binding->model;
    uint32_t indices[sizeof(group->id) / sizeof(group->id[0])];
    enum ps_status status;
    for (uint32_t i = 0; i < n_rules; i++) {
        char name[96];
        snprintf(name, sizeof(name), "%s%s", prefix, rules[i].name);
        const struct gguf_tensor *tensor = gguf_tensor_find(model->gguf, name);
        if (!tensor) {
            if (needed(rules[i].need, moe))
                return ps_error_set(err, PS_ERR_FORMAT, "%s: tensor is missing", name);
            continue;
        }
        struct weight *w = &weights[rules[i].id];
        if ((status = make_weight(model, tensor, &rules[i], w, err)) != PS_OK)
            return status;
        model->act_mask |= 1u << w->format->act;
        uint32_t index = (uint32_t)(tensor - gguf_tensor_at(model->gguf, 0));
        binding->claimed[index] = true;
        group->id[group->n] = rules[i].id;
        indices[group->n++] = index;
    }
    return tensor_layout_init(&group->layout, model->gguf, indices, group->n, err);
}

struct weight model_expert_weight(const struct ps_model *model, uint32_t layer, enum shard_part part)
{
    const struct shard_slice *slice = &shard_map_layer(model->shards, layer)->slice[part];
    const struct block_format *format = block_format_find(slice->type);
    return (struct weight){.format = format,
                           .n_rows = slice->rows,
                           .n_cols = slice->cols,
                           .row_bytes = block_row_bytes(format, slice->cols)};
}

static enum ps_status check_slice(struct ps_model *model, uint32_t layer, enum shard_part part,
                                  const char *name, uint64_t rows, uint64_t cols, struct ps_error *err)
{
    const struct shard_slice *slice = &shard_map_layer(model->shards, layer)->slice[part];
    char full[64];
    snprintf(full, sizeof(full), "blk.%u.%s", layer, name);
    if (!slice->present)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: tensor is missing", full);
    if (slice->rows != rows || slice->cols != cols)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s: one expert is %llu x %llu, the metadata says %llu x %llu", full,
                            (unsigned long long)slice->cols, (unsigned long long)slice->rows,
                            (unsigned long long)cols, (unsigned long long)rows);
    const struct block_format *format;
    enum ps_status status = find_format(full, slice->type, &format, err);
    if (status == PS_OK)
        model->act_mask |= 1u << format->act;
    return status;
}

static enum ps_status check_experts(struct ps_model *model, uint32_t il, struct ps_error *err)
{
    const struct shard_layer *shards = shard_map_layer(model->shards, il);
    const struct hparams *hp = &model->hp;
    if (shards->n_experts != hp->n_expert)
        return ps_error_set(err, PS_ERR_FORMAT, "blk.%u: %u experts in the tensors, %u in the metadata", il,
                            shards->n_experts, hp->n_expert);
    for (uint32_t part = SHARD_GATE_BIAS; part < SHARD_N_PARTS; part++) {
        if (shards->slice[part].present)
            return ps_error_set(err, PS_ERR_UNSUPPORTED,
                                "blk.%u: expert biases and scales are not handled for '%s'", il,
                                model->arch->name);
    }
    enum ps_status status;
    if (shards->slice[SHARD_GATE_UP].present)
        status = check_slice(model, il, SHARD_GATE_UP, "ffn_gate_up_exps.weight", 2ull * hp->n_ff_expert,
                             hp->n_embd, err);
    else if ((status = check_slice(model, il, SHARD_GATE, "ffn_gate_exps.weight", hp->n_ff_expert, hp->n_embd,
                                   err)) == PS_OK)
        status = check_slice(model, il, SHARD_UP, "ffn_up_exps.weight", hp->n_ff_expert, hp->n_embd, err);
    if (status != PS_OK)
        return status;
    return check_slice(model, il, SHARD_DOWN, "ffn_down_exps.weight", hp->n_embd, hp->n_ff_expert, err);
}

/* Widths that older files leave out of the metadata stand in the tensors' shapes. */
static void infer_widths(struct ps_model *model)
{
    struct hparams *hp = &model->hp;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        const struct shard_layer *shards = shard_map_layer(model->shards, il);
        char key[64];
        snprintf(key, sizeof(key), "%s.expert_feed_forward_length", model->arch->name);
        if (shards->n_experts > 0 && !gguf_find(model->gguf, key)) {
            const struct shard_slice *down = &shards->slice[SHARD_DOWN];
            hp->n_ff_expert =
                down->present && down->cols <= UINT32_MAX ? (uint32_t)down->cols : hp->n_ff_expert;
        }
        snprintf(key, sizeof(key), "blk.%u.ffn_up_shexp.weight", il);
        const struct gguf_tensor *shared = gguf_tensor_find(model->gguf, key);
        if (hp->n_ff_shared == 0 && shared && shared->dims[1] <= UINT32_MAX)
            hp->n_ff_shared = (uint32_t)shared->dims[1];
    }
}

static enum ps_status check_all_claimed(const struct binding *binding, struct ps_error *err)
{
    const struct ps_model *model = binding->model;
    for (uint32_t i = 0; i < gguf_n_tensors(model->gguf); i++) {
        if (!binding->claimed[i] && !shard_map_owns_tensor(model->shards, i))
            return ps_error_set(err, PS_ERR_UNSUPPORTED,
                                "%s: tensor is not handled for '%s', and may change the result",
                                gguf_tensor_at(model->gguf, i)->name, model->arch->name);
    }
    return PS_OK;
}

enum ps_status model_bind_tensors(struct ps_model *model, struct ps_error *err)
{
    struct binding binding = {.model = model};
    enum ps_status status = PS_ERR_NOMEM;
    infer_widths(model);
    binding.claimed = calloc(gguf_n_tensors(model->gguf) + 1u, sizeof(*binding.claimed));
    model->layers = calloc(model->hp.n_layers, sizeof(*model->layers));
    if (!binding.claimed || !model->layers) {
        ps_error_set(err, PS_ERR_NOMEM, "tensor tables: out of memory");
        goto done;
    }
    status = bind_group(&binding, GLOBAL_RULES, N_GLOBAL_RULES, "", false, model->global,
                        &model->global_group, err);
    for (uint32_t il = 0; status == PS_OK && il < model->hp.n_layers; il++) {
        struct layer *layer = &model->layers[il];
        char prefix[24];
        snprintf(prefix, sizeof(prefix), "blk.%u.", il);
        layer->moe = shard_map_layer(model->shards, il)->n_experts > 0;
        model->n_moe_layers += layer->moe;
        status = bind_group(&binding, model->arch->layer_rules, model->arch->n_layer_rules, prefix,
                            layer->moe, layer->w, &layer->group, err);
        if (status == PS_OK && layer->moe)
            status = check_experts(model, il, err);
    }
    if (status == PS_OK)
        status = check_all_claimed(&binding, err);
    if (status == PS_OK && !model->global[GT_OUTPUT].format)
        model->global[GT_OUTPUT] = model->global[GT_TOKEN_EMBD];
done:
    free(binding.claimed);
    return status;
}

void model_unbind_tensors(struct ps_model *model)
{
    tensor_layout_deinit(&model->global_group.layout);
    for (uint32_t il = 0; model->layers && il < model->hp.n_layers; il++)
        tensor_layout_deinit(&model->layers[il].group.layout);
    free(model->layers);
    model->layers = NULL;
}
