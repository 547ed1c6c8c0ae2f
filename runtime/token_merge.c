/* Greedy merging with a binary heap of candidate pairs. Entries are not removed when a symbol changes; they are
 * recognised as outdated when they come up. */
#include "runtime/token_merge.h"

#include <stdlib.h>

#include "runtime/utf8.h"

struct merge_candidate {
    uint32_t rank;
    uint32_t left;   /* symbol index */
    uint32_t length; /* bytes of both symbols when the entry was made */
};

static bool comes_before(const struct merge_candidate *a, const struct merge_candidate *b)
{
    return a->rank < b->rank || (a->rank == b->rank && a->left < b->left);
}

static void heap_push(struct token_merger *merger, struct merge_candidate entry)
{
    struct merge_candidate *heap = merger->heap;
    size_t at = merger->heap_count++;
    while (at > 0 && comes_before(&entry, &heap[(at - 1) / 2])) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = entry;
}

static struct merge_candidate heap_pop(struct token_merger *merger)
{
    struct merge_candidate *heap = merger->heap;
    struct merge_candidate top = heap[0];
    struct merge_candidate entry = heap[--merger->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= merger->heap_count)
            break;
        if (child + 1 < merger->heap_count && comes_before(&heap[child + 1], &heap[child]))
            child++;
        if (!comes_before(&heap[child], &entry))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = entry;
    return top;
}

/* The array with room for count elements; NULL when memory runs out (the old one is then still the owner's). */
static void *reserve(void *array, size_t *capacity, size_t count, size_t size)
{
    if (count <= *capacity)
        return array;
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes))
        return NULL;
    void *grown = realloc(array, bytes);
    if (grown)
        *capacity = count;
    return grown;
}

/* One heap entry per first pair; then each merge takes one out and puts in two, at most length - 1 times. */
static bool reserve_for(struct token_merger *merger, size_t length)
{
    void *symbols = reserve(merger->symbols, &merger->symbol_capacity, length, sizeof(*merger->symbols));
    if (!symbols)
        return false;
    merger->symbols = symbols;
    void *heap = reserve(merger->heap, &merger->heap_capacity, 2 * length, sizeof(*merger->heap));
    if (!heap)
        return false;
    merger->heap = heap;
    return true;
}

static size_t split_characters(struct merge_symbol *symbols, const char *text, size_t length)
{
    size_t n = 0;
    for (size_t at = 0; at < length; n++) {
        size_t bytes = utf8_sequence_length((unsigned char)text[at]);
        if (bytes > length - at)
            bytes = length - at;
        symbols[n] = (struct merge_symbol){
            .start = (uint32_t)at, .length = (uint32_t)bytes, .prev = (int32_t)n - 1, .next = (int32_t)n + 1};
        at += bytes;
    }
    symbols[n - 1].next = -1;
    return n;
}

bool token_merger_run(struct token_merger *merger, const char *text, size_t length, merge_rank rank,
                      const void *context)
{
    if (!reserve_for(merger, length))
        return false;

    struct merge_symbol *symbols = merger->symbols;
    size_t n = split_characters(symbols, text, length);
    merger->heap_count = 0;
    for (size_t i = 0; i + 1 < n; i++) {
        uint32_t left = symbols[i].length, right = symbols[i + 1].length, value;
        if (rank(context, text + symbols[i].start, left, right, &value))
            heap_push(merger, (struct merge_candidate){value, (uint32_t)i, left + right});
    }

    while (merger->heap_count > 0) {
        struct merge_candidate top = heap_pop(merger);
        struct merge_symbol *left = &symbols[top.left];
        if (left->length == 0 || left->next < 0)
            continue;
        struct merge_symbol *right = &symbols[left->next];
        if (left->length + right->length != top.length)
            continue;

        left->length += right->length;
        right->length = 0;
        left->next = right->next;
        if (right->next >= 0)
            symbols[right->next].prev = (int32_t)top.left;

        const int32_t first[2] = {left->prev, (int32_t)top.left};
        for (int k = 0; k < 2; k++) {
            if (first[k] < 0 || symbols[first[k]].next < 0)
                continue;
            const struct merge_symbol *a = &symbols[first[k]], *b = &symbols[a->next];
            uint32_t value;
            if (rank(context, text + a->start, a->length, b->length, &value))
                heap_push(merger, (struct merge_candidate){value, (uint32_t)first[k], a->length + b->length});
        }
    }
    return true;
}

void token_merger_deinit(struct token_merger *merger)
{
    free(merger->symbols);
    free(merger->heap);
    *merger = (struct token_merger){0};
}
