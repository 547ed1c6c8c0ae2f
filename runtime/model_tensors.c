/* Matches the file's tensors with the architecture's rules: shapes, formats, presence, and nothing left over. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/model.h"

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

enum {
    MIN_MATRIX_COLS = 32
}; /* rows that no block format is made for: small tensors, which are used as they are */

/* Integers are no weights: nothing multiplies them. */
static const struct block_format IDS = {.type = 26, .name = "I32", .values = 1, .bytes = 4, .act = ACT_F32};

static enum ps_status make_weight(const struct ps_model *model, const struct gguf_tensor *tensor,
                                  const struct tensor_rule *rule, const struct layer_hparams *l,
                                  struct weight *w, struct ps_error *err)
{
    uint64_t rows = rule->rows(&model->hp, l);
    uint64_t cols = rule->cols(&model->hp, l);
    uint64_t slices = rule->slices ? rule->slices(&model->hp, l) : 1;
    if (tensor->dims[0] != cols || tensor->dims[1] * tensor->dims[2] != rows * slices ||
        (rule->slices && tensor->dims[1] != rows) || tensor->dims[3] != 1)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s: shape is %llu x %llu x %llu x %llu, the metadata says %llu x %llu x %llu",
                            tensor->name, (unsigned long long)tensor->dims[0],
                            (unsigned long long)tensor->dims[1], (unsigned long long)tensor->dims[2],
                            (unsigned long long)tensor->dims[3], (unsigned long long)cols,
                            (unsigned long long)rows, (unsigned long long)slices);
    const struct block_format *format = &IDS;
    bool ids = rule->need & HOLDS_IDS;
    if (ids != (tensor->type == IDS.type))
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s: %s is not supported here", tensor->name,
                            type_name(tensor->type));
    enum ps_status status = ids ? PS_OK : find_format(tensor->name, tensor->type, &format, err);
    if (status != PS_OK)
        return status;
    bool small = rule->rows == dim_one || cols < MIN_MATRIX_COLS || (rule->need & NEED_F32);
    if (!ids && small && !(rule->need & IS_MATRIX) && tensor->type != BLOCK_F32)
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s: a vector in %s is not supported, only f32",
                            tensor->name, format->name);
    *w = (struct weight){.format = format,
                         .n_rows = rows * slices,
                         .n_cols = cols,
                         .row_bytes = block_row_bytes(format, cols)};
    return PS_OK;
}

struct binding {
    struct ps_model *model;
    bool *claimed; /* per tensor of the directory */
};

/* Tensors of one layer, or the globals. */
struct group_place {
    const char *prefix;
    const struct layer_hparams *l; /* of the globals: of layer 0 */
    unsigned is;                   /* NEED_IN_* that hold for the layer */
    struct weight *weights;
    struct tensor_group *group;
};

static unsigned layer_kinds(const struct layer_hparams *l, bool moe)
{
    bool attends = !l->recurrent && l->n_kv_head > 0;
    return (moe ? NEED_IN_MOE : 0u) | (!moe && l->n_ff > 0 ? NEED_IN_DENSE : 0u) |
           (l->recurrent ? NEED_IN_RECURRENT : 0u) | (attends ? NEED_IN_ATTENTION : 0u) |
           (attends && l->window > 0 ? NEED_IN_WINDOWED : 0u) |
           (attends && l->window == 0 ? NEED_IN_FULL : 0u) |
           (attends && l->compressed ? NEED_IN_COMPRESSED : 0u) |
           (attends && l->index_dim > 0 ? NEED_IN_INDEXED : 0u) | (l->ngrams ? NEED_IN_NGRAMS : 0u) |
           (l->experts_by_token ? NEED_IN_BY_TOKEN : NEED_IN_ROUTED);
}

/* Whether the layer is of a kind that the rule names. */
static bool applies(unsigned need, unsigned is)
{
    static const unsigned lines[] = {NEED_IN_MOE | NEED_IN_DENSE,
                                     NEED_IN_ATTENTION | NEED_IN_RECURRENT,
                                     NEED_IN_WINDOWED | NEED_IN_FULL,
                                     NEED_IN_COMPRESSED,
                                     NEED_IN_INDEXED,
                                     NEED_IN_NGRAMS,
                                     NEED_IN_BY_TOKEN | NEED_IN_ROUTED};
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        if ((need & lines[i]) && !(need & is & lines[i]))
            return false;
    }
    return true;
}

static enum ps_status bind_rule(struct binding *binding, struct group_place *place,
                                const struct tensor_rule *rule, struct ps_error *err)
{
    struct ps_model *model = binding->model;
    struct tensor_group *group = place->group;
    if (!applies(rule->need, place->is))
        return PS_OK;
    char name[96];
    snprintf(name, sizeof(name), "%s%s", place->prefix, rule->name);
    const struct gguf_tensor *tensor = gguf_tensor_find(model->gguf, name);
    if (!tensor) {
        if (!(rule->need & (NEED_OPTIONAL | NEED_UNUSED)))
            return ps_error_set(err, PS_ERR_FORMAT, "%s: tensor is missing", name);
        return PS_OK;
    }
    uint32_t index = (uint32_t)(tensor - gguf_tensor_at(model->gguf, 0));
    binding->claimed[index] = true;
    if (rule->need & NEED_UNUSED)
        return PS_OK;
    struct weight *w = &place->weights[rule->id];
    enum ps_status status = make_weight(model, tensor, rule, place->l, w, err);
    if (status != PS_OK)
        return status;
    model->act_mask |= 1u << w->format->act;
    if (rule->need & STAYS_IN_FILE) {
        model->stored =
            (struct stored_rows){.tensor = index, .file = tensor->file, .offset = tensor->offset, .rows = *w};
        return PS_OK;
    }
    group->id[group->n] = rule->id;
    group->tensor[group->n++] = index;
    return PS_OK;
}

static bool has_rule(const struct tensor_rule *rules, uint32_t n_rules, uint32_t id)
{
    for (uint32_t i = 0; i < n_rules; i++) {
        if (rules[i].id == id)
            return true;
    }
    return false;
}

static enum ps_status bind_globals(struct binding *binding, struct ps_error *err)
{
    struct ps_model *model = binding->model;
    const struct arch *arch = model->arch;
    struct group_place place = {
        .prefix = "", .l = &model->hp.layer[0], .weights = model->global, .group = &model->global_group};
    enum ps_status status = PS_OK;
    for (uint32_t i = 0; status == PS_OK && i < N_GLOBAL_RULES; i++) {
        if (!has_rule(arch->global_rules, arch->n_global_rules, GLOBAL_RULES[i].id))
            status = bind_rule(binding, &place, &GLOBAL_RULES[i], err);
    }
    for (uint32_t i = 0; status == PS_OK && i < arch->n_global_rules; i++)
        status = bind_rule(binding, &place, &arch->global_rules[i], err);
    if (status != PS_OK)
        return status;
    return tensor_layout_init(&model->global_group.layout, model->gguf, model->global_group.tensor,
                              model->global_group.n, err);
}

/* q, k and v in one matrix or in three, where the family knows both. */
static enum ps_status check_qkv(const struct layer *layer, const char *prefix, struct ps_error *err)
{
    const struct weight *w = layer->w;
    bool single = w[LT_Q].format || w[LT_K].format || w[LT_V].format;
    if (w[LT_QKV].format && single)
        return ps_error_set(err, PS_ERR_FORMAT, "%sattn_qkv.weight: beside q, k or v on their own", prefix);
    if (!w[LT_QKV].format && !(w[LT_Q].format && w[LT_K].format && w[LT_V].format))
        return ps_error_set(err, PS_ERR_FORMAT, "%sattn_qkv.weight: tensor is missing, and so are q, k or v",
                            prefix);
    return PS_OK;
}

/* A shared expert is there as a whole, or, where the family and the metadata know of none, not at all. */
static enum ps_status check_shared(const struct ps_model *model, const struct layer *layer,
                                   const char *prefix, struct ps_error *err)
{
    uint32_t count = 0;
    enum ps_status status =
        hparam_u32(model->gguf, model->arch->name, "expert_shared_count", false, &count, err);
    bool some = count > 0 || model->hp.n_ff_shared > 0;
    for (uint32_t i = 0; status == PS_OK && some && i < model->arch->n_layer_rules; i++) {
        const struct tensor_rule *rule = &model->arch->layer_rules[i];
        bool part = rule->id == LT_SHARED_GATE || rule->id == LT_SHARED_UP || rule->id == LT_SHARED_DOWN;
        if (part && !layer->w[rule->id].format)
            return ps_error_set(err, PS_ERR_FORMAT, "%s%s: tensor is missing", prefix, rule->name);
    }
    return status;
}

/* Branches that the family computes in every layer of the kind: the rules alone let a layer without heads or width be. */
static enum ps_status check_branches(const struct ps_model *model, const struct layer *layer, uint32_t il,
                                     struct ps_error *err)
{
    const struct arch *arch = model->arch;
    const struct layer_hparams *l = &model->hp.layer[il];
    if (layer->w[LT_ATTN_OUTPUT].format && !l->recurrent && l->n_kv_head == 0)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.attention.head_count_kv: 0, but layer %u has attention",
                            arch->name, il);
    bool has_ffn =
        layer->w[LT_FFN_NORM].format || !has_rule(arch->layer_rules, arch->n_layer_rules, LT_FFN_NORM);
    if (has_ffn && !layer->moe && !layer->w[LT_FFN_UP].format)
        return ps_error_set(err, PS_ERR_FORMAT, "blk.%u: has neither a dense FFN nor experts", il);
    return PS_OK;
}

static enum ps_status bind_layer(struct binding *binding, uint32_t il, struct ps_error *err)
{
    struct ps_model *model = binding->model;
    struct layer *layer = &model->layers[il];
    char prefix[24];
    snprintf(prefix, sizeof(prefix), "blk.%u.", il);
    struct group_place place = {.prefix = prefix,
                                .l = &model->hp.layer[il],
                                .is = layer_kinds(&model->hp.layer[il], layer->moe),
                                .weights = layer->w,
                                .group = &layer->group};
    enum ps_status status = PS_OK;
    for (uint32_t i = 0; status == PS_OK && i < model->arch->n_layer_rules; i++)
        status = bind_rule(binding, &place, &model->arch->layer_rules[i], err);
    bool either = has_rule(model->arch->layer_rules, model->arch->n_layer_rules, LT_QKV) &&
                  has_rule(model->arch->layer_rules, model->arch->n_layer_rules, LT_Q);
    if (status == PS_OK && either && (place.is & NEED_IN_ATTENTION))
        status = check_qkv(layer, prefix, err);
    if (status == PS_OK && layer->moe)
        status = check_shared(model, layer, prefix, err);
    if (status == PS_OK)
        status = check_branches(model, layer, il, err);
    if (status != PS_OK)
        return status;
    return tensor_layout_init(&layer->group.layout, model->gguf, layer->group.tensor, layer->group.n, err);
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
    enum ps_status status;
    if (shards->slice[SHARD_GATE_UP].present)
        status = check_slice(model, il, SHARD_GATE_UP, "ffn_gate_up_exps.weight", 2ull * hp->n_ff_expert,
                             hp->n_embd_expert, err);
    else
        status =
            check_slice(model, il, SHARD_UP, "ffn_up_exps.weight", hp->n_ff_expert, hp->n_embd_expert, err);
    if (status == PS_OK && !shards->slice[SHARD_GATE_UP].present && !model->arch->ungated_experts)
        status = check_slice(model, il, SHARD_GATE, "ffn_gate_exps.weight", hp->n_ff_expert,
                             hp->n_embd_expert, err);
    else if (status == PS_OK && model->arch->ungated_experts &&
             (shards->slice[SHARD_GATE].present || shards->slice[SHARD_GATE_UP].present))
        return ps_error_set(err, PS_ERR_UNSUPPORTED,
                            "blk.%u: '%s' has experts without a gate, these have one", il, model->arch->name);
    if (status != PS_OK)
        return status;
    return check_slice(model, il, SHARD_DOWN, "ffn_down_exps.weight", hp->n_embd_expert, hp->n_ff_expert,
                       err);
}

bool model_skips_tensor(const struct ps_model *model, const char *name)
{
    unsigned layer;
    return sscanf(name, "blk.%u.", &layer) == 1 && layer >= model->hp.n_layers &&
           layer < model->hp.n_layers + model->hp.n_nextn;
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
        if (shared && shared->dims[1] <= UINT32_MAX)
            hp->n_ff_shared = (uint32_t)shared->dims[1];
    }
}

static void find_widest_input(struct ps_model *model)
{
    for (uint32_t il = 0; il < model->hp.n_layers; il++) {
        const struct weight *w = model->layers[il].w;
        for (uint32_t id = 0; id < LT_COUNT; id++) {
            bool hidden = id == LT_FFN_DOWN || id == LT_SHARED_DOWN;
            bool per_head = id == LT_K_B || id == LT_V_B;
            uint64_t n_cols = w[id].n_cols * (per_head ? model->hp.layer[il].n_head : 1);
            if (!hidden && w[id].format && w[id].n_rows > 1 && n_cols > model->widest_input)
                model->widest_input = n_cols;
        }
    }
}

static enum ps_status check_all_claimed(const struct binding *binding, struct ps_error *err)
{
    const struct ps_model *model = binding->model;
    for (uint32_t i = 0; i < gguf_n_tensors(model->gguf); i++) {
        if (!binding->claimed[i] && !shard_map_owns_tensor(model->shards, i) &&
            !model_skips_tensor(model, gguf_tensor_at(model->gguf, i)->name))
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
    status = bind_globals(&binding, err);
    for (uint32_t il = 0; status == PS_OK && il < model->hp.n_layers; il++) {
        struct layer *layer = &model->layers[il];
        layer->moe = shard_map_layer(model->shards, il)->n_experts > 0;
        model->n_moe_layers += layer->moe;
        status = bind_layer(&binding, il, err);
        if (status == PS_OK && layer->moe)
            status = check_experts(model, il, err);
    }
    if (status == PS_OK)
        status = check_all_claimed(&binding, err);
    find_widest_input(model);
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
