/* Pacing of the thread pool, on a clock that the test moves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/pool_pacing.h"

enum { WAKE = 20000, RUN = 30000 };

struct clocked {
    struct pool_pacing pacing;
    int64_t now;
};

/* A run after a gap, with the caller waiting at its end; returns the workers' spin time. */
static int64_t run(struct clocked *c, int64_t gap, int64_t wait)
{
    c->now += gap;
    int64_t spin = pool_pacing_begin(&c->pacing, c->now, WAKE);
    c->now += RUN;
    pool_pacing_end(&c->pacing, c->now, c->now + wait);
    c->now += wait;
    return spin;
}

static int64_t run_many(struct clocked *c, unsigned n, int64_t gap, int64_t wait)
{
    int64_t spin = -1;
    for (unsigned i = 0; i < n; i++)
        spin = run(c, gap, wait);
    return spin;
}

static void workers_spin_while_runs_follow_each_other_fast(void **state)
{
    (void)state;
    struct clocked c = {.pacing = {.may_spin = true}, .now = 1};
    assert_int_equal(run_many(&c, 50, 2000, 0), WAKE);
    assert_int_equal(run_many(&c, 50, WAKE - 1000, 0), WAKE);
}

static void workers_sleep_at_once_when_gaps_are_longer_than_a_wake_up(void **state)
{
    (void)state;
    struct clocked c = {.pacing = {.may_spin = true}, .now = 1};
    assert_int_equal(run_many(&c, 50, 2 * WAKE, 0), 0);
    assert_int_equal(run_many(&c, 50, 2000, 0), WAKE); /* and spin again when that changes */
}

static void one_long_gap_is_soon_forgotten(void **state)
{
    (void)state;
    struct clocked c = {.pacing = {.may_spin = true}, .now = 1};
    run_many(&c, 50, 2000, 0);
    run(&c, 1000000000, 0);
    assert_int_equal(run_many(&c, 4, 2000, 0), WAKE);
}

static void caller_spins_only_for_short_finishes(void **state)
{
    (void)state;
    struct clocked c = {.pacing = {.may_spin = true}, .now = 1};
    run_many(&c, 50, 2000, 3000);
    assert_int_equal(pool_pacing_finish_spin(&c.pacing, c.now), WAKE);
    run_many(&c, 50, 2000, 5 * WAKE);
    assert_int_equal(pool_pacing_finish_spin(&c.pacing, c.now), 0);
}

static void nobody_spins_after_a_preemption_for_a_while(void **state)
{
    (void)state;
    struct clocked c = {.pacing = {.may_spin = true}, .now = 1};
    run_many(&c, 50, 2000, 0);
    assert_true(pool_pacing_end(&c.pacing, c.now, c.now + 1000000));
    c.now += 1000000;
    pool_pacing_preempted(&c.pacing);
    assert_int_equal(run_many(&c, 100, 2000, 0), 0);
    assert_int_equal(pool_pacing_finish_spin(&c.pacing, c.now), 0);
    assert_int_equal(run_many(&c, 300, 2000, 0), WAKE);
}

static void short_finish_is_no_sign_of_a_preemption(void **state)
{
    (void)state;
    struct clocked c = {.pacing = {.may_spin = true}, .now = 1};
    run(&c, 2000, 0);
    assert_false(pool_pacing_end(&c.pacing, c.now, c.now + 50000));
}

static void pool_with_too_few_cpus_never_spins(void **state)
{
    (void)state;
    struct clocked c = {.now = 1};
    assert_int_equal(run_many(&c, 50, 2000, 0), 0);
    assert_int_equal(pool_pacing_finish_spin(&c.pacing, c.now), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(workers_spin_while_runs_follow_each_other_fast),
        cmocka_unit_test(workers_sleep_at_once_when_gaps_are_longer_than_a_wake_up),
        cmocka_unit_test(one_long_gap_is_soon_forgotten),
        cmocka_unit_test(caller_spins_only_for_short_finishes),
        cmocka_unit_test(nobody_spins_after_a_preemption_for_a_while),
        cmocka_unit_test(short_finish_is_no_sign_of_a_preemption),
        cmocka_unit_test(pool_with_too_few_cpus_never_spins),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
