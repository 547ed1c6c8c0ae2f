/* Pacing of a thread pool: how long its threads spin before they sleep. Spinning saves the time of a wake-up where the
 * wait is shorter, and is lost where it is longer, so a wait is begun by spinning only while waits of late were
 * shorter on average, and not at all while someone else needs the CPUs. Belongs to the thread that calls
 * thread_pool_run; the pool passes its decisions on. All times in nanoseconds of one clock. */
#ifndef PENSTOCK_KERNELS_POOL_PACING_H
#define PENSTOCK_KERNELS_POOL_PACING_H

#include <stdbool.h>
#include <stdint.h>

struct pool_pacing {
    bool may_spin;         /* there is a CPU for each thread */
    int64_t wake_cost;     /* what it takes to wake a thread, of late */
    int64_t gap;           /* mean time between runs, of late */
    int64_t finish;        /* mean time the caller waits for the others at the end of a run, of late */
    int64_t ended;         /* the last run; 0: there was none */
    int64_t crowded_until; /* threads were preempted: no spinning */
};

/* A run begins at now. Returns how long workers should spin when it is done. */
int64_t pool_pacing_begin(struct pool_pacing *p, int64_t now, int64_t wake_cost);
/* How long the caller, with nothing left to do from now on, should spin for the others to finish. */
int64_t pool_pacing_finish_spin(const struct pool_pacing *p, int64_t now);
/* The run is done; the caller has waited since idle. True if that was so long that a thread may have lost its CPU. */
bool pool_pacing_end(struct pool_pacing *p, int64_t idle, int64_t now);
/* Threads were preempted in the run that has ended. */
void pool_pacing_preempted(struct pool_pacing *p);

#endif
