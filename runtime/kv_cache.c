#include "runtime/kv_cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "storage/mapping.h"

enum { LINE = 64 };

static uint64_t round_up(uint64_t n, uint64_t step)
{
    return (n + step - 1) / step * step;
}

static bool has_cells(const struct layer_hparams *l)
{
    return !l->recurrent && l->n_kv_head > 0;
}

static uint64_t index_bytes(const struct layer_hparams *l, enum kv_type type)
{
    return l->index_dim ? kv_row_bytes(type, l->index_dim) : 0;
}

static bool index_by_block(const struct layer_hparams *l)
{
    return l->block && !l->index_by_cell;
}

/* Rows of all heads for one position. */
static uint64_t cell_bytes(const struct layer_hparams *l, enum kv_type type)
{
    if (!has_cells(l))
        return 0;
    uint64_t k = kv_row_bytes(type, l->head_dim_k);
    uint64_t v = l->v_in_k ? 0 : kv_row_bytes(type, l->head_dim_v);
    return l->n_kv_head * (k + v) + (index_by_block(l) ? 0 : index_bytes(l, type));
}

/* Rows of one block. */
static uint64_t block_bytes(const struct layer_hparams *l, enum kv_type type)
{
    if (!has_cells(l) || !l->block)
        return 0;
    return (index_by_block(l) ? index_bytes(l, type) : 0) +
           (l->compressed ? kv_row_bytes(type, l->head_dim_k) : 0);
}

static uint32_t window_step(const struct layer_hparams *l)
{
    return l->window_in_chunks ? l->window : attention_window_step(l->window);
}

/* A windowed layer keeps the window, a chunk, and as much as its rows move by at a time. */
static uint32_t layer_cells(const struct layer_hparams *l, uint32_t ctx, uint32_t chunk)
{
    if (!has_cells(l))
        return 0;
    uint64_t cells = (uint64_t)l->window + window_step(l) + chunk;
    return l->window == 0 || cells >= ctx ? ctx : (uint32_t)cells;
}

uint64_t kv_token_bytes(const struct hparams *hp, enum kv_type type)
{
    uint64_t bytes = 0;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        const struct layer_hparams *l = &hp->layer[il];
        bytes += l->window == 0 ? cell_bytes(l, type) : 0;
        bytes += l->block ? (block_bytes(l, type) + l->block - 1) / l->block : 0;
    }
    return bytes;
}

uint64_t kv_fixed_bytes(const struct hparams *hp, enum kv_type type)
{
    uint64_t bytes = 0;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        const struct layer_hparams *l = &hp->layer[il];
        bytes += l->window * cell_bytes(l, type) + l->state_floats * sizeof(float);
    }
    return bytes;
}

/* Lays a layer out from base (NULL: only measures), each part at the start of a cache line. */
static uint64_t lay_out(struct kv_layer *layer, const struct layer_hparams *l, enum kv_type type,
                        uint32_t ctx, uint32_t chunk, uint8_t *base)
{
    *layer = (struct kv_layer){.cells = layer_cells(l, ctx, chunk), .state_floats = l->state_floats};
    if (has_cells(l)) {
        layer->n_kv_head = l->n_kv_head;
        layer->window = l->window;
        layer->step = window_step(l);
        layer->k_row = kv_row_bytes(type, l->head_dim_k);
        layer->v_row = l->v_in_k ? 0 : kv_row_bytes(type, l->head_dim_v);
        layer->index_row = index_bytes(l, type);
        layer->block = l->block;
        layer->block_row = l->block && l->compressed ? layer->k_row : 0;
    }
    uint64_t n_blocks = layer->block ? ctx / layer->block : 0;
    uint64_t heads = (uint64_t)layer->n_kv_head * layer->cells;
    uint64_t v = round_up(heads * layer->k_row, LINE);
    uint64_t index = v + round_up(heads * layer->v_row, LINE);
    uint64_t blocks =
        index + round_up((index_by_block(l) ? n_blocks : layer->cells) * layer->index_row, LINE);
    uint64_t state = blocks + round_up(n_blocks * layer->block_row, LINE);
    uint64_t end = state + round_up(layer->state_floats * sizeof(float), LINE);
    if (base) {
        layer->k = base;
        layer->v = l->v_in_k ? base : base + v;
        layer->index = base + index;
        layer->blocks = base + blocks;
        layer->state = (float *)(void *)(base + state);
    }
    if (l->v_in_k)
        layer->v_row = layer->k_row; /* the same rows, so the same distance */
    return end;
}

uint64_t kv_cache_bytes(const struct hparams *hp, enum kv_type type, uint32_t ctx, uint32_t chunk)
{
    uint64_t bytes = 0;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        struct kv_layer layer;
        bytes += lay_out(&layer, &hp->layer[il], type, ctx, chunk, NULL);
    }
    return bytes;
}

int kv_cache_init(struct kv_cache *kv, const struct hparams *hp, enum kv_type type, uint32_t ctx,
                  uint32_t chunk)
{
    *kv = (struct kv_cache){.type = type, .ctx = ctx, .n_layers = hp->n_layers};
    kv->bytes = kv_cache_bytes(hp, type, ctx, chunk);
    kv->layers = calloc(hp->n_layers, sizeof(*kv->layers));
    kv->memory = mapping_new(kv->bytes > 0 ? kv->bytes : 1);
    if (!kv->layers || !kv->memory) {
        kv_cache_deinit(kv);
        return -ENOMEM;
    }
    uint8_t *at = kv->memory;
    for (uint32_t il = 0; il < hp->n_layers; il++)
        at += lay_out(&kv->layers[il], &hp->layer[il], type, ctx, chunk, at);
    return 0;
}

void kv_cache_deinit(struct kv_cache *kv)
{
    mapping_free(kv->memory, kv->bytes > 0 ? kv->bytes : 1);
    free(kv->layers);
    kv->memory = NULL;
    kv->layers = NULL;
}

/* Moves the rows from position `first` on to the start. */
static void move_rows(uint8_t *rows, uint32_t n_heads, uint32_t cells, size_t row, uint32_t from, uint32_t n)
{
    for (uint32_t h = 0; h < n_heads; h++) {
        uint8_t *head = rows + (uint64_t)h * cells * row;
        memmove(head, head + from * row, n * row);
    }
}

static void make_room(struct kv_layer *layer, uint32_t n_used, uint32_t n)
{
    if (layer->window == 0 || n_used - layer->first + n <= layer->cells)
        return;
    /* The next token sees window - 1 positions before its own. */
    uint32_t needed = n_used + 1 > layer->window ? n_used + 1 - layer->window : 0;
    uint32_t first = needed / layer->step * layer->step;
    uint32_t from = first - layer->first;
    uint32_t left = n_used - first;
    move_rows(layer->k, layer->n_kv_head, layer->cells, layer->k_row, from, left);
    if (layer->v != layer->k)
        move_rows(layer->v, layer->n_kv_head, layer->cells, layer->v_row, from, left);
    if (layer->index_row > 0 && layer->block == 0)
        move_rows(layer->index, 1, layer->cells, layer->index_row, from, left);
    layer->first = first;
}

void kv_cache_make_room(struct kv_cache *kv, uint32_t n)
{
    for (uint32_t il = 0; il < kv->n_layers; il++)
        make_room(&kv->layers[il], kv->n_used, n);
}

static void clear(struct kv_cache *kv)
{
    for (uint32_t il = 0; il < kv->n_layers; il++) {
        kv->layers[il].first = 0;
        if (kv->layers[il].state_floats > 0)
            memset(kv->layers[il].state, 0, kv->layers[il].state_floats * sizeof(float));
    }
}

void kv_cache_chunk_failed(struct kv_cache *kv)
{
    bool ahead = false;
    for (uint32_t il = 0; il < kv->n_layers; il++)
        ahead = ahead || kv->layers[il].state_floats > 0;
    if (!ahead)
        return;
    clear(kv);
    kv->n_used = 0;
}

uint32_t kv_cache_truncate(struct kv_cache *kv, uint32_t n)
{
    if (n >= kv->n_used)
        return kv->n_used;
    for (uint32_t il = 0; il < kv->n_layers; il++) {
        const struct kv_layer *layer = &kv->layers[il];
        bool lost = layer->first > 0 && n + 1 < layer->first + layer->window;
        if (layer->state_floats > 0 || lost)
            n = 0;
    }
    if (n == 0)
        clear(kv);
    kv->n_used = n;
    return n;
}
