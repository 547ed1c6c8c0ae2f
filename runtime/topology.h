/* How many compute threads can make sense: the CPUs of the machine by kind, among those this process may use, and the
 * limits of its cgroups (v1 and v2). */
#ifndef PENSTOCK_RUNTIME_TOPOLOGY_H
#define PENSTOCK_RUNTIME_TOPOLOGY_H

#include <sched.h>
#include <stdint.h>

/* At least 1 each. What sysfs does not tell counts as one thread per core, all cores alike. */
struct topology {
    uint32_t performance; /* cores of about the best speed */
    uint32_t physical;    /* cores */
    uint32_t logical;     /* hardware threads */
    double quota;         /* CPUs' worth of time by the cgroups' limits; 0: unlimited */
};

/* root: where /sys and /proc are looked for, "" outside tests. allowed: CPUs that may be used; offline ones do not matter. */
void topology_read(struct topology *t, const char *root, const cpu_set_t *allowed);
/* Of this machine and process. */
void topology_read_own(struct topology *t);

struct thread_candidate {
    uint32_t n;
    const char *what; /* "performance cores" */
};
enum { MAX_THREAD_CANDIDATES = 3 };
/* Distinct numbers of threads, ascending, within the quota rounded up and `most`; how many. */
uint32_t topology_candidates(const struct topology *t, uint32_t most,
                             struct thread_candidate candidates[MAX_THREAD_CANDIDATES]);

#endif
