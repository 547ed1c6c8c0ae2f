#include "runtime/block_gated_streams.h"

#include <math.h>

#include "runtime/block_hyper.h"

uint64_t dim_low_rank(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->hyper.low_rank;
}

/* The normed streams, their gates, and the row of low rank. */
uint64_t gated_streams_mixer(const struct hparams *hp)
{
    return 2 * dim_all_streams(hp, NULL) + dim_low_rank(hp, NULL);
}

uint64_t gated_streams_kept(const struct hparams *hp)
{
    return hp->n_streams;
}

struct stream_args {
    const struct weight *norm, *down, *up, *inject; /* inject NULL: the streams end here */
    float *out;
    const float *output;
};

struct rows {
    float *normed, *gates, *low, *weights;
};

static struct rows rows_of(const struct forward *f, uint32_t token)
{
    const struct hparams *hp = &f->model->hp;
    size_t all = dim_all_streams(hp, NULL);
    float *row = f->s.mixer + (size_t)token * hp->mixer_floats;
    return (struct rows){.normed = row,
                         .gates = row + all,
                         .low = row + 2 * all,
                         .weights = row + hp->mixer_floats - gated_streams_kept(hp)};
}

static void norm_streams(struct forward *f, uint32_t token, void *arg)
{
    const struct stream_args *a = arg;
    const struct hparams *hp = &f->model->hp;
    const float *x = f->s.x + (size_t)token * hp->n_streams * hp->n_embd;
    float *room = f->s.branch + (size_t)token * hp->n_embd;
    struct rows rows = rows_of(f, token);
    for (uint32_t s = 0; s < hp->n_streams; s++)
        f->model->ops->rms_norm(rows.normed + (size_t)s * hp->n_embd, x + (size_t)s * hp->n_embd,
                                weight_row_floats(a->norm, s, room), hp->n_embd, hp->norm_eps);
}

static void activate_low(struct forward *f, uint32_t token, void *arg)
{
    (void)arg;
    const struct hparams *hp = &f->model->hp;
    const struct vector_ops *ops = f->model->ops;
    struct rows rows = rows_of(f, token);
    ops->scale(rows.low, rows.low, 1.0f / (float)hp->n_streams, hp->hyper.low_rank);
    ops->sigmoid(rows.gates, rows.low, hp->hyper.low_rank);
    ops->mul(rows.low, rows.low, rows.gates, hp->hyper.low_rank);
}

static void sum_gated(struct forward *f, uint32_t token, void *arg)
{
    const struct stream_args *a = arg;
    const struct hparams *hp = &f->model->hp;
    const struct vector_ops *ops = f->model->ops;
    size_t all = dim_all_streams(hp, NULL);
    struct rows rows = rows_of(f, token);
    float *out = a->out + (size_t)token * hp->n_embd;
    ops->sigmoid(rows.gates, rows.gates, all);
    ops->mul(rows.gates, rows.gates, rows.normed, all);
    ops->scale(out, rows.gates, 1.0f, hp->n_embd);
    for (uint32_t s = 1; s < hp->n_streams; s++)
        ops->add(out, out, rows.gates + (size_t)s * hp->n_embd, hp->n_embd);
    ops->scale(out, out, 1.0f / (float)hp->n_streams, hp->n_embd);
}

static struct matmul_job mixer_job(struct forward *f, struct acts *acts, const struct weight *w, float *out)
{
    struct matmul_job job = chunk_job(f, acts, w, NULL, out);
    job.out_stride = f->model->hp.mixer_floats;
    return job;
}

static void mix(struct forward *f, const struct stream_args *a)
{
    const struct hparams *hp = &f->model->hp;
    struct rows first = rows_of(f, 0);
    struct matmul_job jobs[2];
    for_each_token(f, norm_streams, (void *)(uintptr_t)a);
    step_part_done(&f->parts, PS_PART_NORMS);
    struct acts normed = acts_of(f, first.normed, hp->mixer_floats, f->n_tokens, dim_all_streams(hp, NULL));
    jobs[0] = mixer_job(f, &normed, a->down, first.low);
    if (a->inject)
        jobs[1] = mixer_job(f, &normed, a->inject, first.weights);
    run_matmuls(f, jobs, a->inject ? 2 : 1);
    for_each_token(f, activate_low, NULL);
    struct acts low = acts_of(f, first.low, hp->mixer_floats, f->n_tokens, hp->hyper.low_rank);
    jobs[0] = mixer_job(f, &low, a->up, first.gates);
    run_matmuls(f, jobs, 1);
    step_part_done(&f->parts, PS_PART_TRUNK);
    for_each_token(f, sum_gated, (void *)(uintptr_t)a);
    step_part_done(&f->parts, PS_PART_NORMS);
}

void gated_streams_begin(struct forward *f, uint32_t layer, enum branch branch)
{
    const struct weight *w = f->model->layers[layer].w;
    bool attention = branch == BRANCH_ATTENTION;
    struct stream_args args = {.norm = &w[attention ? LT_HC_ATTN_NORM : LT_HC_FFN_NORM],
                               .down = &w[attention ? LT_HC_ATTN_DOWN : LT_HC_FFN_DOWN],
                               .up = &w[attention ? LT_HC_ATTN_UP : LT_HC_FFN_UP],
                               .inject = &w[attention ? LT_HC_ATTN_INJECT : LT_HC_FFN_INJECT],
                               .out = f->s.normed};
    mix(f, &args);
}

static void add_output(struct forward *f, uint32_t token, void *arg)
{
    const struct stream_args *a = arg;
    const struct hparams *hp = &f->model->hp;
    struct rows rows = rows_of(f, token);
    float *x = f->s.x + (size_t)token * hp->n_streams * hp->n_embd;
    for (uint32_t s = 0; s < hp->n_streams; s++) {
        float weight = 2.0f / (1.0f + expf(-rows.weights[s] / (float)hp->n_streams));
        f->model->ops->axpy(x + (size_t)s * hp->n_embd, a->output + (size_t)token * hp->n_embd, weight,
                            hp->n_embd);
    }
}

void gated_streams_end(struct forward *f, const float *output)
{
    struct stream_args args = {.output = output};
    for_each_token(f, add_output, &args);
    step_part_done(&f->parts, PS_PART_NORMS);
}

void gated_streams_output(struct forward *f)
{
    const struct weight *w = f->model->global;
    struct stream_args args = {.norm = &w[GT_OUTPUT_NORM],
                               .down = &w[GT_OUTPUT_HC_DOWN],
                               .up = &w[GT_OUTPUT_HC_UP],
                               .out = f->s.hidden};
    mix(f, &args);
}
