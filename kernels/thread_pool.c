/* Thread pool: threads that share out the chunks of one run at a time.
 *
 * A run is published as a ticket {chunks, next chunk}; whoever advances it by compare-and-swap owns that
 * chunk. A run does not wait for workers that never woke: until a worker owns a chunk it touches nothing but
 * atomics, and while it owns one the run cannot end, so the function and its argument, read after the swap,
 * are those of the ticket's run even for a worker that slept through others. */
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
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    CACHE_LINE = 64,
    MAX_THREADS = 256,
    WORKER_STACK_BYTES = 256 * 1024, /* kernels keep a few KiB on the stack */
    SPIN_NANOSECONDS = 25000,        /* what a futex sleep and wake-up cost on a virtual machine */
    PAUSES_PER_CLOCK = 16,
};

struct worker {
    struct thread_pool *pool;
    pthread_t thread;
    unsigned index; /* 1..n_threads - 1 */
};

struct thread_pool {
    _Alignas(CACHE_LINE) _Atomic uint64_t ticket; /* chunks << 32 | next chunk */
    thread_pool_fn *fn;                           /* of the ticket's run */
    void *arg;
    _Alignas(CACHE_LINE) _Atomic uint32_t pending; /* chunks not yet done; futex of the caller */
    _Atomic bool caller_sleeps;
    _Alignas(CACHE_LINE) _Atomic uint32_t runs; /* published, plus one for the stop; futex of the workers */
    _Atomic uint32_t sleepers;
    _Atomic bool stop;
    _Alignas(CACHE_LINE) unsigned n_threads;
    unsigned n_started;
    bool spins; /* no more threads than CPUs */
    struct worker workers[];
};

static void futex_wait(_Atomic uint32_t *word, uint32_t expected)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
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
static bool spin(const struct thread_pool *pool, const _Atomic uint32_t *word, uint32_t value, bool until)
{
    if (!pool->spins) {
        return false;
    }
    int64_t end = now_nanoseconds() + SPIN_NANOSECONDS;
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

static bool take_chunk(struct thread_pool *pool, uint32_t *chunk)
{
    uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_relaxed);
    do {
        *chunk = (uint32_t)ticket;
        if (*chunk >= ticket >> 32) {
            return false;
        }
    } while (!atomic_compare_exchange_weak_explicit(&pool->ticket, &ticket, ticket + 1, memory_order_acquire,
                                                    memory_order_relaxed));
    return true;
}

/* Runs chunks until none is left to take. */
static void work(struct thread_pool *pool, unsigned worker)
{
    uint32_t n_done = 0;
    uint32_t chunk;
    while (take_chunk(pool, &chunk)) {
        pool->fn(pool->arg, chunk, worker);
        n_done++;
    }
    /* Sequentially consistent with caller_sleeps: either the caller sees its last chunk done or we see it
     * asleep. */
    if (n_done > 0 && atomic_fetch_sub(&pool->pending, n_done) == n_done &&
        atomic_load(&pool->caller_sleeps)) {
        futex_wake(&pool->pending, 1);
    }
}

static void wait_for_run(struct thread_pool *pool, uint32_t seen)
{
    if (spin(pool, &pool->runs, seen, false)) {
        return;
    }
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->runs) == seen) {
        futex_wait(&pool->runs, seen);
    }
    atomic_fetch_sub(&pool->sleepers, 1);
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
        work(pool, self->index);
    }
}

/* Tells up to n sleeping workers that the ticket, or stop, has changed. */
static void announce(struct thread_pool *pool, uint32_t n)
{
    atomic_fetch_add(&pool->runs, 1);
    uint32_t sleepers = atomic_load(&pool->sleepers);
    if (sleepers > 0) {
        futex_wake(&pool->runs, n < sleepers ? n : sleepers);
    }
}

static void wait_until_done(struct thread_pool *pool)
{
    if (spin(pool, &pool->pending, 0, true)) {
        return;
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
}

void thread_pool_run(struct thread_pool *pool, thread_pool_fn *fn, void *arg, uint32_t n_chunks)
{
    if (n_chunks <= 1 || pool->n_threads == 1) {
        for (uint32_t chunk = 0; chunk < n_chunks; chunk++) {
            fn(arg, chunk, 0);
        }
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    atomic_store_explicit(&pool->pending, n_chunks, memory_order_relaxed);
    atomic_store_explicit(&pool->ticket, (uint64_t)n_chunks << 32, memory_order_release);
    announce(pool, n_chunks - 1);
    work(pool, 0);
    wait_until_done(pool);
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
        struct worker *worker = &pool->workers[pool->n_started];
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
    size_t bytes = sizeof(struct thread_pool) + (n_threads - 1) * sizeof(struct worker);
    bytes = (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    struct thread_pool *pool = aligned_alloc(CACHE_LINE, bytes);
    if (pool == NULL) {
        return -ENOMEM;
    }
    *pool = (struct thread_pool){.n_threads = n_threads, .spins = has_a_cpu_each(n_threads)};
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
        pthread_join(pool->workers[i].thread, NULL);
    }
    free(pool);
}

unsigned thread_pool_size(const struct thread_pool *pool)
{
    return pool->n_threads;
}
