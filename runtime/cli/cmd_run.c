/* penstock run: one prompt, text as it is made to stdout, everything else to stderr. */
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/live_view.h"
#include "runtime/cli/model_flags.h"
#include "runtime/cli/token_input.h"
#include "runtime/clock.h"

enum print_what { PRINT_TEXT, PRINT_TOKENS };

struct run_options {
    struct prompt_options prompt;
    uint32_t n;
    bool ignore_end;
    int print;
    const char *stats;
    struct ps_sampler_params sampler;
};

#define OPTION(field) offsetof(struct run_options, field)

static const struct flag_word print_words[] = {{"text", PRINT_TEXT}, {"tokens", PRINT_TOKENS}, {0}};

static const struct flag run_rows[] = {
    {"n", 'n', FLAG_U32, OPTION(n), .help = "tokens to generate at most"},
    {"ignore-end", 0, FLAG_BOOL, OPTION(ignore_end), .help = "go on after an end-of-text token"},
    {"print", 0, FLAG_CHOICE, OPTION(print), "WHAT", .help = "what goes to stdout:", .words = print_words},
    {"stats", 0, FLAG_STRING, OPTION(stats), "FILE|-|live", .help = STATS_HELP},
    {0},
};

static const struct flag sampler_rows[] = {
    {"temp", 0, FLAG_FLOAT, OPTION(sampler.temp), .help = "randomness; 0: always the most likely token",
     .min = 0, .max = 100},
    {"sample-top-k", 0, FLAG_U32, OPTION(sampler.top_k), .help = "keep the N most likely; 0: all"},
    {"top-p", 0, FLAG_FLOAT, OPTION(sampler.top_p), .help = "keep the smallest set with this share",
     .min = 1e-6, .max = 1},
    {"min-p", 0, FLAG_FLOAT, OPTION(sampler.min_p),
     .help = "drop what is less likely than this share of the best", .min = 0, .max = 1},
    {"repeat-penalty", 0, FLAG_FLOAT, OPTION(sampler.repeat_penalty), .help = "above 1: repeat less",
     .min = 1e-3, .max = 1e3},
    {"repeat-last", 0, FLAG_U32, OPTION(sampler.repeat_last), .help = "tokens that the penalty looks back",
     .max = 1 << 20, .min = 0},
    {"seed", 0, FLAG_U64, OPTION(sampler.seed), .help = "same seed, same text"},
    {0},
};

static const char summary[] =
    "Generates text from one prompt. Text goes to stdout as it is made, everything else to stderr.";
static const char examples[] =
    "  penstock run -m model.gguf -p \"Once upon a time\" --ram 8G\n"
    "  penstock run -m model-00001-of-00004.gguf -f prompt.txt -n 500 --temp 0 --stats stats.json\n"
    "  penstock run -m model.gguf --prompt-tokens \"1,2,3\" --print tokens --temp 0";

struct generation {
    const struct run_options *options;
    struct loaded_model *m;
    struct ps_sampler *sampler;
    struct ps_detokenizer *text;
    float *logits;
    struct live_view *live; /* NULL: not asked for */
    struct run_times times;
};

/* False when stdout is gone. */
static bool print_token(struct generation *g, int32_t token)
{
    bool written;
    if (g->options->print == PRINT_TOKENS)
        written = cli_printf("%s%d", g->times.generated_tokens > 1 ? " " : "", token);
    else
        written = cli_printf("%s", ps_detokenizer_push(g->text, token));
    return cli_flush() && written;
}

static enum ps_status pick(struct generation *g, int32_t *token, struct ps_error *err)
{
    uint32_t n_vocab = ps_model_info(g->m->model)->n_vocab;
    enum ps_status status = ps_session_logits(g->m->session, 0, 1, g->logits, err);
    return status == PS_OK ? ps_sampler_pick(g->sampler, g->logits, n_vocab, token, err) : status;
}

static enum ps_status generate(struct generation *g, const int32_t *prompt, size_t n_prompt,
                               struct ps_error *err)
{
    struct ps_session *session = g->m->session;
    const struct run_options *o = g->options;
    uint32_t ctx = ps_model_loaded_plan(g->m->model)->ctx;
    double start = clock_seconds();
    g->times.prompt_tokens = n_prompt;
    enum ps_status status = ps_session_feed(session, prompt, n_prompt, err);
    double first = 0.0;
    for (uint32_t i = 0; status == PS_OK && i < o->n; i++) {
        int32_t token;
        if ((status = pick(g, &token, err)) != PS_OK)
            break;
        double now = clock_seconds();
        if (i == 0) {
            first = now;
            g->times.prefill_s = now - start;
            g->times.ttft_s = now - g->m->start;
        }
        g->times.decode_s = now - first;
        g->times.decode_steps = i;
        if (!o->ignore_end && ps_token_is_end(g->m->model, token))
            break;
        g->times.generated_tokens++;
        ps_sampler_accept(g->sampler, token);
        if (!print_token(g, token) || i + 1 == o->n)
            break;
        live_view_token(g->live);
        if (ps_session_position(session) == ctx) {
            fprintf(stderr, "\nthe context of %u tokens is full\n", ctx);
            break;
        }
        status = ps_session_feed(session, &token, 1, err);
    }
    return status;
}

/* The last line is ended even where the text is not, so that what follows starts on its own. */
static void end_text(struct generation *g)
{
    if (g->times.generated_tokens == 0)
        return;
    if (g->options->print == PRINT_TEXT)
        cli_printf("%s", ps_detokenizer_push(g->text, -1));
    cli_printf("\n");
    cli_flush();
}

static int run_prompt(struct generation *g, const int32_t *prompt, size_t n_prompt)
{
    struct ps_error err;
    const struct ps_model_info *info = ps_model_info(g->m->model);
    g->logits = malloc(info->n_vocab * sizeof(*g->logits));
    if (!g->logits)
        return cli_error(CLI_FAILED, "logits: out of memory");
    if (ps_sampler_new(&g->sampler, &g->options->sampler, &err) != PS_OK ||
        ps_detokenizer_new(&g->text, g->m->model, &err) != PS_OK)
        return cli_status(&err);
    for (size_t i = 0; i < n_prompt; i++)
        ps_sampler_accept(g->sampler, prompt[i]);
    const char *stats = g->options->stats;
    enum ps_status status = live_view_open(&g->live, stats, g->m, n_prompt, g->options->n, &err);
    if (status == PS_OK)
        status = generate(g, prompt, n_prompt, &err);
    end_text(g);
    live_view_close(g->live);
    if (status != PS_OK)
        return cli_status(&err);
    print_summary(g->m, &g->times);
    return stats && !live_view_wanted(stats) ? write_stats(g->m, &g->times, stats) : CLI_OK;
}

static int run_model(const struct run_options *options, struct model_options *model_options)
{
    struct ps_error err;
    struct loaded_model m = {.start = clock_seconds()};
    struct generation g = {.options = options, .m = &m};
    int32_t *prompt = NULL;
    size_t n_prompt = 0;
    int exit_code = CLI_OK;
    if (ps_model_open(&m.model, model_options->path, &err) != PS_OK)
        return cli_status(&err);
    if (!prompt_read(&options->prompt, "run", m.model, &prompt, &n_prompt, &exit_code))
        goto done;
    if (options->print == PRINT_TEXT && !ps_model_info(m.model)->has_text) {
        exit_code = cli_error(CLI_USAGE, "%s: has no tokenizer: use --prompt-tokens and --print tokens",
                              model_options->path);
        goto done;
    }
    if (!prompt_fit_context(&model_options->params, ps_model_info(m.model), n_prompt, options->n, &exit_code))
        goto done;
    if (loaded_model_start(&m, m.model, model_options, &exit_code))
        exit_code = run_prompt(&g, prompt, n_prompt);
    loaded_model_save_working_set(&m, exit_code);
done:
    ps_sampler_free(g.sampler);
    ps_detokenizer_free(g.text);
    free(g.logits);
    free(prompt);
    loaded_model_close(&m);
    return exit_code;
}

int cmd_run(int argc, char **argv)
{
    struct model_options model_options;
    struct run_options options = {.n = 128};
    model_options_default(&model_options);
    model_options.warm = "on";
    ps_sampler_params_default(&options.sampler);
    const struct flag_group groups[] = {{"Prompt", PROMPT_FLAGS, &options.prompt},
                                        {"Output", run_rows, &options},
                                        {"Sampling", sampler_rows, &options},
                                        {"Model and memory", MODEL_FLAGS, &model_options},
                                        {0}};
    const struct flag_spec spec = {
        .command = "run", .summary = summary, .examples = examples, .groups = groups};
    int exit_code;
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    if (!live_view_possible(options.stats, &exit_code))
        return exit_code;
    return run_model(&options, &model_options);
}
