/* penstock bench sweep: decoding and prefill over a grid of parameters, each measurement in a process of its own. All cells are
 * visited once before any is visited again, each time in another order, so that drift of the machine hits them alike. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/cli/child_process.h"
#include "runtime/cli/cli.h"
#include "runtime/cli/sweep.h"
#include "runtime/clock.h"
#include "runtime/size_text.h"

enum { DECODE_TOKENS = 64, PREFILL_TOKENS = 512, MAX_MODEL_FLAGS = 48, SETTINGS_SIZE = 768 };

#define OPTION(field) offsetof(struct sweep_options, field)
#define LIST(axis)    offsetof(struct sweep_options, lists[axis])

static const struct flag_word own_n[] = {{"auto", 0}, {0}};

static const struct flag grid_rows[] = {
    {"ram", 0, FLAG_STRING, LIST(AXIS_RAM), "LIST",
     .help = "budgets; those too small for the model are left out", .required = true},
    {"io-limit", 0, FLAG_STRING, LIST(AXIS_IO_LIMIT), "LIST",
     .help = "bytes per second at most, as if the drive were slower"},
    {"prefetch", 0, FLAG_STRING, LIST(AXIS_PREFETCH), "LIST", .help = "off, auto"},
    {"queue-depth", 0, FLAG_STRING, LIST(AXIS_QUEUE_DEPTH), "LIST", .help = "reads in flight"},
    {"threads", 0, FLAG_STRING, LIST(AXIS_THREADS), "LIST", .help = "compute threads"},
    {"chunk", 0, FLAG_STRING, LIST(AXIS_CHUNK), "LIST", .help = "most tokens per forward pass"},
    {"kind", 0, FLAG_STRING, LIST(AXIS_KIND), "LIST", .help = "decode, prefill"},
    {0},
};

static const struct flag measurement_rows[] = {
    {"out", 'o', FLAG_STRING, OPTION(directory), "DIR",
     .help = "where records.jsonl and records.csv go; what is there already\nis not measured again",
     .required = true},
    {"n", 'n', FLAG_U32, OPTION(n), "TOKENS", .help = "tokens per pass; auto: 64 to decode, 512 of a prompt",
     .max = 1 << 30, .words = own_n},
    {"tokens", 0, FLAG_STRING, OPTION(tokens), "greedy|random:SEED|FILE", .help = TOKEN_SOURCE_HELP},
    {"replay", 0, FLAG_STRING, OPTION(replay), "TRACE", .help = REPLAY_HELP},
    {"repeat", 0, FLAG_U32, OPTION(repeat), "TIMES", .help = "rounds over all cells", .min = 1, .max = 1000},
    {"warm-up", 0, FLAG_U32, OPTION(warm_up), "TIMES", .help = "passes before the one that counts", .min = 0,
     .max = 1000},
    {"probe", 0, FLAG_FLOAT, OPTION(probe), "SECONDS",
     .help = "of reading per measurement, which say what the drive gives;\n0: none", .min = 0, .max = 60},
    {"seed", 0, FLAG_U64, OPTION(seed), .help = "of the order in which cells are visited"},
    {0},
};

/* ---- cells ---- */

static struct bench_options cell_bench(const struct sweep *s, const struct sweep_cell *cell)
{
    const struct sweep_options *o = s->options;
    enum bench_kind kind = (enum bench_kind)cell->values[AXIS_KIND];
    return (struct bench_options){.kind = kind,
                                  .tokens = o->tokens,
                                  .replay = o->replay,
                                  .n = o->n > 0               ? o->n
                                       : kind == BENCH_DECODE ? DECODE_TOKENS
                                                              : PREFILL_TOKENS,
                                  .warm_up = o->warm_up,
                                  .repeat = 1,
                                  .probe = o->probe};
}

static struct model_options cell_model(const struct sweep *s, const struct sweep_cell *cell)
{
    struct model_options model = *s->model_options;
    model.params.ram = cell->values[AXIS_RAM];
    model.params.io_limit = cell->values[AXIS_IO_LIMIT];
    model.params.prefetch = (enum ps_prefetch)cell->values[AXIS_PREFETCH];
    model.params.queue_depth = (uint32_t)cell->values[AXIS_QUEUE_DEPTH];
    model.params.threads = (uint32_t)cell->values[AXIS_THREADS];
    model.params.chunk = (uint32_t)cell->values[AXIS_CHUNK];
    return model;
}

/* What all of a sweep's records have in common besides the model. */
static void settings_text(const struct sweep *s, char out[SETTINGS_SIZE])
{
    snprintf(out, SETTINGS_SIZE, "n=%" PRIu32 " cache-policy=%s %s%s%s", s->options->n,
             s->model_options->params.cache_policy, s->found->record.flags,
             s->replay_identity[0] ? " replay=" : "", s->replay_identity);
}

static struct sweep_result *result_of(const struct sweep *s, uint32_t repeat, uint32_t cell)
{
    return &s->results[(size_t)(repeat - 1) * s->grid.n_cells + cell];
}

/* Not done, and possible. */
static bool is_left(const struct sweep *s, uint32_t repeat, uint32_t cell)
{
    return s->minimum[cell] == 0 && !result_of(s, repeat, cell)->done;
}

static uint32_t count_left(const struct sweep *s)
{
    uint32_t n = 0;
    for (uint32_t repeat = 1; repeat <= s->options->repeat; repeat++) {
        for (uint32_t cell = 0; cell < s->grid.n_cells; cell++)
            n += is_left(s, repeat, cell);
    }
    return n;
}

static uint32_t count_possible(const struct sweep *s)
{
    uint32_t n = 0;
    for (uint32_t cell = 0; cell < s->grid.n_cells; cell++)
        n += s->minimum[cell] == 0;
    return n * s->options->repeat;
}

/* ---- budgets ---- */

static void tell_replay(struct sweep *s, const struct bench_run *run)
{
    FILE *out = fmemopen(s->found->replay_text, sizeof(s->found->replay_text), "w");
    if (!out)
        return;
    bench_replay_print(out, &run->replay, run->m.model);
    fclose(out);
}

/* In a process of its own, as is all that opens the model: the memory of those that measure begins as small as any
 * command's. Finds which budgets are too small; the first error of another kind ends it. */
static int survey(void *ctx)
{
    struct sweep *s = ctx;
    struct ps_error err;
    int exit_code = CLI_OK;
    close(s->records.fd); /* its lock is the parent's */
    for (uint32_t i = 0, n_kinds = s->grid.n_values[AXIS_KIND]; i < n_kinds && exit_code == CLI_OK; i++) {
        uint32_t first = i * (s->grid.n_cells / n_kinds), end = first + s->grid.n_cells / n_kinds;
        struct sweep_cell cell = sweep_grid_cell(&s->grid, first);
        struct bench_options options = cell_bench(s, &cell);
        struct model_options model = cell_model(s, &cell);
        struct bench_run run;
        struct ps_plan plan;
        bool open = bench_run_open(&run, &options, &model, &exit_code);
        if (open)
            bench_describe_model(&run, &s->found->record);
        for (uint32_t at = first; open && at < end && exit_code == CLI_OK; at++) {
            cell = sweep_grid_cell(&s->grid, at);
            model = cell_model(s, &cell);
            bench_fit_params(&options, &model.params);
            if (options.replay)
                bench_replay_fit(&run.replay, &model.params);
            enum ps_status status = ps_model_plan(run.m.model, &model.params, &plan, &err);
            if (status == PS_ERR_BUDGET)
                s->minimum[at] = plan.minimum;
            else if (status != PS_OK)
                exit_code = cli_status(&err);
        }
        if (open && options.replay)
            tell_replay(s, &run);
        bench_run_deinit(&run, CLI_FAILED);
    }
    return exit_code;
}

/* One line per budget that does not do for all of its cells. False: none is left, the message is printed. */
static bool report_budgets(const struct sweep *s, int *exit_code)
{
    char text[2][SIZE_TEXT_SIZE];
    const struct sweep_grid *grid = &s->grid;
    uint64_t least = UINT64_MAX;
    bool any = false;
    for (uint32_t i = 0; i < grid->n_values[AXIS_RAM]; i++) {
        uint64_t ram = grid->values[AXIS_RAM][i], most = 0;
        uint32_t n = 0, n_small = 0;
        for (uint32_t cell = 0; cell < grid->n_cells; cell++) {
            if (sweep_grid_cell(grid, cell).values[AXIS_RAM] != ram)
                continue;
            n++;
            n_small += s->minimum[cell] > 0;
            most = s->minimum[cell] > most ? s->minimum[cell] : most;
            least = s->minimum[cell] > 0 && s->minimum[cell] < least ? s->minimum[cell] : least;
        }
        any = any || n_small < n;
        if (n_small > 0)
            fprintf(stderr, "--ram %s is too small for %u of its %u cells: skipped; %s would do for all\n",
                    size_format(ram, text[0]), n_small, n, size_format(most, text[1]));
    }
    if (!any)
        *exit_code = cli_error(CLI_FAILED, "--ram: no budget is large enough: the smallest that works is %s",
                               size_format(least, text[0]));
    return any;
}

/* ---- earlier records ---- */

static const char *text_of(const json_t *record, const char *name)
{
    const char *text = json_string_value(json_object_get(record, name));
    return text ? text : "";
}

static double number_of(const json_t *record, const char *name)
{
    return json_number_value(json_object_get(record, name));
}

static void keep_result(struct sweep_result *result, const json_t *record)
{
    *result = (struct sweep_result){.done = true,
                                    .tokens_s = number_of(record, "tokens_per_s"),
                                    .hit_rate = number_of(record, "hit_rate"),
                                    .bytes = number_of(record, "bytes_per_token"),
                                    .of_bound = number_of(record, "of_bound")};
}

/* A sweep_record_fn. Cells that are not in the grid stay in the files, and so do records of other commands. */
static enum ps_status take_record(void *ctx, const json_t *record, struct ps_error *err)
{
    struct sweep *s = ctx;
    const struct bench_record *model = &s->found->record;
    char settings[SETTINGS_SIZE], key[SWEEP_TEXT_SIZE];
    if (!sweep_record_cell(record))
        return PS_OK;
    settings_text(s, settings);
    if (strcmp(text_of(record, "model"), model->model) != 0 ||
        json_integer_value(json_object_get(record, "file_bytes")) != (json_int_t)model->file_bytes)
        return ps_error_set(err, PS_ERR_ARGUMENT, "%s: holds records of another model, %s: use another -o",
                            s->records.path, text_of(record, "model"));
    if (strcmp(text_of(record, "settings"), settings) != 0)
        return ps_error_set(err, PS_ERR_ARGUMENT,
                            "%s: was made with other settings (%s; now %s): use the same, or another -o",
                            s->records.path, text_of(record, "settings"), settings);
    json_int_t repeat = json_integer_value(json_object_get(record, "repeat"));
    if (repeat < 1 || repeat > s->options->repeat)
        return PS_OK;
    for (uint32_t i = 0; i < s->grid.n_cells; i++) {
        struct sweep_cell cell = sweep_grid_cell(&s->grid, i);
        sweep_cell_key(&cell, key);
        if (strcmp(key, sweep_record_cell(record)) == 0)
            keep_result(result_of(s, (uint32_t)repeat, i), record);
    }
    return PS_OK;
}

/* ---- measuring ---- */

struct cell_job {
    const struct sweep *s;
    struct sweep_cell cell;
};

static int measure_cell(void *ctx)
{
    const struct cell_job *job = ctx;
    const struct sweep *s = job->s;
    struct bench_options options = cell_bench(s, &job->cell);
    struct model_options model = cell_model(s, &job->cell);
    struct bench_run run;
    struct ps_plan plan;
    struct ps_error err;
    int exit_code = CLI_OK;
    close(s->records.fd);
    if (bench_run_open(&run, &options, &model, &exit_code)) {
        if (ps_model_plan(run.m.model, &model.params, &plan, &err) == PS_ERR_BUDGET)
            s->found->minimum = plan.minimum;
        else if (bench_run_measure(&run, &exit_code) && bench_run_probe(&run, &exit_code))
            s->found->record = run.records[0];
    }
    bench_run_deinit(&run, CLI_FAILED);
    return exit_code;
}

static enum ps_status save_record(struct sweep *s, const struct sweep_cell *cell, struct sweep_result *result,
                                  struct ps_error *err)
{
    char settings[SETTINGS_SIZE], key[SWEEP_TEXT_SIZE];
    settings_text(s, settings);
    sweep_cell_key(cell, key);
    json_t *record = bench_record_json(&s->found->record);
    enum ps_status status = PS_OK;
    if (!record || json_object_set_new(record, "cell", json_string(key)) != 0 ||
        json_object_set_new(record, "settings", json_string(settings)) != 0)
        status = ps_error_set(err, PS_ERR_NOMEM, "bench sweep: out of memory");
    if (status == PS_OK)
        status = sweep_records_add(&s->records, record, err);
    if (status == PS_OK)
        keep_result(result, record);
    json_decref(record);
    return status;
}

/* ---- progress ---- */

/* Seconds that what is left will take: what each cell took, or their mean. */
static double time_left(const struct sweep *s)
{
    double sum = 0.0;
    uint32_t n = 0;
    for (uint32_t cell = 0; cell < s->grid.n_cells; cell++) {
        sum += s->seconds[cell];
        n += s->seconds[cell] > 0.0;
    }
    double mean = n > 0 ? sum / n : 0.0;
    sum = 0.0;
    for (uint32_t repeat = 1; repeat <= s->options->repeat; repeat++) {
        for (uint32_t cell = 0; cell < s->grid.n_cells; cell++) {
            if (is_left(s, repeat, cell))
                sum += s->seconds[cell] > 0.0 ? s->seconds[cell] : mean;
        }
    }
    return sum;
}

static void print_time_left(const struct sweep *s)
{
    double seconds = time_left(s);
    if (seconds >= 5400.0)
        fprintf(stderr, "; %.1f h left\n", seconds / 3600.0);
    else if (seconds >= 90.0)
        fprintf(stderr, "; %.0f min left\n", seconds / 60.0);
    else
        fprintf(stderr, "; %.0f s left\n", seconds);
}

/* Where a measurement is; on a terminal before it begins, too. */
static void print_cell(const struct sweep *s, uint32_t repeat, uint32_t cell, uint32_t n_done, uint32_t n)
{
    char text[SWEEP_TEXT_SIZE];
    struct sweep_cell settings = sweep_grid_cell(&s->grid, cell);
    sweep_cell_text(&s->grid, &settings, text);
    fprintf(stderr, "[%u/%u] repeat %u: %s", n_done, n, repeat, text);
}

/* ---- the loop ---- */

/* One measurement. False: the sweep ends, the message is printed. */
static bool visit(struct sweep *s, uint32_t repeat, uint32_t cell, int *exit_code)
{
    struct cell_job job = {.s = s, .cell = sweep_grid_cell(&s->grid, cell)};
    struct sweep_result *result = result_of(s, repeat, cell);
    char said[PS_ERROR_MESSAGE_SIZE];
    struct ps_error err;
    uint32_t n = count_possible(s), number = n - count_left(s) + 1;
    bool terminal = isatty(STDERR_FILENO);
    if (terminal)
        print_cell(s, repeat, cell, number, n);
    double start = clock_seconds();
    memset(s->found, 0, sizeof(*s->found));
    int code = child_process_run(measure_cell, &job, said);
    if (terminal)
        fputs("\r\033[K", stderr);
    if (code != CLI_OK && cli_interrupted())
        return true;
    if (code != CLI_OK) {
        char key[SWEEP_TEXT_SIZE];
        sweep_cell_key(&job.cell, key);
        *exit_code = cli_error(code, "%s (in the cell %s; the same command goes on from there)", said, key);
        return false;
    }
    print_cell(s, repeat, cell, number, n);
    if (s->found->minimum > 0) {
        char text[SIZE_TEXT_SIZE];
        s->minimum[cell] = s->found->minimum;
        fprintf(stderr, ": the budget is too small, %s would do: skipped\n",
                size_format(s->minimum[cell], text));
        return true;
    }
    s->found->record.repeat = repeat;
    if (save_record(s, &job.cell, result, &err) != PS_OK) {
        fputc('\n', stderr);
        *exit_code = cli_status(&err);
        return false;
    }
    s->seconds[cell] = fmax(clock_seconds() - start, 1e-3);
    fprintf(stderr, ": %.2f tok/s, %.0f%% hit, %.0f%% of the bound", result->tokens_s,
            100.0 * result->hit_rate, 100.0 * result->of_bound);
    print_time_left(s);
    return true;
}

static bool visit_all(struct sweep *s, int *exit_code)
{
    uint32_t n = s->grid.n_cells;
    uint32_t *order = malloc(n * sizeof(*order));
    bool ok = order != NULL;
    if (!ok)
        *exit_code = cli_error(CLI_FAILED, "bench sweep: out of memory");
    for (uint32_t repeat = 1; ok && repeat <= s->options->repeat; repeat++) {
        sweep_order(order, n, s->options->seed, repeat);
        for (uint32_t i = 0; ok && i < n && !cli_interrupted(); i++) {
            if (is_left(s, repeat, order[i]))
                ok = visit(s, repeat, order[i], exit_code);
        }
    }
    free(order);
    return ok;
}

/* Whatever ended the loop, the CSV has what the records have. */
static int finish(const struct sweep *s, int exit_code)
{
    struct ps_error err;
    uint32_t left = count_left(s);
    if (sweep_records_write_csv(&s->records, &err) != PS_OK)
        return exit_code != CLI_OK ? exit_code : cli_status(&err);
    if (exit_code != CLI_OK)
        return exit_code;
    if (!sweep_print_table(s))
        return cli_error(CLI_FAILED, "bench sweep: out of memory");
    cli_printf("%s, %s\n", s->records.path, s->records.csv_path);
    if (left > 0) /* nothing else leaves any */
        return cli_error(CLI_INTERRUPTED,
                         "bench sweep: interrupted: %u of %u are left: the same command goes on", left,
                         count_possible(s));
    return CLI_OK;
}

static bool allocate(struct sweep *s)
{
    uint32_t n = s->grid.n_cells;
    s->results = calloc((size_t)n * s->options->repeat, sizeof(*s->results));
    s->seconds = calloc(n, sizeof(*s->seconds));
    s->minimum = child_process_memory(n * sizeof(*s->minimum));
    s->found = child_process_memory(sizeof(*s->found));
    return s->results && s->seconds && s->minimum && s->found;
}

static int run_sweep(struct sweep *s)
{
    struct ps_error err;
    char said[PS_ERROR_MESSAGE_SIZE];
    int exit_code = CLI_OK;
    if (!sweep_grid_init(&s->grid, s->options->lists, &exit_code))
        return exit_code;
    if (!allocate(s))
        return cli_error(CLI_FAILED, "bench sweep: out of memory");
    cli_catch_interrupt();
    exit_code = child_process_run(survey, s, said);
    if (exit_code != CLI_OK)
        return cli_error(exit_code, "%s", said);
    if (s->options->replay && bench_replay_identify(s->options->replay, s->replay_identity, &err) != PS_OK)
        return cli_status(&err);
    if (!report_budgets(s, &exit_code))
        return exit_code;
    if (sweep_records_open(&s->records, s->options->directory, &err) != PS_OK ||
        sweep_records_each(&s->records, take_record, s, &err) != PS_OK)
        return cli_status(&err);
    fputs(s->found->replay_text, stderr);
    visit_all(s, &exit_code);
    return finish(s, exit_code);
}

/* The flags that every command with a model has, but for the axes, and a working set, with which a cell would begin
 * where another ended. */
static void shared_flags(struct flag rows[MAX_MODEL_FLAGS])
{
    uint32_t n = 0;
    for (const struct flag *row = MODEL_FLAGS; row->name && n + 1 < MAX_MODEL_FLAGS; row++) {
        bool taken = strcmp(row->name, "warm") == 0;
        for (const struct flag *other = grid_rows; other->name; other++)
            taken = taken || strcmp(row->name, other->name) == 0;
        if (!taken)
            rows[n++] = *row;
    }
    rows[n] = (struct flag){0};
}

int cmd_bench_sweep(int argc, char **argv)
{
    struct flag model_rows[MAX_MODEL_FLAGS];
    struct model_options model_options;
    struct sweep_options options = {.lists = {[AXIS_KIND] = "decode",
                                              [AXIS_IO_LIMIT] = "none",
                                              [AXIS_PREFETCH] = "auto",
                                              [AXIS_QUEUE_DEPTH] = "auto",
                                              [AXIS_THREADS] = "auto",
                                              [AXIS_CHUNK] = "auto"},
                                    .tokens = "random:1",
                                    .warm_up = 1,
                                    .repeat = 3,
                                    .probe = 0.5f,
                                    .seed = 1};
    shared_flags(model_rows);
    model_options_default(&model_options);
    const struct flag_group groups[] = {{"Grid, each a list with commas between", grid_rows, &options},
                                        {"Measurement", measurement_rows, &options},
                                        {"Model", model_rows, &model_options},
                                        {0}};
    const struct flag_spec spec = {
        .command = "bench sweep",
        .summary = "Measures every combination of the lists, in rounds over all of them, each round in "
                   "another order\n"
                   "and each measurement in a process of its own. What is interrupted or killed goes on when "
                   "the same\n"
                   "command is given again; longer lists and more repeats add to what is there.",
        .examples =
            "  penstock bench sweep -m model.gguf --ram 4G,6G,8G --io-limit 500M,1G,2G,none -o sweep\n"
            "  penstock bench sweep -m model.gguf --ram 6G --prefetch off,auto --queue-depth 4,16,64 -o "
            "depths\n"
            "  penstock bench sweep -m model.gguf --ram 6G --kind prefill --chunk 32,128,512 -n 1024 -o "
            "chunks\n"
            "  penstock bench sweep -m synthetic.gguf --ram 4G,8G --replay story.trace -n 128 -o replayed",
        .groups = groups};
    struct sweep s = {.options = &options, .model_options = &model_options, .records = {.fd = -1}};
    int exit_code;
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    exit_code = run_sweep(&s);
    sweep_records_close(&s.records);
    free(s.results);
    free(s.seconds);
    child_process_memory_free(s.minimum, s.grid.n_cells * sizeof(*s.minimum));
    child_process_memory_free(s.found, sizeof(*s.found));
    return exit_code;
}
