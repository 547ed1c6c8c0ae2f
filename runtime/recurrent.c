#include "runtime/recurrent.h"

#include <math.h>
#include <string.h>

#include "runtime/forward_internal.h"

/* ---- hyperparameters ---- */

enum { MAX_MIXER = 1 << 24 };

enum ps_status hparams_taps(struct hparams *hp, const struct gguf *gguf, const char *arch, const char *suffix,
                            struct ps_error *err)
{
    enum ps_status status = hparam_u32(gguf, arch, suffix, true, &hp->ssm.conv_kernel, err);
    if (status == PS_OK && (hp->ssm.conv_kernel < 1 || hp->ssm.conv_kernel > MAX_CONV_TAPS))
        return ps_error_set(err, PS_ERR_FORMAT, "%s.%s: %u is not within 1..%d", arch, suffix,
                            hp->ssm.conv_kernel, MAX_CONV_TAPS);
    return status;
}

enum ps_status hparams_ssm(struct hparams *hp, const struct gguf *gguf, const char *arch,
                           struct ps_error *err)
{
    struct ssm_hparams *s = &hp->ssm;
    enum ps_status status;
    if ((status = hparams_taps(hp, gguf, arch, "ssm.conv_kernel", err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "ssm.inner_size", true, &s->inner_size, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "ssm.state_size", true, &s->state_size, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "ssm.group_count", true, &s->group_count, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "ssm.time_step_rank", true, &s->time_step_rank, err)) != PS_OK)
        return status;
    if (s->inner_size == 0 || s->inner_size > MAX_SSM_INNER || s->state_size == 0 ||
        s->state_size > MAX_STATE_DIM || s->group_count == 0 || s->time_step_rank == 0)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s.ssm: inner size %u, state size %u, %u groups, rank %u: out of range", arch,
                            s->inner_size, s->state_size, s->group_count, s->time_step_rank);
    if (s->inner_size % s->time_step_rank != 0 || s->time_step_rank % s->group_count != 0)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s.ssm: %u groups do not divide %u heads, or these an inner size of %u", arch,
                            s->group_count, s->time_step_rank, s->inner_size);
    return PS_OK;
}

void layer_make_recurrent(struct layer_hparams *layer, uint64_t state_floats)
{
    layer->recurrent = true;
    layer->n_head = layer->n_kv_head = 0;
    layer->state_floats = state_floats;
}

enum ps_status hparams_want_mixer(struct hparams *hp, const char *arch, uint64_t floats, struct ps_error *err)
{
    enum { LINE = 16 }; /* floats */
    floats = (floats + LINE - 1) / LINE * LINE;
    if (floats > MAX_MIXER)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: layers of %llu values per token are out of range", arch,
                            (unsigned long long)floats);
    if (hp->mixer_floats < floats)
        hp->mixer_floats = (uint32_t)floats;
    return PS_OK;
}

uint64_t dim_taps(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->ssm.conv_kernel;
}

uint64_t dim_ssm_inner(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->ssm.inner_size;
}

uint64_t dim_ssm_heads(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->ssm.time_step_rank;
}

uint64_t dim_ssm_head(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->ssm.inner_size / hp->ssm.time_step_rank;
}

uint64_t dim_ssm_conv(const struct hparams *hp, const struct layer_hparams *l)
{
    return dim_ssm_inner(hp, l) + 2ull * hp->ssm.group_count * hp->ssm.state_size;
}

/* ---- convolutions ---- */

enum { CONV_CHANNELS = 256 }; /* per work item */

struct conv_region {
    struct forward *f;
    const struct conv_job *jobs;
    uint32_t first_chunk[MAX_CONVS + 1];
};

/* Input rows of token t: row t of the window and the chunk, one after the other. */
static void input_rows(const struct conv_job *job, uint32_t t, uint32_t first_channel,
                       const float *rows[MAX_CONV_TAPS])
{
    for (uint32_t tap = 0; tap < job->taps; tap++) {
        uint32_t row = t + tap;
        rows[tap] = row < job->taps - 1 ? job->window + row * job->window_stride + first_channel
                                        : job->x + (row - (job->taps - 1)) * job->stride + first_channel;
    }
}

/* From the last token to the first, so that a row is replaced when no other needs it. */
static void conv_chunk(void *arg, uint32_t chunk, unsigned worker)
{
    (void)worker;
    const struct conv_region *region = arg;
    struct forward *f = region->f;
    uint32_t j = 0;
    while (chunk >= region->first_chunk[j + 1])
        j++;
    const struct conv_job *job = &region->jobs[j];
    uint32_t first = (chunk - region->first_chunk[j]) * CONV_CHANNELS;
    uint32_t n = job->channels - first < CONV_CHANNELS ? job->channels - first : CONV_CHANNELS;
    float weights[MAX_CONV_TAPS * CONV_CHANNELS]; /* [taps][n] */
    float window[MAX_CONV_TAPS * CONV_CHANNELS];
    const float *rows[MAX_CONV_TAPS];
    for (uint32_t c = 0; c < n; c++) {
        for (uint32_t tap = 0; tap < job->taps; tap++)
            weights[tap * n + c] = job->weights[(size_t)(first + c) * job->taps + tap];
    }
    input_rows(job, f->n_tokens, first, rows); /* of the next chunk's first token */
    for (uint32_t row = 0; row + 1 < job->taps; row++)
        memcpy(window + row * n, rows[row], n * sizeof(*window));
    for (uint32_t t = f->n_tokens; t-- > 0;) {
        float *out = job->x + t * job->stride + first;
        input_rows(job, t, first, rows);
        f->model->recurrence->convolve(out, rows, weights, job->bias ? job->bias + first : NULL, job->taps,
                                       n);
        if (job->silu)
            f->model->ops->silu(out, out, n);
    }
    for (uint32_t row = 0; row + 1 < job->taps; row++)
        memcpy(job->window + row * job->window_stride + first, window + row * n, n * sizeof(*window));
}

void run_convs(struct forward *f, const struct conv_job *jobs, uint32_t n)
{
    struct conv_region region = {.f = f, .jobs = jobs};
    for (uint32_t j = 0; j < n; j++)
        region.first_chunk[j + 1] =
            region.first_chunk[j] + (jobs[j].channels + CONV_CHANNELS - 1) / CONV_CHANNELS;
    run_region(f, conv_chunk, &region, region.first_chunk[n]);
}

/* ---- recurrences ---- */

struct recurrence_region {
    struct forward *f;
    const struct recurrence_job *job;
    uint32_t groups; /* of columns, per head */
};

static void recurrence_chunk(void *arg, uint32_t chunk, unsigned worker)
{
    (void)worker;
    const struct recurrence_region *region = arg;
    const struct recurrence_job *job = region->job;
    uint32_t head = chunk / region->groups;
    uint32_t column = chunk % region->groups * RECURRENCE_COLUMNS;
    uint32_t left = job->n_values - column;
    uint32_t key_head = job->tiled ? head % job->n_key_heads : head / (job->n_heads / job->n_key_heads);
    size_t value = (size_t)head * job->n_values + column;
    struct recurrence_args args = job->args;
    args.n_columns = left < RECURRENCE_COLUMNS ? left : RECURRENCE_COLUMNS;
    args.n_tokens = region->f->n_tokens;
    args.state += value * args.n_keys;
    args.q += (size_t)key_head * args.n_keys;
    args.k += (size_t)key_head * args.n_keys;
    args.v += value;
    args.out += value;
    args.decay += (size_t)head * (args.decay_by_key ? args.n_keys : 1);
    args.beta += head;
    region->f->model->recurrence->advance(&args);
}

void run_recurrence(struct forward *f, const struct recurrence_job *job)
{
    struct recurrence_region region = {
        .f = f, .job = job, .groups = (job->n_values + RECURRENCE_COLUMNS - 1) / RECURRENCE_COLUMNS};
    run_region(f, recurrence_chunk, &region, job->n_heads * region.groups);
}

/* ---- around them ---- */

/* Epsilon is the least length, as in ggml's l2_norm. */
void normalize_heads(const struct forward *f, float *row, uint32_t n_heads, uint32_t head_dim, float scale)
{
    const struct vector_ops *ops = f->model->ops;
    for (uint32_t h = 0; h < n_heads; h++) {
        float *x = row + (size_t)h * head_dim;
        float length = sqrtf(ops->dot(x, x, head_dim));
        ops->scale(x, x, scale / fmaxf(length, f->model->hp.norm_eps), head_dim);
    }
}

struct matmul_job mixer_job(struct forward *f, struct acts *acts, const struct weight *w, size_t at)
{
    struct matmul_job job = chunk_job(f, acts, w, NULL, f->s.mixer + at);
    job.out_stride = f->model->hp.mixer_floats;
    return job;
}

void mixer_product(struct forward *f, const struct weight *w, size_t at)
{
    struct acts acts = acts_of(f, f->s.mixer + at, f->model->hp.mixer_floats, f->n_tokens, w->n_cols);
    struct matmul_job job = chunk_job(f, &acts, w, NULL, f->s.branch);
    run_matmuls(f, &job, 1);
    step_part_done(&f->parts, PS_PART_TRUNK);
}

void mixer_output(struct forward *f, uint32_t layer, const struct weight *w, size_t at)
{
    mixer_product(f, w, at);
    add_branch(f, f->s.branch, &f->model->layers[layer].w[LT_ATTN_POST_NORM]);
}
