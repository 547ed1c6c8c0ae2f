/* penstock eval: what the model computes, for comparison: raw logits, and perplexity of a text. Divergence is in
 * eval_kl.c. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/eval.h"
#include "runtime/clock.h"

enum { LOGIT_ROWS = 2 }; /* computed at a time; the memory plan holds a few rows of the vocabulary */

struct eval_options {
    const char *tokens, *file, *output, *experts, *stats;
    bool json;
};

#define OPTION(field) offsetof(struct eval_options, field)

enum ps_status eval_window(struct loaded_model *m, const struct eval_window *window, eval_row_fn *fn,
                           void *ctx, struct ps_error *err)
{
    uint32_t n_vocab = ps_model_info(m->model)->n_vocab;
    uint32_t chunk = ps_model_loaded_plan(m->model)->chunk;
    float *rows = malloc((size_t)LOGIT_ROWS * n_vocab * sizeof(*rows));
    if (!rows)
        return ps_error_set(err, PS_ERR_NOMEM, "logits: out of memory");
    enum ps_status status = PS_OK;
    ps_session_truncate(m->session, 0);
    for (uint32_t i = 0, n; status == PS_OK && i < window->n; i += n) {
        n = window->n - i < chunk ? window->n - i : chunk;
        status = ps_session_feed(m->session, window->tokens + i, n, err);
        uint32_t at = window->first > i ? window->first : i;
        uint32_t end = window->end < i + n ? window->end : i + n;
        for (uint32_t n_rows; status == PS_OK && at < end; at += n_rows) {
            n_rows = end - at < LOGIT_ROWS ? end - at : LOGIT_ROWS;
            status = ps_session_logits(m->session, i + n - at - n_rows, n_rows, rows, err);
            for (uint32_t r = 0; status == PS_OK && r < n_rows; r++)
                status = fn(ctx, at + r, rows + (size_t)r * n_vocab, err);
        }
    }
    free(rows);
    return status;
}

/* What lossy modes changed, and the statistics where they are asked for. */
static int report_run(const struct loaded_model *m, const struct eval_options *o, uint64_t n_tokens)
{
    struct ps_stats stats;
    ps_session_stats(m->session, &stats);
    const struct run_times times = {.prompt_tokens = n_tokens, .prefill_s = stats.compute_s + stats.stall_s};
    print_lossy(m);
    return o->stats ? write_stats(m, &times, o->stats) : CLI_OK;
}

/* ---- logits ---- */

static const struct flag logits_rows[] = {
    {"tokens", 0, FLAG_STRING, OPTION(tokens), "IDS", .help = "token ids: \"1,2,3\""},
    {"file", 'f', FLAG_STRING, OPTION(file), "FILE", .help = "a text instead; -: standard input"},
    {"output", 'o', FLAG_STRING, OPTION(output), "FILE", .help = "little-endian float32 [n_tokens][n_vocab]",
     .required = true},
    {"experts", 0, FLAG_STRING, OPTION(experts), "FILE",
     .help = "the router's choice, int32 [n_tokens][n_moe_layers][top_k]"},
    {"stats", 0, FLAG_STRING, OPTION(stats), "FILE", .help = "write statistics as JSON; -: stdout"},
    {0},
};

struct expert_writer {
    int fd;
    uint32_t n_moe;
    uint64_t window; /* tokens before it */
    int error;       /* errno of the first failed write */
};

static void write_experts(void *ctx, uint32_t moe_layer, uint32_t position, uint32_t n_tokens, uint32_t k,
                          const uint32_t *ids, const float *weights)
{
    struct expert_writer *writer = ctx;
    (void)weights;
    for (uint32_t t = 0; t < n_tokens; t++) {
        size_t bytes = k * sizeof(*ids);
        off_t at = (off_t)(((writer->window + position + t) * writer->n_moe + moe_layer) * bytes);
        errno = 0;
        if (pwrite(writer->fd, ids + (size_t)t * k, bytes, at) != (ssize_t)bytes && !writer->error)
            writer->error = errno ? errno : ENOSPC;
    }
}

struct logits_writer {
    FILE *out;
    const char *path;
    uint32_t n_vocab;
};

static enum ps_status write_row(void *ctx, uint32_t position, const float *logits, struct ps_error *err)
{
    struct logits_writer *writer = ctx;
    (void)position;
    if (fwrite(logits, sizeof(*logits), writer->n_vocab, writer->out) != writer->n_vocab)
        return ps_error_set(err, PS_ERR_IO, "%s: cannot write: %s", writer->path, strerror(errno));
    return PS_OK;
}

static enum ps_status open_experts(struct expert_writer *writer, struct ps_session *session, const char *path,
                                   struct ps_error *err)
{
    writer->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (writer->fd < 0)
        return ps_error_set(err, PS_ERR_IO, "%s: cannot open for writing: %s", path, strerror(errno));
    ps_session_on_router(session, write_experts, writer);
    return PS_OK;
}

static int write_logits(struct loaded_model *m, const struct eval_options *o, const int32_t *tokens, size_t n)
{
    struct ps_error err;
    const struct ps_model_info *info = ps_model_info(m->model);
    struct expert_writer experts = {.fd = -1, .n_moe = info->n_moe_layers};
    struct logits_writer writer = {
        .out = fopen(o->output, "we"), .path = o->output, .n_vocab = info->n_vocab};
    uint32_t ctx = ps_model_loaded_plan(m->model)->ctx;
    enum ps_status status = PS_OK;
    if (!writer.out)
        status = ps_error_set(&err, PS_ERR_IO, "%s: cannot open for writing: %s", o->output, strerror(errno));
    if (status == PS_OK && o->experts)
        status = open_experts(&experts, m->session, o->experts, &err);
    for (size_t i = 0; status == PS_OK && i < n; i += ctx) {
        uint32_t in_window = n - i < ctx ? (uint32_t)(n - i) : ctx;
        const struct eval_window window = {.tokens = tokens + i, .n = in_window, .end = in_window};
        experts.window = i;
        status = eval_window(m, &window, write_row, &writer, &err);
    }
    if (experts.fd >= 0 && close(experts.fd) < 0 && !experts.error)
        experts.error = errno;
    if (status == PS_OK && experts.error)
        status = ps_error_set(&err, PS_ERR_IO, "%s: cannot write: %s", o->experts, strerror(experts.error));
    if (writer.out && fclose(writer.out) != 0 && status == PS_OK)
        status = ps_error_set(&err, PS_ERR_IO, "%s: cannot write: %s", o->output, strerror(errno));
    return status == PS_OK ? report_run(m, o, n) : cli_status(&err);
}

/* The tokens and a context for them: all at once, or a text in windows. */
static int read_logits_tokens(const struct eval_options *o, struct ps_model *model,
                              struct ps_model_params *params, int32_t **tokens, size_t *n)
{
    struct ps_error err;
    if ((o->tokens != NULL) + (o->file != NULL) != 1)
        return cli_error(CLI_USAGE, "eval logits: give one of --tokens IDS and -f FILE");
    if (o->tokens && !parse_token_list(o->tokens, "--tokens", tokens, n))
        return CLI_USAGE;
    if (o->file) {
        size_t length;
        char *text = read_text_file(o->file, &length);
        if (!text)
            return CLI_FAILED;
        enum ps_status status = ps_tokenize(model, text, length, true, false, tokens, n, &err);
        free(text);
        if (status != PS_OK)
            return cli_status(&err);
    }
    if (*n == 0)
        return cli_error(CLI_USAGE, "%s: there are no tokens in it", o->file ? o->file : "--tokens");
    size_t most = o->file ? EVAL_CTX : UINT32_MAX;
    if (params->ctx == 0)
        params->ctx = *n < most ? (uint32_t)*n : (uint32_t)most;
    params->feed = params->ctx;
    if (o->tokens && *n > params->ctx)
        return cli_error(CLI_FAILED, "--tokens: %zu tokens do not fit a context of %u: use a larger --ctx",
                         *n, params->ctx);
    return CLI_OK;
}

static int eval_logits(int argc, char **argv)
{
    struct model_options model_options;
    struct eval_options options = {0};
    model_options_default(&model_options);
    model_options.params.kv = PS_KV_F32; /* what the model computes, not what is fast */
    const struct flag_group groups[] = {
        {"Input and output", logits_rows, &options}, {"Model and memory", MODEL_FLAGS, &model_options}, {0}};
    const struct flag_spec spec = {
        .command = "eval logits",
        .summary =
            "Writes the logits after each of the given tokens, or of a text's in windows of --ctx (at most\n"
            "512) side by side.",
        .examples =
            "  penstock eval logits -m model.gguf --tokens \"1,2,3\" -o logits.f32\n"
            "  penstock eval logits -m model.gguf --tokens \"1,2,3\" -o logits.f32 --chunk 1 "
            "--activations f32\n"
            "  penstock eval logits -m model.gguf -f valid.txt -o logits.f32 --ram 8G --drop-below 0.1",
        .groups = groups};
    struct loaded_model m = {.start = clock_seconds()};
    struct ps_error err;
    int32_t *tokens = NULL;
    size_t n = 0;
    int exit_code = CLI_USAGE;
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    if (ps_model_open(&m.model, model_options.path, &err) != PS_OK)
        return cli_status(&err);
    exit_code = read_logits_tokens(&options, m.model, &model_options.params, &tokens, &n);
    if (exit_code == CLI_OK && loaded_model_start(&m, m.model, &model_options, &exit_code)) {
        exit_code = write_logits(&m, &options, tokens, n);
        loaded_model_save_working_set(&m, exit_code);
    }
    free(tokens);
    loaded_model_close(&m);
    return exit_code;
}

/* ---- perplexity ---- */

static const struct flag ppl_rows[] = {
    {"file", 'f', FLAG_STRING, OPTION(file), "FILE", .help = "the text; -: standard input", .required = true},
    {"json", 0, FLAG_BOOL, OPTION(json), .help = "print one JSON object"},
    {"stats", 0, FLAG_STRING, OPTION(stats), "FILE", .help = "write statistics as JSON; -: stdout"},
    {0},
};

/* -ln of the softmax share of one token. */
static double negative_log_likelihood(const float *logits, uint32_t n_vocab, int32_t token)
{
    double max = -INFINITY;
    double sum = 0.0;
    for (uint32_t i = 0; i < n_vocab; i++)
        max = fmax(max, (double)logits[i]);
    for (uint32_t i = 0; i < n_vocab; i++)
        sum += exp((double)logits[i] - max);
    return log(sum) - ((double)logits[token] - max);
}

struct perplexity {
    const int32_t *tokens; /* of the window */
    uint32_t n_vocab;
    double nll;
    uint64_t scored;
    uint32_t windows;
};

static enum ps_status score_row(void *ctx, uint32_t position, const float *logits, struct ps_error *err)
{
    struct perplexity *ppl = ctx;
    (void)err;
    ppl->nll += negative_log_likelihood(logits, ppl->n_vocab, ppl->tokens[position + 1]);
    ppl->scored++;
    return PS_OK;
}

/* Each window's second half is scored, as llama-perplexity does, so that each token has half a window of context. */
static int measure_perplexity(struct loaded_model *m, const struct eval_options *o, const int32_t *tokens,
                              size_t n)
{
    struct ps_error err;
    struct perplexity ppl = {.n_vocab = ps_model_info(m->model)->n_vocab};
    uint32_t ctx = ps_model_loaded_plan(m->model)->ctx;
    enum ps_status status = PS_OK;
    for (size_t i = 0; status == PS_OK && i + ctx <= n; i += ctx) {
        ppl.tokens = tokens + i;
        const struct eval_window window = {.tokens = ppl.tokens, .n = ctx, .first = ctx / 2, .end = ctx - 1};
        status = eval_window(m, &window, score_row, &ppl, &err);
        ppl.windows++;
    }
    if (status != PS_OK)
        return cli_status(&err);
    double mean = ppl.nll / (double)ppl.scored;
    if (o->json)
        cli_printf(
            "{\"perplexity\": %.6f, \"nll\": %.6f, \"scored_tokens\": %llu, \"windows\": %u, \"ctx\": %u}\n",
            exp(mean), mean, (unsigned long long)ppl.scored, ppl.windows, ctx);
    else
        cli_printf("perplexity %.4f over %llu tokens in %u windows of %u\n", exp(mean),
                   (unsigned long long)ppl.scored, ppl.windows, ctx);
    return report_run(m, o, (uint64_t)ppl.windows * ctx);
}

static int eval_ppl(int argc, char **argv)
{
    struct model_options model_options;
    struct eval_options options = {0};
    model_options_default(&model_options);
    model_options.params.kv = PS_KV_F32; /* what the model computes, not what is fast */
    const struct flag_group groups[] = {
        {"Input and output", ppl_rows, &options}, {"Model and memory", MODEL_FLAGS, &model_options}, {0}};
    const struct flag_spec spec = {
        .command = "eval ppl",
        .summary =
            "Perplexity of a text: windows of --ctx tokens side by side, the second half of each scored,\n"
            "so figures compare with llama-perplexity's.",
        .examples = "  penstock eval ppl -m model.gguf -f valid.txt --ctx 512",
        .groups = groups};
    struct loaded_model m = {.start = clock_seconds()};
    struct ps_error err;
    int32_t *tokens = NULL;
    size_t n = 0;
    size_t length;
    int exit_code = CLI_FAILED;
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    char *text = read_text_file(options.file, &length);
    if (!text)
        return CLI_FAILED;
    struct ps_model_params *params = &model_options.params;
    if (params->ctx == 0)
        params->ctx = EVAL_CTX;
    params->feed = params->ctx;
    if (ps_model_open(&m.model, model_options.path, &err) != PS_OK ||
        ps_tokenize(m.model, text, length, true, false, &tokens, &n, &err) != PS_OK)
        exit_code = cli_status(&err);
    else if (params->ctx < 4 || n < params->ctx)
        exit_code = cli_error(CLI_FAILED,
                              "%s: %zu tokens do not fill a window of %u: use a smaller --ctx (at least 4)",
                              options.file, n, params->ctx);
    else if (loaded_model_start(&m, m.model, &model_options, &exit_code))
        exit_code = measure_perplexity(&m, &options, tokens, n);
    loaded_model_save_working_set(&m, exit_code);
    free(text);
    free(tokens);
    loaded_model_close(&m);
    return exit_code;
}

int cmd_eval(int argc, char **argv)
{
    static const struct cli_command commands[] = {
        {"logits", "write raw logits of given tokens", eval_logits},
        {"ppl", "perplexity of a text", eval_ppl},
        {"kl", "how far one model's or setting's logits are from another's", eval_kl},
        {0},
    };
    return cli_dispatch("penstock eval", "What a model computes, for comparison.", commands, argc, argv);
}
