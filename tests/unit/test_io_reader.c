/* The async reader's promises: content, threads, order of priority, opening and closing. */
#include "io_reader_fixture.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

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
    nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL); /* time for another one to run into it */
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
    let_the_reader_sleep();
    double start = seconds(CLOCK_MONOTONIC);
    io_reader_submit(reader, &probe.job);
    io_reader_cancel(reader, &probe.job);
    wait_for(&landed, 1);
    assert_int_equal(probe.job.status, PS_ERR_CANCELLED);
    assert_true(seconds(CLOCK_MONOTONIC) - start < 0.7); /* not at the next occasion */
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
    if (watch->reader->in_flight_ahead > watch->most)
        watch->most = watch->reader->in_flight_ahead;
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

/* ---- opening and closing ---- */

static void idle_reader_is_freed_at_once(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    let_the_reader_sleep();
    double start = seconds(CLOCK_MONOTONIC);
    io_reader_free(reader);
    fixture->reader = NULL;
    assert_true(seconds(CLOCK_MONOTONIC) - start < 0.7);
}

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

static void default_depth_is_for_each_drive(void **state)
{
    struct fixture *fixture = *state;
    const char *path = fixture->paths[0];
    uint32_t depth[2];
    for (uint32_t i = 0; i < 2; i++) {
        struct io_reader *reader;
        struct io_reader_config config = {.n_drives = i + 1};
        assert_int_equal(io_reader_new(&reader, &path, 1, &config, &fixture->err), PS_OK);
        depth[i] = io_reader_queue_depth(reader);
        io_reader_free(reader);
    }
    assert_int_equal(depth[1], 2 * depth[0]);
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

/* As a container does it: the system call fails with EPERM. False when this system has no seccomp. */
static bool forbid(uint32_t system_call)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, system_call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {COUNT(code), code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

enum { EXIT_NO_SECCOMP = 77 };

/* In a child process, which the filter stays with. Returns 0 when all was as promised. */
static int read_where_forbidden(const char *path, bool direct, uint32_t system_call)
{
    if (!forbid(system_call))
        return EXIT_NO_SECCOMP;
    struct io_reader *reader;
    struct io_reader_config config = {.backend = IO_BACKEND_URING, .direct = direct};
    if (io_reader_new(&reader, &path, 1, &config, NULL) != PS_ERR_UNSUPPORTED)
        return 1;
    config.backend = IO_BACKEND_AUTO;
    if (io_reader_new(&reader, &path, 1, &config, NULL) != PS_OK)
        return 2;
    struct io_range range = {.offset = 5, .length = 100000};
    uint8_t *buffer = aligned_alloc(IO_ALIGN, io_range_span(range.offset, range.length));
    bool ok = buffer && io_reader_read(reader, &range, 1, buffer, NULL) == PS_OK &&
              range_holds_file_bytes(buffer, &range) &&
              strcmp(io_reader_backend_name(reader), "threads") == 0;
    io_reader_free(reader);
    free(buffer);
    return ok ? 0 : 3;
}

static void threads_read_where_io_uring_is_forbidden(void **state)
{
    struct fixture *fixture = *state;
    static const uint32_t system_calls[] = {SYS_io_uring_setup, SYS_io_uring_enter};
    for (uint32_t i = 0; i < COUNT(system_calls); i++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            _exit(read_where_forbidden(fixture->paths[0], fixture->mode->direct, system_calls[i]));
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        if (WEXITSTATUS(status) == EXIT_NO_SECCOMP)
            skip();
        assert_int_equal(WEXITSTATUS(status), 0);
    }
}

int main(void)
{
    static const struct promise promises[] = {
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
        PROMISE(fresh_reader_can_be_freed),
        PROMISE(paths_that_cannot_be_read_are_refused),
        PROMISE(settings_out_of_range_are_refused),
        PROMISE(default_depth_is_for_each_drive),
        PROMISE(auto_backend_always_reads),
        PROMISE(threads_read_where_io_uring_is_forbidden),
        PROMISE(idle_reader_is_freed_at_once),
    };
    return run_in_all_modes("io_reader", promises, COUNT(promises));
}
