/* Mamba-2 (Dao and Gu 2024, arXiv:2405.21060): one product gives gate, convolved channels and time steps; a state per head that
 * decays by a factor; a gate, a norm over groups of heads, the output product. */
#include "runtime/forward_internal.h"
#include "runtime/recurrent.h"

/* Where a token's rows lie in scratch.mixer. */
struct parts {
    uint32_t n_heads, n_groups, head_dim, state_dim, inner, conv;
    size_t x, b,
        c;       /* convolved: values, and per group what writes and what reads the state; the gate is at 0 */
    size_t step; /* [n_heads] time steps */
    size_t y, decay; /* output, and [n_heads] */
    size_t total;
};

static struct parts parts_of(const struct hparams *hp)
{
    const struct ssm_hparams *s = &hp->ssm;
    struct parts p = {.n_heads = s->time_step_rank,
                      .n_groups = s->group_count,
                      .head_dim = s->inner_size / s->time_step_rank,
                      .state_dim = s->state_size,
                      .inner = s->inner_size};
    size_t keys = (size_t)p.n_groups * p.state_dim;
    p.conv = (uint32_t)(p.inner + 2 * keys);
    p.x = p.inner;
    p.b = p.x + p.inner;
    p.c = p.b + keys;
    p.step = p.c + keys;
    p.y = p.step + p.n_heads;
    p.decay = p.y + p.inner;
    p.total = p.decay + p.n_heads;
    return p;
}

uint64_t dim_mamba2_in(const struct hparams *hp, const struct layer_hparams *l)
{
    return dim_ssm_inner(hp, l) + dim_ssm_conv(hp, l) + dim_ssm_heads(hp, l);
}

uint64_t dim_ssm_groups(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->ssm.group_count;
}

uint64_t dim_ssm_group(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->ssm.inner_size / hp->ssm.group_count;
}

uint64_t mamba2_state_floats(const struct hparams *hp)
{
    struct parts p = parts_of(hp);
    return (hp->ssm.conv_kernel - 1ull) * p.conv + (uint64_t)p.inner * p.state_dim;
}

enum ps_status hparams_mamba2(struct hparams *hp, const struct gguf *gguf, const char *arch,
                              struct ps_error *err)
{
    enum ps_status status = hparams_ssm(hp, gguf, arch, err);
    return status == PS_OK ? hparams_want_mixer(hp, arch, parts_of(hp).total, err) : status;
}

/* ---- one token ---- */

struct mamba_args {
    struct parts p;
    const struct weight *w;
};

static void prepare_token(struct forward *f, uint32_t token, void *arg)
{
    const struct mamba_args *a = arg;
    const struct vector_ops *ops = f->model->ops;
    float *mixer = f->s.mixer + (size_t)token * f->model->hp.mixer_floats;
    float *step = mixer + a->p.step;
    float *decay = mixer + a->p.decay;
    ops->add(step, step, a->w[LT_SSM_DT_BIAS].data, a->p.n_heads);
    ops->softplus(step, step, a->p.n_heads);
    ops->mul(decay, step, a->w[LT_SSM_A].data, a->p.n_heads);
    ops->exp(decay, decay, a->p.n_heads);
}

/* norm(silu(gate) * (y + d * x)), a norm per group. */
static void finish_token(struct forward *f, uint32_t token, void *arg)
{
    const struct mamba_args *a = arg;
    const struct parts *p = &a->p;
    const struct vector_ops *ops = f->model->ops;
    float *mixer = f->s.mixer + (size_t)token * f->model->hp.mixer_floats;
    float *y = mixer + p->y;
    const float *d = a->w[LT_SSM_D].data;
    const float *norm = a->w[LT_SSM_NORM].data;
    for (uint32_t h = 0; h < p->n_heads; h++) {
        size_t at = (size_t)h * p->head_dim;
        ops->axpy(y + at, mixer + p->x + at, d[h], p->head_dim);
    }
    ops->swiglu(y, mixer, y, p->inner);
    size_t width = p->inner / p->n_groups;
    for (uint32_t g = 0; g < p->n_groups; g++)
        ops->rms_norm(y + g * width, y + g * width, norm + g * width, width, f->model->hp.norm_eps);
}

/* ---- the block ---- */

static void mix(struct forward *f, uint32_t layer, const struct mamba_args *a)
{
    const struct hparams *hp = &f->model->hp;
    const struct parts *p = &a->p;
    const struct weight *bias = &a->w[LT_SSM_CONV_BIAS];
    float *mixer = f->s.mixer;
    size_t stride = hp->mixer_floats;
    float *window = f->kv->layers[layer].state;
    run_convs(f,
              &(struct conv_job){.x = mixer + p->x,
                                 .stride = stride,
                                 .window = window,
                                 .window_stride = p->conv,
                                 .weights = a->w[LT_SSM_CONV].data,
                                 .bias = bias->format ? bias->data : NULL,
                                 .channels = p->conv,
                                 .taps = hp->ssm.conv_kernel,
                                 .silu = true},
              1);
    for_each_token(f, prepare_token, (void *)(uintptr_t)a);
    run_recurrence(
        f, &(struct recurrence_job){.n_heads = p->n_heads,
                                    .n_values = p->head_dim,
                                    .n_key_heads = p->n_groups,
                                    .args = {.state = window + (size_t)(hp->ssm.conv_kernel - 1) * p->conv,
                                             .n_keys = p->state_dim,
                                             .q = mixer + p->c,
                                             .k = mixer + p->b,
                                             .v = mixer + p->x,
                                             .decay = mixer + p->decay,
                                             .beta = mixer + p->step,
                                             .out = mixer + p->y,
                                             .q_stride = stride,
                                             .k_stride = stride,
                                             .v_stride = stride,
                                             .decay_stride = stride,
                                             .beta_stride = stride,
                                             .out_stride = stride}});
    for_each_token(f, finish_token, (void *)(uintptr_t)a);
}

void block_mamba2(struct forward *f, uint32_t layer)
{
    const struct hparams *hp = &f->model->hp;
    const struct weight *w = f->model->layers[layer].w;
    struct mamba_args args = {.p = parts_of(hp), .w = w};
    norm_chunk(f, &w[LT_ATTN_NORM], &w[LT_ATTN_NORM_BIAS], f->s.x, f->s.normed);
    step_part_done(&f->parts, PS_PART_NORMS);
    struct acts acts = acts_of(f, f->s.normed, hp->n_embd, f->n_tokens, hp->n_embd);
    struct matmul_job job = mixer_job(f, &acts, &w[LT_SSM_IN], 0);
    run_matmuls(f, &job, 1);
    step_part_done(&f->parts, PS_PART_TRUNK);
    mix(f, layer, &args);
    step_part_done(&f->parts, PS_PART_ATTENTION);
    mixer_output(f, layer, &w[LT_SSM_OUT], args.p.y);
}
