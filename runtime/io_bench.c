#include "runtime/io_bench.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/clock.h"
#include "runtime/machine.h"
#include "runtime/model.h"
#include "runtime/splitmix.h"
#include "storage/mapping.h"

enum {
    WAIT_MS = 50,            /* between two looks at the cancel flag */
    LEAST_MAPPING = 2 << 20, /* a huge page: slots lie in such, too */
};

struct source_file {
    const char *path; /* borrowed */
    uint64_t bytes;   /* whole units of IO_ALIGN */
};

/* One extent, or shard, being read. */
struct bench_job {
    struct io_job job;
    struct shard_location location; /* of its ranges */
    uint32_t n_reads;
    double submitted;
    struct io_bench *bench;
};

struct io_bench {
    struct source_file *files;
    uint32_t n_files;
    uint64_t bytes; /* of all files */
    uint64_t largest_file;
    const struct shard_map *shards; /* NULL: none */
    uint64_t shard_bytes;           /* memory that the largest takes */
    const volatile sig_atomic_t *cancel;
    uint8_t *buffer;
    uint64_t buffer_bytes;
    uint64_t random;
    pthread_mutex_t lock; /* taken before the reader's */
    pthread_cond_t landed;

    /* Of the cell being measured. */
    const struct io_cell *cell;
    struct io_reader *reader;
    struct bench_job *jobs;
    uint32_t n_jobs;
    uint64_t unit_bytes; /* buffer space of a job */
    uint64_t n_places;   /* such spaces; where jobs are more, some share one */
    double seconds;
    /* Under lock. */
    uint64_t next_place; /* in the buffer, in units */
    uint32_t next_file;  /* of the sequential pattern */
    uint64_t next_offset;
    uint32_t n_flying, n_fill;
    bool stop;
    struct bench_job *failed;
    double begun, start; /* start 0: the queue is being filled */
    struct io_sample *sample;
    struct latency_histogram *latency;
};

/* ---- where to read ---- */

static uint64_t random_below(struct io_bench *b, uint64_t n)
{
    return splitmix64(&b->random) % n;
}

/* The largest file holds an extent, so the loops end. */
static void choose_extent(struct io_bench *b, struct io_range *range)
{
    uint64_t length = b->cell->extent_bytes;
    if (b->cell->pattern == IO_RANDOM) {
        uint32_t file;
        do {
            uint64_t position = random_below(b, b->bytes);
            for (file = 0; position >= b->files[file].bytes; file++)
                position -= b->files[file].bytes;
        } while (b->files[file].bytes < length);
        uint64_t n_places = (b->files[file].bytes - length) / IO_ALIGN + 1;
        *range =
            (struct io_range){.file = file, .offset = random_below(b, n_places) * IO_ALIGN, .length = length};
        return;
    }
    while (b->next_offset + length > b->files[b->next_file].bytes) {
        b->next_file = (b->next_file + 1) % b->n_files;
        b->next_offset = 0;
    }
    *range = (struct io_range){.file = b->next_file, .offset = b->next_offset, .length = length};
    b->next_offset += length;
}

static void choose_shard(struct io_bench *b, struct shard_location *location)
{
    uint32_t shard = (uint32_t)random_below(b, shard_map_n_shards(b->shards));
    uint32_t layer = shard_map_shard_layer(b->shards, shard);
    shard_map_locate(b->shards, layer, shard - shard_map_layer(b->shards, layer)->first_shard, location);
}

static uint32_t count_reads(const struct shard_location *location, uint32_t block_bytes)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < location->n_ranges; i++) {
        const struct io_range *range = &location->ranges[i];
        n += (io_range_span(range->offset, range->length) + block_bytes - 1) / block_bytes;
    }
    return (uint32_t)n;
}

static void choose(struct io_bench *b, struct bench_job *mine)
{
    if (b->cell->extent_bytes > 0) {
        mine->location.n_ranges = 1;
        choose_extent(b, &mine->location.ranges[0]);
    } else {
        choose_shard(b, &mine->location);
    }
    mine->n_reads = count_reads(&mine->location, b->cell->block_bytes);
}

/* ---- reading: all of it under the lock ---- */

static void on_landed(struct io_job *job);

/* One of the job's own where there are no more places than jobs, so that no two write to the same one; else the next. */
static uint8_t *take_place(struct io_bench *b, const struct bench_job *mine)
{
    uint64_t place = (uint64_t)(mine - b->jobs) % b->n_places;
    if (b->n_places > b->n_jobs) {
        place = b->next_place;
        b->next_place = (place + 1) % b->n_places;
    }
    return b->buffer + place * b->unit_bytes;
}

static void submit(struct io_bench *b, struct bench_job *mine)
{
    choose(b, mine);
    mine->job = (struct io_job){.ranges = mine->location.ranges,
                                .n_ranges = mine->location.n_ranges,
                                .priority = IO_DEMAND,
                                .buffer = take_place(b, mine),
                                .done = on_landed,
                                .owner = mine};
    b->n_flying++;
    mine->submitted = clock_seconds();
    io_reader_submit(b->reader, &mine->job);
}

static void count(struct io_bench *b, const struct bench_job *mine, double now)
{
    if (b->start == 0) {
        if (++b->n_fill >= b->n_jobs || now - b->begun > b->seconds)
            b->start = now;
        return;
    }
    struct io_sample *sample = b->sample;
    sample->bytes += mine->job.bytes;
    sample->reads += mine->n_reads;
    sample->extents++;
    sample->seconds = now - b->start;
    latency_histogram_add(b->latency, (uint64_t)((now - mine->submitted) * 1e9));
    b->stop = b->stop || sample->seconds >= b->seconds;
}

/* Submits the next one itself: a thread that had to wake up for it would leave the drive idle. */
static void on_landed(struct io_job *job)
{
    struct bench_job *mine = job->owner;
    struct io_bench *b = mine->bench;
    double now = clock_seconds();
    pthread_mutex_lock(&b->lock);
    b->n_flying--;
    if (job->status == PS_OK && !b->stop) {
        count(b, mine, now);
    } else if (job->status == PS_ERR_IO) {
        b->stop = true;
        if (!b->failed)
            b->failed = mine;
    }
    if (!b->stop)
        submit(b, mine);
    else
        pthread_cond_signal(&b->landed);
    pthread_mutex_unlock(&b->lock);
}

static void wait_for_end(struct io_bench *b)
{
    while (b->n_flying > 0) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += WAIT_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_cond_timedwait(&b->landed, &b->lock, &until);
        b->stop = b->stop || *b->cancel;
        for (uint32_t i = 0; b->stop && i < b->n_jobs; i++)
            io_reader_cancel(b->reader, &b->jobs[i].job);
    }
}

static void run(struct io_bench *b)
{
    struct io_sample *sample = b->sample;
    uint64_t before = 0, after = 0;
    sample->drive_known = machine_drive_bytes_read(b->files[0].path, &before);
    b->begun = clock_seconds();
    pthread_mutex_lock(&b->lock);
    for (uint32_t i = 0; i < b->n_jobs; i++)
        submit(b, &b->jobs[i]);
    wait_for_end(b);
    pthread_mutex_unlock(&b->lock);
    sample->drive_seconds = clock_seconds() - b->begun;
    sample->drive_known = sample->drive_known && machine_drive_bytes_read(b->files[0].path, &after);
    sample->drive_bytes = after - before;
}

/* ---- a cell ---- */

static void drop_page_cache(const struct io_bench *b)
{
    for (uint32_t i = 0; i < b->n_files; i++) {
        int fd = open(b->files[i].path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue; /* the reader will say why */
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
}

/* Touched, as fresh memory would be part of what is measured. */
static bool reserve_buffer(struct io_bench *b)
{
    uint64_t used = b->cell->memory_bytes > b->unit_bytes ? b->cell->memory_bytes : b->unit_bytes;
    uint64_t wanted = used > LEAST_MAPPING ? used : LEAST_MAPPING;
    b->n_places = used / b->unit_bytes;
    if (b->buffer_bytes >= wanted)
        return true;
    mapping_free(b->buffer, b->buffer_bytes);
    b->buffer_bytes = wanted;
    b->buffer = mapping_new(b->buffer_bytes);
    if (b->buffer)
        memset(b->buffer, 1, b->buffer_bytes);
    else
        b->buffer_bytes = 0;
    return b->buffer;
}

static enum ps_status open_reader(struct io_bench *b, uint64_t limit_rate, struct ps_error *err)
{
    const struct io_cell *cell = b->cell;
    const char **paths = calloc(b->n_files, sizeof(*paths));
    if (!paths)
        return ps_error_set(err, PS_ERR_NOMEM, "bench io: out of memory");
    for (uint32_t i = 0; i < b->n_files; i++)
        paths[i] = b->files[i].path;
    struct io_reader_config config = {.backend = cell->backend,
                                      .direct = cell->direct,
                                      .queue_depth = cell->queue_depth,
                                      .split_bytes = cell->block_bytes,
                                      .limit_rate = limit_rate};
    enum ps_status status = io_reader_new(&b->reader, paths, b->n_files, &config, err);
    free(paths);
    if (status != PS_OK)
        return status;
    if (io_reader_queue_depth(b->reader) < cell->queue_depth)
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s: at most %u reads in flight",
                            io_reader_backend_name(b->reader), io_reader_queue_depth(b->reader));
    return PS_OK;
}

/* As many jobs as keep the queue full: one per read of the depth, or, where a job is several reads, one more than fill
 * it, whose first reads are issued while the others' last are in flight. */
static enum ps_status make_jobs(struct io_bench *b, struct ps_error *err)
{
    struct bench_job first = {.bench = b};
    choose(b, &first);
    b->next_file = 0;
    b->next_offset = 0;
    uint32_t depth = b->cell->queue_depth;
    b->n_jobs = first.n_reads == 1 ? depth : (depth + first.n_reads - 1) / first.n_reads + 1;
    b->jobs = calloc(b->n_jobs, sizeof(*b->jobs));
    if (!b->jobs || !reserve_buffer(b))
        return ps_error_set(err, PS_ERR_NOMEM, "bench io: out of memory for reads of %llu bytes",
                            (unsigned long long)b->unit_bytes);
    for (uint32_t i = 0; i < b->n_jobs; i++)
        b->jobs[i].bench = b;
    return PS_OK;
}

static enum ps_status outcome(struct io_bench *b, struct ps_error *err)
{
    if (b->failed)
        return io_reader_job_error(b->reader, &b->failed->job, err);
    if (*b->cancel)
        return ps_error_set(err, PS_ERR_CANCELLED, "bench io: interrupted");
    if (b->cell->direct && !io_reader_is_direct(b->reader))
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "the file system takes no direct reads");
    return PS_OK;
}

enum ps_status io_bench_measure(struct io_bench *b, const struct io_cell *cell, uint64_t limit_rate,
                                double seconds, struct io_sample *sample, struct latency_histogram *latency,
                                struct ps_error *err)
{
    *sample = (struct io_sample){0};
    b->cell = cell;
    b->sample = sample;
    b->latency = latency;
    b->seconds = seconds;
    b->unit_bytes = cell->extent_bytes > 0 ? cell->extent_bytes : b->shard_bytes;
    b->next_place = 0;
    b->n_flying = b->n_fill = 0;
    b->stop = false;
    b->failed = NULL;
    b->start = 0;
    if (!cell->direct)
        drop_page_cache(b);
    enum ps_status status = open_reader(b, limit_rate, err);
    if (status == PS_OK)
        status = make_jobs(b, err);
    if (status == PS_OK) {
        run(b);
        status = outcome(b, err);
    }
    io_reader_free(b->reader);
    b->reader = NULL;
    free(b->jobs);
    b->jobs = NULL;
    return status;
}

/* ---- files ---- */

static enum ps_status add_file(struct io_bench *b, const char *path, struct ps_error *err)
{
    struct stat info;
    if (stat(path, &info) < 0)
        return ps_error_set(err, PS_ERR_IO, "%s: %s", path, strerror(errno));
    struct source_file *file = &b->files[b->n_files++];
    *file = (struct source_file){path, (uint64_t)info.st_size / IO_ALIGN * IO_ALIGN};
    b->bytes += file->bytes;
    b->largest_file = file->bytes > b->largest_file ? file->bytes : b->largest_file;
    return PS_OK;
}

static struct io_bench *new_bench(uint32_t n_files, const volatile sig_atomic_t *cancel, struct ps_error *err)
{
    struct io_bench *b = calloc(1, sizeof(*b));
    struct source_file *files = calloc(n_files, sizeof(*files));
    if (!b || !files) {
        free(b);
        free(files);
        ps_error_set(err, PS_ERR_NOMEM, "bench io: out of memory");
        return NULL;
    }
    b->files = files;
    b->cancel = cancel;
    b->random = 1;
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->landed, NULL);
    return b;
}

static enum ps_status check_size(const struct io_bench *b, struct ps_error *err)
{
    if (b->largest_file > 0)
        return PS_OK;
    return ps_error_set(err, PS_ERR_ARGUMENT, "%s: less than %d bytes, nothing to measure", b->files[0].path,
                        IO_ALIGN);
}

enum ps_status io_bench_new(struct io_bench **out, const char *path, const volatile sig_atomic_t *cancel,
                            struct ps_error *err)
{
    *out = new_bench(1, cancel, err);
    if (!*out)
        return PS_ERR_NOMEM;
    enum ps_status status = add_file(*out, path, err);
    return status == PS_OK ? check_size(*out, err) : status;
}

enum ps_status io_bench_new_model(struct io_bench **out, const struct ps_model *model,
                                  const volatile sig_atomic_t *cancel, struct ps_error *err)
{
    uint32_t n = gguf_n_files(model->gguf);
    struct io_bench *b = *out = new_bench(n, cancel, err);
    if (!b)
        return PS_ERR_NOMEM;
    for (uint32_t i = 0; i < n; i++) {
        enum ps_status status = add_file(b, gguf_file_path(model->gguf, i), err);
        if (status != PS_OK)
            return status;
    }
    if (shard_map_n_shards(model->shards) > 0)
        b->shards = model->shards;
    for (uint32_t l = 0; b->shards && l < shard_map_n_layers(b->shards); l++) {
        const struct shard_layer *layer = shard_map_layer(b->shards, l);
        if (layer->n_experts > 0 && layer->slot_bytes > b->shard_bytes)
            b->shard_bytes = layer->slot_bytes;
    }
    return check_size(b, err);
}

void io_bench_free(struct io_bench *b)
{
    if (!b)
        return;
    mapping_free(b->buffer, b->buffer_bytes);
    pthread_cond_destroy(&b->landed);
    pthread_mutex_destroy(&b->lock);
    free(b->files);
    free(b);
}

uint64_t io_bench_largest_extent(const struct io_bench *b)
{
    return b->largest_file;
}

uint64_t io_bench_shard_bytes(const struct io_bench *b)
{
    return b->shard_bytes;
}
