/* Replay of routing traces: the order in which a policy is told what, what is counted, and that Belady's optimum is
 * one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "policy_replay.h"

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* n_tokens x n_layers sets of 1..max_n experts, low ids more often. */
static struct trace random_trace(uint32_t n_layers, uint32_t n_experts, uint32_t max_n, uint32_t n_tokens,
                                 uint32_t seed)
{
    struct trace trace = {n_layers, n_experts, n_layers * n_tokens, NULL};
    trace.sets = calloc(trace.n_sets, sizeof(*trace.sets));
    for (uint32_t s = 0; s < trace.n_sets; s++) {
        struct trace_set *set = &trace.sets[s];
        *set = (struct trace_set){.token = s / n_layers, .layer = s % n_layers};
        uint32_t n = 1 + next_random(&seed) % max_n;
        while (set->n < n) {
            uint32_t id = next_random(&seed) % n_experts * (next_random(&seed) % n_experts) / n_experts;
            bool known = false;
            for (uint32_t i = 0; i < set->n; i++)
                known |= set->ids[i] == id;
            if (!known)
                set->ids[set->n++] = id;
        }
    }
    return trace;
}

/* ---- the order of calls ---- */

/* A first-in first-out policy that writes down what it is told. */
static struct {
    char log[4096];
    uint32_t n;
    uint32_t queue[64];
    uint32_t n_queued;
} told;

static void note(const char *what, uint32_t shard)
{
    told.n += (uint32_t)snprintf(told.log + told.n, sizeof(told.log) - told.n, "%s%u ", what, shard);
}

static void *fifo_create(const struct cache_policy_shape *shape)
{
    (void)shape;
    memset(&told, 0, sizeof(told));
    return &told;
}

static void *create_nothing(const struct cache_policy_shape *shape)
{
    (void)shape;
    return NULL;
}

static void fifo_destroy(void *state)
{
    (void)state;
}

static void fifo_access(void *state, uint32_t shard, uint64_t token)
{
    (void)state;
    (void)token;
    note("a", shard);
}

static void fifo_inserted(void *state, uint32_t shard)
{
    (void)state;
    note("i", shard);
    told.queue[told.n_queued++] = shard;
}

static void fifo_removed(void *state, uint32_t shard)
{
    (void)state;
    note("r", shard);
    uint32_t at = 0;
    while (told.queue[at] != shard)
        at++;
    memmove(told.queue + at, told.queue + at + 1, (--told.n_queued - at) * sizeof(told.queue[0]));
}

static uint32_t fifo_victim(void *state, bool (*may_evict)(void *ctx, uint32_t shard), void *ctx)
{
    (void)state;
    for (uint32_t i = 0; i < told.n_queued; i++)
        if (may_evict(ctx, told.queue[i]))
            return told.queue[i];
    return UINT32_MAX;
}

/* The eldest, whether it may leave or not. */
static uint32_t disobedient_victim(void *state, bool (*may_evict)(void *ctx, uint32_t shard), void *ctx)
{
    (void)state;
    (void)may_evict;
    (void)ctx;
    return told.queue[0];
}

static const struct cache_policy fifo = {
    .name = "fifo",
    .create = fifo_create,
    .destroy = fifo_destroy,
    .access = fifo_access,
    .inserted = fifo_inserted,
    .removed = fifo_removed,
    .victim = fifo_victim,
};

static void policy_is_told_all_accesses_of_a_visit_before_its_misses(void **state)
{
    (void)state;
    struct trace_set sets[] = {
        {.token = 7, .layer = 0, .n = 2, .ids = {0, 1}},
        {.token = 7, .layer = 1, .n = 1, .ids = {2}},
        {.token = 8, .layer = 0, .n = 2, .ids = {3, 0}}, /* 0 stays: the visit needs it */
        {.token = 8, .layer = 1, .n = 1, .ids = {2}},
    };
    struct trace trace = {2, 4, 4, sets};
    assert_int_equal(replay_hits(&trace, &fifo, 3), 2);
    assert_string_equal(told.log, "a0 a1 i0 i1 a6 i6 a3 a0 r1 i3 a6 ");
}

static void policy_that_breaks_its_contract_is_named(void **state)
{
    (void)state;
    struct trace_set sets[] = {
        {.token = 0, .layer = 0, .n = 2, .ids = {0, 1}},
        {.token = 1, .layer = 0, .n = 2, .ids = {0, 2}},
    };
    struct trace trace = {1, 4, 2, sets};
    struct trace_view view;
    trace_view_init(&view, &trace);
    struct cache_policy bad = fifo;
    bad.victim = disobedient_victim;
    struct replay_result result;
    struct ps_error err;
    assert_int_equal(cache_replay(&view.trace, &bad, 2, 0, &result, &err), PS_ERR_ARGUMENT);
    assert_non_null(strstr(err.message, "fifo"));
    bad.create = create_nothing;
    assert_int_equal(cache_replay(&view.trace, &bad, 2, 0, &result, &err), PS_ERR_NOMEM);
    trace_view_deinit(&view);
}

/* ---- what is counted ---- */

static void only_tokens_after_the_skipped_ones_are_counted(void **state)
{
    (void)state;
    struct trace_set sets[] = {
        {.token = 3, .layer = 0, .n = 2, .ids = {0, 1}}, {.token = 3, .layer = 1, .n = 1, .ids = {0}},
        {.token = 4, .layer = 0, .n = 2, .ids = {1, 2}}, {.token = 4, .layer = 1, .n = 1, .ids = {0}},
        {.token = 9, .layer = 0, .n = 2, .ids = {3, 0}}, {.token = 9, .layer = 1, .n = 1, .ids = {1}},
    };
    struct trace trace = {2, 4, 6, sets};
    struct trace_view view;
    trace_view_init(&view, &trace);
    const struct replay_result expected[] = {
        {.accesses = 9, .hits = 2, .cold = 6, .evictions = 4, .tokens = 3},
        {.accesses = 6, .hits = 2, .cold = 3, .evictions = 4, .tokens = 2},
        {.accesses = 3, .hits = 0, .cold = 2, .evictions = 3, .tokens = 1},
        {.accesses = 0},
    };
    for (uint64_t skip = 0; skip < 4; skip++) {
        struct replay_result result;
        assert_int_equal(cache_replay(&view.trace, &fifo, 3, skip, &result, NULL), PS_OK);
        assert_memory_equal(&result, &expected[skip], sizeof(result));
        assert_int_equal(cache_replay_belady(&view.trace, 3, skip, &result, NULL), PS_OK);
        assert_int_equal(result.accesses, expected[skip].accesses);
        assert_int_equal(result.cold, expected[skip].cold);
        assert_int_equal(result.tokens, expected[skip].tokens);
    }
    trace_view_deinit(&view);
}

static void everything_but_cold_misses_hits_when_all_experts_fit(void **state)
{
    (void)state;
    struct trace trace = random_trace(4, 20, 5, 50, 3);
    struct trace_view view;
    trace_view_init(&view, &trace);
    for (uint32_t p = 0; cache_policy_at(p); p++) {
        struct replay_result result;
        assert_int_equal(cache_replay(&view.trace, cache_policy_at(p), 80, 0, &result, NULL), PS_OK);
        assert_int_equal(result.hits + result.cold, result.accesses);
        assert_int_equal(result.evictions, 0);
        assert_true(result.cold > 0 && result.cold <= 80);
    }
    trace_view_deinit(&view);
    free(trace.sets);
}

static void malformed_traces_and_too_few_slots_are_refused(void **state)
{
    (void)state;
    const struct {
        struct trace_set set;
        const char *message;
    } cases[] = {
        {{.layer = 2, .n = 1, .ids = {0}}, "layer 2 of 2"},
        {{.layer = 1, .n = 2, .ids = {0, 4}}, "4 experts, not 4"},
        {{.layer = 1, .n = 2, .ids = {3, 3}}, "expert 3 twice"},
        {{.layer = 1, .n = 4, .ids = {0, 1, 2, 3}}, "3 slots"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct trace_set sets[] = {{.layer = 0, .n = 1, .ids = {1}}, cases[i].set};
        struct trace trace = {2, 4, 2, sets};
        struct trace_view view;
        trace_view_init(&view, &trace);
        struct replay_result result;
        struct ps_error err;
        assert_int_equal(cache_replay(&view.trace, &fifo, 3, 0, &result, &err), PS_ERR_ARGUMENT);
        assert_non_null(strstr(err.message, cases[i].message));
        assert_int_equal(cache_replay_belady(&view.trace, 3, 0, &result, &err), PS_ERR_ARGUMENT);
        assert_non_null(strstr(err.message, cases[i].message));
        trace_view_deinit(&view);
    }
}

static void empty_trace_counts_nothing(void **state)
{
    (void)state;
    const struct replay_trace none = {0};
    const struct replay_result zeros = {0};
    struct replay_result result = {.hits = 1};
    assert_int_equal(cache_replay(&none, cache_policy_at(0), 1, 0, &result, NULL), PS_OK);
    assert_memory_equal(&result, &zeros, sizeof(zeros));
    result.hits = 1;
    assert_int_equal(cache_replay_belady(&none, 1, 0, &result, NULL), PS_OK);
    assert_memory_equal(&result, &zeros, sizeof(zeros));
}

/* ---- Belady ---- */

enum { FEW_SHARDS = 6, ALL_SETS = 1 << FEW_SHARDS };

/* The most hits of any choice of what to keep after each visit, by trying all of them. */
static int best_hits(const struct trace *trace, int n_slots, uint32_t skip)
{
    int best[ALL_SETS], next[ALL_SETS];
    for (int kept = 0; kept < ALL_SETS; kept++)
        best[kept] = kept == 0 ? 0 : -1;
    for (uint32_t s = 0; s < trace->n_sets; s++) {
        const struct trace_set *set = &trace->sets[s];
        int asked = 0;
        for (uint32_t i = 0; i < set->n; i++)
            asked |= 1 << (set->layer * trace->n_experts + set->ids[i]);
        memset(next, -1, sizeof(next));
        for (int kept = 0; kept < ALL_SETS; kept++) {
            if (best[kept] < 0)
                continue;
            int hits = best[kept] + (set->token >= skip ? __builtin_popcount((unsigned)(kept & asked)) : 0);
            for (int keep = 0; keep < ALL_SETS; keep++)
                if ((keep & ~(kept | asked)) == 0 && __builtin_popcount((unsigned)keep) <= n_slots &&
                    hits > next[keep])
                    next[keep] = hits;
        }
        memcpy(best, next, sizeof(best));
    }
    int most = 0;
    for (int kept = 0; kept < ALL_SETS; kept++)
        most = best[kept] > most ? best[kept] : most;
    return most;
}

static void belady_hits_as_often_as_the_best_of_all_choices(void **state)
{
    (void)state;
    for (uint32_t seed = 1; seed <= 40; seed++) {
        struct trace trace = random_trace(2, FEW_SHARDS / 2, 2, 12, seed);
        struct trace_view view;
        trace_view_init(&view, &trace);
        for (uint32_t n_slots = 2; n_slots <= 5; n_slots++)
            for (uint32_t skip = 0; skip <= 8; skip += 4) {
                struct replay_result result;
                assert_int_equal(cache_replay_belady(&view.trace, n_slots, skip, &result, NULL), PS_OK);
                assert_int_equal(result.hits, best_hits(&trace, (int)n_slots, skip));
            }
        trace_view_deinit(&view);
        free(trace.sets);
    }
}

static void no_policy_hits_more_often_than_belady(void **state)
{
    (void)state;
    struct trace trace = random_trace(6, 40, 5, 300, 9);
    struct trace_view view;
    trace_view_init(&view, &trace);
    for (uint32_t n_slots = 5; n_slots <= 245; n_slots += 40) {
        struct replay_result best, result;
        assert_int_equal(cache_replay_belady(&view.trace, n_slots, 30, &best, NULL), PS_OK);
        for (uint32_t p = 0; cache_policy_at(p); p++) {
            assert_int_equal(cache_replay(&view.trace, cache_policy_at(p), n_slots, 30, &result, NULL),
                             PS_OK);
            assert_true(result.hits <= best.hits);
            assert_int_equal(result.accesses, best.accesses);
            assert_int_equal(result.cold, best.cold);
        }
        assert_true(best.hits + best.cold <= best.accesses);
    }
    trace_view_deinit(&view);
    free(trace.sets);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(policy_is_told_all_accesses_of_a_visit_before_its_misses),
        cmocka_unit_test(policy_that_breaks_its_contract_is_named),
        cmocka_unit_test(only_tokens_after_the_skipped_ones_are_counted),
        cmocka_unit_test(everything_but_cold_misses_hits_when_all_experts_fit),
        cmocka_unit_test(malformed_traces_and_too_few_slots_are_refused),
        cmocka_unit_test(empty_trace_counts_nothing),
        cmocka_unit_test(belady_hits_as_often_as_the_best_of_all_choices),
        cmocka_unit_test(no_policy_hits_more_often_than_belady),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
