/* penstock eval kl: how far the next-token distributions of B are from those of A: two files of raw logits, or two models on
 * one text. Rows are streamed: one of each side is in memory. With two models, one is loaded at a time, so that --ram holds
 * for both; A's logits wait in a temporary file. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/eval.h"
#include "runtime/clock.h"

struct kl_options {
    const char *path[2];
    const char *model, *tokens, *file;
    uint32_t n_vocab;
    bool json;
};

#define OPTION(field) offsetof(struct kl_options, field)

static const struct flag kl_rows[] = {
    {"file", 'f', FLAG_STRING, OPTION(file), "FILE", .help = "two models: the text; -: standard input"},
    {"tokens", 0, FLAG_STRING, OPTION(tokens), "IDS", .help = "two models: token ids instead: \"1,2,3\""},
    {"model", 'm', FLAG_STRING, OPTION(model), "FILE",
     .help = "two logits files: the model whose vocabulary they are over"},
    {"vocab", 0, FLAG_U32, OPTION(n_vocab), "N", .help = "two logits files: the vocabulary's size instead",
     .min = 1, .max = 1 << 30},
    {"json", 0, FLAG_BOOL, OPTION(json), .help = "print one JSON object"},
    {0},
};

/* ---- arithmetic ---- */

struct divergence {
    double *kl; /* [capacity] of each token, nats */
    uint64_t n, capacity;
    uint64_t agree;     /* tokens whose most likely next token is the same */
    double delta_p_sum; /* of A's most likely token: |p in A - p in B| */
};

/* A row of logits as a distribution: p[i] = exp(x[i] - log_z). */
struct softmax {
    double log_z;
    uint32_t best; /* of equal ones the lowest id */
};

static struct softmax softmax_of(const float *x, uint32_t n)
{
    struct softmax s = {0};
    double sum = 0.0;
    for (uint32_t i = 1; i < n; i++) {
        if (x[i] > x[s.best])
            s.best = i;
    }
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)x[i] - (double)x[s.best]);
    s.log_z = (double)x[s.best] + log(sum);
    return s;
}

/* One token's rows; d has room for it. */
static void divergence_add(struct divergence *d, const float *a, const float *b, uint32_t n_vocab)
{
    struct softmax sa = softmax_of(a, n_vocab);
    struct softmax sb = softmax_of(b, n_vocab);
    double kl = 0.0;
    for (uint32_t i = 0; i < n_vocab; i++) {
        double log_p = (double)a[i] - sa.log_z;
        kl += exp(log_p) * (log_p - ((double)b[i] - sb.log_z));
    }
    d->kl[d->n++] = kl > 0.0 ? kl : 0.0; /* below 0 is rounding */
    d->agree += sa.best == sb.best;
    d->delta_p_sum += fabs(exp((double)a[sa.best] - sa.log_z) - exp((double)b[sa.best] - sb.log_z));
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts the tokens' figures. */
static void report(struct divergence *d, bool json)
{
    double sum = 0.0;
    uint64_t worst = 0;
    for (uint64_t i = 0; i < d->n; i++) {
        sum += d->kl[i];
        if (d->kl[i] > d->kl[worst])
            worst = i;
    }
    qsort(d->kl, d->n, sizeof(*d->kl), compare_doubles);
    double n = (double)d->n;
    double p99 = d->kl[(uint64_t)ceil(0.99 * n) - 1]; /* nearest rank */
    double max = d->kl[d->n - 1];
    if (json)
        cli_printf("{\"kl\": %.9g, \"kl_p99\": %.9g, \"kl_max\": %.9g, \"kl_max_token\": %llu, "
                   "\"top_agreement\": %.9g, \"top_delta_p\": %.9g, \"tokens\": %llu}\n",
                   sum / n, p99, max, (unsigned long long)worst, (double)d->agree / n, d->delta_p_sum / n,
                   (unsigned long long)d->n);
    else
        cli_printf(
            "KL(A || B) %.6f nats, 99%% of tokens within %.6f, at most %.6f (token %llu); same top token "
            "%.2f%%, its probability off by %.6f; over %llu tokens\n",
            sum / n, p99, max, (unsigned long long)worst, 100.0 * (double)d->agree / n, d->delta_p_sum / n,
            (unsigned long long)d->n);
}

/* ---- rows ---- */

/* A's rows come from a file, B's one by one. */
struct comparison {
    const char *path[2];
    uint32_t n_vocab;
    FILE *a;
    float *row_a;
    struct divergence divergence;
};

static enum ps_status comparison_init(struct comparison *c, const struct kl_options *o, uint32_t n_vocab,
                                      uint64_t n_tokens, struct ps_error *err)
{
    *c = (struct comparison){.path = {o->path[0], o->path[1]}, .n_vocab = n_vocab};
    c->divergence.capacity = n_tokens;
    c->divergence.kl = calloc(n_tokens, sizeof(*c->divergence.kl));
    c->row_a = calloc(n_vocab, sizeof(*c->row_a));
    return c->divergence.kl && c->row_a ? PS_OK : ps_error_set(err, PS_ERR_NOMEM, "logits: out of memory");
}

static void comparison_deinit(struct comparison *c)
{
    free(c->divergence.kl);
    free(c->row_a);
    if (c->a)
        fclose(c->a);
}

static enum ps_status read_row(FILE *file, const char *path, float *row, uint32_t n_vocab,
                               struct ps_error *err)
{
    errno = 0;
    if (fread(row, sizeof(*row), n_vocab, file) == n_vocab)
        return PS_OK;
    return ps_error_set(err, PS_ERR_IO, "%s: cannot read: %s", path,
                        ferror(file) ? strerror(errno) : "it has become shorter");
}

static enum ps_status check_row(const char *path, uint64_t token, const float *row, uint32_t n_vocab,
                                struct ps_error *err)
{
    for (uint32_t i = 0; i < n_vocab; i++) {
        if (!isfinite(row[i]))
            return ps_error_set(err, PS_ERR_FORMAT, "%s: token %llu: logit %u is %s", path,
                                (unsigned long long)token, i, isnan(row[i]) ? "not a number" : "infinite");
    }
    return PS_OK;
}

static enum ps_status compare_row(void *ctx, uint32_t position, const float *row_b, struct ps_error *err)
{
    struct comparison *c = ctx;
    uint64_t token = c->divergence.n;
    enum ps_status status = read_row(c->a, c->path[0], c->row_a, c->n_vocab, err);
    (void)position;
    if (status != PS_OK || (status = check_row(c->path[0], token, c->row_a, c->n_vocab, err)) != PS_OK ||
        (status = check_row(c->path[1], token, row_b, c->n_vocab, err)) != PS_OK)
        return status;
    divergence_add(&c->divergence, c->row_a, row_b, c->n_vocab);
    return PS_OK;
}

/* ---- two files ---- */

static enum ps_status open_logits(FILE **file, const char *path, uint32_t n_vocab, uint64_t *n_rows,
                                  struct ps_error *err)
{
    struct stat st;
    uint64_t row_bytes = (uint64_t)n_vocab * sizeof(float);
    *file = fopen(path, "re");
    if (!*file || fstat(fileno(*file), &st) < 0)
        return ps_error_set(err, PS_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    uint64_t size = (uint64_t)st.st_size;
    if (size == 0 || size % row_bytes != 0)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s: %llu bytes are not rows of %u float32 logits: is the vocabulary right?",
                            path, (unsigned long long)size, n_vocab);
    *n_rows = size / row_bytes;
    return PS_OK;
}

static enum ps_status compare_files(const struct kl_options *o, uint32_t n_vocab, struct comparison *c,
                                    struct ps_error *err)
{
    FILE *a = NULL, *b = NULL;
    uint64_t n_a, n_b;
    float *row = calloc(n_vocab, sizeof(*row));
    enum ps_status status = row ? PS_OK : ps_error_set(err, PS_ERR_NOMEM, "logits: out of memory");
    if (status != PS_OK || (status = open_logits(&a, o->path[0], n_vocab, &n_a, err)) != PS_OK ||
        (status = open_logits(&b, o->path[1], n_vocab, &n_b, err)) != PS_OK)
        goto done;
    if (n_a != n_b) {
        status =
            ps_error_set(err, PS_ERR_FORMAT,
                         "%s: holds logits of %llu tokens, and %s of %llu: they must be of the same tokens",
                         o->path[0], (unsigned long long)n_a, o->path[1], (unsigned long long)n_b);
        goto done;
    }
    status = comparison_init(c, o, n_vocab, n_a, err);
    c->a = a;
    a = NULL;
    for (uint64_t i = 0; status == PS_OK && i < n_b; i++) {
        status = read_row(b, o->path[1], row, n_vocab, err);
        if (status == PS_OK)
            status = compare_row(c, 0, row, err);
    }
done:
    free(row);
    if (a)
        fclose(a);
    if (b)
        fclose(b);
    return status;
}

static int kl_of_files(const struct kl_options *o)
{
    struct ps_error err;
    struct comparison c = {0};
    uint32_t n_vocab = o->n_vocab;
    if (o->file || o->tokens)
        return cli_error(CLI_USAGE,
                         "eval kl: A and B are logits files: --file and --tokens are for two models");
    if ((o->model != NULL) + (o->n_vocab > 0) != 1)
        return cli_error(CLI_USAGE, "eval kl: A and B are logits files: give one of -m MODEL and --vocab N");
    if (o->model) {
        struct ps_model *model;
        if (ps_model_open(&model, o->model, &err) != PS_OK)
            return cli_status(&err);
        n_vocab = ps_model_info(model)->n_vocab;
        ps_model_free(model);
    }
    enum ps_status status = compare_files(o, n_vocab, &c, &err);
    if (status == PS_OK)
        report(&c.divergence, o->json);
    comparison_deinit(&c);
    return status == PS_OK ? CLI_OK : cli_status(&err);
}

/* ---- two models ---- */

struct token_list {
    int32_t *ids;
    size_t n;
    uint32_t n_vocab;
};

/* What a model makes of the text. */
static enum ps_status tokenize(const char *path, const char *text, size_t length, struct token_list *out,
                               struct ps_error *err)
{
    struct ps_model *model;
    enum ps_status status = ps_model_open(&model, path, err);
    if (status != PS_OK)
        return status;
    out->n_vocab = ps_model_info(model)->n_vocab;
    if (text)
        status = ps_tokenize(model, text, length, true, false, &out->ids, &out->n, err);
    ps_model_free(model);
    return status;
}

/* One vocabulary for both: the same size, and the same tokens for the text. */
static int read_tokens(const struct kl_options *o, struct token_list *tokens)
{
    struct ps_error err;
    struct token_list other = {0};
    size_t length = 0;
    char *text = o->file ? read_text_file(o->file, &length) : NULL;
    int exit_code = CLI_FAILED;
    if (o->file && !text)
        return CLI_FAILED;
    if (tokenize(o->path[0], text, length, tokens, &err) != PS_OK ||
        tokenize(o->path[1], text, length, &other, &err) != PS_OK)
        exit_code = cli_status(&err);
    else if (tokens->n_vocab != other.n_vocab)
        cli_error(CLI_FAILED, "%s: a vocabulary of %u, and %s has %u: only models of one vocabulary compare",
                  o->path[0], tokens->n_vocab, o->path[1], other.n_vocab);
    else if (text && (tokens->n != other.n ||
                      (other.n > 0 && memcmp(tokens->ids, other.ids, other.n * sizeof(*other.ids)) != 0)))
        cli_error(CLI_FAILED,
                  "%s: %s and %s make different tokens of it: only models of one vocabulary compare", o->file,
                  o->path[0], o->path[1]);
    else
        exit_code = CLI_OK;
    free(text);
    free(other.ids);
    if (exit_code == CLI_OK && o->tokens &&
        !parse_token_list(o->tokens, "--tokens", &tokens->ids, &tokens->n))
        return CLI_USAGE;
    if (exit_code == CLI_OK && tokens->n == 0)
        return cli_error(CLI_USAGE, "%s: there are no tokens in it", o->file ? o->file : "--tokens");
    return exit_code;
}

static int evaluate(const char *path, const struct model_options *given, const struct token_list *tokens,
                    eval_row_fn *fn, void *ctx)
{
    struct ps_error err;
    struct model_options options = *given;
    struct loaded_model m = {.start = clock_seconds()};
    int exit_code = CLI_FAILED;
    if (ps_model_open(&m.model, path, &err) != PS_OK)
        return cli_status(&err);
    if (loaded_model_start(&m, m.model, &options, &exit_code)) {
        uint32_t ctx_tokens = ps_model_loaded_plan(m.model)->ctx;
        enum ps_status status = PS_OK;
        for (size_t i = 0; status == PS_OK && i < tokens->n; i += ctx_tokens) {
            uint32_t n = tokens->n - i < ctx_tokens ? (uint32_t)(tokens->n - i) : ctx_tokens;
            const struct eval_window window = {.tokens = tokens->ids + i, .n = n, .end = n};
            status = eval_window(&m, &window, fn, ctx, &err);
        }
        exit_code = status == PS_OK ? CLI_OK : cli_status(&err);
        if (status == PS_OK)
            print_lossy(&m);
    }
    loaded_model_close(&m);
    return exit_code;
}

static enum ps_status keep_row(void *ctx, uint32_t position, const float *logits, struct ps_error *err)
{
    struct comparison *c = ctx;
    (void)position;
    if (fwrite(logits, sizeof(*logits), c->n_vocab, c->a) != c->n_vocab)
        return ps_error_set(err, PS_ERR_IO, "temporary file: cannot write: %s: set TMPDIR to a larger place",
                            strerror(errno));
    return PS_OK;
}

/* /var/tmp: on a disk, where /tmp may be memory. */
static FILE *temporary_file(void)
{
    static const char name[] = "/penstock-logits-XXXXXX";
    const char *directory = getenv("TMPDIR");
    if (!directory || !directory[0])
        directory = "/var/tmp";
    size_t size = strlen(directory) + sizeof(name);
    char *path = malloc(size);
    FILE *file = NULL;
    int fd = -1;
    if (path) {
        snprintf(path, size, "%s%s", directory, name);
        fd = mkostemp(path, O_CLOEXEC);
    }
    if (fd >= 0) {
        unlink(path);
        file = fdopen(fd, "w+");
        if (!file)
            close(fd);
    }
    if (!file)
        cli_error(CLI_FAILED, "%s: cannot make a temporary file: %s: set TMPDIR to another place", directory,
                  strerror(errno));
    free(path);
    return file;
}

static int compare_models(const struct kl_options *o, const struct model_options *model_options,
                          const struct token_list *tokens, struct comparison *c)
{
    struct ps_error err;
    if (comparison_init(c, o, tokens->n_vocab, tokens->n, &err) != PS_OK)
        return cli_status(&err);
    c->a = temporary_file();
    if (!c->a)
        return CLI_FAILED;
    int exit_code = evaluate(o->path[0], model_options, tokens, keep_row, c);
    if (exit_code != CLI_OK)
        return exit_code;
    if (fflush(c->a) != 0 || fseeko(c->a, 0, SEEK_SET) != 0)
        return cli_error(CLI_FAILED, "temporary file: cannot write: %s: set TMPDIR to a larger place",
                         strerror(errno));
    return evaluate(o->path[1], model_options, tokens, compare_row, c);
}

/* So that B is not refused after A was computed. */
static enum ps_status check_budget(const char *path, const struct ps_model_params *params,
                                   struct ps_error *err)
{
    struct ps_model *model;
    struct ps_plan plan;
    enum ps_status status = ps_model_open(&model, path, err);
    if (status != PS_OK)
        return status;
    status = ps_model_plan(model, params, &plan, err);
    ps_model_free(model);
    return status;
}

static int kl_of_models(const struct kl_options *o, struct model_options *model_options)
{
    struct ps_model_params *params = &model_options->params;
    struct ps_error err;
    struct token_list tokens = {0};
    struct comparison c = {0};
    if (o->model || o->n_vocab > 0)
        return cli_error(CLI_USAGE,
                         "eval kl: A and B are models: --model and --vocab are for two logits files");
    if ((o->file != NULL) + (o->tokens != NULL) != 1)
        return cli_error(CLI_USAGE, "eval kl: A and B are models: give one of -f FILE and --tokens IDS");
    int exit_code = read_tokens(o, &tokens);
    if (exit_code == CLI_OK) {
        if (params->ctx == 0)
            params->ctx = tokens.n < EVAL_CTX ? (uint32_t)tokens.n : EVAL_CTX;
        params->feed = params->ctx;
        if (check_budget(o->path[0], params, &err) != PS_OK ||
            check_budget(o->path[1], params, &err) != PS_OK)
            exit_code = cli_status(&err);
        else
            exit_code = compare_models(o, model_options, &tokens, &c);
    }
    if (exit_code == CLI_OK)
        report(&c.divergence, o->json);
    comparison_deinit(&c);
    free(tokens.ids);
    return exit_code;
}

/* ---- the command ---- */

/* Told apart by the magic; a file of logits may be anything else. False after printing. */
static bool is_model(const char *path, bool *model)
{
    char magic[4];
    struct stat st;
    FILE *file = fopen(path, "re");
    if (!file) {
        cli_error(CLI_FAILED, "%s: cannot open: %s", path, strerror(errno));
        return false;
    }
    bool regular = fstat(fileno(file), &st) == 0 && S_ISREG(st.st_mode);
    *model = regular && fread(magic, 1, sizeof(magic), file) == sizeof(magic) &&
             memcmp(magic, "GGUF", sizeof(magic)) == 0;
    fclose(file);
    if (!regular)
        cli_error(CLI_FAILED, "%s: is not a regular file", path);
    return regular;
}

int eval_kl(int argc, char **argv)
{
    struct model_options model_options;
    struct kl_options options = {0};
    bool model[2];
    int exit_code;
    model_options_default(&model_options);
    model_options.params.kv = PS_KV_F32; /* what the models compute, not what is fast */
    const struct flag_positional positionals[] = {
        {"A", &options.path[0], "a model, or a file that `eval logits -o` wrote: the reference", true},
        {"B", &options.path[1], "the same kind of file: what is compared with it", true},
        {0}};
    const struct flag_group groups[] = {
        {"Input and output", kl_rows, &options},
        {"Model and memory, for each of two models", &MODEL_FLAGS[1], &model_options},
        {0}};
    const struct flag_spec spec = {
        .command = "eval kl",
        .summary = "Kullback-Leibler divergence of B's next-token distributions from A's: its mean, 99th "
                   "percentile and\n"
                   "maximum over the tokens, how often both name the same top token, and how far its "
                   "probability is\n"
                   "off. Of two models, on a text in windows of --ctx tokens (at most 512) side by side; A's "
                   "logits wait\n"
                   "in a temporary file under TMPDIR, else /var/tmp. Of two settings of one model, write "
                   "logits with\n"
                   "each and compare the files.",
        .examples = "  penstock eval kl model-f16.gguf model-q4_0.gguf -f valid.txt\n"
                    "  penstock eval logits -m model.gguf -f valid.txt -o a.f32\n"
                    "  penstock eval logits -m model.gguf -f valid.txt -o b.f32 --top-k 2\n"
                    "  penstock eval kl a.f32 b.f32 -m model.gguf",
        .positionals = positionals,
        .groups = groups};
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    if (!is_model(options.path[0], &model[0]) || !is_model(options.path[1], &model[1]))
        return CLI_FAILED;
    if (model[0] != model[1])
        return cli_error(CLI_USAGE,
                         "eval kl: %s is a model and %s is not: give two models or two logits files",
                         options.path[!model[0]], options.path[model[0]]);
    return model[0] ? kl_of_models(&options, &model_options) : kl_of_files(&options);
}
