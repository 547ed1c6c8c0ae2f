/* The record that ties the benchmarks together: one pass over a model's tokens and what it was made with, as a line of
 * JSON. `bench decode|prefill --json-lines` and `bench sweep` write it; its fields stand in bench/README.md. */
#ifndef PENSTOCK_RUNTIME_CLI_BENCH_RECORD_H
#define PENSTOCK_RUNTIME_CLI_BENCH_RECORD_H

#include <jansson.h>

#include "runtime/machine_description.h"
#include "runtime/penstock.h"

enum { BENCH_FLAGS_SIZE = 384 };

/* Strings without a size are borrowed from tables. Seconds are of the whole pass. */
struct bench_record {
    const char *kind; /* "decode", "prefill" */
    char model[128], arch[32];
    uint64_t file_bytes;
    uint64_t ram, io_limit;               /* bytes, bytes/s; 0: no limit */
    const char *prefetch, *prefetch_used; /* "auto", "off": what was asked for; what was in effect */
    uint32_t queue_depth, threads, chunk;
    const char *policy;
    char flags[BENCH_FLAGS_SIZE]; /* what else was asked for: "--tokens random:1 --warm-up 1 --kv q8_0" */
    const char *replay;           /* the recording whose routing was replayed; NULL: the model's own */
    uint32_t repeat;              /* from 1 */
    uint32_t tokens;
    double seconds;       /* compute_s + stall_s + bookkeeping_s */
    double first_token_s; /* from the start of the pass */
    double compute_s;     /* kernels, and waiting for other threads' part of them */
    double stall_s;       /* waiting for reads */
    double bookkeeping_s; /* cache, predictor, embedding, sampling */
    double parts_s[PS_N_PARTS];
    double hit_rate;
    uint64_t bytes_read;
    double useful_bytes; /* without what was read ahead in vain */
    double drive_limit;  /* bytes/s; 0: not known */
    double cycles;       /* cache in token cycles */
    uint64_t peak_rss;
    struct machine_description machine;
    int64_t time; /* Unix, at its end */
};

double bench_record_rate(const struct bench_record *record);  /* tokens/s */
double bench_record_drive(const struct bench_record *record); /* bytes/s */
/* Tokens/s that neither computing alone nor reading alone, whichever is slower, would let it pass: the speed model's
 * best case. Where the drive's rate is not known, of computing. */
double bench_record_bound(const struct bench_record *record);
/* Whether reading is the slower of the two. */
bool bench_record_is_drive_bound(const struct bench_record *record);

/* Names and paths may hold any bytes: where they are not UTF-8, and so cannot stand in JSON, what is not ASCII becomes '?'. */
void bench_text_clean(char *text);

/* The object that all kinds of records have as "machine". NULL when memory runs out. */
json_t *bench_machine_json(const struct machine_description *machine);
/* NULL when memory runs out. */
json_t *bench_record_json(const struct bench_record *record);
/* One line with its newline, malloc'ed; NULL when memory runs out. */
char *bench_record_line(const json_t *object);
/* Digits with which figures are written. */
enum { BENCH_RECORD_FORMAT = JSON_COMPACT | JSON_REAL_PRECISION(9) };

#endif
