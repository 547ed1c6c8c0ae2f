/* Mixture-of-experts block: route every token of the chunk, then compute expert by expert as they come into memory. Each
 * expert is read at most once per chunk; outputs are kept per (token, rank) and summed in rank order at the end, so
 * the order in which experts arrive leaves no trace in the result. */
#include <math.h>
#include <string.h>

#include "runtime/forward_internal.h"
#include "runtime/predictor.h"

struct route_args {
    const struct moe_options *options;
};

/* Weights of a token's experts from the router's probabilities. */
static void weigh_token(struct forward *f, uint32_t token, void *arg)
{
    const struct route_args *a = arg;
    const struct hparams *hp = &f->model->hp;
    uint32_t k = f->model->params.top_k;
    const float *probs = f->s.router + (size_t)token * hp->n_expert;
    const uint32_t *ids = f->s.chosen + (size_t)token * k;
    float *weights = f->s.weights + (size_t)token * k;
    float sum = 0.0f;
    for (uint32_t i = 0; i < k; i++) {
        weights[i] = ids[i] == LOSSY_NO_EXPERT ? 0.0f : probs[ids[i]];
        sum += weights[i];
    }
    /* The least normal F16: llama.cpp's guard against a division by zero. */
    float divisor = a->options->renormalize ? fmaxf(sum, 6.103515625e-5f) : 1.0f;
    float scale = hp->expert_weights_scale != 0.0f ? hp->expert_weights_scale : 1.0f;
    for (uint32_t i = 0; i < k; i++)
        weights[i] = weights[i] / divisor * scale;
}

/* Router logits of one token -> its experts and weights, best first. */
static void route_token(struct forward *f, uint32_t token, void *arg)
{
    const struct hparams *hp = &f->model->hp;
    uint32_t k = f->model->params.top_k;
    float *probs = f->s.router + (size_t)token * hp->n_expert;
    f->model->ops->softmax(probs, probs, hp->n_expert);
    top_k(f->s.chosen + (size_t)token * k, k, probs, hp->n_expert);
    weigh_token(f, token, arg);
}

static void route(struct forward *f, uint32_t layer, const struct moe_options *options, struct acts *acts)
{
    const struct hparams *hp = &f->model->hp;
    const struct weight *router = &f->model->layers[layer].w[LT_ROUTER];
    struct matmul_job job = {
        .w = router, .n_tokens = f->n_tokens, .out = f->s.router, .out_stride = hp->n_expert};
    job.acts = acts_for(f, acts, router, &job.act_stride);
    run_matmuls(f, &job, 1);
    struct route_args args = {.options = options};
    for_each_token(f, route_token, &args);
    if (f->on_router)
        f->on_router(f->router_ctx, f->moe_layer, f->position, f->n_tokens, f->model->params.top_k,
                     f->s.chosen, f->s.weights);
    f->moe_layer++;
}

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
        f->s.pair_token[row] = i / k;
    }
    /* The fill has moved every start to its expert's end, which is the next one's start. */
    memmove(start + 1, start, hp->n_expert * sizeof(*start));
    start[0] = 0;
    return n_distinct;
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
        uint64_t bytes = shard_map_layer(model->shards, p.layer)->slot_bytes;
        lists[n++] = (struct prefetch_candidates){p.layer, p.n, bytes, p.experts, p.probabilities};
        if (f->on_prediction) /* f->moe_layer has moved past the layer that has chosen */
            f->on_prediction(f->prediction_ctx, f->moe_layer + step - 1, distance, f->position, f->n_tokens,
                             p.n, p.experts, p.probabilities);
    }
    if (prefetches && n > 0)
        prefetch_offer(&model->prefetch, lists, n);
}

struct moe_layer {
    struct forward *f;
    struct acts *acts;
    struct weight gate, up, down; /* shapes; data differs by expert */
    bool fused;                   /* gate and up rows in one part */
    const struct expert_view *views;
    struct ffn_job jobs[MAX_JOBS];
};

static void moe_layer_init(struct moe_layer *m, struct forward *f, uint32_t layer, struct acts *acts)
{
    *m = (struct moe_layer){.f = f, .acts = acts};
    m->fused = shard_map_layer(f->model->shards, layer)->slice[SHARD_GATE_UP].present;
    if (m->fused) {
        m->gate = model_expert_weight(f->model, layer, SHARD_GATE_UP);
        m->gate.n_rows /= 2;
        m->up = m->gate;
    } else {
        m->gate = model_expert_weight(f->model, layer, SHARD_GATE);
        m->up = model_expert_weight(f->model, layer, SHARD_UP);
    }
    m->down = model_expert_weight(f->model, layer, SHARD_DOWN);
}

/* Copies the rows of the tokens that chose an expert side by side, in the form that w takes. */
static const void *pack_rows(struct moe_layer *m, const struct weight *w, uint32_t first, uint32_t n,
                             size_t *stride)
{
    struct forward *f = m->f;
    const uint8_t *rows = acts_for(f, m->acts, w, stride);
    if (f->n_tokens == 1)
        return rows;
    uint8_t *packed = f->s.packed[model_act_type(f->model, w)];
    for (uint32_t i = 0; i < n; i++)
        memcpy(packed + (first + i) * *stride, rows + f->s.pair_token[first + i] * *stride, *stride);
    return packed + first * *stride;
}

static void make_job(void *arg, uint32_t j, unsigned worker)
{
    (void)worker;
    struct moe_layer *m = arg;
    struct forward *f = m->f;
    const struct expert_view *view = &m->views[j];
    uint32_t first = f->s.expert_start[view->expert];
    uint32_t n = f->s.expert_start[view->expert + 1] - first;
    struct ffn_job *job = &m->jobs[j];
    *job = (struct ffn_job){.gate = m->gate, .up = m->up, .down = m->down, .n_tokens = n};
    if (m->fused) {
        job->gate.data = view->part[SHARD_GATE_UP];
        job->up.data = view->part[SHARD_GATE_UP] + m->gate.n_rows * m->gate.row_bytes;
    } else {
        job->gate.data = view->part[SHARD_GATE];
        job->up.data = view->part[SHARD_UP];
    }
    job->down.data = view->part[SHARD_DOWN];
    job->gate_acts = pack_rows(m, &m->gate, first, n, &job->gate_stride);
    bool same_form = model_act_type(f->model, &m->up) == model_act_type(f->model, &m->gate);
    job->up_stride = job->gate_stride;
    job->up_acts = same_form ? job->gate_acts : pack_rows(m, &m->up, first, n, &job->up_stride);
    job->hidden = f->s.expert_hidden + first * ffn_hidden_stride(f, &m->down);
    job->out = f->s.expert_out + (size_t)first * f->model->hp.n_embd;
}

static void compute_views(struct moe_layer *m, const struct expert_view *views, uint32_t n)
{
    size_t stride;
    m->views = views;
    /* Rounded before the parallel region: acts_for is not for concurrent first use. */
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
static void compute_shared(struct forward *f, uint32_t layer, struct acts *acts)
{
    const struct weight *w = f->model->layers[layer].w;
    run_chunk_ffn(f, acts, &w[LT_SHARED_GATE], &w[LT_SHARED_UP], &w[LT_SHARED_DOWN], f->s.branch);
    if (!w[LT_SHARED_ROUTER].format)
        return;
    struct matmul_job job = {
        .w = &w[LT_SHARED_ROUTER], .n_tokens = f->n_tokens, .out = f->s.shared_gate, .out_stride = 1};
    job.acts = acts_for(f, acts, job.w, &job.act_stride);
    run_matmuls(f, &job, 1);
}

static void sum_token(struct forward *f, uint32_t token, void *arg)
{
    const struct layer *layer = arg;
    const struct vector_ops *ops = f->model->ops;
    uint32_t k = f->model->params.top_k;
    size_t n = f->model->hp.n_embd;
    const uint32_t *ids = f->s.chosen + (size_t)token * k;
    const uint32_t *rows = f->s.pair_row + (size_t)token * k;
    const float *weights = f->s.weights + (size_t)token * k;
    float *sum = f->s.normed + token * n; /* its input is not needed any more */
    ops->scale(sum, f->s.expert_out + rows[0] * n, weights[0], n);
    for (uint32_t i = 1; i < k; i++) {
        if (ids[i] != LOSSY_NO_EXPERT)
            ops->axpy(sum, f->s.expert_out + rows[i] * n, weights[i], n);
    }
    if (layer->w[LT_SHARED_UP].format) {
        float gate =
            layer->w[LT_SHARED_ROUTER].format ? 1.0f / (1.0f + expf(-f->s.shared_gate[token])) : 1.0f;
        ops->axpy(sum, f->s.branch + token * n, gate, n);
    }
    ops->add(f->s.x + token * n, f->s.x + token * n, sum, n);
}

static enum ps_status stream_experts(struct forward *f, uint32_t layer, struct acts *acts,
                                     struct ps_error *err)
{
    struct expert_cache *cache = f->model->cache;
    uint32_t n_distinct = group_by_expert(f);
    struct moe_layer m;
    moe_layer_init(&m, f, layer, acts);
    struct expert_set set;
    expert_set_begin(cache, &set, layer, f->s.expert_ids, n_distinct, f->token_clock + f->n_tokens);
    predict_ahead(f, (int)layer, PREDICT_AT_ROUTER);
    if (f->model->layers[layer].w[LT_SHARED_UP].format) {
        step_part_done(&f->parts, PS_PART_OTHER);
        compute_shared(f, layer, acts);
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

enum ps_status block_moe(struct forward *f, uint32_t layer, const struct moe_options *options,
                         struct ps_error *err)
{
    const struct hparams *hp = &f->model->hp;
    norm_chunk(f, &f->model->layers[layer].w[LT_FFN_NORM], f->s.x, f->s.normed);
    step_part_done(&f->parts, PS_PART_NORMS);
    struct acts acts = acts_of(f, f->s.normed, hp->n_embd, f->n_tokens, hp->n_embd);
    route(f, layer, options, &acts);
    step_part_done(&f->parts, PS_PART_ROUTER);
    if (f->model->predictor)
        predictor_observe(f->model->predictor, f, layer);
    if (lossy_choose(f, layer))
        for_each_token(f, weigh_token, &(struct route_args){.options = options});
    enum ps_status status = stream_experts(f, layer, &acts, err);
    if (status != PS_OK)
        return status;
    step_part_done(&f->parts, PS_PART_OTHER);
    for_each_token(f, sum_token, &f->model->layers[layer]);
    step_part_done(&f->parts, PS_PART_EXPERTS);
    predict_ahead(f, (int)layer, PREDICT_AT_END);
    return PS_OK;
}
