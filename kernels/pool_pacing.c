#include "kernels/pool_pacing.h"

enum {
    MEAN_WEIGHT = 8, /* a mean over about so many waits */
    LONG_WAIT = 4,   /* in wake-ups: longer waits count as this, so that one is soon forgotten */
    STALL_NANOSECONDS = 200 * 1000, /* far less than a scheduler's time slice */
    CROWDED_NANOSECONDS = 10000000, /* a few time slices */
};

static void add_wait(const struct pool_pacing *p, int64_t *mean, int64_t wait)
{
    int64_t counted = wait < LONG_WAIT * p->wake_cost ? wait : LONG_WAIT * p->wake_cost;
    *mean += (counted - *mean) / MEAN_WEIGHT;
}

static int64_t spin_time(const struct pool_pacing *p, int64_t mean, int64_t now)
{
    return p->may_spin && now >= p->crowded_until && mean < p->wake_cost ? p->wake_cost : 0;
}

int64_t pool_pacing_begin(struct pool_pacing *p, int64_t now, int64_t wake_cost)
{
    p->wake_cost = wake_cost;
    if (p->ended > 0)
        add_wait(p, &p->gap, now - p->ended);
    return spin_time(p, p->gap, now);
}

int64_t pool_pacing_finish_spin(const struct pool_pacing *p, int64_t now)
{
    return spin_time(p, p->finish, now);
}

bool pool_pacing_end(struct pool_pacing *p, int64_t idle, int64_t now)
{
    add_wait(p, &p->finish, now - idle);
    p->ended = now;
    return now - idle > STALL_NANOSECONDS;
}

void pool_pacing_preempted(struct pool_pacing *p)
{
    p->crowded_until = p->ended + CROWDED_NANOSECONDS;
}
