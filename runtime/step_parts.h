/* Where the time of forward passes goes: the calling thread reads the clock where one part of a step ends and the next
 * begins, and after each work item of its own: less than a hundred times a layer, 25 ns each, or 0.1 % of a step of 20 ms.
 * What it waits for other threads at the end of parallel regions is taken off the part and counted as sync. */
#ifndef PENSTOCK_RUNTIME_STEP_PARTS_H
#define PENSTOCK_RUNTIME_STEP_PARTS_H

#include "runtime/clock.h"
#include "runtime/penstock.h"

struct step_parts {
    double seconds[PS_N_PARTS];
    double mark;   /* clock when the last part ended */
    double waited; /* for other threads since then */
};

/* What came before belongs to no part. */
static inline void step_parts_start(struct step_parts *parts)
{
    parts->mark = clock_seconds();
    parts->waited = 0.0;
}

/* All since the last mark was this part. */
static inline void step_part_done(struct step_parts *parts, enum ps_part part)
{
    double now = clock_seconds();
    parts->seconds[part] += now - parts->mark - parts->waited;
    parts->seconds[PS_PART_SYNC] += parts->waited;
    parts->mark = now;
    parts->waited = 0.0;
}

#endif
