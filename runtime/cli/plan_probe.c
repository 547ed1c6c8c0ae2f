#include "runtime/cli/plan_probe.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/token_input.h"
#include "runtime/clock.h"
#include "runtime/drive_probe.h"

static const double DRIVE_SECONDS = 1.5;
static const double DECODE_SECONDS = 3;   /* of each run */
static const double REPEAT_SECONDS = 0.8; /* of one token, for the time to compute it */

enum {
    ENOUGH_TOKENS = 384, /* a fast model is not decoded longer; more than a cache takes to fill and settle */
    LEAST_TOKENS = 3,
    LEAST_REPEATS = 5,
    MOST_REPEATS = 64,
};

struct recorder {
    struct replay_trace trace;
    uint32_t *n_experts;
    struct replay_visit *visits;
    uint32_t *ids;
    uint32_t top_k;
    uint64_t capacity; /* visits */
    uint64_t token;
    bool on;
};

static int by_id(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

/* A ps_router_fn. Ids ascend in a trace, as the expert cache sees them. Lossy modes leave holes: ids past the layer's. */
static void record_choice(void *ctx, uint32_t moe_layer, uint32_t position, uint32_t n_tokens, uint32_t k,
                          const uint32_t *ids, const float *weights)
{
    struct recorder *r = ctx;
    struct replay_trace *trace = &r->trace;
    (void)position;
    (void)weights;
    if (!r->on || n_tokens != 1 || k > r->top_k || trace->n_visits == r->capacity)
        return;
    uint64_t first = trace->n_visits * r->top_k;
    uint32_t n = 0;
    for (uint32_t i = 0; i < k; i++) {
        if (ids[i] < trace->n_experts[moe_layer])
            r->ids[first + n++] = ids[i];
    }
    qsort(r->ids + first, n, sizeof(*ids), by_id);
    r->visits[trace->n_visits++] =
        (struct replay_visit){.token = r->token, .layer = moe_layer, .n = n, .first = first};
}

static bool recorder_init(struct recorder *r, const struct ps_model *model, uint32_t n_tokens)
{
    const struct ps_model_info *info = ps_model_info(model);
    uint32_t n_layers = info->n_moe_layers;
    uint64_t n_ids;
    *r = (struct recorder){.top_k = info->n_expert_used, .capacity = (uint64_t)n_tokens * n_layers};
    if (__builtin_mul_overflow(r->capacity, r->top_k, &n_ids))
        return false;
    r->n_experts = calloc(n_layers + UINT64_C(1), sizeof(*r->n_experts));
    r->visits = calloc(r->capacity + 1, sizeof(*r->visits));
    r->ids = calloc(n_ids + 1, sizeof(*r->ids));
    if (!r->n_experts || !r->visits || !r->ids)
        return false;
    for (uint32_t l = 0; l < n_layers; l++) {
        struct ps_expert_layer layer;
        if (ps_model_expert_layer(model, l, &layer))
            r->n_experts[l] = layer.n_experts;
    }
    r->trace = (struct replay_trace){
        .n_layers = n_layers, .n_experts = r->n_experts, .visits = r->visits, .ids = r->ids};
    return true;
}

static void recorder_deinit(struct recorder *r)
{
    free(r->n_experts);
    free(r->visits);
    free(r->ids);
}

/* A longer recording takes the place of the one that the probe has. */
static void keep_recording(struct plan_probe *probe, struct recorder *r)
{
    if (probe->n_experts && r->trace.n_visits <= probe->recorded.n_visits)
        return;
    struct recorder old = {.n_experts = probe->n_experts, .visits = probe->visits, .ids = probe->ids};
    probe->recorded = r->trace;
    probe->n_experts = r->n_experts;
    probe->visits = r->visits;
    probe->ids = r->ids;
    r->n_experts = old.n_experts;
    r->visits = old.visits;
    r->ids = old.ids;
}

/* What decoding needs besides the model. */
struct decoder {
    struct plan_probe *probe;
    struct plan_run *run;
    struct ps_session *session;
    struct ps_sampler *greedy;
    struct recorder recorder;
    struct token_source source;
    float *logits;
    uint32_t n_vocab;
    uint32_t ctx;
    uint64_t n_slots;
    double trunk_bytes;
    uint64_t fills; /* experts read so far */
    bool shows;     /* progress on stderr */
};

static void show(const struct decoder *d, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void show(const struct decoder *d, const char *format, ...)
{
    if (!d->shows)
        return;
    va_list args;
    va_start(args, format);
    fputs("\r\033[K", stderr);
    vfprintf(stderr, format, args);
    va_end(args);
}

/* One token as bench decode has it: fed, logits, the best one chosen. */
static enum ps_status decode_one(struct decoder *d, int32_t token, double *seconds, struct ps_error *err)
{
    enum ps_status status;
    int32_t next;
    double start = clock_seconds();
    if ((status = ps_session_feed(d->session, &token, 1, err)) != PS_OK ||
        (status = ps_session_logits(d->session, 0, 1, d->logits, err)) != PS_OK)
        return status;
    status = ps_sampler_pick(d->greedy, d->logits, d->n_vocab, &next, err);
    *seconds = clock_seconds() - start;
    return status;
}

/* What the token before asked of the drive, from the counters around it. */
static struct speed_load load_between(struct decoder *d, const struct ps_stats *before,
                                      const struct ps_stats *after)
{
    uint64_t read = after->expert_misses - before->expert_misses + after->expert_late - before->expert_late;
    uint64_t asked = after->expert_hits - before->expert_hits + read;
    const struct speed_parts *parts = &d->probe->parts;
    double bytes = (double)(after->bytes_demand + after->bytes_speculative - before->bytes_demand -
                            before->bytes_speculative) -
                   d->trunk_bytes;
    double experts = (double)parts->n_layers * parts->top_k;
    struct speed_load load = {.trunk_bytes = d->trunk_bytes};
    if (asked == 0 || experts <= 0)
        return load;
    /* Bytes, not misses: of what was read ahead some was in time, and some in vain. */
    double shards = fmax(bytes, 0) / parts->shard_bytes;
    load.miss_rate = fmin(shards / experts, 1);
    double room = d->n_slots > d->fills ? (double)(d->n_slots - d->fills) : 0;
    load.fresh_rate = fmin(shards, room) / experts;
    d->fills += (uint64_t)shards;
    return load;
}

static enum ps_status decode_tokens(struct decoder *d, uint32_t n, struct ps_error *err)
{
    struct plan_run *run = d->run;
    struct ps_stats before, after;
    enum ps_status status = PS_OK;
    double start = clock_seconds();
    ps_session_stats(d->session, &before);
    d->recorder.on = true;
    for (uint32_t i = 0; i < n; i++) {
        if (i >= LEAST_TOKENS && clock_seconds() - start > DECODE_SECONDS)
            break;
        if (ps_session_position(d->session) == d->ctx)
            ps_session_truncate(d->session, 0);
        d->recorder.token = i;
        struct speed_sample *sample = &run->samples[i];
        if ((status = decode_one(d, d->source.ids[i], &sample->seconds, err)) != PS_OK)
            return status;
        ps_session_stats(d->session, &after);
        sample->load = load_between(d, &before, &after);
        before = after;
        run->n_tokens = i + 1;
        show(d, "decoding: %u tokens", run->n_tokens);
    }
    d->recorder.on = false;
    run->decode_s = clock_seconds() - start;
    struct ps_stats *stats = &d->probe->stats;
    ps_session_stats(d->session, stats);
    uint64_t asked = stats->expert_hits + stats->expert_late + stats->expert_misses;
    run->hit_rate = asked > 0 ? (double)stats->expert_hits / (double)asked : 1;
    return PS_OK;
}

static int by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double median(double *times, uint32_t n)
{
    qsort(times, n, sizeof(*times), by_value);
    return times[n / 2];
}

/* From tokens that read nothing, if there were some. */
static bool compute_of_samples(struct decoder *d)
{
    enum { ENOUGH = 8 };
    double *times = malloc(d->run->n_tokens * sizeof(*times));
    uint32_t n = 0;
    for (uint32_t i = 1; times && i < d->run->n_tokens; i++) {
        if (d->run->samples[i].load.miss_rate <= 0 && d->run->samples[i].load.trunk_bytes <= 0)
            times[n++] = d->run->samples[i].seconds;
    }
    if (n >= ENOUGH)
        d->probe->parts.compute_s = median(times, n);
    free(times);
    return n >= ENOUGH;
}

/* Else the last token again and again: routed the same way, it soon finds all its experts in memory. Where the cache does
 * not hold one token's experts, or the trunk is streamed, waiting is taken off instead. */
static enum ps_status compute_of_repeats(struct decoder *d, struct ps_error *err)
{
    double hit[MOST_REPEATS], other[MOST_REPEATS];
    uint32_t n_hit = 0, n_other = 0;
    struct ps_stats before, after;
    int32_t token = d->source.ids[d->run->n_tokens - 1];
    double start = clock_seconds();
    ps_session_stats(d->session, &before);
    for (uint32_t i = 0; i < MOST_REPEATS; i++) {
        if (i >= LEAST_REPEATS && clock_seconds() - start > REPEAT_SECONDS)
            break;
        double seconds;
        ps_session_truncate(d->session, ps_session_position(d->session) - 1);
        enum ps_status status = decode_one(d, token, &seconds, err);
        if (status != PS_OK)
            return status;
        ps_session_stats(d->session, &after);
        if (d->trunk_bytes > 0 ||
            after.expert_misses + after.expert_late > before.expert_misses + before.expert_late)
            other[n_other++] = fmax(seconds - (after.stall_s - before.stall_s), 0);
        else
            hit[n_hit++] = seconds;
        before = after;
    }
    d->probe->parts.compute_s = n_hit >= LEAST_REPEATS / 2 ? median(hit, n_hit) : median(other, n_other);
    return PS_OK;
}

static enum ps_status decoder_init(struct decoder *d, struct ps_model *model, uint32_t n,
                                   struct ps_error *err)
{
    struct ps_sampler_params sampling;
    const struct ps_plan *plan = ps_model_loaded_plan(model);
    ps_sampler_params_default(&sampling);
    sampling.temp = 0.0f;
    d->n_vocab = ps_model_info(model)->n_vocab;
    d->ctx = plan->ctx;
    d->n_slots = plan->slots;
    d->trunk_bytes = (double)plan->trunk_streamed_bytes;
    d->logits = malloc(d->n_vocab * sizeof(*d->logits));
    d->run->samples = calloc(n, sizeof(*d->run->samples));
    if (!d->logits || !d->run->samples || !recorder_init(&d->recorder, model, n))
        return ps_error_set(err, PS_ERR_NOMEM, "plan: out of memory");
    enum ps_status status = ps_sampler_new(&d->greedy, &sampling, err);
    if (status == PS_OK)
        status = ps_session_new(&d->session, model, err);
    if (status != PS_OK)
        return status;
    ps_session_on_router(d->session, record_choice, &d->recorder);
    ps_session_cancel_on(d->session, cli_interrupt_flag());
    return PS_OK;
}

static enum ps_status measure(struct decoder *d, struct ps_model *model, const struct ps_model_params *params,
                              uint32_t n, struct ps_error *err)
{
    enum ps_status status;
    struct plan_probe *probe = d->probe;
    show(d, "loading the model");
    if ((status = ps_model_load(model, params, err)) != PS_OK)
        return status;
    if (probe->n_runs == 1) {
        show(d, "measuring the drive");
        if ((status = drive_probe(model, DRIVE_SECONDS, cli_interrupt_flag(), &probe->parts, err)) != PS_OK)
            return status;
    }
    if ((status = decoder_init(d, model, n, err)) != PS_OK || (status = decode_tokens(d, n, err)) != PS_OK)
        return status;
    keep_recording(probe, &d->recorder);
    return probe->n_runs > 1 || compute_of_samples(d) ? PS_OK : compute_of_repeats(d, err);
}

bool plan_probe_run(struct plan_probe *probe, struct ps_model *model, uint64_t ram,
                    const struct ps_model_params *params, uint32_t n, int *exit_code)
{
    struct ps_error err;
    struct decoder d = {.probe = probe, .run = &probe->runs[probe->n_runs++], .shows = isatty(STDERR_FILENO)};
    d.run->ram = ram;
    n = n > ENOUGH_TOKENS ? n : ENOUGH_TOKENS;
    cli_catch_interrupt();
    enum ps_status status = PS_ERR_ARGUMENT;
    if (token_source_open(&d.source, "random:1", n, 1, ps_model_info(model)->n_vocab, exit_code)) {
        status = measure(&d, model, params, n, &err);
        show(&d, "%s", "");
        if (status != PS_OK)
            *exit_code = cli_status(&err);
    }
    ps_session_free(d.session);
    ps_sampler_free(d.greedy);
    recorder_deinit(&d.recorder);
    free(d.source.ids);
    free(d.logits);
    return status == PS_OK;
}

/* All but the first token, which takes what the others do and start_s on top. */
void plan_probe_finish(struct plan_probe *probe)
{
    double touch_s = 0;
    for (uint32_t i = 0; i < probe->n_runs; i++) {
        const struct plan_run *run = &probe->runs[i];
        struct speed_fit *fit = &probe->fits[i];
        fit->parts = probe->parts;
        speed_fit_parts(&fit->parts, run->samples + 1, run->n_tokens - 1);
        fit->miss_rate = 0;
        for (uint32_t t = 1; t < run->n_tokens; t++)
            fit->miss_rate += run->samples[t].load.miss_rate / (run->n_tokens - 1);
        struct speed_estimate first = speed_predict(&fit->parts, &run->samples[0].load);
        fit->parts.start_s = fmax(run->samples[0].seconds - first.token_s, 0);
        touch_s = fmax(touch_s, fit->parts.touch_s);
    }
    for (uint32_t i = 0; i < probe->n_runs; i++) {
        probe->fits[i].parts.touch_s = touch_s; /* a small budget has few fresh slots to tell */
        probe->fits[i].parts.start_s = probe->fits[0].parts.start_s; /* later runs find things touched */
    }
}

void plan_probe_deinit(struct plan_probe *probe)
{
    for (uint32_t i = 0; i < probe->n_runs; i++)
        free(probe->runs[i].samples);
    free(probe->n_experts);
    free(probe->visits);
    free(probe->ids);
    *probe = (struct plan_probe){0};
}
