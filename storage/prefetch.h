/* Prefetch scheduler: which of the experts predicted for the next layers are read ahead, how many, and whether at all.
 *
 * Candidates come with probabilities. Those likely enough are read in the order of probability per byte, as many per
 * layer as the drive has lately been able to begin before their layer's turn. How likely is enough follows from the
 * share of bytes read in vain, which is held below a few percent. And every so often one token is decoded the other way, with
 * prefetch off or on: when that is faster the mode changes, so that speculation that does not pay ends.
 *
 * One thread, the one that walks the expert cache. It changes when bytes arrive, never what is computed. */
#ifndef PENSTOCK_STORAGE_PREFETCH_H
#define PENSTOCK_STORAGE_PREFETCH_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/expert_cache.h"

enum { PREFETCH_TRIALS = 8, PREFETCH_AROUND = 2 };

/* A list of predicted experts of one layer. */
struct prefetch_candidates {
    uint32_t layer;
    uint32_t n;
    uint64_t bytes;             /* of one expert */
    const uint32_t *experts;    /* [n] most likely first */
    const float *probabilities; /* [n] not increasing */
};

struct prefetch {
    struct expert_cache *cache;
    struct io_reader *reader;
    double threshold; /* least probability that is read */
    double width;     /* most reads begun per layer */

    bool on;                        /* the mode that is in use outside trials */
    bool trial;                     /* this token is decoded the other way */
    bool quiet;                     /* the last tokens missed nothing: there is nothing to read ahead */
    uint32_t until_trial;           /* tokens */
    uint32_t n_tokens;              /* timed */
    double main_s[PREFETCH_AROUND]; /* the last tokens outside trials */
    uint32_t n_main;
    double trial_s;   /* the last trial, until as many tokens after it as before are timed; else 0 */
    double around_s;  /* sum of the tokens around it, and */
    uint32_t n_after; /* how many after it */
    double ratios[PREFETCH_TRIALS]; /* trial over its neighbours */
    uint32_t n_ratios;

    /* This token's, for the width. */
    uint32_t started, offers, limited;
    /* For the differences between tokens. */
    struct expert_cache_stats seen;
    uint64_t seen_bytes;
    double recent_wasted, recent_bytes; /* decayed sums */
    double recent_useful, recent_late;  /* of what was read ahead */
    double rate, peak_rate;             /* bytes/s over the last token, and about the most so far */
    uint32_t n_quiet;                   /* tokens in a row without a miss */
};

void prefetch_init(struct prefetch *prefetch, struct expert_cache *cache, struct io_reader *reader);
/* Whether predictions are of use now; where not, there need not be any. */
bool prefetch_wants(const struct prefetch *prefetch);
/* Whether predictions from farther off are worth making for this token: while most of what is read ahead comes too late
 * though the drive has time, and now and then, so that there are outcomes. */
bool prefetch_wants_far(const struct prefetch *prefetch);
/* Reads ahead what is worth it of the lists, which belong to layers that have not begun. n <= 4. */
void prefetch_offer(struct prefetch *prefetch, const struct prefetch_candidates *lists, uint32_t n);
/* A chunk of n_tokens was computed in so many seconds. */
void prefetch_chunk_done(struct prefetch *prefetch, uint32_t n_tokens, double seconds);

#endif
