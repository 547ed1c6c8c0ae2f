/* What `penstock plan` found, as a table with a curve, or as JSON. */
#ifndef PENSTOCK_RUNTIME_CLI_PLAN_REPORT_H
#define PENSTOCK_RUNTIME_CLI_PLAN_REPORT_H

#include "runtime/cli/plan_probe.h"

enum { PLAN_MAX_DRIVES = 8 };

/* Over some tokens, on average. */
struct plan_outcome {
    double hit_rate;
    double bytes; /* read per token */
    double tok_s;
};

struct plan_row {
    uint64_t ram;
    bool fits;   /* false: of the rest only memory.minimum holds */
    bool within; /* not more than this machine has available */
    struct ps_plan memory;
    struct plan_outcome first;           /* n tokens from an empty cache */
    struct plan_outcome steady;          /* once it has settled */
    bool drive_bound;                    /* in the steady state; false: computing is the limit */
    double drive_tok_s[PLAN_MAX_DRIVES]; /* steady, with each of the report's drives */
};

struct plan_report {
    const char *model, *profile;
    uint32_t n; /* tokens of plan_row.first */
    uint64_t available;
    const struct plan_probe *probe;
    const struct plan_row *rows;
    uint32_t n_rows;
    const uint64_t *drives; /* [n_drives] other drives' bytes/s */
    uint32_t n_drives;
    int knee, recommended; /* rows; -1: none */
};

void plan_report_print(const struct plan_report *report);
/* Returns an exit code; the message is printed. */
int plan_report_json(const struct plan_report *report);

#endif
