#include "runtime/pack_source.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/route_trace.h"
#include "storage/gguf_header.h"
#include "storage/gguf_writer.h"

static enum ps_status read_whole(const char *path, uint8_t *out, uint64_t bytes, struct ps_error *err)
{
    enum ps_status status = PS_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return ps_error_set(err, PS_ERR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    for (uint64_t at = 0; at < bytes;) {
        ssize_t n = pread(fd, out + at, bytes - at, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            status = ps_error_set(err, PS_ERR_IO, "%s: read failed at offset %" PRIu64 ": %s", path, at,
                                  strerror(errno));
        if (n <= 0) /* a file without tensors may end before its padding does */
            break;
        at += (uint64_t)n;
    }
    close(fd);
    return status;
}

static enum ps_status take_header(struct pack_source *source, const struct gguf *gguf, struct ps_error *err)
{
    const char *path = gguf_file_path(gguf, 0);
    struct gguf_header header;
    enum ps_status status = gguf_header_read(&header, path, 0, err);
    if (status != PS_OK)
        return status;
    source->header_bytes = (header.bytes + header.alignment - 1) / header.alignment * header.alignment;
    source->header = calloc(1, source->header_bytes);
    if (header.n_tensors != source->n_tensors)
        status = ps_error_set(err, PS_ERR_FORMAT, "%s: has changed while it was read", path);
    else if (!source->header)
        status = ps_error_set(err, PS_ERR_NOMEM, "%s: no memory for its header", path);
    else
        status = read_whole(path, source->header, source->header_bytes, err);
    gguf_header_deinit(&header);
    return status;
}

static bool key_starts_with(const struct gguf_kv *kv, const char *prefix)
{
    size_t length = strlen(prefix);
    return kv->key.length >= length && memcmp(kv->key.data, prefix, length) == 0;
}

static enum ps_status merge_header(struct pack_source *source, const struct gguf *gguf, struct ps_error *err)
{
    uint64_t alignment = GGUF_DEFAULT_ALIGNMENT;
    gguf_get_u64(gguf, "general.alignment", &alignment);
    struct gguf_writer *writer;
    enum ps_status status =
        gguf_writer_new_header(&writer, gguf_file_path(gguf, 0), (uint32_t)alignment, err);
    if (status != PS_OK)
        return status;
    for (uint64_t i = 0; i < gguf_n_kv(gguf); i++) {
        const struct gguf_kv *kv = gguf_kv_at(gguf, i);
        if (!key_starts_with(kv, "split.") && !key_starts_with(kv, "general.alignment"))
            gguf_writer_set_value(writer, kv->key, &kv->value);
    }
    for (uint32_t i = 0; i < source->n_tensors; i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, i);
        gguf_writer_add_tensor(writer, tensor->name, tensor->type, tensor->n_dims, tensor->dims);
    }
    status = gguf_writer_header(writer, &source->header, &source->header_bytes, err);
    gguf_writer_free(writer);
    return status;
}

enum ps_status pack_source_init(struct pack_source *source, const struct ps_model *model,
                                struct ps_error *err)
{
    const struct gguf *gguf = model->gguf;
    *source = (struct pack_source){.n_tensors = gguf_n_tensors(gguf), .n_paths = gguf_n_files(gguf)};
    source->trunk_bytes = calloc(source->n_tensors + 1ul, sizeof(*source->trunk_bytes));
    source->paths = calloc(source->n_paths, sizeof(*source->paths));
    enum ps_status status;
    if (!source->trunk_bytes || !source->paths)
        status = ps_error_set(err, PS_ERR_NOMEM, "%s: no memory", gguf_file_path(gguf, 0));
    else
        status = source->n_paths == 1 ? take_header(source, gguf, err) : merge_header(source, gguf, err);
    if (status != PS_OK) {
        pack_source_deinit(source);
        return status;
    }
    for (uint32_t i = 0; i < source->n_paths; i++) {
        source->paths[i] = gguf_file_path(gguf, i);
        source->bytes += gguf_file_size(gguf, i);
    }
    for (uint32_t i = 0; i < source->n_tensors; i++) {
        if (!shard_map_owns_tensor(model->shards, i))
            source->trunk_bytes[i] = gguf_tensor_at(gguf, i)->bytes;
    }
    return PS_OK;
}

void pack_source_deinit(struct pack_source *source)
{
    free(source->header);
    free(source->trunk_bytes);
    free(source->paths);
    *source = (struct pack_source){0};
}

/* ---- order ---- */

static int by_uses(const void *a, const void *b, void *ctx)
{
    const uint64_t *uses = ctx;
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    if (uses[x] != uses[y])
        return uses[x] < uses[y] ? 1 : -1;
    return x < y ? -1 : x > y;
}

/* uses[n_shards] */
static enum ps_status count_uses(const struct ps_model *model, const struct route_trace *trace,
                                 const char *path, uint64_t *uses, struct ps_error *err)
{
    uint32_t moe_layer = 0, first_shard[model->n_moe_layers + 1];
    for (uint32_t i = 0; i < shard_map_n_layers(model->shards); i++) {
        const struct shard_layer *layer = shard_map_layer(model->shards, i);
        if (layer->n_experts == 0)
            continue;
        if (moe_layer >= trace->n_layers || trace->n_experts[moe_layer] > layer->n_experts ||
            (trace->n_experts_known && trace->n_experts[moe_layer] != layer->n_experts))
            break;
        first_shard[moe_layer++] = layer->first_shard;
    }
    if (moe_layer != model->n_moe_layers || trace->n_layers != model->n_moe_layers)
        return ps_error_set(err, PS_ERR_ARGUMENT,
                            "%s: recorded with another model: its layers and experts are not this one's",
                            path);
    for (uint64_t i = 0; i < trace->n_visits; i++) {
        const struct replay_visit *visit = &trace->visits[i];
        for (uint32_t k = 0; k < visit->n; k++)
            uses[first_shard[visit->layer] + trace->ids[visit->first + k]]++;
    }
    return PS_OK;
}

enum ps_status pack_source_order(const struct ps_model *model, const char *path, uint32_t *order,
                                 struct ps_error *err)
{
    uint32_t n_shards = shard_map_n_shards(model->shards);
    for (uint32_t i = 0; i < n_shards; i++)
        order[i] = i;
    if (!path)
        return PS_OK;
    struct route_trace *trace;
    enum ps_status status = route_trace_read(&trace, path, err);
    if (status != PS_OK)
        return status;
    uint64_t *uses = calloc(n_shards + 1ul, sizeof(*uses));
    if (!uses)
        status =
            ps_error_set(err, PS_ERR_NOMEM, "%s: no memory to count %" PRIu32 " experts", path, n_shards);
    else
        status = count_uses(model, trace, path, uses, err);
    for (uint32_t i = 0; status == PS_OK && i < shard_map_n_layers(model->shards); i++) {
        const struct shard_layer *layer = shard_map_layer(model->shards, i);
        if (layer->n_experts > 0)
            qsort_r(order + layer->first_shard, layer->n_experts, sizeof(*order), by_uses, uses);
    }
    free(uses);
    route_trace_free(trace);
    return status;
}
