/* Top-k selection: a heap of the n best so far, built in the caller's array, worst at the root. */
#include <math.h>

#include "kernels/vector_ops.h"

/* A strict total order, so that the result is unique: score, then index; NaN below every number. */
static bool ranks_before(const float *scores, uint32_t a, uint32_t b)
{
    bool a_nan = isnan(scores[a]);
    bool b_nan = isnan(scores[b]);
    if (a_nan != b_nan) {
        return b_nan;
    }
    if (!a_nan && scores[a] != scores[b]) {
        return scores[a] > scores[b];
    }
    return a < b;
}

/* Lets the entry at `at` sink until no child ranks after it. */
static void sift_down(uint32_t *heap, uint32_t n, uint32_t at, const float *scores)
{
    uint32_t id = heap[at];
    for (;;) {
        size_t child = 2 * (size_t)at + 1;
        if (child >= n) {
            break;
        }
        if (child + 1 < n && ranks_before(scores, heap[child], heap[child + 1])) {
            child++;
        }
        if (!ranks_before(scores, id, heap[child])) {
            break;
        }
        heap[at] = heap[child];
        at = (uint32_t)child;
    }
    heap[at] = id;
}

void top_k(uint32_t *ids, uint32_t n, const float *scores, uint32_t count)
{
    if (n == 0) {
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = i;
    }
    for (uint32_t i = n / 2; i-- > 0;) {
        sift_down(ids, n, i, scores);
    }
    for (uint32_t i = n; i < count; i++) {
        if (ranks_before(scores, i, ids[0])) {
            ids[0] = i;
            sift_down(ids, n, 0, scores);
        }
    }
    for (uint32_t left = n - 1; left > 0; left--) {
        uint32_t worst = ids[0];
        ids[0] = ids[left];
        ids[left] = worst;
        sift_down(ids, left, 0, scores);
    }
}
