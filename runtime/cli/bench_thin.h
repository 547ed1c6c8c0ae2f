/* Plots of large grids: of each axis of the grid only some values are drawn, so that curves and bars can be told apart. */
#ifndef PENSTOCK_RUNTIME_CLI_BENCH_THIN_H
#define PENSTOCK_RUNTIME_CLI_BENCH_THIN_H

#include <stdio.h>

#include "runtime/cli/bench_results.h"

enum { BENCH_THIN_MAX_KEYS = 3 };

/* What becomes a curve or a bar of its own, and how many of them a plot has room for. */
struct bench_thin_rule {
    enum result_figure keys[BENCH_THIN_MAX_KEYS];
    uint32_t n_keys;
    uint32_t most;
    bool gaps; /* each value of the first key takes the room of one more */
};

struct bench_thinned {
    struct result_group group; /* of the cells that are drawn; its texts are the whole group's */
    struct result_cell *cells; /* owned */
    uint32_t n[BENCH_THIN_MAX_KEYS], of[BENCH_THIN_MAX_KEYS]; /* values that are drawn, of so many */
};

/* Takes values from the key that has most of them until there is room; those kept are spread evenly over all, the least and
 * the most of them included. False: out of memory. Deinit in any case. */
bool bench_thin(struct bench_thinned *thinned, const struct result_group *group,
                const struct bench_thin_rule *rule);
void bench_thin_deinit(struct bench_thinned *thinned);
/* What was left out, a sentence after a space; nothing where all is drawn. */
void bench_thin_tell(FILE *out, const struct bench_thinned *thinned, const struct bench_thin_rule *rule);

#endif
