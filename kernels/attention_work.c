/* How a call of attention is divided: tiles of queries for many tokens, segments of cells for few. */
#include "kernels/attention_internal.h"

enum {
    ENOUGH_ITEMS = 64, /* to keep 16 threads evenly busy */
    MAX_PARTIAL_ROWS =
        128, /* bounds the memory of partial results; with more rows there are tiles to share */
};

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t ceil_div(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

static uint64_t first_visible(const struct attention_args *args, uint64_t pos)
{
    if (args->window == 0) {
        return 0;
    }
    if (args->window_in_chunks) {
        return pos / args->window * args->window;
    }
    return pos >= args->window ? pos - args->window + 1 : 0;
}

struct attention_span attention_span_of(const struct attention_args *args, uint32_t token)
{
    struct attention_span span = {.cells = ATTENTION_SEGMENT};
    if (args->pos[token] >= 0) {
        uint64_t pos = (uint64_t)args->pos[token];
        span.end = pos + 1;
        span.first = first_visible(args, pos);
    }
    while (attention_n_segments(&span) > ATTENTION_MAX_SEGMENTS) {
        span.cells *= 2;
    }
    return span;
}

/* The longest segment a token of this window can have: one that starts anywhere spans a segment more than its length. */
uint32_t attention_window_step(uint32_t window)
{
    uint32_t step = ATTENTION_SEGMENT;
    while (window / step + 2 > ATTENTION_MAX_SEGMENTS) {
        step *= 2;
    }
    return step;
}

struct attention_range attention_segment(const struct attention_span *span, uint64_t segment)
{
    uint64_t begin = segment * span->cells;
    uint64_t end = begin + span->cells;
    struct attention_range range = {.begin = begin > span->first ? begin : span->first,
                                    .end = end < span->end ? end : span->end};
    range.end = range.end > range.begin ? range.end : range.begin;
    return range;
}

/* Tiles as large as they may be. */
static struct attention_work full_tiles(const struct attention_args *args)
{
    uint32_t group = args->n_head / args->n_kv_head;
    struct attention_work work = {.tile_heads = min_u32(group, ATTENTION_TILE_ROWS)};
    work.tile_tokens = min_u32(args->n_tokens, ATTENTION_TILE_ROWS / work.tile_heads);
    work.n_head_tiles = ceil_div(group, work.tile_heads);
    return work;
}

static uint32_t n_tiles(const struct attention_args *args, const struct attention_work *work)
{
    return args->n_kv_head * work->n_head_tiles * ceil_div(args->n_tokens, work->tile_tokens);
}

/* Most rows for which segments become items. */
static uint32_t partial_rows(const struct attention_args *args)
{
    uint32_t tokens = args->n_head < MAX_PARTIAL_ROWS ? MAX_PARTIAL_ROWS / args->n_head : 1;
    return min_u32(tokens, args->n_tokens) * args->n_head;
}

struct attention_work attention_work_of(const struct attention_args *args)
{
    struct attention_work work = full_tiles(args);
    work.n_parts = 1;
    if (n_tiles(args, &work) < ENOUGH_ITEMS && args->n_tokens * args->n_head <= partial_rows(args)) {
        for (uint32_t t = 0; t < args->n_tokens; t++) {
            struct attention_span span = attention_span_of(args, t);
            uint32_t parts = attention_n_segments(&span);
            work.n_parts = parts > work.n_parts ? parts : work.n_parts;
        }
    }
    while (work.n_parts == 1 && work.tile_tokens > 1 && n_tiles(args, &work) < ENOUGH_ITEMS) {
        work.tile_tokens /= 2;
    }
    work.n_token_tiles = ceil_div(args->n_tokens, work.tile_tokens);
    work.n_items = n_tiles(args, &work) * work.n_parts;
    work.n_combines = work.n_parts > 1 ? args->n_tokens * args->n_head : 0;
    return work;
}

/* Items that read the same cells follow each other, so that neighbours in time find them in the processor's caches;
 * later tokens, which see more, come first, so that the last items to finish are short ones. */
void attention_tile_at(const struct attention_args *args, const struct attention_work *work, uint32_t item,
                       struct attention_tile *tile)
{
    uint32_t group = args->n_head / args->n_kv_head;
    uint32_t token_tile = work->n_token_tiles - 1 - item % work->n_token_tiles;
    uint32_t head_tile = item / work->n_token_tiles % work->n_head_tiles;
    uint32_t rest = item / (work->n_token_tiles * work->n_head_tiles);
    uint32_t kv_head = rest / work->n_parts;
    tile->part = rest % work->n_parts;
    tile->token = token_tile * work->tile_tokens;
    tile->n_tokens = min_u32(work->tile_tokens, args->n_tokens - tile->token);
    tile->head = kv_head * group + head_tile * work->tile_heads;
    tile->n_heads = min_u32(work->tile_heads, group - head_tile * work->tile_heads);
    tile->k = (const char *)args->k + kv_head * args->k_head_stride;
    tile->v = (const char *)args->v + kv_head * args->v_head_stride;
    uint64_t first = UINT64_MAX;
    uint64_t end = 0;
    for (uint32_t t = 0; t < tile->n_tokens; t++) {
        struct attention_span *span = &tile->spans[t];
        *span = attention_span_of(args, tile->token + t);
        tile->segment[t] = span->first / span->cells + tile->part;
        uint64_t last = tile->segment[t] + attention_n_segments(span);
        first = tile->segment[t] < first ? tile->segment[t] : first;
        end = last > end ? last : end;
    }
    tile->n_segments = 1;
    if (work->n_parts == 1) {
        /* Tokens take segments of the same number together: they are the same cells but for the few tiles in which
         * the segments' size changes. */
        tile->n_segments = (uint32_t)(end - first);
        for (uint32_t t = 0; t < tile->n_tokens; t++) {
            tile->segment[t] = first;
        }
    }
}

size_t attention_scratch_floats(const struct attention_args *args)
{
    struct attention_work work = full_tiles(args);
    size_t rows = (size_t)work.tile_heads * work.tile_tokens;
    size_t k = attention_padded(args->head_dim_k);
    size_t v = attention_padded(args->head_dim_v);
    enum { PER_ROW = ATTENTION_KEY_BLOCK + 5 }; /* scores; max, sum, decay; total max and sum */
    return rows * (k + v + PER_ROW) + ATTENTION_KEY_BLOCK * attention_packed(k > v ? k : v);
}

size_t attention_partial_floats(const struct attention_args *args, uint64_t n_cells)
{
    struct attention_work work = full_tiles(args);
    uint64_t parts = (n_cells + ATTENTION_SEGMENT - 1) / ATTENTION_SEGMENT;
    parts = parts < ATTENTION_MAX_SEGMENTS ? parts : ATTENTION_MAX_SEGMENTS;
    if (args->n_kv_head * work.n_head_tiles >= ENOUGH_ITEMS || parts <= 1) {
        return 0;
    }
    return (size_t)(partial_rows(args) * parts * (args->head_dim_v + 2));
}
