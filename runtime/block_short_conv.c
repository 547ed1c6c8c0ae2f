/* Short convolution as a mixer, as in LFM2: of three rows b, c and x that a product gives, c * convolution(b * x). */
#include "runtime/forward_internal.h"
#include "runtime/recurrent.h"

uint64_t dim_short_conv(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return 3ull * hp->n_embd;
}

enum ps_status hparams_short_conv(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                  struct ps_error *err)
{
    enum ps_status status = hparams_taps(hp, gguf, arch, "shortconv.l_cache", err);
    for (uint32_t il = 0; status == PS_OK && il < hp->n_layers; il++) {
        if (hp->layer[il].n_kv_head == 0)
            layer_make_recurrent(&hp->layer[il], (hp->ssm.conv_kernel - 1ull) * hp->n_embd);
    }
    return status == PS_OK ? hparams_want_mixer(hp, arch, dim_short_conv(hp, NULL), err) : status;
}

/* The first row of the three becomes its product with the one that arg is the number of. */
static void multiply_token(struct forward *f, uint32_t token, void *arg)
{
    const uint32_t *which = arg;
    size_t n = f->model->hp.n_embd;
    float *row = f->s.mixer + (size_t)token * f->model->hp.mixer_floats;
    f->model->ops->mul(row, row, row + *which * n, n);
}

void block_short_conv(struct forward *f, uint32_t layer)
{
    const struct hparams *hp = &f->model->hp;
    const struct weight *w = f->model->layers[layer].w;
    norm_chunk(f, &w[LT_ATTN_NORM], &w[LT_ATTN_NORM_BIAS], f->s.x, f->s.normed);
    step_part_done(&f->parts, PS_PART_NORMS);
    struct acts acts = acts_of(f, f->s.normed, hp->n_embd, f->n_tokens, hp->n_embd);
    struct matmul_job job = mixer_job(f, &acts, &w[LT_SHORTCONV_IN], 0);
    run_matmuls(f, &job, 1);
    step_part_done(&f->parts, PS_PART_TRUNK);
    uint32_t c = 1, x = 2;
    for_each_token(f, multiply_token, &x);
    run_convs(f,
              &(struct conv_job){.x = f->s.mixer,
                                 .stride = hp->mixer_floats,
                                 .window = f->kv->layers[layer].state,
                                 .window_stride = hp->n_embd,
                                 .weights = w[LT_SHORTCONV_CONV].data,
                                 .channels = hp->n_embd,
                                 .taps = hp->ssm.conv_kernel},
              1);
    for_each_token(f, multiply_token, &c);
    step_part_done(&f->parts, PS_PART_ATTENTION);
    mixer_output(f, layer, &w[LT_SHORTCONV_OUT], 0);
}
