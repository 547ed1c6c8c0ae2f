/* Each token's rows are copied side by side, and the attention kernel works on the copy: copying a row costs little beside
 * its products with the queries of many heads. What a token's result is made of depends on its position alone. */
#include "runtime/block_gather.h"

#include <math.h>
#include <string.h>

struct gather {
    struct forward *f;
    const struct layer_hparams *l;
    const struct kv_layer *kv;
    const struct index_queries *index;
    struct weight index_rows;
    uint32_t token;     /* of slot 0 */
    uint32_t n;         /* slots in use */
    uint32_t n_choices; /* heads of keys that choose on their own, or 1 */
    uint32_t n_full[MAX_GATHER_SLOTS];
    int32_t last[MAX_GATHER_SLOTS]; /* gathered row */
    struct attention_args args[MAX_GATHER_SLOTS];
    struct attention_work work[MAX_GATHER_SLOTS];
    uint32_t first_item[MAX_GATHER_SLOTS + 1];
};

static uint32_t slot_of(const struct gather *g, uint32_t *item)
{
    uint32_t slot = 0;
    while (*item >= g->first_item[slot + 1])
        slot++;
    *item -= g->first_item[slot];
    return slot;
}

/* ---- choice ---- */

/* Index rows count as the weights of a product with the index queries. */
static struct weight index_weight(const struct forward *f, const struct layer_hparams *l,
                                  const struct kv_layer *kv)
{
    static const enum block_type types[] = {
        [KV_F32] = BLOCK_F32, [KV_F16] = BLOCK_F16, [KV_Q8_0] = BLOCK_Q8_0};
    return (struct weight){.format = block_format_find(types[f->kv->type]),
                           .data = kv->index,
                           .n_cols = l->index_dim,
                           .row_bytes = kv->index_row};
}

/* Cells of a token's last block, where that is not full. */
static uint32_t n_left(const struct gather *g, uint32_t slot)
{
    return (g->f->position + g->token + slot + 1) % g->l->block;
}

static bool chooses(const struct gather *g, uint32_t slot)
{
    if (g->l->compressed)
        return g->index && g->n_full[slot] > g->l->most_chosen;
    return g->f->position + g->token + slot + 1 > g->l->most_chosen;
}

static float *scores_of(const struct gather *g, uint32_t slot, uint32_t choice)
{
    const struct scratch *s = &g->f->s;
    return s->block_scores + slot * s->block_score_floats + choice * (s->block_score_floats / g->n_choices);
}

static uint32_t *blocks_of(const struct gather *g, uint32_t slot, uint32_t choice)
{
    const struct scratch *s = &g->f->s;
    return s->chosen_blocks + slot * s->chosen_block_ids + choice * (s->chosen_block_ids / g->n_choices);
}

/* Products of all heads with index rows [begin, end). */
static const float *multiply_rows(const struct gather *g, uint32_t slot, uint32_t begin, uint32_t end,
                                  unsigned worker)
{
    const struct index_hparams *index = &g->f->model->hp.index;
    float *tile = g->f->s.block_tiles + (size_t)worker * index->n_head * BLOCK_TILE;
    g->f->model->matmul->matmul(&g->index_rows, begin, end, ACT_F32,
                                g->index->q + (size_t)(g->token + slot) * g->index->stride,
                                index->head_dim * sizeof(float), index->n_head, tile, BLOCK_TILE);
    return tile;
}

static void score_by_block(const struct gather *g, uint32_t slot, uint32_t begin, uint32_t end,
                           unsigned worker)
{
    const struct index_queries *index = g->index;
    const float *tile = multiply_rows(g, slot, begin, end, worker);
    float *scores = scores_of(g, slot, 0) + begin;
    memset(scores, 0, (end - begin) * sizeof(*scores));
    for (uint32_t h = 0; h < g->f->model->hp.index.n_head; h++) {
        float weight = index->weights ? index->weights[(g->token + slot) * index->stride + h] : 1.0f;
        g->f->model->ops->axpy_relu(scores, tile + (size_t)h * BLOCK_TILE, weight, end - begin);
    }
}

static void score_by_cell(const struct gather *g, uint32_t slot, uint32_t begin, uint32_t end,
                          unsigned worker)
{
    uint32_t cells = g->l->block;
    const float *tile = multiply_rows(g, slot, begin * cells, end * cells, worker);
    for (uint32_t h = 0; h < g->n_choices; h++) {
        float *scores = scores_of(g, slot, h);
        for (uint32_t b = begin; b < end; b++) {
            const float *products = tile + (size_t)h * BLOCK_TILE + (b - begin) * cells;
            float most = products[0];
            for (uint32_t i = 1; i < cells; i++)
                most = products[i] > most ? products[i] : most;
            scores[b] = most;
        }
    }
}

static uint32_t tile_blocks(const struct gather *g)
{
    return g->l->index_by_cell ? BLOCK_TILE / g->l->block : BLOCK_TILE;
}

static void score_tile(void *arg, uint32_t item, unsigned worker)
{
    const struct gather *g = arg;
    uint32_t slot = slot_of(g, &item);
    uint32_t begin = item * tile_blocks(g);
    uint32_t end = begin + tile_blocks(g) < g->n_full[slot] ? begin + tile_blocks(g) : g->n_full[slot];
    if (g->l->index_by_cell)
        score_by_cell(g, slot, begin, end, worker);
    else
        score_by_block(g, slot, begin, end, worker);
}

static void score_blocks(struct gather *g)
{
    for (uint32_t slot = 0; slot < g->n; slot++) {
        uint32_t tiles = chooses(g, slot) ? (g->n_full[slot] + tile_blocks(g) - 1) / tile_blocks(g) : 0;
        g->first_item[slot + 1] = g->first_item[slot] + tiles;
    }
    if (g->first_item[g->n] > 0)
        run_region(g->f, score_tile, g, g->first_item[g->n]);
}

/* ---- the best of equals ----
 *
 * Scores are often equal: all cells of a block have one, and it is 0 where no product is positive. llama.cpp leaves the choice
 * among equals to libstdc++'s partial_sort, and this keeps the same ones: a heap with the worst at its root, in which a hole
 * sinks to a leaf before the new entry rises from there. */

struct candidates {
    const float *scores;
    uint32_t cells;  /* per score: 1, or a block's */
    uint32_t always; /* candidates from here on are better than all */
    uint32_t n;
};

static float score_of(const struct candidates *c, uint32_t id)
{
    return id >= c->always ? INFINITY : c->scores[id / c->cells];
}

static bool is_better(const struct candidates *c, uint32_t a, uint32_t b)
{
    return score_of(c, a) > score_of(c, b);
}

static void fill_hole(uint32_t *heap, uint32_t k, uint32_t hole, uint32_t id, const struct candidates *c)
{
    uint32_t top = hole;
    for (uint32_t child = 2 * hole + 1; child < k; child = 2 * hole + 1) {
        bool right = child + 1 < k && !is_better(c, heap[child + 1], heap[child]);
        child += right;
        heap[hole] = heap[child];
        hole = child;
    }
    while (hole > top && is_better(c, heap[(hole - 1) / 2], id)) {
        heap[hole] = heap[(hole - 1) / 2];
        hole = (hole - 1) / 2;
    }
    heap[hole] = id;
}

/* The k best, in no order. k <= n. */
static void choose_best(uint32_t *heap, uint32_t k, const struct candidates *c)
{
    for (uint32_t i = 0; i < k; i++)
        heap[i] = i;
    for (uint32_t i = k / 2; i-- > 0;)
        fill_hole(heap, k, i, heap[i], c);
    for (uint32_t i = k; k > 0 && i < c->n;) {
        if (is_better(c, i, heap[0])) {
            fill_hole(heap, k, 0, i, c);
            i++;
        } else {
            i = (i / c->cells + 1) * c->cells;
        }
    }
}

/* The last blocks, the token's own among them, are always chosen where the model says so. */
static void force_last(const struct gather *g, uint32_t slot, float *scores)
{
    uint32_t n = g->f->model->hp.index.last_blocks;
    n -= n > 0 && n_left(g, slot) > 0;
    for (uint32_t i = 0; i < n && i < g->n_full[slot]; i++)
        scores[g->n_full[slot] - 1 - i] = INFINITY;
}

/* Blocks; they may be all. */
static uint32_t choose_blocks(const struct gather *g, uint32_t slot, uint32_t choice)
{
    uint32_t *blocks = blocks_of(g, slot, choice);
    uint32_t n = g->n_full[slot];
    if (chooses(g, slot)) {
        uint32_t most =
            g->l->compressed ? g->l->most_chosen : (g->l->most_chosen - n_left(g, slot)) / g->l->block;
        struct candidates c = {
            .scores = scores_of(g, slot, choice), .cells = 1, .always = UINT32_MAX, .n = n};
        force_last(g, slot, scores_of(g, slot, choice));
        choose_best(blocks, most, &c);
        return most;
    }
    for (uint32_t i = 0; i < n; i++)
        blocks[i] = i;
    return n;
}

/* Cells: those after the last full block, then those of the best blocks. The last of these may have less than all its cells
 * chosen. */
static uint32_t choose_cells(const struct gather *g, uint32_t slot)
{
    struct candidates c = {.scores = scores_of(g, slot, 0),
                           .cells = g->l->block,
                           .always = g->n_full[slot] * g->l->block,
                           .n = g->f->position + g->token + slot + 1};
    choose_best(blocks_of(g, slot, 0), g->l->most_chosen, &c);
    return g->l->most_chosen;
}

/* ---- copies ---- */

/* The window's keys, then the blocks'. */
static uint32_t gather_compressed(const struct gather *g, uint32_t slot, uint32_t n, uint8_t *out)
{
    const uint32_t *blocks = blocks_of(g, slot, 0);
    uint32_t position = g->f->position + g->token + slot;
    uint32_t window = g->l->window;
    uint32_t first = position + 1 > window ? position + 1 - window : 0;
    uint32_t n_cells = position + 1 - first;
    memcpy(out, kv_cache_k(g->kv, 0, first), n_cells * g->kv->k_row);
    out += n_cells * g->kv->k_row;
    for (uint32_t i = 0; i < n; i++)
        memcpy(out + i * g->kv->block_row, g->kv->blocks + (size_t)blocks[i] * g->kv->block_row,
               g->kv->block_row);
    return n_cells + n;
}

/* One head's rows of the blocks' cells, and of those after the last full block. */
static void copy_blocks(const struct gather *g, uint32_t slot, const uint8_t *rows, size_t row,
                        const uint32_t *blocks, uint32_t n, uint8_t *out)
{
    size_t block = g->l->block * row;
    for (uint32_t i = 0; i < n; i++)
        memcpy(out + i * block, rows + blocks[i] * block, block);
    memcpy(out + n * block, rows + g->n_full[slot] * block, n_left(g, slot) * row);
}

static void copy_cells(const uint8_t *rows, size_t row, const uint32_t *cells, uint32_t n, uint8_t *out)
{
    for (uint32_t i = 0; i < n; i++)
        memcpy(out + i * row, rows + cells[i] * row, row);
}

/* Of what one head's rows are: blocks that it has chosen, or cells that are the same for all heads. */
static void copy_head(const struct gather *g, uint32_t slot, uint32_t head, const uint8_t *rows, size_t row,
                      uint32_t n, uint8_t *out)
{
    if (g->l->index_by_cell)
        copy_blocks(g, slot, rows, row, blocks_of(g, slot, head), n, out);
    else
        copy_cells(rows, row, blocks_of(g, slot, 0), n, out);
}

static void gather_slot(void *arg, uint32_t slot, unsigned worker)
{
    (void)worker;
    struct gather *g = arg;
    const struct kv_layer *kv = g->kv;
    uint8_t *out = g->f->s.slot_rows + slot * g->f->s.rows_bytes;
    size_t most = gathered_cells(g->l, g->f->kv->ctx);
    if (g->l->compressed) {
        uint32_t n = choose_blocks(g, slot, 0);
        g->last[slot] = (int32_t)gather_compressed(g, slot, n, out) - 1;
        return;
    }
    uint32_t n = 0;
    if (g->l->index_by_cell) {
        for (uint32_t choice = 0; choice < g->n_choices; choice++)
            n = choose_blocks(g, slot, choice);
        g->last[slot] = (int32_t)(n * g->l->block + n_left(g, slot)) - 1;
    } else {
        n = choose_cells(g, slot);
        g->last[slot] = (int32_t)n - 1;
    }
    uint8_t *values = out + kv->n_kv_head * most * kv->k_row;
    for (uint32_t h = 0; h < kv->n_kv_head; h++) {
        copy_head(g, slot, h, kv_cache_k(kv, h, 0), kv->k_row, n, out + h * most * kv->k_row);
        copy_head(g, slot, h, kv_cache_v(kv, h, 0), kv->v_row, n, values + h * most * kv->v_row);
    }
}

/* ---- attention ---- */

static void attend_item(void *arg, uint32_t item, unsigned worker)
{
    const struct gather *g = arg;
    const struct scratch *s = &g->f->s;
    uint32_t slot = slot_of(g, &item);
    g->f->model->attention->item(&g->args[slot], &g->work[slot], item,
                                 s->attention + worker * s->attention_floats);
}

static void combine_slot(void *arg, uint32_t slot, unsigned worker)
{
    (void)worker;
    const struct gather *g = arg;
    for (uint32_t i = 0; i < g->work[slot].n_combines; i++)
        g->f->model->attention->combine(&g->args[slot], &g->work[slot], i);
}

static void prepare_slot(struct gather *g, uint32_t layer, uint32_t slot)
{
    struct forward *f = g->f;
    const struct layer_hparams *l = g->l;
    size_t cells = gathered_cells(l, f->kv->ctx);
    const uint8_t *k = f->s.slot_rows + slot * f->s.rows_bytes;
    struct attention_args args = attention_args_of(f, layer, g->token + slot, 1);
    args.k = k;
    args.v = l->v_in_k ? k : k + l->n_kv_head * cells * g->kv->k_row;
    args.k_head_stride = cells * g->kv->k_row;
    args.v_head_stride = cells * g->kv->v_row;
    args.window = 0;
    args.pos = &g->last[slot];
    args.partials = f->s.rows_partials + slot * f->s.rows_partial_floats;
    g->args[slot] = args;
    g->work[slot] = attention_work_of(&args);
    g->first_item[slot + 1] = g->first_item[slot] + g->work[slot].n_items;
}

void attend_gathered(struct forward *f, uint32_t layer, uint32_t first, const struct index_queries *index)
{
    struct gather g = {.f = f, .l = &f->model->hp.layer[layer], .kv = &f->kv->layers[layer], .index = index};
    g.index_rows = index_weight(f, g.l, g.kv);
    g.index_rows.n_rows = g.l->index_by_cell ? f->kv->ctx : f->kv->ctx / g.l->block;
    g.n_choices = g.l->index_by_cell ? g.l->n_kv_head : 1;
    for (uint32_t token = first; token < f->n_tokens; token += g.n) {
        uint32_t left = f->n_tokens - token;
        g.token = token;
        g.n = left < f->s.gather_slots ? left : f->s.gather_slots;
        for (uint32_t slot = 0; slot < g.n; slot++)
            g.n_full[slot] = (f->position + token + slot + 1) / g.l->block;
        score_blocks(&g);
        run_region(f, gather_slot, &g, g.n);
        for (uint32_t slot = 0; slot < g.n; slot++)
            prepare_slot(&g, layer, slot);
        run_region(f, attend_item, &g, g.first_item[g.n]);
        run_region(f, combine_slot, &g, g.n);
    }
}

void attend_blocks(struct forward *f, uint32_t layer, const struct index_queries *index)
{
    uint32_t most = f->model->hp.layer[layer].most_chosen;
    uint32_t n_all = most > f->position ? most - f->position : 0;
    n_all = n_all < f->n_tokens ? n_all : f->n_tokens;
    if (n_all > 0) {
        struct attention_args args = attention_args_of(f, layer, 0, n_all);
        run_attention(f, &args);
    }
    if (n_all < f->n_tokens)
        attend_gathered(f, layer, n_all, index);
}
