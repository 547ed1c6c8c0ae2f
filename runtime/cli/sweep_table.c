/* The table at the end of a sweep. */
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/bench_report.h"
#include "runtime/cli/cli.h"
#include "runtime/cli/sweep.h"

enum { MEDIANS = 4 };

/* The kind and the budget are always said, of the others what varies. */
static bool has_column(const struct sweep *s, int axis)
{
    return axis <= AXIS_RAM || s->grid.n_values[axis] > 1;
}

static void print_heading(const struct sweep *s)
{
    for (int axis = 0; axis < SWEEP_N_AXES; axis++) {
        if (has_column(s, axis))
            cli_printf("%-12s", sweep_axis_name((enum sweep_axis)axis));
    }
    cli_printf("%10s%10s%10s%8s%12s%10s%7s\n", "tok/s", "least", "most", "hit", "MB/token", "of bound",
               "times");
}

static void print_row(const struct sweep *s, uint32_t cell, double *values[MEDIANS], uint32_t n)
{
    char text[32];
    struct sweep_cell settings = sweep_grid_cell(&s->grid, cell);
    for (int axis = 0; axis < SWEEP_N_AXES; axis++) {
        if (has_column(s, axis))
            cli_printf("%-12s",
                       sweep_value_text((enum sweep_axis)axis, settings.values[axis], text, sizeof(text)));
    }
    double rate = bench_median(values[0], n);
    cli_printf("%10.2f%10.2f%10.2f%7.1f%%%12.2f%9.1f%%%7u\n", rate, values[0][0], values[0][n - 1],
               100.0 * bench_median(values[1], n), 1e-6 * bench_median(values[2], n),
               100.0 * bench_median(values[3], n), n);
}

bool sweep_print_table(const struct sweep *s)
{
    uint32_t repeat = s->options->repeat, n_cells = s->grid.n_cells;
    double *memory = malloc((size_t)repeat * MEDIANS * sizeof(*memory));
    if (!memory)
        return false;
    double *values[MEDIANS];
    for (int i = 0; i < MEDIANS; i++)
        values[i] = memory + (size_t)i * repeat;
    print_heading(s);
    for (uint32_t cell = 0; cell < n_cells; cell++) {
        uint32_t n = 0;
        for (uint32_t r = 0; r < repeat; r++) {
            const struct sweep_result *result = &s->results[(size_t)r * n_cells + cell];
            if (!result->done)
                continue;
            values[0][n] = result->tokens_s;
            values[1][n] = result->hit_rate;
            values[2][n] = result->bytes;
            values[3][n++] = result->of_bound;
        }
        if (n > 0)
            print_row(s, cell, values, n);
    }
    free(memory);
    return true;
}
