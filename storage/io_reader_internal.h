/* What the core of the async reader and its backends share. Not for use outside storage/io_*.c and its tests.
 *
 * The core owns queues, splitting, throttle, retries, statistics and callbacks; a backend only executes single
 * reads. Everything here is guarded by reader->lock unless it is constant after io_reader_new. A read that
 * io_reader_next() has handed out belongs to the backend until it gives it back with io_reader_landed(). */
#ifndef PENSTOCK_STORAGE_IO_READER_INTERNAL_H
#define PENSTOCK_STORAGE_IO_READER_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/types.h>

#include "storage/io_reader.h"

#define IO_NEVER UINT64_MAX

struct io_file {
    char *path;
    int fd;
    bool direct; /* O_DIRECT is set on fd */
};

/* One system-level read of at most split_bytes, and its retries. */
struct io_read {
    struct io_job *job; /* NULL: not in use */
    uint32_t file;
    enum io_priority priority; /* when it was issued */
    int fd;
    bool direct;      /* fd had O_DIRECT when it was issued last */
    uint64_t offset;  /* in the file, aligned */
    uint64_t length;  /* bytes, aligned */
    uint64_t wanted;  /* bytes that must arrive; what follows is alignment and may lie past the end of file */
    uint64_t arrived; /* bytes in the buffer so far */
    uint64_t resume;  /* where the next attempt starts: bytes from offset */
    uint8_t *buffer;
    uint32_t attempts; /* failed ones since the last progress */
    int64_t result;    /* of the last attempt; the backend's scratch */
    uint64_t due;      /* ns; a retry waits until then */
    struct io_read *next;
};

struct io_job_list {
    struct io_job *head;
    struct io_job *tail;
};

struct io_backend_ops {
    const char *name;
    /* May lower reader->queue_depth. PS_ERR_UNSUPPORTED when the system does not offer what it needs. */
    enum ps_status (*start)(struct io_reader *reader, struct ps_error *err);
    /* Ends the backend's threads (reader->stop is set) and frees it. Called without the lock. */
    void (*stop)(struct io_reader *reader);
    /* Under the lock: about n_reads became issuable, or (0) a job finished outside the backend's threads. */
    void (*kick)(struct io_reader *reader, uint64_t n_reads);
    uint64_t (*memory)(const struct io_reader *reader); /* bytes */
};

struct io_reader {
    const struct io_backend_ops *ops;
    void *backend; /* the backend's own */
    struct io_file *files;
    uint32_t n_files;
    uint32_t queue_depth;
    uint32_t split_bytes;
    uint64_t limit_rate; /* bytes/s; 0: none */

    pthread_mutex_t lock;
    pthread_cond_t read_done;                   /* for io_reader_read */
    struct io_job_list queued[IO_N_PRIORITIES]; /* jobs not wholly issued */
    struct io_job_list finished;                /* waiting for done() */
    struct io_read *reads;                      /* [n_reads] */
    uint32_t n_reads;                           /* queue_depth before the backend lowered it */
    struct io_read *free_reads;
    struct io_read *retries;        /* waiting until due */
    uint32_t in_flight;             /* reads taken from free_reads */
    uint32_t in_flight_ahead;       /* of them, below demand priority, */
    uint64_t in_flight_ahead_bytes; /* and their bytes */
    uint64_t bucket_ns;             /* up to here the limited rate is spent */
    uint64_t busy_since;
    uint64_t busy_ns;
    struct io_reader_stats stats;
    bool delivering; /* a thread is running callbacks */
    bool stop;
    atomic_bool direct; /* every file still is */

    /* Test seam: sees the outcome of every system read (bytes or -errno) and may replace it. */
    int64_t (*filter)(void *context, const struct io_read *read, int64_t result);
    void *filter_context;
};

#if PENSTOCK_HAVE_URING
extern const struct io_backend_ops io_uring_backend;
#endif
extern const struct io_backend_ops io_threads_backend;

uint64_t io_now(void); /* ns, monotonic */

/* Under the lock: the next read to execute, or NULL and the time at which to ask again (IO_NEVER: after a kick). */
struct io_read *io_reader_next(struct io_reader *reader, uint64_t *wake_at);
/* Under the lock: reads are queued or wait for a retry. */
static inline bool io_reader_has_work(const struct io_reader *reader)
{
    return reader->queued[IO_DEMAND].head || reader->queued[IO_SPECULATIVE].head ||
           reader->queued[IO_BACKGROUND].head || reader->retries;
}
/* Without the lock: gives the pages of a buffered read back, so that the page cache does not grow. */
void io_read_drop_cached(const struct io_read *read);
/* Under the lock: hands a read back with its result, bytes or -errno. It is retried, or counts for its job. */
void io_reader_landed(struct io_reader *reader, struct io_read *read, int64_t result);
/* Under the lock, which it drops around each call: runs the callbacks of finished jobs. */
void io_reader_deliver(struct io_reader *reader);

#endif
