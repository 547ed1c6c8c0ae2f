/* penstock bench: measured speed. decode: one token at a time, with given ids or the model's own. */
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/live_view.h"
#include "runtime/cli/model_flags.h"
#include "runtime/cli/token_input.h"
#include "runtime/clock.h"

struct bench_options {
    const char *tokens;
    uint32_t n;
    const char *stats;
};

#define OPTION(field) offsetof(struct bench_options, field)

static const struct flag decode_rows[] = {
    {"n", 'n', FLAG_U32, OPTION(n), .help = "tokens to decode", .min = 1, .max = 1 << 30},
    {"tokens", 0, FLAG_STRING, OPTION(tokens), "greedy|random:SEED|FILE", .help = TOKEN_SOURCE_HELP},
    {"stats", 0, FLAG_STRING, OPTION(stats), "FILE|-|live", .help = STATS_HELP},
    {0},
};

static enum ps_status decode(struct loaded_model *m, const struct token_source *source, uint32_t n,
                             float *logits, struct ps_sampler *greedy, struct live_view *live,
                             struct run_times *times, struct ps_error *err)
{
    uint32_t n_vocab = ps_model_info(m->model)->n_vocab;
    enum ps_status status = PS_OK;
    int32_t next = 0;
    double start = clock_seconds();
    for (uint32_t i = 0; status == PS_OK && i < n; i++) {
        int32_t token = source->ids ? source->ids[i] : next;
        if ((status = ps_session_feed(m->session, &token, 1, err)) != PS_OK ||
            (status = ps_session_logits(m->session, 0, 1, logits, err)) != PS_OK ||
            (status = ps_sampler_pick(greedy, logits, n_vocab, &next, err)) != PS_OK)
            break;
        double now = clock_seconds();
        if (i == 0)
            times->ttft_s = now - m->start;
        times->decode_s = now - start;
        times->decode_steps = times->generated_tokens = i + 1;
        live_view_token(live);
    }
    return status;
}

static int run_decode(struct loaded_model *m, const struct bench_options *o,
                      const struct token_source *source)
{
    struct ps_error err;
    struct ps_sampler *greedy = NULL;
    struct live_view *live = NULL;
    struct run_times times = {0};
    float *logits = malloc(ps_model_info(m->model)->n_vocab * sizeof(*logits));
    struct ps_sampler_params params;
    ps_sampler_params_default(&params);
    params.temp = 0.0f;
    enum ps_status status = logits ? ps_sampler_new(&greedy, &params, &err)
                                   : ps_error_set(&err, PS_ERR_NOMEM, "logits: out of memory");
    if (status == PS_OK)
        status = live_view_open(&live, o->stats, m, 0, o->n, &err);
    if (status == PS_OK)
        status = decode(m, source, o->n, logits, greedy, live, &times, &err);
    live_view_close(live);
    ps_sampler_free(greedy);
    free(logits);
    if (status != PS_OK)
        return cli_status(&err);
    print_summary(m, &times);
    return o->stats && !live_view_wanted(o->stats) ? write_stats(m, &times, o->stats) : CLI_OK;
}

static int bench_decode(int argc, char **argv)
{
    struct model_options model_options;
    struct bench_options options = {.n = 64, .tokens = "random:1"};
    model_options_default(&model_options);
    const struct flag_group groups[] = {
        {"Measurement", decode_rows, &options}, {"Model and memory", MODEL_FLAGS, &model_options}, {0}};
    const struct flag_spec spec = {
        .command = "bench decode",
        .summary = "Decodes tokens one at a time from an empty context and cache, and reports the speed.",
        .examples =
            "  penstock bench decode -m model.gguf -n 64 --tokens random:1 --ram 4.8G --threads 2 --stats -",
        .groups = groups};
    struct loaded_model m = {.start = clock_seconds()};
    struct token_source source = {0};
    struct ps_error err;
    int exit_code;
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    if (!live_view_possible(options.stats, &exit_code))
        return exit_code;
    if (ps_model_open(&m.model, model_options.path, &err) != PS_OK)
        return cli_status(&err);
    if (model_options.params.ctx == 0)
        model_options.params.ctx = options.n;
    model_options.params.feed = 1;
    if (options.n > model_options.params.ctx)
        exit_code = cli_error(CLI_USAGE, "-n: %u tokens do not fit a context of %u", options.n,
                              model_options.params.ctx);
    else if (token_source_open(&source, options.tokens, options.n, ps_model_info(m.model)->n_vocab,
                               &exit_code) &&
             loaded_model_start(&m, m.model, &model_options, &exit_code))
        exit_code = run_decode(&m, &options, &source);
    loaded_model_save_working_set(&m, exit_code);
    free(source.ids);
    loaded_model_close(&m);
    return exit_code;
}

int cmd_bench(int argc, char **argv)
{
    static const struct cli_command commands[] = {
        {"decode", "tokens per second, one token at a time", bench_decode},
        {0},
    };
    return cli_dispatch("penstock bench", "Measures this machine with a model.", commands, argc, argv);
}
