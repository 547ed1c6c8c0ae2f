/* Gated feed-forward networks: gate and up with their activation in one region, down in a second. The hidden row is
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

/* All of a job's tokens times a strip of n gate and up rows; hidden[t] begins at out + t * FFN_TILE_ROWS. */
static void ffn_strip(const struct forward *f, const struct ffn_job *job, uint64_t begin, uint64_t n,
                      float *strips, float *out)
{
    const struct ps_model *model = f->model;
    float *gate = strips;
    float *up = strips + job->n_tokens * n;
    model->matmul->matmul(&job->gate, begin, begin + n, model_act_type(model, &job->gate), job->gate_acts,
                          job->gate_stride, job->n_tokens, gate, n);
    model->matmul->matmul(&job->up, begin, begin + n, model_act_type(model, &job->up), job->up_acts,
                          job->up_stride, job->n_tokens, up, n);
    for (uint32_t t = 0; t < job->n_tokens; t++)
        model->ops->swiglu(out + (size_t)t * FFN_TILE_ROWS, gate + t * n, up + t * n, n);
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
    uint64_t end = begin + FFN_TILE_ROWS < job->gate.n_rows ? begin + FFN_TILE_ROWS : job->gate.n_rows;
    ffn_tile(f, job, begin, end, f->s.tiles + worker * f->s.tile_floats);
}

void run_ffns(struct forward *f, const struct ffn_job *jobs, uint32_t n)
{
    struct ffn_region region = {.f = f, .jobs = jobs, .n = n};
    struct matmul_job downs[MAX_JOBS];
    for (uint32_t j = 0; j < n; j++) {
        region.first_chunk[j + 1] =
            region.first_chunk[j] + (uint32_t)((jobs[j].gate.n_rows + FFN_TILE_ROWS - 1) / FFN_TILE_ROWS);
        downs[j] = (struct matmul_job){.w = &jobs[j].down,
                                       .acts = jobs[j].hidden,
                                       .act_stride = ffn_hidden_stride(f, &jobs[j].down),
                                       .n_tokens = jobs[j].n_tokens,
                                       .out = jobs[j].out,
                                       .out_stride = jobs[j].down.n_rows};
    }
    run_region(f, ffn_chunk, &region, region.first_chunk[n]);
    run_matmuls(f, downs, n);
}

void run_chunk_ffn(struct forward *f, struct acts *acts, const struct weight *gate, const struct weight *up,
                   const struct weight *down, float *out)
{
    struct ffn_job job = {.gate = *gate,
                          .up = *up,
                          .down = *down,
                          .n_tokens = acts->n_tokens,
                          .hidden = f->s.ff_hidden,
                          .out = out};
    job.gate_acts = acts_for(f, acts, gate, &job.gate_stride);
    job.up_acts = acts_for(f, acts, up, &job.up_stride);
    run_ffns(f, &job, 1);
}
