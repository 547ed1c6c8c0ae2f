/* What a folder of benchmark records says: repeats of the same measurement become a cell with medians, cells that differ
 * in no more than what the plots show become a group. Reading is here, drawing is bench_plots'. */
#ifndef PENSTOCK_RUNTIME_CLI_BENCH_RESULTS_H
#define PENSTOCK_RUNTIME_CLI_BENCH_RESULTS_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/penstock.h"

enum result_kind { RESULT_DECODE, RESULT_PREFILL, RESULT_IO, RESULT_N_KINDS };
const char *result_kind_name(enum result_kind kind);

enum result_figure {
    /* What was set; together they are a cell's key. */
    FIGURE_RAM,   /* bytes */
    FIGURE_LIMIT, /* bytes/s; INFINITY: none */
    FIGURE_CHUNK, /* prefill: tokens */
    FIGURE_DEPTH, /* io: reads in flight */
    FIGURE_BLOCK, /* io: bytes of a read */
    RESULT_N_KEYS,
    /* What was measured; NAN: not known. Seconds are per token. */
    FIGURE_RATE = RESULT_N_KEYS, /* tokens/s; io: bytes/s */
    FIGURE_HIT_RATE,             /* 0..1 */
    FIGURE_CYCLES,               /* cache in token cycles */
    FIGURE_DRIVE, /* bytes/s that the drive gives at most, throttled or not: of all cells with the limit */
    FIGURE_TOKEN_BYTES, /* read per token */
    FIGURE_OF_BOUND,    /* rate over the bound */
    FIGURE_WORK_S,      /* all but stalls: what computing alone would take */
    FIGURE_STALL_S,
    FIGURE_BOOKKEEPING_S,
    FIGURE_PARTS_S, /* PS_N_PARTS of them: what computing consists of; PS_PART_OTHER: not divided */
    RESULT_N_FIGURES = FIGURE_PARTS_S + PS_N_PARTS,
};

/* Over repeats; NAN where no repeat knows it. */
struct result_spread {
    double median, least, most;
};

struct result_cell {
    struct result_spread of[RESULT_N_FIGURES];
    uint32_t repeats;
    bool prefetch_off; /* it was asked for, but not in effect in some repeat */
};

/* Cells with the same model, machine and other settings, by key ascending. */
struct result_group {
    enum result_kind kind;
    const char *machine, *model,
        *setting;      /* as texts; machine is "" where the records do not say; io: model is what was read */
    bool tell_machine; /* other groups are of another one */
    const struct result_cell *cells;
    uint32_t n_cells;
};

struct results {
    struct result_group *groups; /* by kind, then text */
    uint32_t n_groups;
    uint32_t n_records, n_skipped; /* lines; a record is a sample */
    double first_time, last_time;  /* Unix seconds; 0: not known */
    struct result_cell *cells;     /* of all groups */
    struct result_sample *samples; /* own the texts */
};

/* Reads a file of JSON lines. Lines that are no record are named on stderr and left out. PS_ERR_IO; PS_ERR_FORMAT: no
 * record in it; PS_ERR_NOMEM. Deinit in any case. */
enum ps_status results_read(struct results *results, const char *path, struct ps_error *err);
void results_deinit(struct results *results);

/* Cells of a group that are equal in some of the key, by another figure ascending. */
struct result_curve {
    const struct result_cell **cells; /* [n] owned */
    uint32_t n;
    enum result_figure x;
};

/* Through `cell` (of group), over the cells that have its value of the key figures same[n_same] and know x and the rate.
 * Of two with the same x only the first is taken. False: out of memory. */
bool result_curve_init(struct result_curve *curve, const struct result_group *group,
                       const struct result_cell *cell, enum result_figure x, const enum result_figure *same,
                       uint32_t n_same);
void result_curve_deinit(struct result_curve *curve);
/* The knee of y over x (speed_knee); 0: none. */
uint32_t result_curve_knee(const struct result_curve *curve, enum result_figure y);

/* What twice the drive, or twice the RAM, does to tokens/s: factors. */
struct result_gain {
    double factor;  /* between measured cells, linear; NAN: not measured that far */
    double at_most; /* by the bounds; NAN: not known */
};
enum ps_status result_gain_drive(struct result_gain *gain, const struct result_group *group,
                                 const struct result_cell *cell, struct ps_error *err);
enum ps_status result_gain_ram(struct result_gain *gain, const struct result_group *group,
                               const struct result_cell *cell, struct ps_error *err);

/* Tokens/s of the group's cell that computes fastest, stalls left out; NAN: not known. */
double result_computing_alone(const struct result_group *group);

#endif
