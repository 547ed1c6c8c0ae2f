/* Thread pool: every chunk exactly once, whatever the number of threads and CPUs. Also meant for
 * -fsanitize=thread. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kernels/thread_pool.h"

static const unsigned SIZES[] = {1, 2, 3, 7, 64};
enum { N_SIZES = sizeof(SIZES) / sizeof(SIZES[0]), MAX_CHUNKS = 1000, MAX_WORKERS = 256 };

struct count {
    unsigned n_workers;
    uint32_t times[MAX_CHUNKS]; /* plain: each chunk has one owner, and run() publishes what it wrote */
    _Atomic bool bad_worker;
    _Atomic bool busy[MAX_WORKERS]; /* scratch of a worker belongs to one chunk at a time */
};

static struct thread_pool *new_pool(unsigned n_threads)
{
    struct thread_pool *pool = NULL;
    assert_int_equal(thread_pool_new(&pool, n_threads), 0);
    assert_non_null(pool);
    assert_int_equal(thread_pool_size(pool), n_threads);
    return pool;
}

static void count_chunk(void *arg, uint32_t chunk, unsigned worker)
{
    struct count *count = arg;
    if (worker >= count->n_workers || atomic_exchange(&count->busy[worker], true)) {
        atomic_store(&count->bad_worker, true);
        return;
    }
    count->times[chunk]++;
    atomic_store(&count->busy[worker], false);
}

static void every_chunk_runs_exactly_once(void **state)
{
    (void)state;
    struct count *count = calloc(1, sizeof(*count));
    assert_non_null(count);
    for (size_t s = 0; s < N_SIZES; s++) {
        struct thread_pool *pool = new_pool(SIZES[s]);
        count->n_workers = SIZES[s];
        unsigned n_runs = SIZES[s] > 7 ? 100 : 1000;
        for (unsigned run = 0; run < n_runs; run++) {
            uint32_t n_chunks = run % 50 == 49 ? MAX_CHUNKS : run % 17;
            memset(count->times, 0, sizeof(count->times));
            thread_pool_run(pool, count_chunk, count, n_chunks);
            for (uint32_t i = 0; i < MAX_CHUNKS; i++) {
                assert_int_equal(count->times[i], i < n_chunks);
            }
        }
        assert_false(atomic_load(&count->bad_worker));
        thread_pool_free(pool);
    }
    free(count);
}

struct tally {
    _Atomic uint64_t sum;
    uint32_t expected_run;
    const uint32_t *run; /* differs from run to run, so that a stale argument shows */
    _Atomic bool stale;
};

static void add_chunk(void *arg, uint32_t chunk, unsigned worker)
{
    (void)worker;
    struct tally *tally = arg;
    if (*tally->run != tally->expected_run) {
        atomic_store(&tally->stale, true);
    }
    atomic_fetch_add(&tally->sum, chunk + 1);
}

/* Runs follow each other at once, so that workers wake late, into runs that have ended or begun. */
static void late_workers_never_touch_a_finished_run(void **state)
{
    (void)state;
    for (size_t s = 0; s < N_SIZES; s++) {
        struct thread_pool *pool = new_pool(SIZES[s]);
        uint32_t n_runs = SIZES[s] > 7 ? 2000 : 20000;
        for (uint32_t run = 0; run < n_runs; run++) {
            uint32_t current = run;
            struct tally tally = {.expected_run = run, .run = &current};
            uint32_t n = 2 + run % 3;
            thread_pool_run(pool, add_chunk, &tally, n);
            assert_int_equal(atomic_load(&tally.sum), n * (n + 1) / 2);
            assert_false(atomic_load(&tally.stale));
            current = UINT32_MAX;
        }
        thread_pool_free(pool);
    }
}

struct detention {
    uint32_t n_chunks;
    _Atomic uint32_t done;
};

/* The caller's first chunk lasts until all others are done. */
static void detain_caller(void *arg, uint32_t chunk, unsigned worker)
{
    (void)chunk;
    struct detention *detention = arg;
    if (worker == 0) {
        while (atomic_load(&detention->done) < detention->n_chunks - 1) {
            usleep(20);
        }
    }
    atomic_fetch_add(&detention->done, 1);
}

/* Fails by hanging when the share of a thread that is held up stays with it. */
static void share_of_a_slow_thread_is_taken_over(void **state)
{
    (void)state;
    for (size_t s = 1; s < N_SIZES; s++) {
        struct thread_pool *pool = new_pool(SIZES[s]);
        for (uint32_t n_chunks = 2; n_chunks < 200; n_chunks = n_chunks * 2 + 1) {
            struct detention detention = {.n_chunks = n_chunks};
            thread_pool_run(pool, detain_caller, &detention, n_chunks);
            assert_int_equal(atomic_load(&detention.done), n_chunks);
        }
        thread_pool_free(pool);
    }
}

static void count_uneven_chunk(void *arg, uint32_t chunk, unsigned worker)
{
    if (chunk % 16 == 15) {
        usleep(chunk % 64);
    }
    count_chunk(arg, chunk, worker);
}

static void every_chunk_runs_exactly_once_with_1_to_64_threads(void **state)
{
    (void)state;
    struct count *count = calloc(1, sizeof(*count));
    assert_non_null(count);
    for (unsigned size = 1; size <= 64; size++) {
        struct thread_pool *pool = new_pool(size);
        count->n_workers = size;
        for (uint32_t n_chunks = size - 1; n_chunks < 5 * size; n_chunks += size / 2 + 1) {
            memset(count->times, 0, sizeof(count->times));
            thread_pool_run(pool, count_uneven_chunk, count, n_chunks);
            for (uint32_t i = 0; i < MAX_CHUNKS; i++) {
                assert_int_equal(count->times[i], i < n_chunks);
            }
        }
        assert_false(atomic_load(&count->bad_worker));
        thread_pool_free(pool);
    }
    free(count);
}

static void record_worker(void *arg, uint32_t chunk, unsigned worker)
{
    (void)chunk;
    *(unsigned *)arg = worker;
}

static void one_chunk_runs_on_the_caller_and_none_runs_nothing(void **state)
{
    (void)state;
    struct thread_pool *pool = new_pool(3);
    unsigned worker = 99;
    thread_pool_run(pool, record_worker, &worker, 0);
    assert_int_equal(worker, 99);
    thread_pool_run(pool, record_worker, &worker, 1);
    assert_int_equal(worker, 0);
    thread_pool_free(pool);
}

struct meeting {
    unsigned n_threads;
    _Atomic unsigned present;
    _Atomic unsigned done;
    unsigned worker_delay; /* microseconds that a chunk takes longer on a worker than on the caller */
};

/* One chunk per thread, each waiting for all the others. */
static void meet(void *arg, uint32_t chunk, unsigned worker)
{
    (void)chunk;
    struct meeting *meeting = arg;
    atomic_fetch_add(&meeting->present, 1);
    while (atomic_load(&meeting->present) < meeting->n_threads) {
        usleep(20);
    }
    if (worker != 0 && meeting->worker_delay > 0) {
        usleep(meeting->worker_delay);
    }
    atomic_fetch_add(&meeting->done, 1);
}

static void hold_meeting(struct thread_pool *pool, unsigned worker_delay)
{
    struct meeting meeting = {.n_threads = thread_pool_size(pool), .worker_delay = worker_delay};
    thread_pool_run(pool, meet, &meeting, meeting.n_threads);
    assert_int_equal(atomic_load(&meeting.done), meeting.n_threads);
}

/* Fails by hanging when a sleeping worker is not woken. */
static void every_worker_takes_part_after_sleep(void **state)
{
    (void)state;
    for (size_t s = 0; s < N_SIZES; s++) {
        struct thread_pool *pool = new_pool(SIZES[s]);
        for (int run = 0; run < 10; run++) {
            hold_meeting(pool, 0);
            usleep(500);
        }
        thread_pool_free(pool);
    }
}

static void caller_sleeps_until_the_last_worker_is_done(void **state)
{
    (void)state;
    for (unsigned size = 2; size <= 3; size++) {
        struct thread_pool *pool = new_pool(size);
        for (int run = 0; run < 30; run++) {
            hold_meeting(pool, 2000);
        }
        thread_pool_free(pool);
    }
}

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void idle_pool_uses_no_cpu(void **state)
{
    (void)state;
    for (unsigned size = 2; size <= 7; size += 5) {
        struct thread_pool *pool = new_pool(size);
        hold_meeting(pool, 0);
        usleep(20000);
        double before = cpu_seconds();
        usleep(200000);
        assert_true(cpu_seconds() - before < 0.02);
        thread_pool_free(pool);
    }
}

static void pools_come_and_go(void **state)
{
    (void)state;
    for (size_t s = 0; s < N_SIZES; s++) {
        for (int i = 0; i < 20; i++) {
            struct thread_pool *pool = new_pool(SIZES[s]);
            if (i % 2 == 0) {
                struct tally tally = {.run = &tally.expected_run};
                thread_pool_run(pool, add_chunk, &tally, 10);
                assert_int_equal(atomic_load(&tally.sum), 55);
            }
            if (i % 10 == 3) {
                usleep(1000); /* now its workers sleep */
            }
            thread_pool_free(pool);
        }
    }
    thread_pool_free(NULL);
}

static void pool_that_never_spins_works(void **state)
{
    (void)state;
    struct thread_pool *pool = new_pool(2);
    thread_pool_never_spin(pool);
    for (int run = 0; run < 1000; run++) {
        hold_meeting(pool, 0);
    }
    thread_pool_free(pool);
}

static void impossible_sizes_are_refused(void **state)
{
    (void)state;
    struct thread_pool *pool = NULL;
    assert_int_equal(thread_pool_new(&pool, 0), -EINVAL);
    assert_int_equal(thread_pool_new(&pool, 257), -EINVAL);
    assert_null(pool);
    pool = new_pool(256);
    thread_pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_chunk_runs_exactly_once),
        cmocka_unit_test(late_workers_never_touch_a_finished_run),
        cmocka_unit_test(share_of_a_slow_thread_is_taken_over),
        cmocka_unit_test(every_chunk_runs_exactly_once_with_1_to_64_threads),
        cmocka_unit_test(one_chunk_runs_on_the_caller_and_none_runs_nothing),
        cmocka_unit_test(every_worker_takes_part_after_sleep),
        cmocka_unit_test(caller_sleeps_until_the_last_worker_is_done),
        cmocka_unit_test(idle_pool_uses_no_cpu),
        cmocka_unit_test(pools_come_and_go),
        cmocka_unit_test(pool_that_never_spins_works),
        cmocka_unit_test(impossible_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
