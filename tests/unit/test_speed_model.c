/* The speed model on machines that are made up: bounds, what a fit recovers, and the points of a curve. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "runtime/speed_model.h"

#define ASSERT_NEAR(a, b, tolerance)                                                                         \
    do {                                                                                                     \
        double x_ = (a), y_ = (b);                                                                           \
        if (!(fabs(x_ - y_) <= (tolerance)))                                                                 \
            fail_msg("%s is %g, not %g", #a, x_, y_);                                                        \
    } while (0)

/* 48 layers of 8 experts of 2.5 MB, 2 GB/s, 0.2 ms for one read to begin. */
static struct speed_parts machine(void)
{
    struct speed_parts p = {.compute_s = 0.08,
                            .drive_rate = 2e9,
                            .shard_bytes = 2.5e6,
                            .n_layers = 48,
                            .top_k = 8,
                            .overlap = 0.5,
                            .drag = 1};
    for (uint32_t n = 1; n <= 8; n *= 2)
        p.sets[p.n_sets++] = (struct speed_set){n, 2e-4 + n * p.shard_bytes / p.drive_rate};
    return p;
}

static double seconds(const struct speed_parts *p, double miss_rate)
{
    return speed_predict(p, &(struct speed_load){.miss_rate = miss_rate}).token_s;
}

static void token_takes_no_less_than_the_slower_part_and_no_more_than_both(void **state)
{
    (void)state;
    struct speed_parts p = machine();
    double cycle_s = 48 * 8 * p.shard_bytes / p.drive_rate;
    for (double overlap = 0; overlap <= 1; overlap += 0.25) {
        p.overlap = overlap;
        double before = 0;
        for (double miss = 0; miss <= 1.001; miss += 0.05) {
            struct speed_estimate e = speed_predict(&p, &(struct speed_load){.miss_rate = miss});
            assert_true(e.best_s <= e.token_s && e.token_s <= e.worst_s);
            ASSERT_NEAR(e.best_s, fmax(p.compute_s, fmin(miss, 1) * cycle_s), 1e-9);
            assert_true(e.token_s >= before);
            before = e.token_s;
        }
    }
    p.overlap = 0;
    ASSERT_NEAR(seconds(&p, 0), p.compute_s, 1e-12);
    ASSERT_NEAR(seconds(&p, 1), p.compute_s + cycle_s + 48 * 2e-4, 1e-9);
    /* One expert in eight on average is none, one, or more: the latency of a layer without a miss is not paid. */
    double miss_layer = 1 - pow(7.0 / 8, 8);
    ASSERT_NEAR(seconds(&p, 1.0 / 8), p.compute_s + cycle_s / 8 + 48 * miss_layer * 2e-4, 1e-9);
}

static void streamed_trunk_and_fresh_slots_take_their_time(void **state)
{
    (void)state;
    struct speed_parts p = machine();
    p.overlap = 0;
    p.touch_s = 1e-10;
    struct speed_load load = {.miss_rate = 0.5, .fresh_rate = 0.25, .trunk_bytes = 3e8};
    double with = speed_predict(&p, &load).token_s;
    load.trunk_bytes = 0;
    ASSERT_NEAR(with - speed_predict(&p, &load).token_s, 3e8 / p.drive_rate, 1e-9);
    with = speed_predict(&p, &load).token_s;
    load.fresh_rate = 0;
    ASSERT_NEAR(with - speed_predict(&p, &load).token_s, 48 * 8 * 0.25 * p.shard_bytes * p.touch_s, 1e-9);
}

static void model_without_experts_computes_and_reads_its_trunk(void **state)
{
    (void)state;
    const struct speed_parts p = {.compute_s = 0.1, .drive_rate = 1e9, .overlap = 1, .drag = 1};
    ASSERT_NEAR(seconds(&p, 0), 0.1, 1e-12);
    ASSERT_NEAR(speed_predict(&p, &(struct speed_load){.trunk_bytes = 5e8}).token_s, 0.5, 1e-12);
}

static void faster_drive_keeps_its_latency(void **state)
{
    (void)state;
    struct speed_parts p = machine();
    p.overlap = 0;
    struct speed_parts fast = speed_with_drive(&p, 4e9);
    ASSERT_NEAR(seconds(&fast, 1), p.compute_s + 48 * (2e-4 + 8 * p.shard_bytes / 4e9), 1e-9);
    struct speed_parts same = speed_with_drive(&p, p.drive_rate);
    ASSERT_NEAR(seconds(&same, 0.3), seconds(&p, 0.3), 1e-12);
}

enum { N_SAMPLES = 40 };

/* Tokens of a machine, with miss rates that vary; the first n_fresh fill new slots. */
static void make_samples(const struct speed_parts *p, uint32_t n_fresh, struct speed_sample *samples)
{
    for (uint32_t i = 0; i < N_SAMPLES; i++) {
        samples[i].load = (struct speed_load){.miss_rate = 0.2 + 0.1 * (i % 5)};
        if (i < n_fresh)
            samples[i].load.fresh_rate = samples[i].load.miss_rate;
        samples[i].seconds = speed_predict(p, &samples[i].load).token_s;
    }
}

static void fit_finds_what_made_the_samples(void **state)
{
    (void)state;
    static const struct {
        double overlap, drag, touch_s;
    } cases[] = {{0.3, 1, 0}, {0.9, 1, 0}, {0, 1.4, 0}, {1, 0.7, 0}, {0.6, 1, 3e-10}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct speed_sample samples[N_SAMPLES];
        struct speed_parts p = machine();
        p.overlap = cases[i].overlap;
        p.drag = cases[i].drag;
        p.touch_s = cases[i].touch_s;
        make_samples(&p, 10, samples);
        struct speed_parts fitted = machine();
        speed_fit_parts(&fitted, samples, N_SAMPLES);
        ASSERT_NEAR(fitted.overlap, cases[i].overlap, 0.01);
        ASSERT_NEAR(fitted.drag, cases[i].drag, 0.01);
        ASSERT_NEAR(fitted.touch_s, cases[i].touch_s, 1e-11);
        ASSERT_NEAR(seconds(&fitted, 0.4), seconds(&p, 0.4), 0.005 * seconds(&p, 0.4));
    }
}

static void tokens_that_were_held_up_do_not_spoil_a_fit(void **state)
{
    (void)state;
    struct speed_sample samples[N_SAMPLES];
    struct speed_parts p = machine(), fitted = machine();
    make_samples(&p, 0, samples);
    samples[7].seconds *= 30;
    samples[20].seconds *= 10;
    speed_fit_parts(&fitted, samples, N_SAMPLES);
    ASSERT_NEAR(fitted.overlap, p.overlap, 0.02);
}

static void without_samples_half_overlaps(void **state)
{
    (void)state;
    struct speed_parts fitted = machine();
    fitted.overlap = fitted.drag = fitted.touch_s = 7;
    speed_fit_parts(&fitted, NULL, 0);
    ASSERT_NEAR(fitted.overlap, 0.5, 0);
    ASSERT_NEAR(fitted.drag, 1, 0);
    ASSERT_NEAR(fitted.touch_s, 0, 0);
}

static void between_two_runs_the_nearer_one_counts_more(void **state)
{
    (void)state;
    struct speed_fit fits[2] = {{machine(), 0.1}, {machine(), 0.5}};
    fits[0].parts.overlap = 1;
    fits[1].parts.overlap = 0;
    for (double miss = 0.05; miss < 0.7; miss += 0.1) {
        struct speed_load load = {.miss_rate = miss};
        double share = fmin(fmax((miss - 0.1) / 0.4, 0), 1);
        double expected = (1 - share) * seconds(&fits[0].parts, miss) + share * seconds(&fits[1].parts, miss);
        ASSERT_NEAR(speed_between(fits, 2, &load).token_s, expected, 1e-9);
        ASSERT_NEAR(speed_between(fits, 1, &load).token_s, seconds(&fits[0].parts, miss), 1e-12);
    }
    fits[1].miss_rate = fits[0].miss_rate;
    ASSERT_NEAR(speed_between(fits, 2, &(struct speed_load){.miss_rate = 0.5}).token_s,
                seconds(&fits[0].parts, 0.5), 1e-12);
    const struct speed_correction corrections[] = {{1.2, 0.1}, {0.8, 0.5}};
    ASSERT_NEAR(speed_correct(corrections, 2, 0.3), 1.0, 1e-12);
    ASSERT_NEAR(speed_correct(corrections, 2, 0.9), 0.8, 1e-12);
    ASSERT_NEAR(speed_correct(corrections, 1, 0.9), 1.2, 1e-12);
}

static void knee_is_where_a_curve_bends(void **state)
{
    (void)state;
    const double x[] = {1, 2, 3, 4, 5, 6};
    assert_int_equal(speed_knee(x, (const double[]){1, 5, 9, 9.5, 9.8, 10}, 6), 2);
    assert_int_equal(speed_knee(x, (const double[]){1, 2, 3, 4, 5, 6}, 6), 0);
    assert_int_equal(speed_knee(x, (const double[]){1, 1.1, 1.2, 2, 5, 10}, 6), 0);
    assert_int_equal(speed_knee(x, (const double[]){3, 3, 3, 3, 3, 3}, 6), 0);
    assert_int_equal(speed_knee(x, (const double[]){3}, 1), 0);
}

static void first_near_the_best_is_the_smallest(void **state)
{
    (void)state;
    assert_int_equal(speed_first_near_best((const double[]){1, 9.4, 9.6, 10, 9.9}, 5, 0.95), 2);
    assert_int_equal(speed_first_near_best((const double[]){10, 1}, 2, 0.95), 0);
    assert_int_equal(speed_first_near_best((const double[]){4}, 1, 0.95), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(token_takes_no_less_than_the_slower_part_and_no_more_than_both),
        cmocka_unit_test(streamed_trunk_and_fresh_slots_take_their_time),
        cmocka_unit_test(model_without_experts_computes_and_reads_its_trunk),
        cmocka_unit_test(faster_drive_keeps_its_latency),
        cmocka_unit_test(fit_finds_what_made_the_samples),
        cmocka_unit_test(tokens_that_were_held_up_do_not_spoil_a_fit),
        cmocka_unit_test(without_samples_half_overlaps),
        cmocka_unit_test(between_two_runs_the_nearer_one_counts_more),
        cmocka_unit_test(knee_is_where_a_curve_bends),
        cmocka_unit_test(first_near_the_best_is_the_smallest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
