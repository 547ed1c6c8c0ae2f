/* What `inspect` and the plan need to know of a model: totals over its tensors. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/kv_cache.h"
#include "runtime/model.h"

enum { MAX_TYPES = 64, SHOWN_TYPES = 6 };

struct type_share {
    uint32_t type;
    uint64_t bytes;
};

static int by_bytes(const void *a, const void *b)
{
    uint64_t x = ((const struct type_share *)a)->bytes;
    uint64_t y = ((const struct type_share *)b)->bytes;
    return (x < y) - (x > y);
}

static uint64_t n_values(const struct gguf_tensor *tensor)
{
    return tensor->dims[0] * tensor->dims[1] * tensor->dims[2] * tensor->dims[3];
}

static void fill_formats(const struct ps_model *model, struct ps_model_info *info)
{
    struct type_share shares[MAX_TYPES] = {0};
    uint64_t total = 0;
    for (uint32_t i = 0; i < gguf_n_tensors(model->gguf); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(model->gguf, i);
        struct type_share *share = &shares[tensor->type % MAX_TYPES];
        share->type = tensor->type;
        share->bytes += tensor->bytes;
        total += tensor->bytes;
    }
    qsort(shares, MAX_TYPES, sizeof(shares[0]), by_bytes);
    size_t used = 0;
    for (uint32_t i = 0; i < SHOWN_TYPES && shares[i].bytes > 0; i++) {
        double percent = 100.0 * (double)shares[i].bytes / (double)total;
        used += (size_t)snprintf(info->formats + used, sizeof(info->formats) - used, "%s%s %.3g%%",
                                 i ? ", " : "", gguf_type_find(shares[i].type)->name, percent);
    }
}

/* A table of which a token reads few rows. */
static bool is_stored(const struct ps_model *model, const struct gguf_tensor *tensor)
{
    const struct stored_rows *stored = &model->stored;
    return stored->rows.format && stored->file == tensor->file && stored->offset == tensor->offset;
}

/* Of tables from which a token reads rows by number, and which are not also the output head: all other rows. */
static uint64_t params_not_looked_up(const struct ps_model *model)
{
    const struct weight *embd = &model->global[GT_TOKEN_EMBD];
    const struct weight *ngrams = &model->stored.rows;
    uint64_t n = gguf_tensor_find(model->gguf, "output.weight") ? (embd->n_rows - 1) * embd->n_cols : 0;
    if (ngrams->format)
        n += (ngrams->n_rows - model->hp.ngram.n_heads) * ngrams->n_cols;
    for (uint32_t il = 0; il < model->hp.n_layers; il++) {
        const struct weight *experts = &model->layers[il].w[LT_TOKEN_EXPERTS];
        if (experts->format)
            n += (experts->n_rows - 1) * experts->n_cols;
    }
    return n;
}

static void fill_sizes(const struct ps_model *model, struct ps_model_info *info)
{
    uint64_t expert_params = 0;
    uint64_t skipped_params = 0;
    for (uint32_t i = 0; i < gguf_n_tensors(model->gguf); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(model->gguf, i);
        info->n_params += n_values(tensor);
        if (shard_map_owns_tensor(model->shards, i)) {
            expert_params += n_values(tensor);
            info->expert_bytes += tensor->bytes;
        } else if (model_skips_tensor(model, tensor->name)) {
            skipped_params += n_values(tensor);
        } else if (!is_stored(model, tensor)) {
            info->trunk_bytes += tensor->bytes;
        }
    }
    info->n_params_active = info->n_params - expert_params - skipped_params;
    if (model->hp.n_expert > 0)
        info->n_params_active += expert_params / model->hp.n_expert * model->hp.n_expert_used;
    info->n_params_active -= params_not_looked_up(model);
    for (uint32_t i = 0; i < gguf_n_files(model->gguf); i++)
        info->file_bytes += gguf_file_size(model->gguf, i);
    info->unpacked_bytes = gguf_packed(model->gguf) ? gguf_unpacked_bytes(model->gguf) : info->file_bytes;
}

static void fill_shards(const struct ps_model *model, struct ps_model_info *info)
{
    info->n_shards = shard_map_n_shards(model->shards);
    for (uint32_t il = 0; il < model->hp.n_layers; il++) {
        const struct shard_layer *layer = shard_map_layer(model->shards, il);
        if (layer->n_experts == 0)
            continue;
        if (info->shard_bytes_min == 0 || layer->bytes < info->shard_bytes_min)
            info->shard_bytes_min = layer->bytes;
        if (layer->bytes > info->shard_bytes_max)
            info->shard_bytes_max = layer->bytes;
        info->token_cycle_bytes += layer->read_bytes * model->hp.n_expert_used;
        info->token_cycle_unpacked_bytes += layer->bytes * model->hp.n_expert_used;
    }
}

/* The layer whose heads stand for the model's. */
static const struct layer_hparams *widest_attention(const struct hparams *hp)
{
    const struct layer_hparams *widest = &hp->layer[0];
    for (uint32_t il = 1; il < hp->n_layers; il++) {
        const struct layer_hparams *l = &hp->layer[il];
        if (dim_q(hp, l) * (l->n_kv_head > 0) > dim_q(hp, widest) * (widest->n_kv_head > 0))
            widest = l;
    }
    return widest;
}

/* Of the layers without experts; 0: there are none. */
static uint32_t dense_width(const struct ps_model *model)
{
    uint32_t width = 0;
    for (uint32_t il = 0; il < model->hp.n_layers; il++) {
        if (!model->layers[il].moe && model->hp.layer[il].n_ff > width)
            width = model->hp.layer[il].n_ff;
    }
    return width;
}

void model_fill_info(struct ps_model *model)
{
    const struct hparams *hp = &model->hp;
    const struct layer_hparams *widest = widest_attention(hp);
    struct ps_model_info *info = &model->info;
    struct gguf_string name = {.data = "", .length = 0};
    gguf_get_string(model->gguf, "general.name", &name);
    model->name = strndup(name.data, name.length);
    *info = (struct ps_model_info){
        .arch = model->arch->name,
        .name = model->name ? model->name : "",
        .n_layers = hp->n_layers,
        .n_moe_layers = model->n_moe_layers,
        .n_embd = hp->n_embd,
        .n_vocab = hp->n_vocab,
        .n_ctx_train = hp->n_ctx_train,
        .n_head = widest->n_head,
        .n_kv_head = widest->n_kv_head,
        .head_dim = widest->head_dim_k,
        .n_ff = dense_width(model),
        .n_expert = hp->n_expert,
        .n_expert_used = hp->n_expert_used,
        .n_ff_expert = hp->n_ff_expert,
        .n_ff_shared = hp->n_ff_shared,
        .n_files = gguf_n_files(model->gguf),
        .kv_token_bytes_f32 = kv_token_bytes(hp, KV_F32),
        .kv_token_bytes_f16 = kv_token_bytes(hp, KV_F16),
        .kv_token_bytes_q8_0 = kv_token_bytes(hp, KV_Q8_0),
        .kv_fixed_bytes_f32 = kv_fixed_bytes(hp, KV_F32),
        .kv_fixed_bytes_f16 = kv_fixed_bytes(hp, KV_F16),
        .kv_fixed_bytes_q8_0 = kv_fixed_bytes(hp, KV_Q8_0),
        .has_text = vocab_has_text(model->vocab),
    };
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        info->n_recurrent_layers += hp->layer[il].recurrent;
        info->n_windowed_layers += hp->layer[il].window > 0;
        info->window = hp->layer[il].window > info->window ? hp->layer[il].window : info->window;
    }
    fill_formats(model, info);
    fill_sizes(model, info);
    fill_shards(model, info);
}

bool ps_model_expert_layer(const struct ps_model *model, uint32_t moe_layer, struct ps_expert_layer *out)
{
    for (uint32_t l = 0; l < model->hp.n_layers; l++) {
        if (!model->layers[l].moe || moe_layer-- > 0)
            continue;
        const struct shard_layer *layer = shard_map_layer(model->shards, l);
        *out = (struct ps_expert_layer){
            .n_experts = layer->n_experts,
            .pool = expert_cache_layer_pool(model->shards, l),
            .bytes = layer->bytes,
            .read_bytes = layer->read_bytes,
        };
        return true;
    }
    return false;
}
