#include "runtime/block_choice.h"

#include <string.h>

#include "runtime/block_gather.h"

/* A token's rows in scratch.mixer: queries at 0, its own key, and what a block that ends at the token needs. */
struct index_parts {
    uint64_t key, angles, work, end;
};

static struct index_parts parts_of(const struct hparams *hp, const struct layer_hparams *l)
{
    struct index_parts p = {.key = (uint64_t)hp->index.n_head * hp->index.head_dim};
    p.angles = p.key + hp->index.head_dim;
    p.work = p.angles + hp->rope[l->rope].n_rot;
    p.end = p.work + hp->index.head_dim;
    return p;
}

uint64_t choice_mixer(const struct hparams *hp, const struct layer_hparams *l)
{
    return l->index_dim > 0 ? parts_of(hp, l).end : 0;
}

uint64_t choice_state(const struct layer_hparams *l)
{
    return l->index_by_cell ? 0 : (uint64_t)l->block * l->index_dim;
}

enum ps_status check_index_dim(const struct hparams *hp, const char *arch, struct ps_error *err)
{
    enum { ROW_VALUES = 32 };
    uint32_t n_rot = hp->rope[hp->n_ropes - 1].n_rot;
    if (hp->index.head_dim % ROW_VALUES == 0 && hp->index.head_dim >= n_rot)
        return PS_OK;
    return ps_error_set(err, PS_ERR_UNSUPPORTED,
                        "%s.attention.indexer.key_length: %u is no multiple of %d, or has less than the %u "
                        "values that are rotated",
                        arch, hp->index.head_dim, ROW_VALUES, n_rot);
}

struct index_args {
    struct forward *f;
    uint32_t layer;
    struct index_parts p;
    uint32_t first_block; /* by block: that ends within the chunk */
};

static float *mixer_at(const struct forward *f, uint32_t token, uint64_t at)
{
    return f->s.mixer + (size_t)token * f->model->hp.mixer_floats + at;
}

static void finish_query(struct forward *f, uint32_t token, const struct index_args *a)
{
    const struct index_hparams *index = &f->model->hp.index;
    const float *norm = f->model->layers[a->layer].w[LT_INDEX_Q_NORM].data;
    float *q = mixer_at(f, token, 0);
    for (uint32_t h = 0; h < index->n_head; h++) {
        float *head = q + (size_t)h * index->head_dim;
        f->model->ops->rms_norm(head, head, norm, index->head_dim, f->model->hp.norm_eps);
    }
    rotate_heads(f, a->layer, token, ROPE_NEOX, q, index->n_head, index->head_dim);
}

/* By cell: a token's own key. */
static void store_key(struct forward *f, uint32_t token, const struct index_args *a)
{
    const struct hparams *hp = &f->model->hp;
    const struct kv_layer *kv = &f->kv->layers[a->layer];
    float *key = mixer_at(f, token, a->p.key);
    f->model->ops->rms_norm(key, key, f->model->layers[a->layer].w[LT_INDEX_K_NORM].data, hp->index.head_dim,
                            hp->norm_eps);
    rotate_heads(f, a->layer, token, ROPE_NEOX, key, 1, hp->index.head_dim);
    kv_row_store(f->kv->type, f->model->ops, f->model->matmul,
                 kv->index + (size_t)(f->position + token) * kv->index_row, key, hp->index.head_dim);
}

static void finish_token(struct forward *f, uint32_t token, void *arg)
{
    const struct index_args *a = arg;
    finish_query(f, token, a);
    if (f->model->hp.layer[a->layer].index_by_cell)
        store_key(f, token, a);
}

static const float *key_of(const struct forward *f, const struct index_args *a, uint32_t position)
{
    const struct kv_layer *kv = &f->kv->layers[a->layer];
    if (position >= f->position)
        return mixer_at(f, position - f->position, a->p.key);
    return kv->state + (size_t)(position % kv->block) * f->model->hp.index.head_dim;
}

static void pool_block(void *arg, uint32_t i, unsigned worker)
{
    (void)worker;
    const struct index_args *a = arg;
    struct forward *f = a->f;
    const struct hparams *hp = &f->model->hp;
    const struct vector_ops *ops = f->model->ops;
    const struct kv_layer *kv = &f->kv->layers[a->layer];
    uint32_t rope = hp->layer[a->layer].rope;
    uint32_t n_rot = hp->rope[rope].n_rot;
    size_t n = hp->index.head_dim;
    uint32_t block = a->first_block + i;
    uint32_t token = (block + 1) * kv->block - 1 - f->position;
    float *row = mixer_at(f, token, a->p.work);
    float *angles = mixer_at(f, token, a->p.angles);
    memcpy(row, key_of(f, a, block * kv->block), n * sizeof(*row));
    for (uint32_t t = 1; t < kv->block; t++)
        ops->add(row, row, key_of(f, a, block * kv->block + t), n);
    ops->scale(row, row, 1.0f / (float)kv->block, n);
    ops->rms_norm(row, row, f->model->layers[a->layer].w[LT_INDEX_K_NORM].data, n, hp->norm_eps);
    rope_angles(f, rope, block * kv->block, angles, angles + n_rot / 2);
    ops->rope(row, angles, angles + n_rot / 2, n_rot, true);
    kv_row_store(f->kv->type, ops, f->model->matmul, kv->index + (size_t)block * kv->index_row, row,
                 (uint32_t)n);
}

static void pool_blocks(struct forward *f, struct index_args *a)
{
    const struct kv_layer *kv = &f->kv->layers[a->layer];
    size_t n = f->model->hp.index.head_dim;
    a->first_block = f->position / kv->block;
    run_region(f, pool_block, a, (f->position + f->n_tokens) / kv->block - a->first_block);
    for (uint32_t t = f->n_tokens > kv->block ? f->n_tokens - kv->block : 0; t < f->n_tokens; t++)
        memcpy(kv->state + (f->position + t) % kv->block * n, mixer_at(f, t, a->p.key), n * sizeof(float));
}

static void make_index(struct forward *f, struct index_args *a)
{
    const struct hparams *hp = &f->model->hp;
    const struct weight *w = f->model->layers[a->layer].w;
    struct acts acts = acts_of(f, f->s.normed, hp->n_embd, f->n_tokens, hp->n_embd);
    struct matmul_job jobs[] = {chunk_job(f, &acts, &w[LT_INDEX_Q], NULL, mixer_at(f, 0, 0)),
                                chunk_job(f, &acts, &w[LT_INDEX_K], NULL, mixer_at(f, 0, a->p.key))};
    jobs[0].out_stride = jobs[1].out_stride = hp->mixer_floats;
    run_matmuls(f, jobs, 2);
    for_each_token(f, finish_token, a);
    if (!hp->layer[a->layer].index_by_cell)
        pool_blocks(f, a);
}

void attend_chosen_blocks(struct forward *f, uint32_t layer)
{
    const struct hparams *hp = &f->model->hp;
    const struct layer_hparams *l = &hp->layer[layer];
    if (l->index_dim == 0 || f->kv->ctx <= l->most_chosen) { /* a context in which nothing is ever left out */
        attend(f, layer);
        return;
    }
    struct index_args a = {.f = f, .layer = layer, .p = parts_of(hp, l)};
    make_index(f, &a);
    struct index_queries index = {.q = mixer_at(f, 0, 0), .stride = hp->mixer_floats};
    attend_blocks(f, layer, &index);
}
