/* io_uring backend of the async reader: one ring and one reaper thread.
 *
 * Whoever submits a job hands its first reads to the kernel itself, under the reader's lock, so that no thread has
 * to wake up before the drive starts. The reaper waits for completions, refills the ring and runs the callbacks.
 * IORING_SETUP_COOP_TASKRUN, SINGLE_ISSUER and DEFER_TASKRUN are not for this design: completions would then
 * wait until the submitting thread, which computes, enters the kernel again. */
#if PENSTOCK_HAVE_URING

#include "storage/io_reader_internal.h"
#include "storage/service_thread.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>

/* The reaper looks after the ring at least this often; needed only where the kernel refused a submission for want
 * of memory while nothing was in flight. */
#define HEARTBEAT_NS UINT64_C(1000000000)

struct uring {
    struct io_uring ring; /* submission side under the reader's lock, completion side the reaper's */
    pthread_t reaper;
    uint64_t sleep_until; /* ns; the reaper waits until then */
    bool wake_queued;     /* a wake-up is on its way to the reaper */
};

static void hand_over(struct uring *uring)
{
    while (io_uring_sq_ready(&uring->ring) > 0) {
        int rc = io_uring_submit(&uring->ring);
        if (rc <= 0 && rc != -EINTR)
            break; /* tried again by the reaper */
    }
}

/* A no-op whose completion ends the reaper's wait. */
static void queue_wake(struct uring *uring)
{
    struct io_uring_sqe *sqe = uring->wake_queued ? NULL : io_uring_get_sqe(&uring->ring);
    if (!sqe)
        return;
    io_uring_prep_nop(sqe);
    io_uring_sqe_set_data(sqe, NULL);
    uring->wake_queued = true;
}

/* Issues what may be issued. Returns the time of the next attempt. */
static uint64_t issue(struct io_reader *reader, struct uring *uring)
{
    uint64_t wake_at = IO_NEVER;
    struct io_read *read;
    while (io_uring_sq_space_left(&uring->ring) > 0 && (read = io_reader_next(reader, &wake_at))) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
        io_uring_prep_read(sqe, read->fd, read->buffer + read->resume,
                           (unsigned)(read->length - read->resume), read->offset + read->resume);
        if (!read->direct) /* copying from the page cache is not the submitter's work */
            io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
        io_uring_sqe_set_data(sqe, read);
    }
    return wake_at;
}

static void uring_kick(struct io_reader *reader, uint64_t n_reads)
{
    (void)n_reads;
    struct uring *uring = reader->backend;
    uint64_t wake_at = issue(reader, uring);
    if (reader->stop || wake_at < uring->sleep_until || (reader->finished.head && !reader->delivering))
        queue_wake(uring);
    hand_over(uring);
}

/* Takes what has completed off the ring: a list of reads, each with its result. */
static struct io_read *collect(struct uring *uring)
{
    struct io_read *landed = NULL;
    struct io_uring_cqe *cqe;
    while (io_uring_peek_cqe(&uring->ring, &cqe) == 0) {
        struct io_read *read = io_uring_cqe_get_data(cqe);
        if (read) {
            read->result = cqe->res;
            read->next = landed;
            landed = read;
        } else {
            uring->wake_queued = false;
        }
        io_uring_cqe_seen(&uring->ring, cqe);
    }
    return landed;
}

static void wait_for_completion(struct io_reader *reader, struct uring *uring, uint64_t wake_at)
{
    uint64_t now = io_now();
    uint64_t until = now + HEARTBEAT_NS;
    if (wake_at < until)
        until = wake_at > now ? wake_at : now;
    uring->sleep_until = until;
    pthread_mutex_unlock(&reader->lock);
    struct __kernel_timespec timeout = {(int64_t)((until - now) / 1000000000),
                                        (int64_t)((until - now) % 1000000000)};
    struct io_uring_cqe *cqe;
    io_uring_wait_cqe_timeout(&uring->ring, &cqe, &timeout);
    pthread_mutex_lock(&reader->lock);
    uring->sleep_until = 0;
}

/* Under the lock, which it drops for system calls. */
static void land(struct io_reader *reader, struct io_read *landed)
{
    if (!io_reader_is_direct(reader)) {
        pthread_mutex_unlock(&reader->lock);
        for (struct io_read *read = landed; read; read = read->next)
            io_read_drop_cached(read);
        pthread_mutex_lock(&reader->lock);
    }
    while (landed) {
        struct io_read *read = landed;
        landed = read->next;
        io_reader_landed(reader, read, read->result);
    }
}

static void *reaper_thread(void *arg)
{
    struct io_reader *reader = arg;
    struct uring *uring = reader->backend;
    pthread_mutex_lock(&reader->lock);
    while (!reader->stop) {
        land(reader, collect(uring));
        uint64_t wake_at = issue(reader, uring);
        hand_over(uring);
        if (reader->finished.head)
            io_reader_deliver(reader); /* may have submitted: issue again before waiting */
        else
            wait_for_completion(reader, uring, wake_at);
    }
    pthread_mutex_unlock(&reader->lock);
    return NULL;
}

static void uring_stop(struct io_reader *reader)
{
    struct uring *uring = reader->backend;
    pthread_join(uring->reaper, NULL);
    io_uring_queue_exit(&uring->ring);
    free(uring);
}

/* A container may allow to create a ring and forbid to use it, so one no-op goes through it. */
static int probe(struct uring *uring)
{
    queue_wake(uring);
    int rc = io_uring_submit(&uring->ring);
    struct io_uring_cqe *cqe;
    if (rc == 1)
        rc = io_uring_wait_cqe(&uring->ring, &cqe);
    if (rc == 0)
        io_uring_cqe_seen(&uring->ring, cqe);
    uring->wake_queued = false;
    return rc;
}

static enum ps_status uring_start(struct io_reader *reader, struct ps_error *err)
{
    struct uring *uring = calloc(1, sizeof(*uring));
    if (!uring)
        return ps_error_set(err, PS_ERR_NOMEM, "io_uring: out of memory");
    struct io_uring_params params = {0};
    int rc =
        io_uring_queue_init_params(reader->queue_depth + 1, &uring->ring, &params); /* + 1: the wake-up */
    if (rc == 0) {
        /* EXT_ARG (Linux 5.11): a wait with a timeout that takes no submission entry. */
        rc = params.features & IORING_FEAT_EXT_ARG ? probe(uring) : -ENOSYS;
        reader->backend = uring;
        if (rc == 0 && service_thread_start(&uring->reaper, reaper_thread, reader))
            return PS_OK;
        io_uring_queue_exit(&uring->ring);
    }
    free(uring);
    char text[128];
    return ps_error_set(err, PS_ERR_UNSUPPORTED, "io_uring: not available: %s: use the threads backend",
                        strerror_r(rc < 0 ? -rc : EAGAIN, text, sizeof(text)));
}

static uint64_t uring_memory(const struct io_reader *reader)
{
    const struct uring *uring = reader->backend;
    const struct io_uring *ring = &uring->ring;
    return sizeof(*uring) + ring->sq.ring_sz + ring->cq.ring_sz +
           ring->sq.ring_entries * sizeof(struct io_uring_sqe) + SERVICE_THREAD_MEMORY;
}

const struct io_backend_ops io_uring_backend = {
    .name = "uring",
    .start = uring_start,
    .stop = uring_stop,
    .kick = uring_kick,
    .memory = uring_memory,
};

#endif
