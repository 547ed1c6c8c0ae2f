/* Writes a synthetic model at the drive's speed: threads generate pieces of tensors and take turns to write them, so
 * that some generate while one waits for the drive. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/thread_pool.h"
#include "runtime/synth_model.h"
#include "storage/file_output.h"
#include "storage/gguf_writer.h"

enum {
    PIECE_BYTES = 4 << 20, /* at most; whole units of a tensor */
    DEFAULT_THREADS = 3,   /* one that writes, two that generate */
    MAX_THREADS = 64,
};

/* ---- header ---- */

static void set_hyperparameters(struct gguf_writer *file, const struct synth_shape *shape)
{
    struct synth_key keys[SYNTH_MAX_KEYS];
    uint32_t n_keys = synth_list_keys(shape, keys);
    for (uint32_t i = 0; i < n_keys; i++) {
        char name[96];
        snprintf(name, sizeof(name), "%s.%s", shape->arch, keys[i].suffix);
        if (keys[i].is_float)
            gguf_writer_set_f32(file, name, keys[i].f);
        else
            gguf_writer_set_u32(file, name, keys[i].u);
    }
}

static void set_vocabulary(struct gguf_writer *file, const struct gguf *vocab)
{
    static const char prefix[] = "tokenizer.";
    if (!vocab)
        gguf_writer_set_string(file, "tokenizer.ggml.model", "no_vocab");
    for (uint64_t i = 0; vocab && i < gguf_n_kv(vocab); i++) {
        const struct gguf_kv *kv = gguf_kv_at(vocab, i);
        if (kv->key.length >= sizeof(prefix) && memcmp(kv->key.data, prefix, sizeof(prefix) - 1) == 0)
            gguf_writer_set_value(file, kv->key, &kv->value);
    }
}

static void set_header(struct gguf_writer *file, const struct synth_model *model)
{
    const struct synth_params *params = &model->params;
    gguf_writer_set_string(file, "general.architecture", params->shape.arch);
    gguf_writer_set_string(file, "general.type", "model");
    gguf_writer_set_string(file, "general.name", params->name);
    gguf_writer_set_u32(file, "general.file_type", model->file_type);
    gguf_writer_set_u32(file, "general.quantization_version", 2);
    set_hyperparameters(file, &params->shape);
    set_vocabulary(file, params->vocab);
    for (uint32_t i = 0; i < model->n_tensors; i++) {
        const struct synth_tensor *tensor = &model->tensors[i];
        gguf_writer_add_tensor(file, tensor->name, tensor->type, tensor->n_dims, tensor->dims);
    }
}

/* ---- data ---- */

struct writer {
    const struct synth_model *model;
    const struct synth_write_params *params;
    struct gguf_writer *file;
    uint32_t *first_piece; /* [n_tensors + 1] */
    uint8_t *buffers;      /* a piece per worker */

    pthread_mutex_t lock; /* guards what follows; not held while writing: whose turn it is has the file */
    pthread_cond_t turn_passed;
    uint32_t turn; /* piece that may be written */
    uint64_t done; /* bytes */
    enum ps_status status;
    struct ps_error error;
};

static uint64_t piece_bytes(const struct writer *writer, uint32_t tensor)
{
    const struct synth_model *model = writer->model;
    uint64_t unit = synth_unit_bytes(model->fills[model->tensors[tensor].fill].recipe);
    return PIECE_BYTES / unit * unit;
}

static uint32_t piece_tensor(const struct writer *writer, uint32_t piece)
{
    uint32_t low = 0, high = writer->model->n_tensors;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (writer->first_piece[middle] <= piece)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Returns the piece's length in bytes. */
static size_t generate_piece(const struct writer *writer, uint32_t piece, uint8_t *out)
{
    const struct synth_model *model = writer->model;
    uint32_t index = piece_tensor(writer, piece);
    const struct synth_tensor *tensor = &model->tensors[index];
    const struct synth_fill *fill = &model->fills[tensor->fill];
    uint64_t unit_bytes = synth_unit_bytes(fill->recipe);
    uint64_t begin = (piece - writer->first_piece[index]) * piece_bytes(writer, index);
    uint64_t end = begin + piece_bytes(writer, index);
    if (end > tensor->bytes)
        end = tensor->bytes;
    for (uint64_t at = begin; at < end; at += unit_bytes) {
        uint64_t n = end - at < unit_bytes ? end - at : unit_bytes;
        synth_fill_unit(fill, model->params.seed, index, at / unit_bytes, out + (at - begin), n);
    }
    return end - begin;
}

/* Blocks until it is this piece's turn; false when the file is given up. Pieces are begun in order, so the one whose
 * turn it is never waits for another. */
static bool await_turn(struct writer *writer, uint32_t piece)
{
    pthread_mutex_lock(&writer->lock);
    while (writer->turn != piece && writer->status == PS_OK)
        pthread_cond_wait(&writer->turn_passed, &writer->lock);
    bool ok = writer->status == PS_OK;
    pthread_mutex_unlock(&writer->lock);
    return ok;
}

static void pass_turn(struct writer *writer, size_t bytes, enum ps_status status,
                      const struct ps_error *error)
{
    pthread_mutex_lock(&writer->lock);
    writer->turn++;
    writer->done += bytes;
    if (status != PS_OK && writer->status == PS_OK) {
        writer->status = status;
        writer->error = *error;
    }
    pthread_cond_broadcast(&writer->turn_passed);
    pthread_mutex_unlock(&writer->lock);
}

static void write_piece(void *arg, uint32_t piece, unsigned worker)
{
    struct writer *writer = arg;
    const struct synth_write_params *params = writer->params;
    uint8_t *buffer = writer->buffers + (size_t)worker * PIECE_BYTES;
    struct ps_error error;
    pthread_mutex_lock(&writer->lock);
    bool stopped = writer->status != PS_OK;
    uint64_t done = writer->done;
    pthread_mutex_unlock(&writer->lock);
    if (stopped)
        return;
    size_t bytes = generate_piece(writer, piece, buffer);
    if (!await_turn(writer, piece))
        return;
    enum ps_status status = PS_OK;
    if (worker == 0 && params->progress &&
        !params->progress(params->progress_ctx, done, writer->model->data_bytes))
        status = ps_error_set(&error, PS_ERR_CANCELLED, "%s: interrupted, nothing was kept", params->path);
    if (status == PS_OK)
        status = gguf_writer_write(writer->file, buffer, bytes, &error);
    pass_turn(writer, bytes, status, &error);
}

static enum ps_status number_pieces(struct writer *writer, struct ps_error *err)
{
    const struct synth_model *model = writer->model;
    uint64_t n = 0;
    writer->first_piece = calloc((size_t)model->n_tensors + 1, sizeof(*writer->first_piece));
    if (!writer->first_piece)
        return ps_error_set(err, PS_ERR_NOMEM, "out of memory for %u tensors", model->n_tensors);
    for (uint32_t i = 0; i < model->n_tensors; i++) {
        uint64_t bytes = piece_bytes(writer, i);
        n += (model->tensors[i].bytes + bytes - 1) / bytes;
        if (n > UINT32_MAX)
            return ps_error_set(err, PS_ERR_ARGUMENT, "%s: the model is too large to write",
                                writer->params->path);
        writer->first_piece[i + 1] = (uint32_t)n;
    }
    return PS_OK;
}

static enum ps_status write_data(struct writer *writer, struct ps_error *err)
{
    unsigned n_threads = writer->params->threads ? writer->params->threads : DEFAULT_THREADS;
    if (n_threads > MAX_THREADS)
        n_threads = MAX_THREADS;
    enum ps_status status = number_pieces(writer, err);
    if (status != PS_OK)
        return status;
    writer->buffers = malloc((size_t)n_threads * PIECE_BYTES);
    if (!writer->buffers)
        return ps_error_set(err, PS_ERR_NOMEM, "out of memory for %u pieces", n_threads);
    struct thread_pool *pool;
    int rc = thread_pool_new(&pool, n_threads);
    if (rc != 0)
        return ps_error_set(err, PS_ERR_NOMEM, "%u threads: %s", n_threads, strerror(-rc));
    thread_pool_run(pool, write_piece, writer, writer->first_piece[writer->model->n_tensors]);
    thread_pool_free(pool);
    if (writer->status != PS_OK)
        return ps_error_set(err, writer->status, "%s", writer->error.message);
    return PS_OK;
}

/* ---- the file ---- */

enum ps_status synth_write(const struct synth_model *model, const struct synth_write_params *params,
                           struct ps_error *err)
{
    struct writer writer = {.model = model, .params = params};
    enum ps_status status = file_output_check_target(params->path, params->overwrite, err);
    if (status != PS_OK)
        return status;
    status = gguf_writer_new(&writer.file, params->path, 0, err);
    if (status != PS_OK)
        return status;
    pthread_mutex_init(&writer.lock, NULL);
    pthread_cond_init(&writer.turn_passed, NULL);
    set_header(writer.file, model);
    if ((status = gguf_writer_begin_data(writer.file, err)) == PS_OK &&
        (status = write_data(&writer, err)) == PS_OK)
        status = gguf_writer_finish(writer.file, err);
    gguf_writer_free(writer.file);
    pthread_cond_destroy(&writer.turn_passed);
    pthread_mutex_destroy(&writer.lock);
    free(writer.first_piece);
    free(writer.buffers);
    return status;
}
