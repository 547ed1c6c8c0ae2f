#include "runtime/cli/bench_results.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "runtime/size_text.h"
#include "runtime/speed_model.h"

enum { MAX_COMPLAINTS = 20 };

/* Measured points that end this little short of what is asked for are near enough: a limit is kept within 5 %, and
 * twice 500M is then rarely more than 1G. */
static const double NEAR_ENOUGH = 0.05;

struct result_sample {
    enum result_kind kind;
    char *machine, *model, *setting;
    double of[RESULT_N_FIGURES];
    double least_rate, most_rate; /* of what the record is the median of */
    bool prefetch_off;            /* it was asked for, but not in effect */
    double time;
};

static const char *const kind_names[RESULT_N_KINDS] = {"decode", "prefill", "io"};

const char *result_kind_name(enum result_kind kind)
{
    return kind_names[kind];
}

/* ---- one record ---- */

static const char *text_of(const json_t *object, const char *name, const char *missing)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text && *text ? text : missing;
}

/* NAN: missing, null, no number, or one that nothing measured can be: quotients of the others stay finite. */
static double number_of(const json_t *object, const char *name)
{
    const json_t *json = json_object_get(object, name);
    double value = json_is_number(json) ? json_number_value(json) : (double)NAN;
    return value == 0.0 || (fabs(value) > 1e-18 && fabs(value) < 1e18) ? value : (double)NAN;
}

static uint64_t whole_of(const json_t *object, const char *name)
{
    double value = number_of(object, name);
    return value >= 1.0 && value < 1e18 ? (uint64_t)value : 0;
}

static bool positive(const json_t *object, const char *name, double *value, struct ps_error *err)
{
    *value = number_of(object, name);
    if (*value > 0.0)
        return true;
    ps_error_set(err, PS_ERR_FORMAT, "%s is missing or not a number above 0", name);
    return false;
}

static char *machine_text(const json_t *record)
{
    const json_t *machine = json_object_get(record, "machine");
    char memory[SIZE_TEXT_SIZE];
    char *text;
    if (!json_is_object(machine))
        return strdup("");
    int length =
        asprintf(&text, "%s, %.0f cores, %s; drive: %s; %s", text_of(machine, "cpu", "unknown CPU"),
                 fmax(number_of(machine, "cores"), 0.0), size_format(whole_of(machine, "memory"), memory),
                 text_of(machine, "drive", "unknown"), text_of(machine, "kernel", "unknown kernel"));
    return length < 0 ? NULL : text;
}

static char *model_text(const json_t *record)
{
    char *text;
    double bytes = (double)whole_of(record, "file_bytes");
    int length =
        asprintf(&text, "%s (%s, %.3g %s)", text_of(record, "model", "?"), text_of(record, "arch", "?"),
                 bytes < 1e9 ? bytes / 1e6 : bytes / 1e9, bytes < 1e9 ? "MB" : "GB");
    return length < 0 ? NULL : text;
}

static char *model_setting(const json_t *record)
{
    const char *replay = text_of(record, "replay", ""), *flags = text_of(record, "flags", "");
    double threads = fmax(number_of(record, "threads"), 0.0);
    char *text;
    int length = asprintf(
        &text, "%s%s%s%.0f tokens, prefetch %s, queue depth %.0f, %.0f thread%s, cache policy %s%s%s",
        *replay ? "routing replayed from " : "", replay, *replay ? "; " : "",
        fmax(number_of(record, "tokens"), 0.0), text_of(record, "prefetch", "?"),
        fmax(number_of(record, "queue_depth"), 0.0), threads, threads == 1.0 ? "" : "s",
        text_of(record, "policy", "?"), *flags ? "; " : "", flags);
    return length < 0 ? NULL : text;
}

static char *io_setting(const json_t *record)
{
    char *text, extent[SIZE_TEXT_SIZE], rate[SIZE_TEXT_SIZE], size[SIZE_TEXT_SIZE];
    uint64_t memory = whole_of(record, "memory_bytes");
    uint64_t extent_bytes = whole_of(record, "extent_bytes"), limit = whole_of(record, "io_limit");
    bool shards = json_is_true(json_object_get(record, "shards"));
    int length = asprintf(&text, "%s%s%s%s%s, %s, %s%s%s", text_of(record, "pattern", "?"),
                          shards             ? " shards, up to "
                          : extent_bytes > 0 ? " extents of "
                                             : " reads",
                          extent_bytes > 0 ? size_format(extent_bytes, extent) : "",
                          limit > 0 ? ", limit per second " : "", limit > 0 ? size_format(limit, rate) : "",
                          text_of(record, "backend", "?"),
                          json_is_false(json_object_get(record, "direct")) ? "buffered" : "direct",
                          memory > 0 ? ", into memory of " : "", memory > 0 ? size_format(memory, size) : "");
    return length < 0 ? NULL : text;
}

/* Seconds in the records may be of a pass or of a token: only their shares count, of the time that a token took. */
static void set_parts(struct result_sample *sample, const json_t *record)
{
    const json_t *parts = json_object_get(record, "parts_s");
    double compute = number_of(record, "compute_s"), stall = number_of(record, "stall_s");
    double bookkeeping = number_of(record, "bookkeeping_s"), sum = 0.0;
    double scale = 1.0 / (compute + stall + bookkeeping) / sample->of[FIGURE_RATE];
    if (!isfinite(scale) || scale <= 0.0)
        return;
    sample->of[FIGURE_WORK_S] = scale * (compute + bookkeeping);
    sample->of[FIGURE_STALL_S] = scale * stall;
    sample->of[FIGURE_BOOKKEEPING_S] = scale * bookkeeping;
    double *part_s = &sample->of[FIGURE_PARTS_S];
    for (int part = 0; part < PS_N_PARTS; part++) {
        double seconds = number_of(parts, ps_part_name((enum ps_part)part));
        part_s[part] = part != PS_PART_OTHER && seconds > 0.0 ? seconds : 0.0;
        sum += part_s[part];
    }
    for (int part = 0; part < PS_N_PARTS && sum > 0.0; part++)
        part_s[part] *= scale * compute / sum;
    if (sum <= 0.0)
        part_s[PS_PART_OTHER] = scale * compute;
}

static bool parse_model(struct result_sample *sample, const json_t *record, struct ps_error *err)
{
    if (!positive(record, "ram", &sample->of[FIGURE_RAM], err) ||
        !positive(record, "tokens_per_s", &sample->of[FIGURE_RATE], err))
        return false;
    double limit = number_of(record, "io_limit");
    sample->of[FIGURE_LIMIT] = limit > 0.0 ? limit : (double)INFINITY;
    if (sample->kind == RESULT_PREFILL && !positive(record, "chunk", &sample->of[FIGURE_CHUNK], err))
        return false;
    sample->of[FIGURE_HIT_RATE] = number_of(record, "hit_rate");
    sample->of[FIGURE_CYCLES] = number_of(record, "cycles");
    sample->of[FIGURE_DRIVE] = number_of(record, "drive_limit_bytes_per_s");
    sample->of[FIGURE_TOKEN_BYTES] = number_of(record, "bytes_per_token");
    sample->of[FIGURE_OF_BOUND] = number_of(record, "of_bound");
    set_parts(sample, record);
    sample->prefetch_off = strcmp(text_of(record, "prefetch", ""), "auto") == 0 &&
                           strcmp(text_of(record, "prefetch_used", ""), "off") == 0;
    sample->model = model_text(record);
    sample->setting = model_setting(record);
    return true;
}

static bool parse_io(struct result_sample *sample, const json_t *record, struct ps_error *err)
{
    if (!positive(record, "bytes_per_s", &sample->of[FIGURE_RATE], err) ||
        !positive(record, "block_bytes", &sample->of[FIGURE_BLOCK], err) ||
        !positive(record, "queue_depth", &sample->of[FIGURE_DEPTH], err))
        return false;
    const json_t *repeats = json_object_get(record, "repeats");
    for (size_t i = 0; i < json_array_size(repeats); i++) {
        double rate = json_number_value(json_array_get(repeats, i));
        sample->least_rate = i ? fmin(sample->least_rate, rate) : rate;
        sample->most_rate = i ? fmax(sample->most_rate, rate) : rate;
    }
    sample->model = strdup(text_of(record, "place", ""));
    sample->setting = io_setting(record);
    return true;
}

static void sample_deinit(struct result_sample *sample)
{
    free(sample->machine);
    free(sample->model);
    free(sample->setting);
}

/* *is_record false, PS_OK: a line that is in its place here and says nothing new. */
static enum ps_status parse_record(struct result_sample *sample, bool *is_record, const json_t *record,
                                   struct ps_error *err)
{
    const char *name = json_string_value(json_object_get(record, "kind"));
    int kind = 0;
    if (!name)
        return ps_error_set(err, PS_ERR_FORMAT, "not an object with a kind");
    *is_record = strcmp(name, "io_saturation") != 0;
    if (!*is_record)
        return PS_OK;
    while (kind < RESULT_N_KINDS && strcmp(name, kind_names[kind]) != 0)
        kind++;
    if (kind == RESULT_N_KINDS)
        return ps_error_set(err, PS_ERR_FORMAT, "unknown kind \"%s\"", name);
    *sample = (struct result_sample){.kind = (enum result_kind)kind, .time = number_of(record, "time")};
    for (int figure = RESULT_N_KEYS; figure < RESULT_N_FIGURES; figure++)
        sample->of[figure] = (double)NAN;
    sample->least_rate = sample->most_rate = (double)NAN;
    if (!(kind == RESULT_IO ? parse_io(sample, record, err) : parse_model(sample, record, err)))
        return PS_ERR_FORMAT;
    sample->least_rate = fmin(sample->least_rate, sample->of[FIGURE_RATE]);
    sample->most_rate = fmax(sample->most_rate, sample->of[FIGURE_RATE]);
    sample->machine = machine_text(record);
    if (sample->machine && sample->model && sample->setting)
        return PS_OK;
    sample_deinit(sample);
    return ps_error_set(err, PS_ERR_NOMEM, "bench report: out of memory");
}

static enum ps_status parse_line(struct result_sample *sample, bool *is_record, const char *line,
                                 size_t length, struct ps_error *err)
{
    json_error_t error;
    json_t *record = json_loadb(line, length, 0, &error);
    if (!record)
        return ps_error_set(err, PS_ERR_FORMAT, "not JSON: %s", error.text);
    enum ps_status status = parse_record(sample, is_record, record, err);
    json_decref(record);
    return status;
}

/* ---- the file ---- */

static void note_time(struct results *r, double time)
{
    if (!(time > 0.0))
        return;
    r->first_time = r->first_time > 0.0 ? fmin(r->first_time, time) : time;
    r->last_time = fmax(r->last_time, time);
}

static void complain(struct results *r, const char *path, uint64_t line, const struct ps_error *why)
{
    if (++r->n_skipped <= MAX_COMPLAINTS)
        fprintf(stderr, "%s: line %llu skipped: %s\n", path, (unsigned long long)line, why->message);
}

static enum ps_status add_line(struct results *r, uint32_t *capacity, const char *path, uint64_t number,
                               const char *line, size_t length, struct ps_error *err)
{
    struct result_sample sample;
    bool is_record;
    if (strspn(line, " \t\r\n") == length)
        return PS_OK;
    enum ps_status status = parse_line(&sample, &is_record, line, length, err);
    if (status == PS_ERR_FORMAT) {
        complain(r, path, number, err);
        return PS_OK;
    }
    if (status != PS_OK || !is_record)
        return status;
    if (r->n_records == *capacity) {
        uint32_t wanted = *capacity ? 2 * *capacity : 256;
        struct result_sample *more = realloc(r->samples, wanted * sizeof(*more));
        if (!more) {
            sample_deinit(&sample);
            return ps_error_set(err, PS_ERR_NOMEM, "bench report: out of memory");
        }
        r->samples = more;
        *capacity = wanted;
    }
    r->samples[r->n_records++] = sample;
    note_time(r, sample.time);
    return PS_OK;
}

static enum ps_status read_samples(struct results *r, const char *path, struct ps_error *err)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return ps_error_set(err, PS_ERR_IO, "%s: %s: `penstock bench sweep` writes it", path,
                            strerror(errno));
    enum ps_status status = PS_OK;
    char *line = NULL;
    size_t size = 0;
    uint32_t capacity = 0;
    uint64_t number = 0;
    ssize_t length;
    while (status == PS_OK && (length = getline(&line, &size, file)) >= 0)
        status = add_line(r, &capacity, path, ++number, line, (size_t)length, err);
    if (status == PS_OK && !feof(file))
        status = ps_error_set(err, PS_ERR_IO, "%s: %s", path, strerror(errno));
    free(line);
    fclose(file);
    if (r->n_skipped > MAX_COMPLAINTS)
        fprintf(stderr, "%s: %u more lines skipped\n", path, r->n_skipped - MAX_COMPLAINTS);
    if (status == PS_OK && r->n_records == 0)
        status = ps_error_set(err, PS_ERR_FORMAT, "%s: no record in it: measure with `penstock bench sweep`",
                              path);
    return status;
}

/* ---- groups and cells ---- */

static int compare_groups(const struct result_sample *a, const struct result_sample *b)
{
    int order;
    if (a->kind != b->kind)
        return a->kind < b->kind ? -1 : 1;
    if ((order = strcmp(a->model, b->model)) != 0 || (order = strcmp(a->machine, b->machine)) != 0)
        return order;
    return strcmp(a->setting, b->setting);
}

static int compare_samples(const void *left, const void *right)
{
    const struct result_sample *a = left, *b = right;
    int order = compare_groups(a, b);
    for (int key = 0; key < RESULT_N_KEYS && order == 0; key++)
        order = (a->of[key] > b->of[key]) - (a->of[key] < b->of[key]);
    return order;
}

static int by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* Sorts the values. */
static struct result_spread spread_of(double *values, uint32_t n)
{
    if (n == 0)
        return (struct result_spread){(double)NAN, (double)NAN, (double)NAN};
    qsort(values, n, sizeof(*values), by_value);
    double low = values[(n - 1) / 2], high = values[n / 2];
    return (struct result_spread){low < high ? (low + high) / 2 : low /* INFINITY stays itself */, values[0],
                                  values[n - 1]};
}

/* values: scratch [n]. */
static void fill_cell(struct result_cell *cell, const struct result_sample *samples, uint32_t n,
                      double *values)
{
    struct result_spread *rate = &cell->of[FIGURE_RATE];
    cell->repeats = n;
    cell->prefetch_off = false;
    for (uint32_t i = 0; i < n; i++)
        cell->prefetch_off |= samples[i].prefetch_off;
    for (int figure = 0; figure < RESULT_N_FIGURES; figure++) {
        uint32_t known = 0;
        for (uint32_t i = 0; i < n; i++) {
            if (!isnan(samples[i].of[figure]))
                values[known++] = samples[i].of[figure];
        }
        cell->of[figure] = spread_of(values, known);
    }
    for (uint32_t i = 0; i < n; i++) {
        rate->least = fmin(rate->least, samples[i].least_rate);
        rate->most = fmax(rate->most, samples[i].most_rate);
    }
}

/* What the drive gives with a limit does not depend on the budget, and single probes of it are noisy: all cells of a group with
 * the same limit share one figure. values: scratch. */
static void share_drive(struct result_cell *cells, uint32_t n_cells, const struct result_sample *samples,
                        double *values)
{
    uint32_t n_samples = 0;
    for (uint32_t i = 0; i < n_cells; i++)
        n_samples += cells[i].repeats;
    for (uint32_t i = 0; i < n_cells; i++) {
        uint32_t known = 0;
        for (uint32_t k = 0; k < n_samples; k++) {
            if (samples[k].of[FIGURE_LIMIT] == cells[i].of[FIGURE_LIMIT].median &&
                samples[k].of[FIGURE_DRIVE] > 0.0)
                values[known++] = samples[k].of[FIGURE_DRIVE];
        }
        cells[i].of[FIGURE_DRIVE] = spread_of(values, known);
    }
}

static void tell_machines_apart(struct results *r)
{
    bool several = false;
    const char *first = "";
    for (uint32_t i = 0; i < r->n_groups; i++) {
        first = *first ? first : r->groups[i].machine;
        several |= *r->groups[i].machine && strcmp(r->groups[i].machine, first) != 0;
    }
    for (uint32_t i = 0; i < r->n_groups; i++)
        r->groups[i].tell_machine = several && *r->groups[i].machine;
}

static enum ps_status make_groups(struct results *r, struct ps_error *err)
{
    double *values = malloc(r->n_records * sizeof(*values));
    r->cells = calloc(r->n_records, sizeof(*r->cells));
    r->groups = calloc(r->n_records, sizeof(*r->groups));
    if (!values || !r->cells || !r->groups) {
        free(values);
        return ps_error_set(err, PS_ERR_NOMEM, "bench report: out of memory");
    }
    qsort(r->samples, r->n_records, sizeof(*r->samples), compare_samples);
    struct result_cell *cell = r->cells;
    for (uint32_t at = 0; at < r->n_records;) {
        const struct result_sample *first = &r->samples[at];
        struct result_cell *cells = cell;
        while (at < r->n_records && compare_groups(first, &r->samples[at]) == 0) {
            const struct result_sample *sample = &r->samples[at];
            uint32_t n = 1;
            while (at + n < r->n_records && compare_samples(sample, sample + n) == 0)
                n++;
            fill_cell(cell++, sample, n, values);
            at += n;
        }
        r->groups[r->n_groups++] = (struct result_group){.kind = first->kind,
                                                         .machine = first->machine,
                                                         .model = first->model,
                                                         .setting = first->setting,
                                                         .cells = cells,
                                                         .n_cells = (uint32_t)(cell - cells)};
        share_drive(cells, (uint32_t)(cell - cells), first, values);
    }
    tell_machines_apart(r);
    free(values);
    return PS_OK;
}

enum ps_status results_read(struct results *r, const char *path, struct ps_error *err)
{
    *r = (struct results){0};
    enum ps_status status = read_samples(r, path, err);
    return status == PS_OK ? make_groups(r, err) : status;
}

void results_deinit(struct results *r)
{
    for (uint32_t i = 0; i < r->n_records; i++)
        sample_deinit(&r->samples[i]);
    free(r->samples);
    free(r->cells);
    free(r->groups);
}

/* ---- curves ---- */

static double median(const struct result_cell *cell, enum result_figure figure)
{
    return cell->of[figure].median;
}

static bool on_curve(const struct result_curve *curve, const struct result_cell *cell,
                     const struct result_cell *through, const enum result_figure *same, uint32_t n_same)
{
    for (uint32_t i = 0; i < n_same; i++) {
        if (!(median(cell, same[i]) == median(through, same[i])))
            return false;
    }
    double x = median(cell, curve->x);
    for (uint32_t i = 0; i < curve->n; i++) {
        if (median(curve->cells[i], curve->x) == x)
            return false;
    }
    return isfinite(x) && isfinite(median(cell, FIGURE_RATE));
}

bool result_curve_init(struct result_curve *curve, const struct result_group *group,
                       const struct result_cell *cell, enum result_figure x, const enum result_figure *same,
                       uint32_t n_same)
{
    *curve = (struct result_curve){.cells = calloc(group->n_cells, sizeof(struct result_cell *)), .x = x};
    if (!curve->cells)
        return false;
    for (const struct result_cell *c = group->cells; c < group->cells + group->n_cells; c++) {
        if (!on_curve(curve, c, cell, same, n_same))
            continue;
        uint32_t at = curve->n++;
        for (; at > 0 && median(curve->cells[at - 1], x) > median(c, x); at--)
            curve->cells[at] = curve->cells[at - 1];
        curve->cells[at] = c;
    }
    return true;
}

void result_curve_deinit(struct result_curve *curve)
{
    free(curve->cells);
}

uint32_t result_curve_knee(const struct result_curve *curve, enum result_figure y)
{
    uint32_t knee = 0;
    double *values = curve->n > 2 ? malloc(2 * curve->n * sizeof(*values)) : NULL;
    if (!values)
        return 0;
    for (uint32_t i = 0; i < curve->n; i++) {
        values[i] = median(curve->cells[i], curve->x);
        values[curve->n + i] = median(curve->cells[i], y);
    }
    knee = speed_knee(values, values + curve->n, curve->n);
    free(values);
    return knee;
}

/* The rate at x, linear between cells; NAN: outside of them. */
static double rate_at(const struct result_curve *curve, double x)
{
    for (uint32_t i = 0; i + 1 < curve->n; i++) {
        const struct result_cell *left = curve->cells[i], *right = curve->cells[i + 1];
        double x0 = median(left, curve->x), x1 = median(right, curve->x);
        if (x0 > x)
            break;
        bool last = i + 2 == curve->n;
        if (x <= x1 || (last && x * (1.0 - NEAR_ENOUGH) <= x1)) {
            double share = fmin((x - x0) / (x1 - x0), 1.0);
            return (1.0 - share) * median(left, FIGURE_RATE) + share * median(right, FIGURE_RATE);
        }
    }
    return (double)NAN;
}

static enum ps_status gain_along(struct result_gain *gain, const struct result_group *group,
                                 const struct result_cell *cell, enum result_figure x,
                                 enum result_figure other, struct ps_error *err)
{
    const enum result_figure same[] = {other, FIGURE_CHUNK};
    struct result_curve curve;
    if (!result_curve_init(&curve, group, cell, x, same, 2))
        return ps_error_set(err, PS_ERR_NOMEM, "bench report: out of memory");
    gain->factor = rate_at(&curve, 2.0 * median(cell, x)) / median(cell, FIGURE_RATE);
    result_curve_deinit(&curve);
    return PS_OK;
}

/* token_s: the least that a token could take. Noise may put a cell above its bound; more hardware is then worth nothing. */
static double at_most(const struct result_cell *cell, double token_s)
{
    return token_s > 0.0 ? fmax(1.0 / token_s / median(cell, FIGURE_RATE), 1.0) : (double)NAN;
}

enum ps_status result_gain_drive(struct result_gain *gain, const struct result_group *group,
                                 const struct result_cell *cell, struct ps_error *err)
{
    double work_s = median(cell, FIGURE_WORK_S);
    double reading_s = median(cell, FIGURE_TOKEN_BYTES) / (2.0 * median(cell, FIGURE_DRIVE));
    gain->at_most = isnan(work_s) || isnan(reading_s) ? (double)NAN : at_most(cell, fmax(work_s, reading_s));
    return gain_along(gain, group, cell, FIGURE_DRIVE, FIGURE_RAM, err);
}

enum ps_status result_gain_ram(struct result_gain *gain, const struct result_group *group,
                               const struct result_cell *cell, struct ps_error *err)
{
    gain->at_most = at_most(cell, median(cell, FIGURE_WORK_S));
    return gain_along(gain, group, cell, FIGURE_RAM, FIGURE_LIMIT, err);
}

double result_computing_alone(const struct result_group *group)
{
    double least_s = (double)NAN;
    for (uint32_t i = 0; i < group->n_cells; i++)
        least_s = fmin(least_s, median(&group->cells[i], FIGURE_WORK_S));
    return least_s > 0.0 ? 1.0 / least_s : (double)NAN;
}
