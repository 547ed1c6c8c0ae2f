#include "runtime/cli/sweep_grid.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/bench_run.h"
#include "runtime/cli/cli.h"
#include "runtime/size_text.h"
#include "runtime/splitmix.h"

/* ---- axes ---- */

static const struct flag_word kind_words[] = {{"decode", BENCH_DECODE}, {"prefill", BENCH_PREFILL}, {0}};
static const struct flag_word prefetch_words[] = {{"off", PS_PREFETCH_OFF}, {"auto", PS_PREFETCH_AUTO}, {0}};
static const struct flag_word no_limit[] = {{"none", 0}, {0}};
static const struct flag_word choose[] = {{"auto", 0}, {0}};

struct axis {
    const char *name;              /* its flag */
    const struct flag_word *words; /* that stand for values; NULL: none */
    bool is_size, is_number;       /* what else there can be */
    uint64_t most;
    const char *example;
};

static const struct axis axes[SWEEP_N_AXES] = {
    [AXIS_KIND] = {"kind", kind_words, false, false, 0, "decode,prefill"},
    [AXIS_RAM] = {"ram", NULL, true, false, INT64_MAX, "4G,6G,8G"},
    [AXIS_IO_LIMIT] = {"io-limit", no_limit, true, false, INT64_MAX, "500M,1G,none"},
    [AXIS_PREFETCH] = {"prefetch", prefetch_words, false, false, 0, "off,auto"},
    [AXIS_QUEUE_DEPTH] = {"queue-depth", choose, false, true, 4096, "4,16,auto"},
    [AXIS_THREADS] = {"threads", choose, false, true, 256, "1,2,auto"},
    [AXIS_CHUNK] = {"chunk", choose, false, true, 1 << 20, "64,256,auto"},
};

const char *sweep_axis_name(enum sweep_axis axis)
{
    return axes[axis].name;
}

static const char *word_of(const struct axis *axis, uint64_t value)
{
    for (const struct flag_word *word = axis->words; word && word->name; word++) {
        if ((uint64_t)word->value == value)
            return word->name;
    }
    return NULL;
}

const char *sweep_value_text(enum sweep_axis axis, uint64_t value, char *out, size_t size)
{
    char text[SIZE_TEXT_SIZE];
    const char *word = word_of(&axes[axis], value);
    if (word)
        snprintf(out, size, "%s", word);
    else if (axes[axis].is_size)
        snprintf(out, size, "%s", size_format(value, text));
    else
        snprintf(out, size, "%" PRIu64, value);
    return out;
}

/* ---- lists ---- */

static bool parse_value(const struct axis *axis, const char *item, uint64_t *value)
{
    for (const struct flag_word *word = axis->words; word && word->name; word++) {
        if (strcmp(word->name, item) == 0) {
            *value = (uint64_t)word->value;
            return true;
        }
    }
    char *end;
    if (axis->is_size) {
        if (!size_parse(item, value))
            return false;
    } else if (axis->is_number && item[0] >= '0' && item[0] <= '9') {
        *value = strtoull(item, &end, 10);
        if (*end)
            return false;
    } else {
        return false;
    }
    /* 0 where a word says so, as the flags of other commands have it. */
    return *value <= axis->most && (*value > 0 || word_of(axis, 0));
}

static bool parse_list(struct sweep_grid *grid, enum sweep_axis which, const char *list, int *exit_code)
{
    const struct axis *axis = &axes[which];
    uint32_t *n = &grid->n_values[which];
    for (const char *at = list; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        char item[40];
        uint64_t value;
        int length = (int)strcspn(at, ",");
        snprintf(item, sizeof(item), "%.*s", length, at);
        if (length >= (int)sizeof(item) || !parse_value(axis, item, &value)) {
            *exit_code = cli_error(CLI_USAGE, "--%s: \"%.*s\" cannot be in the list: use one as \"%s\"",
                                   axis->name, length, at, axis->example);
            return false;
        }
        bool known = false;
        for (uint32_t i = 0; i < *n; i++)
            known = known || grid->values[which][i] == value;
        if (!known && *n == SWEEP_MAX_VALUES) {
            *exit_code = cli_error(CLI_USAGE, "--%s: more than %d values", axis->name, SWEEP_MAX_VALUES);
            return false;
        }
        if (!known)
            grid->values[which][(*n)++] = value;
    }
    return true;
}

bool sweep_grid_init(struct sweep_grid *grid, const char *const lists[SWEEP_N_AXES], int *exit_code)
{
    *grid = (struct sweep_grid){.n_cells = 1};
    for (int axis = 0; axis < SWEEP_N_AXES; axis++) {
        if (!parse_list(grid, (enum sweep_axis)axis, lists[axis], exit_code))
            return false;
        grid->n_cells *= grid->n_values[axis]; /* at most 2^12 * 2^6 */
        if (grid->n_cells > SWEEP_MAX_CELLS) {
            *exit_code = cli_error(CLI_USAGE, "bench sweep: the lists make more than %d cells: shorten them",
                                   SWEEP_MAX_CELLS);
            return false;
        }
    }
    return true;
}

/* ---- cells ---- */

struct sweep_cell sweep_grid_cell(const struct sweep_grid *grid, uint32_t index)
{
    struct sweep_cell cell;
    for (int axis = SWEEP_N_AXES; axis-- > 0;) {
        cell.values[axis] = grid->values[axis][index % grid->n_values[axis]];
        index /= grid->n_values[axis];
    }
    return cell;
}

void sweep_cell_key(const struct sweep_cell *cell, char out[SWEEP_TEXT_SIZE])
{
    size_t at =
        (size_t)snprintf(out, SWEEP_TEXT_SIZE, "%s", word_of(&axes[AXIS_KIND], cell->values[AXIS_KIND]));
    for (int axis = AXIS_RAM; axis < SWEEP_N_AXES; axis++) {
        const char *word = word_of(&axes[axis], cell->values[axis]);
        at += (size_t)(word ? snprintf(out + at, SWEEP_TEXT_SIZE - at, " %s=%s", axes[axis].name, word)
                            : snprintf(out + at, SWEEP_TEXT_SIZE - at, " %s=%" PRIu64, axes[axis].name,
                                       cell->values[axis]));
    }
}

void sweep_cell_text(const struct sweep_grid *grid, const struct sweep_cell *cell, char out[SWEEP_TEXT_SIZE])
{
    char text[32];
    size_t at =
        (size_t)snprintf(out, SWEEP_TEXT_SIZE, "%s", word_of(&axes[AXIS_KIND], cell->values[AXIS_KIND]));
    for (int axis = AXIS_RAM; axis < SWEEP_N_AXES; axis++) {
        if (axis == AXIS_RAM || grid->n_values[axis] > 1)
            at += (size_t)snprintf(
                out + at, SWEEP_TEXT_SIZE - at, ", %s %s", axes[axis].name,
                sweep_value_text((enum sweep_axis)axis, cell->values[axis], text, sizeof(text)));
    }
}

void sweep_order(uint32_t *order, uint32_t n, uint64_t seed, uint32_t repeat)
{
    uint64_t state = seed;
    state = splitmix64(&state) + repeat; /* seeds next to each other share no repeat */
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    for (uint32_t i = n; i > 1; i--) { /* Fisher and Yates */
        uint32_t j = (uint32_t)(splitmix64(&state) % i);
        uint32_t swapped = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swapped;
    }
}
