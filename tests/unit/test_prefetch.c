/* The prefetch scheduler: what it reads ahead, and when it stops. Time is what the test says it is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "expert_cache_fixture.h"
#include "storage/prefetch.h"

enum { SLOTS = 64, LISTED = 8 };

struct bed {
    struct model model;
    struct expert_cache *cache;
    struct prefetch prefetch;
    uint64_t token;
};

static void bed_init(struct bed *bed)
{
    *bed = (struct bed){0};
    assert_true(open_model(&bed->model, uniform, 4, IO_BACKEND_THREADS));
    bed->cache = cache_of(&bed->model, "lru", SLOTS);
    prefetch_init(&bed->prefetch, bed->cache, bed->model.reader);
}

static void bed_deinit(struct bed *bed)
{
    expert_cache_free(bed->cache);
    close_model(&bed->model);
}

/* Experts of layer 1 that nobody has asked for, with probabilities from `best` down in steps. */
static void offer(struct bed *bed, uint32_t first, float best, float step)
{
    uint32_t experts[LISTED];
    float probabilities[LISTED];
    for (uint32_t i = 0; i < LISTED; i++) {
        experts[i] = first + i;
        probabilities[i] = best - step * (float)i;
    }
    struct prefetch_candidates list = {1, LISTED, spans_of_shard(&bed->model, 1, 0), experts, probabilities};
    prefetch_offer(&bed->prefetch, &list, 1);
}

static uint32_t started(struct bed *bed, uint32_t first)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < LISTED; i++)
        n += expert_cache_prefetch(bed->cache, 1, first + i) == EXPERT_PREFETCH_PRESENT;
    return n;
}

/* One token with misses that takes as long as the mode says. */
static void decode(struct bed *bed, double with, double without)
{
    double seconds = prefetch_wants(&bed->prefetch) ? with : without;
    bed->token++;
    uint32_t ids[2] = {(uint32_t)(2 * bed->token) % N_EXPERTS, (uint32_t)(2 * bed->token + 1) % N_EXPERTS};
    walk(&bed->model, bed->cache, 0, ids, 2, bed->token, 2);
    prefetch_chunk_done(&bed->prefetch, 1, seconds);
}

/* Share of the next n tokens that were decoded with prefetch. */
static double share_on(struct bed *bed, uint32_t n, double with, double without)
{
    uint32_t on = 0;
    for (uint32_t i = 0; i < n; i++) {
        on += prefetch_wants(&bed->prefetch);
        decode(bed, with, without);
    }
    return (double)on / n;
}

static void no_more_is_read_than_the_width_and_the_likeliest_first(void **state)
{
    (void)state;
    struct bed bed;
    bed_init(&bed);
    bed.prefetch.width = 3.0;
    offer(&bed, 10, 0.99f, 0.01f);
    assert_int_equal(expert_cache_prefetch(bed.cache, 1, 10), EXPERT_PREFETCH_PRESENT);
    assert_int_equal(expert_cache_prefetch(bed.cache, 1, 12), EXPERT_PREFETCH_PRESENT);
    assert_int_equal(expert_cache_prefetch(bed.cache, 1, 13), EXPERT_PREFETCH_STARTED);
    bed_deinit(&bed);
}

static void of_two_layers_the_more_probable_per_byte_comes_first(void **state)
{
    (void)state;
    struct bed bed;
    bed_init(&bed);
    bed.prefetch.width = 2.0;
    const uint32_t near[] = {1, 2}, far[] = {3, 4};
    const float near_p[] = {0.9f, 0.75f}, far_p[] = {0.95f, 0.8f};
    const struct prefetch_candidates lists[] = {{1, 2, 100, near, near_p}, {2, 2, 110, far, far_p}};
    prefetch_offer(&bed.prefetch, lists, 2);
    /* 0.9 / 100 > 0.95 / 110 > 0.75 / 100 > 0.8 / 110 */
    assert_int_equal(expert_cache_prefetch(bed.cache, 1, 1), EXPERT_PREFETCH_PRESENT);
    assert_int_equal(expert_cache_prefetch(bed.cache, 2, 3), EXPERT_PREFETCH_PRESENT);
    assert_int_equal(expert_cache_prefetch(bed.cache, 1, 2), EXPERT_PREFETCH_STARTED);
    bed_deinit(&bed);
}

static void what_is_not_likely_enough_is_not_read(void **state)
{
    (void)state;
    struct bed bed;
    bed_init(&bed);
    bed.prefetch.width = 8.0;
    bed.prefetch.threshold = 0.75;
    offer(&bed, 10, 0.9f, 0.1f); /* 0.9 and 0.8 pass */
    assert_int_equal(started(&bed, 10), 2);
    bed_deinit(&bed);
}

static void waste_raises_the_threshold_and_its_absence_lowers_it(void **state)
{
    (void)state;
    struct bed bed;
    bed_init(&bed);
    double first = bed.prefetch.threshold;
    share_on(&bed, 10, 1.0, 1.0);
    assert_true(bed.prefetch.threshold < first);
    double before = bed.prefetch.threshold;
    for (uint32_t i = 0; i < 20; i++) {
        uint32_t expert = 2 * i;
        if (expert_cache_prefetch(bed.cache, 1, expert) == EXPERT_PREFETCH_STARTED)
            for (int w = 0; w < 2000 && !expert_cache_is_resident(bed.cache, 1, expert); w++)
                usleep(500);
        walk(&bed.model, bed.cache, 1, (const uint32_t[]){127}, 1, bed.token, 1);
        decode(&bed, 1.0, 1.0);
    }
    assert_true(bed.prefetch.threshold > before);
    assert_true(bed.prefetch.threshold < 1.0);
    bed_deinit(&bed);
}

static void prefetch_that_slows_decoding_down_is_turned_off_and_on_again_when_it_pays(void **state)
{
    (void)state;
    struct bed bed;
    bed_init(&bed);
    assert_true(prefetch_wants(&bed.prefetch));
    share_on(&bed, 150, 1.1, 1.0);
    assert_true(share_on(&bed, 100, 1.1, 1.0) < 0.1);
    share_on(&bed, 400, 0.9, 1.0);
    assert_true(share_on(&bed, 100, 0.9, 1.0) > 0.9);
    bed_deinit(&bed);
}

static void noise_does_not_turn_it_off(void **state)
{
    (void)state;
    struct bed bed;
    bed_init(&bed);
    uint32_t seed = 5;
    uint32_t on = 0;
    for (uint32_t i = 0; i < 600; i++) {
        double seconds = 0.8 + (double)(next_random(&seed) % 1000) / 2500.0;
        on += prefetch_wants(&bed.prefetch);
        decode(&bed, seconds, seconds);
    }
    assert_true(on > 540);
    bed_deinit(&bed);
}

static void nothing_is_wanted_while_nothing_is_missed(void **state)
{
    (void)state;
    struct bed bed;
    bed_init(&bed);
    for (uint32_t i = 0; i < 8; i++) {
        walk(&bed.model, bed.cache, 0, (const uint32_t[]){1, 2}, 2, ++bed.token, 2);
        prefetch_chunk_done(&bed.prefetch, 1, 1.0);
    }
    assert_false(prefetch_wants(&bed.prefetch));
    decode(&bed, 1.0, 1.0); /* misses */
    assert_true(prefetch_wants(&bed.prefetch));
    bed_deinit(&bed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_more_is_read_than_the_width_and_the_likeliest_first),
        cmocka_unit_test(of_two_layers_the_more_probable_per_byte_comes_first),
        cmocka_unit_test(what_is_not_likely_enough_is_not_read),
        cmocka_unit_test(waste_raises_the_threshold_and_its_absence_lowers_it),
        cmocka_unit_test(prefetch_that_slows_decoding_down_is_turned_off_and_on_again_when_it_pays),
        cmocka_unit_test(noise_does_not_turn_it_off),
        cmocka_unit_test(nothing_is_wanted_while_nothing_is_missed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
