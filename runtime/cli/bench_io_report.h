/* What `penstock bench io` found: the table and the sentence, or JSON lines. */
#ifndef PENSTOCK_RUNTIME_CLI_BENCH_IO_REPORT_H
#define PENSTOCK_RUNTIME_CLI_BENCH_IO_REPORT_H

#include "runtime/io_bench.h"

enum { IO_MAX_REPEAT = 99 };

struct io_result {
    struct io_cell cell;
    double rates[IO_MAX_REPEAT]; /* bytes/s of each repeat; ascending once all are there */
    uint32_t n_rates;            /* 0: the cell was left out */
    struct io_sample sum;        /* of all repeats */
    struct latency_histogram latency;
};

struct io_report {
    const char *place; /* of the files: the directory, or the model */
    uint64_t file_bytes;
    uint64_t shard_bytes;
    uint64_t io_limit; /* bytes/s; 0: none */
    struct io_result *results;
    uint32_t n_results;
};

double io_result_rate(const struct io_result *result); /* bytes/s, the median */
/* The cell that reads random extents (of a report without one: any cell) at 97 % of the best such cell's rate or more with the
 * smallest extents, then the fewest in flight, then the smallest reads. NULL: nothing was measured. */
const struct io_result *io_report_saturating(const struct io_report *report, double *best_rate);

void io_report_print(const struct io_report *report);
/* One object per cell, and one of kind "io_saturation". Returns an exit code; the message is printed. */
int io_report_json(const struct io_report *report);

#endif
