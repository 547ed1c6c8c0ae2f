/* The plots of a group of benchmark results, as gnuplot scripts that hold their data and write an SVG and a PNG. */
#ifndef PENSTOCK_RUNTIME_CLI_BENCH_PLOTS_H
#define PENSTOCK_RUNTIME_CLI_BENCH_PLOTS_H

#include "runtime/cli/bench_results.h"

enum { BENCH_PLOTS_MAX = 3, BENCH_PLOT_NAME_SIZE = 32 };

struct bench_plot {
    char name[BENCH_PLOT_NAME_SIZE]; /* of its files, without a suffix */
    const char *title;
    char *caption;       /* owned; a sentence or more */
    const char *missing; /* why there is no plot; NULL: there is one */
    char *script;        /* owned; NULL when missing. Run it where the images are to be. */
};

/* number: of the group among those of its kind, from 1, for the names. Plots are owned by the caller. PS_ERR_NOMEM: none
 * is. */
enum ps_status bench_plots_draw(struct bench_plot plots[BENCH_PLOTS_MAX], uint32_t *n_plots,
                                const struct result_group *group, uint32_t number, struct ps_error *err);
void bench_plot_deinit(struct bench_plot *plot);

/* "1.05 GB/s", or "no limit". Returns out. */
enum { RATE_TEXT_SIZE = 24 };
const char *bench_limit_text(double limit, char out[RATE_TEXT_SIZE]);

#endif
