/* The pass over all layers, and what every block needs: parallel regions, activations in their rounded forms, norms. */
#include <math.h>
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

const float *weight_row_floats(const struct weight *w, uint64_t row, float *room)
{
    const void *data = (const uint8_t *)w->data + row * w->row_bytes;
    if (w->format->type == BLOCK_F32)
        return data;
    w->format->dequantize(data, room, w->n_cols);
    return room;
}

/* ---- parallel products ---- */

struct matmul_region {
    struct forward *f;
    const struct matmul_job *jobs;
    uint32_t n;
    uint64_t chunk_rows[MAX_JOBS];
    uint32_t first_chunk[MAX_JOBS + 1];
};

void finish_rows(const struct vector_ops *ops, const float *bias, const float *scale, uint64_t begin,
                 uint64_t end, uint32_t n_tokens, float *out, size_t out_stride)
{
    for (uint32_t t = 0; t < n_tokens; t++) {
        float *row = out + t * out_stride;
        if (scale)
            ops->scale(row, row, *scale, end - begin);
        if (bias)
            ops->add(row, row, bias + begin, end - begin);
    }
}

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
    const struct ps_model *model = region->f->model;
    model->matmul->matmul(job->w, begin, end, model_act_type(model, job->w), job->acts, job->act_stride,
                          job->n_tokens, job->out + begin, job->out_stride);
    finish_rows(model->ops, job->bias, job->scale, begin, end, job->n_tokens, job->out + begin,
                job->out_stride);
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

struct matmul_job chunk_job(struct forward *f, struct acts *acts, const struct weight *w,
                            const struct weight *bias, float *out)
{
    struct matmul_job job = {.w = w, .n_tokens = acts->n_tokens, .out = out, .out_stride = w->n_rows};
    job.bias = bias && bias->format ? bias->data : NULL;
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
    const float *weight, *bias, *x;
    float *out;
};

void norm_row(const struct ps_model *model, const float *weight, const float *bias, const float *x,
              float *out)
{
    const struct hparams *hp = &model->hp;
    if (hp->norm_kind == NORM_LAYER) {
        model->ops->layer_norm(out, x, weight, bias, hp->n_embd, hp->norm_eps);
        return;
    }
    model->ops->rms_norm(out, x, weight, hp->n_embd, hp->norm_eps);
    if (bias)
        model->ops->add(out, out, bias, hp->n_embd);
}

static void norm_token(struct forward *f, uint32_t token, void *arg)
{
    const struct norm_args *a = arg;
    uint64_t at = (uint64_t)token * f->model->hp.n_embd;
    norm_row(f->model, a->weight, a->bias, a->x + at, a->out + at);
}

void norm_chunk(struct forward *f, const struct weight *weight, const struct weight *bias, const float *x,
                float *out)
{
    struct norm_args args = {
        .weight = weight->data, .bias = bias->format ? bias->data : NULL, .x = x, .out = out};
    for_each_token(f, norm_token, &args);
}

/* ---- the residual stream ---- */

struct add_args {
    const struct weight *norm;
    float *branch;
};

static void add_token(struct forward *f, uint32_t token, void *arg)
{
    const struct add_args *a = arg;
    const struct hparams *hp = &f->model->hp;
    const struct vector_ops *ops = f->model->ops;
    float *branch = a->branch + (size_t)token * hp->n_embd;
    float *x = f->s.x + (size_t)token * hp->n_embd;
    if (a->norm->format)
        ops->rms_norm(branch, branch, a->norm->data, hp->n_embd, hp->norm_eps);
    if (hp->residual_scale == 1.0f)
        ops->add(x, x, branch, hp->n_embd);
    else
        ops->axpy(x, branch, hp->residual_scale, hp->n_embd);
}

void add_branch(struct forward *f, float *branch, const struct weight *norm)
{
    struct add_args args = {.norm = norm, .branch = branch};
    for_each_token(f, add_token, &args);
    step_part_done(&f->parts, PS_PART_NORMS);
}

const struct hparams *hparams_of(const struct forward *f)
{
    return &f->model->hp;
}

bool layer_is_moe(const struct forward *f, uint32_t layer)
{
    return f->model->layers[layer].moe;
}

bool layer_attends(const struct forward *f, uint32_t layer)
{
    return !layer_is_recurrent(f, layer) && f->model->hp.layer[layer].n_kv_head > 0;
}

bool layer_is_recurrent(const struct forward *f, uint32_t layer)
{
    return f->model->hp.layer[layer].recurrent;
}

enum ps_status block_ffn(struct forward *f, uint32_t layer, enum ffn_activation activation,
                         struct ps_error *err)
{
    if (layer_is_moe(f, layer))
        return block_moe(f, layer, &(struct moe_options){.activation = activation}, err);
    block_dense_ffn(f, layer, &(struct ffn_options){.activation = activation});
    return PS_OK;
}

/* ---- the pass ---- */

/* Divisors of a rotation's frequencies: of longrope, long ones for contexts that are longer than those of the training. */
static const float *rope_factors(const struct ps_model *model, const struct rope_hparams *rope)
{
    bool longer = model->params.ctx > rope->ctx_orig;
    const struct weight *by_length = &model->global[longer ? GT_ROPE_FACTORS_LONG : GT_ROPE_FACTORS_SHORT];
    const struct weight *factors = by_length->format ? by_length : &model->global[GT_ROPE_FREQS];
    return rope->factors && factors->format ? factors->data : NULL;
}

/* Sections of a rotation that no axis of a text moves along. */
static void hold_pairs(const struct rope_hparams *rope, const struct rope_params *params, float *cosine,
                       float *sine)
{
    float magnitude = params->attn_factor;
    if (params->ext_factor != 0.0f)
        magnitude *= 1.0f - 0.1f * logf(params->freq_scale);
    for (uint32_t pair = 0; rope->section_pairs > 0 && pair < rope->n_rot / 2; pair++) {
        uint32_t place = pair % rope->section_pairs;
        if (place < 3 * rope->section[place % 3])
            continue;
        cosine[pair] = magnitude;
        sine[pair] = 0.0f;
    }
}

void rope_angles(const struct forward *f, uint32_t index, uint32_t position, float *cosines, float *sines)
{
    const struct rope_hparams *rope = &f->model->hp.rope[index];
    struct rope_params params = {.n_rot = rope->n_rot,
                                 .freq_base = rope->freq_base,
                                 .freq_scale = rope->freq_scale,
                                 .ext_factor = rope->ext_factor,
                                 .attn_factor = rope->attn_factor,
                                 .beta_fast = 32.0f,
                                 .beta_slow = 1.0f,
                                 .n_ctx_orig = rope->ctx_orig,
                                 .freq_factors = rope_factors(f->model, rope)};
    rope_cos_sin(&params, (int32_t)position, cosines, sines);
    hold_pairs(rope, &params, cosines, sines);
}

static void rotate_position(struct forward *f, uint32_t token, uint32_t index)
{
    size_t at = (size_t)token * f->model->hp.rope[index].n_rot / 2;
    rope_angles(f, index, f->position + token, f->s.rope_cos[index] + at, f->s.rope_sin[index] + at);
}

static void prepare_token(struct forward *f, uint32_t token, void *arg)
{
    const int32_t *tokens = arg;
    const struct hparams *hp = &f->model->hp;
    const struct weight *embd = &f->model->global[GT_TOKEN_EMBD];
    const uint8_t *row = (const uint8_t *)embd->data + (size_t)tokens[token] * embd->row_bytes;
    float *x = f->s.x + (size_t)token * hp->n_streams * hp->n_embd;
    embd->format->dequantize(row, x, hp->n_embd);
    if (hp->embedding_scale != 1.0f)
        f->model->ops->scale(x, x, hp->embedding_scale, hp->n_embd);
    for (uint32_t stream = 1; stream < hp->n_streams; stream++)
        memcpy(x + (size_t)stream * hp->n_embd, x, hp->n_embd * sizeof(*x));
    f->s.positions[token] = (int32_t)(f->position + token);
    for (uint32_t i = 0; i < hp->n_ropes; i++)
        rotate_position(f, token, i);
}

static enum ps_status cancelled(struct ps_error *err)
{
    return ps_error_set(err, PS_ERR_CANCELLED, "cancelled");
}

static enum ps_status run_layers(struct forward *f, const volatile sig_atomic_t *cancel, struct ps_error *err)
{
    struct ps_model *model = f->model;
    for (uint32_t il = 0; il < model->hp.n_layers; il++) {
        if (*cancel)
            return cancelled(err);
        enum ps_status status = trunk_begin_layer(model->trunk, il, err);
        if (status != PS_OK)
            return status;
        step_part_done(&f->parts, PS_PART_OTHER);
        status = model->arch->layer(f, il, err);
        trunk_end_layer(model->trunk, il);
        if (status != PS_OK)
            return status;
    }
    return PS_OK;
}

enum ps_status forward_chunk(struct forward *f, const int32_t *tokens, uint32_t n,
                             const volatile sig_atomic_t *cancel, struct ps_error *err)
{
    struct ps_model *model = f->model;
    if (*cancel)
        return cancelled(err);
    f->n_tokens = n;
    f->position = f->kv->n_used;
    f->tokens = tokens;
    f->moe_layer = 0;
    kv_cache_make_room(f->kv, n);
    step_parts_start(&f->parts);
    for_each_token(f, prepare_token, (void *)(uintptr_t)tokens);
    predict_ahead(f, -1, PREDICT_AT_START);
    enum ps_status status = run_layers(f, cancel, err);
    if (status != PS_OK) {
        kv_cache_chunk_failed(f->kv);
        return status;
    }
    if (model->arch->end)
        model->arch->end(f);
    else
        norm_chunk(f, &model->global[GT_OUTPUT_NORM], &model->global[GT_OUTPUT_NORM_BIAS], f->s.x,
                   f->s.hidden);
    step_part_done(&f->parts, PS_PART_NORMS);
    f->kv->n_used += n;
    f->token_clock += n;
    return PS_OK;
}

static void finish_logits(const struct ps_model *model, float *row)
{
    const struct hparams *hp = &model->hp;
    if (hp->logit_scale != 1.0f)
        model->ops->scale(row, row, hp->logit_scale, hp->n_vocab);
    if (hp->logit_softcap == 0.0f)
        return;
    for (uint32_t i = 0; i < hp->n_vocab; i++)
        row[i] = hp->logit_softcap * tanhf(row[i] / hp->logit_softcap);
}

void forward_logits(struct forward *f, uint32_t first, uint32_t n, float *out)
{
    const struct hparams *hp = &f->model->hp;
    uint32_t width = hp->n_embd;
    const struct weight *w = f->model->global;
    step_parts_start(&f->parts);
    struct acts acts = acts_of(f, f->s.hidden + (size_t)first * width, width, n, width);
    struct matmul_job job = chunk_job(f, &acts, &w[GT_OUTPUT], &w[GT_OUTPUT_BIAS], out);
    run_matmuls(f, &job, 1);
    for (uint32_t t = 0; t < n; t++)
        finish_logits(f->model, out + (size_t)t * hp->n_vocab);
    step_part_done(&f->parts, PS_PART_TRUNK);
}
