/* penstock bench: measured speed. decode: one token at a time; prefill: a whole prompt; both with given ids or random
 * ones, decode with the model's own as well. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/bench_report.h"
#include "runtime/cli/bench_run.h"
#include "runtime/cli/cli.h"

#define OPTION(field) offsetof(struct bench_options, field)

static const struct flag decode_rows[] = {
    {"n", 'n', FLAG_U32, OPTION(n), .help = "tokens to decode", .min = 1, .max = 1 << 30},
    {"tokens", 0, FLAG_STRING, OPTION(tokens), "greedy|random:SEED|FILE", .help = TOKEN_SOURCE_HELP},
    {"replay", 0, FLAG_STRING, OPTION(replay), "TRACE", .help = REPLAY_HELP},
    {0},
};

static const struct flag prefill_rows[] = {
    {"n", 'n', FLAG_U32, OPTION(n), .help = "tokens of the prompt", .min = 1, .max = 1 << 30},
    {"tokens", 0, FLAG_STRING, OPTION(tokens), "random:SEED|FILE", .help = "random ids, or ids from a file"},
    {"replay", 0, FLAG_STRING, OPTION(replay), "TRACE", .help = REPLAY_HELP},
    {0},
};

static const struct flag report_rows[] = {
    {"warm-up", 0, FLAG_U32, OPTION(warm_up), "TIMES", .help = "passes before it counts", .max = 1000,
     .min = 0},
    {"repeat", 0, FLAG_U32, OPTION(repeat), "TIMES",
     .help = "passes, each from an empty context; the speed is their median", .min = 1, .max = 1000},
    {"probe", 0, FLAG_FLOAT, OPTION(probe), "SECONDS",
     .help = "of reading after the passes, which say what the drive gives;\n"
             "0: none, and the bound is that of --io-limit and computing",
     .min = 0, .max = 60},
    {"stats", 0, FLAG_STRING, OPTION(stats), "FILE|-|live", .help = STATS_HELP},
    {"json-lines", 0, FLAG_STRING, OPTION(json_lines), "FILE|-", .help = "append one JSON object per pass"},
    {0},
};

static bool is_stdout(const char *path)
{
    return path && strcmp(path, "-") == 0;
}

static bool write_records(FILE *out, const struct bench_record *records, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        json_t *object = bench_record_json(&records[i]);
        char *line = object ? bench_record_line(object) : NULL;
        bool written = line && fputs(line, out) >= 0;
        free(line);
        json_decref(object);
        if (!written)
            return false;
    }
    return fflush(out) == 0;
}

/* Before anything is measured, which may take long. NULL after printing. */
static FILE *open_records(const char *path)
{
    FILE *file = is_stdout(path) ? stdout : fopen(path, "a+e");
    if (!file)
        cli_error(CLI_FAILED, "--json-lines: %s: %s", path, strerror(errno));
    return file;
}

/* A line that was cut off, as on a full drive, spoils itself alone. */
static bool end_last_line(FILE *file)
{
    if (fseek(file, -1, SEEK_END) != 0)
        return true; /* empty, or no file that has a size */
    bool ended = fgetc(file) == '\n';
    return fseek(file, 0, SEEK_END) == 0 && (ended || fputc('\n', file) >= 0);
}

static int append_records(FILE *file, const char *path, const struct bench_record *records, uint32_t n)
{
    if (file == stdout)
        return write_records(file, records, n) ? CLI_OK
                                               : CLI_FAILED; /* cli_finish reports stdout's failure */
    if (end_last_line(file) && write_records(file, records, n))
        return CLI_OK;
    return cli_error(CLI_FAILED, "--json-lines: %s: cannot write: %s", path, strerror(errno));
}

/* The table goes to stdout, unless that is asked for something else. */
static int report(struct bench_run *b, FILE *records)
{
    const char *stats = b->options->stats, *json_lines = b->options->json_lines;
    int exit_code = CLI_OK;
    print_summary(&b->m, &b->times);
    if (b->m.replay)
        bench_replay_print(stderr, b->m.replay, b->m.model);
    if (stats && !live_view_wanted(stats))
        exit_code = write_stats(&b->m, &b->times, stats);
    if (exit_code != CLI_OK || !bench_run_probe(b, &exit_code))
        return exit_code;
    bool taken = is_stdout(stats) || is_stdout(json_lines);
    if (!bench_report_print(taken ? stderr : stdout, b->records, b->times.n_rates))
        return cli_error(CLI_FAILED, "bench: out of memory");
    return records ? append_records(records, json_lines, b->records, b->times.n_rates) : CLI_OK;
}

static int measure(struct bench_run *b)
{
    const char *path = b->options->json_lines;
    int exit_code = CLI_FAILED;
    FILE *records = path ? open_records(path) : NULL;
    if (path && !records)
        return exit_code;
    if (bench_run_measure(b, &exit_code))
        exit_code = report(b, records);
    if (records && records != stdout)
        fclose(records);
    return exit_code;
}

/* What the measurements have in common: parse, open, load, run. */
static int bench_model(struct flag_spec *spec, const struct flag *rows, struct bench_options *options,
                       int argc, char **argv)
{
    struct model_options model_options;
    struct bench_run run;
    int exit_code;
    model_options_default(&model_options);
    const struct flag_group groups[] = {{"Measurement", rows, options},
                                        {"Repetition and report", report_rows, options},
                                        {"Model and memory", MODEL_FLAGS, &model_options},
                                        {0}};
    spec->groups = groups;
    if (!cli_parse(spec, argc, argv, &exit_code) || !live_view_possible(options->stats, &exit_code))
        return exit_code;
    if (bench_run_open(&run, options, &model_options, &exit_code))
        exit_code = measure(&run);
    bench_run_deinit(&run, exit_code);
    return exit_code;
}

static int bench_decode(int argc, char **argv)
{
    struct bench_options options = {
        .kind = BENCH_DECODE, .n = 64, .tokens = "random:1", .repeat = 1, .probe = 1.0f};
    struct flag_spec spec = {
        .command = "bench decode",
        .summary =
            "Decodes tokens one at a time from an empty context and cache, and reports the speed, where the\n"
            "time went, and how near that is to what computing alone or the drive alone would allow.",
        .examples =
            "  penstock bench decode -m model.gguf -n 64 --tokens random:1 --ram 4.8G --threads 2 --stats -\n"
            "  penstock bench decode -m model.gguf -n 64 --warm-up 1 --repeat 5 --json-lines all.jsonl\n"
            "  penstock bench decode -m synthetic.gguf -n 128 --replay story.trace --ram 8G"};
    return bench_model(&spec, decode_rows, &options, argc, argv);
}

static int bench_prefill(int argc, char **argv)
{
    struct bench_options options = {
        .kind = BENCH_PREFILL, .n = 512, .tokens = "random:1", .repeat = 1, .probe = 1.0f};
    struct flag_spec spec = {
        .command = "bench prefill",
        .summary = "Feeds a prompt into an empty context, makes the logits of its last token, and reports "
                   "the speed,\n"
                   "where the time went, and how near that is to what computing alone or the drive alone "
                   "would allow.",
        .examples =
            "  penstock bench prefill -m model.gguf -n 512 --warm-up 1 --repeat 3 --threads 2 --stats -\n"
            "  penstock bench prefill -m model.gguf -n 4096 --chunk 512 --ram 4.8G --json-lines all.jsonl"};
    return bench_model(&spec, prefill_rows, &options, argc, argv);
}

int cmd_bench(int argc, char **argv)
{
    static const struct cli_command commands[] = {
        {"decode", "tokens per second, one token at a time", bench_decode},
        {"prefill", "tokens per second of a prompt", bench_prefill},
        {"sweep", "both over a grid of budgets, drive speeds and more, to be gone on with any time",
         cmd_bench_sweep},
        {"io", "what the drive gives, over read sizes, depths and backends", cmd_bench_io},
        {"kernels", "each weight format's products, against this machine's limits", cmd_bench_kernels},
        {"report", "a page of plots from a folder of measurements", cmd_bench_report},
        {0},
    };
    return cli_dispatch("penstock bench", "Measures this machine, with a model or the kernels alone.",
                        commands, argc, argv);
}
