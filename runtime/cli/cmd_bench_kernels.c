/* penstock bench kernels: every format's products, beside what the machine gives at most. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/kernel_bench.h"
#include "runtime/topology.h"

struct kernels_options {
    const char *format, *cpu;
    uint32_t rows, cols;
    uint32_t threads;
    uint64_t memory;
    float seconds;
    bool json;
};

#define OPTION(field) offsetof(struct kernels_options, field)

static const char *format_name_at(uint32_t index)
{
    const struct block_format *format = block_format_at(index);
    return format ? format->name : NULL;
}

static const char *cpu_name_at(uint32_t index)
{
    return index < CPU_N_LEVELS ? cpu_level_name((enum cpu_level)index) : NULL;
}

static const struct flag kernels_rows[] = {
    {"format", 0, FLAG_NAME, OPTION(format), "NAME", .help = "all, or one of:", .name_at = format_name_at},
    {"rows", 0, FLAG_U32, OPTION(rows), .help = "rows of a matrix", .min = 1, .max = 1 << 20},
    {"cols", 0, FLAG_U32, OPTION(cols), .help = "its columns, a multiple of 256", .min = 256, .max = 1 << 17},
    {"threads", 0, FLAG_U32, OPTION(threads), .help = "compute threads; 0: one per physical core", .max = 256,
     .min = 0},
    {"cpu", 0, FLAG_NAME, OPTION(cpu), "LEVEL",
     .help = "instruction set; the best there is, or one of:", .name_at = cpu_name_at},
    {"memory", 0, FLAG_SIZE, OPTION(memory), "SIZE",
     .help = "what the matrices fill, to be read past all caches"},
    {"seconds", 0, FLAG_FLOAT, OPTION(seconds), "S", .help = "per figure", .min = 0, .max = 60},
    {"json", 0, FLAG_BOOL, OPTION(json), .help = "print one JSON object"},
    {0},
};

static const uint32_t batches[] = {1, 8, KERNEL_BENCH_MAX_TOKENS}; /* tokens */
enum { N_BATCHES = sizeof(batches) / sizeof(batches[0]) };

static double operations_at_most(const struct machine_peak *peak, const struct block_format *format)
{
    return format->act == ACT_F32 ? peak->f32_ops : peak->int8_ops;
}

static double share(double part, double whole)
{
    return whole > 0.0 ? part / whole : 0.0;
}

struct result {
    const struct block_format *format;
    uint32_t n_tokens;
    struct kernel_rate rate;
};

struct report {
    const char *level;
    struct kernel_bench_params params;
    struct machine_peak peak;
    struct result *results;
    size_t n_results;
};

/* ---- measuring ---- */

/* Before and after the products, since other work on the machine may slow down either. */
static void raise_peak(struct kernel_bench *bench, struct machine_peak *best)
{
    struct machine_peak peak;
    kernel_bench_peak(bench, &peak);
    best->read_bytes = fmax(best->read_bytes, peak.read_bytes);
    best->int8_ops = fmax(best->int8_ops, peak.int8_ops);
    best->f32_ops = fmax(best->f32_ops, peak.f32_ops);
}

static enum ps_status measure(struct kernel_bench *bench, const char *only, struct report *r,
                              struct ps_error *err)
{
    const struct block_format *format;
    raise_peak(bench, &r->peak);
    for (uint32_t i = 0; (format = block_format_at(i)) != NULL; i++) {
        if (only && format->name != only)
            continue;
        enum ps_status status = kernel_bench_fill(bench, format, err);
        if (status != PS_OK)
            return status;
        for (uint32_t t = 0; t < N_BATCHES; t++) {
            struct result *result = &r->results[r->n_results++];
            if (cli_interrupted())
                return ps_error_set(err, PS_ERR_CANCELLED, "bench kernels: interrupted");
            *result = (struct result){.format = format, .n_tokens = batches[t]};
            kernel_bench_matmul(bench, batches[t], &result->rate);
        }
    }
    raise_peak(bench, &r->peak);
    return PS_OK;
}

/* ---- report ---- */

static double of_read(const struct report *r, const struct result *result)
{
    return share(result->rate.weight_bytes, r->peak.read_bytes);
}

static double of_peak(const struct report *r, const struct result *result)
{
    return share(result->rate.ops, operations_at_most(&r->peak, result->format));
}

static void print_table(const struct report *r)
{
    const struct machine_peak *peak = &r->peak;
    cli_printf(
        "%s, %u threads: reading %.1f GB/s, int8 %.0f GOP/s, f32 %.0f GFLOP/s; matrices of %u x %u\n\n",
        r->level, r->params.threads, peak->read_bytes / 1e9, peak->int8_ops / 1e9, peak->f32_ops / 1e9,
        r->params.rows, r->params.cols);
    cli_printf("%-8s %7s %9s %9s %10s %9s\n", "format", "tokens", "GB/s", "of read", "GOP/s", "of peak");
    for (size_t i = 0; i < r->n_results; i++) {
        const struct result *result = &r->results[i];
        cli_printf("%-8s %7u %9.2f %8.1f%% %10.1f %8.1f%%\n", result->format->name, result->n_tokens,
                   result->rate.weight_bytes / 1e9, 100.0 * of_read(r, result), result->rate.ops / 1e9,
                   100.0 * of_peak(r, result));
    }
}

static int print_json(const struct report *r)
{
    json_t *list = json_array();
    for (size_t i = 0; i < r->n_results; i++) {
        const struct result *result = &r->results[i];
        json_array_append_new(list,
                              json_pack("{s:s, s:i, s:f, s:f, s:f, s:f}", "format", result->format->name,
                                        "tokens", (int)result->n_tokens, "gb_s",
                                        result->rate.weight_bytes / 1e9, "of_read", of_read(r, result),
                                        "gop_s", result->rate.ops / 1e9, "of_peak", of_peak(r, result)));
    }
    json_t *root = json_pack("{s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:o}", "cpu", r->level, "threads",
                             (int)r->params.threads, "rows", (int)r->params.rows, "cols", (int)r->params.cols,
                             "read_gb_s", r->peak.read_bytes / 1e9, "int8_gop_s", r->peak.int8_ops / 1e9,
                             "f32_gflop_s", r->peak.f32_ops / 1e9, "results", list);
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    if (!text)
        return cli_error(CLI_FAILED, "--json: out of memory");
    cli_printf("%s\n", text);
    free(text);
    return CLI_OK;
}

static size_t count_results(void)
{
    uint32_t n = 0;
    while (block_format_at(n))
        n++;
    return (size_t)n * N_BATCHES;
}

static int run(const struct kernels_options *options, enum cpu_level level)
{
    struct report report = {
        .level = cpu_level_name(level),
        .params = {.level = level,
                   .threads = options->threads,
                   .rows = options->rows,
                   .cols = options->cols,
                   .memory_bytes = options->memory,
                   .seconds = (double)options->seconds},
        .results = calloc(count_results(), sizeof(*report.results)),
    };
    struct kernel_bench *bench = NULL;
    struct ps_error err;
    int exit_code = CLI_OK;
    if (options->threads == 0) {
        struct topology topology;
        topology_read_own(&topology);
        report.params.threads = topology.physical;
    }
    cli_catch_interrupt();
    enum ps_status status = report.results ? kernel_bench_new(&bench, &report.params, &err)
                                           : ps_error_set(&err, PS_ERR_NOMEM, "bench kernels: out of memory");
    if (status == PS_OK)
        status = measure(bench, options->format, &report, &err);
    if (status != PS_OK)
        exit_code = cli_status(&err);
    else if (options->json)
        exit_code = print_json(&report);
    else
        print_table(&report);
    free(report.results);
    kernel_bench_free(bench);
    return exit_code;
}

int cmd_bench_kernels(int argc, char **argv)
{
    struct kernels_options options = {.rows = 2048, .cols = 2048, .memory = 256 << 20, .seconds = 0.3f};
    enum cpu_level level = cpu_level_best();
    const struct flag_group groups[] = {{NULL, kernels_rows, &options}, {0}};
    const struct flag_spec spec = {
        .command = "bench kernels",
        .summary = "Multiplies matrices of each weight format by 1, 8 and 512 tokens, and compares that with "
                   "how fast\n"
                   "this machine reads memory and multiplies out of registers. No model is needed.",
        .examples = "  penstock bench kernels\n"
                    "  penstock bench kernels --format q4_K --rows 768 --cols 2048 --threads 1\n"
                    "  penstock bench kernels --cpu avx2 --seconds 1 --json",
        .groups = groups};
    int exit_code;
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    if (options.cols % 256 != 0)
        return cli_error(CLI_USAGE, "--cols: %u is not a multiple of 256", options.cols);
    if (options.cpu && !(cpu_level_parse(options.cpu, &level) && cpu_level_available(level)))
        return cli_error(CLI_USAGE, "--cpu: this machine has no %s", options.cpu);
    return run(&options, level);
}
