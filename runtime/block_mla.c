/* Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434). */
#include <string.h>

#include "runtime/forward_internal.h"

/* Rows of the chunk in scratch.mixer, one kind after the other. */
struct mla_rows {
    float *q;        /* [n_head][head_dim_k]; after attention its output, [n_head][head_dim_v] */
    float *q_latent; /* [q_rank] */
    float *kv;       /* [kv_rank + n_rot]; absorbed: in scratch.k */
    float *expanded; /* [n_head][head_dim_k - n_rot of k, head_dim_v]; absorbed: unused */
    struct index_rows index;
};

struct mla {
    uint32_t layer, n_head, n_rot, nope;
    const struct mla_options *options;
    const struct mla_hparams *hp;
    const struct layer_hparams *l;
    const struct weight *w;
    struct mla_rows rows;
};

static struct mla mla_of(struct forward *f, uint32_t layer, const struct mla_options *options)
{
    const struct hparams *hp = &f->model->hp;
    const struct layer_hparams *l = &hp->layer[layer];
    struct mla m = {.layer = layer,
                    .n_head = l->n_head,
                    .n_rot = hp->rope[l->rope].n_rot,
                    .nope = (uint32_t)dim_mla_nope(hp, l),
                    .options = options,
                    .hp = &hp->mla,
                    .l = l,
                    .w = f->model->layers[layer].w};
    size_t n = f->n_tokens;
    size_t widest = m.hp->head_dim_k > m.hp->head_dim_v ? m.hp->head_dim_k : m.hp->head_dim_v;
    m.rows.q = f->s.mixer;
    m.rows.q_latent = m.rows.q + n * m.n_head * widest;
    float *kv = m.rows.q_latent + n * m.hp->q_rank;
    m.rows.kv = m.hp->absorbed ? f->s.k : kv;
    if (m.hp->absorbed) {
        m.rows.index.q = kv;
        m.rows.index.k = m.rows.index.q + n * dim_index_q(hp, l);
        m.rows.index.weights = m.rows.index.k + n * dim_index(hp, l);
    } else {
        m.rows.expanded = kv + n * dim_mla_kv_a(hp, l);
    }
    return m;
}

/* ---- products with a slice of the weight for each head ---- */

struct head_product {
    struct forward *f;
    const struct weight *w; /* rows of head h: [h * rows, (h + 1) * rows) */
    uint32_t n_head;
    uint64_t rows;
    const float *x; /* [n_tokens][n_head] rows of w->n_cols */
    size_t x_stride, x_head_stride;
    float *out; /* [n_tokens][n_head] rows of `rows` */
    size_t out_stride, out_head_stride;
    /* Made by run_heads. */
    uint64_t chunk_rows;
    uint32_t chunks_per_head;
    enum act_type type;
    const uint8_t *acts;
    size_t act_stride, act_head_stride; /* bytes */
};

enum { HEADS_PER_ITEM = 16 };

static uint32_t head_groups(const struct head_product *p)
{
    return (p->n_head + HEADS_PER_ITEM - 1) / HEADS_PER_ITEM;
}

static void round_heads(void *arg, uint32_t item, unsigned worker)
{
    (void)worker;
    const struct head_product *p = arg;
    uint32_t token = item / head_groups(p);
    uint32_t begin = item % head_groups(p) * HEADS_PER_ITEM;
    uint32_t end = begin + HEADS_PER_ITEM < p->n_head ? begin + HEADS_PER_ITEM : p->n_head;
    uint8_t *row = p->f->s.rounded[p->type] + token * p->act_stride;
    for (uint32_t h = begin; h < end; h++)
        act_quantize(p->f->model->matmul, p->type, p->x + token * p->x_stride + h * p->x_head_stride,
                     row + h * p->act_head_stride, p->w->n_cols);
}

static void multiply_head(void *arg, uint32_t item, unsigned worker)
{
    (void)worker;
    const struct head_product *p = arg;
    uint32_t head = item / p->chunks_per_head;
    uint64_t begin = item % p->chunks_per_head * p->chunk_rows;
    uint64_t end = begin + p->chunk_rows < p->rows ? begin + p->chunk_rows : p->rows;
    p->f->model->matmul->matmul(p->w, head * p->rows + begin, head * p->rows + end, p->type,
                                p->acts + head * p->act_head_stride, p->act_stride, p->f->n_tokens,
                                p->out + head * p->out_head_stride + begin, p->out_stride);
}

static void run_heads(struct forward *f, struct head_product *p)
{
    enum { ENOUGH_ITEMS = 64, MIN_ROWS = 32 };
    p->f = f;
    p->type = model_act_type(f->model, p->w);
    if (p->type == ACT_F32) {
        p->acts = (const uint8_t *)p->x;
        p->act_stride = p->x_stride * sizeof(float);
        p->act_head_stride = p->x_head_stride * sizeof(float);
    } else {
        p->acts = f->s.rounded[p->type];
        p->act_head_stride = act_row_bytes(p->type, p->w->n_cols);
        p->act_stride = p->n_head * p->act_head_stride;
        run_region(f, round_heads, p, f->n_tokens * head_groups(p));
    }
    /* Whole heads, where there are enough of them. */
    uint64_t chunks = (ENOUGH_ITEMS + p->n_head - 1) / p->n_head;
    p->chunk_rows = (p->rows / chunks + MIN_ROWS - 1) / MIN_ROWS * MIN_ROWS;
    p->chunk_rows = p->chunk_rows > 0 ? p->chunk_rows : MIN_ROWS;
    p->chunks_per_head = (uint32_t)((p->rows + p->chunk_rows - 1) / p->chunk_rows);
    run_region(f, multiply_head, p, p->n_head * p->chunks_per_head);
}

/* ---- q and the latent row ---- */

static void norm_latent_q(struct forward *f, uint32_t token, void *arg)
{
    const struct mla *m = arg;
    float *row = m->rows.q_latent + (size_t)token * m->hp->q_rank;
    f->model->ops->rms_norm(row, row, m->w[LT_Q_A_NORM].data, m->hp->q_rank, f->model->hp.norm_eps);
}

static void project(struct forward *f, struct mla *m)
{
    uint32_t width = f->model->hp.n_embd;
    struct acts acts = acts_of(f, f->s.normed, width, f->n_tokens, width);
    struct matmul_job jobs[4];
    uint32_t n_jobs = 2;
    bool indexes = m->l->index_dim > 0;
    bool latent = m->hp->q_rank > 0;
    jobs[0] = latent ? chunk_job(f, &acts, &m->w[LT_Q_A], NULL, m->rows.q_latent)
                     : chunk_job(f, &acts, &m->w[LT_Q], NULL, m->rows.q);
    jobs[1] = chunk_job(f, &acts, &m->w[LT_KV_A], NULL, m->rows.kv);
    if (indexes) {
        jobs[n_jobs++] = chunk_job(f, &acts, &m->w[LT_INDEX_K], NULL, m->rows.index.k);
        jobs[n_jobs++] = chunk_job(f, &acts, &m->w[LT_INDEX_PROJ], NULL, m->rows.index.weights);
    }
    run_matmuls(f, jobs, n_jobs);
    if (!latent)
        return;
    for_each_token(f, norm_latent_q, m);
    struct acts q_acts = acts_of(f, m->rows.q_latent, m->hp->q_rank, f->n_tokens, m->hp->q_rank);
    jobs[0] = chunk_job(f, &q_acts, &m->w[LT_Q_B], NULL, m->rows.q);
    if (indexes)
        jobs[1] = chunk_job(f, &q_acts, &m->w[LT_INDEX_Q], NULL, m->rows.index.q);
    run_matmuls(f, jobs, indexes ? 2 : 1);
}

/* Norm and rotation of the token's latent row, rotation of its queries. */
static void finish_latent(struct forward *f, const struct mla *m, uint32_t token)
{
    const struct vector_ops *ops = f->model->ops;
    uint32_t rank = m->hp->kv_rank;
    float *kv = m->rows.kv + (size_t)token * (rank + m->n_rot);
    float *q = m->rows.q + (size_t)token * m->n_head * m->hp->head_dim_k;
    ops->rms_norm(kv, kv, m->w[LT_KV_A_NORM].data, rank, f->model->hp.norm_eps);
    rotate_heads(f, m->layer, token, m->options->rope, kv + rank, 1, m->n_rot);
    rotate_heads(f, m->layer, token, m->options->rope, q + m->nope, m->n_head, m->hp->head_dim_k);
}

/* ---- with absorption ---- */

static void finish_absorbed(struct forward *f, uint32_t token, void *arg)
{
    const struct mla *m = arg;
    finish_latent(f, m, token);
    const float *from = m->rows.q + (size_t)token * m->n_head * m->hp->head_dim_k + m->nope;
    float *q = f->s.q + (size_t)token * m->n_head * m->l->head_dim_k + m->hp->kv_rank;
    for (uint32_t h = 0; h < m->n_head; h++)
        memcpy(q + (size_t)h * m->l->head_dim_k, from + (size_t)h * m->hp->head_dim_k, m->n_rot * sizeof(*q));
    store_kv(f, m->layer, token, m->rows.kv + (size_t)token * m->l->head_dim_k, NULL);
}

static void scale_token(struct forward *f, uint32_t token, void *arg)
{
    const struct mla *m = arg;
    size_t n = (size_t)m->n_head * m->l->head_dim_k;
    scale_query(f, token, f->s.q + token * n, n);
}

static void attend_absorbed(struct forward *f, struct mla *m)
{
    for_each_token(f, finish_absorbed, m);
    struct head_product to_latent = {.w = &m->w[LT_K_B],
                                     .n_head = m->n_head,
                                     .rows = m->hp->kv_rank,
                                     .x = m->rows.q,
                                     .x_stride = (size_t)m->n_head * m->hp->head_dim_k,
                                     .x_head_stride = m->hp->head_dim_k,
                                     .out = f->s.q,
                                     .out_stride = (size_t)m->n_head * m->l->head_dim_k,
                                     .out_head_stride = m->l->head_dim_k};
    run_heads(f, &to_latent);
    step_part_done(&f->parts, PS_PART_TRUNK);
    if (m->options->scale_q)
        for_each_token(f, scale_token, m);
    if (m->l->index_dim > 0)
        index_choose(f, m->layer, m->options->rope, &m->rows.index);
    attend_chosen(f, m->layer);
    step_part_done(&f->parts, PS_PART_ATTENTION);
    struct head_product from_latent = {.w = &m->w[LT_V_B],
                                       .n_head = m->n_head,
                                       .rows = m->hp->head_dim_v,
                                       .x = f->s.attended,
                                       .x_stride = (size_t)m->n_head * m->hp->kv_rank,
                                       .x_head_stride = m->hp->kv_rank,
                                       .out = m->rows.q,
                                       .out_stride = (size_t)m->n_head * m->hp->head_dim_v,
                                       .out_head_stride = m->hp->head_dim_v};
    run_heads(f, &from_latent);
    attention_output(f, m->layer, m->rows.q);
}

/* ---- without: every head's keys and values in the cache ---- */

static void finish_row(struct forward *f, uint32_t token, void *arg)
{
    finish_latent(f, arg, token);
}

static void store_expanded(struct forward *f, uint32_t token, void *arg)
{
    const struct mla *m = arg;
    size_t head_k = m->hp->head_dim_k;
    size_t head_v = m->hp->head_dim_v;
    const float *rotated = m->rows.kv + (size_t)token * (m->hp->kv_rank + m->n_rot) + m->hp->kv_rank;
    const float *from = m->rows.expanded + token * m->n_head * (m->nope + head_v);
    float *q = f->s.q + token * m->n_head * head_k;
    float *k = f->s.k + token * m->n_head * head_k;
    float *v = f->s.v + token * m->n_head * head_v;
    memcpy(q, m->rows.q + token * m->n_head * head_k, m->n_head * head_k * sizeof(*q));
    for (uint32_t h = 0; h < m->n_head; h++, from += m->nope + head_v) {
        memcpy(k + h * head_k, from, m->nope * sizeof(*k));
        memcpy(k + h * head_k + m->nope, rotated, m->n_rot * sizeof(*k));
        memcpy(v + h * head_v, from + m->nope, head_v * sizeof(*v));
    }
    if (m->options->scale_q)
        scale_query(f, token, q, m->n_head * head_k);
    store_kv(f, m->layer, token, k, v);
}

static void attend_expanded(struct forward *f, struct mla *m)
{
    for_each_token(f, finish_row, m);
    uint32_t rank = m->hp->kv_rank;
    struct acts acts = acts_of(f, m->rows.kv, rank + m->n_rot, f->n_tokens, rank);
    struct matmul_job job = chunk_job(f, &acts, &m->w[LT_KV_B], NULL, m->rows.expanded);
    run_matmuls(f, &job, 1);
    step_part_done(&f->parts, PS_PART_TRUNK);
    for_each_token(f, store_expanded, m);
    attend(f, m->layer);
    step_part_done(&f->parts, PS_PART_ATTENTION);
    attention_output(f, m->layer, f->s.attended);
}

void block_mla(struct forward *f, uint32_t layer, const struct mla_options *options)
{
    struct mla m = mla_of(f, layer, options);
    norm_chunk(f, &m.w[LT_ATTN_NORM], &m.w[LT_ATTN_NORM_BIAS], f->s.x, f->s.normed);
    step_part_done(&f->parts, PS_PART_NORMS);
    project(f, &m);
    if (m.hp->absorbed)
        attend_absorbed(f, &m);
    else
        attend_expanded(f, &m);
}
