/* Core of the async reader: job queues, splitting into reads, throttle, retries, statistics, callbacks. Executing
 * a single read is the backends' part (io_uring_backend.c, io_threads_backend.c).
 *
 * One lock guards all of it. It is held for bookkeeping and for handing reads to the kernel, never while waiting
 * for the drive and never during a callback. */
#include "storage/io_reader_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    DEFAULT_QUEUE_DEPTH = 8,
    DEFAULT_SPLIT_BYTES = 512 << 10,
    MAX_QUEUE_DEPTH = 1024,
    MAX_SPLIT_BYTES = 1 << 30, /* Linux transfers at most 0x7ffff000 bytes per read */
    NS_PER_MS = 1000000,
};

#define NS_PER_S UINT64_C(1000000000)

/* A limited reader that the drive or the scheduler delays may catch up on this much, no more. */
#define BUCKET_SLACK_NS (20 * (uint64_t)NS_PER_MS)

/* Failures that may pass. Between attempts the reader waits 1, 2, 4 ... 32 ms. Others are reported at once. */
static const struct retry_rule {
    int error;
    uint32_t attempts;
} RETRY_RULES[] = {
    {EINTR, 16},     /* a signal */
    {EAGAIN, 16},    /* the kernel is short of requests */
    {ENOMEM, 16},    /* or of memory */
    {ECANCELED, 16}, /* io_uring drops reads of a submitting thread that exits */
    {EIO, 4},        /* the kernel and the drive have retried already */
};

uint64_t io_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* ---- job lists ---- */

static void list_append(struct io_job_list *list, struct io_job *job)
{
    job->next = NULL;
    job->prev = list->tail;
    if (list->tail)
        list->tail->next = job;
    else
        list->head = job;
    list->tail = job;
}

static void list_remove(struct io_job_list *list, struct io_job *job)
{
    if (job->prev)
        job->prev->next = job->next;
    else
        list->head = job->next;
    if (job->next)
        job->next->prev = job->prev;
    else
        list->tail = job->prev;
}

static void queue_job(struct io_reader *reader, struct io_job *job)
{
    job->queued = true;
    list_append(&reader->queued[job->priority], job);
}

static void unqueue_job(struct io_reader *reader, struct io_job *job)
{
    job->queued = false;
    list_remove(&reader->queued[job->priority], job);
}

static void finish_job_if_complete(struct io_reader *reader, struct io_job *job)
{
    if (!job->queued && job->reads_in_flight == 0)
        list_append(&reader->finished, job);
}

/* The first failure is the one reported; what the job has not issued yet is pointless from here on. */
static void fail_job(struct io_reader *reader, struct io_job *job, int error, uint32_t file, uint64_t offset)
{
    if (job->queued)
        unqueue_job(reader, job);
    if (job->status == PS_ERR_IO)
        return;
    job->status = PS_ERR_IO;
    job->error = error;
    job->error_file = file;
    job->error_offset = offset;
}

/* ---- throttle ----
 *
 * bucket_ns runs along a drive of limit_rate that serves one read after the other: a read is issued when that
 * drive would have finished it, so that n reads take n transfer times however small n is. */

static uint64_t transfer_ns(const struct io_reader *reader, uint64_t bytes)
{
    return bytes * NS_PER_S / reader->limit_rate; /* bytes <= 2^30: no overflow */
}

/* An idle drive saves nothing up. */
static void bucket_resume(struct io_reader *reader)
{
    uint64_t now = io_now();
    if (reader->bucket_ns < now)
        reader->bucket_ns = now;
}

static bool bucket_take(struct io_reader *reader, uint64_t bytes, uint64_t *wake_at)
{
    uint64_t now = io_now();
    uint64_t due = reader->bucket_ns + transfer_ns(reader, bytes);
    if (now < due) {
        *wake_at = min_u64(*wake_at, due);
        return false;
    }
    reader->bucket_ns = now - due > BUCKET_SLACK_NS ? now - BUCKET_SLACK_NS : due;
    return true;
}

/* ---- reads ---- */

static struct io_read *acquire_read(struct io_reader *reader)
{
    struct io_read *read = reader->free_reads;
    reader->free_reads = read->next;
    if (reader->in_flight++ == 0)
        reader->busy_since = io_now();
    return read;
}

static void release_read(struct io_reader *reader, struct io_read *read)
{
    read->job = NULL;
    read->next = reader->free_reads;
    reader->free_reads = read;
    if (read->priority != IO_DEMAND) {
        reader->in_flight_ahead--;
        reader->in_flight_ahead_bytes -= read->length;
    }
    if (--reader->in_flight == 0)
        reader->busy_ns += io_now() - reader->busy_since;
}

/* The system-level state of a read's next attempt. */
static void prepare_attempt(const struct io_reader *reader, struct io_read *read)
{
    const struct io_file *file = &reader->files[read->file];
    read->fd = file->fd;
    read->direct = file->direct;
    read->resume = read->direct ? read->arrived - read->arrived % IO_ALIGN : read->arrived;
}

static uint64_t job_span(const struct io_job *job)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < job->n_ranges; i++)
        bytes += io_range_span(job->ranges[i].offset, job->ranges[i].length);
    return bytes;
}

/* Ranges are cut into reads of about the same size: a short last one would take a place in the queue for little. */
static uint64_t next_read_bytes(const struct io_reader *reader, const struct io_job *job)
{
    const struct io_range *range = &job->ranges[job->next_range];
    uint64_t left = io_range_span(range->offset, range->length) - job->next_offset;
    uint64_t n = (left + reader->split_bytes - 1) / reader->split_bytes;
    return io_range_span(0, (left + n - 1) / n);
}

/* The job whose read comes next, NULL when none may be issued now. Reads that nobody waits for get half of the
 * depth and no more bytes in flight than their job takes: a demand read then always finds the other half free, and at
 * most one shard in flight before it at the drive. */
static struct io_job *next_job(const struct io_reader *reader)
{
    if (reader->in_flight >= reader->queue_depth)
        return NULL;
    if (reader->queued[IO_DEMAND].head)
        return reader->queued[IO_DEMAND].head;
    struct io_job *job = reader->queued[IO_SPECULATIVE].head;
    if (!job)
        job = reader->queued[IO_BACKGROUND].head;
    uint32_t share = reader->queue_depth > 1 ? reader->queue_depth / 2 : 1;
    if (!job || reader->in_flight_ahead >= share)
        return NULL;
    uint64_t bytes = reader->in_flight_ahead_bytes + next_read_bytes(reader, job);
    return reader->in_flight_ahead == 0 || bytes <= job_span(job) ? job : NULL;
}

/* Cuts the next read off a queued job. */
static struct io_read *cut_read(struct io_reader *reader, struct io_job *job, uint64_t bytes)
{
    const struct io_range *range = &job->ranges[job->next_range];
    uint64_t head = range->offset % IO_ALIGN;
    struct io_read *read = acquire_read(reader);
    *read = (struct io_read){
        .job = job,
        .file = range->file,
        .priority = job->priority,
        .offset = range->offset - head + job->next_offset,
        .length = bytes,
        .wanted = min_u64(bytes, head + range->length - job->next_offset),
        .buffer = job->buffer + range->at + job->next_offset,
    };
    job->reads_in_flight++;
    if (read->priority != IO_DEMAND) {
        reader->in_flight_ahead++;
        reader->in_flight_ahead_bytes += bytes;
    }
    job->next_offset += bytes;
    if (job->next_offset == io_range_span(range->offset, range->length)) {
        job->next_offset = 0;
        if (++job->next_range == job->n_ranges)
            unqueue_job(reader, job);
    }
    return read;
}

static struct io_read *take_due_retry(struct io_reader *reader, uint64_t *wake_at)
{
    if (!reader->retries)
        return NULL;
    uint64_t now = io_now();
    for (struct io_read **link = &reader->retries; *link; link = &(*link)->next) {
        struct io_read *read = *link;
        if (read->due <= now) {
            *link = read->next;
            return read;
        }
        *wake_at = min_u64(*wake_at, read->due);
    }
    return NULL;
}

struct io_read *io_reader_next(struct io_reader *reader, uint64_t *wake_at)
{
    *wake_at = IO_NEVER;
    struct io_read *read = take_due_retry(reader, wake_at);
    if (!read) {
        struct io_job *job = next_job(reader);
        if (!job)
            return NULL;
        uint64_t bytes = next_read_bytes(reader, job);
        if (reader->limit_rate && !bucket_take(reader, bytes, wake_at))
            return NULL;
        read = cut_read(reader, job, bytes);
    }
    prepare_attempt(reader, read);
    return read;
}

void io_read_drop_cached(const struct io_read *read)
{
    if (!read->direct)
        posix_fadvise(read->fd, (off_t)read->offset, (off_t)read->length, POSIX_FADV_DONTNEED);
}

/* ---- landing ---- */

static void retry_read(struct io_reader *reader, struct io_read *read, uint64_t delay_ns)
{
    reader->stats.retries++;
    read->due = delay_ns ? io_now() + delay_ns : 0;
    read->next = reader->retries;
    reader->retries = read;
}

/* Reads of a job are issued in order and land in any: what precedes all that are under way is in memory. */
static void report_landed(const struct io_reader *reader, struct io_job *job)
{
    const struct io_range *range = &job->ranges[0];
    uint64_t start = range->offset - range->offset % IO_ALIGN;
    uint64_t bytes = job->next_range > 0 ? io_range_span(range->offset, range->length) : job->next_offset;
    for (uint32_t i = 0; i < reader->n_reads; i++) {
        const struct io_read *read = &reader->reads[i];
        if (read->job == job)
            bytes = min_u64(bytes, read->offset - start);
    }
    if (bytes > job->landed_bytes) {
        job->landed_bytes = bytes;
        job->landed(job, bytes);
    }
}

static void complete_read(struct io_reader *reader, struct io_read *read, bool ok, int error)
{
    struct io_job *job = read->job;
    if (ok) {
        uint64_t *bytes =
            read->priority == IO_DEMAND ? &reader->stats.bytes_demand : &reader->stats.bytes_speculative;
        *bytes += read->length;
        job->bytes += read->length;
    } else {
        fail_job(reader, job, error, read->file, read->offset + read->arrived);
    }
    job->reads_in_flight--;
    release_read(reader, read);
    if (job->landed && job->status == PS_OK)
        report_landed(reader, job);
    finish_job_if_complete(reader, job);
}

/* The file takes no O_DIRECT reads after all. */
static void make_buffered(struct io_reader *reader, struct io_file *file)
{
    int flags = fcntl(file->fd, F_GETFL);
    if (flags < 0 || fcntl(file->fd, F_SETFL, flags & ~O_DIRECT) < 0)
        return;
    file->direct = false;
    atomic_store(&reader->direct, false);
    posix_fadvise(file->fd, 0, 0, POSIX_FADV_RANDOM);
}

static void read_failed(struct io_reader *reader, struct io_read *read, int error)
{
    if (error == EINVAL && read->direct) {
        struct io_file *file = &reader->files[read->file];
        if (file->direct)
            make_buffered(reader, file);
        if (!file->direct) {
            retry_read(reader, read, 0);
            return;
        }
    }
    for (size_t i = 0; i < sizeof(RETRY_RULES) / sizeof(RETRY_RULES[0]); i++) {
        if (RETRY_RULES[i].error == error && read->attempts < RETRY_RULES[i].attempts) {
            uint32_t doublings = read->attempts < 5 ? read->attempts : 5;
            read->attempts++;
            retry_read(reader, read, (uint64_t)NS_PER_MS << doublings);
            return;
        }
    }
    complete_read(reader, read, false, error);
}

void io_reader_landed(struct io_reader *reader, struct io_read *read, int64_t result)
{
    if (reader->filter)
        result = reader->filter(reader->filter_context, read, result);
    reader->stats.reads++;
    if (result < 0) {
        read_failed(reader, read, (int)-result);
        return;
    }
    uint64_t end = min_u64(read->resume + (uint64_t)result, read->length);
    bool progress = end > read->arrived;
    if (progress) {
        read->arrived = end;
        read->attempts = 0;
    }
    if (read->arrived >= read->wanted)
        complete_read(reader, read, true, 0);
    else if (progress)
        retry_read(reader, read, 0);
    else
        complete_read(reader, read, false, 0); /* end of file */
}

void io_reader_deliver(struct io_reader *reader)
{
    if (reader->delivering)
        return;
    reader->delivering = true;
    while (reader->finished.head) {
        struct io_job *job = reader->finished.head;
        list_remove(&reader->finished, job);
        pthread_mutex_unlock(&reader->lock);
        job->done(job);
        pthread_mutex_lock(&reader->lock);
    }
    reader->delivering = false;
}

/* ---- opening and closing ---- */

static enum ps_status open_error(struct ps_error *err, const char *path, int error)
{
    char text[128];
    return ps_error_set(err, PS_ERR_IO, "%s: cannot open: %s", path, strerror_r(error, text, sizeof(text)));
}

static enum ps_status file_open(struct io_file *file, const char *path, bool direct, struct ps_error *err)
{
    struct stat info;
    if (stat(path, &info) < 0) /* before open(), which would block on a pipe */
        return open_error(err, path, errno);
    if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode))
        return ps_error_set(err, PS_ERR_IO, "%s: cannot read: %s", path,
                            S_ISDIR(info.st_mode) ? "is a directory" : "not a regular file");
    file->path = strdup(path);
    if (!file->path)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: out of memory", path);
    if (direct)
        file->fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    file->direct = file->fd >= 0;
    if (file->fd < 0)
        file->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (file->fd < 0)
        return open_error(err, path, errno);
    if (!file->direct) /* no readahead: it would fetch bytes that nobody asked for */
        posix_fadvise(file->fd, 0, 0, POSIX_FADV_RANDOM);
    return PS_OK;
}

static enum ps_status open_files(struct io_reader *reader, const char *const *paths, uint32_t n_paths,
                                 bool direct, struct ps_error *err)
{
    reader->files = calloc(n_paths, sizeof(*reader->files));
    if (!reader->files)
        return ps_error_set(err, PS_ERR_NOMEM, "reader: out of memory for %u files", n_paths);
    reader->n_files = n_paths;
    for (uint32_t i = 0; i < n_paths; i++)
        reader->files[i].fd = -1;
    bool all_direct = true;
    for (uint32_t i = 0; i < n_paths; i++) {
        enum ps_status status = file_open(&reader->files[i], paths[i], direct, err);
        if (status != PS_OK)
            return status;
        all_direct = all_direct && reader->files[i].direct;
    }
    atomic_store(&reader->direct, all_direct);
    return PS_OK;
}

static enum ps_status allocate_reads(struct io_reader *reader, struct ps_error *err)
{
    reader->reads = calloc(reader->queue_depth, sizeof(*reader->reads));
    if (!reader->reads)
        return ps_error_set(err, PS_ERR_NOMEM, "reader: out of memory for %u reads", reader->queue_depth);
    reader->n_reads = reader->queue_depth;
    for (uint32_t i = 0; i < reader->queue_depth; i++) {
        reader->reads[i].next = reader->free_reads;
        reader->free_reads = &reader->reads[i];
    }
    return PS_OK;
}

static enum ps_status start_backend(struct io_reader *reader, enum io_backend backend, struct ps_error *err)
{
    if (backend != IO_BACKEND_THREADS) {
#if PENSTOCK_HAVE_URING
        reader->ops = &io_uring_backend;
        enum ps_status status = reader->ops->start(reader, err);
        if (status == PS_OK || backend == IO_BACKEND_URING)
            return status;
#else
        if (backend == IO_BACKEND_URING)
            return ps_error_set(err, PS_ERR_UNSUPPORTED, "io_uring: not built in: use the threads backend");
#endif
    }
    reader->ops = &io_threads_backend;
    return reader->ops->start(reader, err);
}

static enum ps_status apply_config(struct io_reader *reader, const struct io_reader_config *config,
                                   struct ps_error *err)
{
    if (config->queue_depth > MAX_QUEUE_DEPTH)
        return ps_error_set(err, PS_ERR_ARGUMENT, "queue depth %u: more than %d", config->queue_depth,
                            MAX_QUEUE_DEPTH);
    uint32_t split = config->split_bytes ? config->split_bytes : DEFAULT_SPLIT_BYTES;
    if (split < IO_ALIGN || split > MAX_SPLIT_BYTES)
        return ps_error_set(err, PS_ERR_ARGUMENT, "read size %u: not within %d..%d bytes", split, IO_ALIGN,
                            MAX_SPLIT_BYTES);
    uint32_t n_drives = config->n_drives > 1 ? config->n_drives : 1;
    if (n_drives > MAX_QUEUE_DEPTH / DEFAULT_QUEUE_DEPTH)
        n_drives = MAX_QUEUE_DEPTH / DEFAULT_QUEUE_DEPTH;
    reader->queue_depth = config->queue_depth ? config->queue_depth : n_drives * DEFAULT_QUEUE_DEPTH;
    reader->split_bytes = split - split % IO_ALIGN;
    reader->limit_rate = config->limit_rate;
    return PS_OK;
}

static void reader_destroy(struct io_reader *reader)
{
    for (uint32_t i = 0; i < reader->n_files; i++) {
        if (reader->files[i].fd >= 0)
            close(reader->files[i].fd);
        free(reader->files[i].path);
    }
    free(reader->files);
    free(reader->reads);
    pthread_cond_destroy(&reader->read_done);
    pthread_mutex_destroy(&reader->lock);
    free(reader);
}

enum ps_status io_reader_new(struct io_reader **out, const char *const *paths, uint32_t n_paths,
                             const struct io_reader_config *config, struct ps_error *err)
{
    *out = NULL;
    if (n_paths == 0)
        return ps_error_set(err, PS_ERR_ARGUMENT, "reader: no files to read");
    struct io_reader *reader = calloc(1, sizeof(*reader));
    if (!reader)
        return ps_error_set(err, PS_ERR_NOMEM, "reader: out of memory");
    pthread_mutex_init(&reader->lock, NULL);
    pthread_cond_init(&reader->read_done, NULL);
    enum ps_status status = apply_config(reader, config, err);
    if (status == PS_OK)
        status = open_files(reader, paths, n_paths, config->direct, err);
    if (status == PS_OK)
        status = allocate_reads(reader, err);
    if (status == PS_OK)
        status = start_backend(reader, config->backend, err);
    if (status != PS_OK) {
        reader_destroy(reader);
        return status;
    }
    *out = reader;
    return PS_OK;
}

void io_reader_free(struct io_reader *reader)
{
    if (!reader)
        return;
    pthread_mutex_lock(&reader->lock);
    reader->stop = true;
    reader->ops->kick(reader, 0);
    pthread_mutex_unlock(&reader->lock);
    reader->ops->stop(reader);
    reader_destroy(reader);
}

/* ---- jobs ---- */

static bool range_is_valid(const struct io_reader *reader, const struct io_range *range)
{
    uint64_t end;
    return range->file < reader->n_files && range->length > 0 && range->at % IO_ALIGN == 0 &&
           !__builtin_add_overflow(range->offset, range->length, &end) && end <= INT64_MAX - IO_ALIGN;
}

/* The first malformed range, n_ranges when all are well-formed; n_reads: how many reads the job makes. */
static uint32_t check_ranges(const struct io_reader *reader, const struct io_job *job, uint64_t *n_reads)
{
    *n_reads = 0;
    for (uint32_t i = 0; i < job->n_ranges; i++) {
        const struct io_range *range = &job->ranges[i];
        if (!range_is_valid(reader, range) || (uintptr_t)job->buffer % IO_ALIGN)
            return i;
        *n_reads +=
            (io_range_span(range->offset, range->length) + reader->split_bytes - 1) / reader->split_bytes;
    }
    return job->n_ranges;
}

void io_reader_submit(struct io_reader *reader, struct io_job *job)
{
    uint64_t n_reads;
    uint32_t bad = check_ranges(reader, job, &n_reads);
    pthread_mutex_lock(
        &reader->lock); /* another thread may be asking to withdraw a job that is submitted again */
    job->status = PS_OK;
    job->error = 0;
    job->bytes = 0;
    job->next_range = 0;
    job->next_offset = 0;
    job->reads_in_flight = 0;
    job->queued = false;
    job->landed_bytes = 0;
    if (bad < job->n_ranges) {
        n_reads = 0;
        fail_job(reader, job, EINVAL, job->ranges[bad].file, job->ranges[bad].offset);
    } else if (n_reads > 0) {
        if (reader->limit_rate && !reader->queued[IO_DEMAND].head && !reader->queued[IO_SPECULATIVE].head &&
            !reader->queued[IO_BACKGROUND].head)
            bucket_resume(reader);
        queue_job(reader, job);
    }
    finish_job_if_complete(reader, job);
    reader->ops->kick(reader, n_reads);
    pthread_mutex_unlock(&reader->lock);
}

void io_reader_promote(struct io_reader *reader, struct io_job *job)
{
    pthread_mutex_lock(&reader->lock);
    if (job->queued && job->priority != IO_DEMAND) {
        unqueue_job(reader, job);
        job->priority = IO_DEMAND;
        queue_job(reader, job);
        reader->ops->kick(reader, reader->queue_depth);
    }
    pthread_mutex_unlock(&reader->lock);
}

void io_reader_cancel(struct io_reader *reader, struct io_job *job)
{
    pthread_mutex_lock(&reader->lock);
    if (job->queued) {
        unqueue_job(reader, job);
        job->status = PS_ERR_CANCELLED;
        finish_job_if_complete(reader, job);
        reader->ops->kick(reader, 0);
    }
    pthread_mutex_unlock(&reader->lock);
}

bool io_reader_withdraw(struct io_reader *reader, struct io_job *job)
{
    pthread_mutex_lock(&reader->lock);
    bool untouched =
        job->queued && job->next_range == 0 && job->next_offset == 0 && job->reads_in_flight == 0;
    if (untouched)
        unqueue_job(reader, job);
    pthread_mutex_unlock(&reader->lock);
    return untouched;
}

struct waiter {
    struct io_reader *reader;
    bool done;
};

static void wake_waiter(struct io_job *job)
{
    struct waiter *waiter = job->owner;
    struct io_reader *reader = waiter->reader;
    pthread_mutex_lock(&reader->lock);
    waiter->done = true;
    pthread_cond_broadcast(&reader->read_done);
    pthread_mutex_unlock(&reader->lock);
}

enum ps_status io_reader_read(struct io_reader *reader, const struct io_range *ranges, uint32_t n_ranges,
                              uint8_t *buffer, struct ps_error *err)
{
    struct waiter waiter = {.reader = reader};
    struct io_job job = {
        .ranges = ranges,
        .n_ranges = n_ranges,
        .priority = IO_DEMAND,
        .buffer = buffer,
        .done = wake_waiter,
        .owner = &waiter,
    };
    io_reader_submit(reader, &job);
    pthread_mutex_lock(&reader->lock);
    while (!waiter.done)
        pthread_cond_wait(&reader->read_done, &reader->lock);
    pthread_mutex_unlock(&reader->lock);
    return io_reader_job_error(reader, &job, err);
}

enum ps_status io_reader_job_error(const struct io_reader *reader, const struct io_job *job,
                                   struct ps_error *err)
{
    if (job->status == PS_OK)
        return PS_OK;
    if (job->status == PS_ERR_CANCELLED)
        return ps_error_set(err, PS_ERR_CANCELLED, "read cancelled");
    char text[128];
    const char *reason =
        job->error ? strerror_r(job->error, text, sizeof(text)) : "unexpected end of file: truncated?";
    const char *path =
        job->error_file < reader->n_files ? reader->files[job->error_file].path : "unknown file";
    return ps_error_set(err, job->status, "%s: read failed at offset %llu: %s", path,
                        (unsigned long long)job->error_offset, reason);
}

/* ---- what is in use ---- */

const char *io_reader_file_path(const struct io_reader *reader, uint32_t file)
{
    return reader->files[file].path;
}

const char *io_reader_backend_name(const struct io_reader *reader)
{
    return reader->ops->name;
}

bool io_reader_is_direct(const struct io_reader *reader)
{
    return atomic_load(&reader->direct);
}

uint32_t io_reader_queue_depth(const struct io_reader *reader)
{
    return reader->queue_depth;
}

uint64_t io_reader_memory(const struct io_reader *reader)
{
    uint64_t bytes = sizeof(*reader) + reader->queue_depth * sizeof(*reader->reads);
    for (uint32_t i = 0; i < reader->n_files; i++)
        bytes += sizeof(*reader->files) + strlen(reader->files[i].path) + 1;
    return bytes + reader->ops->memory(reader);
}

void io_reader_get_stats(struct io_reader *reader, struct io_reader_stats *stats)
{
    pthread_mutex_lock(&reader->lock);
    *stats = reader->stats;
    uint64_t busy = reader->busy_ns + (reader->in_flight ? io_now() - reader->busy_since : 0);
    stats->busy_s = (double)busy / (double)NS_PER_S;
    pthread_mutex_unlock(&reader->lock);
}
