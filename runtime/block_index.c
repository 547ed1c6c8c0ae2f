/* Sparse attention: a token that sees more than index.top_k cells attends to the best of them, by a small attention of its own
 * (DeepSeek-V3.2's lightning indexer, arXiv:2512.02556): a cell's score is the sum over heads of weight * max(q.k, 0). */
#include <math.h>
#include <string.h>

#include "runtime/forward_internal.h"

/* The first token of the chunk that sees more cells than are chosen; n_tokens: none does. */
static uint32_t first_sparse(const struct forward *f)
{
    uint32_t top_k = f->model->hp.index.top_k;
    if (top_k == 0 || f->position + f->n_tokens <= top_k)
        return f->n_tokens;
    return f->position < top_k ? top_k - f->position : 0;
}

/* ---- queries and keys ---- */

struct index_args {
    uint32_t layer;
    enum rope_pairs pairs;
    const struct index_rows *rows;
};

static void finish_index(struct forward *f, uint32_t token, void *arg)
{
    const struct index_args *a = arg;
    const struct index_hparams *index = &f->model->hp.index;
    const struct weight *w = f->model->layers[a->layer].w;
    uint32_t dim = index->head_dim;
    float *k = a->rows->k + (size_t)token * dim;
    float *q = a->rows->q + (size_t)token * index->n_head * dim;
    /* No epsilon: llama.cpp's families with an index do not read one. */
    f->model->ops->layer_norm(k, k, w[LT_INDEX_K_NORM].data, w[LT_INDEX_K_NORM_BIAS].data, dim, 0.0f);
    rotate_heads(f, a->layer, token, a->pairs, k, 1, dim);
    rotate_heads(f, a->layer, token, a->pairs, q, index->n_head, dim);
    kv_row_store(f->kv->type, f->model->ops, f->model->matmul,
                 kv_cache_index(&f->kv->layers[a->layer], f->position + token), k, dim);
}

/* ---- scores and choice, for a few tokens at a time ---- */

struct choice {
    struct forward *f;
    const struct index_rows *rows;
    uint32_t first, n; /* tokens */
    struct weight keys;
};

static float *scores_of(const struct forward *f, uint32_t i)
{
    return f->s.index_scores + (size_t)i * f->kv->ctx;
}

/* Scores of a run of cells, for all tokens: keys that a token does not see are left out later. */
static void score_cells(void *arg, uint32_t item, unsigned worker)
{
    const struct choice *c = arg;
    const struct forward *f = c->f;
    const struct index_hparams *index = &f->model->hp.index;
    uint64_t begin = (uint64_t)item * INDEX_CELLS;
    uint64_t end = begin + INDEX_CELLS < c->keys.n_rows ? begin + INDEX_CELLS : c->keys.n_rows;
    size_t q_row = index->head_dim * sizeof(float);
    float *tile = f->s.index_tiles + worker * f->s.index_tile_floats;
    f->model->matmul->matmul(&c->keys, begin, end, ACT_F32,
                             c->rows->q + (size_t)c->first * index->n_head * index->head_dim, q_row,
                             c->n * index->n_head, tile, INDEX_CELLS);
    for (uint32_t i = 0; i < c->n; i++) {
        const float *weights = c->rows->weights + (size_t)(c->first + i) * index->n_head;
        float *scores = scores_of(f, i) + begin;
        memset(scores, 0, (end - begin) * sizeof(*scores));
        for (uint32_t h = 0; h < index->n_head; h++, tile += INDEX_CELLS) {
            for (uint64_t cell = 0; cell < end - begin; cell++)
                scores[cell] += weights[h] * (tile[cell] > 0.0f ? tile[cell] : 0.0f);
        }
    }
}

/* The best cells of a token in ascending order, in which attention adds them up. */
static void choose_cells(void *arg, uint32_t i, unsigned worker)
{
    (void)worker;
    const struct choice *c = arg;
    const struct forward *f = c->f;
    uint32_t k = f->model->hp.index.top_k;
    uint32_t *cells = f->s.cells + (size_t)(c->first + i) * k;
    float *scores = scores_of(f, i);
    top_k(cells, k, scores, f->position + c->first + i + 1);
    /* Marks the chosen ones. Other cells may have scores that are infinite only if all chosen ones have and come first. */
    for (uint32_t j = 0; j < k; j++)
        scores[cells[j]] = INFINITY;
    uint32_t n = 0;
    for (uint32_t cell = 0; n < k; cell++) {
        if (scores[cell] == INFINITY)
            cells[n++] = cell;
    }
}

/* Rows of the cache as a matrix: an element type of the cache is a block format, too. */
static struct weight cached_keys(const struct forward *f, uint32_t layer, uint32_t n_cells)
{
    static const uint32_t types[] = {[KV_F32] = BLOCK_F32, [KV_F16] = BLOCK_F16, [KV_Q8_0] = BLOCK_Q8_0};
    const struct kv_layer *kv = &f->kv->layers[layer];
    return (struct weight){.format = block_format_find(types[f->kv->type]),
                           .data = kv->index,
                           .n_rows = n_cells,
                           .n_cols = f->model->hp.index.head_dim,
                           .row_bytes = kv->index_row};
}

void index_choose(struct forward *f, uint32_t layer, enum rope_pairs pairs, const struct index_rows *rows)
{
    struct index_args args = {.layer = layer, .pairs = pairs, .rows = rows};
    for_each_token(f, finish_index, &args);
    for (uint32_t t = first_sparse(f); t < f->n_tokens; t += INDEX_TOKENS) {
        uint32_t n = f->n_tokens - t < INDEX_TOKENS ? f->n_tokens - t : INDEX_TOKENS;
        uint32_t n_cells = f->position + t + n;
        struct choice choice = {
            .f = f, .rows = rows, .first = t, .n = n, .keys = cached_keys(f, layer, n_cells)};
        run_region(f, score_cells, &choice, (n_cells + INDEX_CELLS - 1) / INDEX_CELLS);
        run_region(f, choose_cells, &choice, n);
    }
}

/* ---- attention ---- */

struct gather_args {
    struct forward *f;
    const uint32_t *cells;
    const struct kv_layer *kv;
};

static void gather_rows(void *arg, uint32_t item, unsigned worker)
{
    (void)worker;
    const struct gather_args *a = arg;
    uint32_t top_k = a->f->model->hp.index.top_k;
    uint32_t end = (item + 1) * INDEX_CELLS < top_k ? (item + 1) * INDEX_CELLS : top_k;
    size_t row = a->kv->k_row;
    for (uint32_t i = item * INDEX_CELLS; i < end; i++)
        memcpy(a->f->s.gathered + i * row, kv_cache_k(a->kv, 0, a->cells[i]), row);
}

void attend_chosen(struct forward *f, uint32_t layer)
{
    uint32_t top_k = f->model->hp.index.top_k;
    uint32_t sparse = first_sparse(f);
    if (sparse > 0) {
        struct attention_args args = attention_args_of(f, layer, 0, sparse);
        run_attention(f, &args);
    }
    for (uint32_t t = sparse; t < f->n_tokens; t++) {
        struct gather_args gather = {
            .f = f, .cells = f->s.cells + (size_t)t * top_k, .kv = &f->kv->layers[layer]};
        run_region(f, gather_rows, &gather, (top_k + INDEX_CELLS - 1) / INDEX_CELLS);
        struct attention_args args = attention_args_of(f, layer, t, 1);
        args.k = args.v = f->s.gathered;
        f->s.rows[t] = (int32_t)top_k - 1;
        run_attention(f, &args);
    }
}
