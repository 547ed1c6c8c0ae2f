/* Thread pool: threads that share out the chunks of one run at a time.
 *
 * Each thread begins with a range of its own, so that it reads memory in order and threads do not meet, then takes
 * single chunks from the end of the fullest range. A range is a word {end, next}; whoever advances it by
 * compare-and-swap owns that chunk. A run does not wait for workers that never woke: until a worker owns a chunk it
 * touches nothing but atomics, and while it owns one the run cannot end, so the function and its argument, read after
 * the swap, are those of the run even for a worker that slept through others. */
#include "kernels/thread_pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kernels/pool_pacing.h"

enum {
    CACHE_LINE = 64,
    MAX_THREADS = 256,
    WORKER_STACK_BYTES = 256 * 1024, /* kernels keep up to some 100 KiB on the stack */
    PAUSES_PER_CLOCK = 16,
    /* Nanoseconds to wake a thread: before it is measured, and the bounds of what is believed. */
    FIRST_WAKE_COST = 25000,
    MIN_WAKE_COST = 2000,
    MAX_WAKE_COST = 50000,
    WAKE_COST_STEP = 16, /* the median moves by this part of itself */
};

struct worker {
    _Alignas(CACHE_LINE) _Atomic uint64_t range; /* chunks that its owner begins with: end << 32 | next */
    struct thread_pool *pool;
    pthread_t thread;
    unsigned index; /* 0 is the caller */
};

struct thread_pool {
    _Alignas(CACHE_LINE) thread_pool_fn *fn; /* of the run */
    void *arg;
    _Alignas(CACHE_LINE) _Atomic uint32_t pending; /* chunks not yet done; futex of the caller */
    _Atomic bool caller_sleeps;
    _Alignas(CACHE_LINE) _Atomic uint32_t runs; /* published, plus one for the stop; futex of the workers */
    _Atomic uint32_t sleepers;
    _Atomic int64_t begun;     /* of the last run */
    _Atomic int64_t spin;      /* how long workers spin before they sleep */
    _Atomic int64_t wake_cost; /* median of late */
    _Atomic bool stop;
    _Alignas(CACHE_LINE) struct pool_pacing pacing;
    long preemptions; /* of the process, when last asked */
    unsigned n_threads;
    unsigned n_started;
    struct worker workers[]; /* [n_threads] */
};

/* True if it slept and was woken. */
static bool futex_wait(_Atomic uint32_t *word, uint32_t expected)
{
    return syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0) == 0;
}

static void futex_wake(_Atomic uint32_t *word, uint32_t n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n < INT_MAX ? n : INT_MAX, NULL, NULL, 0);
}

static inline void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_nanoseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Waits a bounded time for *word to differ from value (or, if until, to equal it); true when it happened. */
static bool spin(const _Atomic uint32_t *word, uint32_t value, bool until, int64_t nanoseconds)
{
    if (nanoseconds == 0) {
        return false;
    }
    int64_t end = now_nanoseconds() + nanoseconds;
    do {
        for (int i = 0; i < PAUSES_PER_CLOCK; i++) {
            if ((atomic_load_explicit(word, memory_order_acquire) == value) == until) {
                return true;
            }
            cpu_pause();
        }
    } while (now_nanoseconds() < end);
    return false;
}

static uint32_t chunks_left(uint64_t range)
{
    uint32_t next = (uint32_t)range;
    uint32_t end = (uint32_t)(range >> 32);
    return next < end ? end - next : 0;
}

static bool take_own(struct worker *self, uint32_t *chunk)
{
    uint64_t range = atomic_load_explicit(&self->range, memory_order_relaxed);
    do {
        if (chunks_left(range) == 0) {
            return false;
        }
        *chunk = (uint32_t)range;
    } while (!atomic_compare_exchange_weak_explicit(&self->range, &range, range + 1, memory_order_acquire,
                                                    memory_order_relaxed));
    return true;
}

/* Takes one chunk, no more: a range that is put elsewhere could meet the next run's. */
static bool steal(struct thread_pool *pool, uint32_t *chunk)
{
    for (;;) {
        struct worker *victim = NULL;
        uint64_t fullest = 0;
        for (unsigned i = 0; i < pool->n_threads; i++) {
            uint64_t range = atomic_load_explicit(&pool->workers[i].range, memory_order_relaxed);
            if (chunks_left(range) > chunks_left(fullest)) {
                fullest = range;
                victim = &pool->workers[i];
            }
        }
        if (victim == NULL) {
            return false;
        }
        *chunk = (uint32_t)(fullest >> 32) - 1;
        if (atomic_compare_exchange_strong_explicit(&victim->range, &fullest, fullest - (1ull << 32),
                                                    memory_order_acquire, memory_order_relaxed)) {
            return true;
        }
    }
}

/* Runs chunks until none is left to take. */
static void work(struct thread_pool *pool, struct worker *self)
{
    uint32_t n_done = 0;
    uint32_t chunk;
    while (take_own(self, &chunk) || steal(pool, &chunk)) {
        pool->fn(pool->arg, chunk, self->index);
        n_done++;
    }
    /* Sequentially consistent with caller_sleeps: either the caller sees its last chunk done or we see it
     * asleep. */
    if (n_done > 0 && atomic_fetch_sub(&pool->pending, n_done) == n_done &&
        atomic_load(&pool->caller_sleeps)) {
        futex_wake(&pool->pending, 1);
    }
}

/* Moves the median of what waking a thread takes. */
static void note_wake(struct thread_pool *pool)
{
    int64_t took = now_nanoseconds() - atomic_load_explicit(&pool->begun, memory_order_relaxed);
    int64_t cost = atomic_load_explicit(&pool->wake_cost, memory_order_relaxed);
    cost += took > cost ? cost / WAKE_COST_STEP : -(cost / WAKE_COST_STEP);
    cost = cost < MIN_WAKE_COST ? MIN_WAKE_COST : cost;
    cost = cost > MAX_WAKE_COST ? MAX_WAKE_COST : cost;
    atomic_store_explicit(&pool->wake_cost, cost, memory_order_relaxed);
}

static void wait_for_run(struct thread_pool *pool, uint32_t seen)
{
    if (spin(&pool->runs, seen, false, atomic_load_explicit(&pool->spin, memory_order_relaxed))) {
        return;
    }
    atomic_fetch_add(&pool->sleepers, 1);
    bool slept = false;
    while (atomic_load(&pool->runs) == seen) {
        slept = futex_wait(&pool->runs, seen);
    }
    atomic_fetch_sub(&pool->sleepers, 1);
    if (slept) {
        note_wake(pool);
    }
}

static void *worker_main(void *arg)
{
    struct worker *self = arg;
    struct thread_pool *pool = self->pool;
    uint32_t seen = 0;
    for (;;) {
        wait_for_run(pool, seen);
        seen = atomic_load_explicit(&pool->runs, memory_order_acquire);
        if (atomic_load_explicit(&pool->stop, memory_order_relaxed)) {
            return NULL;
        }
        work(pool, self);
    }
}

/* Tells up to n sleeping workers that the ranges, or stop, have changed. */
static void announce(struct thread_pool *pool, uint32_t n)
{
    atomic_fetch_add(&pool->runs, 1);
    uint32_t sleepers = atomic_load(&pool->sleepers);
    if (sleepers > 0) {
        futex_wake(&pool->runs, n < sleepers ? n : sleepers);
    }
}

/* False if there was nothing to wait for. */
static bool wait_until_done(struct thread_pool *pool, int64_t now)
{
    if (atomic_load_explicit(&pool->pending, memory_order_acquire) == 0) {
        return false;
    }
    if (spin(&pool->pending, 0, true, pool_pacing_finish_spin(&pool->pacing, now))) {
        return true;
    }
    atomic_store(&pool->caller_sleeps, true);
    for (;;) {
        uint32_t left = atomic_load(&pool->pending);
        if (left == 0) {
            break;
        }
        futex_wait(&pool->pending, left);
    }
    atomic_store(&pool->caller_sleeps, false);
    return true;
}

/* Whether threads of this process had a CPU taken from them since the last call. */
static bool were_preempted(struct thread_pool *pool)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    long before = pool->preemptions;
    pool->preemptions = usage.ru_nivcsw;
    return usage.ru_nivcsw > before;
}

/* Chunks of thread i begin here; the caller's share is the larger one. */
static uint32_t share_begin(uint32_t n_chunks, unsigned i, unsigned n)
{
    return (uint32_t)(((uint64_t)n_chunks * i + n - 1) / n);
}

static void publish(struct thread_pool *pool, thread_pool_fn *fn, void *arg, uint32_t n_chunks)
{
    unsigned n = n_chunks < pool->n_threads ? n_chunks : pool->n_threads;
    pool->fn = fn;
    pool->arg = arg;
    atomic_store_explicit(&pool->pending, n_chunks, memory_order_relaxed);
    for (unsigned i = 0; i < n; i++) {
        uint64_t end = share_begin(n_chunks, i + 1, n);
        atomic_store_explicit(&pool->workers[i].range, end << 32 | share_begin(n_chunks, i, n),
                              memory_order_release);
    }
    announce(pool, n - 1);
}

void thread_pool_run(struct thread_pool *pool, thread_pool_fn *fn, void *arg, uint32_t n_chunks)
{
    if (n_chunks <= 1 || pool->n_threads == 1) {
        for (uint32_t chunk = 0; chunk < n_chunks; chunk++) {
            fn(arg, chunk, 0);
        }
        return;
    }
    int64_t begun = now_nanoseconds();
    int64_t wake_cost = atomic_load_explicit(&pool->wake_cost, memory_order_relaxed);
    atomic_store_explicit(&pool->spin, pool_pacing_begin(&pool->pacing, begun, wake_cost),
                          memory_order_relaxed);
    atomic_store_explicit(&pool->begun, begun, memory_order_relaxed);
    publish(pool, fn, arg, n_chunks);
    work(pool, &pool->workers[0]);
    int64_t idle = now_nanoseconds();
    int64_t ended = wait_until_done(pool, idle) ? now_nanoseconds() : idle;
    if (pool_pacing_end(&pool->pacing, idle, ended) && were_preempted(pool)) {
        pool_pacing_preempted(&pool->pacing);
    }
}

void thread_pool_never_spin(struct thread_pool *pool)
{
    pool->pacing.may_spin = false;
}

static bool has_a_cpu_each(unsigned n_threads)
{
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
        return n_threads <= (unsigned)CPU_COUNT(&allowed);
    }
    long online = sysconf(_SC_NPROCESSORS_ONLN); /* machines with more CPUs than cpu_set_t holds */
    return online > 0 && n_threads <= (unsigned long)online;
}

static int start_workers(struct thread_pool *pool)
{
    pthread_attr_t attr;
    int err = pthread_attr_init(&attr);
    if (err != 0) {
        return -err;
    }
    err = pthread_attr_setstacksize(&attr, WORKER_STACK_BYTES);
    /* Signals are for the threads of the application. */
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (err == 0 && pool->n_started < pool->n_threads - 1) {
        struct worker *worker = &pool->workers[pool->n_started + 1];
        *worker = (struct worker){.pool = pool, .index = pool->n_started + 1};
        err = pthread_create(&worker->thread, &attr, worker_main, worker);
        pool->n_started += err == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return -err;
}

int thread_pool_new(struct thread_pool **out, unsigned n_threads)
{
    *out = NULL;
    if (n_threads == 0 || n_threads > MAX_THREADS) {
        return -EINVAL;
    }
    size_t bytes = sizeof(struct thread_pool) + n_threads * sizeof(struct worker);
    bytes = (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    struct thread_pool *pool = aligned_alloc(CACHE_LINE, bytes);
    if (pool == NULL) {
        return -ENOMEM;
    }
    *pool = (struct thread_pool){.n_threads = n_threads, .wake_cost = FIRST_WAKE_COST};
    pool->pacing.may_spin = has_a_cpu_each(n_threads);
    memset(pool->workers, 0, n_threads * sizeof(struct worker));
    int err = start_workers(pool);
    if (err != 0) {
        thread_pool_free(pool);
        return err;
    }
    *out = pool;
    return 0;
}

void thread_pool_free(struct thread_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    atomic_store(&pool->stop, true);
    announce(pool, pool->n_started);
    for (unsigned i = 0; i < pool->n_started; i++) {
        pthread_join(pool->workers[i + 1].thread, NULL);
    }
    free(pool);
}

unsigned thread_pool_size(const struct thread_pool *pool)
{
    return pool->n_threads;
}
