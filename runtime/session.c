/* Session: one sequence. Feeds tokens through the forward pass in chunks and keeps the last chunk's hidden states, from
 * which logits are made on demand. */
#include <signal.h>
#include <stdlib.h>

#include "runtime/clock.h"
#include "runtime/forward_internal.h"
#include "runtime/machine.h"
#include "runtime/predictor.h"
#include "runtime/trunk.h"
#include "storage/mapping.h"

struct ps_session {
    struct ps_model *model;
    struct kv_cache kv;
    struct forward forward;
    uint8_t *scratch;
    uint64_t scratch_bytes;
    uint32_t n_last; /* tokens whose hidden states are held */
    const volatile sig_atomic_t *cancel;
    double feed_s; /* time in forward passes since the last reset */
    double stall_base_s, predictor_base_s;
    struct io_reader_stats io_base;
    struct trunk_stats trunk_base;
};

static const volatile sig_atomic_t NEVER = 0;

static double predict_seconds(const struct ps_session *session)
{
    const struct predictor *predictor = session->model->predictor;
    return predictor ? predictor_seconds(predictor) : 0.0;
}

static double stall_seconds(const struct ps_session *session)
{
    struct expert_cache_stats cache;
    expert_cache_get_stats(session->model->cache, &cache);
    return cache.stall_s + trunk_get_stats(session->model->trunk).stall_s;
}

enum ps_status ps_session_new(struct ps_session **out, struct ps_model *model, struct ps_error *err)
{
    *out = NULL;
    if (!model->loaded)
        return ps_error_set(err, PS_ERR_ARGUMENT, "session: the model is not loaded");
    if (model->has_session)
        return ps_error_set(err, PS_ERR_ARGUMENT,
                            "session: the memory plan holds one session, and there is one");
    struct ps_session *session = calloc(1, sizeof(*session));
    if (!session)
        return ps_error_set(err, PS_ERR_NOMEM, "session: out of memory");
    session->model = model;
    session->io_base = model->loaded_io;
    session->cancel = &NEVER;
    struct forward *f = &session->forward;
    f->model = model;
    f->kv = &session->kv;
    const struct ps_plan *plan = &model->plan;
    session->scratch_bytes =
        scratch_layout(&f->s, NULL, model, &model->params, plan->chunk, model->params.threads);
    session->scratch = mapping_new(session->scratch_bytes);
    if (!session->scratch ||
        kv_cache_init(&session->kv, &model->hp, (enum kv_type)model->params.kv, plan->ctx, plan->chunk) < 0) {
        uint64_t bytes = session->scratch_bytes + plan->kv;
        mapping_free(session->scratch, session->scratch_bytes);
        free(session);
        return ps_error_set(err, PS_ERR_NOMEM, "session: cannot map %llu bytes", (unsigned long long)bytes);
    }
    scratch_layout(&f->s, session->scratch, model, &model->params, plan->chunk, model->params.threads);
    model->has_session = true;
    *out = session;
    return PS_OK;
}

void ps_session_free(struct ps_session *session)
{
    if (!session)
        return;
    session->model->has_session = false;
    kv_cache_deinit(&session->kv);
    mapping_free(session->scratch, session->scratch_bytes);
    free(session);
}

static enum ps_status check_tokens(const struct ps_session *session, const int32_t *tokens, size_t n,
                                   struct ps_error *err)
{
    uint32_t used = session->kv.n_used;
    uint32_t ctx = session->kv.ctx;
    if (n > ctx - used)
        return ps_error_set(err, PS_ERR_CONTEXT,
                            "prompt: %zu tokens do not fit a context of %u that holds %u: use a larger --ctx",
                            n, ctx, used);
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= session->model->hp.n_vocab)
            return ps_error_set(err, PS_ERR_ARGUMENT, "tokens: id %d is not within the vocabulary of %u",
                                tokens[i], session->model->hp.n_vocab);
    }
    return PS_OK;
}

enum ps_status ps_session_feed(struct ps_session *session, const int32_t *tokens, size_t n_tokens,
                               struct ps_error *err)
{
    enum ps_status status = check_tokens(session, tokens, n_tokens, err);
    double start = clock_seconds();
    size_t done = 0;
    if (session->kv.n_used > 0)
        model_preload_working_set(session->model);
    while (status == PS_OK && done < n_tokens) {
        size_t left = n_tokens - done;
        uint32_t n = left < session->model->plan.chunk ? (uint32_t)left : session->model->plan.chunk;
        session->n_last = 0;
        double chunk_start = clock_seconds();
        status = forward_chunk(&session->forward, tokens + done, n, session->cancel, err);
        session->n_last = status == PS_OK ? n : 0;
        if (status == PS_OK && session->model->predictor)
            prefetch_chunk_done(&session->model->prefetch, n, clock_seconds() - chunk_start);
        done += n;
    }
    session->feed_s += clock_seconds() - start;
    return status;
}

uint32_t ps_session_position(const struct ps_session *session)
{
    return session->kv.n_used;
}

uint32_t ps_session_truncate(struct ps_session *session, uint32_t n_tokens)
{
    if (n_tokens < session->kv.n_used)
        session->n_last = 0;
    return kv_cache_truncate(&session->kv, n_tokens);
}

enum ps_status ps_session_logits(struct ps_session *session, uint32_t back, uint32_t n, float *out,
                                 struct ps_error *err)
{
    if (n == 0 || back >= session->n_last || n > session->n_last - back)
        return ps_error_set(err, PS_ERR_ARGUMENT,
                            "logits: %u tokens before the last %u, but the last chunk held %u", n, back,
                            session->n_last);
    double start = clock_seconds();
    forward_logits(&session->forward, session->n_last - back - n, n, out);
    session->feed_s += clock_seconds() - start;
    return PS_OK;
}

void ps_session_cancel_on(struct ps_session *session, const volatile sig_atomic_t *flag)
{
    session->cancel = flag ? flag : &NEVER;
}

void ps_session_on_router(struct ps_session *session, ps_router_fn *fn, void *ctx)
{
    session->forward.on_router = fn;
    session->forward.router_ctx = ctx;
}

void ps_session_on_prediction(struct ps_session *session, ps_prediction_fn *fn, void *ctx)
{
    session->forward.on_prediction = fn;
    session->forward.prediction_ctx = ctx;
}

enum ps_status ps_session_replay(struct ps_session *session, ps_replay_choice_fn *choose,
                                 ps_replay_prediction_fn *predict, void *ctx, struct ps_error *err)
{
    const struct ps_model_params *params = &session->model->params;
    if (choose && (params->drop_below > 0.0f || params->substitute))
        return ps_error_set(err, PS_ERR_UNSUPPORTED,
                            "replay: experts can be dropped or substituted by the model's own router alone");
    struct forward *f = &session->forward;
    f->replay_choice = choose;
    f->replay_prediction = choose ? predict : NULL;
    f->replay_ctx = ctx;
    return PS_OK;
}

void ps_session_prediction_stats(const struct ps_session *session, struct ps_prediction_stats *stats)
{
    *stats = (struct ps_prediction_stats){0};
    if (session->model->predictor)
        predictor_get_stats(session->model->predictor, stats);
}

bool ps_session_experts(const struct ps_session *session, uint32_t moe_layer, struct ps_expert_state *out)
{
    const struct ps_model *model = session->model;
    for (uint32_t l = 0; l < model->hp.n_layers; l++) {
        if (!model->layers[l].moe || moe_layer-- > 0)
            continue;
        for (uint32_t e = 0; e < model->hp.n_expert; e++)
            out[e] = (struct ps_expert_state){expert_cache_is_resident(model->cache, l, e),
                                              (float)expert_cache_score(model->cache, l, e)};
        return true;
    }
    return false;
}

const char *ps_part_name(enum ps_part part)
{
    static const char *const names[PS_N_PARTS] = {"trunk", "experts", "attention", "router",
                                                  "norms", "sync",    "other"};
    return names[part];
}

void ps_session_stats(const struct ps_session *session, struct ps_stats *stats)
{
    const struct ps_model *model = session->model;
    struct expert_cache_stats cache;
    struct io_reader_stats io;
    expert_cache_get_stats(model->cache, &cache);
    io_reader_get_stats(model->reader, &io);
    double stall = stall_seconds(session) - session->stall_base_s;
    struct trunk_stats trunk = trunk_get_stats(model->trunk);
    *stats = (struct ps_stats){
        .expert_hits = cache.hits,
        .expert_late = cache.late,
        .expert_misses = cache.misses,
        .bytes_demand = io.bytes_demand - session->io_base.bytes_demand,
        .bytes_speculative = io.bytes_speculative - session->io_base.bytes_speculative,
        .bytes_useful = cache.bytes_useful,
        .bytes_late = cache.bytes_late,
        .bytes_wasted = cache.bytes_wasted,
        .bytes_warm = cache.bytes_warm,
        .prefetch_threshold =
            prefetch_wants(&model->prefetch) && model->predictor ? model->prefetch.threshold : 1.0,
        .prefetch_width = model->predictor ? model->prefetch.width : 0.0,
        .predictor_s = predict_seconds(session) - session->predictor_base_s,
        .choices = session->forward.lossy.choices,
        .choices_trimmed = session->forward.lossy.trimmed,
        .choices_dropped = session->forward.lossy.dropped,
        .choices_substituted = session->forward.lossy.substituted,
        .checked = cache.checked + trunk.checked - session->trunk_base.checked,
        .reread_sound = cache.reread_sound + trunk.reread_sound - session->trunk_base.reread_sound,
        .bytes_unpacked = cache.bytes_unpacked,
        .check_s = cache.check_s + trunk.check_s - session->trunk_base.check_s,
        .unpack_s = cache.unpack_s,
        .stall_s = stall,
        .compute_s = session->feed_s > stall ? session->feed_s - stall : 0.0,
        .peak_rss_bytes = machine_peak_rss_bytes(),
        .io_backend = io_reader_backend_name(model->reader),
        .direct = io_reader_is_direct(model->reader),
        .queue_depth = io_reader_queue_depth(model->reader),
        .threads = thread_pool_size(model->pool),
        .threads_reason = model->threads_reason,
        .cpu = cpu_level_name(model->matmul->level),
    };
    /* Stalls fall into PS_PART_OTHER. It is what the others leave, so that the sum is compute_s. */
    double left = stats->compute_s;
    for (int part = 0; part < PS_PART_OTHER; part++) {
        stats->part_s[part] = session->forward.parts.seconds[part];
        left -= stats->part_s[part];
    }
    stats->part_s[PS_PART_OTHER] = left > 0.0 ? left : 0.0;
}

void ps_session_reset_stats(struct ps_session *session)
{
    expert_cache_reset_stats(session->model->cache);
    io_reader_get_stats(session->model->reader, &session->io_base);
    session->trunk_base = trunk_get_stats(session->model->trunk);
    session->stall_base_s = 0.0;
    session->stall_base_s = stall_seconds(session);
    session->predictor_base_s = predict_seconds(session);
    session->feed_s = 0.0;
    session->forward.lossy = (struct lossy_counts){0};
    session->forward.parts = (struct step_parts){0};
}
