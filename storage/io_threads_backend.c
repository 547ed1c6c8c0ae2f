/* Thread backend of the async reader: a pool of threads, each with one pread in flight. For systems without
 * io_uring. The threads sleep on one condition variable; one of them at a time keeps the timer for reads that
 * the throttle or a retry holds back. */
#include "storage/io_reader_internal.h"
#include "storage/service_thread.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 16 }; /* more preads than this at once gain nothing and cost memory */

struct io_threads {
    pthread_cond_t work;
    uint32_t n_threads;
    uint32_t n_idle;
    uint64_t timer_at; /* ns; an idle thread wakes up by itself at this time */
    pthread_t threads[MAX_THREADS];
};

static void wait_for_work(struct io_reader *reader, struct io_threads *pool, uint64_t wake_at)
{
    pool->n_idle++;
    if (wake_at >= pool->timer_at) {
        pthread_cond_wait(&pool->work, &reader->lock);
    } else {
        struct timespec until = {(time_t)(wake_at / 1000000000), (long)(wake_at % 1000000000)};
        pool->timer_at = wake_at;
        pthread_cond_timedwait(&pool->work, &reader->lock, &until);
        if (pool->timer_at == wake_at)
            pool->timer_at = IO_NEVER;
    }
    pool->n_idle--;
}

static int64_t execute(const struct io_read *read)
{
    ssize_t n = pread(read->fd, read->buffer + read->resume, read->length - read->resume,
                      (off_t)(read->offset + read->resume));
    int64_t result = n < 0 ? -errno : n;
    io_read_drop_cached(read);
    return result;
}

static void *reader_thread(void *arg)
{
    struct io_reader *reader = arg;
    struct io_threads *pool = reader->backend;
    pthread_mutex_lock(&reader->lock);
    for (;;) {
        io_reader_deliver(reader);
        if (reader->stop)
            break;
        uint64_t wake_at;
        struct io_read *read = io_reader_next(reader, &wake_at);
        if (!read) {
            wait_for_work(reader, pool, wake_at);
            continue;
        }
        if (pool->n_idle > 0 && io_reader_has_work(reader)) /* the next read, or the timer for it */
            pthread_cond_signal(&pool->work);
        pthread_mutex_unlock(&reader->lock);
        int64_t result = execute(read);
        pthread_mutex_lock(&reader->lock);
        io_reader_landed(reader, read, result);
    }
    pthread_mutex_unlock(&reader->lock);
    return NULL;
}

static void threads_kick(struct io_reader *reader, uint64_t n_reads)
{
    struct io_threads *pool = reader->backend;
    if (reader->stop || (n_reads > 1 && pool->n_idle > 1))
        pthread_cond_broadcast(&pool->work);
    else if (pool->n_idle > 0)
        pthread_cond_signal(&pool->work);
}

/* reader->stop is set and was announced by a kick. */
static void threads_stop(struct io_reader *reader)
{
    struct io_threads *pool = reader->backend;
    for (uint32_t i = 0; i < pool->n_threads; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->work);
    free(pool);
}

/* Fewer threads than asked for will do; none will not. */
static enum ps_status threads_start(struct io_reader *reader, struct ps_error *err)
{
    struct io_threads *pool = calloc(1, sizeof(*pool));
    if (!pool)
        return ps_error_set(err, PS_ERR_NOMEM, "reader: out of memory for its threads");
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&pool->work, &attr);
    pthread_condattr_destroy(&attr);
    pool->timer_at = IO_NEVER;
    reader->backend = pool;
    uint32_t wanted = reader->queue_depth < MAX_THREADS ? reader->queue_depth : MAX_THREADS;
    while (pool->n_threads < wanted &&
           service_thread_start(&pool->threads[pool->n_threads], reader_thread, reader))
        pool->n_threads++;
    if (pool->n_threads == 0) {
        pthread_cond_destroy(&pool->work);
        free(pool);
        return ps_error_set(err, PS_ERR_NOMEM, "reader: cannot start a thread");
    }
    pthread_mutex_lock(&reader->lock);
    reader->queue_depth = pool->n_threads;
    pthread_mutex_unlock(&reader->lock);
    return PS_OK;
}

static uint64_t threads_memory(const struct io_reader *reader)
{
    const struct io_threads *pool = reader->backend;
    return sizeof(*pool) + (uint64_t)pool->n_threads * SERVICE_THREAD_MEMORY;
}

const struct io_backend_ops io_threads_backend = {
    .name = "threads",
    .start = threads_start,
    .stop = threads_stop,
    .kick = threads_kick,
    .memory = threads_memory,
};
