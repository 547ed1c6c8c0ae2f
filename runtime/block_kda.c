/* Kimi delta attention (arXiv:2510.26692): queries, keys and values through a short convolution each, a state per head whose keys
 * decay each by its own factor, a gated norm, the output product. */
#include <math.h>

#include "runtime/forward_internal.h"
#include "runtime/recurrent.h"

/* Where a token's rows lie in scratch.mixer; q is at 0. All heads have keys and values of their own. */
struct parts {
    uint32_t n_heads, head_dim, inner;
    size_t k, v;
    size_t beta;                /* [n_heads] */
    size_t decay_latent, decay; /* [head_dim] and, of all heads, [inner] */
    size_t gate_latent, gate;   /* likewise */
    size_t total;
};

static struct parts parts_of(const struct hparams *hp)
{
    struct parts p = {
        .n_heads = hp->ssm.time_step_rank, .head_dim = hp->ssm.state_size, .inner = hp->ssm.inner_size};
    p.k = p.inner;
    p.v = p.k + p.inner;
    p.decay = p.v + p.inner;
    p.gate = p.decay + p.inner;
    p.decay_latent = p.gate + p.inner;
    p.gate_latent = p.decay_latent + p.head_dim;
    p.beta = p.gate_latent + p.head_dim;
    p.total = p.beta + p.n_heads;
    return p;
}

enum ps_status hparams_kda(struct hparams *hp, const struct gguf *gguf, const char *arch,
                           struct ps_error *err)
{
    struct ssm_hparams *s = &hp->ssm;
    enum ps_status status;
    if ((status = hparams_taps(hp, gguf, arch, "ssm.conv_kernel", err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "kda.head_dim", true, &s->state_size, err)) != PS_OK)
        return status;
    s->time_step_rank = s->group_count = hp->layer[0].n_head;
    uint64_t inner = (uint64_t)s->time_step_rank * s->state_size;
    if (s->state_size == 0 || s->state_size > MAX_STATE_DIM || inner == 0 || inner > MAX_SSM_INNER)
        return ps_error_set(err, PS_ERR_FORMAT, "%s.kda.head_dim: %u heads of %u are out of range", arch,
                            s->time_step_rank, s->state_size);
    s->inner_size = (uint32_t)inner;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        struct layer_hparams *layer = &hp->layer[il];
        if (layer->n_head != s->time_step_rank)
            return ps_error_set(err, PS_ERR_UNSUPPORTED,
                                "%s.attention.head_count: %u in layer %u, %u in the first", arch,
                                layer->n_head, il, s->time_step_rank);
        if (layer->n_kv_head == 0)
            layer_make_recurrent(layer, 3 * (s->conv_kernel - 1ull) * inner + inner * s->state_size);
    }
    return hparams_want_mixer(hp, arch, parts_of(hp).total, err);
}

uint64_t dim_kda_head(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->ssm.state_size;
}

/* ---- products ---- */

struct kda_args {
    struct parts p;
    const struct weight *w;
};

/* From a latent row of the mixer to a row for all heads. */
static void expand(struct forward *f, const struct weight *w, size_t from, size_t to)
{
    struct acts acts = acts_of(f, f->s.mixer + from, f->model->hp.mixer_floats, f->n_tokens, w->n_cols);
    struct matmul_job job = mixer_job(f, &acts, w, to);
    run_matmuls(f, &job, 1);
}

static void project(struct forward *f, const struct kda_args *a)
{
    const struct parts *p = &a->p;
    uint32_t n_embd = f->model->hp.n_embd;
    const struct {
        enum layer_tensor id;
        size_t at;
    } products[] = {{LT_Q, 0},
                    {LT_K, p->k},
                    {LT_V, p->v},
                    {LT_SSM_F_A, p->decay_latent},
                    {LT_SSM_G_A, p->gate_latent},
                    {LT_SSM_BETA, p->beta}};
    enum { N_PRODUCTS = sizeof(products) / sizeof(products[0]) };
    struct matmul_job jobs[N_PRODUCTS];
    struct acts acts = acts_of(f, f->s.normed, n_embd, f->n_tokens, n_embd);
    for (uint32_t i = 0; i < N_PRODUCTS; i++)
        jobs[i] = mixer_job(f, &acts, &a->w[products[i].id], products[i].at);
    run_matmuls(f, jobs, N_PRODUCTS);
    expand(f, &a->w[LT_SSM_F_B], p->decay_latent, p->decay);
    expand(f, &a->w[LT_SSM_G_B], p->gate_latent, p->gate);
}

/* ---- one token ---- */

static void prepare_token(struct forward *f, uint32_t token, void *arg)
{
    const struct kda_args *a = arg;
    const struct parts *p = &a->p;
    const struct vector_ops *ops = f->model->ops;
    const float *factors = a->w[LT_SSM_A].data;
    float *mixer = f->s.mixer + (size_t)token * f->model->hp.mixer_floats;
    float *decay = mixer + p->decay;
    normalize_heads(f, mixer, p->n_heads, p->head_dim, 1.0f / sqrtf((float)p->head_dim));
    normalize_heads(f, mixer + p->k, p->n_heads, p->head_dim, 1.0f);
    ops->sigmoid(mixer + p->beta, mixer + p->beta, p->n_heads);
    ops->add(decay, decay, a->w[LT_SSM_DT_BIAS].data, p->inner);
    ops->softplus(decay, decay, p->inner);
    for (uint32_t h = 0; h < p->n_heads; h++)
        ops->scale(decay + (size_t)h * p->head_dim, decay + (size_t)h * p->head_dim, factors[h], p->head_dim);
    ops->exp(decay, decay, p->inner);
}

/* sigmoid(gate) * norm of each head's output. */
static void gate_token(struct forward *f, uint32_t token, void *arg)
{
    const struct kda_args *a = arg;
    const struct parts *p = &a->p;
    const struct vector_ops *ops = f->model->ops;
    float *mixer = f->s.mixer + (size_t)token * f->model->hp.mixer_floats;
    for (uint32_t h = 0; h < p->n_heads; h++) {
        float *head = mixer + p->v + (size_t)h * p->head_dim;
        ops->rms_norm(head, head, a->w[LT_SSM_NORM].data, p->head_dim, f->model->hp.norm_eps);
    }
    ops->sigmoid(mixer + p->gate, mixer + p->gate, p->inner);
    ops->mul(mixer + p->v, mixer + p->v, mixer + p->gate, p->inner);
}

/* ---- the block ---- */

static void mix(struct forward *f, uint32_t layer, const struct kda_args *a)
{
    const struct hparams *hp = &f->model->hp;
    const struct parts *p = &a->p;
    const enum layer_tensor weights[] = {LT_SSM_CONV_Q, LT_SSM_CONV_K, LT_SSM_CONV_V};
    enum { N_CONVS = sizeof(weights) / sizeof(weights[0]) };
    struct conv_job convs[N_CONVS];
    float *mixer = f->s.mixer;
    size_t stride = hp->mixer_floats;
    float *window = f->kv->layers[layer].state;
    for (uint32_t i = 0; i < N_CONVS; i++)
        convs[i] = (struct conv_job){.x = mixer + (size_t)i * p->inner,
                                     .stride = stride,
                                     .window = window + (size_t)i * p->inner,
                                     .window_stride = (size_t)N_CONVS * p->inner,
                                     .weights = a->w[weights[i]].data,
                                     .channels = p->inner,
                                     .taps = hp->ssm.conv_kernel,
                                     .silu = true};
    run_convs(f, convs, N_CONVS);
    for_each_token(f, prepare_token, (void *)(uintptr_t)a);
    run_recurrence(f, &(struct recurrence_job){
                          .n_heads = p->n_heads,
                          .n_values = p->head_dim,
                          .n_key_heads = p->n_heads,
                          .args = {.state = window + (size_t)(hp->ssm.conv_kernel - 1) * N_CONVS * p->inner,
                                   .n_keys = p->head_dim,
                                   .delta = true,
                                   .decay_by_key = true,
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

void block_kda(struct forward *f, uint32_t layer)
{
    const struct weight *w = f->model->layers[layer].w;
    struct kda_args args = {.p = parts_of(&f->model->hp), .w = w};
    norm_chunk(f, &w[LT_ATTN_NORM], &w[LT_ATTN_NORM_BIAS], f->s.x, f->s.normed);
    step_part_done(&f->parts, PS_PART_NORMS);
    project(f, &args);
    step_part_done(&f->parts, PS_PART_TRUNK);
    mix(f, layer, &args);
    step_part_done(&f->parts, PS_PART_ATTENTION);
    mixer_output(f, layer, &w[LT_SSM_OUT], args.p.v);
}
