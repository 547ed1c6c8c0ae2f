/* Lossy modes: what a router's choice becomes where an expert is not in memory and the user would rather have speed than
 * the exact result. The only code that lets the cache's state reach what is computed; it runs behind --drop-below and
 * --substitute alone.
 *
 * An expert that some token of a chunk needs all the same is read, and then serves every token that chose it: leaving it
 * out for the others would save nothing. A token's first expert is always kept, and read if it must be: it carries most
 * of the weight, and it is what lets the cache follow the text. */
#ifndef PENSTOCK_RUNTIME_LOSSY_H
#define PENSTOCK_RUNTIME_LOSSY_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/penstock.h"

struct forward;

/* In the place of an expert that was left out. */
#define LOSSY_NO_EXPERT PS_NO_EXPERT

/* (token, layer, rank) choices since the last reset. */
struct lossy_counts {
    uint64_t choices; /* by the model's own number of experts per token */
    uint64_t trimmed; /* of them not asked for (--top-k) */
    uint64_t dropped, substituted;
};

struct lossy_rules {
    float drop_below; /* share of the token's weights; 0: nothing is dropped */
    bool substitute;
};

enum lossy_flag {
    LOSSY_RESIDENT = 1, /* in memory */
    LOSSY_NEEDED = 2,   /* is read for some token; lossy_change's own */
};

/* How one layer's router has chosen for a chunk. */
struct lossy_routing {
    uint32_t n_tokens, k, n_expert;
    const float *scores;  /* [n_tokens][n_expert] of the router */
    const float *weights; /* [n_tokens][k] */
    uint32_t *ids;        /* [n_tokens][k] best first; changed in place */
    uint8_t *flags;       /* [n_expert] LOSSY_RESIDENT is the caller's to set */
};

/* Drops, then substitutes. False: nothing was changed. Else weights are to be made anew from ids and scores. */
bool lossy_change(const struct lossy_rules *rules, const struct lossy_routing *routing,
                  struct lossy_counts *counts);

/* Counts the choices of a layer and applies the model's rules to them. False: nothing was changed. */
bool lossy_choose(struct forward *f, uint32_t layer);

#endif
