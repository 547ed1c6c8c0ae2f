/* The async reader's promises, for both backends, with O_DIRECT and buffered. Faults enter through the reader's
 * filter, which sees every system read's outcome. */
#include <fcntl.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <errno.h>

#include <cmocka.h>

#include "storage/io_reader_internal.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum {
    SPLIT = 64 << 10,
    FILE_BYTES = (5 << 20) + 1234, /* ends inside an aligned unit */
    N_FILES = 2,
    POISON = 0xee,
};

struct mode {
    const char *name;
    enum io_backend backend;
    bool direct;
};

static const struct mode MODES[] = {
    {"uring, direct", IO_BACKEND_URING, true},
    {"uring, buffered", IO_BACKEND_URING, false},
    {"threads, direct", IO_BACKEND_THREADS, true},
    {"threads, buffered", IO_BACKEND_THREADS, false},
};

struct fixture {
    const struct mode *mode;
    char paths[N_FILES][64];
    struct io_reader *reader;
    struct ps_error err;
};

/* ---- file content: a function of file and position ---- */

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint8_t byte_at(uint32_t file, uint64_t offset)
{
    return (uint8_t)(mix(((uint64_t)file << 56) + offset / 8 + 1) >> (offset % 8 * 8));
}

static uint64_t next_random(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    return mix(*state);
}

static void write_file(const char *path, uint32_t file)
{
    uint8_t *data = malloc(FILE_BYTES);
    assert_non_null(data);
    for (uint64_t i = 0; i < FILE_BYTES; i++)
        data[i] = byte_at(file, i);
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, FILE_BYTES), FILE_BYTES);
    assert_int_equal(fsync(fd), 0);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    free(data);
}

static bool range_holds_file_bytes(const uint8_t *buffer, const struct io_range *range)
{
    const uint8_t *bytes = buffer + range->at + range->offset % IO_ALIGN;
    for (uint64_t i = 0; i < range->length; i++) {
        if (bytes[i] != byte_at(range->file, range->offset + i))
            return false;
    }
    return true;
}

/* ---- fixture ---- */

static int make_files(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    assert_non_null(fixture);
    fixture->mode = *state;
    for (uint32_t i = 0; i < N_FILES; i++) {
        snprintf(fixture->paths[i], sizeof(fixture->paths[i]), "/var/tmp/penstock-io-reader-XXXXXX");
        int fd = mkstemp(fixture->paths[i]);
        assert_true(fd >= 0);
        close(fd);
        write_file(fixture->paths[i], i);
    }
    *state = fixture;
    return 0;
}

static int remove_files(void **state)
{
    struct fixture *fixture = *state;
    io_reader_free(fixture->reader);
    for (uint32_t i = 0; i < N_FILES; i++)
        unlink(fixture->paths[i]);
    free(fixture);
    return 0;
}

/* Opens the fixture's reader in its mode, or skips the test where there is no io_uring. */
static struct io_reader *open_reader(struct fixture *fixture, struct io_reader_config config)
{
    const char *paths[N_FILES] = {fixture->paths[0], fixture->paths[1]};
    config.backend = fixture->mode->backend;
    config.direct = fixture->mode->direct;
    if (config.split_bytes == 0)
        config.split_bytes = SPLIT;
    enum ps_status status = io_reader_new(&fixture->reader, paths, N_FILES, &config, &fixture->err);
    if (status == PS_ERR_UNSUPPORTED && config.backend == IO_BACKEND_URING) {
        print_message("skipped: %s\n", fixture->err.message);
        skip();
    }
    assert_int_equal(status, PS_OK);
    return fixture->reader;
}

static uint8_t *new_buffer(uint64_t bytes)
{
    uint8_t *buffer = aligned_alloc(IO_ALIGN, bytes);
    assert_non_null(buffer);
    memset(buffer, POISON, bytes);
    return buffer;
}

/* A job of one range with its own buffer, which counts its callbacks. */
struct probe {
    struct io_range range;
    struct io_job job;
    uint32_t times_done;
    sem_t *landed;
};

static void probe_done(struct io_job *job)
{
    struct probe *probe = job->owner;
    probe->times_done++;
    sem_post(probe->landed);
}

static void probe_init(struct probe *probe, sem_t *landed, uint64_t offset, uint64_t length,
                       enum io_priority priority)
{
    *probe = (struct probe){.range = {.offset = offset, .length = length}, .landed = landed};
    probe->job = (struct io_job){
        .ranges = &probe->range,
        .n_ranges = 1,
        .priority = priority,
        .buffer = new_buffer(io_range_span(offset, length)),
        .done = probe_done,
        .owner = probe,
    };
}

static void probe_deinit(struct probe *probe)
{
    free(probe->job.buffer);
}

static void wait_for(sem_t *landed, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        while (sem_wait(landed) < 0)
            assert_int_equal(errno, EINTR);
    }
}

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void set_filter(struct io_reader *reader,
                       int64_t (*filter)(void *context, const struct io_read *read, int64_t result),
                       void *context)
{
    pthread_mutex_lock(&reader->lock);
    reader->filter = filter;
    reader->filter_context = context;
    pthread_mutex_unlock(&reader->lock);
}

/* ---- content ---- */

static void random_ranges_hold_the_files_bytes(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    uint64_t seed = 1;
    for (uint32_t i = 0; i < 60; i++) {
        uint64_t most = i % 3 == 0 ? 10 : i % 3 == 1 ? 10000 : 5 * SPLIT;
        struct io_range range = {.file = i % N_FILES, .length = 1 + next_random(&seed) % most};
        range.offset =
            i % 5 == 0 ? FILE_BYTES - range.length : next_random(&seed) % (FILE_BYTES - range.length);
        uint8_t *buffer = new_buffer(io_range_span(range.offset, range.length));
        assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
        assert_true(range_holds_file_bytes(buffer, &range));
        free(buffer);
    }
}

static void whole_unaligned_file_is_read(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    struct io_range range = {.file = 1, .length = FILE_BYTES};
    uint8_t *buffer = new_buffer(io_range_span(0, FILE_BYTES));
    assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
    assert_true(range_holds_file_bytes(buffer, &range));
    free(buffer);
}

static void ranges_of_a_job_land_at_their_places(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    struct io_range ranges[7];
    uint64_t seed = 2, at = 0;
    for (uint32_t i = 0; i < COUNT(ranges); i++) {
        ranges[i] = (struct io_range){i % N_FILES, next_random(&seed) % (4 << 20),
                                      1 + next_random(&seed) % 300000, at};
        at += io_range_span(ranges[i].offset, ranges[i].length);
    }
    uint8_t *buffer = new_buffer(at + IO_ALIGN);
    assert_int_equal(io_reader_read(reader, ranges, COUNT(ranges), buffer, &fixture->err), PS_OK);
    for (uint32_t i = 0; i < COUNT(ranges); i++)
        assert_true(range_holds_file_bytes(buffer, &ranges[i]));
    for (uint32_t i = 0; i < IO_ALIGN; i++)
        assert_int_equal(buffer[at + i], POISON); /* nothing past the spans is touched */
    free(buffer);
}

/* ---- threads and callbacks ---- */

enum { N_SUBMITTERS = 4, JOBS_PER_SUBMITTER = 40 };

struct crowd {
    struct io_reader *reader;
    atomic_int callbacks_running;
    atomic_int overlaps;
    atomic_int wrong;
};

struct crowd_job {
    struct io_job job;
    struct io_range ranges[3];
    struct crowd *crowd;
    sem_t landed;
};

static void crowd_done(struct io_job *job)
{
    struct crowd_job *self = job->owner;
    if (atomic_fetch_add(&self->crowd->callbacks_running, 1) != 0)
        atomic_fetch_add(&self->crowd->overlaps, 1);
    atomic_fetch_sub(&self->crowd->callbacks_running, 1);
    sem_post(&self->landed);
}

static void *submitter(void *arg)
{
    struct crowd *crowd = arg;
    uint64_t seed = (uintptr_t)&seed;
    struct crowd_job *self = calloc(1, sizeof(*self));
    uint8_t *buffer = aligned_alloc(IO_ALIGN, 3 * (4 * SPLIT + IO_ALIGN));
    if (!self || !buffer)
        abort();
    sem_init(&self->landed, 0, 0);
    self->crowd = crowd;
    for (uint32_t i = 0; i < JOBS_PER_SUBMITTER; i++) {
        uint64_t at = 0;
        for (uint32_t k = 0; k < 3; k++) {
            uint64_t length = 1 + next_random(&seed) % (3 * SPLIT);
            uint64_t offset = next_random(&seed) % (FILE_BYTES - length);
            self->ranges[k] = (struct io_range){k % N_FILES, offset, length, at};
            at += io_range_span(offset, length);
        }
        memset(buffer, POISON, at);
        self->job = (struct io_job){.ranges = self->ranges,
                                    .n_ranges = 3,
                                    .priority = i % 2 ? IO_SPECULATIVE : IO_DEMAND,
                                    .buffer = buffer,
                                    .done = crowd_done,
                                    .owner = self};
        io_reader_submit(crowd->reader, &self->job);
        if (i % 4 == 1)
            io_reader_promote(crowd->reader, &self->job);
        while (sem_wait(&self->landed) < 0)
            ;
        for (uint32_t k = 0; k < 3; k++) {
            if (self->job.status != PS_OK || !range_holds_file_bytes(buffer, &self->ranges[k]))
                atomic_fetch_add(&crowd->wrong, 1);
        }
    }
    sem_destroy(&self->landed);
    free(buffer);
    free(self);
    return NULL;
}

static void threads_submit_at_once_and_callbacks_run_one_at_a_time(void **state)
{
    struct fixture *fixture = *state;
    struct crowd crowd = {.reader = open_reader(fixture, (struct io_reader_config){0})};
    pthread_t threads[N_SUBMITTERS];
    for (uint32_t i = 0; i < N_SUBMITTERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, submitter, &crowd), 0);
    for (uint32_t i = 0; i < N_SUBMITTERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&crowd.wrong), 0);
    assert_int_equal(atomic_load(&crowd.overlaps), 0);
}

struct parting {
    struct io_reader *reader;
    struct probe probe;
};

static void *submit_probe_and_exit(void *arg)
{
    struct parting *parting = arg;
    io_reader_submit(parting->reader, &parting->probe.job);
    return NULL;
}

static void job_outlives_the_thread_that_submitted_it(void **state)
{
    struct fixture *fixture = *state;
    struct parting parting = {.reader = open_reader(fixture, (struct io_reader_config){0})};
    sem_t landed;
    sem_init(&landed, 0, 0);
    for (uint32_t i = 0; i < 20; i++) {
        probe_init(&parting.probe, &landed, 777 + i, 12 * SPLIT, IO_DEMAND);
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, submit_probe_and_exit, &parting), 0);
        pthread_join(thread, NULL);
        wait_for(&landed, 1);
        assert_int_equal(parting.probe.job.status, PS_OK);
        assert_true(range_holds_file_bytes(parting.probe.job.buffer, &parting.probe.range));
        probe_deinit(&parting.probe);
    }
    sem_destroy(&landed);
}

struct chain {
    struct io_reader *reader;
    struct io_range range;
    uint32_t left;
    sem_t landed;
};

static void chain_done(struct io_job *job)
{
    struct chain *chain = job->owner;
    if (job->status != PS_OK || chain->left-- == 0) {
        sem_post(&chain->landed);
        return;
    }
    chain->range.offset += 5000;
    io_reader_submit(chain->reader, job);
}

static void callback_may_submit(void **state)
{
    struct fixture *fixture = *state;
    struct chain chain = {.reader = open_reader(fixture, (struct io_reader_config){0}),
                          .range = {.file = 1, .length = 30000},
                          .left = 50};
    sem_init(&chain.landed, 0, 0);
    struct io_job job = {.ranges = &chain.range,
                         .n_ranges = 1,
                         .buffer = new_buffer(40960),
                         .done = chain_done,
                         .owner = &chain};
    io_reader_submit(chain.reader, &job);
    wait_for(&chain.landed, 1);
    assert_int_equal(job.status, PS_OK);
    assert_int_equal(chain.range.offset, 50 * 5000);
    assert_true(range_holds_file_bytes(job.buffer, &chain.range));
    free(job.buffer);
    sem_destroy(&chain.landed);
}

/* ---- order ----
 *
 * A job's callback submits the jobs under test, so that none of their reads can land in between; the filter
 * notes the order in which the reads land at queue depth 1. */

enum { MAX_LOG = 64 };

struct log {
    const struct io_job *jobs[MAX_LOG];
    uint32_t n;
};

static int64_t log_read(void *context, const struct io_read *read, int64_t result)
{
    struct log *log = context;
    if (log->n < MAX_LOG)
        log->jobs[log->n++] = read->job;
    return result;
}

static uint32_t first_read_of(const struct log *log, const struct probe *probe)
{
    uint32_t i = 0;
    while (i < log->n && log->jobs[i] != &probe->job)
        i++;
    return i;
}

static uint32_t last_read_of(const struct log *log, const struct probe *probe)
{
    uint32_t i = log->n;
    while (i > 0 && log->jobs[i - 1] != &probe->job)
        i--;
    return i - 1;
}

static uint32_t reads_of(const struct log *log, const struct probe *probe)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < log->n; i++)
        n += log->jobs[i] == &probe->job;
    return n;
}

struct scene {
    struct io_reader *reader;
    struct probe opener, a, b, c;
    struct log log;
    sem_t landed;
    void (*act)(struct scene *scene);
};

static void opener_done(struct io_job *job)
{
    struct scene *scene = job->owner;
    scene->act(scene);
    sem_post(&scene->landed);
}

/* Plays act with queue depth 1 and waits for n_jobs of a, b, c: 5 reads each. */
static void play(struct fixture *fixture, struct scene *scene, void (*act)(struct scene *scene),
                 uint32_t n_jobs)
{
    scene->reader = open_reader(fixture, (struct io_reader_config){.queue_depth = 1});
    scene->act = act;
    sem_init(&scene->landed, 0, 0);
    probe_init(&scene->opener, &scene->landed, 0, 100, IO_DEMAND);
    scene->opener.job.done = opener_done;
    scene->opener.job.owner = scene;
    probe_init(&scene->a, &scene->landed, 100, 5 * SPLIT - 200, IO_SPECULATIVE);
    probe_init(&scene->b, &scene->landed, 20 * SPLIT, 5 * SPLIT, IO_SPECULATIVE);
    probe_init(&scene->c, &scene->landed, 40 * SPLIT, 5 * SPLIT, IO_DEMAND);
    set_filter(scene->reader, log_read, &scene->log);
    io_reader_submit(scene->reader, &scene->opener.job);
    wait_for(&scene->landed, 1 + n_jobs);
}

static void scene_deinit(struct scene *scene)
{
    probe_deinit(&scene->opener);
    probe_deinit(&scene->a);
    probe_deinit(&scene->b);
    probe_deinit(&scene->c);
    sem_destroy(&scene->landed);
}

static void submit_speculative_then_demand(struct scene *scene)
{
    io_reader_submit(scene->reader, &scene->a.job);
    io_reader_submit(scene->reader, &scene->b.job);
    io_reader_submit(scene->reader, &scene->c.job);
}

static void demand_reads_go_before_speculative_ones(void **state)
{
    struct scene scene = {0};
    play(*state, &scene, submit_speculative_then_demand, 3);
    assert_int_equal(reads_of(&scene.log, &scene.a), 5);
    assert_int_equal(reads_of(&scene.log, &scene.c), 5);
    assert_true(first_read_of(&scene.log, &scene.c) <= 2); /* opener, at most one read already issued */
    assert_true(last_read_of(&scene.log, &scene.c) <= 6);
    assert_true(last_read_of(&scene.log, &scene.a) < first_read_of(&scene.log, &scene.b)); /* first come */
    assert_true(range_holds_file_bytes(scene.a.job.buffer, &scene.a.range));
    scene_deinit(&scene);
}

static void submit_two_speculative_and_promote_the_second(struct scene *scene)
{
    io_reader_submit(scene->reader, &scene->a.job);
    io_reader_submit(scene->reader, &scene->b.job);
    io_reader_promote(scene->reader, &scene->b.job);
}

static void promoted_job_overtakes_speculative_ones(void **state)
{
    struct scene scene = {0};
    play(*state, &scene, submit_two_speculative_and_promote_the_second, 2);
    assert_true(first_read_of(&scene.log, &scene.b) <= 2);
    assert_true(last_read_of(&scene.log, &scene.b) <= 6);
    assert_true(range_holds_file_bytes(scene.b.job.buffer, &scene.b.range));
    struct io_reader_stats stats;
    io_reader_get_stats(scene.reader, &stats);
    assert_int_equal(stats.bytes_demand, IO_ALIGN + 5 * SPLIT);
    assert_int_equal(stats.bytes_speculative, 5 * SPLIT);
    scene_deinit(&scene);
}

static void submit_two_and_cancel_the_first(struct scene *scene)
{
    io_reader_submit(scene->reader, &scene->a.job);
    io_reader_submit(scene->reader, &scene->c.job);
    io_reader_cancel(scene->reader, &scene->a.job);
}

static void cancelled_job_is_done_without_the_reads_not_issued(void **state)
{
    struct scene scene = {0};
    play(*state, &scene, submit_two_and_cancel_the_first, 2);
    assert_int_equal(scene.a.job.status, PS_ERR_CANCELLED);
    assert_int_equal(scene.a.times_done, 1);
    assert_true(reads_of(&scene.log, &scene.a) <= 1);
    assert_int_equal(scene.c.job.status, PS_OK);
    assert_true(range_holds_file_bytes(scene.c.job.buffer, &scene.c.range));
    io_reader_cancel(scene.reader, &scene.c.job); /* done: no effect */
    io_reader_promote(scene.reader, &scene.a.job);
    assert_int_equal(scene.c.job.status, PS_OK);
    assert_int_equal(scene.a.times_done, 1);
    scene_deinit(&scene);
}

static void cancel_does_not_wait_for_the_throttle(void **state)
{
    struct io_reader *reader =
        open_reader(*state, (struct io_reader_config){.split_bytes = 1 << 20, .limit_rate = 100000});
    sem_t landed;
    sem_init(&landed, 0, 0);
    struct probe probe;
    probe_init(&probe, &landed, 0, 1 << 20, IO_DEMAND); /* 10 s at this rate */
    double start = seconds(CLOCK_MONOTONIC);
    io_reader_submit(reader, &probe.job);
    io_reader_cancel(reader, &probe.job);
    wait_for(&landed, 1);
    assert_int_equal(probe.job.status, PS_ERR_CANCELLED);
    assert_true(seconds(CLOCK_MONOTONIC) - start < 5);
    probe_deinit(&probe);
    sem_destroy(&landed);
}

struct share_watch {
    const struct io_reader *reader;
    uint32_t most;
};

static int64_t watch_share(void *context, const struct io_read *read, int64_t result)
{
    (void)read;
    struct share_watch *watch = context;
    if (watch->reader->in_flight_speculative > watch->most)
        watch->most = watch->reader->in_flight_speculative;
    return result;
}

static void speculative_reads_take_at_most_half_of_the_depth(void **state)
{
    struct io_reader *reader =
        open_reader(*state, (struct io_reader_config){.queue_depth = 8, .split_bytes = IO_ALIGN});
    struct share_watch watch = {.reader = reader};
    set_filter(reader, watch_share, &watch);
    sem_t landed;
    sem_init(&landed, 0, 0);
    struct probe probe;
    probe_init(&probe, &landed, 0, 2 << 20, IO_SPECULATIVE);
    io_reader_submit(reader, &probe.job);
    wait_for(&landed, 1);
    assert_int_equal(probe.job.status, PS_OK);
    assert_in_range(watch.most, 1, 4);
    probe_deinit(&probe);
    sem_destroy(&landed);
}

/* ---- faults ---- */

struct fault {
    int64_t result; /* what the read returns instead; positive: a short read of at most so many bytes */
    uint32_t times; /* how often, over all reads of the file at or past offset */
    uint64_t offset;
    uint32_t hits;
};

static int64_t inject(void *context, const struct io_read *read, int64_t result)
{
    struct fault *fault = context;
    if (read->file != 0 || read->offset < fault->offset || fault->hits >= fault->times)
        return result;
    if (fault->result >= result)
        return result;
    fault->hits++;
    uint64_t kept = read->resume + (uint64_t)(fault->result > 0 ? fault->result : 0);
    memset(read->buffer + kept, POISON,
           read->length - kept); /* what a failed read leaves is not the file's */
    return fault->result;
}

static void fault_that_passes_is_retried(struct fixture *fixture, int64_t result, uint32_t times)
{
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    struct fault fault = {.result = result, .times = times};
    set_filter(reader, inject, &fault);
    struct io_range range = {.offset = 4321, .length = 10 * SPLIT};
    uint8_t *buffer = new_buffer(io_range_span(range.offset, range.length));
    assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
    assert_true(range_holds_file_bytes(buffer, &range));
    assert_int_equal(fault.hits, times);
    struct io_reader_stats stats;
    io_reader_get_stats(reader, &stats);
    assert_true(stats.retries >= times);
    free(buffer);
    io_reader_free(reader);
    fixture->reader = NULL;
}

static void passing_faults_are_retried_until_the_bytes_are_there(void **state)
{
    static const int errors[] = {EINTR, EAGAIN, ENOMEM, ECANCELED, EIO};
    for (uint32_t i = 0; i < COUNT(errors); i++)
        fault_that_passes_is_retried(*state, -errors[i], 3);
}

static void short_reads_are_continued(void **state)
{
    fault_that_passes_is_retried(*state, SPLIT / 2, 4);        /* aligned */
    fault_that_passes_is_retried(*state, SPLIT / 2 + 1234, 4); /* inside an aligned unit */
    fault_that_passes_is_retried(*state, IO_ALIGN, 40);        /* small steps */
}

/* Reads 10 splits, of which the one at offset and all later ones fail; checks that nothing else was harmed. */
static void fault_that_stays_is_reported(struct fixture *fixture, int64_t result, uint32_t min_hits,
                                         int error)
{
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){.queue_depth = 2});
    struct fault fault = {.result = result, .times = UINT32_MAX, .offset = 3 * SPLIT};
    set_filter(reader, inject, &fault);
    sem_t landed;
    sem_init(&landed, 0, 0);
    struct probe bad, good;
    probe_init(&bad, &landed, 17, 10 * SPLIT, IO_DEMAND);
    probe_init(&good, &landed, 17, 10 * SPLIT, IO_DEMAND);
    good.range.file = 1;
    io_reader_submit(reader, &bad.job);
    io_reader_submit(reader, &good.job);
    wait_for(&landed, 2);
    assert_int_equal(bad.times_done, 1);
    assert_int_equal(bad.job.status, PS_ERR_IO);
    assert_int_equal(bad.job.error, error);
    assert_int_equal(bad.job.error_file, 0);
    assert_in_range(bad.job.error_offset, 3 * SPLIT, 5 * SPLIT);
    assert_true(fault.hits >= min_hits);
    assert_int_equal(good.job.status, PS_OK);
    assert_true(range_holds_file_bytes(good.job.buffer, &good.range));

    char offset[32];
    snprintf(offset, sizeof(offset), "%llu", (unsigned long long)bad.job.error_offset);
    assert_int_equal(io_reader_job_error(reader, &bad.job, &fixture->err), PS_ERR_IO);
    assert_non_null(strstr(fixture->err.message, fixture->paths[0]));
    assert_non_null(strstr(fixture->err.message, offset));
    assert_non_null(strstr(fixture->err.message, error ? strerror(error) : "end of file"));

    fault.times = 0; /* the drive has recovered; no read is in flight */
    io_reader_submit(reader, &bad.job);
    wait_for(&landed, 1);
    assert_int_equal(bad.job.status, PS_OK);
    assert_true(range_holds_file_bytes(bad.job.buffer, &bad.range));
    probe_deinit(&bad);
    probe_deinit(&good);
    sem_destroy(&landed);
    io_reader_free(reader);
    fixture->reader = NULL;
}

static void faults_that_stay_are_reported_with_file_and_offset(void **state)
{
    fault_that_stays_is_reported(*state, -EIO, 3, EIO);        /* retried a few times */
    fault_that_stays_is_reported(*state, -EAGAIN, 10, EAGAIN); /* bounded */
    fault_that_stays_is_reported(*state, -EFAULT, 1, EFAULT);
    fault_that_stays_is_reported(*state, 0, 1, 0); /* end of file */
    if (((struct fixture *)*state)->mode->direct)
        fault_that_stays_is_reported(*state, 100, 1, 0); /* end of file inside an aligned unit */
}

static void file_that_refuses_direct_reads_is_read_buffered(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    if (!io_reader_is_direct(reader))
        skip(); /* nothing to fall back from */
    struct fault fault = {.result = -EINVAL, .times = 3};
    set_filter(reader, inject, &fault);
    struct io_range range = {.offset = 99, .length = 20 * SPLIT};
    uint8_t *buffer = new_buffer(io_range_span(range.offset, range.length));
    assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
    assert_true(range_holds_file_bytes(buffer, &range));
    assert_false(io_reader_is_direct(reader));
    assert_int_equal(fcntl(reader->files[0].fd, F_GETFL) & O_DIRECT, 0);
    assert_int_equal(fcntl(reader->files[1].fd, F_GETFL) & O_DIRECT, O_DIRECT);
    range.offset = FILE_BYTES - range.length;
    assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
    assert_true(range_holds_file_bytes(buffer, &range));
    free(buffer);
}

static void truncated_file_is_reported_not_delivered(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    struct io_range range = {.file = 1, .offset = 1000, .length = 20 * SPLIT};
    uint8_t *buffer = new_buffer(io_range_span(range.offset, range.length));
    static const uint64_t sizes[] = {15 * SPLIT + 700, 15 * SPLIT, 1000 + 20 * SPLIT - 1};
    for (uint32_t i = 0; i < COUNT(sizes); i++) {
        write_file(fixture->paths[1], 1);
        assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
        assert_int_equal(truncate(fixture->paths[1], (off_t)sizes[i]), 0);
        assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_ERR_IO);
        assert_non_null(strstr(fixture->err.message, fixture->paths[1]));
        assert_non_null(strstr(fixture->err.message, "end of file"));
    }
    /* The last byte that is left can still be read. */
    struct io_range tail = {.file = 1, .offset = sizes[2] - 50, .length = 50};
    assert_int_equal(io_reader_read(reader, &tail, 1, buffer, &fixture->err), PS_OK);
    assert_true(range_holds_file_bytes(buffer, &tail));
    free(buffer);
}

static void malformed_ranges_fail_in_the_job(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    static const struct io_range bad[] = {
        {.file = N_FILES, .length = 1},
        {.length = 0},
        {.length = 1, .at = 5},
        {.offset = UINT64_MAX - 10, .length = 100},
        {.offset = FILE_BYTES + 100, .length = 10},
    };
    uint8_t *buffer = new_buffer(2 * IO_ALIGN);
    for (uint32_t i = 0; i < COUNT(bad); i++)
        assert_int_equal(io_reader_read(reader, &bad[i], 1, buffer, &fixture->err), PS_ERR_IO);
    struct io_range fine = {.length = 10};
    assert_int_equal(io_reader_read(reader, &fine, 1, buffer + 8, &fixture->err), PS_ERR_IO);
    assert_true(io_reader_is_direct(reader) ==
                fixture->mode->direct); /* not taken for a refusal of O_DIRECT */
    assert_int_equal(io_reader_read(reader, NULL, 0, buffer, &fixture->err), PS_OK);
    free(buffer);
}

/* ---- throttle, memory, page cache ---- */

static void limited_reader_keeps_its_rate_without_spinning(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){.limit_rate = 32 << 20});
    struct io_range ranges[16]; /* 8 MiB */
    for (uint32_t i = 0; i < COUNT(ranges); i++)
        ranges[i] = (struct io_range){0, i * 300000, (512 << 10) - IO_ALIGN, i * (512ull << 10)};
    uint8_t *buffer = new_buffer(COUNT(ranges) * (512ull << 10));
    double start = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    assert_int_equal(io_reader_read(reader, ranges, COUNT(ranges), buffer, &fixture->err), PS_OK);
    double took = seconds(CLOCK_MONOTONIC) - start;
    cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    assert_true(took > 0.23 && took < 2.5); /* 0.25 s; the upper bound is for loaded machines */
    assert_true(cpu < took / 2);
    free(buffer);
}

static void limited_reader_saves_nothing_up_while_idle(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){.limit_rate = 16 << 20});
    struct io_range range = {.length = 1 << 20}; /* 62 ms */
    uint8_t *buffer = new_buffer(1 << 20);
    for (uint32_t i = 0; i < 2; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
        double start = seconds(CLOCK_MONOTONIC);
        assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
        assert_true(seconds(CLOCK_MONOTONIC) - start > 0.055);
    }
    free(buffer);
}

/* Pages of the file in the page cache. */
static uint32_t cached_pages(const char *path)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = (FILE_BYTES + page - 1) / page;
    int fd = open(path, O_RDONLY);
    void *map = mmap(NULL, FILE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(map, MAP_FAILED);
    unsigned char *resident = calloc(n, 1);
    assert_int_equal(mincore(map, FILE_BYTES, resident), 0);
    uint32_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += resident[i] & 1;
    munmap(map, FILE_BYTES);
    close(fd);
    free(resident);
    return count;
}

static void page_cache_does_not_grow(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    uint32_t before = cached_pages(fixture->paths[0]);
    if (before > 16)
        skip(); /* a filesystem in memory */
    uint64_t seed = 5;
    uint8_t *buffer = new_buffer(1 << 20);
    for (uint32_t i = 0; i < 20; i++) {
        struct io_range range = {.length = 900000};
        range.offset = next_random(&seed) % (FILE_BYTES - range.length);
        assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
    }
    assert_true(cached_pages(fixture->paths[0]) <= 64); /* of 1281 */
    free(buffer);
}

static void memory_and_statistics_are_accounted(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    assert_in_range(io_reader_memory(reader), 1, 512 << 10);
    assert_in_range(io_reader_queue_depth(reader), 1, 64);
    struct io_range range = {.offset = 4000, .length = 3 * SPLIT};
    uint8_t *buffer = new_buffer(io_range_span(range.offset, range.length));
    assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
    struct io_reader_stats stats;
    io_reader_get_stats(reader, &stats);
    assert_int_equal(stats.bytes_demand, io_range_span(range.offset, range.length));
    assert_int_equal(stats.bytes_speculative, 0);
    assert_true(stats.reads >= 4);
    assert_true(stats.busy_s > 0 && stats.busy_s < 10);
    free(buffer);
}

/* ---- opening and closing ---- */

static void fresh_reader_can_be_freed(void **state)
{
    struct fixture *fixture = *state;
    for (uint32_t i = 0; i < 20; i++) {
        io_reader_free(open_reader(fixture, (struct io_reader_config){.queue_depth = 1 + i}));
        fixture->reader = NULL;
    }
    io_reader_free(NULL);
}

static void paths_that_cannot_be_read_are_refused(void **state)
{
    struct fixture *fixture = *state;
    char fifo[80];
    snprintf(fifo, sizeof(fifo), "%s.fifo", fixture->paths[0]);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    const char *bad[] = {"/var/tmp/penstock-no-such-file", "/var/tmp", fifo};
    struct io_reader_config config = {.backend = fixture->mode->backend, .direct = fixture->mode->direct};
    for (uint32_t i = 0; i < COUNT(bad); i++) {
        const char *paths[] = {fixture->paths[0], bad[i]};
        struct io_reader *reader = NULL;
        assert_int_equal(io_reader_new(&reader, paths, 2, &config, &fixture->err), PS_ERR_IO);
        assert_null(reader);
        assert_non_null(strstr(fixture->err.message, bad[i]));
    }
    unlink(fifo);
}

static void settings_out_of_range_are_refused(void **state)
{
    struct fixture *fixture = *state;
    const char *path = fixture->paths[0];
    struct io_reader *reader;
    struct io_reader_config small = {.split_bytes = 100};
    assert_int_equal(io_reader_new(&reader, &path, 1, &small, &fixture->err), PS_ERR_ARGUMENT);
    struct io_reader_config deep = {.queue_depth = 1 << 20};
    assert_int_equal(io_reader_new(&reader, &path, 1, &deep, &fixture->err), PS_ERR_ARGUMENT);
    struct io_reader_config fine = {0};
    assert_int_equal(io_reader_new(&reader, &path, 0, &fine, &fixture->err), PS_ERR_ARGUMENT);
    assert_null(reader);
}

static void auto_backend_always_reads(void **state)
{
    struct fixture *fixture = *state;
    const char *path = fixture->paths[0];
    struct io_reader_config config = {.backend = IO_BACKEND_AUTO, .direct = fixture->mode->direct};
    assert_int_equal(io_reader_new(&fixture->reader, &path, 1, &config, &fixture->err), PS_OK);
    const char *name = io_reader_backend_name(fixture->reader);
    assert_true(strcmp(name, "uring") == 0 || strcmp(name, "threads") == 0);
    struct io_range range = {.offset = 5, .length = 2 << 20};
    uint8_t *buffer = new_buffer(io_range_span(range.offset, range.length));
    assert_int_equal(io_reader_read(fixture->reader, &range, 1, buffer, &fixture->err), PS_OK);
    assert_true(range_holds_file_bytes(buffer, &range));
    free(buffer);
}

#define PROMISE(function)                                                                                    \
    {                                                                                                        \
#function, function                                                                                  \
    }

static const struct promise {
    const char *name;
    CMUnitTestFunction check;
} PROMISES[] = {
    PROMISE(random_ranges_hold_the_files_bytes),
    PROMISE(whole_unaligned_file_is_read),
    PROMISE(ranges_of_a_job_land_at_their_places),
    PROMISE(threads_submit_at_once_and_callbacks_run_one_at_a_time),
    PROMISE(job_outlives_the_thread_that_submitted_it),
    PROMISE(callback_may_submit),
    PROMISE(demand_reads_go_before_speculative_ones),
    PROMISE(promoted_job_overtakes_speculative_ones),
    PROMISE(cancelled_job_is_done_without_the_reads_not_issued),
    PROMISE(cancel_does_not_wait_for_the_throttle),
    PROMISE(speculative_reads_take_at_most_half_of_the_depth),
    PROMISE(passing_faults_are_retried_until_the_bytes_are_there),
    PROMISE(short_reads_are_continued),
    PROMISE(faults_that_stay_are_reported_with_file_and_offset),
    PROMISE(file_that_refuses_direct_reads_is_read_buffered),
    PROMISE(truncated_file_is_reported_not_delivered),
    PROMISE(malformed_ranges_fail_in_the_job),
    PROMISE(limited_reader_keeps_its_rate_without_spinning),
    PROMISE(limited_reader_saves_nothing_up_while_idle),
    PROMISE(page_cache_does_not_grow),
    PROMISE(memory_and_statistics_are_accounted),
    PROMISE(fresh_reader_can_be_freed),
    PROMISE(paths_that_cannot_be_read_are_refused),
    PROMISE(settings_out_of_range_are_refused),
    PROMISE(auto_backend_always_reads),
};

int main(void)
{
    static struct CMUnitTest tests[COUNT(PROMISES) * COUNT(MODES)];
    static char names[COUNT(tests)][120];
    for (size_t i = 0; i < COUNT(tests); i++) {
        const struct promise *promise = &PROMISES[i % COUNT(PROMISES)];
        const struct mode *mode = &MODES[i / COUNT(PROMISES)];
        snprintf(names[i], sizeof(names[i]), "%s (%s)", promise->name, mode->name);
        tests[i] = (struct CMUnitTest){.name = names[i],
                                       .test_func = promise->check,
                                       .setup_func = make_files,
                                       .teardown_func = remove_files,
                                       .initial_state = (void *)(uintptr_t)mode};
    }
    return cmocka_run_group_tests_name("io_reader", tests, NULL, NULL);
}
