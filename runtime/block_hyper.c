#include "runtime/block_hyper.h"

#include <math.h>
#include <string.h>

uint64_t dim_streams(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->n_streams;
}

uint64_t dim_all_streams(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return (uint64_t)hp->n_streams * hp->n_embd;
}

/* Weights of the streams in the input, of the output in the streams, and of each stream in each. */
uint64_t dim_hyper_mixes(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return (2ull + hp->n_streams) * hp->n_streams;
}

struct hyper_args {
    const struct weight *fn;
    const float *scale; /* of input, output and mixing */
    const float *base;  /* one per coefficient */
    const float *norm;
    float *out;
    const float *branch;
};

static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

/* ---- coefficients ---- */

/* Makes rows and columns of a positive matrix sum to one, nearly, by turns: columns first and last. */
static void normalize(const struct hyper_hparams *hyper, float *m, uint32_t n)
{
    for (uint32_t pass = 0; pass + 1 < 2 * hyper->iterations || pass == 0; pass++) {
        size_t line = pass % 2 == 0 ? 1 : n;    /* from one line to the next */
        size_t element = pass % 2 == 0 ? n : 1; /* within a line */
        for (uint32_t i = 0; i < n; i++) {
            float sum = 0.0f;
            for (uint32_t j = 0; j < n; j++)
                sum += m[i * line + j * element];
            for (uint32_t j = 0; j < n; j++)
                m[i * line + j * element] /= sum + hyper->eps;
        }
    }
}

/* Rows: from a stream; columns: into a stream. */
static void make_mixing(const struct ps_model *model, float *m)
{
    uint32_t n = model->hp.n_streams;
    for (uint32_t row = 0; row < n; row++)
        model->ops->softmax(m + row * n, m + row * n, n);
    for (uint32_t i = 0; i < n * n; i++)
        m[i] += model->hp.hyper.eps;
    normalize(&model->hp.hyper, m, n);
}

/* The products with the normed streams, from those with the streams as they are. */
static float *scale_products(const struct forward *f, uint32_t token, const struct hyper_args *a)
{
    const struct hparams *hp = &f->model->hp;
    size_t n = (size_t)hp->n_streams * hp->n_embd;
    const float *x = f->s.x + token * n;
    float *mixes = f->s.mixer + (size_t)token * hp->mixer_floats;
    float inverse = 1.0f / sqrtf(f->model->ops->dot(x, x, n) / (float)n + hp->norm_eps);
    f->model->ops->scale(mixes, mixes, inverse, a->fn->n_rows);
    return mixes;
}

static void make_coefficients(const struct forward *f, float *mixes, const struct hyper_args *a)
{
    uint32_t n = f->model->hp.n_streams;
    for (uint32_t i = 0; i < n; i++) {
        mixes[i] = sigmoid(mixes[i] * a->scale[0] + a->base[i]) + f->model->hp.hyper.eps;
        mixes[n + i] = 2.0f * sigmoid(mixes[n + i] * a->scale[1] + a->base[n + i]);
    }
    float *mixing = mixes + 2 * n;
    for (uint32_t i = 0; i < n * n; i++)
        mixing[i] = mixing[i] * a->scale[2] + a->base[2 * n + i];
    make_mixing(f->model, mixing);
}

/* ---- streams ---- */

static void sum_streams(const struct forward *f, uint32_t token, const float *weights,
                        const struct hyper_args *a)
{
    const struct hparams *hp = &f->model->hp;
    const struct vector_ops *ops = f->model->ops;
    const float *x = f->s.x + (size_t)token * hp->n_streams * hp->n_embd;
    float *out = a->out + (size_t)token * hp->n_embd;
    ops->scale(out, x, weights[0], hp->n_embd);
    for (uint32_t s = 1; s < hp->n_streams; s++)
        ops->axpy(out, x + (size_t)s * hp->n_embd, weights[s], hp->n_embd);
    norm_row(f->model, a->norm, NULL, out, out);
}

static void begin_token(struct forward *f, uint32_t token, void *arg)
{
    const struct hyper_args *a = arg;
    float *mixes = scale_products(f, token, a);
    make_coefficients(f, mixes, a);
    sum_streams(f, token, mixes, a);
}

static void output_token(struct forward *f, uint32_t token, void *arg)
{
    const struct hyper_args *a = arg;
    float *mixes = scale_products(f, token, a);
    for (uint32_t i = 0; i < f->model->hp.n_streams; i++)
        mixes[i] = sigmoid(mixes[i] * a->scale[0] + a->base[i]) + f->model->hp.hyper.eps;
    sum_streams(f, token, mixes, a);
}

/* A few values of all streams at a time: each new stream takes from all the old ones. */
static void end_token(struct forward *f, uint32_t token, void *arg)
{
    enum { TILE = 256 };
    const struct hyper_args *a = arg;
    const struct hparams *hp = &f->model->hp;
    const struct vector_ops *ops = f->model->ops;
    uint32_t n = hp->n_streams;
    const float *output = f->s.mixer + (size_t)token * hp->mixer_floats + n;
    const float *mixing = output + n;
    const float *branch = a->branch + (size_t)token * hp->n_embd;
    float *x = f->s.x + (size_t)token * n * hp->n_embd;
    float mixed[MAX_STREAMS][TILE];
    for (uint32_t i = 0; i < hp->n_embd; i += TILE) {
        uint32_t width = hp->n_embd - i < TILE ? hp->n_embd - i : TILE;
        for (uint32_t to = 0; to < n; to++) {
            ops->scale(mixed[to], branch + i, output[to], width);
            for (uint32_t from = 0; from < n; from++)
                ops->axpy(mixed[to], x + (size_t)from * hp->n_embd + i, mixing[from * n + to], width);
        }
        for (uint32_t to = 0; to < n; to++)
            memcpy(x + (size_t)to * hp->n_embd + i, mixed[to], width * sizeof(float));
    }
}

/* ---- the block ---- */

static void multiply_streams(struct forward *f, const struct weight *fn)
{
    const struct hparams *hp = &f->model->hp;
    size_t n = (size_t)hp->n_streams * hp->n_embd;
    struct acts acts = acts_of(f, f->s.x, n, f->n_tokens, n);
    struct matmul_job job = chunk_job(f, &acts, fn, NULL, f->s.mixer);
    job.out_stride = hp->mixer_floats;
    run_matmuls(f, &job, 1);
    step_part_done(&f->parts, PS_PART_TRUNK);
}

void hyper_begin(struct forward *f, uint32_t layer, enum layer_tensor fn, enum layer_tensor norm)
{
    const struct weight *w = f->model->layers[layer].w;
    bool attention = fn == LT_HC_ATTN_FN;
    struct hyper_args args = {.fn = &w[fn],
                              .scale = w[attention ? LT_HC_ATTN_SCALE : LT_HC_FFN_SCALE].data,
                              .base = w[attention ? LT_HC_ATTN_BASE : LT_HC_FFN_BASE].data,
                              .norm = w[norm].data,
                              .out = f->s.normed};
    multiply_streams(f, args.fn);
    for_each_token(f, begin_token, &args);
    step_part_done(&f->parts, PS_PART_NORMS);
}

void hyper_end(struct forward *f, const float *branch)
{
    struct hyper_args args = {.branch = branch};
    for_each_token(f, end_token, &args);
    step_part_done(&f->parts, PS_PART_NORMS);
}

void hyper_output(struct forward *f)
{
    const struct weight *w = f->model->global;
    struct hyper_args args = {.fn = &w[GT_OUTPUT_HC_FN],
                              .scale = w[GT_OUTPUT_HC_SCALE].data,
                              .base = w[GT_OUTPUT_HC_BASE].data,
                              .norm = w[GT_OUTPUT_NORM].data,
                              .out = f->s.hidden};
    multiply_streams(f, args.fn);
    for_each_token(f, output_token, &args);
}
