/* Asynchronous file reader: turns jobs (sets of file ranges) into reads and calls back when they have landed.
 *
 * Two backends behind one interface: io_uring, and a pool of pread threads. Files are opened with O_DIRECT where
 * the filesystem allows it, else buffered (and then the pages read are dropped from the page cache again). The
 * reader splits large ranges, keeps at most queue_depth reads in flight, serves demand jobs before speculative
 * ones, resubmits short, EINTR and EAGAIN reads, and reports any other failure with file and offset.
 *
 * Threads: any thread may submit. Callbacks run on a thread of the reader, one at a time; they must not
 * block, and may submit. Buffers and jobs belong to the reader from submit until done() is called. */
#ifndef PENSTOCK_STORAGE_IO_READER_H
#define PENSTOCK_STORAGE_IO_READER_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/status.h"

enum { IO_ALIGN = 4096 }; /* file offsets, lengths and buffers of every read are multiples of it */

enum io_backend {
    IO_BACKEND_AUTO, /* io_uring where it is built in and the kernel allows it, else threads */
    IO_BACKEND_URING,
    IO_BACKEND_THREADS,
};

enum io_priority {
    IO_DEMAND, /* compute waits for it */
    IO_SPECULATIVE, /* nobody waits for it; issued only when no demand read is queued, in half of the depth, and with
                       no more bytes in flight than the job takes */
    IO_BACKGROUND, /* as speculative, and after all of those */
};
enum { IO_N_PRIORITIES = IO_BACKGROUND + 1 };

/* File bytes [offset, offset + length), any alignment. They are read as whole IO_ALIGN units into
 * buffer + at, so the first wanted byte lies at buffer + at + offset % IO_ALIGN. */
struct io_range {
    uint32_t file;   /* index into the reader's files */
    uint64_t offset; /* bytes */
    uint64_t length; /* bytes, > 0 */
    uint64_t at;     /* bytes into the job's buffer, a multiple of IO_ALIGN */
};

/* Bytes of buffer that a range takes: its length after rounding both ends outwards to IO_ALIGN. */
static inline uint64_t io_range_span(uint64_t offset, uint64_t length)
{
    uint64_t head = offset % IO_ALIGN;
    return (head + length + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN;
}

struct io_job {
    const struct io_range *ranges; /* borrowed until done() */
    uint32_t n_ranges;
    enum io_priority priority;
    uint8_t *buffer;                  /* IO_ALIGN-aligned */
    void (*done)(struct io_job *job); /* called exactly once; the job may be reused or freed from there on */
    void *owner;                      /* for the callbacks */
    /* NULL, or, for a job of one range: the first `bytes` of it, after alignment, are in memory. Called on a thread of the reader,
     * under its lock, each time that they have grown, and not after a failure; must be quick and may not submit. All calls come
     * before done(). */
    void (*landed)(struct io_job *job, uint64_t bytes);

    /* Outcome, valid in done(). */
    enum ps_status status; /* PS_OK, PS_ERR_IO or PS_ERR_CANCELLED */
    int error;             /* errno of the failed read; 0 with PS_ERR_IO means end of file */
    uint32_t error_file;   /* file and */
    uint64_t error_offset; /* offset of the read that failed */
    uint64_t bytes;        /* that arrived, after alignment */

    /* The reader's own. */
    struct io_job *next;
    struct io_job *prev;
    uint32_t next_range;      /* first range not wholly issued */
    uint64_t next_offset;     /* bytes of it (aligned) already issued */
    uint32_t reads_in_flight; /* */
    bool queued;              /* reads are left to issue */
    uint64_t landed_bytes;    /* what landed() was told */
};

struct io_reader_config {
    enum io_backend backend;
    bool direct;          /* try O_DIRECT first */
    uint32_t queue_depth; /* reads in flight; 0: the default, for each drive */
    uint32_t n_drives;    /* that the files are spread over; 0: one */
    uint32_t split_bytes; /* largest single read; 0: the default */
    uint64_t limit_rate;  /* bytes/s ceiling, a token bucket; 0: none */
};

struct io_reader_stats {
    uint64_t bytes_demand;      /* asked for and read, after alignment */
    uint64_t bytes_speculative; /* with the other two priorities */
    uint64_t reads;             /* completed system-level reads */
    uint64_t retries;           /* short, EINTR, EAGAIN */
    double busy_s;              /* time during which at least one read was in flight */
};

struct io_reader;

/* Opens every path for reading. PS_ERR_IO names the path; PS_ERR_UNSUPPORTED: IO_BACKEND_URING was asked for
 * and cannot be had (not built in, forbidden by the kernel or a container). */
enum ps_status io_reader_new(struct io_reader **out, const char *const *paths, uint32_t n_paths,
                             const struct io_reader_config *config, struct ps_error *err);
/* Every submitted job must have been done. NULL is fine. */
void io_reader_free(struct io_reader *reader);

/* Queues a job; never fails and never blocks on the drive: failures arrive in job->status. */
void io_reader_submit(struct io_reader *reader, struct io_job *job);
/* A job of lower priority has become a demand job. No effect when it is already issued or done. */
void io_reader_promote(struct io_reader *reader, struct io_job *job);
/* Stops a job's reads that are not yet issued; done() still follows, with PS_ERR_CANCELLED if bytes are missing. */
void io_reader_cancel(struct io_reader *reader, struct io_job *job);
/* Takes back a job none of whose reads was issued: true, and done() is not called. False: nothing changed. */
bool io_reader_withdraw(struct io_reader *reader, struct io_job *job);

/* Submit and wait: for loading, tests and tools. Not from a callback. */
enum ps_status io_reader_read(struct io_reader *reader, const struct io_range *ranges, uint32_t n_ranges,
                              uint8_t *buffer, struct ps_error *err);
/* Fills err from a failed job: "path: read failed at offset N: reason". Returns job->status. */
enum ps_status io_reader_job_error(const struct io_reader *reader, const struct io_job *job,
                                   struct ps_error *err);

const char *io_reader_file_path(const struct io_reader *reader, uint32_t file); /* file < number of paths */
const char *io_reader_backend_name(const struct io_reader *reader); /* "uring" or "threads": what is in use */
bool io_reader_is_direct(const struct io_reader *reader); /* every file is read with O_DIRECT so far */
uint32_t io_reader_queue_depth(const struct io_reader *reader);
uint64_t io_reader_memory(const struct io_reader *reader); /* bytes it holds, buffers of jobs not included */
void io_reader_get_stats(struct io_reader *reader, struct io_reader_stats *stats);

#endif
