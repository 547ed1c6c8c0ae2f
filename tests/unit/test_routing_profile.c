/* Routing profiles: what is drawn from one has its statistics, and a fit to that finds them again. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/routing_profile.h"

enum { LAYERS = 4, K = 4, TOKENS = 400 };
static const uint32_t N_EXPERTS[LAYERS] = {32, 64, 3, 64}; /* one has fewer than K */

static struct routing_sample draw(const struct routing_profile *profile, uint32_t n_tokens, uint64_t seed)
{
    struct routing_sample sample;
    struct ps_error err;
    if (routing_profile_sample(&sample, profile, LAYERS, N_EXPERTS, K, n_tokens, seed, &err) != PS_OK)
        fail_msg("%s", err.message);
    return sample;
}

/* Share of a token's experts that the one `distance` before it had, too. */
static double overlap(const struct routing_sample *sample, uint32_t layer, uint32_t distance)
{
    double common = 0, n = 0;
    for (uint64_t v = layer + (uint64_t)distance * LAYERS; v < sample->trace.n_visits; v += LAYERS) {
        const struct replay_visit *now = &sample->visits[v], *then = &sample->visits[v - distance * LAYERS];
        for (uint32_t i = 0; i < now->n; i++)
            for (uint32_t j = 0; j < then->n; j++)
                common += sample->ids[now->first + i] == sample->ids[then->first + j];
        n += now->n;
    }
    return common / n;
}

static void every_token_visits_every_layer_with_its_best_experts_in_order(void **state)
{
    (void)state;
    struct routing_sample sample = draw(&ROUTING_TEXT, TOKENS, 1);
    assert_int_equal(sample.trace.n_visits, LAYERS * TOKENS);
    assert_int_equal(sample.trace.n_layers, LAYERS);
    for (uint64_t v = 0; v < sample.trace.n_visits; v++) {
        const struct replay_visit *visit = &sample.trace.visits[v];
        assert_int_equal(visit->token, v / LAYERS);
        assert_int_equal(visit->layer, v % LAYERS);
        assert_int_equal(visit->n, visit->layer == 2 ? 3 : K);
        for (uint32_t i = 0; i < visit->n; i++) {
            assert_true(sample.ids[visit->first + i] < N_EXPERTS[visit->layer]);
            assert_true(i == 0 || sample.ids[visit->first + i - 1] < sample.ids[visit->first + i]);
        }
    }
    routing_sample_free(&sample);
}

static void seed_decides(void **state)
{
    (void)state;
    struct routing_sample a = draw(&ROUTING_TEXT, 50, 1), b = draw(&ROUTING_TEXT, 50, 1);
    struct routing_sample c = draw(&ROUTING_TEXT, 50, 2);
    size_t bytes = 50 * (K + K + 3 + K) * sizeof(uint32_t);
    assert_memory_equal(a.ids, b.ids, bytes);
    assert_true(memcmp(a.ids, c.ids, bytes) != 0);
    routing_sample_free(&a);
    routing_sample_free(&b);
    routing_sample_free(&c);
}

static void what_never_changes_is_chosen_again_and_what_always_does_by_chance(void **state)
{
    (void)state;
    struct routing_sample fixed = draw(&(struct routing_profile){{1}}, TOKENS, 1);
    struct routing_sample noise = draw(&(struct routing_profile){{0}}, TOKENS, 1);
    for (uint32_t distance = 1; distance <= 64; distance *= 4) {
        assert_true(overlap(&fixed, 0, distance) == 1);
        assert_true(fabs(overlap(&noise, 0, distance) - (double)K / 32) < 0.03);
    }
    struct routing_sample drift = draw(&(struct routing_profile){{0, 1}}, TOKENS, 1);
    double before = 1;
    for (uint32_t distance = 1; distance <= 64; distance *= 4) {
        double now = overlap(&drift, 0, distance);
        assert_true(now < before);
        before = now;
    }
    routing_sample_free(&fixed);
    routing_sample_free(&noise);
    routing_sample_free(&drift);
}

static double hit_rate(const struct routing_sample *sample, const char *policy, uint32_t n_slots)
{
    struct replay_result result;
    struct ps_error err;
    if (cache_replay(&sample->trace, cache_policy_find(policy), n_slots, TOKENS / 2, &result, &err) != PS_OK)
        fail_msg("%s", err.message);
    return (double)result.hits / (double)result.accesses;
}

static void fit_to_a_sample_hits_as_often(void **state)
{
    (void)state;
    static const struct routing_profile profiles[] = {
        {{0.25, 0.2, 0.2, 0.2}}, {{0, 0, 0, 0}}, {{0.6, 0, 0.3, 0}}, {{0, 0.5, 0, 0.4}}};
    for (size_t i = 0; i < sizeof(profiles) / sizeof(profiles[0]); i++) {
        struct routing_profile fitted;
        struct ps_error err;
        struct routing_sample sample = draw(&profiles[i], TOKENS, 3);
        assert_int_equal(routing_profile_fit(&fitted, &sample.trace, &err), PS_OK);
        double sum = 0;
        for (uint32_t p = 0; p < ROUTING_PARTS; p++) {
            assert_true(fitted.share[p] >= 0);
            sum += fitted.share[p];
        }
        assert_true(sum <= 1 + 1e-9);
        struct routing_sample again = draw(&fitted, TOKENS, 4);
        for (uint32_t n_slots = 24; n_slots <= 96; n_slots *= 2) {
            assert_true(fabs(hit_rate(&sample, "lru", n_slots) - hit_rate(&again, "lru", n_slots)) < 0.06);
            assert_true(fabs(hit_rate(&sample, "context", n_slots) - hit_rate(&again, "context", n_slots)) <
                        0.06);
        }
        routing_sample_free(&sample);
        routing_sample_free(&again);
    }
}

static void recording_that_says_nothing_is_refused(void **state)
{
    (void)state;
    struct routing_profile fitted;
    struct ps_error err;
    struct routing_sample one = draw(&ROUTING_TEXT, 1, 1);
    assert_int_equal(routing_profile_fit(&fitted, &one.trace, &err), PS_ERR_ARGUMENT);
    one.visits[0].layer = LAYERS;
    assert_int_equal(routing_profile_fit(&fitted, &one.trace, &err), PS_ERR_ARGUMENT);
    routing_sample_free(&one);
    const struct replay_trace none = {0};
    assert_int_equal(routing_profile_fit(&fitted, &none, &err), PS_ERR_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_token_visits_every_layer_with_its_best_experts_in_order),
        cmocka_unit_test(seed_decides),
        cmocka_unit_test(what_never_changes_is_chosen_again_and_what_always_does_by_chance),
        cmocka_unit_test(fit_to_a_sample_hits_as_often),
        cmocka_unit_test(recording_that_says_nothing_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
