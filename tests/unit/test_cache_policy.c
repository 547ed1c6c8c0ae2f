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
    assert_string_equal(cache_policy_at(0)->name, "context");
    for (uint32_t i = 0; cache_policy_at(i); i++) {
        assert_ptr_equal(cache_policy_find(cache_policy_at(i)->name), cache_policy_at(i));
        assert_true(strlen(cache_policy_at(i)->summary) > 0);
    }
    assert_non_null(cache_policy_find("decay"));
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

static bool may_evict_marked(void *ctx, uint32_t shard)
{
    return ((const bool *)ctx)[shard];
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

/* Reads ahead enter without an access and leave again, and what is primed is not always read. */
static void policies_survive_any_order_of_calls(void **state)
{
    (void)state;
    const uint32_t layer_first[] = {0, 12, 12, 24, 40};
    for (uint32_t p = 0; cache_policy_at(p); p++) {
        const struct cache_policy *policy = cache_policy_at(p);
        void *instance = policy->create(&(struct cache_policy_shape){40, 20, 4, layer_first});
        bool resident[40] = {false};
        uint32_t seed = 11, n_resident = 0;
        for (uint32_t step = 0; step < 20000; step++) {
            uint32_t shard = next_random(&seed) % 40, what = next_random(&seed) % 8;
            if (what == 0)
                policy->prime(instance, shard, next_random(&seed) % 100 / 99.0);
            else if (what < 4)
                policy->access(instance, shard, step / 5 + (step > 9000 ? 1000 : 0));
            else if (what < 6 && !resident[shard]) {
                policy->inserted(instance, shard);
                resident[shard] = true;
                n_resident++;
            } else if (what == 6 && resident[shard]) {
                policy->removed(instance, shard);
                resident[shard] = false;
                n_resident--;
            } else if (what == 7) {
                uint32_t victim = policy->victim(instance, may_evict_marked, resident);
                assert_int_equal(victim == UINT32_MAX, n_resident == 0);
                assert_true(victim == UINT32_MAX || resident[victim]);
            }
            double score = policy->score(instance, shard);
            assert_true(score >= 0 && score <= 1);
        }
        policy->destroy(instance);
    }
}

static void same_calls_have_the_same_victims(void **state)
{
    (void)state;
    const uint32_t layer_first[] = {0, 40, 80, 120};
    struct trace trace = random_trace(3, 40, 4, 600);
    for (uint32_t p = 0; cache_policy_at(p); p++) {
        const struct cache_policy *policy = cache_policy_at(p);
        void *a = policy->create(&(struct cache_policy_shape){120, 30, 3, layer_first});
        void *b = policy->create(&(struct cache_policy_shape){120, 30, 3, layer_first});
        bool resident[120] = {false};
        uint32_t n_resident = 0;
        for (uint32_t s = 0; s < trace.n_sets; s++) {
            uint32_t shard = trace.sets[s].layer * 40 + trace.sets[s].ids[0];
            policy->access(a, shard, trace.sets[s].token);
            policy->access(b, shard, trace.sets[s].token);
            if (resident[shard])
                continue;
            if (n_resident == 30) {
                uint32_t victim = policy->victim(a, may_evict_marked, resident);
                assert_int_equal(policy->victim(b, may_evict_marked, resident), victim);
                policy->removed(a, victim);
                policy->removed(b, victim);
                resident[victim] = false;
                n_resident--;
            }
            policy->inserted(a, shard);
            policy->inserted(b, shard);
            resident[shard] = true;
            n_resident++;
        }
        policy->destroy(a);
        policy->destroy(b);
    }
    free(trace.sets);
}

/* ---- scores ---- */

static void *trained_instance(const struct cache_policy *policy, const struct cache_policy_shape *shape,
                              const struct trace *trace)
{
    void *instance = policy->create(shape);
    for (uint32_t s = 0; s < trace->n_sets; s++)
        for (uint32_t i = 0; i < trace->sets[s].n; i++)
            policy->access(instance, trace->sets[s].layer * trace->n_experts + trace->sets[s].ids[i],
                           trace->sets[s].token);
    return instance;
}

static void scores_of_one_run_are_those_that_the_next_starts_with(void **state)
{
    (void)state;
    const uint32_t layer_first[] = {0, 40, 80};
    const struct cache_policy_shape shape = {80, 30, 2, layer_first};
    struct trace trace = random_trace(2, 40, 4, 100);
    for (uint32_t p = 0; cache_policy_at(p); p++) {
        const struct cache_policy *policy = cache_policy_at(p);
        void *before = trained_instance(policy, &shape, &trace), *after = policy->create(&shape);
        double greatest = 0;
        for (uint32_t shard = 0; shard < 80; shard++) {
            double score = policy->score(before, shard);
            assert_true(policy->score(after, shard) <= 0);
            policy->prime(after, shard, score);
            assert_float_equal(policy->score(after, shard), score, 0.02);
            greatest = score > greatest ? score : greatest;
        }
        assert_true(greatest > 0.2);
        policy->destroy(before);
        policy->destroy(after);
    }
    free(trace.sets);
}

static void primed_shards_leave_in_the_order_of_their_scores(void **state)
{
    (void)state;
    const uint32_t layer_first[] = {0, 20};
    for (uint32_t p = 0; cache_policy_at(p); p++)
        for (uint32_t primed_first = 0; primed_first < 2; primed_first++) {
            const struct cache_policy *policy = cache_policy_at(p);
            if (!primed_first && policy == cache_policy_find("lru"))
                continue; /* it knows no order but that of entering and use */
            void *instance = policy->create(&(struct cache_policy_shape){20, 20, 1, layer_first});
            bool resident[20];
            for (uint32_t i = 0; i < 20; i++) {
                uint32_t shard = i * 7 % 20;
                if (!primed_first)
                    policy->inserted(instance, shard);
                policy->prime(instance, shard, (shard + 1) / 20.0);
                if (primed_first)
                    policy->inserted(instance, shard);
                resident[shard] = true;
            }
            for (uint32_t shard = 0; shard < 20; shard++) {
                assert_int_equal(policy->victim(instance, may_evict_marked, resident), shard);
                policy->removed(instance, shard);
                resident[shard] = false;
            }
            policy->destroy(instance);
        }
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
    bool resident[8] = {[0] = true, [1] = true, [4] = true};
    assert_int_equal(policy->victim(instance, may_evict_marked, resident), cold);
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
    bool resident[3] = {true, true, false};
    assert_int_equal(policy->victim(instance, may_evict_marked, resident), 1);
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

/* ---- context ---- */

/* Phrases of 12 tokens, each token with 2 experts of its own in every layer; which phrase comes next is random. */
static struct trace phrase_trace(uint32_t n_tokens)
{
    enum { LAYERS = 6, PHRASE = 12, PHRASES = 4 };
    struct trace trace = ring_trace(LAYERS, 2 * PHRASE * PHRASES, 2, n_tokens);
    uint32_t seed = 4, phrase = 0;
    for (uint32_t s = 0; s < trace.n_sets; s++) {
        struct trace_set *set = &trace.sets[s];
        if (s % (LAYERS * PHRASE) == 0)
            phrase = next_random(&seed) % PHRASES;
        set->ids[0] = 2 * (phrase * PHRASE + set->token % PHRASE);
        set->ids[1] = set->ids[0] + 1;
    }
    return trace;
}

static void context_keeps_what_follows_the_present_token(void **state)
{
    (void)state;
    struct trace trace = phrase_trace(600);
    for (uint32_t n_slots = 100; n_slots <= 200; n_slots += 100) {
        double lru = hit_rate(&trace, "lru", n_slots), decay = hit_rate(&trace, "decay", n_slots);
        double context = hit_rate(&trace, "context", n_slots);
        print_message("phrases, %u slots: lru %.3f, decay %.3f, context %.3f\n", n_slots, lru, decay,
                      context);
        assert_true(context > lru + 0.05 && context > decay + 0.05);
    }
    free(trace.sets);
}

/* History is a ring of bits: what fell out of it must not come back when its place is used again. */
static void context_forgets_a_layer_that_was_not_visited_for_long(void **state)
{
    (void)state;
    const uint32_t layer_first[] = {0, 4, 8};
    const struct cache_policy *policy = cache_policy_find("context");
    void *instance = policy->create(&(struct cache_policy_shape){8, 8, 2, layer_first});
    for (uint64_t token = 0; token < 100; token++)
        policy->access(instance, 0, token);
    assert_true(policy->score(instance, 0) > 0.9);
    for (uint64_t token = 100; token < 1000; token++)
        policy->access(instance, 4, token);
    policy->access(instance, 1, 1000);
    assert_true(policy->score(instance, 0) <= 0);
    assert_true(policy->score(instance, 4) > 0.9);
    policy->destroy(instance);
}

static void context_follows_a_change_of_routing(void **state)
{
    (void)state;
    struct trace trace = random_trace(2, 24, 2, 4000);
    for (uint32_t s = trace.n_sets / 2; s < trace.n_sets; s++)
        for (uint32_t i = 0; i < trace.sets[s].n; i++)
            trace.sets[s].ids[i] = 23 - trace.sets[s].ids[i];
    struct trace first = trace;
    first.n_sets /= 2;
    double before = (double)replay_hits(&first, cache_policy_find("context"), 12);
    double after = (double)replay_hits(&trace, cache_policy_find("context"), 12) - before;
    assert_true(before > 0 && after > 0.97 * before && after < 1.03 * before);
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
    if ((trace->n_sets & (trace->n_sets - 1)) == 0) { /* doubled at powers of two */
        trace->sets = realloc(trace->sets, (2 * trace->n_sets + 1) * sizeof(*trace->sets));
    }
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

/* Over all sizes: not below LRU. Below one token cycle, and at 10 to 35 % of the experts on average: the share of
 * the gap between LRU and Belady that is closed. */
static void assert_default_closes_the_gap(const char *name, const struct trace *trace, double below_one_cycle,
                                          double middle)
{
    static const uint32_t percents[] = {3, 5, 10, 20, 35, 50, 70};
    struct trace_view view;
    trace_view_init(&view, trace);
    uint32_t n_shards = trace->n_layers * trace->n_experts, n_middle = 0;
    uint32_t cycle = trace->n_layers * trace->sets[0].n;
    double sum = 0;
    for (uint32_t i = 0; i < sizeof(percents) / sizeof(percents[0]); i++) {
        uint32_t n_slots = (n_shards * percents[i] + 50) / 100;
        struct replay_result lru, shipped, best;
        assert_int_equal(cache_replay(&view.trace, cache_policy_find("lru"), n_slots, 0, &lru, NULL), PS_OK);
        assert_int_equal(cache_replay(&view.trace, cache_policy_at(0), n_slots, 0, &shipped, NULL), PS_OK);
        assert_int_equal(cache_replay_belady(&view.trace, n_slots, 0, &best, NULL), PS_OK);
        double n = (double)best.accesses, gap = (double)best.hits - (double)lru.hits;
        double closed = gap > 0 ? ((double)shipped.hits - (double)lru.hits) / gap : 1;
        print_message("%s, %2u %%: lru %.3f, default %.3f, Belady %.3f, closed %.2f\n", name, percents[i],
                      (double)lru.hits / n, (double)shipped.hits / n, (double)best.hits / n, closed);
        assert_true((double)shipped.hits >= (double)lru.hits - 0.002 * n);
        if (n_slots < cycle)
            assert_true(closed >= below_one_cycle);
        if (percents[i] >= 10 && percents[i] <= 35) {
            sum += closed;
            n_middle++;
        }
    }
    assert_true(sum / n_middle >= middle);
    trace_view_deinit(&view);
}

/* The whole, and halves of its tokens, which start cold. */
static void assert_default_closes_the_gap_in_parts(const char *name, const struct trace *trace,
                                                   double below_one_cycle, double middle)
{
    char part[64];
    assert_default_closes_the_gap(name, trace, below_one_cycle, middle);
    struct trace half = *trace;
    half.n_sets = trace->n_sets / (2 * trace->n_layers) * trace->n_layers;
    snprintf(part, sizeof(part), "%s, first half", name);
    assert_default_closes_the_gap(part, &half, 0.5, 0.1);
    half.sets += half.n_sets;
    snprintf(part, sizeof(part), "%s, second half", name);
    assert_default_closes_the_gap(part, &half, 0.5, 0.1);
}

static void default_closes_much_of_the_gap_to_belady_on_qwen3_routing(void **state)
{
    (void)state;
    struct trace trace;
    if (!load_qwen3(&trace)) {
        print_message("no routing trace of Qwen3-30B-A3B: skipped\n");
        skip();
    }
    assert_int_equal(trace_accesses(&trace), 44766);
    assert_default_closes_the_gap_in_parts("Qwen3", &trace, 0.6, 0.25);
    free(trace.sets);
}

static void default_closes_much_of_the_gap_to_belady_on_olmoe_routing(void **state)
{
    (void)state;
    struct trace trace;
    if (!load_olmoe(&trace)) {
        print_message("no routing trace of OLMoE: skipped\n");
        skip();
    }
    assert_int_equal(trace_accesses(&trace), 299 * 16 * 8);
    assert_default_closes_the_gap_in_parts("OLMoE", &trace, 0.6, 0.5);
    free(trace.sets);
}

/* ---- routing made up ---- */

/* Tokens of a small vocabulary, some following each other by habit, whose experts are mostly their own; popularity is
 * uneven, and drifts as the vocabulary shifts. */
static struct trace language_trace(uint32_t n_layers, uint32_t n_experts, uint32_t k, uint32_t n_tokens)
{
    struct trace trace = ring_trace(n_layers, n_experts, k, n_tokens);
    uint32_t seed = 7, word = 0;
    for (uint32_t s = 0; s < trace.n_sets; s++) {
        struct trace_set *set = &trace.sets[s];
        if (set->layer == 0)
            word = next_random(&seed) % 10 < 5
                       ? word * 5 + 1
                       : next_random(&seed) % 60 * (next_random(&seed) % 60) / 60 + set->token / 40;
        word %= 90;
        uint32_t habit = word * 977 + set->layer * 131 + 1;
        set->n = 0;
        while (set->n < k) {
            uint32_t *source = next_random(&seed) % 10 < 3 ? &seed : &habit;
            uint32_t id = next_random(source) % n_experts * (next_random(source) % n_experts) / n_experts;
            if (!set_has(set, id))
                set->ids[set->n++] = id;
        }
    }
    return trace;
}

/* The first n_tokens as one chunk: at each layer the union of what they choose. */
static struct trace with_prompt_in_one_chunk(const struct trace *trace, uint32_t n_tokens)
{
    uint32_t n_prompt = n_tokens * trace->n_layers;
    struct trace chunked = *trace;
    chunked.n_sets = trace->n_layers + trace->n_sets - n_prompt;
    chunked.sets = calloc(chunked.n_sets, sizeof(*chunked.sets));
    for (uint32_t l = 0; l < trace->n_layers; l++)
        chunked.sets[l] = (struct trace_set){.token = n_tokens - 1, .layer = l};
    for (uint32_t s = 0; s < n_prompt; s++)
        for (uint32_t i = 0; i < trace->sets[s].n; i++) {
            struct trace_set *set = &chunked.sets[trace->sets[s].layer];
            if (!set_has(set, trace->sets[s].ids[i]))
                set->ids[set->n++] = trace->sets[s].ids[i];
        }
    memcpy(chunked.sets + trace->n_layers, trace->sets + n_prompt,
           (trace->n_sets - n_prompt) * sizeof(*trace->sets));
    return chunked;
}

/* A chunk overlaps with every token; it must not be taken for the one that each is like. */
static void prompt_read_in_one_chunk_costs_few_hits_later(void **state)
{
    (void)state;
    struct trace trace = language_trace(20, 64, 4, 240);
    struct trace chunked = with_prompt_in_one_chunk(&trace, 40);
    assert_true(chunked.sets[0].n > 40);
    struct trace_view view, chunked_view;
    trace_view_init(&view, &trace);
    trace_view_init(&chunked_view, &chunked);
    struct replay_result apart, together;
    assert_int_equal(cache_replay(&view.trace, cache_policy_at(0), 200, 40, &apart, NULL), PS_OK);
    assert_int_equal(cache_replay(&chunked_view.trace, cache_policy_at(0), 200, 1, &together, NULL), PS_OK);
    assert_int_equal(together.accesses, apart.accesses);
    print_message("hits after the prompt: %.3f, in one chunk %.3f\n",
                  (double)apart.hits / (double)apart.accesses,
                  (double)together.hits / (double)together.accesses);
    assert_true((double)together.hits > 0.95 * (double)apart.hits);
    trace_view_deinit(&view);
    trace_view_deinit(&chunked_view);
    free(trace.sets);
    free(chunked.sets);
}

static void default_closes_much_of_the_gap_to_belady_on_drifting_tokens(void **state)
{
    (void)state;
    struct trace trace = language_trace(20, 64, 4, 400);
    assert_default_closes_the_gap("made up", &trace, 0.45, 0.35);
    free(trace.sets);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(policies_are_found_by_name_and_the_default_comes_first),
        cmocka_unit_test(victim_is_any_permitted_resident_shard_or_none),
        cmocka_unit_test(policies_keep_their_contract_on_random_accesses),
        cmocka_unit_test(policies_survive_any_order_of_calls),
        cmocka_unit_test(same_calls_have_the_same_victims),
        cmocka_unit_test(scores_of_one_run_are_those_that_the_next_starts_with),
        cmocka_unit_test(primed_shards_leave_in_the_order_of_their_scores),
        cmocka_unit_test(lru_never_hits_below_one_token_cycle),
        cmocka_unit_test(default_keeps_a_stable_subset_below_one_token_cycle),
        cmocka_unit_test(decay_evicts_a_cold_miss_before_a_frequent_shard),
        cmocka_unit_test(decay_remembers_a_shard_that_was_evicted),
        cmocka_unit_test(decay_follows_a_change_of_routing_after_weights_were_rescaled),
        cmocka_unit_test(context_keeps_what_follows_the_present_token),
        cmocka_unit_test(context_forgets_a_layer_that_was_not_visited_for_long),
        cmocka_unit_test(context_follows_a_change_of_routing),
        cmocka_unit_test(default_closes_much_of_the_gap_to_belady_on_qwen3_routing),
        cmocka_unit_test(default_closes_much_of_the_gap_to_belady_on_olmoe_routing),
        cmocka_unit_test(prompt_read_in_one_chunk_costs_few_hits_later),
        cmocka_unit_test(default_closes_much_of_the_gap_to_belady_on_drifting_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
