/* Mixture-of-experts block: route every token (route.c) of the chunk, then compute expert by expert as they come into memory. Each
 * expert is read at most once per chunk; outputs are kept per (token, rank) and summed in rank order at the end, so
 * the order in which experts arrive leaves no trace in the result. */
#include <math.h>
#include <string.h>

#include "runtime/forward_internal.h"
#include "runtime/predictor.h"
#include "runtime/route.h"

/* Sorts the (token, rank) pairs by expert; returns the number of distinct experts. */
static uint32_t group_by_expert(struct forward *f)
{
    const struct hparams *hp = &f->model->hp;
    uint32_t k = f->model->params.top_k;
    uint32_t n_pairs = f->n_tokens * k;
    uint32_t *start = f->s.expert_start;
    memset(start, 0, (hp->n_expert + 1u) * sizeof(*start));
    for (uint32_t i = 0; i < n_pairs; i++) {
        if (f->s.chosen[i] != LOSSY_NO_EXPERT)
            start[f->s.chosen[i] + 1]++;
    }
    uint32_t n_distinct = 0;
    for (uint32_t e = 0; e < hp->n_expert; e++) {
        if (start[e + 1] > 0)
            f->s.expert_ids[n_distinct++] = e;
        start[e + 1] += start[e];
    }
    for (uint32_t i = 0; i < n_pairs; i++) {
        if (f->s.chosen[i] == LOSSY_NO_EXPERT)
            continue;
        uint32_t row = start[f->s.chosen[i]]++;
        f->s.pair_row[i] = row;
        f->s.row_pair[row] = i;
        f->s.pair_token[row] = i / k;
    }
    /* The fill has moved every start to its expert's end, which is the next one's start. */
    memmove(start + 1, start, hp->n_expert * sizeof(*start));
    start[0] = 0;
    return n_distinct;
}

/* What was recorded in the place of the predictor's guess. */
static void replay_prediction(struct forward *f, uint32_t moe_layer, uint32_t distance, struct prediction *p)
{
    uint32_t n = f->replay_prediction(f->replay_ctx, moe_layer, distance, f->position, f->n_tokens,
                                      &p->experts, &p->probabilities);
    for (p->n = 0; p->n < n && p->experts[p->n] < f->model->hp.n_expert;)
        p->n++;
}

void predict_ahead(struct forward *f, int layer, enum predict_when when)
{
    /* Which MoE layer after the last, and how many MoE blocks short of it the residual stream is. */
    static const struct {
        uint32_t n;
        struct {
            uint32_t step, distance;
        } of[2];
    } targets[] = {[PREDICT_AT_START] = {2, {{1, 0}, {2, 1}}},
                   [PREDICT_AT_ROUTER] = {2, {{1, 1}, {2, 2}}},
                   [PREDICT_AT_END] = {1, {{1, 0}}}};
    struct ps_model *model = f->model;
    bool prefetches = model->params.prefetch == PS_PREFETCH_AUTO && prefetch_wants(&model->prefetch);
    if (!model->predictor || (!prefetches && !f->on_prediction && !model->params.predict))
        return;
    struct prefetch_candidates lists[2];
    uint32_t n = 0;
    bool far = f->on_prediction || model->params.predict || prefetch_wants_far(&model->prefetch);
    for (uint32_t i = 0; i < (far ? targets[when].n : 1); i++) {
        uint32_t step = targets[when].of[i].step;
        uint32_t distance = targets[when].of[i].distance;
        struct prediction p;
        if (!predictor_predict(model->predictor, f, layer, step, distance, &p))
            continue;
        uint32_t target = f->moe_layer + step - 1; /* f->moe_layer has moved past the layer that has chosen */
        if (f->replay_prediction)
            replay_prediction(f, target, distance, &p);
        uint64_t bytes = shard_map_layer(model->shards, p.layer)->slot_bytes;
        lists[n++] = (struct prefetch_candidates){p.layer, p.n, bytes, p.experts, p.probabilities};
        if (f->on_prediction)
            f->on_prediction(f->prediction_ctx, target, distance, f->position, f->n_tokens, p.n, p.experts,
                             p.probabilities);
    }
    if (prefetches && n > 0)
        prefetch_offer(&model->prefetch, lists, n);
}

struct moe_layer {
    struct forward *f;
    struct acts *acts;
    const struct moe_options *options;
    uint32_t layer;
    struct weight gate, up, down; /* shapes; data differs by expert; gate.format NULL: none */
    bool fused;                   /* gate and up rows in one part */
    const struct expert_view *views;
    struct ffn_job jobs[MAX_JOBS];
};

static void moe_layer_init(struct moe_layer *m, struct forward *f, uint32_t layer,
                           const struct moe_options *options, struct acts *acts)
{
    *m = (struct moe_layer){.f = f, .acts = acts, .options = options, .layer = layer};
    m->fused = shard_map_layer(f->model->shards, layer)->slice[SHARD_GATE_UP].present;
    if (m->fused) {
        m->gate = model_expert_weight(f->model, layer, SHARD_GATE_UP);
        m->gate.n_rows /= 2;
        m->up = m->gate;
    } else {
        if (shard_map_layer(f->model->shards, layer)->slice[SHARD_GATE].present)
            m->gate = model_expert_weight(f->model, layer, SHARD_GATE);
        m->up = model_expert_weight(f->model, layer, SHARD_UP);
    }
    m->down = model_expert_weight(f->model, layer, SHARD_DOWN);
}

/* The rows of the tokens that chose an expert side by side, in the form that w takes. */
static const void *pack_rows(struct moe_layer *m, const struct weight *w, uint32_t first, uint32_t n,
                             unsigned worker, size_t *stride)
{
    struct forward *f = m->f;
    const uint8_t *rows = acts_for(f, m->acts, w, stride);
    enum act_type type = model_act_type(f->model, w);
    uint8_t *packed = f->s.packed[type];
    if (m->options->weigh_input) {
        float *weighed = f->s.weighed + (size_t)worker * f->model->hp.n_embd_expert;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t pair = f->s.row_pair[first + i];
            const float *x = m->acts->x + f->s.pair_token[first + i] * m->acts->stride;
            f->model->ops->scale(weighed, x, f->s.weights[pair], f->model->hp.n_embd_expert);
            act_quantize(f->model->matmul, type, weighed, packed + (first + i) * *stride,
                         f->model->hp.n_embd_expert);
        }
        return packed + first * *stride;
    }
    if (f->n_tokens == 1)
        return rows;
    for (uint32_t i = 0; i < n; i++)
        memcpy(packed + (first + i) * *stride, rows + f->s.pair_token[first + i] * *stride, *stride);
    return packed + first * *stride;
}

static const float *part_floats(const struct expert_view *view, enum shard_part part)
{
    return (const float *)(const void *)view->part[part];
}

/* Where the expert's weights, biases and scales lie. */
static void bind_expert(const struct moe_layer *m, const struct expert_view *view, struct ffn_job *job)
{
    *job = (struct ffn_job){.gate = m->gate,
                            .up = m->up,
                            .down = m->down,
                            .activation = m->options->activation,
                            .limit = m->f->model->hp.layer[m->layer].swiglu_limit,
                            .gate_bias = part_floats(view, SHARD_GATE_BIAS),
                            .up_bias = part_floats(view, SHARD_UP_BIAS),
                            .down_bias = part_floats(view, SHARD_DOWN_BIAS),
                            .gate_scale = part_floats(view, SHARD_GATE_SCALE),
                            .up_scale = part_floats(view, SHARD_UP_SCALE),
                            .down_scale = part_floats(view, SHARD_DOWN_SCALE)};
    job->down.data = view->part[SHARD_DOWN];
    if (!m->fused) {
        job->gate.data = view->part[SHARD_GATE];
        job->up.data = view->part[SHARD_UP];
        return;
    }
    job->gate.data = view->part[SHARD_GATE_UP];
    job->up.data = view->part[SHARD_GATE_UP] + m->gate.n_rows * m->gate.row_bytes;
    job->gate_scale = job->up_scale = part_floats(view, SHARD_GATE_UP_SCALE);
    job->gate_bias = part_floats(view, SHARD_GATE_UP_BIAS);
    job->up_bias = job->gate_bias ? job->gate_bias + m->gate.n_rows : NULL;
}

static void make_job(void *arg, uint32_t j, unsigned worker)
{
    struct moe_layer *m = arg;
    struct forward *f = m->f;
    const struct expert_view *view = &m->views[j];
    uint32_t first = f->s.expert_start[view->expert];
    uint32_t n = f->s.expert_start[view->expert + 1] - first;
    struct ffn_job *job = &m->jobs[j];
    bind_expert(m, view, job);
    job->n_tokens = n;
    job->up_acts = pack_rows(m, &m->up, first, n, worker, &job->up_stride);
    if (m->gate.format) {
        bool same_form = model_act_type(f->model, &m->up) == model_act_type(f->model, &m->gate);
        job->gate_stride = job->up_stride;
        job->gate_acts =
            same_form ? job->up_acts : pack_rows(m, &m->gate, first, n, worker, &job->gate_stride);
    }
    job->hidden = f->s.expert_hidden + first * ffn_hidden_stride(f, &m->down);
    job->out = f->s.expert_out + (size_t)first * f->model->hp.n_embd_expert;
}

static void compute_views(struct moe_layer *m, const struct expert_view *views, uint32_t n)
{
    size_t stride;
    m->views = views;
    /* Rounded before the parallel region: acts_for is not for concurrent first use. */
    if (m->gate.format)
        acts_for(m->f, m->acts, &m->gate, &stride);
    acts_for(m->f, m->acts, &m->up, &stride);
    if (m->f->n_tokens == 1) { /* nothing is copied: less than it takes to share the work */
        for (uint32_t j = 0; j < n; j++)
            make_job(m, j, 0);
    } else {
        run_region(m->f, make_job, m, n);
    }
    run_ffns(m->f, m->jobs, n);
}

/* The shared expert and its gate, while the first reads are under way. */
static void compute_shared(struct forward *f, uint32_t layer, const struct moe_options *options,
                           struct acts *acts)
{
    const struct weight *w = f->model->layers[layer].w;
    struct ffn_job shared = {.gate = w[LT_SHARED_GATE],
                             .up = w[LT_SHARED_UP],
                             .down = w[LT_SHARED_DOWN],
                             .activation = options->activation,
                             .limit = f->model->hp.layer[layer].shared_swiglu_limit};
    run_chunk_ffn(f, acts, shared, f->s.branch);
    if (!w[LT_SHARED_ROUTER].format)
        return;
    struct matmul_job job = chunk_job(f, acts, &w[LT_SHARED_ROUTER], NULL, f->s.shared_gate);
    run_matmuls(f, &job, 1);
}

struct sum_args {
    const struct layer *layer;
    const struct moe_options *options;
    float *experts; /* [n_tokens][n_embd_expert] gets their sum, */
    float *out;     /* [n_tokens][n_embd] the whole */
};

static void sum_experts(struct forward *f, uint32_t token, void *arg)
{
    const struct sum_args *a = arg;
    const struct vector_ops *ops = f->model->ops;
    uint32_t k = f->model->params.top_k;
    size_t n = f->model->hp.n_embd_expert;
    const uint32_t *ids = f->s.chosen + (size_t)token * k;
    const uint32_t *rows = f->s.pair_row + (size_t)token * k;
    const float *weights = f->s.weights + (size_t)token * k;
    float *sum = a->experts + token * n;
    bool weighed = a->options->weigh_input;
    if (ids[0] == LOSSY_NO_EXPERT) { /* of a replay: the token has none */
        memset(sum, 0, n * sizeof(*sum));
        return;
    }
    ops->scale(sum, f->s.expert_out + rows[0] * n, weighed ? 1.0f : weights[0], n);
    for (uint32_t i = 1; i < k; i++) {
        if (ids[i] != LOSSY_NO_EXPERT)
            ops->axpy(sum, f->s.expert_out + rows[i] * n, weighed ? 1.0f : weights[i], n);
    }
}

static void add_shared(struct forward *f, uint32_t token, void *arg)
{
    const struct sum_args *a = arg;
    const struct weight *w = a->layer->w;
    const struct vector_ops *ops = f->model->ops;
    size_t n = f->model->hp.n_embd;
    float *sum = a->out + token * n;
    if (w[LT_SHARED_UP].format) {
        float gate = w[LT_SHARED_ROUTER].format ? 1.0f / (1.0f + expf(-f->s.shared_gate[token])) : 1.0f;
        ops->axpy(sum, f->s.branch + token * n, gate, n);
        if (a->options->mean_with_shared)
            ops->scale(sum, sum, 0.5f, n);
    }
}

static void sum_token(struct forward *f, uint32_t token, void *arg)
{
    sum_experts(f, token, arg);
    add_shared(f, token, arg);
}

/* The sum goes to options->out, or into normed: its input is not needed any more. */
static void sum_all(struct forward *f, uint32_t layer, const struct moe_options *options)
{
    const struct weight *up = &f->model->layers[layer].w[LT_LATENT_UP];
    struct sum_args args = {.layer = &f->model->layers[layer], .options = options};
    args.out = args.experts = options->out ? options->out : f->s.normed;
    if (!up->format) {
        for_each_token(f, sum_token, &args);
        return;
    }
    args.experts = f->s.latent;
    for_each_token(f, sum_experts, &args);
    struct acts acts = acts_of(f, f->s.latent, up->n_cols, f->n_tokens, up->n_cols);
    struct matmul_job job = chunk_job(f, &acts, up, NULL, args.out);
    run_matmuls(f, &job, 1);
    for_each_token(f, add_shared, &args);
}

/* acts: of the router's input and the shared expert; expert_acts: of the others, which may take the same. The shared expert is
 * done before the others begin, for both sets of rows are rounded in one place. */
static enum ps_status stream_experts(struct forward *f, uint32_t layer, const struct moe_options *options,
                                     struct acts *acts, struct acts *expert_acts, struct ps_error *err)
{
    struct expert_cache *cache = f->model->cache;
    uint32_t n_distinct = group_by_expert(f);
    struct moe_layer m;
    moe_layer_init(&m, f, layer, options, expert_acts);
    struct expert_set set;
    expert_set_begin(cache, &set, layer, f->s.expert_ids, n_distinct, f->token_clock + f->n_tokens);
    predict_ahead(f, (int)layer, PREDICT_AT_ROUTER);
    if (f->model->layers[layer].w[LT_SHARED_UP].format) {
        step_part_done(&f->parts, PS_PART_OTHER);
        compute_shared(f, layer, options, acts);
        step_part_done(&f->parts, PS_PART_TRUNK);
    }
    /* Few at a time in prefill, so that slots come free for the next reads early. */
    struct expert_view views[MAX_JOBS];
    uint32_t most = f->n_tokens == 1 ? MAX_JOBS : MAX_JOBS / 4;
    uint32_t n;
    while ((n = expert_set_next(cache, &set, views, most)) > 0) {
        step_part_done(&f->parts, PS_PART_OTHER);
        compute_views(&m, views, n);
        step_part_done(&f->parts, PS_PART_EXPERTS);
        expert_set_release(cache, &set, views, n);
    }
    return expert_set_end(cache, &set, err);
}

/* The row that experts take in place of normed, where there is a product for it. */
static struct acts latent_acts(struct forward *f, const struct weight *down, struct acts *acts)
{
    if (!down->format)
        return (struct acts){0};
    struct matmul_job job = chunk_job(f, acts, down, NULL, f->s.latent);
    run_matmuls(f, &job, 1);
    step_part_done(&f->parts, PS_PART_TRUNK);
    return acts_of(f, f->s.latent, down->n_rows, f->n_tokens, down->n_rows);
}

enum ps_status block_moe(struct forward *f, uint32_t layer, const struct moe_options *options,
                         struct ps_error *err)
{
    const struct hparams *hp = &f->model->hp;
    const struct weight *w = f->model->layers[layer].w;
    if (!options->input_ready) {
        norm_chunk(f, &w[LT_FFN_NORM], &w[LT_FFN_NORM_BIAS], f->s.x, f->s.normed);
        step_part_done(&f->parts, PS_PART_NORMS);
    }
    struct acts acts = acts_of(f, f->s.normed, hp->n_embd, f->n_tokens, hp->n_embd);
    struct acts apart = acts_of(f, options->router_input, hp->n_embd, f->n_tokens, hp->n_embd);
    enum ps_status status = route(f, layer, options->router_input ? &apart : &acts, err);
    if (status != PS_OK)
        return status;
    step_part_done(&f->parts, PS_PART_ROUTER);
    if (f->model->predictor)
        predictor_observe(f->model->predictor, f, layer);
    if (lossy_choose(f, layer))
        weigh_again(f);
    struct acts latent = latent_acts(f, &w[LT_LATENT_DOWN], &acts);
    status = stream_experts(f, layer, options, &acts, w[LT_LATENT_DOWN].format ? &latent : &acts, err);
    if (status != PS_OK)
        return status;
    step_part_done(&f->parts, PS_PART_OTHER);
    sum_all(f, layer, options);
    step_part_done(&f->parts, PS_PART_EXPERTS);
    if (options->out)
        return PS_OK;
    add_branch(f, f->s.normed, &w[LT_FFN_POST_NORM]);
    predict_ahead(f, (int)layer, PREDICT_AT_END);
    return PS_OK;
}
