/* Feed-forward networks: gate and up with their activation in one region, down in a second. The hidden row is
 * rounded for the down product piece by piece, where it is made: activation blocks do not depend on each other. */
#include "runtime/forward_internal.h"

struct ffn_region {
    struct forward *f;
    const struct ffn_job *jobs;
    uint32_t n;
    uint32_t first_chunk[MAX_JOBS + 1];
};

size_t ffn_hidden_stride(const struct forward *f, const struct weight *down)
{
    return act_row_bytes(model_act_type(f->model, down), down->n_cols);
}

/* gpt-oss's constants (its reference implementation's swiglu). */
static const float OAI_ALPHA = 1.702f;
static const float OAI_LIMIT = 7.0f;

/* out = activation(gate, up), n values. */
static void activate(const struct vector_ops *ops, const struct ffn_job *job, float *out, const float *gate,
                     const float *up, size_t n)
{
    switch (job->activation) {
    case FFN_SWIGLU:
        if (job->limit > 0.0f)
            ops->swiglu_limit(out, gate, up, job->limit, n);
        else
            ops->swiglu(out, gate, up, n);
        return;
    case FFN_SWIGLU_CLAMP:
        if (job->limit > 0.0f)
            ops->swiglu_clamp(out, gate, up, job->limit, n);
        else
            ops->swiglu(out, gate, up, n);
        return;
    case FFN_SWIGLU_OAI:
        ops->swiglu_oai(out, gate, up, OAI_ALPHA, OAI_LIMIT, n);
        return;
    case FFN_GEGLU:
        ops->geglu(out, gate, up, n);
        return;
    case FFN_RELU_SQUARED:
        ops->relu_squared(out, up, n);
        return;
    }
}

/* One of the first products: hidden rows [begin, end) of n tokens. */
static void ffn_product(const struct forward *f, const struct weight *w, const void *acts, size_t stride,
                        const float *bias, const float *scale, uint64_t begin, uint64_t end, uint32_t n,
                        float *out)
{
    const struct ps_model *model = f->model;
    size_t width = end - begin;
    model->matmul->matmul(w, begin, end, model_act_type(model, w), acts, stride, n, out, width);
    finish_rows(model->ops, bias, scale, begin, end, n, out, width);
}

/* All of a job's tokens times a strip of n gate and up rows; hidden[t] begins at out + t * FFN_TILE_ROWS. */
static void ffn_strip(const struct forward *f, const struct ffn_job *job, uint64_t begin, uint64_t n,
                      float *strips, float *out)
{
    float *gate = strips;
    float *up = strips + job->n_tokens * n;
    if (job->gate.format)
        ffn_product(f, &job->gate, job->gate_acts, job->gate_stride, job->gate_bias, job->gate_scale, begin,
                    begin + n, job->n_tokens, gate);
    ffn_product(f, &job->up, job->up_acts, job->up_stride, job->up_bias, job->up_scale, begin, begin + n,
                job->n_tokens, up);
    for (uint32_t t = 0; t < job->n_tokens; t++)
        activate(f->model->ops, job, out + (size_t)t * FFN_TILE_ROWS, gate + t * n, up + t * n, n);
}

/* Hidden rows [begin, end). The weights of a row are unpacked in one call, with all tokens: a strip at a time where there
 * are many, so that what stands in between stays in the cache. */
static void ffn_tile(const struct forward *f, const struct ffn_job *job, uint64_t begin, uint64_t end,
                     float *tiles)
{
    float *strips = tiles + (size_t)job->n_tokens * FFN_TILE_ROWS;
    uint64_t strip = ffn_strip_rows(job->n_tokens);
    for (uint64_t row = begin; row < end; row += strip)
        ffn_strip(f, job, row, end - row < strip ? end - row : strip, strips, tiles + (row - begin));
    enum act_type type = model_act_type(f->model, &job->down);
    size_t stride = ffn_hidden_stride(f, &job->down);
    for (uint32_t t = 0; t < job->n_tokens; t++)
        act_quantize(f->model->matmul, type, tiles + (size_t)t * FFN_TILE_ROWS,
                     job->hidden + t * stride + act_row_bytes(type, begin), end - begin);
}

static void ffn_chunk(void *arg, uint32_t chunk, unsigned worker)
{
    const struct ffn_region *region = arg;
    struct forward *f = region->f;
    uint32_t j = 0;
    while (chunk >= region->first_chunk[j + 1])
        j++;
    const struct ffn_job *job = &region->jobs[j];
    uint64_t begin = (uint64_t)(chunk - region->first_chunk[j]) * FFN_TILE_ROWS;
    uint64_t end = begin + FFN_TILE_ROWS < job->up.n_rows ? begin + FFN_TILE_ROWS : job->up.n_rows;
    ffn_tile(f, job, begin, end, f->s.tiles + worker * f->s.tile_floats);
}

void run_ffns(struct forward *f, const struct ffn_job *jobs, uint32_t n)
{
    struct ffn_region region = {.f = f, .jobs = jobs, .n = n};
    struct matmul_job downs[MAX_JOBS];
    for (uint32_t j = 0; j < n; j++) {
        region.first_chunk[j + 1] =
            region.first_chunk[j] + (uint32_t)((jobs[j].up.n_rows + FFN_TILE_ROWS - 1) / FFN_TILE_ROWS);
        downs[j] = (struct matmul_job){.w = &jobs[j].down,
                                       .acts = jobs[j].hidden,
                                       .act_stride = ffn_hidden_stride(f, &jobs[j].down),
                                       .n_tokens = jobs[j].n_tokens,
                                       .out = jobs[j].out,
                                       .out_stride = jobs[j].down.n_rows,
                                       .bias = jobs[j].down_bias,
                                       .scale = jobs[j].down_scale};
    }
    run_region(f, ffn_chunk, &region, region.first_chunk[n]);
    run_matmuls(f, downs, n);
}

void run_chunk_ffn(struct forward *f, struct acts *acts, struct ffn_job job, float *out)
{
    job.n_tokens = acts->n_tokens;
    job.hidden = f->s.ff_hidden;
    job.out = out;
    if (job.gate.format)
        job.gate_acts = acts_for(f, acts, &job.gate, &job.gate_stride);
    job.up_acts = acts_for(f, acts, &job.up, &job.up_stride);
    run_ffns(f, &job, 1);
}

static const float *bias_of(const struct weight *w)
{
    return w->format ? w->data : NULL;
}

void block_dense_ffn(struct forward *f, uint32_t layer, const struct ffn_options *options)
{
    const struct hparams *hp = &f->model->hp;
    const struct weight *w = f->model->layers[layer].w;
    if (!options->input_ready) {
        norm_chunk(f, &w[LT_FFN_NORM], &w[LT_FFN_NORM_BIAS], f->s.x, f->s.normed);
        step_part_done(&f->parts, PS_PART_NORMS);
    }
    struct acts acts = acts_of(f, f->s.normed, hp->n_embd, f->n_tokens, hp->n_embd);
    struct ffn_job job = {.gate = w[LT_FFN_GATE],
                          .up = w[LT_FFN_UP],
                          .down = w[LT_FFN_DOWN],
                          .up_bias = bias_of(&w[LT_FFN_UP_BIAS]),
                          .down_bias = bias_of(&w[LT_FFN_DOWN_BIAS]),
                          .activation = options->activation,
                          .limit = hp->layer[layer].shared_swiglu_limit};
    run_chunk_ffn(f, &acts, job, f->s.branch);
    step_part_done(&f->parts, PS_PART_TRUNK);
    if (!options->keep_branch)
        add_branch(f, f->s.branch, &w[LT_FFN_POST_NORM]);
}
