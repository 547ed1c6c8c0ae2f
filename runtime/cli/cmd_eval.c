/* penstock eval: what the model computes, for comparison: raw logits, and perplexity of a text. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/model_flags.h"
#include "runtime/clock.h"

enum { LOGIT_ROWS = 2 }; /* computed at a time; the memory plan holds a few rows of the vocabulary */

struct eval_options {
    const char *tokens, *file, *output, *experts;
    bool json;
};

#define OPTION(field) offsetof(struct eval_options, field)

/* ---- logits ---- */

static const struct flag logits_rows[] = {
    {"tokens", 0, FLAG_STRING, OPTION(tokens), "IDS", .help = "token ids: \"1,2,3\"", .required = true},
    {"output", 'o', FLAG_STRING, OPTION(output), "FILE", .help = "little-endian float32 [n_tokens][n_vocab]",
     .required = true},
    {"experts", 0, FLAG_STRING, OPTION(experts), "FILE",
     .help = "the router's choice, int32 [n_tokens][n_moe_layers][top_k]"},
    {0},
};

struct expert_writer {
    int fd;
    uint32_t n_moe;
    int error; /* errno of the first failed write */
};

static void write_experts(void *ctx, uint32_t moe_layer, uint32_t position, uint32_t n_tokens, uint32_t k,
                          const uint32_t *ids, const float *weights)
{
    struct expert_writer *writer = ctx;
    (void)weights;
    for (uint32_t t = 0; t < n_tokens; t++) {
        size_t bytes = k * sizeof(*ids);
        off_t at = (off_t)(((uint64_t)(position + t) * writer->n_moe + moe_layer) * bytes);
        errno = 0;
        if (pwrite(writer->fd, ids + (size_t)t * k, bytes, at) != (ssize_t)bytes && !writer->error)
            writer->error = errno ? errno : ENOSPC;
    }
}

static enum ps_status write_piece(struct loaded_model *m, FILE *out, const int32_t *tokens, uint32_t n,
                                  float *rows, const char *path, struct ps_error *err)
{
    uint32_t n_vocab = ps_model_info(m->model)->n_vocab;
    enum ps_status status = ps_session_feed(m->session, tokens, n, err);
    for (uint32_t i = 0; status == PS_OK && i < n; i += LOGIT_ROWS) {
        uint32_t n_rows = n - i < LOGIT_ROWS ? n - i : LOGIT_ROWS;
        status = ps_session_logits(m->session, n - i - n_rows, n_rows, rows, err);
        if (status == PS_OK && fwrite(rows, sizeof(float) * n_vocab, n_rows, out) != n_rows)
            status = ps_error_set(err, PS_ERR_IO, "%s: cannot write: %s", path, strerror(errno));
    }
    return status;
}

static int write_logits(struct loaded_model *m, const struct eval_options *o, const int32_t *tokens, size_t n)
{
    struct ps_error err;
    struct expert_writer writer = {.fd = -1, .n_moe = ps_model_info(m->model)->n_moe_layers};
    uint32_t chunk = ps_model_loaded_plan(m->model)->chunk;
    float *rows = malloc((size_t)LOGIT_ROWS * ps_model_info(m->model)->n_vocab * sizeof(*rows));
    FILE *out = fopen(o->output, "we");
    enum ps_status status = PS_OK;
    if (!rows)
        status = ps_error_set(&err, PS_ERR_NOMEM, "logits: out of memory");
    if (!out)
        status = ps_error_set(&err, PS_ERR_IO, "%s: cannot open for writing: %s", o->output, strerror(errno));
    if (status == PS_OK && o->experts) {
        writer.fd = open(o->experts, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        if (writer.fd < 0)
            status =
                ps_error_set(&err, PS_ERR_IO, "%s: cannot open for writing: %s", o->experts, strerror(errno));
        ps_session_on_router(m->session, write_experts, &writer);
    }
    for (size_t i = 0; status == PS_OK && i < n; i += chunk)
        status =
            write_piece(m, out, tokens + i, n - i < chunk ? (uint32_t)(n - i) : chunk, rows, o->output, &err);
    if (writer.fd >= 0 && close(writer.fd) < 0 && !writer.error)
        writer.error = errno;
    if (status == PS_OK && writer.error)
        status = ps_error_set(&err, PS_ERR_IO, "%s: cannot write: %s", o->experts, strerror(writer.error));
    if (out && fclose(out) != 0 && status == PS_OK)
        status = ps_error_set(&err, PS_ERR_IO, "%s: cannot write: %s", o->output, strerror(errno));
    free(rows);
    return status == PS_OK ? CLI_OK : cli_status(&err);
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
        .summary = "Writes the logits after each of the given tokens.",
        .examples = "  penstock eval logits -m model.gguf --tokens \"1,2,3\" -o logits.f32\n"
                    "  penstock eval logits -m model.gguf --tokens \"1,2,3\" -o logits.f32 --chunk 1 "
                    "--activations f32",
        .groups = groups};
    struct loaded_model m = {.start = clock_seconds()};
    struct ps_error err;
    int32_t *tokens = NULL;
    size_t n = 0;
    int exit_code = CLI_USAGE;
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    if (!parse_token_list(options.tokens, "--tokens", &tokens, &n))
        return CLI_USAGE;
    if (n == 0)
        exit_code = cli_error(CLI_USAGE, "--tokens: the list is empty");
    else if (ps_model_open(&m.model, model_options.path, &err) != PS_OK)
        exit_code = cli_status(&err);
    else {
        struct ps_model_params *params = &model_options.params;
        if (params->ctx == 0)
            params->ctx = n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
        params->feed = params->ctx;
        if (n > params->ctx)
            exit_code =
                cli_error(CLI_FAILED, "--tokens: %zu tokens do not fit a context of %u: use a larger --ctx",
                          n, params->ctx);
        else if (loaded_model_start(&m, m.model, &model_options, &exit_code))
            exit_code = write_logits(&m, &options, tokens, n);
    }
    free(tokens);
    loaded_model_close(&m);
    return exit_code;
}

/* ---- perplexity ---- */

static const struct flag ppl_rows[] = {
    {"file", 'f', FLAG_STRING, OPTION(file), "FILE", .help = "the text; -: standard input", .required = true},
    {"json", 0, FLAG_BOOL, OPTION(json), .help = "print one JSON object"},
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
    double nll;
    uint64_t scored;
    uint32_t windows;
};

/* One window: the second half's tokens are scored, as llama-perplexity does, so that each has half a window of
 * context. */
static enum ps_status score_window(struct loaded_model *m, const int32_t *tokens, uint32_t ctx, float *row,
                                   struct perplexity *ppl, struct ps_error *err)
{
    uint32_t n_vocab = ps_model_info(m->model)->n_vocab;
    uint32_t chunk = ps_model_loaded_plan(m->model)->chunk;
    enum ps_status status = PS_OK;
    ps_session_truncate(m->session, 0);
    for (uint32_t i = 0; status == PS_OK && i < ctx; i += chunk) {
        uint32_t n = ctx - i < chunk ? ctx - i : chunk;
        status = ps_session_feed(m->session, tokens + i, n, err);
        for (uint32_t t = 0; status == PS_OK && t < n; t++) {
            uint32_t at = i + t;
            if (at < ctx / 2 || at + 1 >= ctx)
                continue;
            status = ps_session_logits(m->session, n - 1 - t, 1, row, err);
            if (status == PS_OK) {
                ppl->nll += negative_log_likelihood(row, n_vocab, tokens[at + 1]);
                ppl->scored++;
            }
        }
    }
    ppl->windows++;
    return status;
}

static int measure_perplexity(struct loaded_model *m, int32_t *tokens, size_t n, bool json)
{
    struct ps_error err;
    struct perplexity ppl = {0};
    uint32_t ctx = ps_model_loaded_plan(m->model)->ctx;
    float *row = malloc(ps_model_info(m->model)->n_vocab * sizeof(*row));
    if (!row)
        return cli_error(CLI_FAILED, "logits: out of memory");
    enum ps_status status = PS_OK;
    for (size_t i = 0; status == PS_OK && i + ctx <= n; i += ctx)
        status = score_window(m, tokens + i, ctx, row, &ppl, &err);
    free(row);
    if (status != PS_OK)
        return cli_status(&err);
    double mean = ppl.nll / (double)ppl.scored;
    if (json)
        cli_printf(
            "{\"perplexity\": %.6f, \"nll\": %.6f, \"scored_tokens\": %llu, \"windows\": %u, \"ctx\": %u}\n",
            exp(mean), mean, (unsigned long long)ppl.scored, ppl.windows, ctx);
    else
        cli_printf("perplexity %.4f over %llu tokens in %u windows of %u\n", exp(mean),
                   (unsigned long long)ppl.scored, ppl.windows, ctx);
    return CLI_OK;
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
        params->ctx = 512;
    params->feed = params->ctx;
    if (ps_model_open(&m.model, model_options.path, &err) != PS_OK ||
        ps_tokenize(m.model, text, length, true, false, &tokens, &n, &err) != PS_OK)
        exit_code = cli_status(&err);
    else if (params->ctx < 4 || n < params->ctx)
        exit_code = cli_error(CLI_FAILED,
                              "%s: %zu tokens do not fill a window of %u: use a smaller --ctx (at least 4)",
                              options.file, n, params->ctx);
    else if (loaded_model_start(&m, m.model, &model_options, &exit_code))
        exit_code = measure_perplexity(&m, tokens, n, options.json);
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
        {0},
    };
    return cli_dispatch("penstock eval", "What a model computes, for comparison.", commands, argc, argv);
}
