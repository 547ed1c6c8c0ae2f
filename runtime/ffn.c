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

/* Hidden rows [begin, end) of tokens [t0, t0 + n). */
static void ffn_tile(const struct forward *f, const struct ffn_job *job, uint64_t begin, uint64_t end,
                     uint32_t t0, uint32_t n, float *tiles)
{
    const struct ps_model *model = f->model;
    size_t width = end - begin;
    float *gate = tiles;
    float *up = tiles + (size_t)n * width;
    model->matmul->matmul(&job->gate, begin, end, model_act_type(model, &job->gate),
                          (const uint8_t *)job->gate_acts + t0 * job->gate_stride, job->gate_stride, n, gate,
                          width);
    model->matmul->matmul(&job->up, begin, end, model_act_type(model, &job->up),
                          (const uint8_t *)job->up_acts + t0 * job->up_stride, job->up_stride, n, up, width);
    model->ops->swiglu(gate, gate, up, (size_t)n * width);
    enum act_type type = model_act_type(model, &job->down);
    size_t stride = ffn_hidden_stride(f, &job->down);
    for (uint32_t t = 0; t < n; t++)
        act_quantize(model->matmul, type, gate + t * width,
                     job->hidden + (t0 + t) * stride + act_row_bytes(type, begin), width);
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
    float *tiles = f->s.tiles + worker * f->s.tile_floats;
    for (uint32_t t0 = 0; t0 < job->n_tokens; t0 += FFN_TILE_TOKENS) {
        uint32_t n = job->n_tokens - t0 < FFN_TILE_TOKENS ? job->n_tokens - t0 : FFN_TILE_TOKENS;
        ffn_tile(f, job, begin, end, t0, n, tiles);
    }
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
