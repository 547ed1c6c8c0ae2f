/* What the tests of the async reader share: files of known content, the reader in each of its modes (both backends,
 * with O_DIRECT and buffered), jobs that count their callbacks. */
#ifndef PENSTOCK_TESTS_IO_READER_FIXTURE_H
#define PENSTOCK_TESTS_IO_READER_FIXTURE_H

#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

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

static inline uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static inline uint8_t byte_at(uint32_t file, uint64_t offset)
{
    return (uint8_t)(mix(((uint64_t)file << 56) + offset / 8 + 1) >> (offset % 8 * 8));
}

static inline uint64_t next_random(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    return mix(*state);
}

static inline void write_file(const char *path, uint32_t file)
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

static inline bool range_holds_file_bytes(const uint8_t *buffer, const struct io_range *range)
{
    const uint8_t *bytes = buffer + range->at + range->offset % IO_ALIGN;
    for (uint64_t i = 0; i < range->length; i++) {
        if (bytes[i] != byte_at(range->file, range->offset + i))
            return false;
    }
    return true;
}

/* ---- fixture ---- */

static inline int make_files(void **state)
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

static inline int remove_files(void **state)
{
    struct fixture *fixture = *state;
    io_reader_free(fixture->reader);
    for (uint32_t i = 0; i < N_FILES; i++)
        unlink(fixture->paths[i]);
    free(fixture);
    return 0;
}

/* Opens the fixture's reader in its mode, or skips the test where there is no io_uring. */
static inline struct io_reader *open_reader(struct fixture *fixture, struct io_reader_config config)
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

static inline uint8_t *new_buffer(uint64_t bytes)
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

static inline void probe_done(struct io_job *job)
{
    struct probe *probe = job->owner;
    probe->times_done++;
    sem_post(probe->landed);
}

static inline void probe_init(struct probe *probe, sem_t *landed, uint64_t offset, uint64_t length,
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

static inline void probe_deinit(struct probe *probe)
{
    free(probe->job.buffer);
}

static inline void wait_for(sem_t *landed, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        while (sem_wait(landed) < 0)
            assert_int_equal(errno, EINTR);
    }
}

static inline double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* So that what follows has to wake its threads up. */
static inline void let_the_reader_sleep(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
}

static inline void set_filter(struct io_reader *reader,
                              int64_t (*filter)(void *context, const struct io_read *read, int64_t result),
                              void *context)
{
    pthread_mutex_lock(&reader->lock);
    reader->filter = filter;
    reader->filter_context = context;
    pthread_mutex_unlock(&reader->lock);
}

/* ---- running ---- */

struct promise {
    const char *name;
    CMUnitTestFunction check;
};

#define PROMISE(function)                                                                                    \
    {                                                                                                        \
#function, function                                                                                  \
    }

enum { MAX_TESTS = 128 };

/* Each promise in each mode, each on fresh files. */
static inline int run_in_all_modes(const char *group, const struct promise *promises, size_t n_promises)
{
    static struct CMUnitTest tests[MAX_TESTS];
    static char names[MAX_TESTS][120];
    size_t n = n_promises * COUNT(MODES);
    if (n > MAX_TESTS)
        return 1;
    for (size_t i = 0; i < n; i++) {
        const struct promise *promise = &promises[i % n_promises];
        const struct mode *mode = &MODES[i / n_promises];
        snprintf(names[i], sizeof(names[i]), "%s (%s)", promise->name, mode->name);
        tests[i] = (struct CMUnitTest){.name = names[i],
                                       .test_func = promise->check,
                                       .setup_func = make_files,
                                       .teardown_func = remove_files,
                                       .initial_state = (void *)(uintptr_t)mode};
    }
    return _cmocka_run_group_tests(group, tests, n, NULL, NULL);
}

#endif
