/* penstock bench: measured speed. decode: one token at a time, with given ids or the model's own. */
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/live_view.h"
#include "runtime/cli/model_flags.h"
#include "runtime/clock.h"

struct bench_options {
    const char *tokens;
    uint32_t n;
    const char *stats;
};

#define OPTION(field) offsetof(struct bench_options, field)

static const struct flag decode_rows[] = {
    {"n", 'n', FLAG_U32, OPTION(n), .help = "tokens to decode", .min = 1, .max = 1 << 30},
    {"tokens", 0, FLAG_STRING, OPTION(tokens), "greedy|random:SEED|FILE",
     .help = "what is fed: the model's own choice (random weights\nthen fall into a loop, which flatters "
             "every cache),\n"
             "random ids (the fair, hard case), or ids from a file"},
    {"stats", 0, FLAG_STRING, OPTION(stats), "FILE|-|live", .help = STATS_HELP},
    {0},
};

/* Where the ids come from: a list, or (ids NULL) the arg max of the last logits. */
struct token_source {
    int32_t *ids;
    size_t n;
};

static bool random_ids(struct token_source *source, uint64_t seed, uint32_t n, uint32_t n_vocab)
{
    source->ids = malloc(n * sizeof(*source->ids));
    source->n = n;
    for (uint32_t i = 0; source->ids && i < n; i++) {
        /* splitmix64 (Steele, Lea, Flood 2014): any seed gives well-mixed ids */
        uint64_t z = seed += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        source->ids[i] = (int32_t)((z ^ (z >> 31)) % n_vocab);
    }
    return source->ids != NULL;
}

static bool open_source(struct token_source *source, const struct bench_options *o, uint32_t n_vocab,
                        int *exit_code)
{
    *exit_code = CLI_FAILED;
    if (strcmp(o->tokens, "greedy") == 0)
        return true;
    if (strncmp(o->tokens, "random:", 7) == 0) {
        char *end;
        uint64_t seed = strtoull(o->tokens + 7, &end, 10);
        if (end == o->tokens + 7 || *end) {
            *exit_code =
                cli_error(CLI_USAGE, "--tokens: \"%s\": a number must follow \"random:\"", o->tokens);
            return false;
        }
        if (!random_ids(source, seed, o->n, n_vocab))
            cli_error(CLI_FAILED, "--tokens: out of memory");
        return source->ids != NULL;
    }
    size_t length;
    char *text = read_text_file(o->tokens, &length);
    bool ok = text && parse_token_list(text, o->tokens, &source->ids, &source->n);
    free(text);
    if (ok && source->n < o->n) {
        *exit_code =
            cli_error(CLI_USAGE, "--tokens: %s holds %zu ids, -n asks for %u", o->tokens, source->n, o->n);
        return false;
    }
    return ok;
}

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
    else if (open_source(&source, &options, ps_model_info(m.model)->n_vocab, &exit_code) &&
             loaded_model_start(&m, m.model, &model_options, &exit_code))
        exit_code = run_decode(&m, &options, &source);
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
