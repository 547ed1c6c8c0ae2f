/* The pass over all layers, and the blocks that every family has: norms, attention, output head. */
#include <string.h>

#include "runtime/forward_internal.h"
#include "runtime/trunk.h"

/* ---- parallel regions ---- */

struct timed_region {
    thread_pool_fn *fn;
    void *arg;
    double caller_done; /* when the calling thread's last chunk was done */
};

static void timed_chunk(void *arg, uint32_t chunk, unsigned worker)
{
    struct timed_region *region = arg;
    region->fn(region->arg, chunk, worker);
    if (worker == 0)
        region->caller_done = clock_seconds();
}

void run_region(struct forward *f, thread_pool_fn *fn, void *arg, uint32_t n_chunks)
{
    struct thread_pool *pool = f->model->pool;
    if (thread_pool_size(pool) == 1) {
        thread_pool_run(pool, fn, arg, n_chunks);
        return;
    }
    struct timed_region region = {.fn = fn, .arg = arg, .caller_done = clock_seconds()};
    thread_pool_run(pool, timed_chunk, &region, n_chunks);
    f->parts.waited += clock_seconds() - region.caller_done;
}

/* ---- activations ---- */

struct acts acts_of(struct forward *f, const float *x, size_t stride, uint32_t n_tokens, uint64_t n_cols)
{
    struct acts acts = {.x = x, .stride = stride, .n_tokens = n_tokens, .n_cols = n_cols};
    memcpy(acts.rounded, f->s.rounded, sizeof(acts.rounded));
    return acts;
}

struct round_args {
    const struct matmul_kernels *kernels;
    struct acts *acts;
    enum act_type type;
};

static void round_token(void *arg, uint32_t token, unsigned worker)
{
    (void)worker;
    const struct round_args *a = arg;
    const struct acts *acts = a->acts;
    act_quantize(a->kernels, a->type, acts->x + token * acts->stride,
                 acts->rounded[a->type] + token * act_row_bytes(a->type, acts->n_cols), acts->n_cols);
}

const void *acts_for(struct forward *f, struct acts *acts, const struct weight *w, size_t *stride)
{
    enum act_type type = model_act_type(f->model, w);
    if (type == ACT_F32) {
        *stride = acts->stride * sizeof(float);
        return acts->x;
    }
    *stride = act_row_bytes(type, acts->n_cols);
    if (!acts->ready[type]) {
        struct round_args args = {.kernels = f->model->matmul, .acts = acts, .type = type};
        run_region(f, round_token, &args, acts->n_tokens);
        acts->ready[type] = true;
    }
    return acts->rounded[type];
}

/* ---- parallel products ---- */

struct matmul_region {
    struct forward *f;
    const struct matmul_job *jobs;
    uint32_t n;
    uint64_t chunk_rows[MAX_JOBS];
    uint32_t first_chunk[MAX_JOBS + 1];
};

static void matmul_chunk(void *arg, uint32_t chunk, unsigned worker)
{
    (void)worker;
    const struct matmul_region *region = arg;
    uint32_t j = 0;
    while (chunk >= region->first_chunk[j + 1])
        j++;
    const struct matmul_job *job = &region->jobs[j];
    uint64_t begin = (chunk - region->first_chunk[j]) * region->chunk_rows[j];
    uint64_t end = begin + region->chunk_rows[j];
    end = end < job->w->n_rows ? end : job->w->n_rows;
    region->f->model->matmul->matmul(job->w, begin, end, model_act_type(region->f->model, job->w), job->acts,
                                     job->act_stride, job->n_tokens, job->out + begin, job->out_stride);
}

/* Rows per work item: a few items per thread and job, so that a slow core takes fewer, but none so small that handing
 * it out costs more than computing it. */
static uint64_t rows_per_chunk(uint64_t n_rows, unsigned threads)
{
    enum { ITEMS_PER_THREAD = 4, MIN_ROWS = 32 };
    uint64_t rows = n_rows / (threads * ITEMS_PER_THREAD);
    rows = (rows + MIN_ROWS - 1) / MIN_ROWS * MIN_ROWS;
    return rows > 0 ? rows : MIN_ROWS;
}

void run_matmuls(struct forward *f, const struct matmul_job *jobs, uint32_t n)
{
    struct matmul_region region = {.f = f, .jobs = jobs, .n = n};
    unsigned threads = thread_pool_size(f->model->pool);
    for (uint32_t j = 0; j < n; j++) {
        uint64_t rows = rows_per_chunk(jobs[j].w->n_rows, threads);
        region.chunk_rows[j] = rows;
        region.first_chunk[j + 1] = region.first_chunk[j] + (uint32_t)((jobs[j].w->n_rows + rows - 1) / rows);
    }
    run_region(f, matmul_chunk, &region, region.first_chunk[n]);
}

static struct matmul_job chunk_job(struct forward *f, struct acts *acts, const struct weight *w, float *out)
{
    struct matmul_job job = {.w = w, .n_tokens = acts->n_tokens, .out = out, .out_stride = w->n_rows};
    job.acts = acts_for(f, acts, w, &job.act_stride);
    return job;
}

/* ---- per-token steps ---- */

struct token_args {
    struct forward *f;
    void (*fn)(struct forward *f, uint32_t token, void *arg);
    void *arg;
};

static void token_chunk(void *arg, uint32_t token, unsigned worker)
{
    (void)worker;
    const struct token_args *a = arg;
    a->fn(a->f, token, a->arg);
}

void for_each_token(struct forward *f, void (*fn)(struct forward *f, uint32_t token, void *arg), void *arg)
{
    struct token_args args = {.f = f, .fn = fn, .arg = arg};
    run_region(f, token_chunk, &args, f->n_tokens);
}

struct norm_args {
    const float *weight, *x;
    float *out;
};

static void norm_token(struct forward *f, uint32_t token, void *arg)
{
    const struct norm_args *a = arg;
    uint64_t at = (uint64_t)token * f->model->hp.n_embd;
    f->model->ops->rms_norm(a->out + at, a->x + at, a->weight, f->model->hp.n_embd, f->model->hp.norm_eps);
}

void norm_chunk(struct forward *f, const struct weight *norm, const float *x, float *out)
{
    struct norm_args args = {.weight = norm->data, .x = x, .out = out};
    for_each_token(f, norm_token, &args);
}

/* ---- attention ---- */

struct qkv_args {
    uint32_t layer;
    const struct attention_options *options;
};

static void norm_heads(const struct forward *f, float *row, uint32_t n_head, uint32_t head_dim,
                       const struct weight *norm, bool whole_row)
{
    if (!norm->format)
        return;
    const struct vector_ops *ops = f->model->ops;
    uint32_t n = whole_row ? 1 : n_head;
    uint32_t width = whole_row ? n_head * head_dim : head_dim;
    for (uint32_t h = 0; h < n; h++)
        ops->rms_norm(row + (size_t)h * width, row + (size_t)h * width, norm->data, width,
                      f->model->hp.norm_eps);
}

static void add_bias(const struct forward *f, float *row, const struct weight *bias)
{
    if (bias->format)
        f->model->ops->add(row, row, bias->data, bias->n_cols);
}

static void store_row(const struct forward *f, uint8_t *cell, const float *row, uint32_t n)
{
    kv_row_store(f->kv->type, f->model->ops, f->model->matmul, cell, row, n);
}

/* Biases, norms and rotation of one token's q and k; k and v go to its cell. */
static void finish_qkv(struct forward *f, uint32_t token, void *arg)
{
    const struct qkv_args *a = arg;
    const struct hparams *hp = &f->model->hp;
    const struct weight *w = f->model->layers[a->layer].w;
    float *q = f->s.q + (size_t)token * hp->n_head * hp->head_dim_k;
    float *k = f->s.k + (size_t)token * hp->n_kv_head * hp->head_dim_k;
    float *v = f->s.v + (size_t)token * hp->n_kv_head * hp->head_dim_v;
    add_bias(f, q, &w[LT_Q_BIAS]);
    add_bias(f, k, &w[LT_K_BIAS]);
    add_bias(f, v, &w[LT_V_BIAS]);
    norm_heads(f, q, hp->n_head, hp->head_dim_k, &w[LT_Q_NORM], a->options->norm_whole_row);
    norm_heads(f, k, hp->n_kv_head, hp->head_dim_k, &w[LT_K_NORM], a->options->norm_whole_row);
    const float *c = f->s.rope_cos + (size_t)token * hp->n_rot / 2;
    const float *s = f->s.rope_sin + (size_t)token * hp->n_rot / 2;
    for (uint32_t h = 0; h < hp->n_head; h++)
        f->model->ops->rope(q + (size_t)h * hp->head_dim_k, c, s, hp->n_rot, a->options->rope_neox);
    uint32_t cell = f->position + token;
    for (uint32_t h = 0; h < hp->n_kv_head; h++) {
        float *head = k + (size_t)h * hp->head_dim_k;
        f->model->ops->rope(head, c, s, hp->n_rot, a->options->rope_neox);
        store_row(f, kv_cache_k(f->kv, a->layer, h) + cell * f->kv->k_row, head, hp->head_dim_k);
        store_row(f, kv_cache_v(f->kv, a->layer, h) + cell * f->kv->v_row, v + (size_t)h * hp->head_dim_v,
                  hp->head_dim_v);
    }
}

struct attend_args {
    struct forward *f;
    struct attention_args args;
    struct attention_work work;
};

static void attend_item(void *arg, uint32_t item, unsigned worker)
{
    const struct attend_args *a = arg;
    a->f->model->attention->item(&a->args, &a->work, item,
                                 a->f->s.attention + worker * a->f->s.attention_floats);
}

static void attend_combine(void *arg, uint32_t index, unsigned worker)
{
    (void)worker;
    const struct attend_args *a = arg;
    a->f->model->attention->combine(&a->args, &a->work, index);
}

static void attend(struct forward *f, uint32_t layer)
{
    const struct hparams *hp = &f->model->hp;
    struct attend_args a = {
        .f = f,
        .args = {.q = f->s.q,
                 .q_stride = (size_t)hp->n_head * hp->head_dim_k,
                 .k = kv_cache_k(f->kv, layer, 0),
                 .v = kv_cache_v(f->kv, layer, 0),
                 .k_head_stride = f->kv->ctx * f->kv->k_row,
                 .v_head_stride = f->kv->ctx * f->kv->v_row,
                 .k_row_stride = f->kv->k_row,
                 .v_row_stride = f->kv->v_row,
                 .type = f->kv->type,
                 .out = f->s.attended,
                 .out_stride = (size_t)hp->n_head * hp->head_dim_v,
                 .pos = f->s.positions,
                 .n_tokens = f->n_tokens,
                 .n_head = hp->n_head,
                 .n_kv_head = hp->n_kv_head,
                 .head_dim_k = hp->head_dim_k,
                 .head_dim_v = hp->head_dim_v,
                 .scale = hp->attention_scale,
                 .partials = f->s.attention_partials},
    };
    a.work = attention_work_of(&a.args);
    run_region(f, attend_item, &a, a.work.n_items);
    run_region(f, attend_combine, &a, a.work.n_combines);
}

static void add_branch(struct forward *f, uint32_t token, void *arg)
{
    const struct weight *bias = arg;
    size_t at = (size_t)token * f->model->hp.n_embd;
    if (bias)
        add_bias(f, f->s.branch + at, bias);
    f->model->ops->add(f->s.x + at, f->s.x + at, f->s.branch + at, f->model->hp.n_embd);
}

void block_attention(struct forward *f, uint32_t layer, const struct attention_options *options)
{
    const struct hparams *hp = &f->model->hp;
    struct weight *w = f->model->layers[layer].w;
    norm_chunk(f, &w[LT_ATTN_NORM], f->s.x, f->s.normed);
    step_part_done(&f->parts, PS_PART_NORMS);
    struct acts acts = acts_of(f, f->s.normed, hp->n_embd, f->n_tokens, hp->n_embd);
    struct matmul_job jobs[3] = {chunk_job(f, &acts, &w[LT_Q], f->s.q), chunk_job(f, &acts, &w[LT_K], f->s.k),
                                 chunk_job(f, &acts, &w[LT_V], f->s.v)};
    run_matmuls(f, jobs, 3);
    step_part_done(&f->parts, PS_PART_TRUNK);
    struct qkv_args args = {.layer = layer, .options = options};
    for_each_token(f, finish_qkv, &args);
    attend(f, layer);
    step_part_done(&f->parts, PS_PART_ATTENTION);
    size_t width = (size_t)hp->n_head * hp->head_dim_v;
    struct acts attended = acts_of(f, f->s.attended, width, f->n_tokens, width);
    struct matmul_job output = chunk_job(f, &attended, &w[LT_ATTN_OUTPUT], f->s.branch);
    run_matmuls(f, &output, 1);
    step_part_done(&f->parts, PS_PART_TRUNK);
    for_each_token(f, add_branch, &w[LT_ATTN_OUTPUT_BIAS]);
    step_part_done(&f->parts, PS_PART_NORMS);
}

void block_dense_ffn(struct forward *f, uint32_t layer)
{
    const struct hparams *hp = &f->model->hp;
    struct weight *w = f->model->layers[layer].w;
    norm_chunk(f, &w[LT_FFN_NORM], f->s.x, f->s.normed);
    step_part_done(&f->parts, PS_PART_NORMS);
    struct acts acts = acts_of(f, f->s.normed, hp->n_embd, f->n_tokens, hp->n_embd);
    run_chunk_ffn(f, &acts, &w[LT_FFN_GATE], &w[LT_FFN_UP], &w[LT_FFN_DOWN], f->s.branch);
    step_part_done(&f->parts, PS_PART_TRUNK);
    for_each_token(f, add_branch, NULL);
    step_part_done(&f->parts, PS_PART_NORMS);
}

bool layer_is_moe(const struct forward *f, uint32_t layer)
{
    return f->model->layers[layer].moe;
}

/* ---- the pass ---- */

static void prepare_token(struct forward *f, uint32_t token, void *arg)
{
    const int32_t *tokens = arg;
    const struct hparams *hp = &f->model->hp;
    const struct weight *embd = &f->model->global[GT_TOKEN_EMBD];
    const uint8_t *row = (const uint8_t *)embd->data + (size_t)tokens[token] * embd->row_bytes;
    embd->format->dequantize(row, f->s.x + (size_t)token * hp->n_embd, hp->n_embd);
    const struct weight *factors = &f->model->global[GT_ROPE_FREQS];
    struct rope_params rope = {.n_rot = hp->n_rot,
                               .freq_base = hp->rope_freq_base,
                               .freq_scale = hp->rope_freq_scale,
                               .ext_factor = hp->rope_ext_factor,
                               .attn_factor = hp->rope_attn_factor,
                               .beta_fast = 32.0f,
                               .beta_slow = 1.0f,
                               .n_ctx_orig = hp->rope_ctx_orig,
                               .freq_factors = factors->format ? factors->data : NULL};
    f->s.positions[token] = (int32_t)(f->position + token);
    rope_cos_sin(&rope, f->s.positions[token], f->s.rope_cos + (size_t)token * hp->n_rot / 2,
                 f->s.rope_sin + (size_t)token * hp->n_rot / 2);
}

enum ps_status forward_chunk(struct forward *f, const int32_t *tokens, uint32_t n,
                             const volatile sig_atomic_t *cancel, struct ps_error *err)
{
    struct ps_model *model = f->model;
    f->n_tokens = n;
    f->position = f->kv->n_used;
    f->moe_layer = 0;
    step_parts_start(&f->parts);
    for_each_token(f, prepare_token, (void *)(uintptr_t)tokens);
    predict_ahead(f, -1, PREDICT_AT_START);
    for (uint32_t il = 0; il < model->hp.n_layers; il++) {
        if (*cancel)
            return ps_error_set(err, PS_ERR_CANCELLED, "cancelled");
        enum ps_status status = trunk_begin_layer(model->trunk, il, err);
        if (status != PS_OK)
            return status;
        step_part_done(&f->parts, PS_PART_OTHER);
        status = model->arch->layer(f, il, err);
        trunk_end_layer(model->trunk, il);
        if (status != PS_OK)
            return status;
    }
    norm_chunk(f, &model->global[GT_OUTPUT_NORM], f->s.x, f->s.hidden);
    step_part_done(&f->parts, PS_PART_NORMS);
    f->kv->n_used += n;
    f->token_clock += n;
    return PS_OK;
}

void forward_logits(struct forward *f, uint32_t first, uint32_t n, float *out)
{
    uint32_t width = f->model->hp.n_embd;
    step_parts_start(&f->parts);
    struct acts acts = acts_of(f, f->s.hidden + (size_t)first * width, width, n, width);
    struct matmul_job job = chunk_job(f, &acts, &f->model->global[GT_OUTPUT], out);
    run_matmuls(f, &job, 1);
    step_part_done(&f->parts, PS_PART_TRUNK);
}
