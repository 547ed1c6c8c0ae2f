#include "runtime/unpack.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/thread_pool.h"
#include "runtime/topology.h"
#include "storage/extent_codec.h"
#include "storage/file_output.h"
#include "storage/gguf.h"
#include "storage/io_reader.h"
#include "storage/packed.h"
#include "storage/shard_map.h"

enum {
    PIECE_BYTES = 8 << 20,  /* of the trunk, at most; whole blocks */
    PUSH_BYTES = 128 << 20, /* written between two times that pages are dropped */
};

struct worker {
    uint8_t *slot, *expert;
    struct chunk_decoder *decoder;
};

struct unpacking {
    const struct unpack_params *params;
    struct gguf *gguf;
    const struct packed *packed; /* the GGUF directory's */
    struct shard_map *shards;
    struct io_reader *reader;
    char *temporary;
    struct file_output out;
    struct worker *workers;
    uint32_t n_workers;
    uint64_t slot_bytes, expert_bytes;

    pthread_mutex_t lock;
    uint64_t done, unpushed; /* bytes written */
    enum ps_status status;
    struct ps_error error;
};

static enum ps_status no_memory(const struct unpacking *u, struct ps_error *err)
{
    return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory to unpack it", u->params->input);
}

/* ---- parts of the work: run by any thread, over numbered items: trunk tensors, then shards ---- */

static enum ps_status write_bytes(struct unpacking *u, const uint8_t *data, uint64_t bytes, uint64_t offset,
                                  struct ps_error *err)
{
    enum ps_status status = file_output_write(&u->out, data, bytes, offset, err);
    pthread_mutex_lock(&u->lock);
    u->done += bytes;
    u->unpushed += bytes;
    bool push = u->unpushed >= PUSH_BYTES;
    if (push)
        u->unpushed = 0;
    pthread_mutex_unlock(&u->lock);
    if (push)
        file_output_push_all(&u->out);
    return status;
}

static enum ps_status unpack_tensor(struct unpacking *u, struct worker *worker, uint32_t index,
                                    struct ps_error *err)
{
    const struct gguf_tensor *tensor = gguf_tensor_at(u->gguf, index);
    uint64_t to = gguf_unpacked_offset(u->gguf, index);
    enum ps_status status = PS_OK;
    if (tensor->file == GGUF_NO_FILE)
        return PS_OK;
    for (uint64_t at = 0; status == PS_OK && at < tensor->bytes; at += PIECE_BYTES) {
        uint64_t n = tensor->bytes - at < PIECE_BYTES ? tensor->bytes - at : PIECE_BYTES;
        const struct io_range range = {tensor->file, tensor->offset + at, n, 0};
        status = io_reader_read(u->reader, &range, 1, worker->slot, err);
        const uint8_t *data = worker->slot + range.offset % IO_ALIGN;
        if (status == PS_OK)
            status = gguf_check_trunk(u->gguf, index, at, data, n, err);
        if (status == PS_OK)
            status = write_bytes(u, data, n, to + at, err);
    }
    return status;
}

static enum ps_status unpack_expert(struct unpacking *u, struct worker *worker, uint32_t shard,
                                    struct ps_error *err)
{
    uint32_t layer = shard_map_shard_layer(u->shards, shard);
    const struct shard_layer *shape = shard_map_layer(u->shards, layer);
    uint32_t expert = shard - shape->first_shard;
    struct packed_extent extent = packed_shard_extent(u->packed, shard);
    struct packed_layout layout;
    packed_layout_init(&layout, shape->slice, packed_layer_codecs(u->packed, layer));
    const struct io_range range = {extent.file, extent.offset, extent.bytes, 0};
    enum ps_status status = io_reader_read(u->reader, &range, 1, worker->slot, err);
    if (status != PS_OK)
        return status;
    bool is_sound = extent_hash(worker->slot, extent.bytes) == extent.hash;
    const char *why = is_sound ? "cannot be unpacked" : "checksum differs";
    if (is_sound && layout.compressed)
        is_sound = extent_decode(worker->decoder, &layout, worker->slot, extent.bytes, worker->expert);
    if (!is_sound)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "layer %" PRIu32 ", expert %" PRIu32 ": %s: extent at offset %" PRIu64
                            ": %s: pack it again from the GGUF",
                            layer, expert, packed_file_path(u->packed, extent.file), extent.offset, why);
    const uint8_t *parts = layout.compressed ? worker->expert : worker->slot;
    for (uint32_t part = 0; status == PS_OK && part < SHARD_N_PARTS; part++) {
        if (shape->slice[part].present)
            status = write_bytes(u, parts + layout.part_offset[part], layout.part_bytes[part],
                                 shard_map_part_offset(u->shards, layer, expert, part), err);
    }
    return status;
}

static void unpack_item(void *arg, uint32_t item, unsigned number)
{
    struct unpacking *u = arg;
    const struct unpack_params *params = u->params;
    struct ps_error error;
    pthread_mutex_lock(&u->lock);
    if (u->status == PS_OK && params->cancel && *params->cancel)
        u->status =
            ps_error_set(&u->error, PS_ERR_CANCELLED, "%s: interrupted, nothing was kept", params->path);
    bool stopped = u->status != PS_OK;
    uint64_t done = u->done;
    pthread_mutex_unlock(&u->lock);
    if (stopped)
        return;
    if (number == 0 && params->progress)
        params->progress(params->ctx, done, gguf_unpacked_bytes(u->gguf));
    uint32_t n_tensors = gguf_n_tensors(u->gguf);
    struct worker *worker = &u->workers[number];
    enum ps_status status = item < n_tensors ? unpack_tensor(u, worker, item, &error)
                                             : unpack_expert(u, worker, item - n_tensors, &error);
    if (status == PS_OK)
        return;
    pthread_mutex_lock(&u->lock);
    if (u->status == PS_OK) {
        u->status = status;
        u->error = error;
    }
    pthread_mutex_unlock(&u->lock);
}

/* ---- setting up ---- */

static enum ps_status open_input(struct unpacking *u, struct ps_error *err)
{
    const char *path = u->params->input;
    enum ps_status status = gguf_open(&u->gguf, path, err);
    if (status != PS_OK)
        return status;
    u->packed = gguf_packed(u->gguf);
    if (!u->packed)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: is a GGUF, not a container: there is nothing to unpack",
                            path);
    status = shard_map_new(&u->shards, u->gguf, packed_n_layers(u->packed), err);
    uint32_t n_files = packed_n_files(u->packed);
    const char **paths = calloc(n_files, sizeof(*paths));
    const struct io_reader_config config = {.direct = true};
    for (uint32_t i = 0; paths && i < n_files; i++)
        paths[i] = packed_file_path(u->packed, i);
    if (status == PS_OK)
        status = paths ? io_reader_new(&u->reader, paths, n_files, &config, err) : no_memory(u, err);
    free(paths);
    return status;
}

static enum ps_status check_output(const struct unpacking *u, struct ps_error *err)
{
    for (uint32_t i = 0; i < packed_n_files(u->packed); i++) {
        const char *path = packed_file_path(u->packed, i);
        if (file_output_is_same(u->params->path, path) || file_output_is_same(u->temporary, path))
            return ps_error_set(err, PS_ERR_ARGUMENT, "%s: is what is to be unpacked: choose another name",
                                path);
    }
    return file_output_check_target(u->params->path, u->params->replace, err);
}

static enum ps_status open_output(struct unpacking *u, struct ps_error *err)
{
    if (asprintf(&u->temporary, "%s.partial", u->params->path) < 0) {
        u->temporary = NULL;
        return no_memory(u, err);
    }
    u->out.path = u->temporary;
    enum ps_status status = check_output(u, err);
    if (status == PS_OK)
        status = file_output_open(&u->out, err);
    if (status != PS_OK)
        return status;
    if (ftruncate(u->out.fd, 0) != 0) /* of one that was killed */
        return ps_error_set(err, PS_ERR_IO, "%s: cannot be emptied: %s", u->temporary, strerror(errno));
    return file_output_reserve(&u->out, gguf_unpacked_bytes(u->gguf), err);
}

static enum ps_status write_header(struct unpacking *u, struct ps_error *err)
{
    uint64_t offset, bytes;
    packed_gguf_header(u->packed, &offset, &bytes);
    const struct io_range range = {0, offset, bytes, 0};
    uint8_t *buffer = aligned_alloc(IO_ALIGN, io_range_span(offset, bytes));
    if (!buffer)
        return no_memory(u, err);
    enum ps_status status = io_reader_read(u->reader, &range, 1, buffer, err);
    if (status == PS_OK)
        status = file_output_write(&u->out, buffer + offset % IO_ALIGN, bytes, 0, err);
    free(buffer);
    return status;
}

static void size_buffers(struct unpacking *u)
{
    u->slot_bytes = PIECE_BYTES + 2 * IO_ALIGN;
    u->expert_bytes = IO_ALIGN;
    for (uint32_t i = 0; i < shard_map_n_layers(u->shards); i++) {
        const struct shard_layer *layer = shard_map_layer(u->shards, i);
        if (layer->n_experts > 0 && layer->slot_bytes > u->slot_bytes)
            u->slot_bytes = layer->slot_bytes;
        if (layer->n_experts > 0 && layer->slot_bytes > u->expert_bytes)
            u->expert_bytes = layer->slot_bytes;
    }
}

static enum ps_status make_workers(struct unpacking *u, struct ps_error *err)
{
    struct topology topology;
    topology_read_own(&topology);
    u->n_workers = u->params->threads > 0 ? u->params->threads : topology.logical;
    if (u->n_workers > 64)
        u->n_workers = 64;
    size_buffers(u);
    u->workers = calloc(u->n_workers, sizeof(*u->workers));
    for (uint32_t i = 0; u->workers && i < u->n_workers; i++) {
        struct worker *worker = &u->workers[i];
        worker->slot = aligned_alloc(IO_ALIGN, u->slot_bytes);
        worker->expert = malloc(u->expert_bytes);
        worker->decoder = chunk_decoder_new();
        if (!worker->slot || !worker->expert || !worker->decoder)
            return no_memory(u, err);
    }
    return u->workers ? PS_OK : no_memory(u, err);
}

static enum ps_status unpack_all(struct unpacking *u, struct ps_error *err)
{
    struct thread_pool *pool;
    enum ps_status status = make_workers(u, err);
    if (status != PS_OK)
        return status;
    if (thread_pool_new(&pool, u->n_workers) != 0)
        return no_memory(u, err);
    thread_pool_run(pool, unpack_item, u, gguf_n_tensors(u->gguf) + shard_map_n_shards(u->shards));
    thread_pool_free(pool);
    return u->status == PS_OK ? PS_OK : ps_error_set(err, u->status, "%s", u->error.message);
}

static void release(struct unpacking *u, bool is_whole)
{
    if (u->out.fd >= 0) {
        if (!is_whole)
            unlink(u->temporary); /* while it is locked */
        close(u->out.fd);
    }
    for (uint32_t i = 0; u->workers && i < u->n_workers; i++) {
        free(u->workers[i].slot);
        free(u->workers[i].expert);
        chunk_decoder_free(u->workers[i].decoder);
    }
    free(u->workers);
    free(u->temporary);
    io_reader_free(u->reader);
    shard_map_free(u->shards);
    gguf_free(u->gguf);
    pthread_mutex_destroy(&u->lock);
}

enum ps_status unpack_model(const struct unpack_params *params, uint64_t *bytes, struct ps_error *err)
{
    struct unpacking u = {.params = params, .out.fd = -1};
    pthread_mutex_init(&u.lock, NULL);
    enum ps_status status;
    if ((status = open_input(&u, err)) == PS_OK && (status = open_output(&u, err)) == PS_OK &&
        (status = write_header(&u, err)) == PS_OK && (status = unpack_all(&u, err)) == PS_OK &&
        (status = file_output_sync(&u.out, err)) == PS_OK &&
        (status = check_output(&u, err)) == PS_OK) /* again: much time may have passed */
        status = file_output_rename(u.temporary, params->path, err);
    if (status == PS_OK)
        *bytes = gguf_unpacked_bytes(u.gguf);
    release(&u, status == PS_OK);
    return status;
}
