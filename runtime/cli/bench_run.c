#include "runtime/cli/bench_run.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/cli/cli.h"
#include "runtime/clock.h"
#include "runtime/drive_probe.h"

/* ---- passes ---- */

/* One pass from an empty context. */
struct pass {
    const int32_t *ids; /* [n]; NULL: greedy */
    double start, first_s, seconds;
};

/* Each pass is fed the next n, from the first again after the last whole n: a cache that has seen a pass would know the next one
 * by heart if it were the same. */
static const int32_t *pass_ids(const struct bench_run *b, uint32_t pass)
{
    const struct token_source *source = &b->source;
    return source->ids ? source->ids + pass % (source->n / b->options->n) * b->options->n : NULL;
}

static enum ps_status decode_pass(struct bench_run *b, struct pass *pass, struct ps_error *err)
{
    struct ps_session *session = b->m.session;
    uint32_t n_vocab = ps_model_info(b->m.model)->n_vocab;
    enum ps_status status;
    int32_t next = 0;
    for (uint32_t i = 0; i < b->options->n; i++) {
        int32_t token = pass->ids ? pass->ids[i] : next;
        if ((status = ps_session_feed(session, &token, 1, err)) != PS_OK ||
            (status = ps_session_logits(session, 0, 1, b->logits, err)) != PS_OK ||
            (status = ps_sampler_pick(b->greedy, b->logits, n_vocab, &next, err)) != PS_OK)
            return status;
        pass->seconds = clock_seconds() - pass->start;
        if (i == 0)
            pass->first_s = pass->seconds;
        b->times.generated_tokens = ++b->times.decode_steps;
        live_view_token(b->live);
    }
    return PS_OK;
}

static enum ps_status prefill_pass(struct bench_run *b, struct pass *pass, struct ps_error *err)
{
    struct ps_session *session = b->m.session;
    enum ps_status status;
    if ((status = ps_session_feed(session, pass->ids, b->options->n, err)) != PS_OK ||
        (status = ps_session_logits(session, 0, 1, b->logits, err)) != PS_OK)
        return status;
    pass->seconds = pass->first_s = clock_seconds() - pass->start;
    b->times.prompt_tokens += b->options->n;
    live_view_token(b->live);
    return PS_OK;
}

/* ---- records ---- */

void bench_describe_model(const struct bench_run *b, struct bench_record *r)
{
    const struct ps_model_info *info = ps_model_info(b->m.model);
    const char *path = b->model_options->path, *slash = strrchr(path, '/');
    r->file_bytes = info->file_bytes;
    snprintf(r->model, sizeof(r->model), "%s", info->name[0] ? info->name : slash ? slash + 1 : path);
    snprintf(r->arch, sizeof(r->arch), "%s", info->arch);
    snprintf(r->flags, sizeof(r->flags), "%s", b->flags);
    bench_text_clean(r->model);
}

/* What is the same for all passes. */
static void describe_run(const struct bench_run *b, struct bench_record *r)
{
    const struct ps_model_params *params = &b->model_options->params;
    const struct ps_plan *plan = ps_model_loaded_plan(b->m.model);
    bool asked = params->prefetch == PS_PREFETCH_AUTO || b->replay.prefetch_turned_off;
    *r = (struct bench_record){.kind = b->options->kind == BENCH_DECODE ? "decode" : "prefill",
                               .ram = plan->budget,
                               .io_limit = params->io_limit,
                               .prefetch = asked ? "auto" : "off",
                               .prefetch_used = plan->predictor > 0 ? "auto" : "off",
                               .chunk = plan->chunk,
                               .policy = params->cache_policy,
                               .replay = b->options->replay ? b->replay.name : NULL,
                               .cycles = plan->cycles};
    bench_describe_model(b, r);
    machine_describe(&r->machine, b->model_options->path);
}

/* From the counters around a pass. */
static void fill_record(struct bench_record *r, const struct pass *pass, uint32_t tokens,
                        const struct ps_stats *before, const struct ps_stats *after)
{
    uint64_t hits = after->expert_hits - before->expert_hits;
    uint64_t asked =
        hits + after->expert_late - before->expert_late + after->expert_misses - before->expert_misses;
    r->queue_depth = after->queue_depth;
    r->threads = after->threads;
    r->tokens = tokens;
    r->seconds = pass->seconds;
    r->first_token_s = pass->first_s;
    r->stall_s = fmin(after->stall_s - before->stall_s, pass->seconds);
    for (int part = 0; part < PS_N_PARTS; part++) {
        r->parts_s[part] = fmax(after->part_s[part] - before->part_s[part], 0.0);
        r->compute_s += part == PS_PART_OTHER ? 0.0 : r->parts_s[part];
    }
    r->compute_s = fmin(r->compute_s, r->seconds - r->stall_s);
    r->bookkeeping_s = r->seconds - r->stall_s - r->compute_s;
    r->hit_rate = asked > 0 ? (double)hits / (double)asked : 1.0;
    r->bytes_read =
        after->bytes_demand + after->bytes_speculative - before->bytes_demand - before->bytes_speculative;
    /* What was in vain may turn out useful later on, so that this count can fall. */
    double wasted = fmax((double)after->bytes_wasted - (double)before->bytes_wasted, 0.0);
    r->useful_bytes = fmax((double)r->bytes_read - wasted, 0.0);
    r->peak_rss = after->peak_rss_bytes;
    r->time = (int64_t)time(NULL);
}

static void add_times(struct bench_run *b, const struct pass *pass)
{
    bool decodes = b->options->kind == BENCH_DECODE;
    if (b->times.n_rates == 0)
        b->times.ttft_s = pass->start + pass->first_s - b->start;
    *(decodes ? &b->times.decode_s : &b->times.prefill_s) += pass->seconds;
    b->rates[b->times.n_rates++] = b->options->n / pass->seconds;
}

static int by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* What is read between two passes is for the next one: layers of a streamed trunk, read ahead. */
static enum ps_status run_passes(struct bench_run *b, struct ps_error *err)
{
    const struct bench_options *o = b->options;
    struct ps_stats before, after;
    ps_session_stats(b->m.session, &before);
    for (uint32_t i = 0; i < o->warm_up + o->repeat; i++) {
        ps_session_truncate(b->m.session, 0);
        if (i > 0 && i == o->warm_up) {
            ps_session_reset_stats(b->m.session);
            ps_session_stats(b->m.session, &before);
            b->times = (struct run_times){0};
            b->start = clock_seconds();
        }
        struct pass pass = {.ids = pass_ids(b, i), .start = clock_seconds()};
        enum ps_status status =
            o->kind == BENCH_DECODE ? decode_pass(b, &pass, err) : prefill_pass(b, &pass, err);
        if (status != PS_OK)
            return status;
        if (i < o->warm_up)
            continue;
        ps_session_stats(b->m.session, &after);
        struct bench_record *record = &b->records[i - o->warm_up];
        describe_run(b, record);
        fill_record(record, &pass, o->n, &before, &after);
        record->repeat = i - o->warm_up + 1;
        add_times(b, &pass);
        before = after;
    }
    qsort(b->rates, b->times.n_rates, sizeof(*b->rates), by_value);
    b->times.rates = b->rates;
    return PS_OK;
}

/* ---- the run ---- */

void bench_fit_params(const struct bench_options *options, struct ps_model_params *params)
{
    if (params->ctx == 0)
        params->ctx = options->n;
    params->feed = options->kind == BENCH_DECODE ? 1 : options->n;
}

/* What was asked for and has no field of its own in the record; before anything is fitted to the measurement. */
static void describe_flags(struct bench_run *b)
{
    static const char *const others[] = {"model",    "ram",      "threads",      "chunk", "queue-depth",
                                         "io-limit", "prefetch", "cache-policy", "warm",  NULL};
    struct model_options defaults;
    model_options_default(&defaults);
    FILE *out = fmemopen(b->flags, sizeof(b->flags), "w");
    if (!out)
        return;
    fprintf(out, "--tokens %.128s --warm-up %" PRIu32, b->options->tokens, b->options->warm_up);
    flags_print_changed(MODEL_FLAGS, b->model_options, &defaults, others, out);
    fclose(out);
    bench_text_clean(b->flags);
}

static enum ps_status allocate(struct bench_run *b, struct ps_error *err)
{
    struct ps_sampler_params params;
    ps_sampler_params_default(&params);
    params.temp = 0.0f;
    b->logits = malloc(ps_model_info(b->m.model)->n_vocab * sizeof(*b->logits));
    b->rates = malloc(b->options->repeat * sizeof(*b->rates));
    b->records = calloc(b->options->repeat, sizeof(*b->records));
    if (!b->logits || !b->rates || !b->records)
        return ps_error_set(err, PS_ERR_NOMEM, "bench: out of memory");
    return ps_sampler_new(&b->greedy, &params, err);
}

bool bench_run_open(struct bench_run *b, const struct bench_options *options,
                    struct model_options *model_options, int *exit_code)
{
    struct ps_error err;
    *b = (struct bench_run){
        .options = options, .model_options = model_options, .m = {.start = clock_seconds()}};
    b->start = b->m.start;
    describe_flags(b);
    if (strcmp(options->tokens, "greedy") == 0 && options->kind == BENCH_PREFILL) {
        *exit_code = cli_error(CLI_USAGE, "--tokens: greedy has no prompt: use random:SEED or a file");
        return false;
    }
    if (strcmp(options->tokens, "greedy") == 0 && options->replay) {
        *exit_code = cli_error(CLI_USAGE,
                               "--replay: the logits of a replay mean nothing, greedy tokens go by them: use "
                               "--tokens random:SEED or a file");
        return false;
    }
    bench_fit_params(options, &model_options->params);
    if (options->n > model_options->params.ctx) {
        *exit_code = cli_error(CLI_USAGE, "-n: %u tokens do not fit a context of %u", options->n,
                               model_options->params.ctx);
        return false;
    }
    if (ps_model_open(&b->m.model, model_options->path, &err) != PS_OK) {
        *exit_code = cli_status(&err);
        return false;
    }
    uint32_t n_passes = options->warm_up + options->repeat;
    if (!token_source_open(&b->source, options->tokens, options->n, n_passes,
                           ps_model_info(b->m.model)->n_vocab, exit_code))
        return false;
    struct ps_model_params *params = &model_options->params;
    if (options->replay && !bench_replay_open(&b->replay, options->replay, b->m.model, params, exit_code))
        return false;
    *exit_code = CLI_OK;
    return true;
}

bool bench_run_measure(struct bench_run *b, int *exit_code)
{
    struct ps_error err;
    const struct bench_options *o = b->options;
    if (!loaded_model_start(&b->m, b->m.model, b->model_options, exit_code))
        return false;
    enum ps_status status = allocate(b, &err);
    if (status == PS_OK && o->replay) {
        b->m.replay = &b->replay;
        status = bench_replay_attach(&b->replay, b->m.model, b->m.session, &err);
    }
    if (status == PS_OK)
        status =
            live_view_open(&b->live, o->stats, &b->m, 0, (uint64_t)o->n * (o->warm_up + o->repeat), &err);
    if (status == PS_OK)
        status = run_passes(b, &err);
    live_view_close(b->live);
    if (status != PS_OK)
        *exit_code = cli_status(&err);
    return status == PS_OK;
}

bool bench_run_probe(struct bench_run *b, int *exit_code)
{
    /* A limited reader that comes this near is held by its limit: the rest is noise, of which a short probe has much. */
    static const double AT_LIMIT = 0.75;
    struct ps_error err;
    double limit = (double)b->model_options->params.io_limit;
    if (b->options->probe > 0.0f) {
        struct speed_parts parts = {0};
        loaded_model_save_working_set(&b->m, CLI_OK);
        ps_session_free(b->m.session);
        b->m.session = NULL;
        if (drive_probe_last(b->m.model, (double)b->options->probe, cli_interrupt_flag(), &parts, &err) !=
            PS_OK) {
            *exit_code = cli_status(&err);
            return false;
        }
        if (limit <= 0.0 || parts.drive_rate < AT_LIMIT * limit)
            limit = parts.drive_rate;
    }
    for (uint32_t i = 0; i < b->times.n_rates; i++)
        b->records[i].drive_limit = limit;
    return true;
}

void bench_run_deinit(struct bench_run *b, int exit_code)
{
    loaded_model_save_working_set(&b->m, exit_code);
    ps_sampler_free(b->greedy);
    free(b->logits);
    free(b->rates);
    free(b->records);
    free(b->source.ids);
    loaded_model_close(&b->m);
    bench_replay_close(&b->replay);
}
