/* One work item of attention: the query heads that share a kv head, for one token. Common to all levels. */
#ifndef PENSTOCK_KERNELS_ATTENTION_GROUP_H
#define PENSTOCK_KERNELS_ATTENTION_GROUP_H

#include "kernels/attention.h"

struct attention_group {
    const float *q;     /* [n_heads][head_dim_k] */
    float *out;         /* [n_heads][head_dim_v]; the weighted sum of V grows here */
    const float *sinks; /* [n_heads] or NULL */
    const char *k, *v;  /* cell 0 of the kv head */
    uint32_t n_heads;
    uint64_t first, end; /* visible cells */
    float *scores;       /* [n_heads][ATTENTION_KEY_BLOCK]; later the weights exp(score - max) */
    float *max;          /* [n_heads] largest logit so far */
    float *sum;          /* [n_heads] of exp(logit - max) so far */
    float *decay;        /* [n_heads] factor for what was summed before the block at hand */
};

/* Per-head floats of scratch: scores, max, sum, decay. */
enum { ATTENTION_SCRATCH_PER_HEAD = ATTENTION_KEY_BLOCK + 3 };

/* Items of one kv head follow each other, so that neighbours in time find its cells in the processor's
 * caches. */
struct attention_group attention_group_at(const struct attention_args *args, uint32_t item, float *scratch);

/* Where the visible part of begin's block ends. */
static inline uint64_t attention_block_end(const struct attention_group *group, uint64_t begin)
{
    uint64_t end = (begin / ATTENTION_KEY_BLOCK + 1) * ATTENTION_KEY_BLOCK;
    return end < group->end ? end : group->end;
}

extern const struct attention_kernels attention_scalar;
extern const struct attention_kernels attention_avx2;
extern const struct attention_kernels attention_avx512;
extern const struct attention_kernels attention_neon;

#endif
