/* How fast the reader that runs use brings extents of files: one setting (a cell) at a time, with its queue kept full, and
 * the time each extent takes from submit to completion. Files are never written. */
#ifndef PENSTOCK_RUNTIME_IO_BENCH_H
#define PENSTOCK_RUNTIME_IO_BENCH_H

#include <signal.h>

#include "runtime/latency_histogram.h"
#include "runtime/penstock.h"
#include "storage/io_reader.h"

enum io_pattern {
    IO_RANDOM,     /* extents anywhere in the files */
    IO_SEQUENTIAL, /* each extent follows the last one */
};

struct io_cell {
    enum io_pattern pattern;
    enum io_backend backend; /* not AUTO */
    bool direct;
    uint64_t
        extent_bytes; /* of a job, a multiple of IO_ALIGN, at most io_bench_largest_extent; 0: a shard of the model, random */
    uint32_t block_bytes;  /* an extent is read in pieces of it */
    uint32_t queue_depth;  /* such reads in flight */
    uint64_t memory_bytes; /* extents land all over it, in turns; at least one fits */
};

/* One measurement of a cell. Filling and draining the queue count only for the drive. */
struct io_sample {
    uint64_t bytes, reads, extents;
    double seconds;
    bool drive_known;     /* the files' file system is on one block device */
    uint64_t drive_bytes; /* what it read meanwhile by its own counters, */
    double drive_seconds; /* from the first submit to the last landing */
};

struct io_bench;

/* Of a model's files, or one file. *cancel is watched. PS_ERR_IO, PS_ERR_NOMEM, PS_ERR_ARGUMENT: a file too small to measure. */
enum ps_status io_bench_new(struct io_bench **out, const char *path, const volatile sig_atomic_t *cancel,
                            struct ps_error *err);
enum ps_status io_bench_new_model(struct io_bench **out, const struct ps_model *model,
                                  const volatile sig_atomic_t *cancel, struct ps_error *err);
void io_bench_free(struct io_bench *bench); /* NULL is fine */

uint64_t io_bench_largest_extent(const struct io_bench *bench); /* bytes */
uint64_t io_bench_shard_bytes(const struct io_bench *bench);    /* the largest; 0: there are none */

/* Reads for about `seconds`, at most limit_rate bytes/s (0: no limit); latency gets a sample per extent. What a buffered
 * cell's files have in the page cache is dropped first, as the reader drops what it has read. PS_ERR_UNSUPPORTED: backend,
 * depth or O_DIRECT cannot be had here. PS_ERR_IO, PS_ERR_NOMEM, PS_ERR_CANCELLED. */
enum ps_status io_bench_measure(struct io_bench *bench, const struct io_cell *cell, uint64_t limit_rate,
                                double seconds, struct io_sample *sample, struct latency_histogram *latency,
                                struct ps_error *err);

#endif
