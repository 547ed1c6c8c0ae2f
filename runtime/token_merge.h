/* Greedy merging of neighbouring symbols by rank: the loop that byte-pair encoding and SentencePiece share. A text is cut into
 * UTF-8 characters; the pair with the smallest rank (the leftmost of equals) is joined until no pair has one.
 * O(n log n) in the text's length. */
#ifndef PENSTOCK_RUNTIME_TOKEN_MERGE_H
#define PENSTOCK_RUNTIME_TOKEN_MERGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct merge_symbol {
    uint32_t start;  /* bytes into the text */
    uint32_t length; /* bytes; 0 once joined to the symbol before */
    int32_t prev;    /* index; -1 at the start */
    int32_t next;    /* index; -1 at the end */
};

/* Whether the two symbols that lie side by side at text may be joined, and with which rank. */
typedef bool (*merge_rank)(const void *context, const char *text, uint32_t left, uint32_t right,
                           uint32_t *rank);

struct merge_candidate;

/* Buffers that are kept from one text to the next. All zero: empty. */
struct token_merger {
    struct merge_symbol *symbols; /* the result: a chain from symbols[0] along next */
    size_t symbol_capacity;
    struct merge_candidate *heap;
    size_t heap_count;
    size_t heap_capacity;
};

/* length: 1 .. INT32_MAX / 2. False when memory runs out. */
bool token_merger_run(struct token_merger *merger, const char *text, size_t length, merge_rank rank,
                      const void *context);
void token_merger_deinit(struct token_merger *merger);

#endif
