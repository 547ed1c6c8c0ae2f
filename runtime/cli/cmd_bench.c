/* penstock bench: measured speed. decode: one token at a time; prefill: a whole prompt; both with given ids or random
 * ones, decode with the model's own as well. */
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/live_view.h"
#include "runtime/cli/model_flags.h"
#include "runtime/cli/token_input.h"
#include "runtime/clock.h"

struct bench_options {
    const char *tokens;
    const char *replay;
    uint32_t n;
    uint32_t warm_up, repeat;
    const char *stats;
};

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
     .help = "passes over the same tokens, each from an empty context;\nthe speed is their median", .min = 1,
     .max = 1000},
    {"stats", 0, FLAG_STRING, OPTION(stats), "FILE|-|live", .help = STATS_HELP},
    {0},
};

/* What a pass works on. */
struct bench {
    struct loaded_model *m;
    const struct bench_options *options;
    const struct token_source *source;
    struct ps_sampler *greedy;
    struct live_view *live;
    float *logits;
    double start;  /* of the first pass that counts; the command's if that is the first of all */
    double *rates; /* [repeat] tokens/s */
    struct run_times times;
};

/* One pass from an empty context; adds to b->times. */
typedef enum ps_status pass_fn(struct bench *b, struct ps_error *err);

static enum ps_status decode_pass(struct bench *b, struct ps_error *err)
{
    struct ps_session *session = b->m->session;
    uint32_t n_vocab = ps_model_info(b->m->model)->n_vocab;
    enum ps_status status;
    int32_t next = 0;
    double start = clock_seconds();
    double before = b->times.decode_s;
    for (uint32_t i = 0; i < b->options->n; i++) {
        int32_t token = b->source->ids ? b->source->ids[i] : next;
        if ((status = ps_session_feed(session, &token, 1, err)) != PS_OK ||
            (status = ps_session_logits(session, 0, 1, b->logits, err)) != PS_OK ||
            (status = ps_sampler_pick(b->greedy, b->logits, n_vocab, &next, err)) != PS_OK)
            return status;
        double now = clock_seconds();
        if (b->times.decode_steps == 0)
            b->times.ttft_s = now - b->start;
        b->times.decode_s = before + now - start;
        b->times.generated_tokens = ++b->times.decode_steps;
        live_view_token(b->live);
    }
    return PS_OK;
}

static enum ps_status prefill_pass(struct bench *b, struct ps_error *err)
{
    struct ps_session *session = b->m->session;
    enum ps_status status;
    double start = clock_seconds();
    if ((status = ps_session_feed(session, b->source->ids, b->options->n, err)) != PS_OK ||
        (status = ps_session_logits(session, 0, 1, b->logits, err)) != PS_OK)
        return status;
    double now = clock_seconds();
    if (b->times.prompt_tokens == 0)
        b->times.ttft_s = now - b->start;
    b->times.prefill_s += now - start;
    b->times.prompt_tokens += b->options->n;
    live_view_token(b->live);
    return PS_OK;
}

static int by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static enum ps_status run_passes(struct bench *b, pass_fn *pass, struct ps_error *err)
{
    uint32_t n = b->options->warm_up + b->options->repeat;
    for (uint32_t i = 0; i < n; i++) {
        ps_session_truncate(b->m->session, 0);
        if (i > 0 && i == b->options->warm_up) {
            ps_session_reset_stats(b->m->session);
            b->times = (struct run_times){0};
            b->start = clock_seconds();
        }
        double before = b->times.decode_s + b->times.prefill_s;
        enum ps_status status = pass(b, err);
        if (status != PS_OK)
            return status;
        if (i >= b->options->warm_up)
            b->rates[b->times.n_rates++] = b->options->n / (b->times.decode_s + b->times.prefill_s - before);
    }
    qsort(b->rates, b->times.n_rates, sizeof(*b->rates), by_value);
    b->times.rates = b->rates;
    return PS_OK;
}

static enum ps_status bench_init(struct bench *b, struct ps_error *err)
{
    struct ps_sampler_params params;
    ps_sampler_params_default(&params);
    params.temp = 0.0f;
    b->logits = malloc(ps_model_info(b->m->model)->n_vocab * sizeof(*b->logits));
    b->rates = malloc(b->options->repeat * sizeof(*b->rates));
    if (!b->logits || !b->rates)
        return ps_error_set(err, PS_ERR_NOMEM, "bench: out of memory");
    return ps_sampler_new(&b->greedy, &params, err);
}

static void print_spread(const struct run_times *times)
{
    if (times->n_rates > 1)
        fprintf(stderr, "%u times: %.2f to %.2f tok/s\n", times->n_rates, times->rates[0],
                times->rates[times->n_rates - 1]);
}

static int run_bench(struct bench *b, pass_fn *pass)
{
    struct ps_error err;
    const struct bench_options *o = b->options;
    int exit_code = CLI_OK;
    enum ps_status status = bench_init(b, &err);
    if (status == PS_OK)
        status = live_view_open(&b->live, o->stats, b->m, 0, (uint64_t)o->n * (o->warm_up + o->repeat), &err);
    if (status == PS_OK)
        status = run_passes(b, pass, &err);
    live_view_close(b->live);
    if (status != PS_OK) {
        exit_code = cli_status(&err);
    } else {
        print_summary(b->m, &b->times);
        if (b->m->replay)
            bench_replay_print(b->m->replay, b->m->model);
        print_spread(&b->times);
        print_parts(b->m);
        if (o->stats && !live_view_wanted(o->stats))
            exit_code = write_stats(b->m, &b->times, o->stats);
    }
    ps_sampler_free(b->greedy);
    free(b->logits);
    free(b->rates);
    return exit_code;
}

/* The token source, and the model loaded with what is replayed. */
static bool bench_start(const struct bench_options *options, struct model_options *model_options,
                        struct token_source *source, struct bench_replay *replay, struct loaded_model *m,
                        int *exit_code)
{
    struct ps_error err;
    struct ps_model_params *params = &model_options->params;
    if (!token_source_open(source, options->tokens, options->n, ps_model_info(m->model)->n_vocab, exit_code))
        return false;
    if (options->replay &&
        !bench_replay_open(replay, options->replay, params->feed == 1 || params->chunk == 1, m->model, params,
                           exit_code))
        return false;
    if (!loaded_model_start(m, m->model, model_options, exit_code))
        return false;
    if (!options->replay)
        return true;
    m->replay = replay;
    if (bench_replay_attach(replay, m->model, m->session, &err) == PS_OK)
        return true;
    *exit_code = cli_status(&err);
    return false;
}

/* What the measurements have in common: parse, open, load, run. feed: most tokens per feed; 0: all. */
static int bench_model(const struct flag_spec *spec, struct bench_options *options,
                       struct model_options *model_options, uint32_t feed, pass_fn *pass, int argc,
                       char **argv)
{
    struct loaded_model m = {.start = clock_seconds()};
    struct token_source source = {0};
    struct bench_replay replay = {0};
    struct ps_error err;
    int exit_code;
    if (!cli_parse(spec, argc, argv, &exit_code) || !live_view_possible(options->stats, &exit_code))
        return exit_code;
    bool greedy = strcmp(options->tokens, "greedy") == 0;
    if (greedy && feed == 0)
        return cli_error(CLI_USAGE, "--tokens: greedy has no prompt: use random:SEED or a file");
    if (greedy && options->replay)
        return cli_error(CLI_USAGE,
                         "--replay: the logits of a replay mean nothing, greedy tokens go by them: use "
                         "--tokens random:SEED or a file");
    if (ps_model_open(&m.model, model_options->path, &err) != PS_OK)
        return cli_status(&err);
    if (model_options->params.ctx == 0)
        model_options->params.ctx = options->n;
    model_options->params.feed = feed > 0 ? feed : options->n;
    if (options->n > model_options->params.ctx)
        exit_code = cli_error(CLI_USAGE, "-n: %u tokens do not fit a context of %u", options->n,
                              model_options->params.ctx);
    else if (bench_start(options, model_options, &source, &replay, &m, &exit_code)) {
        struct bench b = {.m = &m, .options = options, .source = &source, .start = m.start};
        exit_code = run_bench(&b, pass);
    }
    loaded_model_save_working_set(&m, exit_code);
    free(source.ids);
    loaded_model_close(&m);
    bench_replay_close(&replay);
    return exit_code;
}

static int bench_decode(int argc, char **argv)
{
    struct model_options model_options;
    struct bench_options options = {.n = 64, .tokens = "random:1", .repeat = 1};
    model_options_default(&model_options);
    const struct flag_group groups[] = {{"Measurement", decode_rows, &options},
                                        {"Repetition and report", report_rows, &options},
                                        {"Model and memory", MODEL_FLAGS, &model_options},
                                        {0}};
    const struct flag_spec spec = {
        .command = "bench decode",
        .summary =
            "Decodes tokens one at a time from an empty context and cache, and reports the speed and where\n"
            "the time went.",
        .examples =
            "  penstock bench decode -m model.gguf -n 64 --tokens random:1 --ram 4.8G --threads 2 --stats -\n"
            "  penstock bench decode -m model.gguf -n 64 --warm-up 1 --repeat 5\n"
            "  penstock bench decode -m synthetic.gguf -n 128 --replay story.trace --ram 8G",
        .groups = groups};
    return bench_model(&spec, &options, &model_options, 1, decode_pass, argc, argv);
}

static int bench_prefill(int argc, char **argv)
{
    struct model_options model_options;
    struct bench_options options = {.n = 512, .tokens = "random:1", .repeat = 1};
    model_options_default(&model_options);
    const struct flag_group groups[] = {{"Measurement", prefill_rows, &options},
                                        {"Repetition and report", report_rows, &options},
                                        {"Model and memory", MODEL_FLAGS, &model_options},
                                        {0}};
    const struct flag_spec spec = {
        .command = "bench prefill",
        .summary = "Feeds a prompt into an empty context, makes the logits of its last token, and reports "
                   "the speed\n"
                   "and where the time went.",
        .examples =
            "  penstock bench prefill -m model.gguf -n 512 --warm-up 1 --repeat 3 --threads 2 --stats -\n"
            "  penstock bench prefill -m model.gguf -n 4096 --chunk 512 --ram 4.8G",
        .groups = groups};
    return bench_model(&spec, &options, &model_options, 0, prefill_pass, argc, argv);
}

int cmd_bench(int argc, char **argv)
{
    static const struct cli_command commands[] = {
        {"decode", "tokens per second, one token at a time", bench_decode},
        {"prefill", "tokens per second of a prompt", bench_prefill},
        {"io", "what the drive gives, over read sizes, depths and backends", cmd_bench_io},
        {"kernels", "each weight format's products, against this machine's limits", cmd_bench_kernels},
        {"report", "a page of plots from a folder of measurements", cmd_bench_report},
        {0},
    };
    return cli_dispatch("penstock bench",
                        "Measures this machine, with a model, its drive or the kernels alone.", commands,
                        argc, argv);
}
