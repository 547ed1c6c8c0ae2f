/* The grid of `bench sweep`: lists of values per axis, all their combinations, and the order of visiting them. */
#ifndef PENSTOCK_RUNTIME_CLI_SWEEP_GRID_H
#define PENSTOCK_RUNTIME_CLI_SWEEP_GRID_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum sweep_axis {
    AXIS_KIND, /* enum bench_kind */
    AXIS_RAM,  /* bytes */
    AXIS_IO_LIMIT,
    AXIS_PREFETCH, /* enum ps_prefetch */
    AXIS_QUEUE_DEPTH,
    AXIS_THREADS,
    AXIS_CHUNK,
    SWEEP_N_AXES,
};
enum { SWEEP_MAX_VALUES = 64, SWEEP_MAX_CELLS = 4096, SWEEP_TEXT_SIZE = 192 };

struct sweep_cell {
    uint64_t values[SWEEP_N_AXES];
};

struct sweep_grid {
    uint64_t values[SWEEP_N_AXES][SWEEP_MAX_VALUES]; /* in the order given, each once */
    uint32_t n_values[SWEEP_N_AXES];
    uint32_t n_cells;
};

/* lists: "a,b,c" per axis. False: the message is printed, *exit_code set. */
bool sweep_grid_init(struct sweep_grid *grid, const char *const lists[SWEEP_N_AXES], int *exit_code);
/* The axes' order is that of nested loops, the last one innermost. index < n_cells. */
struct sweep_cell sweep_grid_cell(const struct sweep_grid *grid, uint32_t index);

const char *sweep_axis_name(enum sweep_axis axis);
/* For people: "4.80 GiB", "none", "auto". Returns out. */
const char *sweep_value_text(enum sweep_axis axis, uint64_t value, char *out, size_t size);
/* Exact, the same for the same cell of any grid: "decode ram=6291456 io-limit=0 ...". */
void sweep_cell_key(const struct sweep_cell *cell, char out[SWEEP_TEXT_SIZE]);
/* For people: the kind, the budget, and what else varies in the grid. */
void sweep_cell_text(const struct sweep_grid *grid, const struct sweep_cell *cell, char out[SWEEP_TEXT_SIZE]);

/* A permutation of the cells' indices, another one for each repeat. order[n]. */
void sweep_order(uint32_t *order, uint32_t n, uint64_t seed, uint32_t repeat);

#endif
