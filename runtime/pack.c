#include "runtime/pack.h"

#include <stdlib.h>
#include <sys/stat.h>

#include "runtime/clock.h"
#include "runtime/pack_decide.h"
#include "runtime/pack_pipeline.h"
#include "runtime/pack_source.h"
#include "runtime/topology.h"

enum { MAX_THREADS = 64 };

struct packing {
    struct pack_pipeline pipeline;
    struct pack_source source;
    struct packed_layout *layouts;
    uint32_t *order;
    struct pack_plan plan;
    void *identity;
};

static enum ps_status no_memory(const struct pack_params *params, struct ps_error *err)
{
    return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory to pack it", params->path);
}

static uint32_t count_threads(uint32_t asked)
{
    struct topology topology;
    if (asked > 0)
        return asked < MAX_THREADS ? asked : MAX_THREADS;
    topology_read_own(&topology);
    uint32_t n = topology.logical;
    if (topology.quota > 0 && topology.quota < n)
        n = (uint32_t)topology.quota + 1;
    return n < MAX_THREADS ? n : MAX_THREADS;
}

/* What tells one packing from another beside the header: the files as they are, and what is asked for. */
struct file_identity {
    uint64_t bytes;
    int64_t seconds, nanoseconds; /* when it was modified */
};
struct options_identity {
    uint64_t zstd;
    uint64_t drive_rate;
};

static enum ps_status make_identity(struct packing *p, const struct pack_params *params, struct ps_error *err)
{
    uint64_t bytes = sizeof(struct options_identity) + p->source.n_paths * sizeof(struct file_identity);
    struct options_identity *options = calloc(1, bytes);
    if (!options)
        return no_memory(params, err);
    p->identity = options;
    p->plan.identity = options;
    p->plan.identity_bytes = bytes;
    options->zstd = params->zstd;
    options->drive_rate = params->zstd == PACK_ZSTD_AUTO ? params->drive_rate : 0;
    struct file_identity *files = (struct file_identity *)(options + 1);
    for (uint32_t i = 0; i < p->source.n_paths; i++) {
        struct stat st;
        if (stat(p->source.paths[i], &st) != 0)
            return ps_error_set(err, PS_ERR_IO, "%s: cannot be examined", p->source.paths[i]);
        files[i] = (struct file_identity){(uint64_t)st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec};
    }
    return PS_OK;
}

static enum ps_status prepare(struct packing *p, const struct ps_model *model,
                              const struct pack_params *params, struct ps_error *err)
{
    uint32_t n_layers = shard_map_n_layers(model->shards), n_shards = shard_map_n_shards(model->shards);
    enum ps_status status = pack_source_init(&p->source, model, err);
    if (status != PS_OK)
        return status;
    p->layouts = calloc(n_layers + 1ul, sizeof(*p->layouts));
    p->order = calloc(n_shards + 1ul, sizeof(*p->order));
    if (!p->layouts || !p->order)
        return no_memory(params, err);
    status = pack_source_order(model, params->trace, p->order, err);
    p->plan = (struct pack_plan){.path = params->path,
                                 .replace = params->replace,
                                 .n_stripes = params->n_stripes,
                                 .stripes = params->stripes,
                                 .n_sources = p->source.n_paths,
                                 .sources = p->source.paths,
                                 .header = p->source.header,
                                 .header_bytes = p->source.header_bytes,
                                 .n_tensors = p->source.n_tensors,
                                 .n_layers = n_layers,
                                 .n_shards = n_shards,
                                 .trunk_bytes = p->source.trunk_bytes,
                                 .order = p->order};
    if (status == PS_OK)
        status = make_identity(p, params, err);
    const struct io_reader_config config = {.direct = true};
    if (status == PS_OK)
        status = io_reader_new(&p->pipeline.reader, p->source.paths, p->source.n_paths, &config, err);
    p->pipeline.model = model;
    p->pipeline.source = &p->source;
    p->pipeline.layouts = p->layouts;
    p->pipeline.order = p->order;
    p->pipeline.params = params;
    p->pipeline.threads = count_threads(params->threads);
    p->pipeline.level = pack_level(params->zstd);
    return status;
}

static void release(struct packing *p)
{
    io_reader_free(p->pipeline.reader);
    pack_source_deinit(&p->source);
    free(p->layouts);
    free(p->order);
    free(p->identity);
}

/* Decides, or takes over what was decided. */
static enum ps_status settle(struct packing *p, struct ps_model *model, const struct pack_params *params,
                             enum pack_start start, struct ps_error *err)
{
    struct pack_writer *writer = p->pipeline.writer;
    const struct shard_map *shards = model->shards;
    enum ps_status status = PS_OK;
    if (start != PACK_RESUMED) {
        struct pack_decisions decisions = {0};
        status = pack_decide(model, p->pipeline.reader, params, &decisions, err);
        if (status == PS_OK)
            status = pack_writer_decide(writer, &decisions, err);
        free((void *)decisions.codecs);
        free((void *)decisions.note);
    }
    if (status != PS_OK)
        return status;
    struct pack_decisions decisions = pack_writer_decisions(writer);
    for (uint32_t i = 0; i < shard_map_n_layers(shards); i++)
        packed_layout_init(&p->layouts[i], shard_map_layer(shards, i)->slice,
                           decisions.codecs + (size_t)i * PACKED_LAYER_CODECS);
    if (params->started)
        params->started(params->ctx, start, &decisions);
    return PS_OK;
}

static void sum_up(const struct packing *p, struct pack_result *result)
{
    const struct shard_map *shards = p->pipeline.model->shards;
    result->source_bytes = p->source.bytes;
    result->n_experts = p->plan.n_shards;
    result->n_files = 1 + p->plan.n_stripes;
    for (uint32_t i = 0; i < p->source.n_tensors; i++)
        result->trunk_bytes += p->source.trunk_bytes[i];
    for (uint32_t i = 0; i < shard_map_n_layers(shards); i++)
        result->expert_bytes += shard_map_layer(shards, i)->bytes * shard_map_layer(shards, i)->n_experts;
    result->packed_bytes = pack_writer_bytes(p->pipeline.writer);
    result->extent_bytes = pack_writer_extent_bytes(p->pipeline.writer);
}

enum ps_status pack_model(struct ps_model *model, const struct pack_params *params,
                          struct pack_result *result, struct ps_error *err)
{
    struct packing p = {0};
    double begin = clock_seconds();
    *result = (struct pack_result){0};
    enum ps_status status = prepare(&p, model, params, err);
    if (status == PS_OK)
        status = pack_writer_new(&p.pipeline.writer, &p.plan, &result->start, err);
    if (status == PS_OK && result->start != PACK_COMPLETED) {
        status = settle(&p, model, params, result->start, err);
        if (status == PS_OK)
            status = pack_pipeline_run(&p.pipeline, err);
        if (status == PS_OK)
            status = pack_writer_finish(p.pipeline.writer, err);
    }
    if (status == PS_OK)
        sum_up(&p, result);
    /* What an interruption leaves is for the next time, once something was decided. */
    bool is_cancelled = status == PS_ERR_CANCELLED;
    bool keep = is_cancelled && pack_writer_decisions(p.pipeline.writer).codecs &&
                pack_writer_commit(p.pipeline.writer, NULL) == PS_OK;
    if (is_cancelled)
        ps_error_set(err, PS_ERR_CANCELLED, "%s: interrupted%s", params->path,
                     keep ? ": the same command goes on with what is there" : ", nothing was kept");
    pack_writer_free(p.pipeline.writer, keep);
    release(&p);
    result->seconds = clock_seconds() - begin;
    return status;
}
