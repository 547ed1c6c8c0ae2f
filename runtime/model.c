/* Opening and loading a model. open() reads only the header; load() divides the budget and reads the trunk. */
#include "runtime/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/kv_cache.h"
#include "runtime/plan.h"
#include "runtime/predictor.h"
#include "runtime/stored_rows.h"
#include "runtime/thread_choice.h"
#include "runtime/trunk.h"

void ps_model_params_default(struct ps_model_params *params)
{
    *params = (struct ps_model_params){.direct = true};
}

const char *ps_cache_policy_at(uint32_t index, const char **summary)
{
    const struct cache_policy *policy = cache_policy_at(index);
    if (policy && summary)
        *summary = policy->summary;
    return policy ? policy->name : NULL;
}

const char *ps_arch_at(uint32_t index)
{
    return arch_at(index) ? arch_at(index)->name : NULL;
}

static enum ps_status find_arch(struct ps_model *model, struct ps_error *err)
{
    struct gguf_string name;
    if (!gguf_get_string(model->gguf, "general.architecture", &name))
        return ps_error_set(err, PS_ERR_FORMAT, "general.architecture: metadata key is missing");
    model->arch = arch_find(name);
    if (model->arch)
        return PS_OK;
    char supported[1024] = "";
    size_t used = 0;
    for (uint32_t i = 0; arch_at(i) && used < sizeof(supported); i++)
        used += (size_t)snprintf(supported + used, sizeof(supported) - used, "%s%s", i ? ", " : "",
                                 arch_at(i)->name);
    return ps_error_set(err, PS_ERR_UNSUPPORTED,
                        "general.architecture: '%.*s' is not supported; supported are %s",
                        (int)(name.length < 64 ? name.length : 64), name.data, supported);
}

/* Prefixes the message with the file, which the parts below do not know. */
static enum ps_status name_file(enum ps_status status, const char *path, struct ps_error *err)
{
    if (status == PS_OK || !err)
        return status;
    char message[PS_ERROR_MESSAGE_SIZE];
    memcpy(message, err->message, sizeof(message));
    return ps_error_set(err, status, "%s: %s", path, message);
}

static enum ps_status read_header(struct ps_model *model, struct ps_error *err)
{
    enum ps_status status;
    if ((status = find_arch(model, err)) != PS_OK ||
        (status = hparams_read(&model->hp, model->gguf, model->arch, err)) != PS_OK ||
        (status = shard_map_new(&model->shards, model->gguf, model->hp.n_layers, err)) != PS_OK ||
        (status = model_bind_tensors(model, err)) != PS_OK)
        return status;
    return vocab_new(&model->vocab, model->gguf, err);
}

enum ps_status ps_model_open(struct ps_model **out, const char *path, struct ps_error *err)
{
    *out = NULL;
    struct ps_model *model = calloc(1, sizeof(*model));
    if (!model)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: out of memory", path);
    enum ps_status status = gguf_open(&model->gguf, path, err);
    if (status == PS_OK) {
        status = name_file(read_header(model, err), path, err);
        if (status == PS_OK)
            model_fill_info(model);
    }
    if (status != PS_OK) {
        ps_model_free(model);
        return status;
    }
    *out = model;
    return PS_OK;
}

void ps_model_free(struct ps_model *model)
{
    if (!model)
        return;
    trunk_free(model->trunk);
    predictor_free(model->predictor);
    expert_cache_free(model->cache);
    io_reader_free(model->reader);
    thread_pool_free(model->pool);
    vocab_free(model->vocab);
    stored_rows_deinit(model);
    model_unbind_tensors(model);
    hparams_deinit(&model->hp);
    shard_map_free(model->shards);
    gguf_free(model->gguf);
    working_set_deinit(&model->working_set);
    free(model->name);
    free(model);
}

const struct ps_model_info *ps_model_info(const struct ps_model *model)
{
    return &model->info;
}

const struct ps_plan *ps_model_loaded_plan(const struct ps_model *model)
{
    return model->loaded ? &model->plan : NULL;
}

enum ps_status ps_model_plan(struct ps_model *model, const struct ps_model_params *params,
                             struct ps_plan *plan, struct ps_error *err)
{
    struct ps_model_params resolved;
    *plan = (struct ps_plan){0};
    enum ps_status status = plan_resolve_params(model, params, &resolved, err);
    return status == PS_OK ? plan_divide(model, &resolved, plan, err) : status;
}

static enum ps_status open_reader(struct ps_model *model, struct ps_error *err)
{
    static const enum io_backend backends[] = {[PS_IO_AUTO] = IO_BACKEND_AUTO,
                                               [PS_IO_URING] = IO_BACKEND_URING,
                                               [PS_IO_THREADS] = IO_BACKEND_THREADS};
    const struct packed *packed = gguf_packed(model->gguf);
    uint32_t n = gguf_n_files(model->gguf);
    const char **paths = calloc(n, sizeof(*paths));
    if (!paths)
        return ps_error_set(err, PS_ERR_NOMEM, "reader: out of memory");
    for (uint32_t i = 0; i < n; i++)
        paths[i] = gguf_file_path(model->gguf, i);
    struct io_reader_config config = {.backend = backends[model->params.io],
                                      .direct = model->params.direct,
                                      .queue_depth = model->params.queue_depth,
                                      .n_drives = packed ? packed_n_files(packed) - 1 : 1,
                                      .limit_rate = model->params.io_limit};
    enum ps_status status = io_reader_new(&model->reader, paths, n, &config, err);
    free(paths);
    return status;
}

static void choose_kernels(struct ps_model *model)
{
    enum cpu_level level = CPU_SCALAR;
    cpu_level_parse(model->params.cpu, &level);
    model->matmul = matmul_kernels_get(level);
    model->ops = vector_ops_get(level);
    model->attention = attention_kernels_get(level);
    model->recurrence = recurrence_kernels_get(level);
}

uint64_t ps_model_fingerprint(const struct ps_model *model)
{
    return working_set_model_id(model->gguf);
}

static void read_working_set(struct ps_model *model)
{
    if (!model->params.warm)
        return;
    working_set_read(&model->working_set, model->params.warm, ps_model_fingerprint(model),
                     shard_map_n_shards(model->shards), &model->warm_error);
    working_set_prime(&model->working_set, model->cache, model->shards, model->params.cache_policy);
}

void model_preload_working_set(struct ps_model *model)
{
    working_set_preload(&model->working_set, model->cache, model->shards);
    working_set_deinit(&model->working_set);
}

enum ps_status ps_model_working_set_status(const struct ps_model *model, struct ps_error *err)
{
    if (model->warm_error.status == PS_OK)
        return PS_OK;
    return ps_error_set(err, model->warm_error.status, "%s", model->warm_error.message);
}

enum ps_status ps_model_save_working_set(struct ps_model *model, struct ps_error *err)
{
    if (!model->loaded)
        return ps_error_set(err, PS_ERR_ARGUMENT, "working set: the model is not loaded");
    if (!model->params.warm)
        return PS_OK;
    struct working_set set;
    enum ps_status status = working_set_take(&set, ps_model_fingerprint(model), model->cache, model->shards,
                                             model->params.cache_policy, err);
    if (status == PS_OK)
        status = working_set_write(&set, model->params.warm, err);
    working_set_deinit(&set);
    return status;
}

enum ps_status ps_model_load(struct ps_model *model, const struct ps_model_params *params,
                             struct ps_error *err)
{
    if (model->loaded || model->reader)
        return ps_error_set(err, PS_ERR_ARGUMENT, "model: is already loaded");
    enum ps_status status;
    if ((status = plan_resolve_params(model, params, &model->params, err)) != PS_OK ||
        (status = plan_divide(model, &model->params, &model->plan, err)) != PS_OK)
        return status;
    if (params->planned)
        params->planned(params->planned_ctx, &model->plan);
    choose_kernels(model);
    if ((status = open_reader(model, err)) != PS_OK || (status = stored_rows_init(model, err)) != PS_OK ||
        (status = trunk_new(&model->trunk, model, model->plan.trunk_layers_resident, err)) != PS_OK ||
        (status = thread_choice_make(model, params->threads, err)) != PS_OK)
        return status;
    const struct expert_cache_config config = plan_cache_config(&model->params);
    status = expert_cache_new(&model->cache, model->shards, model->reader, &config, model->plan.cache, err);
    if (status != PS_OK)
        return status;
    if (model->plan.predictor > 0 && (status = predictor_new(&model->predictor, model, err)) != PS_OK)
        return status;
    prefetch_init(&model->prefetch, model->cache, model->reader);
    io_reader_get_stats(model->reader, &model->loaded_io);
    read_working_set(model);
    model->loaded = true;
    return PS_OK;
}
