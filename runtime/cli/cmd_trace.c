/* penstock trace: records which experts every token is sent to, and what the predictor had expected. */
#include <stdlib.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/model_flags.h"
#include "runtime/cli/token_input.h"
#include "runtime/clock.h"
#include "runtime/route_trace.h"

struct trace_options {
    struct prompt_options prompt;
    const char *tokens, *output;
    uint32_t n;
    bool ignore_end;
};

#define OPTION(field) offsetof(struct trace_options, field)

static const struct flag trace_rows[] = {
    {"tokens", 0, FLAG_STRING, OPTION(tokens), "greedy|random:SEED|FILE",
     .help = "no prompt; one token at a time:\n" TOKEN_SOURCE_HELP},
    {"n", 'n', FLAG_U32, OPTION(n), .help = "tokens after the prompt at most", .max = 1 << 30, .min = 0},
    {"ignore-end", 0, FLAG_BOOL, OPTION(ignore_end), .help = "go on after an end-of-text token"},
    {"output", 'o', FLAG_STRING, OPTION(output), "FILE", .help = "the recording, as text", .required = true},
    {0},
};

/* Prompt tokens per forward pass where --chunk does not say: a recording needs no fast prompt, and holds a chunk's
 * choices in memory that no plan knows of. */
enum { DEFAULT_CHUNK = 32 };

struct recording {
    const struct trace_options *options;
    struct loaded_model *m;
    struct route_trace_writer *writer;
    int32_t *prompt;
    size_t n_prompt;
    struct token_source source; /* without a prompt */
    struct ps_sampler *greedy;
    float *logits;
    struct run_times times;
};

static enum ps_status open_writer(struct recording *r, const struct model_options *model_options,
                                  struct ps_error *err)
{
    const struct ps_model_info *info = ps_model_info(r->m->model);
    uint32_t n = info->n_moe_layers;
    uint32_t top_k = model_options->params.top_k;
    if (n == 0)
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s: has no experts: there is no routing to record",
                            model_options->path);
    struct ps_expert_layer *layers = malloc(n * sizeof(*layers));
    enum ps_status status = PS_OK;
    for (uint32_t l = 0; layers && l < n; l++)
        ps_model_expert_layer(r->m->model, l, &layers[l]);
    const struct route_trace_header header = {info->name, info->arch, n,
                                              top_k > 0 ? top_k : info->n_expert_used, layers};
    if (!layers)
        status = ps_error_set(err, PS_ERR_NOMEM, "trace: out of memory");
    else
        status = route_trace_writer_new(&r->writer, r->options->output, &header, err);
    free(layers);
    return status;
}

static enum ps_status feed(struct recording *r, const int32_t *tokens, size_t n, bool decode,
                           struct ps_error *err)
{
    struct ps_session *session = r->m->session;
    enum ps_status status =
        route_trace_writer_begin(r->writer, ps_session_position(session), tokens, n, decode, err);
    return status == PS_OK ? ps_session_feed(session, tokens, n, err) : status;
}

/* The i-th token after the prompt. */
static enum ps_status next_token(struct recording *r, uint32_t i, int32_t *token, struct ps_error *err)
{
    uint32_t n_vocab = ps_model_info(r->m->model)->n_vocab;
    if (r->source.ids) {
        *token = r->source.ids[i];
        return PS_OK;
    }
    *token = 0;
    if (ps_session_position(r->m->session) == 0)
        return PS_OK;
    enum ps_status status = ps_session_logits(r->m->session, 0, 1, r->logits, err);
    return status == PS_OK ? ps_sampler_pick(r->greedy, r->logits, n_vocab, token, err) : status;
}

static enum ps_status record(struct recording *r, struct ps_error *err)
{
    enum ps_status status = PS_OK;
    double start = clock_seconds();
    if (r->n_prompt > 0)
        status = feed(r, r->prompt, r->n_prompt, false, err);
    double decode_start = clock_seconds();
    r->times.prompt_tokens = r->n_prompt;
    r->times.prefill_s = decode_start - start;
    r->times.ttft_s = decode_start - r->m->start;
    uint32_t ctx = ps_model_loaded_plan(r->m->model)->ctx;
    for (uint32_t i = 0; status == PS_OK && i < r->options->n; i++) {
        int32_t token;
        status = next_token(r, i, &token, err);
        if (status != PS_OK ||
            (!r->source.ids && !r->options->ignore_end && ps_token_is_end(r->m->model, token)))
            break;
        if (ps_session_position(r->m->session) == ctx) {
            fprintf(stderr, "the context of %u tokens is full\n", ctx);
            break;
        }
        status = feed(r, &token, 1, true, err);
        r->times.decode_s = clock_seconds() - decode_start;
        r->times.decode_steps = r->times.generated_tokens = i + 1;
    }
    return status;
}

static int run_recording(struct recording *r)
{
    struct ps_error err;
    struct ps_sampler_params params;
    ps_sampler_params_default(&params);
    params.temp = 0.0f;
    r->logits = malloc(ps_model_info(r->m->model)->n_vocab * sizeof(*r->logits));
    enum ps_status status = r->logits ? ps_sampler_new(&r->greedy, &params, &err)
                                      : ps_error_set(&err, PS_ERR_NOMEM, "logits: out of memory");
    ps_session_on_router(r->m->session, route_trace_on_router, r->writer);
    ps_session_on_prediction(r->m->session, route_trace_on_prediction, r->writer);
    if (status == PS_OK)
        status = record(r, &err);
    if (status == PS_OK)
        status = route_trace_writer_finish(r->writer, &err);
    if (status != PS_OK)
        return cli_status(&err);
    print_summary(r->m, &r->times);
    return CLI_OK;
}

/* The prompt, or what is fed without one, and a context that holds it. */
static bool read_input(struct recording *r, struct ps_model_params *params, int *exit_code)
{
    const struct trace_options *o = r->options;
    const struct ps_model_info *info = ps_model_info(r->m->model);
    if (!o->tokens)
        return prompt_read(&o->prompt, "trace", r->m->model, &r->prompt, &r->n_prompt, exit_code) &&
               prompt_fit_context(params, info, r->n_prompt, o->n, exit_code);
    if (o->prompt.text || o->prompt.file || o->prompt.ids) {
        *exit_code = cli_error(CLI_USAGE, "trace: give a prompt or --tokens, not both");
        return false;
    }
    if (params->ctx == 0)
        params->ctx = o->n;
    params->feed = 1;
    if (o->n == 0 || o->n > params->ctx) {
        *exit_code = cli_error(CLI_USAGE, "-n: %u tokens, the context holds 1 to %u", o->n, params->ctx);
        return false;
    }
    return token_source_open(&r->source, o->tokens, o->n, 1, info->n_vocab, exit_code);
}

static int trace_model(const struct trace_options *options, struct model_options *model_options)
{
    struct ps_error err;
    struct loaded_model m = {.start = clock_seconds()};
    struct recording r = {.options = options, .m = &m};
    int exit_code = CLI_OK;
    if (ps_model_open(&m.model, model_options->path, &err) != PS_OK)
        return cli_status(&err);
    model_options->params.predict = true;
    if (model_options->params.chunk == 0)
        model_options->params.chunk = DEFAULT_CHUNK;
    if (!read_input(&r, &model_options->params, &exit_code))
        goto done;
    if (open_writer(&r, model_options, &err) != PS_OK)
        exit_code = cli_status(&err);
    else if (loaded_model_start(&m, m.model, model_options, &exit_code))
        exit_code = run_recording(&r);
    loaded_model_save_working_set(&m, exit_code);
done:
    route_trace_writer_free(r.writer);
    ps_sampler_free(r.greedy);
    free(r.logits);
    free(r.prompt);
    free(r.source.ids);
    loaded_model_close(&m);
    return exit_code;
}

int cmd_trace(int argc, char **argv)
{
    struct model_options model_options;
    struct trace_options options = {.n = 128};
    model_options_default(&model_options);
    const struct flag_group groups[] = {{"Prompt", PROMPT_FLAGS, &options.prompt},
                                        {"Recording", trace_rows, &options},
                                        {"Model and memory", MODEL_FLAGS, &model_options},
                                        {0}};
    const struct flag_spec spec = {
        .command = "trace",
        .summary =
            "Runs a prompt and the most likely tokens after it, and records per token and layer which\n"
            "experts the router chose, their weights, and what the predictor had expected.\n"
            "`penstock simulate` replays the file; it is text, and its format stands in runtime/README.md.",
        .examples = "  penstock trace -m model.gguf -p \"Once upon a time\" -n 256 -o story.trace\n"
                    "  penstock trace -m model.gguf --tokens random:1 -n 64 -o random.trace --ram 8G",
        .groups = groups};
    int exit_code;
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    return trace_model(&options, &model_options);
}
