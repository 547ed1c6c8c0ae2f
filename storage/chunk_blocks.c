/* Blocks of a chunk: row after row joins the block before it while a shared code costs less than one more. */
#include "storage/chunk_blocks.h"

#include <math.h>
#include <string.h>

#include "storage/chunk_codec.h"

_Static_assert(CHUNK_BYTES / CHUNK_ROW_BYTES + CHUNK_BYTES / CHUNK_BLOCK_BYTES <= CHUNK_MAX_BLOCKS,
               "every row may be a block");

struct histogram {
    uint32_t bytes;
    uint32_t count[256];
};

static void count(struct histogram *h, const uint8_t *src, uint32_t bytes)
{
    memset(h, 0, sizeof(*h));
    h->bytes = bytes;
    for (uint32_t i = 0; i < bytes; i++)
        h->count[src[i]]++;
}

static void add(struct histogram *sum, const struct histogram *h)
{
    sum->bytes += h->bytes;
    for (int i = 0; i < 256; i++)
        sum->count[i] += h->count[i];
}

/* Bits, about: the entropy, half a byte for each symbol of the code's table, and the headers; at most what it takes uncoded.
 * 50 bytes more for every code: so much has to be saved for the time that the decoder takes to set one up. */
static float cost(const struct histogram *h)
{
    enum { HEADER_BITS = 24, CODED_BITS = HEADER_BITS + 50 * 8, SYMBOL_BITS = 4 };
    float coded = CODED_BITS, total = log2f((float)h->bytes);
    for (int i = 0; i < 256; i++) {
        if (h->count[i] > 0)
            coded += SYMBOL_BITS + (float)h->count[i] * (total - log2f((float)h->count[i]));
    }
    return fminf(coded, HEADER_BITS + 8.0f * (float)h->bytes);
}

uint32_t chunk_blocks(const uint8_t *src, uint32_t bytes, uint32_t row_bytes, uint32_t *ends)
{
    uint32_t n = 0, step = row_bytes;
    if (step < CHUNK_ROW_BYTES)
        step = CHUNK_ROW_BYTES;
    if (step > CHUNK_BLOCK_BYTES)
        step = CHUNK_BLOCK_BYTES;
    struct histogram block = {0};
    float block_cost = 0;
    for (uint32_t at = 0; at < bytes;) {
        /* Long rows are cut as well where they end, or the rest of one and the next would be one piece. */
        uint32_t piece = bytes - at < step ? bytes - at : step;
        if (row_bytes > step && at % row_bytes + piece > row_bytes)
            piece = row_bytes - at % row_bytes;
        struct histogram row, both = block;
        count(&row, src + at, piece);
        add(&both, &row);
        float row_cost = cost(&row), both_cost = cost(&both);
        if (block.bytes > 0 && (both.bytes > CHUNK_BLOCK_BYTES || both_cost > block_cost + row_cost)) {
            ends[n++] = at;
            block = row;
            block_cost = row_cost;
        } else {
            block = both;
            block_cost = both_cost;
        }
        at += piece;
    }
    ends[n++] = bytes;
    return n;
}
