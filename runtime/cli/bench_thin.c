#include "runtime/cli/bench_thin.h"

#include <stdlib.h>

/* The values of a key. */
struct axis {
    double *values; /* [n] ascending, each once; owned */
    uint32_t n;
};

static double key_of(const struct result_cell *cell, enum result_figure key)
{
    return cell->of[key].median;
}

static int by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static bool axis_init(struct axis *axis, const struct result_group *group, enum result_figure key)
{
    *axis = (struct axis){.values = malloc(group->n_cells * sizeof(*axis->values))};
    if (!axis->values)
        return false;
    for (uint32_t i = 0; i < group->n_cells; i++)
        axis->values[i] = key_of(&group->cells[i], key);
    qsort(axis->values, group->n_cells, sizeof(*axis->values), by_value);
    for (uint32_t i = 0; i < group->n_cells; i++) {
        if (axis->n == 0 || axis->values[axis->n - 1] < axis->values[i])
            axis->values[axis->n++] = axis->values[i];
    }
    return true;
}

/* Whether a value is among n that are spread evenly over the axis. */
static bool is_kept(const struct axis *axis, double value, uint32_t n)
{
    const double *found = bsearch(&value, axis->values, axis->n, sizeof(value), by_value);
    if (n == axis->n)
        return true;
    for (uint32_t i = 0; i < n; i++) {
        if (found == &axis->values[((uint64_t)i * (axis->n - 1) + (n - 1) / 2) / (n - 1)])
            return true;
    }
    return false;
}

static uint64_t room(const uint32_t *n, const struct bench_thin_rule *rule)
{
    uint64_t product = 1;
    for (uint32_t key = 1; key < rule->n_keys; key++)
        product *= n[key];
    return n[0] * (product + rule->gaps);
}

/* Of two keys with as many values the first keeps more. */
static void choose(uint32_t *n, const struct bench_thin_rule *rule)
{
    while (room(n, rule) > rule->most) {
        uint32_t largest = 0;
        for (uint32_t key = 1; key < rule->n_keys; key++)
            largest = n[key] >= n[largest] ? key : largest;
        if (n[largest] <= 2)
            return;
        n[largest]--;
    }
}

bool bench_thin(struct bench_thinned *thinned, const struct result_group *group,
                const struct bench_thin_rule *rule)
{
    struct axis axes[BENCH_THIN_MAX_KEYS] = {0};
    *thinned =
        (struct bench_thinned){.group = *group, .cells = malloc(group->n_cells * sizeof(*thinned->cells))};
    bool ok = thinned->cells != NULL;
    for (uint32_t key = 0; ok && key < rule->n_keys; key++) {
        ok = axis_init(&axes[key], group, rule->keys[key]);
        thinned->n[key] = thinned->of[key] = axes[key].n;
    }
    if (ok)
        choose(thinned->n, rule);
    thinned->group.cells = thinned->cells;
    thinned->group.n_cells = 0;
    for (uint32_t i = 0; ok && i < group->n_cells; i++) {
        const struct result_cell *cell = &group->cells[i];
        uint32_t kept = 0;
        while (kept < rule->n_keys && is_kept(&axes[kept], key_of(cell, rule->keys[kept]), thinned->n[kept]))
            kept++;
        if (kept == rule->n_keys)
            thinned->cells[thinned->group.n_cells++] = *cell;
    }
    for (uint32_t key = 0; key < rule->n_keys; key++)
        free(axes[key].values);
    return ok;
}

void bench_thin_deinit(struct bench_thinned *thinned)
{
    free(thinned->cells);
}

void bench_thin_tell(FILE *out, const struct bench_thinned *thinned, const struct bench_thin_rule *rule)
{
    static const char *const names[RESULT_N_KEYS] = {[FIGURE_RAM] = "budgets",
                                                     [FIGURE_LIMIT] = "limits",
                                                     [FIGURE_CHUNK] = "chunk sizes",
                                                     [FIGURE_DEPTH] = "queue depths"};
    bool any = false;
    for (uint32_t key = 0; key < rule->n_keys; key++) {
        if (thinned->n[key] == thinned->of[key])
            continue;
        fprintf(out, "%s %u of %u %s", any ? "," : " Drawn, for lack of room:", thinned->n[key],
                thinned->of[key], names[rule->keys[key]]);
        any = true;
    }
    fputs(any ? "." : "", out);
}
