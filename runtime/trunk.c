#include "runtime/trunk.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/clock.h"
#include "storage/mapping.h"

enum { N_BUFFERS = 2, NO_LAYER = UINT32_MAX };

/* One read of a group of tensors into its place. */
struct load {
    struct io_job job;
    struct trunk *trunk;
    const struct tensor_group *group;
    bool pending; /* under trunk->lock */
    bool checked; /* what it brought, against its checksums */
};

struct trunk {
    struct ps_model *model;
    uint32_t resident; /* layers kept */
    uint8_t *memory;
    uint64_t memory_bytes;
    struct load *loads; /* [1 + resident]: globals, then layers; only while loading */
    uint8_t *buffer[N_BUFFERS];
    uint32_t buffer_layer[N_BUFFERS]; /* layer that is, or is being read, in it */
    struct load stream[N_BUFFERS];
    pthread_mutex_t lock;
    pthread_cond_t landed;
    const struct packed *packed; /* NULL: nothing is checked */
    bool *sound;                 /* [layers] of a container: its checksums were right */
    struct trunk_stats stats;
};

static uint64_t largest_layer(const struct ps_model *model, uint32_t first)
{
    uint64_t largest = 0;
    for (uint32_t il = first; il < model->hp.n_layers; il++) {
        uint64_t bytes = model->layers[il].group.layout.bytes;
        largest = bytes > largest ? bytes : largest;
    }
    return largest;
}

uint64_t trunk_memory(const struct ps_model *model, uint32_t resident)
{
    uint64_t bytes = model->global_group.layout.bytes;
    for (uint32_t il = 0; il < resident; il++)
        bytes += model->layers[il].group.layout.bytes;
    return bytes + N_BUFFERS * largest_layer(model, resident);
}

uint64_t trunk_streamed(const struct ps_model *model, uint32_t resident)
{
    uint64_t bytes = 0;
    for (uint32_t il = resident; il < model->hp.n_layers; il++)
        bytes += model->layers[il].group.layout.bytes;
    return model->hp.n_layers - resident > N_BUFFERS ? bytes : 0;
}

static void bind_group(const struct tensor_group *group, struct weight *weights, const uint8_t *base)
{
    for (uint32_t i = 0; i < group->n; i++)
        weights[group->id[i]].data = base + group->layout.offset[i];
}

static void on_landed(struct io_job *job)
{
    struct load *load = job->owner;
    struct trunk *trunk = load->trunk;
    pthread_mutex_lock(&trunk->lock);
    load->pending = false;
    pthread_cond_broadcast(&trunk->landed);
    pthread_mutex_unlock(&trunk->lock);
}

static void start_load(struct trunk *trunk, struct load *load, const struct tensor_group *group,
                       uint8_t *buffer)
{
    *load = (struct load){.trunk = trunk, .group = group, .pending = true};
    load->job = (struct io_job){.ranges = group->layout.ranges,
                                .n_ranges = group->layout.n_ranges,
                                .priority = IO_DEMAND,
                                .buffer = buffer,
                                .done = on_landed,
                                .owner = load};
    io_reader_submit(trunk->model->reader, &load->job);
}

static enum ps_status wait_load(struct trunk *trunk, struct load *load, struct ps_error *err)
{
    pthread_mutex_lock(&trunk->lock);
    while (load->pending)
        pthread_cond_wait(&trunk->landed, &trunk->lock);
    pthread_mutex_unlock(&trunk->lock);
    return io_reader_job_error(trunk->model->reader, &load->job, err);
}

/* The first tensor of a group (index in it) whose checksum differs, group->n when none does. */
static uint32_t find_damaged(struct trunk *trunk, const struct load *load)
{
    const struct tensor_group *group = load->group;
    double start = clock_seconds();
    uint32_t i = 0;
    for (; i < group->n; i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(trunk->model->gguf, group->tensor[i]);
        trunk->stats.checked++;
        if (!packed_trunk_is_sound(trunk->packed, group->tensor[i],
                                   load->job.buffer + group->layout.offset[i], tensor->bytes))
            break;
    }
    trunk->stats.check_s += clock_seconds() - start;
    return i;
}

/* Checks what a load brought; what is damaged is read once more. */
static enum ps_status check_load(struct trunk *trunk, struct load *load, struct ps_error *err)
{
    const struct tensor_group *group = load->group;
    if (find_damaged(trunk, load) == group->n)
        return PS_OK;
    start_load(trunk, load, group, load->job.buffer);
    enum ps_status status = wait_load(trunk, load, err);
    if (status != PS_OK)
        return status;
    uint32_t bad = find_damaged(trunk, load);
    if (bad < group->n) {
        const struct gguf_tensor *tensor = gguf_tensor_at(trunk->model->gguf, group->tensor[bad]);
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s: %s: tensor at offset %llu: checksum differs: damaged: copy it again, "
                            "or pack the model again",
                            tensor->name, gguf_file_path(trunk->model->gguf, tensor->file),
                            (unsigned long long)tensor->offset);
    }
    trunk->stats.reread_sound++;
    return PS_OK;
}

static void start_stream(struct trunk *trunk, uint32_t slot, uint32_t layer)
{
    trunk->buffer_layer[slot] = layer;
    start_load(trunk, &trunk->stream[slot], &trunk->model->layers[layer].group, trunk->buffer[slot]);
}

/* Reads everything that stays; all reads are queued at once, so that the drive never waits for us. */
static enum ps_status read_resident(struct trunk *trunk, struct ps_error *err)
{
    struct ps_model *model = trunk->model;
    const struct ps_model_params *params = &model->params;
    uint8_t *at = trunk->memory;
    uint64_t total = 0;
    for (uint32_t i = 0; i <= trunk->resident; i++) {
        const struct tensor_group *group = i == 0 ? &model->global_group : &model->layers[i - 1].group;
        bind_group(group, i == 0 ? model->global : model->layers[i - 1].w, at);
        start_load(trunk, &trunk->loads[i], group, at);
        at += group->layout.bytes;
        total += group->layout.bytes;
    }
    enum ps_status status = PS_OK;
    uint64_t done = 0;
    for (uint32_t i = 0; i <= trunk->resident; i++) {
        struct ps_error *first_err = status == PS_OK ? err : NULL;
        enum ps_status loaded = wait_load(trunk, &trunk->loads[i], first_err);
        if (status == PS_OK && loaded == PS_OK && trunk->packed)
            loaded = check_load(trunk, &trunk->loads[i], first_err);
        status = status == PS_OK ? loaded : status;
        done += trunk->loads[i].group->layout.bytes;
        if (params->progress)
            params->progress(params->progress_ctx, done, total);
    }
    if (model->global_group.n < 1 || !model->global[GT_OUTPUT].data)
        model->global[GT_OUTPUT].data = model->global[GT_TOKEN_EMBD].data;
    return status;
}

enum ps_status trunk_new(struct trunk **out, struct ps_model *model, uint32_t resident, struct ps_error *err)
{
    *out = NULL;
    struct trunk *trunk = calloc(1, sizeof(*trunk));
    if (!trunk)
        return ps_error_set(err, PS_ERR_NOMEM, "trunk: out of memory");
    trunk->model = model;
    trunk->resident = resident;
    pthread_mutex_init(&trunk->lock, NULL);
    pthread_cond_init(&trunk->landed, NULL);
    trunk->memory_bytes = trunk_memory(model, resident);
    trunk->memory = mapping_new(trunk->memory_bytes);
    trunk->loads = calloc(resident + 1u, sizeof(*trunk->loads));
    trunk->sound = calloc(model->hp.n_layers + 1u, sizeof(*trunk->sound));
    trunk->packed = model->params.verify == PS_VERIFY_OFF ? NULL : gguf_packed(model->gguf);
    for (uint32_t i = 0; i < N_BUFFERS; i++)
        trunk->buffer_layer[i] = NO_LAYER;
    if (!trunk->memory || !trunk->loads || !trunk->sound) {
        trunk_free(trunk);
        return ps_error_set(err, PS_ERR_NOMEM, "trunk: cannot map %llu bytes",
                            (unsigned long long)trunk->memory_bytes);
    }
    enum ps_status status = read_resident(trunk, err);
    free(trunk->loads);
    trunk->loads = NULL;
    if (status != PS_OK) {
        trunk_free(trunk);
        return status;
    }
    uint64_t buffer_bytes = largest_layer(model, resident);
    for (uint32_t i = 0; i < N_BUFFERS; i++) {
        trunk->buffer[i] = trunk->memory + trunk->memory_bytes - (N_BUFFERS - i) * buffer_bytes;
        if (resident + i < model->hp.n_layers)
            start_stream(trunk, i, resident + i);
    }
    *out = trunk;
    return PS_OK;
}

void trunk_free(struct trunk *trunk)
{
    if (!trunk)
        return;
    for (uint32_t i = 0; i < N_BUFFERS; i++) {
        if (trunk->buffer_layer[i] != NO_LAYER)
            wait_load(trunk, &trunk->stream[i], NULL);
    }
    free(trunk->loads);
    free(trunk->sound);
    mapping_free(trunk->memory, trunk->memory_bytes);
    pthread_cond_destroy(&trunk->landed);
    pthread_mutex_destroy(&trunk->lock);
    free(trunk);
}

static enum ps_status check_streamed(struct trunk *trunk, struct load *load, uint32_t layer,
                                     struct ps_error *err)
{
    bool always = trunk->model->params.verify == PS_VERIFY_ALWAYS;
    if (!trunk->packed || load->checked || (trunk->sound[layer] && !always))
        return PS_OK;
    enum ps_status status = check_load(trunk, load, err);
    load->checked = trunk->sound[layer] = status == PS_OK;
    return status;
}

static uint32_t find_buffer(const struct trunk *trunk, uint32_t layer)
{
    for (uint32_t i = 0; i < N_BUFFERS; i++) {
        if (trunk->buffer_layer[i] == layer)
            return i;
    }
    return NO_LAYER;
}

enum ps_status trunk_begin_layer(struct trunk *trunk, uint32_t layer, struct ps_error *err)
{
    if (layer < trunk->resident)
        return PS_OK;
    double start = clock_seconds();
    uint32_t slot = find_buffer(trunk, layer);
    if (slot == NO_LAYER) { /* out of order: a failed or cancelled pass left the ring elsewhere */
        slot = (layer - trunk->resident) % N_BUFFERS;
        wait_load(trunk, &trunk->stream[slot], NULL);
        start_stream(trunk, slot, layer);
    }
    enum ps_status status = wait_load(trunk, &trunk->stream[slot], err);
    trunk->stats.stall_s += clock_seconds() - start;
    if (status == PS_OK)
        status = check_streamed(trunk, &trunk->stream[slot], layer, err);
    if (status != PS_OK) {
        trunk->buffer_layer[slot] = NO_LAYER; /* read again by the next pass */
        return status;
    }
    bind_group(&trunk->model->layers[layer].group, trunk->model->layers[layer].w, trunk->buffer[slot]);
    return PS_OK;
}

void trunk_end_layer(struct trunk *trunk, uint32_t layer)
{
    uint32_t n_streamed = trunk->model->hp.n_layers - trunk->resident;
    if (layer < trunk->resident || n_streamed <= N_BUFFERS)
        return;
    uint32_t next = trunk->resident + (layer - trunk->resident + N_BUFFERS) % n_streamed;
    if (find_buffer(trunk, next) == NO_LAYER)
        start_stream(trunk, find_buffer(trunk, layer), next);
}

struct trunk_stats trunk_get_stats(const struct trunk *trunk)
{
    return trunk->stats;
}
