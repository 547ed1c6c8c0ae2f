/* penstock bench io: what a drive gives penstock's reader, over a grid of settings. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/cli/bench_file.h"
#include "runtime/cli/bench_io_report.h"
#include "runtime/cli/cli.h"
#include "runtime/clock.h"
#include "runtime/size_text.h"
#include "runtime/splitmix.h"

enum { MAX_LIST = 16 };
#define DEFAULT_MEMORY (UINT64_C(64) << 20) /* more than caches hold */
enum which { FIRST = 1, SECOND = 2, BOTH = FIRST | SECOND };

struct io_options {
    const char *directory, *model;
    uint64_t size;
    const char *extents, *blocks, *depths;
    int pattern, backend, direct; /* enum which */
    uint64_t io_limit, memory;
    float seconds;
    uint32_t repeat;
    bool json;
};

#define OPTION(field) offsetof(struct io_options, field)

static const struct flag_word pattern_words[] = {
    {"random", FIRST}, {"sequential", SECOND}, {"both", BOTH}, {0}};
static const struct flag_word backend_words[] = {{"uring", FIRST}, {"threads", SECOND}, {"both", BOTH}, {0}};
static const struct flag_word direct_words[] = {{"on", FIRST}, {"off", SECOND}, {"both", BOTH}, {0}};

static const struct flag file_rows[] = {
    {"dir", 0, FLAG_STRING, OPTION(directory), "DIR",
     .help = "make a file here and read that; it is gone when the\nprogram ends, however it ends; without: "
             "where you are"},
    {"size", 0, FLAG_SIZE, OPTION(size), "SIZE",
     .help = "of that file; 4 GiB, or half of the free space where\nthat is less", .min = 1 << 20,
     .max = 0x1p60},
    {"model", 'm', FLAG_STRING, OPTION(model), "MODEL",
     .help = "read a model's files instead, and of them its experts"},
    {0},
};

static const struct flag grid_rows[] = {
    {"extent", 0, FLAG_STRING, OPTION(extents), "SIZES",
     .help = "bytes wanted at once, from one place, as an expert's\nparts are; 64K,256K,1M,4M, or of a model "
             "its experts as\n"
             "they lie in it. Sequential reading takes the largest"},
    {"block", 0, FLAG_STRING, OPTION(blocks), "SIZES",
     .help = "single reads into which an extent is split, at most as\nlarge as it"},
    {"queue-depth", 0, FLAG_STRING, OPTION(depths), "NUMBERS", .help = "such reads in flight"},
    {"pattern", 0, FLAG_CHOICE, OPTION(pattern), .help = "where one extent lies after the other",
     .words = pattern_words},
    {"io", 0, FLAG_CHOICE, OPTION(backend), .help = "how they are read", .words = backend_words},
    {"direct", 0, FLAG_CHOICE, OPTION(direct),
     .help = "O_DIRECT, or through the page cache, which is emptied\nof the file before and of each read "
             "after it",
     .words = direct_words},
    {0},
};

static const struct flag measure_rows[] = {
    {"seconds", 0, FLAG_FLOAT, OPTION(seconds), "S", .help = "per setting and repeat", .min = 0, .max = 3600},
    {"repeat", 0, FLAG_U32, OPTION(repeat), "TIMES",
     .help = "rounds over all settings, in an order that no setting\ngains by; the rate is their median",
     .min = 1, .max = IO_MAX_REPEAT},
    {"io-limit", 0, FLAG_SIZE, OPTION(io_limit), "RATE", .help = "bytes per second at most; 0: none"},
    {"memory", 0, FLAG_SIZE, OPTION(memory), "SIZE",
     .help =
         "that extents are read into, in turns. What fits into the\nprocessor's caches can be faster than "
         "a cache of experts",
     .min = IO_ALIGN, .max = 1 << 30},
    {"json", 0, FLAG_BOOL, OPTION(json), .help = "print JSON lines, an object per setting"},
    {0},
};

/* ---- the grid ---- */

struct list {
    uint64_t values[MAX_LIST];
    uint32_t n;
};

static void list_add(struct list *list, uint64_t value)
{
    for (uint32_t i = 0; i < list->n; i++) {
        if (list->values[i] == value)
            return;
    }
    list->values[list->n++] = value;
}

/* "64K,1M". False: the message is printed, *exit_code set. */
static bool parse_list(struct list *list, const char *flag, const char *text, uint64_t min, uint64_t max,
                       int *exit_code)
{
    for (;;) {
        char item[32];
        uint64_t value;
        size_t length = strcspn(text, ",");
        snprintf(item, sizeof(item), "%.*s", length < sizeof(item) ? (int)length : (int)sizeof(item), text);
        bool ok = size_parse(item, &value);
        if (!ok || value < min || value > max || value % min != 0) {
            *exit_code =
                min > 1
                    ? cli_error(CLI_USAGE,
                                "--%s: \"%s\" is not a multiple of 4K up to 1G: use a list as \"256K,1M\"",
                                flag, item)
                    : cli_error(CLI_USAGE, "--%s: \"%s\" is not within 1..%llu: use a list as \"1,8,32\"",
                                flag, item, (unsigned long long)max);
            return false;
        }
        if (list->n == MAX_LIST) {
            *exit_code = cli_error(CLI_USAGE, "--%s: more than %d values", flag, MAX_LIST);
            return false;
        }
        list_add(list, value);
        if (!text[length])
            return true;
        text += length + 1;
    }
}

struct grid {
    struct list extents, blocks, depths;
};

struct bench {
    const struct io_options *options;
    struct grid grid;
    struct io_bench *bench;
    struct io_report report;
    uint32_t *order;                         /* [n_results] in which the cells are measured */
    char left_out[4][PS_ERROR_MESSAGE_SIZE]; /* why some were not */
    uint32_t n_left_out;
    double started;
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t list_max(const struct list *list)
{
    uint64_t max = 0;
    for (uint32_t i = 0; i < list->n; i++)
        max = list->values[i] > max ? list->values[i] : max;
    return max;
}

/* An extent of `bytes` in all its blocks and depths. cell: the rest. */
static void add_extent(struct bench *b, struct io_cell cell, uint64_t bytes, uint64_t most)
{
    struct list blocks = {0};
    for (uint32_t i = 0; i < b->grid.blocks.n; i++)
        list_add(&blocks, min_u64(b->grid.blocks.values[i], most));
    cell.extent_bytes = bytes;
    for (uint32_t i = 0; i < blocks.n; i++) {
        for (uint32_t d = 0; d < b->grid.depths.n; d++) {
            cell.block_bytes = (uint32_t)blocks.values[i];
            cell.queue_depth = (uint32_t)b->grid.depths.values[d];
            b->report.results[b->report.n_results++].cell = cell;
        }
    }
}

static void add_cells(struct bench *b, enum io_backend backend, bool direct)
{
    struct io_cell cell = {
        .backend = backend, .direct = direct, .pattern = IO_RANDOM, .memory_bytes = b->options->memory};
    struct list extents = {0};
    for (uint32_t i = 0; i < b->grid.extents.n; i++)
        list_add(&extents, min_u64(b->grid.extents.values[i], io_bench_largest_extent(b->bench)));
    bool shards = !b->options->extents && b->report.shard_bytes > 0;
    if (b->options->pattern & FIRST) {
        if (shards)
            add_extent(b, cell, 0, b->report.shard_bytes);
        for (uint32_t i = 0; !shards && i < extents.n; i++)
            add_extent(b, cell, extents.values[i], extents.values[i]);
    }
    if (b->options->pattern & SECOND) {
        cell.pattern = IO_SEQUENTIAL;
        add_extent(b, cell, list_max(&extents), list_max(&extents));
    }
}

static bool make_grid(struct bench *b)
{
    const struct grid *grid = &b->grid;
    size_t most = (size_t)(grid->extents.n + 1) * grid->blocks.n * grid->depths.n * 4;
    b->report.results = calloc(most, sizeof(*b->report.results));
    b->order = calloc(most, sizeof(*b->order));
    if (!b->report.results || !b->order)
        return false;
    for (int backend = FIRST; backend <= SECOND; backend++) {
        for (int direct = FIRST; direct <= SECOND; direct++) {
            if ((b->options->backend & backend) && (b->options->direct & direct))
                add_cells(b, backend == FIRST ? IO_BACKEND_URING : IO_BACKEND_THREADS, direct == FIRST);
        }
    }
    for (uint32_t i = 0; i < b->report.n_results; i++)
        b->order[i] = i;
    return true;
}

/* ---- measuring ---- */

/* Fisher and Yates: a drive that drifts does so over no one dimension of the grid. */
static void shuffle(uint32_t *order, uint32_t n, uint64_t *random)
{
    for (uint32_t i = n; i > 1; i--) {
        uint32_t other = (uint32_t)(splitmix64(random) % i);
        uint32_t last = order[i - 1];
        order[i - 1] = order[other];
        order[other] = last;
    }
}

static void leave_out(struct bench *b, const char *why)
{
    for (uint32_t i = 0; i < b->n_left_out; i++) {
        if (strcmp(b->left_out[i], why) == 0)
            return;
    }
    if (b->n_left_out < sizeof(b->left_out) / sizeof(b->left_out[0]))
        snprintf(b->left_out[b->n_left_out++], sizeof(b->left_out[0]), "%s", why);
}

static void add_sample(struct io_result *result, const struct io_sample *sample)
{
    struct io_sample *sum = &result->sum;
    sum->drive_known = sample->drive_known && (result->n_rates == 0 || sum->drive_known);
    sum->bytes += sample->bytes;
    sum->reads += sample->reads;
    sum->extents += sample->extents;
    sum->seconds += sample->seconds;
    sum->drive_bytes += sample->drive_bytes;
    sum->drive_seconds += sample->drive_seconds;
    double rate = sample->seconds > 0 ? (double)sample->bytes / sample->seconds : 0.0;
    uint32_t at = result->n_rates++;
    for (; at > 0 && result->rates[at - 1] > rate; at--)
        result->rates[at] = result->rates[at - 1];
    result->rates[at] = rate;
}

static void show_progress(const struct bench *b, uint32_t done, uint32_t all)
{
    if (!isatty(STDERR_FILENO) || done == 0)
        return;
    double left = (clock_seconds() - b->started) / done * (all - done);
    fprintf(stderr, "\r%u of %u measurements, %.0f:%02d left \033[K", done, all, (double)((int)left / 60),
            (int)left % 60);
}

static enum ps_status measure(struct bench *b, struct ps_error *err)
{
    const struct io_options *o = b->options;
    uint32_t n = b->report.n_results;
    uint64_t random = 1;
    b->started = clock_seconds();
    for (uint32_t round = 0; round < o->repeat; round++) {
        shuffle(b->order, n, &random);
        for (uint32_t i = 0; i < n; i++) {
            struct io_result *result = &b->report.results[b->order[i]];
            struct io_sample sample;
            enum ps_status status = io_bench_measure(b->bench, &result->cell, o->io_limit, (double)o->seconds,
                                                     &sample, &result->latency, err);
            if (status == PS_ERR_UNSUPPORTED)
                leave_out(b, err->message);
            else if (status == PS_OK)
                add_sample(result, &sample);
            else
                return status;
            show_progress(b, round * n + i + 1, o->repeat * n);
        }
    }
    return PS_OK;
}

static bool anything_measured(const struct io_report *report)
{
    for (uint32_t i = 0; i < report->n_results; i++) {
        if (report->results[i].n_rates > 0)
            return true;
    }
    return false;
}

static int report_all(const struct bench *b)
{
    if (!anything_measured(&b->report))
        return cli_error(CLI_FAILED, "bench io: nothing could be measured: %s", b->left_out[0]);
    for (uint32_t i = 0; i < b->n_left_out; i++)
        fprintf(stderr, "some settings left out: %s\n", b->left_out[i]);
    if (b->options->json)
        return io_report_json(&b->report);
    io_report_print(&b->report);
    return CLI_OK;
}

static int run(struct bench *b)
{
    struct ps_error err;
    b->report.io_limit = b->options->io_limit;
    b->report.shard_bytes = io_bench_shard_bytes(b->bench);
    enum ps_status status =
        make_grid(b) ? measure(b, &err) : ps_error_set(&err, PS_ERR_NOMEM, "bench io: out of memory");
    if (isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
    int exit_code = status == PS_OK ? report_all(b) : cli_status(&err);
    free(b->report.results);
    free(b->order);
    return exit_code;
}

static int bench_model(struct bench *b)
{
    struct ps_model *model;
    struct ps_error err;
    if (ps_model_open(&model, b->options->model, &err) != PS_OK)
        return cli_status(&err);
    b->report.place = b->options->model;
    b->report.file_bytes = ps_model_info(model)->file_bytes;
    enum ps_status status = io_bench_new_model(&b->bench, model, cli_interrupt_flag(), &err);
    int exit_code = status == PS_OK ? run(b) : cli_status(&err);
    io_bench_free(b->bench);
    ps_model_free(model);
    return exit_code;
}

static int bench_directory(struct bench *b)
{
    struct bench_file file;
    struct ps_error err;
    const char *directory = b->options->directory ? b->options->directory : ".";
    enum ps_status status = bench_file_make(&file, directory, b->options->size, cli_interrupt_flag(), &err);
    if (status == PS_OK)
        status = io_bench_new(&b->bench, file.path, cli_interrupt_flag(), &err);
    b->report.place = directory;
    b->report.file_bytes = file.bytes;
    int exit_code = status == PS_OK ? run(b) : cli_status(&err);
    io_bench_free(b->bench);
    bench_file_close(&file);
    return exit_code;
}

int cmd_bench_io(int argc, char **argv)
{
    struct io_options options = {.blocks = "64K,256K,512K,1M",
                                 .depths = "1,2,4,8,16,32",
                                 .pattern = BOTH,
                                 .backend = BOTH,
                                 .direct = BOTH,
                                 .memory = DEFAULT_MEMORY,
                                 .seconds = 0.1f,
                                 .repeat = 3};
    const struct flag_group groups[] = {{"What is read", file_rows, &options},
                                        {"Settings to measure: every combination", grid_rows, &options},
                                        {"Measurement and report", measure_rows, &options},
                                        {0}};
    const struct flag_spec spec = {
        .command = "bench io",
        .summary =
            "Reads with the reader that runs use, in every combination of the settings, and reports the "
            "rate, the\n"
            "latency of an extent, and the least that saturates the drive. Nothing of a model is written.",
        .examples = "  penstock bench io --dir /mnt/nvme\n"
                    "  penstock bench io -m model.gguf --io uring --direct on --json\n"
                    "  penstock bench io --extent 1M --block 1M --queue-depth 8 --pattern random --io uring "
                    "--direct on --seconds 5\n"
                    "  penstock bench io --io-limit 500M --io uring --direct on --seconds 2",
        .groups = groups};
    struct bench b = {.options = &options};
    int exit_code;
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    if (options.model && (options.directory || options.size))
        return cli_error(CLI_USAGE,
                         "--model: its files are read, and no file is made: leave out --dir and --size");
    const char *extents = options.extents ? options.extents : "64K,256K,1M,4M";
    if (!parse_list(&b.grid.extents, "extent", extents, IO_ALIGN, 1 << 30, &exit_code) ||
        !parse_list(&b.grid.blocks, "block", options.blocks, IO_ALIGN, 1 << 30, &exit_code) ||
        !parse_list(&b.grid.depths, "queue-depth", options.depths, 1, 1024, &exit_code))
        return exit_code;
    cli_catch_interrupt();
    return options.model ? bench_model(&b) : bench_directory(&b);
}
