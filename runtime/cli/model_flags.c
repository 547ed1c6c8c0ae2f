#include "runtime/cli/model_flags.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/cli/cli.h"
#include "runtime/clock.h"
#include "runtime/size_text.h"

static const char *policy_name_at(uint32_t index)
{
    return ps_cache_policy_at(index, NULL);
}

static const struct flag_word auto_size[] = {{"auto", 0}, {0}};
static const struct flag_word own_number[] = {{"own", 0}, {0}};
static const struct flag_word io_words[] = {
    {"auto", PS_IO_AUTO}, {"uring", PS_IO_URING}, {"threads", PS_IO_THREADS}, {0}};
static const struct flag_word kv_words[] = {
    {"f32", PS_KV_F32}, {"f16", PS_KV_F16}, {"q8_0", PS_KV_Q8_0}, {0}};
static const struct flag_word activation_words[] = {
    {"auto", PS_ACTIVATIONS_AUTO}, {"f32", PS_ACTIVATIONS_F32}, {0}};

static const struct flag_word prefetch_words[] = {{"auto", PS_PREFETCH_AUTO}, {"off", PS_PREFETCH_OFF}, {0}};

static const struct flag_word verify_words[] = {
    {"off", PS_VERIFY_OFF}, {"first", PS_VERIFY_FIRST}, {"always", PS_VERIFY_ALWAYS}, {0}};

static const char *cpu_name_at(uint32_t index)
{
    static const char *const names[] = {"scalar", "avx2", "avx512", "neon"};
    return index < sizeof(names) / sizeof(names[0]) ? names[index] : NULL;
}

#define OPTION(field) offsetof(struct model_options, field)

const struct flag MODEL_FLAGS[] = {
    {"model", 'm', FLAG_STRING, OPTION(path), "FILE",
     .help = "the model, a GGUF file (any part of a split one)", .required = true},
    {"ram", 0, FLAG_SIZE, OPTION(params.ram), "SIZE", .help = "ceiling on all memory of the process",
     .words = auto_size},
    {"threads", 0, FLAG_U32, OPTION(params.threads),
     .help = "compute threads; 0: the fastest number for this machine", .max = 256, .min = 0},
    {"ctx", 0, FLAG_U32, OPTION(params.ctx), "TOKENS", .help = "context length; 0: what this command needs"},
    {"chunk", 0, FLAG_U32, OPTION(params.chunk), "TOKENS", .help = "most tokens per forward pass; 0: choose"},
    {"kv", 0, FLAG_CHOICE, OPTION(params.kv), "TYPE",
     .help = "element type of the KV cache:", .words = kv_words},
    {"activations", 0, FLAG_CHOICE, OPTION(params.activations), "HOW",
     .help = "auto: rounded as llama.cpp does; f32: exact, slow:", .words = activation_words},
    {"io", 0, FLAG_CHOICE, OPTION(params.io), "BACKEND", .help = "how experts are read:", .words = io_words},
    {"direct", 0, FLAG_ON_OFF, OPTION(params.direct), .help = "O_DIRECT where the filesystem allows it"},
    {"queue-depth", 0, FLAG_U32, OPTION(params.queue_depth), "N",
     .help = "reads in flight; 0: 8 for each drive", .max = 4096, .min = 0},
    {"io-limit", 0, FLAG_SIZE, OPTION(params.io_limit), "RATE", .help = "bytes per second at most; 0: none"},
    {"verify", 0, FLAG_CHOICE, OPTION(params.verify), "WHEN",
     .help = "of a packed model: compare checksums each time that bytes are\n"
             "read, or the first time, which is the default; of tables that\n"
             "stay in the file, 16K are read around each row for it:",
     .words = verify_words},
    {"cache-policy", 0, FLAG_NAME, OPTION(params.cache_policy), "NAME",
     .help = "which expert leaves the cache:", .name_at = policy_name_at},
    {"prefetch", 0, FLAG_CHOICE, OPTION(params.prefetch), "WHEN",
     .help = "read predicted experts ahead, while that pays:", .words = prefetch_words},
    {"warm", 0, FLAG_STRING, OPTION(warm), "on|off|FILE",
     .help = "the experts in use at the end of a run are noted in a small file,\n"
             "and read at the next start while the drive is idle; on: a file\n"
             "in ~/.cache/penstock"},
    {"cpu", 0, FLAG_NAME, OPTION(params.cpu), "LEVEL",
     .help = "instruction set; the best there is, or one of:", .name_at = cpu_name_at},
    {"top-k", 0, FLAG_U32, OPTION(params.top_k), "N",
     .help = "lossy: experts per token, up to the model's own number", .words = own_number, .min = 1,
     .max = 4096},
    {"drop-below", 0, FLAG_FLOAT, OPTION(params.drop_below), "SHARE",
     .help = "lossy: leave out an expert that is not in memory if its share\n"
             "of the token's weights is less; what is in memory then decides\n"
             "what is computed",
     .min = 0, .max = 1},
    {"substitute", 0, FLAG_BOOL, OPTION(params.substitute),
     .help = "lossy: in the place of an expert that is not in memory, take the\n"
             "best one that is; never for a token's first expert. What is in\n"
             "memory then decides what is computed"},
    {0},
};

void model_options_default(struct model_options *options)
{
    *options = (struct model_options){.warm = "off"};
    ps_model_params_default(&options->params);
    options->params.kv = PS_KV_F16;
    options->params.cache_policy = ps_cache_policy_at(0, NULL);
}

static void print_plan(void *ctx, const struct ps_plan *p)
{
    const struct ps_model_info *info = ps_model_info(ctx);
    char text[8][SIZE_TEXT_SIZE];
    fprintf(stderr,
            "memory %s: process %s, trunk %s (%u of %u layers stay), KV %s (%u tokens), activations %s "
            "(chunk %u), I/O %s, "
            "cache %s (%u of %u experts)",
            size_format(p->budget, text[0]), size_format(p->process, text[1]), size_format(p->trunk, text[2]),
            p->trunk_layers_resident, info->n_layers, size_format(p->kv, text[3]), p->ctx,
            size_format(p->activations, text[4]), p->chunk, size_format(p->io, text[5]),
            size_format(p->cache, text[6]), p->slots, p->n_shards);
    if (p->n_shards > 0 && p->slots < p->n_shards)
        fprintf(stderr, "; %.2f token cycles%s", p->cycles,
                p->cycles < 1.0 ? ": most experts are read again for every token" : "");
    fputc('\n', stderr);
}

static void show_progress(void *ctx, uint64_t done, uint64_t total)
{
    char text[2][SIZE_TEXT_SIZE];
    (void)ctx;
    fprintf(stderr, "\rreading the trunk: %s of %s%s", size_format(done, text[0]),
            size_format(total, text[1]), done == total ? "\r\033[K" : "");
}

bool loaded_model_start(struct loaded_model *m, struct ps_model *model, const struct model_options *options,
                        int *exit_code)
{
    struct ps_error err;
    struct ps_model_params params = options->params;
    m->model = model;
    m->lossy = params.top_k > 0 || params.drop_below > 0.0f || params.substitute;
    params.planned = print_plan;
    params.planned_ctx = model;
    if (isatty(STDERR_FILENO))
        params.progress = show_progress;
    if (!warm_file_choose(&m->warm, options->warm, model)) {
        *exit_code = cli_error(CLI_FAILED, "--warm: out of memory");
        return false;
    }
    params.warm = m->warm.path;
    cli_catch_interrupt();
    if (ps_model_load(model, &params, &err) != PS_OK || ps_session_new(&m->session, model, &err) != PS_OK) {
        *exit_code = cli_status(&err);
        return false;
    }
    warm_file_report_load(model);
    ps_session_cancel_on(m->session, cli_interrupt_flag());
    return true;
}

void loaded_model_save_working_set(const struct loaded_model *m, int exit_code)
{
    bool usable = exit_code == CLI_OK || exit_code == CLI_INTERRUPTED;
    if (usable && m->session && ps_session_position(m->session) > 0)
        warm_file_save(&m->warm, m->model);
}

void loaded_model_close(struct loaded_model *m)
{
    ps_session_free(m->session);
    ps_model_free(m->model);
    warm_file_free(&m->warm);
}

static double percent(uint64_t part, uint64_t whole)
{
    return whole > 0 ? 100.0 * (double)part / (double)whole : 0.0;
}

void print_lossy(const struct loaded_model *m)
{
    struct ps_stats stats;
    if (!m->lossy)
        return;
    ps_session_stats(m->session, &stats);
    fprintf(stderr,
            "lossy: of %" PRIu64 " choices of experts %.2f%% trimmed, %.2f%% dropped, %.2f%% substituted\n",
            stats.choices, percent(stats.choices_trimmed, stats.choices),
            percent(stats.choices_dropped, stats.choices), percent(stats.choices_substituted, stats.choices));
}

static double per_second(uint64_t n, double seconds)
{
    return n > 0 && seconds > 0.0 ? (double)n / seconds : 0.0;
}

/* The middle of what was measured several times. */
static double median_rate(const struct run_times *t)
{
    return (t->rates[(t->n_rates - 1) / 2] + t->rates[t->n_rates / 2]) / 2.0;
}

static double prefill_rate(const struct run_times *t)
{
    return t->rates && t->decode_steps == 0 ? median_rate(t) : per_second(t->prompt_tokens, t->prefill_s);
}

static double decode_rate(const struct run_times *t)
{
    return t->rates && t->decode_steps > 0 ? median_rate(t) : per_second(t->decode_steps, t->decode_s);
}

static void print_unpacking(const struct ps_stats *s)
{
    char text[SIZE_TEXT_SIZE];
    if (s->checked == 0 && s->bytes_unpacked == 0)
        return;
    fprintf(stderr, "packed: %" PRIu64 " checksums compared in %.2f s", s->checked, s->check_s);
    if (s->bytes_unpacked > 0)
        fprintf(stderr, ", %s unpacked in %.2f s", size_format(s->bytes_unpacked, text), s->unpack_s);
    if (s->reread_sound > 0)
        fprintf(stderr, "; damaged when read first, sound when read again: %" PRIu64, s->reread_sound);
    fputc('\n', stderr);
}

void print_summary(const struct loaded_model *m, const struct run_times *times)
{
    struct ps_stats stats;
    char text[3][SIZE_TEXT_SIZE];
    char warm[SIZE_TEXT_SIZE + 8] = "";
    ps_session_stats(m->session, &stats);
    if (stats.bytes_warm > 0)
        snprintf(warm, sizeof(warm), ", %s warm", size_format(stats.bytes_warm, text[2]));
    uint64_t asked = stats.expert_hits + stats.expert_late + stats.expert_misses;
    fprintf(stderr,
            "prompt %" PRIu64 " tokens, %.2f tok/s; generated %" PRIu64
            ", %.2f tok/s; first token %.2f s; experts %.1f%% hit, %s "
            "read%s, stalled %.2f s; peak memory %s; threads %u (%s)\n",
            times->prompt_tokens, prefill_rate(times), times->generated_tokens, decode_rate(times),
            times->ttft_s, asked > 0 ? 100.0 * (double)stats.expert_hits / (double)asked : 100.0,
            size_format(stats.bytes_demand, text[0]), warm, stats.stall_s,
            size_format(stats.peak_rss_bytes, text[1]), stats.threads, stats.threads_reason);
    print_unpacking(&stats);
    print_lossy(m);
}

/* Per distance and rank: how often the expert that was predicted at a rank was chosen (precision), and the share of
 * chosen experts found up to there (recall). */
static void print_prediction_stats(FILE *out, const struct ps_session *session)
{
    struct ps_prediction_stats p;
    ps_session_prediction_stats(session, &p);
    for (uint32_t d = 0; d < PS_PREDICTION_DISTANCES; d++) {
        if (p.chosen[d] == 0)
            continue;
        fprintf(out, "\"predicted_%u_precision\": [", d);
        for (uint32_t r = 0; r < p.n_ranks; r++)
            fprintf(out, "%s%.4f", r ? ", " : "", percent(p.right[d][r], p.predicted[d][r]) / 100.0);
        fprintf(out, "], \"predicted_%u_recall\": [", d);
        uint64_t right = 0;
        for (uint32_t r = 0; r < p.n_ranks; r++) {
            right += p.right[d][r];
            fprintf(out, "%s%.4f", r ? ", " : "", percent(right, p.chosen[d]) / 100.0);
        }
        fputs("], ", out);
    }
}

/* JSON by hand: values are numbers and our own words. */
static bool print_stats(FILE *out, const struct loaded_model *m, const struct run_times *t)
{
    struct ps_stats s;
    const struct ps_plan *plan = ps_model_loaded_plan(m->model);
    ps_session_stats(m->session, &s);
    const struct {
        const char *key;
        uint64_t value;
    } counts[] = {
        {"prompt_tokens", t->prompt_tokens},
        {"generated_tokens", t->generated_tokens},
        {"expert_hits", s.expert_hits},
        {"expert_misses", s.expert_misses},
        {"bytes_demand", s.bytes_demand},
        {"bytes_speculative", s.bytes_speculative},
        {"bytes_wasted", s.bytes_wasted},
        {"bytes_useful", s.bytes_useful},
        {"bytes_late", s.bytes_late},
        {"bytes_warm", s.bytes_warm},
        {"expert_late", s.expert_late},
        {"checked", s.checked},
        {"reread_sound", s.reread_sound},
        {"bytes_unpacked", s.bytes_unpacked},
        {"predictor_bytes", plan->predictor},
        {"peak_rss_bytes", s.peak_rss_bytes},
        {"budget_bytes", plan->budget},
        {"process_bytes", plan->process},
        {"trunk_bytes", plan->trunk},
        {"kv_bytes", plan->kv},
        {"activation_bytes", plan->activations},
        {"io_bytes", plan->io},
        {"cache_bytes", plan->cache},
        {"slots", plan->slots},
        {"shards", plan->n_shards},
        {"token_cycle_bytes", plan->token_cycle_bytes},
        {"ctx", plan->ctx},
        {"chunk", plan->chunk},
        {"threads", s.threads},
        {"trunk_layers_resident", plan->trunk_layers_resident},
        {"choices", s.choices},
        {"choices_trimmed", s.choices_trimmed},
        {"choices_dropped", s.choices_dropped},
        {"choices_substituted", s.choices_substituted},
    };
    const struct {
        const char *key;
        double value;
    } figures[] = {
        {"prefill_tok_s", prefill_rate(t)},
        {"decode_tok_s", decode_rate(t)},
        {"prefill_s", t->prefill_s},
        {"decode_s", t->decode_s},
        {"ttft_s", t->ttft_s},
        {"stall_s", s.stall_s},
        {"check_s", s.check_s},
        {"unpack_s", s.unpack_s},
        {"compute_s", s.compute_s},
        {"cache_cycles", plan->cycles},
        {"prefetch_threshold", s.prefetch_threshold},
        {"prefetch_width", s.prefetch_width},
        {"predictor_s", s.predictor_s},
    };
    fputs("{", out);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        fprintf(out, "\"%s\": %" PRIu64 ", ", counts[i].key, counts[i].value);
    for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++)
        fprintf(out, "\"%s\": %.6g, ", figures[i].key, figures[i].value);
    fputs("\"parts_s\": {", out);
    for (int part = 0; part < PS_N_PARTS; part++)
        fprintf(out, "%s\"%s\": %.6g", part ? ", " : "", ps_part_name((enum ps_part)part), s.part_s[part]);
    fputs("}, ", out);
    if (t->rates) {
        fputs("\"rates_tok_s\": [", out);
        for (uint32_t i = 0; i < t->n_rates; i++)
            fprintf(out, "%s%.6g", i ? ", " : "", t->rates[i]);
        fputs("], ", out);
    }
    bench_replay_write(out, m->replay);
    if (!m->replay) /* what the predictor itself guessed was of no use */
        print_prediction_stats(out, m->session);
    fprintf(out, "\"io_backend\": \"%s\", \"direct\": %s, \"cpu\": \"%s\", \"threads_reason\": \"%s\"}\n",
            s.io_backend, s.direct ? "true" : "false", s.cpu, s.threads_reason);
    return fflush(out) == 0 && !ferror(out);
}

int write_stats(const struct loaded_model *m, const struct run_times *times, const char *path)
{
    if (strcmp(path, "-") == 0)
        return print_stats(stdout, m, times) ? CLI_OK : CLI_FAILED; /* cli_finish reports stdout's failure */
    FILE *file = fopen(path, "we");
    if (!file)
        return cli_error(CLI_FAILED, "--stats: %s: %s", path, strerror(errno));
    bool ok = print_stats(file, m, times);
    ok = fclose(file) == 0 && ok;
    return ok ? CLI_OK : cli_error(CLI_FAILED, "--stats: %s: cannot write: %s", path, strerror(errno));
}

bool parse_token_list(const char *text, const char *what, int32_t **tokens, size_t *n)
{
    size_t capacity = strlen(text) / 2 + 1;
    *n = 0;
    *tokens = malloc(capacity * sizeof(**tokens));
    if (!*tokens) {
        cli_error(CLI_FAILED, "%s: out of memory", what);
        return false;
    }
    const char *at = text;
    while (*(at += strspn(at, ", \t\r\n"))) {
        char *end;
        errno = 0;
        long value = strtol(at, &end, 10);
        if (end == at || errno || value < 0 || value > INT32_MAX || (*end && !strchr(", \t\r\n", *end))) {
            cli_error(CLI_USAGE, "%s: \"%.*s\" is not a token id: use numbers with commas between", what,
                      (int)strcspn(at, ", \t\r\n"), at);
            free(*tokens);
            *tokens = NULL;
            return false;
        }
        (*tokens)[(*n)++] = (int32_t)value;
        at = end;
    }
    return true;
}

char *read_text_file(const char *path, size_t *length)
{
    enum { STEP = 1 << 16 };
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    char *text = NULL;
    size_t used = 0;
    bool ok = file != NULL;
    while (ok) {
        char *grown = realloc(text, used + STEP + 1);
        if (!grown) {
            ok = false;
            break;
        }
        text = grown;
        size_t n = fread(text + used, 1, STEP, file);
        used += n;
        if (n < STEP) {
            ok = !ferror(file);
            break;
        }
    }
    int error = errno;
    if (file && file != stdin)
        fclose(file);
    if (!ok) {
        cli_error(CLI_FAILED, "%s: cannot read: %s", path, strerror(error));
        free(text);
        return NULL;
    }
    text[used] = 0;
    *length = used;
    return text;
}
