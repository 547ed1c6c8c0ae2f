#include "runtime/drive_probe.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/clock.h"
#include "runtime/model.h"
#include "runtime/splitmix.h"
#include "storage/mapping.h"

enum {
    MIB = 1 << 20,
    BUFFER_BYTES = 64 * MIB,
    FULL_QUEUE = 16, /* shards in flight where the rate is measured */
    MAX_JOBS = 64,
    WAIT_MS = 50, /* between two looks at the cancel flag */
};

/* One shard, or layer, being read. */
struct probe_job {
    struct io_job job;
    struct shard_location location;
    struct probe *probe;
    struct probe_job *next_free;
};

struct probe {
    struct ps_model *model;
    const volatile sig_atomic_t *cancel;
    uint64_t random;
    uint8_t *buffer;
    uint64_t buffer_bytes;
    uint64_t unit_bytes; /* buffer space of the largest unit */
    uint64_t next_unit;  /* position in the buffer, in units */
    uint32_t *layers;    /* those that have something to read */
    uint32_t n_layers;
    struct probe_job jobs[MAX_JOBS];

    pthread_mutex_t lock;
    pthread_cond_t landed;
    /* Under lock. */
    struct probe_job *free_jobs;
    uint32_t n_flying;
    uint64_t bytes, n_read; /* landed */
    struct probe_job *failed;
};

static void on_landed(struct io_job *job)
{
    struct probe_job *mine = job->owner;
    struct probe *probe = mine->probe;
    pthread_mutex_lock(&probe->lock);
    probe->n_flying--;
    if (job->status == PS_OK) {
        probe->bytes += job->bytes;
        probe->n_read++;
    } else if (!probe->failed) {
        probe->failed = mine;
    }
    if (probe->failed != mine) {
        mine->next_free = probe->free_jobs;
        probe->free_jobs = mine;
    }
    pthread_cond_signal(&probe->landed);
    pthread_mutex_unlock(&probe->lock);
}

/* Reads of several jobs may land in the same memory: nobody looks at it. */
static void start_one(struct probe *probe)
{
    pthread_mutex_lock(&probe->lock);
    struct probe_job *mine = probe->free_jobs;
    probe->free_jobs = mine->next_free;
    probe->n_flying++;
    pthread_mutex_unlock(&probe->lock);
    uint32_t layer = probe->layers[splitmix64(&probe->random) % probe->n_layers];
    uint64_t n_places = probe->buffer_bytes / probe->unit_bytes;
    mine->job = (struct io_job){.priority = IO_DEMAND,
                                .buffer = probe->buffer + probe->next_unit * probe->unit_bytes,
                                .done = on_landed,
                                .owner = mine};
    probe->next_unit = (probe->next_unit + 1) % n_places;
    if (shard_map_n_shards(probe->model->shards) > 0) {
        uint32_t n_experts = shard_map_layer(probe->model->shards, layer)->n_experts;
        shard_map_locate(probe->model->shards, layer, (uint32_t)(splitmix64(&probe->random) % n_experts),
                         &mine->location);
        mine->job.ranges = mine->location.ranges;
        mine->job.n_ranges = mine->location.n_ranges;
    } else {
        mine->job.ranges = probe->model->layers[layer].group.layout.ranges;
        mine->job.n_ranges = probe->model->layers[layer].group.layout.n_ranges;
    }
    io_reader_submit(probe->model->reader, &mine->job);
}

static void cancel_reads(struct probe *probe)
{
    for (uint32_t i = 0; i < MAX_JOBS; i++)
        io_reader_cancel(probe->model->reader, &probe->jobs[i].job);
}

/* Waits until at most n are in flight; they are cut short when the user asks to stop. */
static void wait_until(struct probe *probe, uint32_t n)
{
    pthread_mutex_lock(&probe->lock);
    while (probe->n_flying > n) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += WAIT_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_cond_timedwait(&probe->landed, &probe->lock, &until);
        if (*probe->cancel && probe->n_flying > n) {
            pthread_mutex_unlock(&probe->lock);
            cancel_reads(probe);
            pthread_mutex_lock(&probe->lock);
        }
    }
    pthread_mutex_unlock(&probe->lock);
}

static enum ps_status probe_status(struct probe *probe, struct ps_error *err)
{
    if (*probe->cancel)
        return ps_error_set(err, PS_ERR_CANCELLED, "cancelled");
    pthread_mutex_lock(&probe->lock);
    const struct probe_job *failed = probe->failed;
    pthread_mutex_unlock(&probe->lock);
    return failed ? io_reader_job_error(probe->model->reader, &failed->job, err) : PS_OK;
}

struct counts {
    uint64_t bytes, n_read;
    uint32_t n_flying;
};

static struct counts take_counts(struct probe *probe)
{
    pthread_mutex_lock(&probe->lock);
    struct counts counts = {probe->bytes, probe->n_read, probe->n_flying};
    pthread_mutex_unlock(&probe->lock);
    return counts;
}

static int by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* Median time of n shards read at once, over rounds of them. */
static enum ps_status measure_set(struct probe *probe, uint32_t n, double seconds, double *out,
                                  struct ps_error *err)
{
    enum { MOST_ROUNDS = 512 };
    double times[MOST_ROUNDS];
    double start = clock_seconds(), now = start;
    uint32_t rounds = 0;
    enum ps_status status = PS_OK;
    while (status == PS_OK && rounds < MOST_ROUNDS && (rounds == 0 || now - start < seconds)) {
        double begin = now;
        for (uint32_t i = 0; i < n; i++)
            start_one(probe);
        wait_until(probe, 0);
        status = probe_status(probe, err);
        now = clock_seconds();
        times[rounds++] = now - begin;
    }
    qsort(times, rounds, sizeof(*times), by_value);
    *out = times[rounds / 2];
    return status;
}

/* Bytes per second with n shards in flight all the time; filling and draining the queue are not timed. */
static enum ps_status measure_rate(struct probe *probe, uint32_t n, double seconds, double *rate,
                                   struct ps_error *err)
{
    struct counts now = take_counts(probe), first = now;
    uint64_t fill = now.n_read + n;
    double start = clock_seconds(), elapsed = 0;
    enum ps_status status = PS_OK;
    while (status == PS_OK && (now.n_read <= fill || elapsed < seconds)) {
        for (uint32_t i = take_counts(probe).n_flying; i < n; i++)
            start_one(probe);
        wait_until(probe, n - 1);
        status = probe_status(probe, err);
        now = take_counts(probe);
        if (now.n_read <= fill) {
            first = now;
            start = clock_seconds();
        }
        elapsed = clock_seconds() - start;
    }
    wait_until(probe, 0);
    if (status != PS_OK)
        return status;
    *rate = (double)(now.bytes - first.bytes) / fmax(elapsed, 1e-9);
    return probe_status(probe, err);
}

static enum ps_status probe_init(struct probe *probe, struct ps_model *model,
                                 const volatile sig_atomic_t *cancel, struct ps_error *err)
{
    *probe = (struct probe){.model = model, .cancel = cancel, .random = 1};
    pthread_mutex_init(&probe->lock, NULL);
    pthread_cond_init(&probe->landed, NULL);
    bool shards = shard_map_n_shards(model->shards) > 0;
    probe->layers = calloc(model->hp.n_layers, sizeof(*probe->layers));
    for (uint32_t l = 0; probe->layers && l < model->hp.n_layers; l++) {
        const struct shard_layer *layer = shard_map_layer(model->shards, l);
        uint64_t bytes =
            shards ? (layer->n_experts > 0 ? layer->slot_bytes : 0) : model->layers[l].group.layout.bytes;
        probe->unit_bytes = bytes > probe->unit_bytes ? bytes : probe->unit_bytes;
        if (bytes > 0)
            probe->layers[probe->n_layers++] = l;
    }
    if (probe->unit_bytes > 0) {
        uint64_t n = BUFFER_BYTES / probe->unit_bytes;
        n = n < 1 ? 1 : n > MAX_JOBS ? MAX_JOBS : n;
        probe->buffer_bytes = n * probe->unit_bytes;
        probe->buffer = mapping_new(probe->buffer_bytes);
    }
    if (!probe->buffer)
        return ps_error_set(err, PS_ERR_NOMEM, "drive probe: cannot map %llu bytes",
                            (unsigned long long)probe->buffer_bytes);
    for (uint32_t i = 0; i < MAX_JOBS; i++) {
        probe->jobs[i].probe = probe;
        probe->jobs[i].next_free = i + 1 < MAX_JOBS ? &probe->jobs[i + 1] : NULL;
    }
    probe->free_jobs = &probe->jobs[0];
    return PS_OK;
}

static void probe_free(struct probe *probe)
{
    mapping_free(probe->buffer, probe->buffer_bytes);
    free(probe->layers);
    pthread_cond_destroy(&probe->landed);
    pthread_mutex_destroy(&probe->lock);
    free(probe);
}

/* Sets of 1, 2, 4, ... shards, up to a layer's. One that would take longer than it may, judging by the one before, is
 * left to the model's extrapolation. */
static enum ps_status measure_sets(struct probe *probe, double seconds, struct speed_parts *parts,
                                   struct ps_error *err)
{
    uint32_t most = parts->top_k < MAX_JOBS ? parts->top_k : MAX_JOBS;
    for (uint32_t n = 1; parts->n_sets < SPEED_SETS; n = 2 * n < most ? 2 * n : most) {
        struct speed_set *set = &parts->sets[parts->n_sets];
        set->n = n;
        enum ps_status status = measure_set(probe, n, seconds, &set->seconds, err);
        if (status != PS_OK)
            return status;
        /* More shards do not take less time; a lucky round does not say so. */
        if (parts->n_sets > 0)
            set->seconds = fmax(set->seconds, set[-1].seconds);
        parts->n_sets++;
        if (n == most || 2 * set->seconds > 8 * seconds)
            break;
    }
    return PS_OK;
}

enum ps_status drive_probe(struct ps_model *model, double seconds, const volatile sig_atomic_t *cancel,
                           struct speed_parts *parts, struct ps_error *err)
{
    struct probe *probe = malloc(sizeof(*probe));
    if (!probe)
        return ps_error_set(err, PS_ERR_NOMEM, "drive probe: out of memory");
    bool shards = shard_map_n_shards(model->shards) > 0;
    parts->top_k = shards ? model->params.top_k : 0;
    parts->n_layers = shards ? model->n_moe_layers : 0;
    parts->n_sets = 0;
    enum ps_status status = probe_init(probe, model, cancel, err);
    if (status == PS_OK) {
        memset(probe->buffer, 1, probe->buffer_bytes); /* fresh memory would be part of what is measured */
        if (shards)
            status = measure_sets(probe, seconds / 2 / SPEED_SETS, parts, err);
    }
    if (status == PS_OK) {
        /* Where one shard takes long, one at a time gives the rate; of a trunk, two layers are in flight. */
        uint32_t n = !shards ? 2 : FULL_QUEUE * parts->sets[0].seconds > 2 * seconds ? 1 : FULL_QUEUE;
        status = measure_rate(probe, n, seconds / 2, &parts->drive_rate, err);
    }
    if (status == PS_OK && probe->n_read > 0)
        parts->shard_bytes = (double)probe->bytes / (double)probe->n_read;
    probe_free(probe);
    return status;
}

enum ps_status drive_probe_last(struct ps_model *model, double seconds, const volatile sig_atomic_t *cancel,
                                struct speed_parts *parts, struct ps_error *err)
{
    expert_cache_free(model->cache);
    model->cache = NULL;
    return drive_probe(model, seconds, cancel, parts, err);
}
