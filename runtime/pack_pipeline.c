#include "runtime/pack_pipeline.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/thread_pool.h"
#include "storage/extent_codec.h"

enum {
    PIECE_BYTES = 8 << 20,  /* of the trunk, at most */
    MEMORY_BYTES = 1 << 30, /* of all buffers, unless one thread takes more */
};

/* A piece of a trunk tensor. */
struct piece {
    uint32_t tensor; /* in the directory */
    uint64_t at, bytes;
};

/* A read under way or done. */
struct slot {
    struct io_job job;
    struct shard_location location; /* of an expert */
    uint8_t *buffer;
    uint64_t item;
    bool is_read;
    struct run *run;
};

struct worker {
    struct slot slots[2];
    uint8_t *expert; /* unpacked */
    uint8_t *extent; /* compressed */
    struct chunk_encoder *encoder;
};

struct run {
    const struct pack_pipeline *p;
    struct piece *pieces; /* of the trunk, from where the writer is */
    uint64_t n_pieces;
    uint32_t first_extent;
    uint64_t n_items; /* pieces, then extents */
    uint64_t total;   /* bytes of the source */
    struct worker *workers;
    uint64_t slot_bytes, expert_bytes, extent_bytes; /* buffers */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t next; /* item that nobody has taken */
    uint64_t turn; /* item to be written */
    uint64_t done; /* bytes of the source */
    enum ps_status status;
    struct ps_error error;
};

void pack_arrange(const struct packed_layout *layout, const struct shard_location *location,
                  const uint8_t *slot, uint8_t *expert)
{
    uint64_t end = 0;
    for (uint32_t part = 0; part < SHARD_N_PARTS; part++) {
        uint64_t at = layout->part_offset[part];
        if (at == UINT64_MAX)
            continue;
        memset(expert + end, 0, at - end);
        memcpy(expert + at, slot + location->part_offset[part], layout->part_bytes[part]);
        end = at + layout->part_bytes[part];
    }
    memset(expert + end, 0, layout->bytes - end);
}

/* ---- reading ---- */

static void on_read(struct io_job *job)
{
    struct slot *slot = job->owner;
    struct run *run = slot->run;
    pthread_mutex_lock(&run->lock);
    slot->is_read = true;
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
}

static uint32_t shard_of(const struct run *run, uint64_t item)
{
    return run->p->order[run->first_extent + (item - run->n_pieces)];
}

/* Takes the next item and has it read. False: none is left, or all is over. */
static bool take(struct run *run, struct slot *slot)
{
    const struct pack_pipeline *p = run->p;
    const volatile sig_atomic_t *cancel = p->params->cancel;
    pthread_mutex_lock(&run->lock);
    if (cancel && *cancel && run->status == PS_OK)
        run->status = ps_error_set(&run->error, PS_ERR_CANCELLED, "%s: interrupted", p->params->path);
    bool ok = run->status == PS_OK && run->next < run->n_items;
    if (ok)
        slot->item = run->next++;
    else
        pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
    if (!ok)
        return false;
    if (slot->item < run->n_pieces) {
        const struct piece *piece = &run->pieces[slot->item];
        const struct gguf_tensor *tensor = gguf_tensor_at(p->model->gguf, piece->tensor);
        slot->location.n_ranges = 1;
        slot->location.ranges[0] =
            (struct io_range){tensor->file, tensor->offset + piece->at, piece->bytes, 0};
    } else {
        uint32_t shard = shard_of(run, slot->item);
        uint32_t layer = shard_map_shard_layer(p->model->shards, shard);
        shard_map_locate(p->model->shards, layer,
                         shard - shard_map_layer(p->model->shards, layer)->first_shard, &slot->location);
    }
    slot->is_read = false;
    slot->job = (struct io_job){.ranges = slot->location.ranges,
                                .n_ranges = slot->location.n_ranges,
                                .buffer = slot->buffer,
                                .done = on_read,
                                .owner = slot};
    io_reader_submit(p->reader, &slot->job);
    return true;
}

static void await_read(struct run *run, const struct slot *slot)
{
    pthread_mutex_lock(&run->lock);
    while (!slot->is_read)
        pthread_cond_wait(&run->changed, &run->lock);
    pthread_mutex_unlock(&run->lock);
}

/* ---- writing ---- */

/* Items are taken in ascending order by each thread, so the one whose turn it is never waits for another. */
static bool await_turn(struct run *run, uint64_t item)
{
    pthread_mutex_lock(&run->lock);
    while (run->turn != item && run->status == PS_OK)
        pthread_cond_wait(&run->changed, &run->lock);
    bool ok = run->status == PS_OK;
    pthread_mutex_unlock(&run->lock);
    return ok;
}

static uint64_t pass_turn(struct run *run, uint64_t bytes, enum ps_status status,
                          const struct ps_error *error)
{
    pthread_mutex_lock(&run->lock);
    run->turn++;
    run->done += bytes;
    uint64_t done = run->done;
    if (status != PS_OK && run->status == PS_OK) {
        run->status = status;
        run->error = *error;
    }
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
    return done;
}

/* Writes a piece of the trunk, or an expert, when its turn has come. Returns false when all is over. */
static bool write_item(struct run *run, struct worker *worker, const struct slot *slot, uint64_t *done)
{
    const struct pack_pipeline *p = run->p;
    struct ps_error error;
    enum ps_status status = slot->job.status;
    if (status != PS_OK) {
        io_reader_job_error(p->reader, &slot->job, &error);
        *done = pass_turn(run, 0, status, &error);
        return false;
    }
    if (slot->item < run->n_pieces) {
        const struct piece *piece = &run->pieces[slot->item];
        if (!await_turn(run, slot->item))
            return false;
        const uint8_t *data = slot->buffer + slot->location.ranges[0].offset % IO_ALIGN;
        status = pack_writer_trunk(p->writer, data, piece->bytes, &error);
        *done = pass_turn(run, piece->bytes, status, &error);
        return status == PS_OK;
    }
    uint32_t layer = shard_map_shard_layer(p->model->shards, shard_of(run, slot->item));
    const struct packed_layout *layout = &p->layouts[layer];
    const uint8_t *extent = worker->expert;
    uint64_t bytes = layout->bytes;
    pack_arrange(layout, &slot->location, slot->buffer, worker->expert);
    if (layout->compressed) {
        bytes = extent_encode(worker->encoder, layout, worker->expert, worker->extent);
        extent = worker->extent;
    }
    uint64_t hash = extent_hash(extent, bytes);
    if (!await_turn(run, slot->item))
        return false;
    status = pack_writer_extent(p->writer, extent, bytes, hash, &error);
    *done = pass_turn(run, shard_map_layer(p->model->shards, layer)->bytes, status, &error);
    return status == PS_OK;
}

static void work(void *arg, uint32_t chunk, unsigned number)
{
    (void)chunk;
    struct run *run = arg;
    struct worker *worker = &run->workers[number];
    const struct pack_params *params = run->p->params;
    uint32_t now = 0;
    bool have = take(run, &worker->slots[now]);
    while (have) {
        struct slot *slot = &worker->slots[now];
        uint64_t done;
        bool have_next = take(run, &worker->slots[!now]);
        await_read(run, slot);
        bool ok = write_item(run, worker, slot, &done);
        if (ok && number == 0 && params->progress)
            params->progress(params->ctx, done, run->total);
        if (!ok && have_next)
            await_read(run, &worker->slots[!now]);
        have = ok && have_next;
        now = !now;
    }
}

/* ---- setting up ---- */

static enum ps_status no_memory(const struct run *run, struct ps_error *err)
{
    return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory to pack it", run->p->params->path);
}

/* Cuts into pieces what is left of the trunk. */
static enum ps_status cut_trunk(struct run *run, struct ps_error *err)
{
    const struct pack_source *source = run->p->source;
    uint32_t first = pack_writer_n_trunk(run->p->writer);
    uint64_t filled = pack_writer_trunk_filled(run->p->writer);
    for (uint32_t i = 0; i < source->n_tensors; i++) {
        uint64_t done = i < first ? source->trunk_bytes[i] : i == first ? filled : 0;
        run->total += source->trunk_bytes[i];
        run->done += done;
        run->n_pieces += (source->trunk_bytes[i] - done + PIECE_BYTES - 1) / PIECE_BYTES;
    }
    run->pieces = calloc(run->n_pieces + 1, sizeof(*run->pieces));
    if (!run->pieces)
        return no_memory(run, err);
    uint64_t n = 0;
    for (uint32_t i = first; i < source->n_tensors; i++) {
        for (uint64_t at = i == first ? filled : 0; at < source->trunk_bytes[i]; at += PIECE_BYTES) {
            uint64_t left = source->trunk_bytes[i] - at;
            run->pieces[n++] = (struct piece){i, at, left < PIECE_BYTES ? left : PIECE_BYTES};
        }
    }
    return PS_OK;
}

static void size_buffers(struct run *run)
{
    const struct shard_map *shards = run->p->model->shards;
    run->slot_bytes = run->n_pieces > 0 ? PIECE_BYTES + 2 * IO_ALIGN : IO_ALIGN;
    run->expert_bytes = run->extent_bytes = IO_ALIGN;
    for (uint32_t i = 0; i < shard_map_n_layers(shards); i++) {
        const struct shard_layer *layer = shard_map_layer(shards, i);
        const struct packed_layout *layout = &run->p->layouts[i];
        run->total += layer->bytes * layer->n_experts;
        if (layer->n_experts > 0 && layer->slot_bytes > run->slot_bytes)
            run->slot_bytes = layer->slot_bytes;
        if (layer->n_experts > 0 && layout->bytes > run->expert_bytes)
            run->expert_bytes = layout->bytes;
        if (layout->compressed && layout->slot_bytes > run->extent_bytes)
            run->extent_bytes = layout->slot_bytes;
    }
    run->first_extent = pack_writer_n_extents(run->p->writer);
    for (uint32_t i = 0; i < run->first_extent; i++)
        run->done += shard_map_layer(shards, shard_map_shard_layer(shards, run->p->order[i]))->bytes;
    run->n_items = run->n_pieces + shard_map_n_shards(shards) - run->first_extent;
}

static bool init_worker(struct run *run, struct worker *worker)
{
    uint64_t bytes = 2 * run->slot_bytes + run->expert_bytes + run->extent_bytes;
    uint8_t *at = aligned_alloc(IO_ALIGN, bytes);
    worker->encoder = chunk_encoder_new(run->p->level);
    worker->slots[0].buffer = at; /* owns all */
    if (!at || !worker->encoder)
        return false;
    worker->slots[1].buffer = at + run->slot_bytes;
    worker->expert = at + 2 * run->slot_bytes;
    worker->extent = worker->expert + run->expert_bytes;
    worker->slots[0].run = worker->slots[1].run = run;
    return true;
}

static uint32_t count_threads(const struct run *run)
{
    uint64_t each = 2 * run->slot_bytes + run->expert_bytes + run->extent_bytes;
    uint64_t most = MEMORY_BYTES / each;
    uint32_t n = run->p->threads;
    if (n > most)
        n = (uint32_t)most;
    if (n > run->n_items)
        n = (uint32_t)run->n_items;
    return n > 0 ? n : 1;
}

static enum ps_status run_workers(struct run *run, struct ps_error *err)
{
    uint32_t n = count_threads(run);
    struct thread_pool *pool = NULL;
    enum ps_status status = PS_OK;
    run->workers = calloc(n, sizeof(*run->workers));
    for (uint32_t i = 0; run->workers && i < n; i++) {
        if (!init_worker(run, &run->workers[i]))
            status = no_memory(run, err);
    }
    if (!run->workers || (status == PS_OK && thread_pool_new(&pool, n) != 0))
        status = no_memory(run, err);
    if (status == PS_OK) {
        thread_pool_run(pool, work, run, n);
        if (run->status != PS_OK)
            status = ps_error_set(err, run->status, "%s", run->error.message);
    }
    thread_pool_free(pool);
    for (uint32_t i = 0; run->workers && i < n; i++) {
        free(run->workers[i].slots[0].buffer);
        chunk_encoder_free(run->workers[i].encoder);
    }
    free(run->workers);
    return status;
}

enum ps_status pack_pipeline_run(const struct pack_pipeline *pipeline, struct ps_error *err)
{
    struct run run = {.p = pipeline};
    enum ps_status status = cut_trunk(&run, err);
    if (status == PS_OK) {
        size_buffers(&run);
        pthread_mutex_init(&run.lock, NULL);
        pthread_cond_init(&run.changed, NULL);
        status = run_workers(&run, err);
        pthread_cond_destroy(&run.changed);
        pthread_mutex_destroy(&run.lock);
    }
    free(run.pieces);
    return status;
}
