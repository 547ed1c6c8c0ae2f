/* Cache policies in replay: what they promise on rings, on random accesses, and on the routing of real models. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "policy_replay.h"

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static uint64_t trace_accesses(const struct trace *trace)
{
    uint64_t n = 0;
    for (uint32_t s = 0; s < trace->n_sets; s++)
        n += trace->sets[s].n;
    return n;
}

static double hit_rate(const struct trace *trace, const char *policy, uint32_t n_slots)
{
    uint64_t hits = replay_hits(trace, cache_policy_find(policy), n_slots);
    assert_true(hits != UINT64_MAX);
    return (double)hits / (double)trace_accesses(trace);
}

static bool set_has(const struct trace_set *set, uint32_t id)
{
    for (uint32_t i = 0; i < set->n; i++)
        if (set->ids[i] == id)
            return true;
    return false;
}

/* Every token takes the same k experts of every layer. */
static struct trace ring_trace(uint32_t n_layers, uint32_t n_experts, uint32_t k, uint32_t n_tokens)
{
    struct trace trace = {n_layers, n_experts, n_layers * n_tokens, NULL};
    trace.sets = calloc(trace.n_sets, sizeof(*trace.sets));
    for (uint32_t s = 0; s < trace.n_sets; s++) {
        trace.sets[s] = (struct trace_set){.token = s / n_layers, .layer = s % n_layers, .n = k};
        for (uint32_t i = 0; i < k; i++)
            trace.sets[s].ids[i] = (i * 3 + s % n_layers) % n_experts;
    }
    return trace;
}

/* Every token takes k experts at random, low ids more often. */
static struct trace random_trace(uint32_t n_layers, uint32_t n_experts, uint32_t k, uint32_t n_tokens)
{
    struct trace trace = ring_trace(n_layers, n_experts, k, n_tokens);
    uint32_t seed = 1;
    for (uint32_t s = 0; s < trace.n_sets; s++) {
        trace.sets[s].n = 0;
        for (uint32_t i = 0; i < k; i++) {
            uint32_t id;
            do
                id = next_random(&seed) % n_experts * (next_random(&seed) % n_experts) / n_experts;
            while (set_has(&trace.sets[s], id));
            trace.sets[s].ids[trace.sets[s].n++] = id;
        }
    }
    return trace;
}

/* ---- the table ---- */

static void policies_are_found_by_name_and_the_default_comes_first(void **state)
{
    (void)state;
    assert_string_equal(cache_policy_at(0)->name, "decay");
    for (uint32_t i = 0; cache_policy_at(i); i++) {
        assert_ptr_equal(cache_policy_find(cache_policy_at(i)->name), cache_policy_at(i));
        assert_true(strlen(cache_policy_at(i)->summary) > 0);
    }
    assert_non_null(cache_policy_find("lru"));
    assert_null(cache_policy_find("no-such-policy"));
    assert_null(cache_policy_at(1000));
}

/* ---- contracts of every policy ---- */

static bool may_evict_none(void *ctx, uint32_t shard)
{
    (void)ctx;
    (void)shard;
    return false;
}

static bool may_evict_one(void *ctx, uint32_t shard)
{
    return shard == *(uint32_t *)ctx;
}

static void victim_is_any_permitted_resident_shard_or_none(void **state)
{
    (void)state;
    const uint32_t layer_first[] = {0, 10, 10, 32};
    const struct cache_policy_shape shape = {32, 32, 3, layer_first};
    for (uint32_t p = 0; cache_policy_at(p); p++) {
        const struct cache_policy *policy = cache_policy_at(p);
        void *instance = policy->create(&shape);
        assert_true(policy->victim(instance, may_evict_none, NULL) == UINT32_MAX);
        for (uint32_t shard = 0; shard < 32; shard++) {
            policy->access(instance, shard, shard / 5);
            policy->inserted(instance, shard);
        }
        assert_true(policy->victim(instance, may_evict_none, NULL) == UINT32_MAX);
        for (uint32_t shard = 0; shard < 32; shard++) {
            assert_int_equal(policy->victim(instance, may_evict_one, &shard), shard);
            policy->removed(instance, shard);
            assert_true(policy->victim(instance, may_evict_one, &shard) == UINT32_MAX);
        }
        policy->destroy(instance);
    }
}

static void policies_keep_their_contract_on_random_accesses(void **state)
{
    (void)state;
    struct trace trace = random_trace(6, 40, 4, 400);
    for (uint32_t p = 0; cache_policy_at(p); p++) {
        uint64_t fewer = 0;
        for (uint32_t n_slots = 4; n_slots <= 240; n_slots += 59) {
            uint64_t hits = replay_hits(&trace, cache_policy_at(p), n_slots);
            assert_true(hits != UINT64_MAX);
            assert_true(hits >= fewer);
            fewer = hits;
        }
        uint64_t cold = 0;
        bool seen[240] = {false};
        for (uint32_t s = 0; s < trace.n_sets; s++)
            for (uint32_t i = 0; i < trace.sets[s].n; i++) {
                uint32_t shard = trace.sets[s].layer * 40 + trace.sets[s].ids[i];
                cold += !seen[shard];
                seen[shard] = true;
            }
        assert_int_equal(replay_hits(&trace, cache_policy_at(p), 240), trace_accesses(&trace) - cold);
    }
    free(trace.sets);
}

/* ---- below one token cycle ---- */

static void lru_never_hits_below_one_token_cycle(void **state)
{
    (void)state;
    struct trace ring = ring_trace(12, 32, 4, 50); /* a cycle of 48; a layer's set of 4 is used at once */
    assert_int_equal(replay_hits(&ring, cache_policy_find("lru"), 44), 0);
    assert_int_equal(replay_hits(&ring, cache_policy_find("lru"), 48), 48 * 49);
    free(ring.sets);
}

static void default_keeps_a_stable_subset_below_one_token_cycle(void **state)
{
    (void)state;
    struct trace ring = ring_trace(12, 32, 4, 50);
    for (uint32_t n_slots = 8; n_slots <= 48; n_slots += 8) {
        /* All slots but those that the misses of one layer pass through. */
        uint64_t stable = n_slots == 48 ? 48 : n_slots - 4;
        assert_true(replay_hits(&ring, cache_policy_at(0), n_slots) >= stable * 49);
    }
    free(ring.sets);
}

static void decay_evicts_a_cold_miss_before_a_frequent_shard(void **state)
{
    (void)state;
    const uint32_t layer_first[] = {0, 4, 8};
    const struct cache_policy *policy = cache_policy_find("decay");
    void *instance = policy->create(&(struct cache_policy_shape){8, 3, 2, layer_first});
    for (uint32_t token = 0; token < 8; token++)
        for (uint32_t shard = 0; shard < 8; shard += 4) {
            policy->access(instance, shard, token);
            if (token == 0)
                policy->inserted(instance, shard);
        }
    uint32_t cold = 1;
    policy->access(instance, 0, 8);
    policy->access(instance, cold, 8);
    policy->inserted(instance, cold);
    policy->access(instance, 5, 8);
    struct trace trace = {1, 8, 0, NULL};
    struct trace_set none = {.n = 0};
    bool resident[8] = {[0] = true, [1] = true, [4] = true};
    struct replay replay = {&trace, &none, 3, resident};
    assert_int_equal(policy->victim(instance, replay_may_evict, &replay), cold);
    policy->destroy(instance);
}

static void decay_remembers_a_shard_that_was_evicted(void **state)
{
    (void)state;
    const uint32_t layer_first[] = {0, 3};
    const struct cache_policy *policy = cache_policy_find("decay");
    void *instance = policy->create(&(struct cache_policy_shape){3, 2, 1, layer_first});
    for (uint32_t token = 0; token < 10; token++)
        policy->access(instance, 0, token);
    policy->inserted(instance, 0);
    policy->removed(instance, 0);
    policy->access(instance, 1, 10);
    policy->inserted(instance, 1);
    policy->access(instance, 0, 11);
    policy->access(instance, 1, 11);
    policy->inserted(instance, 0);
    struct trace trace = {1, 3, 0, NULL};
    struct trace_set none = {.n = 0};
    bool resident[3] = {true, true, false};
    struct replay replay = {&trace, &none, 2, resident};
    assert_int_equal(policy->victim(instance, replay_may_evict, &replay), 1);
    policy->destroy(instance);
}

static uint64_t hits_of_first(struct trace trace, uint32_t n_sets)
{
    trace.n_sets = n_sets;
    uint64_t hits = replay_hits(&trace, cache_policy_find("decay"), 12);
    assert_true(hits != UINT64_MAX);
    return hits;
}

/* Weights grow with every visit and are scaled down after about 7560 of them. If history kept its old weight there,
 * the policy would stay with experts that are no longer chosen. */
static void decay_follows_a_change_of_routing_after_weights_were_rescaled(void **state)
{
    (void)state;
    struct trace trace = random_trace(2, 24, 2, 16000);
    uint32_t quarter = trace.n_sets / 4;
    for (uint32_t s = 3 * quarter; s < trace.n_sets; s++)
        for (uint32_t i = 0; i < trace.sets[s].n; i++)
            trace.sets[s].ids[i] = 23 - trace.sets[s].ids[i];
    double before = (double)hits_of_first(trace, quarter);
    double after = (double)(hits_of_first(trace, trace.n_sets) - hits_of_first(trace, 3 * quarter));
    assert_true(after > 0.97 * before && after < 1.03 * before);
    free(trace.sets);
}

/* ---- routing of real models ---- */

static int compare_sets(const void *a, const void *b)
{
    const struct trace_set *x = a, *y = b;
    if (x->token != y->token)
        return x->token < y->token ? -1 : 1;
    return (x->layer > y->layer) - (x->layer < y->layer);
}

static struct trace_set *last_set(struct trace *trace, uint32_t token, uint32_t layer)
{
    struct trace_set *set = trace->n_sets ? &trace->sets[trace->n_sets - 1] : NULL;
    if (set && set->token == token && set->layer == layer)
        return set;
    trace->sets = realloc(trace->sets, (trace->n_sets + 1) * sizeof(*trace->sets));
    set = &trace->sets[trace->n_sets++];
    *set = (struct trace_set){.token = token, .layer = layer};
    return set;
}

/* Columns: turn, phase, step, layer, slot, expert, ... */
static bool load_qwen3(struct trace *trace)
{
    FILE *file = fopen(TEST_SHARED_DIR "/traces/qwen3-30b-a3b.route.csv", "r");
    if (!file)
        return false;
    *trace = (struct trace){.n_layers = 48, .n_experts = 128};
    char line[512];
    unsigned token, layer, expert;
    while (fgets(line, sizeof(line), file))
        if (sscanf(line, "%*u,%*u,%u,%u,%*u,%u", &token, &layer, &expert) == 3) {
            struct trace_set *set = last_set(trace, token, layer);
            assert_true(set->n < TRACE_MAX_IDS && layer < 48 && expert < 128);
            set->ids[set->n++] = expert;
        }
    fclose(file);
    qsort(trace->sets, trace->n_sets, sizeof(*trace->sets), compare_sets);
    return true;
}

static bool load_olmoe(struct trace *trace)
{
    FILE *file = fopen(TEST_SHARED_DIR "/traces/olmoe-299.jsonl", "r");
    if (!file)
        return false;
    *trace = (struct trace){.n_layers = 16, .n_experts = 64};
    json_t *object;
    for (uint32_t token = 0; (object = json_loadf(file, JSON_DISABLE_EOF_CHECK, NULL)) != NULL; token++) {
        size_t l, i;
        json_t *layer, *id;
        json_array_foreach(json_object_get(object, "layers"), l, layer)
        {
            struct trace_set *set = last_set(trace, token, (uint32_t)l);
            json_array_foreach(layer, i, id)
            {
                assert_true(set->n < TRACE_MAX_IDS);
                set->ids[set->n++] = (uint32_t)json_integer_value(id);
            }
        }
        json_decref(object);
    }
    fclose(file);
    return true;
}

/* percent of all experts cached, and the hit rate of a plain decayed count (0.97 per token) in an independent
 * simulation of the same trace. */
struct expectation {
    uint32_t percent;
    double decayed_count;
};

static void assert_default_beats(const struct trace *trace, const struct expectation *expected, uint32_t n)
{
    uint32_t n_shards = trace->n_layers * trace->n_experts;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t n_slots = (n_shards * expected[i].percent + 50) / 100;
        double lru = hit_rate(trace, "lru", n_slots);
        double rate = hit_rate(trace, cache_policy_at(0)->name, n_slots);
        print_message("%2u %% of the experts: lru %.3f, default %.3f\n", expected[i].percent, lru, rate);
        assert_true(rate >= lru - 0.002);
        assert_true(rate >= expected[i].decayed_count);
    }
}

static void default_beats_lru_and_a_decayed_count_on_qwen3_routing(void **state)
{
    (void)state;
    const struct expectation expected[] = {{3, 0.252}, {10, 0.511}, {20, 0.720}, {35, 0.873}, {50, 0.912}};
    struct trace trace;
    if (!load_qwen3(&trace)) {
        print_message("no routing trace of Qwen3-30B-A3B: skipped\n");
        skip();
    }
    assert_int_equal(trace_accesses(&trace), 44766);
    assert_default_beats(&trace, expected, 5);
    free(trace.sets);
}

static void default_beats_lru_and_a_decayed_count_on_olmoe_routing(void **state)
{
    (void)state;
    const struct expectation expected[] = {{3, 0.133}, {10, 0.340}, {20, 0.508}, {35, 0.683}, {50, 0.810}};
    struct trace trace;
    if (!load_olmoe(&trace)) {
        print_message("no routing trace of OLMoE: skipped\n");
        skip();
    }
    assert_int_equal(trace_accesses(&trace), 299 * 16 * 8);
    assert_default_beats(&trace, expected, 5);
    free(trace.sets);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(policies_are_found_by_name_and_the_default_comes_first),
        cmocka_unit_test(victim_is_any_permitted_resident_shard_or_none),
        cmocka_unit_test(policies_keep_their_contract_on_random_accesses),
        cmocka_unit_test(lru_never_hits_below_one_token_cycle),
        cmocka_unit_test(default_keeps_a_stable_subset_below_one_token_cycle),
        cmocka_unit_test(decay_evicts_a_cold_miss_before_a_frequent_shard),
        cmocka_unit_test(decay_remembers_a_shard_that_was_evicted),
        cmocka_unit_test(decay_follows_a_change_of_routing_after_weights_were_rescaled),
        cmocka_unit_test(default_beats_lru_and_a_decayed_count_on_qwen3_routing),
        cmocka_unit_test(default_beats_lru_and_a_decayed_count_on_olmoe_routing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
