/* Gated delta net (Yang et al. 2024, arXiv:2412.06464) as in Qwen3-Next: queries, keys and values through a short convolution, a
 * state per value head that decays by one factor, a gated norm, the output product. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/forward_internal.h"
#include "runtime/recurrent.h"

/* Where a token's rows lie in scratch.mixer: what the products give, made ready in place. */
struct parts {
    uint32_t head_dim, key_dim, value_dim, n_key_heads, n_heads, conv;
    size_t k, v, z; /* q is at 0 */
    size_t mixed;   /* [2 * n_heads] raw beta and alpha */
    size_t beta, decay;
    size_t total;
};

static struct parts parts_of(const struct hparams *hp)
{
    const struct ssm_hparams *s = &hp->ssm;
    struct parts p = {.head_dim = s->state_size,
                      .n_key_heads = s->group_count,
                      .n_heads = s->time_step_rank,
                      .key_dim = s->group_count * s->state_size,
                      .value_dim = s->inner_size};
    p.conv = 2 * p.key_dim + p.value_dim;
    p.k = p.key_dim;
    p.v = p.k + p.key_dim;
    p.z = p.v + p.value_dim;
    p.mixed = p.z + p.value_dim;
    p.beta = p.mixed + 2ull * p.n_heads;
    p.decay = p.beta + p.n_heads;
    p.total = p.decay + p.n_heads;
    return p;
}

enum ps_status hparams_delta_net(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                 struct ps_error *err)
{
    enum ps_status status;
    uint32_t interval = 4;
    uint32_t *recurrent = NULL;
    if ((status = hparams_ssm(hp, gguf, arch, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "full_attention_interval", false, &interval, err)) != PS_OK)
        return status;
    if (hp->ssm.inner_size != (uint64_t)hp->ssm.state_size * hp->ssm.time_step_rank)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.ssm.inner_size: %u is not %u heads of %u", arch,
                            hp->ssm.inner_size, hp->ssm.time_step_rank, hp->ssm.state_size);
    if (interval == 0)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.full_attention_interval: 0 is out of range", arch);
    recurrent = malloc(hp->n_layers * sizeof(*recurrent));
    if (!recurrent)
        return ps_error_set(err, PS_ERR_NOMEM, "hyperparameters: out of memory");
    for (uint32_t il = 0; il < hp->n_layers; il++)
        recurrent[il] = (il + 1) % interval != 0;
    status = hparam_layers_u32(gguf, arch, "attention.recurrent_layers", false, hp->n_layers, recurrent, err);
    struct parts p = parts_of(hp);
    uint64_t state = (hp->ssm.conv_kernel - 1ull) * p.conv + (uint64_t)p.value_dim * p.head_dim;
    for (uint32_t il = 0; status == PS_OK && il < hp->n_layers; il++) {
        if (recurrent[il])
            layer_make_recurrent(&hp->layer[il], state);
    }
    free(recurrent);
    if (status == PS_OK)
        status = hparams_want_mixer(hp, arch, p.total, err);
    return status == PS_OK ? hparams_want_mixer(hp, arch, hparams_most(hp, dim_q_gated), err) : status;
}

uint64_t dim_delta_qkvz(const struct hparams *hp, const struct layer_hparams *l)
{
    return dim_ssm_conv(hp, l) + dim_ssm_inner(hp, l);
}

uint64_t dim_delta_beta_alpha(const struct hparams *hp, const struct layer_hparams *l)
{
    return 2 * dim_ssm_heads(hp, l);
}

/* ---- products ---- */

struct delta_args {
    struct parts p;
    const struct delta_net_options *options;
    const struct weight *w;
};

/* Files of the first converters have all rows of a key head together: query, key, values, gates. */
static void project_by_head(struct forward *f, const struct delta_args *a, struct acts *acts)
{
    const struct parts *p = &a->p;
    uint32_t values = p->value_dim / p->n_key_heads;
    const uint32_t n_rows[] = {p->head_dim, p->head_dim, values, values};
    const size_t starts[] = {0, p->k, p->v, p->z};
    enum { PARTS = 4 };
    struct weight rows[MAX_JOBS];
    struct matmul_job jobs[MAX_JOBS];
    uint32_t n = 0;
    uint64_t row = 0;
    for (uint32_t head = 0; head < p->n_key_heads; head++) {
        for (uint32_t i = 0; i < PARTS; i++, n++) {
            rows[n] = weight_rows(&a->w[LT_SSM_IN], row, n_rows[i]);
            jobs[n] = mixer_job(f, acts, &rows[n], starts[i] + (size_t)head * n_rows[i]);
            row += n_rows[i];
        }
        if (n == MAX_JOBS || head + 1 == p->n_key_heads) {
            run_matmuls(f, jobs, n);
            n = 0;
        }
    }
}

static void project(struct forward *f, const struct delta_args *a)
{
    uint32_t n_embd = f->model->hp.n_embd;
    const struct weight *w = a->w;
    struct acts acts = acts_of(f, f->s.normed, n_embd, f->n_tokens, n_embd);
    struct matmul_job jobs[4];
    uint32_t n = 0;
    if (w[LT_SSM_IN].format) {
        project_by_head(f, a, &acts);
    } else {
        jobs[n++] = mixer_job(f, &acts, &w[LT_QKV], 0);
        jobs[n++] = mixer_job(f, &acts, &w[LT_SSM_GATE], a->p.z);
    }
    if (w[LT_SSM_BETA_ALPHA].format) {
        jobs[n++] = mixer_job(f, &acts, &w[LT_SSM_BETA_ALPHA], a->p.mixed);
    } else {
        jobs[n++] = mixer_job(f, &acts, &w[LT_SSM_BETA], a->p.mixed);
        jobs[n++] = mixer_job(f, &acts, &w[LT_SSM_ALPHA], a->p.mixed + a->p.n_heads);
    }
    run_matmuls(f, jobs, n);
}

/* ---- one token ---- */

/* Raw beta and alpha to their places; fused products give [beta.. alpha..] per key head. */
static void split_beta_alpha(const struct delta_args *a, float *mixer)
{
    bool fused = a->w[LT_SSM_BETA_ALPHA].format;
    uint32_t n_groups = fused ? a->p.n_key_heads : 1;
    size_t n = a->p.n_heads / n_groups;
    for (uint32_t g = 0; g < n_groups; g++) {
        const float *mixed = mixer + a->p.mixed + 2 * g * n;
        memcpy(mixer + a->p.beta + g * n, mixed, n * sizeof(*mixed));
        memcpy(mixer + a->p.decay + g * n, mixed + n, n * sizeof(*mixed));
    }
}

static void prepare_token(struct forward *f, uint32_t token, void *arg)
{
    const struct delta_args *a = arg;
    const struct vector_ops *ops = f->model->ops;
    float *mixer = f->s.mixer + (size_t)token * f->model->hp.mixer_floats;
    uint32_t n = a->p.n_heads;
    float *beta = mixer + a->p.beta;
    float *decay = mixer + a->p.decay;
    normalize_heads(f, mixer, a->p.n_key_heads, a->p.head_dim, 1.0f / sqrtf((float)a->p.head_dim));
    normalize_heads(f, mixer + a->p.k, a->p.n_key_heads, a->p.head_dim, 1.0f);
    split_beta_alpha(a, mixer);
    ops->sigmoid(beta, beta, n);
    ops->add(decay, decay, a->w[LT_SSM_DT_BIAS].data, n);
    ops->softplus(decay, decay, n);
    ops->mul(decay, decay, a->w[LT_SSM_A].data, n);
    ops->exp(decay, decay, n);
}

/* silu(z), or sigmoid(z), * norm of each head's output. */
static void gate_token(struct forward *f, uint32_t token, void *arg)
{
    const struct delta_args *a = arg;
    const struct vector_ops *ops = f->model->ops;
    float *mixer = f->s.mixer + (size_t)token * f->model->hp.mixer_floats;
    float *out = mixer + a->p.v;
    for (uint32_t h = 0; h < a->p.n_heads; h++) {
        float *head = out + (size_t)h * a->p.head_dim;
        ops->rms_norm(head, head, a->w[LT_SSM_NORM].data, a->p.head_dim, f->model->hp.norm_eps);
    }
    float *z = mixer + a->p.z;
    if (!a->options->sigmoid_gate) {
        ops->swiglu(out, z, out, a->p.value_dim);
        return;
    }
    ops->sigmoid(z, z, a->p.value_dim);
    ops->mul(out, out, z, a->p.value_dim);
}

/* ---- the block ---- */

static void mix(struct forward *f, uint32_t layer, const struct delta_args *a)
{
    const struct hparams *hp = &f->model->hp;
    const struct parts *p = &a->p;
    float *mixer = f->s.mixer;
    size_t stride = hp->mixer_floats;
    float *window = f->kv->layers[layer].state;
    run_convs(f,
              &(struct conv_job){.x = mixer,
                                 .stride = stride,
                                 .window = window,
                                 .window_stride = p->conv,
                                 .weights = a->w[LT_SSM_CONV].data,
                                 .channels = p->conv,
                                 .taps = hp->ssm.conv_kernel,
                                 .silu = true},
              1);
    for_each_token(f, prepare_token, (void *)(uintptr_t)a);
    run_recurrence(
        f, &(struct recurrence_job){.n_heads = p->n_heads,
                                    .n_values = p->head_dim,
                                    .n_key_heads = p->n_key_heads,
                                    .tiled = a->options->tiled_keys,
                                    .args = {.state = window + (size_t)(hp->ssm.conv_kernel - 1) * p->conv,
                                             .n_keys = p->head_dim,
                                             .delta = true,
                                             .q = mixer,
                                             .k = mixer + p->k,
                                             .v = mixer + p->v,
                                             .decay = mixer + p->decay,
                                             .beta = mixer + p->beta,
                                             .out = mixer + p->v,
                                             .q_stride = stride,
                                             .k_stride = stride,
                                             .v_stride = stride,
                                             .decay_stride = stride,
                                             .beta_stride = stride,
                                             .out_stride = stride}});
    for_each_token(f, gate_token, (void *)(uintptr_t)a);
}

void block_delta_net(struct forward *f, uint32_t layer, const struct delta_net_options *options)
{
    const struct weight *w = f->model->layers[layer].w;
    struct delta_args args = {.p = parts_of(&f->model->hp), .w = w, .options = options};
    if (!options->input_ready) {
        norm_chunk(f, &w[LT_ATTN_NORM], &w[LT_ATTN_NORM_BIAS], f->s.x, f->s.normed);
        step_part_done(&f->parts, PS_PART_NORMS);
    }
    project(f, &args);
    step_part_done(&f->parts, PS_PART_TRUNK);
    mix(f, layer, &args);
    step_part_done(&f->parts, PS_PART_ATTENTION);
    mixer_product(f, &w[LT_SSM_OUT], args.p.v);
    if (!options->keep_branch)
        add_branch(f, f->s.branch, &w[LT_ATTN_POST_NORM]);
}
