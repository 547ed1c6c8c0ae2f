/* A sweep under way: its cells, which measurements are done, and what they came to. */
#ifndef PENSTOCK_RUNTIME_CLI_SWEEP_H
#define PENSTOCK_RUNTIME_CLI_SWEEP_H

#include "runtime/cli/bench_run.h"
#include "runtime/cli/sweep_grid.h"
#include "runtime/cli/sweep_records.h"

struct sweep_options {
    const char *lists[SWEEP_N_AXES];
    uint32_t n; /* tokens; 0: each kind's own */
    const char *tokens;
    const char *replay; /* as bench_options */
    uint32_t warm_up, repeat;
    float probe;
    uint64_t seed;
    const char *directory;
};

/* One cell in one repeat. */
struct sweep_result {
    bool done;
    double tokens_s, hit_rate, bytes, of_bound; /* bytes: per token */
};

/* What the process that measures a cell leaves. */
struct sweep_finding {
    struct bench_record record;
    char replay_text[1024]; /* of the survey: what is replayed; "": nothing */
    uint64_t minimum; /* the cell's budget is too small, this is the smallest that works; 0: it is not */
};

struct sweep {
    const struct sweep_options *options;
    const struct model_options *model_options;  /* what the axes do not say */
    char replay_identity[REPLAY_IDENTITY_SIZE]; /* "": there is no replay */
    struct sweep_grid grid;
    struct sweep_records records;
    struct sweep_result *results; /* [repeat][n_cells] */
    uint64_t *minimum; /* [n_cells] of cells whose budget is too small; 0: it is not. Shared memory */
    struct sweep_finding *found; /* shared memory */
    double *seconds;             /* [n_cells] what the cell took last; 0: not known */
};

/* Median, least and most of each cell that has results. False when memory runs out. */
bool sweep_print_table(const struct sweep *s);

#endif
