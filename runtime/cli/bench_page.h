/* The HTML page of `bench report`: one file with everything in it. */
#ifndef PENSTOCK_RUNTIME_CLI_BENCH_PAGE_H
#define PENSTOCK_RUNTIME_CLI_BENCH_PAGE_H

#include "runtime/cli/bench_plots.h"

/* A group's plots; their images are in the folder of plots. */
struct bench_section {
    struct bench_plot plots[BENCH_PLOTS_MAX];
    uint32_t n_plots;
};

/* sections: [results->n_groups]. source: the file of records, named on the page. PS_ERR_IO, PS_ERR_NOMEM. */
enum ps_status bench_page_write(const char *path, const char *plots_dir, const char *source,
                                const struct results *results, const struct bench_section *sections,
                                struct ps_error *err);

#endif
