#include "runtime/block_compressed.h"

#include <math.h>
#include <string.h>

#include "runtime/block_choice.h"
#include "runtime/block_gather.h"
#include "runtime/block_hyper.h"

/* ---- sizes ---- */

static uint64_t overlap(const struct layer_hparams *l)
{
    return l->index_dim > 0 ? 2 : 1;
}

uint64_t dim_compressor(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)hp;
    return overlap(l) * l->head_dim_k;
}

uint64_t dim_index_compressor(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)hp;
    return overlap(l) * l->index_dim;
}

uint64_t dim_block(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)hp;
    return l->block;
}

uint64_t dim_q_rank(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->mla.q_rank;
}

uint64_t dim_out_group(const struct hparams *hp, const struct layer_hparams *l)
{
    return dim_attn_out(hp, l) / hp->n_out_groups;
}

uint64_t dim_out_a(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return (uint64_t)hp->n_out_groups * hp->out_rank;
}

uint32_t compressed_state_rows(const struct layer_hparams *l)
{
    return (uint32_t)overlap(l) * l->block;
}

struct compressed_mixer compressed_mixer_of(const struct hparams *hp, const struct layer_hparams *l)
{
    struct compressed_mixer m = {.q_a = dim_hyper_mixes(hp, l)};
    uint64_t widest = l->head_dim_k > l->index_dim ? l->head_dim_k : l->index_dim;
    m.state_floats = l->compressed ? 2 * dim_compressor(hp, l) + 2 * dim_index_compressor(hp, l) : 0;
    m.state = m.q_a + dim_q_rank(hp, l);
    m.index_q = m.state + m.state_floats;
    m.index_weights = m.index_q + (l->index_dim > 0 ? dim_index_q(hp, l) : 0);
    m.out_a = m.index_weights + (l->index_dim > 0 ? dim_index_heads(hp, l) : 0);
    m.angles = m.out_a + dim_out_a(hp, l);
    m.work = m.angles + hp->rope[l->rope].n_rot;
    m.end = m.work + 2 * widest;
    return m;
}

/* ---- one token's rows ---- */

struct compressed_args {
    struct forward *f;
    uint32_t layer;
    struct compressed_mixer m;
    uint32_t first_block; /* that ends within the chunk */
};

static float *mixer_at(const struct forward *f, uint32_t token, uint64_t at)
{
    return f->s.mixer + (size_t)token * f->model->hp.mixer_floats + at;
}

/* The last n_rot values of each head. */
static void rotate_tails(const struct forward *f, uint32_t layer, uint32_t token, float *heads,
                         uint32_t n_heads, uint32_t head_dim)
{
    uint32_t n_rot = f->model->hp.rope[f->model->hp.layer[layer].rope].n_rot;
    rotate_heads(f, layer, token, ROPE_CONSECUTIVE, heads + (head_dim - n_rot), n_heads, head_dim);
}

static void norm_q_a(struct forward *f, uint32_t token, void *arg)
{
    const struct compressed_args *a = arg;
    const struct hparams *hp = &f->model->hp;
    float *row = mixer_at(f, token, a->m.q_a);
    f->model->ops->rms_norm(row, row, f->model->layers[a->layer].w[LT_Q_A_NORM].data, hp->mla.q_rank,
                            hp->norm_eps);
}

/* Scores of a token count by its place in the block. */
static void add_place(struct forward *f, uint32_t token, const struct compressed_args *a,
                      const struct weight *places, float *scores)
{
    uint32_t place = (f->position + token) % f->model->hp.layer[a->layer].block;
    const float *row = weight_row_floats(places, place, mixer_at(f, token, a->m.work));
    f->model->ops->add(scores, scores, row, places->n_cols);
}

static void finish_state(struct forward *f, uint32_t token, const struct compressed_args *a)
{
    const struct hparams *hp = &f->model->hp;
    const struct layer_hparams *l = &hp->layer[a->layer];
    const struct weight *w = f->model->layers[a->layer].w;
    float *state = mixer_at(f, token, a->m.state);
    size_t key = dim_compressor(hp, l);
    add_place(f, token, a, &w[LT_COMPRESSOR_APE], state + key);
    if (l->index_dim == 0)
        return;
    add_place(f, token, a, &w[LT_INDEX_COMPRESSOR_APE], state + 2 * key + dim_index_compressor(hp, l));
    rotate_tails(f, a->layer, token, mixer_at(f, token, a->m.index_q), hp->index.n_head, hp->index.head_dim);
    float *weights = mixer_at(f, token, a->m.index_weights);
    f->model->ops->scale(weights, weights, 1.0f / sqrtf((float)dim_index_q(hp, l)), hp->index.n_head);
}

static void finish_token(struct forward *f, uint32_t token, void *arg)
{
    const struct compressed_args *a = arg;
    const struct hparams *hp = &f->model->hp;
    const struct layer_hparams *l = &hp->layer[a->layer];
    uint32_t head_dim = l->head_dim_k;
    float *q = f->s.q + (size_t)token * l->n_head * head_dim;
    float *k = f->s.k + (size_t)token * head_dim;
    for (uint32_t h = 0; h < l->n_head; h++)
        f->model->ops->rms_norm(q + (size_t)h * head_dim, q + (size_t)h * head_dim, NULL, head_dim,
                                hp->norm_eps);
    rotate_tails(f, a->layer, token, q, l->n_head, head_dim);
    f->model->ops->rms_norm(k, k, f->model->layers[a->layer].w[LT_KV_A_NORM].data, head_dim, hp->norm_eps);
    rotate_tails(f, a->layer, token, k, 1, head_dim);
    store_kv(f, a->layer, token, k, NULL);
    if (l->compressed)
        finish_state(f, token, a);
}

/* ---- blocks ---- */

/* The state row of a position: of the chunk, or kept from before. */
static const float *state_row(const struct forward *f, const struct compressed_args *a, uint32_t position)
{
    const struct layer_hparams *l = &f->model->hp.layer[a->layer];
    if (position >= f->position)
        return mixer_at(f, position - f->position, a->m.state);
    return f->kv->layers[a->layer].state + (position % compressed_state_rows(l)) * a->m.state_floats;
}

/* What a block is made of: the values of some tokens, each value with weights by softmax over the tokens. */
struct sources {
    uint32_t n;
    const float *values[MAX_COMPRESSED_TOKENS];
    const float *scores[MAX_COMPRESSED_TOKENS];
};

static struct sources sources_of(const struct forward *f, const struct compressed_args *a, uint32_t block,
                                 size_t at, size_t width)
{
    const struct layer_hparams *l = &f->model->hp.layer[a->layer];
    struct sources s = {.n = 0};
    bool overlaps = overlap(l) == 2;
    size_t row = overlap(l) * width;
    uint32_t first = block * l->block;
    for (uint32_t i = 0; overlaps && block > 0 && i < l->block; i++, s.n++) {
        s.values[s.n] = state_row(f, a, first - l->block + i) + at;
        s.scores[s.n] = s.values[s.n] + row;
    }
    for (uint32_t i = 0; i < l->block; i++, s.n++) {
        s.values[s.n] = state_row(f, a, first + i) + at + (overlaps ? width : 0);
        s.scores[s.n] = s.values[s.n] + row;
    }
    return s;
}

static void weigh_sources(const struct sources *s, size_t width, float *out)
{
    enum { TILE = 64 };
    for (size_t i = 0; i < width; i += TILE) {
        size_t n = width - i < TILE ? width - i : TILE;
        float most[TILE], sum[TILE] = {0}, total[TILE] = {0};
        memcpy(most, s->scores[0] + i, n * sizeof(float));
        for (uint32_t j = 1; j < s->n; j++) {
            for (size_t d = 0; d < n; d++)
                most[d] = fmaxf(most[d], s->scores[j][i + d]);
        }
        for (uint32_t j = 0; j < s->n; j++) {
            for (size_t d = 0; d < n; d++) {
                float weight = expf(s->scores[j][i + d] - most[d]);
                sum[d] += weight;
                total[d] += weight * s->values[j][i + d];
            }
        }
        for (size_t d = 0; d < n; d++)
            out[i + d] = total[d] / sum[d];
    }
}

/* Norm and rotation to the place of the block's first token, then to the cache. */
static void store_block(const struct forward *f, const struct compressed_args *a, uint32_t token, float *row,
                        const struct weight *norm, uint32_t width, void *cell)
{
    const struct hparams *hp = &f->model->hp;
    uint32_t n_rot = hp->rope[hp->layer[a->layer].rope].n_rot;
    const float *angles = mixer_at(f, token, a->m.angles);
    f->model->ops->rms_norm(row, row, norm->data, width, hp->norm_eps);
    f->model->ops->rope(row + (width - n_rot), angles, angles + n_rot / 2, n_rot, false);
    kv_row_store(f->kv->type, f->model->ops, f->model->matmul, cell, row, width);
}

static void compress_block(void *arg, uint32_t index, unsigned worker)
{
    (void)worker;
    const struct compressed_args *a = arg;
    struct forward *f = a->f;
    const struct hparams *hp = &f->model->hp;
    const struct layer_hparams *l = &hp->layer[a->layer];
    const struct weight *w = f->model->layers[a->layer].w;
    const struct kv_layer *kv = &f->kv->layers[a->layer];
    uint32_t block = a->first_block + index;
    uint32_t token = (block + 1) * l->block - 1 - f->position;
    float *angles = mixer_at(f, token, a->m.angles);
    float *row = mixer_at(f, token, a->m.work);
    rope_angles(f, l->rope, block * l->block, angles, angles + hp->rope[l->rope].n_rot / 2);
    struct sources key = sources_of(f, a, block, 0, l->head_dim_k);
    weigh_sources(&key, l->head_dim_k, row);
    store_block(f, a, token, row, &w[LT_COMPRESSOR_NORM], l->head_dim_k, kv->blocks + block * kv->block_row);
    if (l->index_dim == 0)
        return;
    struct sources entry = sources_of(f, a, block, 2 * dim_compressor(hp, l), l->index_dim);
    weigh_sources(&entry, l->index_dim, row);
    store_block(f, a, token, row, &w[LT_INDEX_COMPRESSOR_NORM], l->index_dim,
                kv->index + block * kv->index_row);
}

/* Keeps the rows that blocks to come are made of. */
static void keep_state(struct forward *f, const struct compressed_args *a)
{
    uint32_t rows = compressed_state_rows(&f->model->hp.layer[a->layer]);
    float *state = f->kv->layers[a->layer].state;
    for (uint32_t t = f->n_tokens > rows ? f->n_tokens - rows : 0; t < f->n_tokens; t++)
        memcpy(state + ((f->position + t) % rows) * a->m.state_floats, mixer_at(f, t, a->m.state),
               a->m.state_floats * sizeof(float));
}

static void compress(struct forward *f, struct compressed_args *a)
{
    const struct layer_hparams *l = &f->model->hp.layer[a->layer];
    a->first_block = f->position / l->block;
    uint32_t n = (f->position + f->n_tokens) / l->block - a->first_block;
    run_region(f, compress_block, a, n);
    keep_state(f, a);
}

/* ---- the output ---- */

/* Values were rotated to the place of their keys; this makes the places relative to the query's. */
static void rotate_back(struct forward *f, uint32_t token, void *arg)
{
    const struct compressed_args *a = arg;
    const struct layer_hparams *l = &f->model->hp.layer[a->layer];
    uint32_t n_rot = f->model->hp.rope[l->rope].n_rot;
    float *sines = mixer_at(f, token, a->m.angles);
    f->model->ops->scale(sines, f->s.rope_sin[l->rope] + (size_t)token * n_rot / 2, -1.0f, n_rot / 2);
    float *heads = f->s.attended + (size_t)token * l->n_head * l->head_dim_v;
    for (uint32_t h = 0; h < l->n_head; h++)
        f->model->ops->rope(heads + (size_t)h * l->head_dim_v + (l->head_dim_v - n_rot),
                            f->s.rope_cos[l->rope] + (size_t)token * n_rot / 2, sines, n_rot, false);
}

/* Each group of heads has its own rows of the first matrix; the second takes what all groups give. */
static void project_output(struct forward *f, const struct compressed_args *a)
{
    const struct hparams *hp = &f->model->hp;
    const struct layer_hparams *l = &hp->layer[a->layer];
    const struct weight *w = f->model->layers[a->layer].w;
    size_t width = dim_out_group(hp, l);
    struct acts groups = acts_of(f, f->s.attended, width, f->n_tokens * hp->n_out_groups, width);
    struct weight rows[MAX_JOBS];
    struct matmul_job jobs[MAX_JOBS];
    size_t stride;
    const uint8_t *acts = acts_for(f, &groups, &w[LT_ATTN_OUTPUT_A], &stride);
    for (uint32_t g = 0; g < hp->n_out_groups;) {
        uint32_t n = 0;
        for (; n < MAX_JOBS && g < hp->n_out_groups; n++, g++) {
            rows[n] = weight_rows(&w[LT_ATTN_OUTPUT_A], (uint64_t)g * hp->out_rank, hp->out_rank);
            jobs[n] = (struct matmul_job){.w = &rows[n],
                                          .acts = acts + g * stride,
                                          .act_stride = hp->n_out_groups * stride,
                                          .n_tokens = f->n_tokens,
                                          .out = mixer_at(f, 0, a->m.out_a) + (size_t)g * hp->out_rank,
                                          .out_stride = hp->mixer_floats};
        }
        run_matmuls(f, jobs, n);
    }
    struct acts all = acts_of(f, mixer_at(f, 0, a->m.out_a), hp->mixer_floats, f->n_tokens, dim_out_a(hp, l));
    struct matmul_job job = chunk_job(f, &all, &w[LT_ATTN_OUTPUT_B], NULL, f->s.branch);
    run_matmuls(f, &job, 1);
}

/* ---- the block ---- */

static struct matmul_job mixer_job(struct forward *f, struct acts *acts, const struct weight *w, uint64_t at)
{
    struct matmul_job job = chunk_job(f, acts, w, NULL, mixer_at(f, 0, at));
    job.out_stride = f->model->hp.mixer_floats;
    return job;
}

static void project(struct forward *f, const struct compressed_args *a)
{
    const struct hparams *hp = &f->model->hp;
    const struct layer_hparams *l = &hp->layer[a->layer];
    const struct weight *w = f->model->layers[a->layer].w;
    struct acts acts = acts_of(f, f->s.normed, hp->n_embd, f->n_tokens, hp->n_embd);
    struct matmul_job jobs[7];
    uint32_t n = 0;
    uint64_t state = a->m.state;
    jobs[n++] = mixer_job(f, &acts, &w[LT_Q_A], a->m.q_a);
    jobs[n++] = chunk_job(f, &acts, &w[LT_KV_A], NULL, f->s.k);
    if (l->compressed) {
        jobs[n++] = mixer_job(f, &acts, &w[LT_COMPRESSOR_KV], state);
        jobs[n++] = mixer_job(f, &acts, &w[LT_COMPRESSOR_GATE], state + dim_compressor(hp, l));
        state += 2 * dim_compressor(hp, l);
    }
    if (l->index_dim > 0) {
        jobs[n++] = mixer_job(f, &acts, &w[LT_INDEX_COMPRESSOR_KV], state);
        jobs[n++] = mixer_job(f, &acts, &w[LT_INDEX_COMPRESSOR_GATE], state + dim_index_compressor(hp, l));
        jobs[n++] = mixer_job(f, &acts, &w[LT_INDEX_PROJ], a->m.index_weights);
    }
    run_matmuls(f, jobs, n);
    for_each_token(f, norm_q_a, (void *)(uintptr_t)a);
    struct acts q_a = acts_of(f, mixer_at(f, 0, a->m.q_a), hp->mixer_floats, f->n_tokens, hp->mla.q_rank);
    n = 0;
    jobs[n++] = chunk_job(f, &q_a, &w[LT_Q_B], NULL, f->s.q);
    if (l->index_dim > 0)
        jobs[n++] = mixer_job(f, &q_a, &w[LT_INDEX_Q], a->m.index_q);
    run_matmuls(f, jobs, n);
}

void block_compressed_attention(struct forward *f, uint32_t layer)
{
    const struct hparams *hp = &f->model->hp;
    const struct layer_hparams *l = &hp->layer[layer];
    struct compressed_args a = {.f = f, .layer = layer, .m = compressed_mixer_of(hp, l)};
    project(f, &a);
    step_part_done(&f->parts, PS_PART_TRUNK);
    for_each_token(f, finish_token, &a);
    if (l->compressed) {
        compress(f, &a);
        struct index_queries index = {.q = mixer_at(f, 0, a.m.index_q),
                                      .weights = mixer_at(f, 0, a.m.index_weights),
                                      .stride = hp->mixer_floats};
        attend_gathered(f, layer, 0, l->index_dim > 0 ? &index : NULL);
    } else {
        attend(f, layer);
    }
    for_each_token(f, rotate_back, &a);
    step_part_done(&f->parts, PS_PART_ATTENTION);
    project_output(f, &a);
    step_part_done(&f->parts, PS_PART_TRUNK);
}
