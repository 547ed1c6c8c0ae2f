/* Sampler: greedy choice, the filters, the penalty, and reproducible draws. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/penstock.h"

enum { N = 8, DRAWS = 4000 };

static const float LOGITS[N] = {0.0f, 3.0f, 1.0f, 2.0f, 3.0f, -5.0f, -INFINITY, 0.5f};

static struct ps_sampler_params all_open(void)
{
    return (struct ps_sampler_params){
        .temp = 1.0f, .top_p = 1.0f, .repeat_penalty = 1.0f, .repeat_last = 4, .seed = 7};
}

static struct ps_sampler *new_sampler(const struct ps_sampler_params *params)
{
    struct ps_sampler *sampler;
    struct ps_error err;
    assert_int_equal(ps_sampler_new(&sampler, params, &err), PS_OK);
    return sampler;
}

static int32_t pick(struct ps_sampler *sampler, const float *from)
{
    float logits[N];
    int32_t token = -1;
    memcpy(logits, from, sizeof(logits));
    assert_int_equal(ps_sampler_pick(sampler, logits, N, &token, NULL), PS_OK);
    return token;
}

static void count_draws(const struct ps_sampler_params *params, const float *from, uint32_t counts[N])
{
    struct ps_sampler *sampler = new_sampler(params);
    memset(counts, 0, N * sizeof(*counts));
    for (int i = 0; i < DRAWS; i++)
        counts[pick(sampler, from)]++;
    ps_sampler_free(sampler);
}

static void greedy_takes_the_lowest_id_of_the_best(void **state)
{
    (void)state;
    struct ps_sampler_params params = all_open();
    params.temp = 0.0f;
    struct ps_sampler *sampler = new_sampler(&params);
    assert_int_equal(pick(sampler, LOGITS), 1);
    float with_nan[N] = {NAN, -1.0f, NAN, -0.5f, -0.5f, -2.0f, -3.0f, NAN};
    assert_int_equal(pick(sampler, with_nan), 3);
    ps_sampler_free(sampler);
}

static void draws_follow_the_softmax(void **state)
{
    (void)state;
    struct ps_sampler_params params = all_open();
    uint32_t counts[N];
    double sum = 0.0;
    count_draws(&params, LOGITS, counts);
    for (int i = 0; i < N; i++)
        sum += exp((double)LOGITS[i]);
    for (int i = 0; i < N; i++) {
        double p = exp((double)LOGITS[i]) / sum;
        double tolerance = 5.0 * sqrt(DRAWS * p * (1.0 - p)) + 1e-9;
        assert_true(fabs((double)counts[i] - DRAWS * p) <= tolerance);
    }
}

static void top_k_keeps_the_k_best(void **state)
{
    (void)state;
    struct ps_sampler_params params = all_open();
    uint32_t counts[N];
    params.top_k = 3;
    count_draws(&params, LOGITS, counts);
    assert_true(counts[1] > 0 && counts[3] > 0 && counts[4] > 0);
    assert_int_equal(counts[1] + counts[3] + counts[4], DRAWS);
}

static void top_p_keeps_the_smallest_sufficient_set(void **state)
{
    (void)state;
    struct ps_sampler_params params = all_open();
    uint32_t counts[N];
    params.top_p = 0.5f; /* the best has 0.38 */
    count_draws(&params, LOGITS, counts);
    assert_true(counts[1] > 0 && counts[4] > 0);
    assert_int_equal(counts[1] + counts[4], DRAWS);
    params.top_p = 0.01f;
    count_draws(&params, LOGITS, counts);
    assert_int_equal(counts[1], DRAWS);
}

static void min_p_drops_what_is_far_below_the_best(void **state)
{
    (void)state;
    struct ps_sampler_params params = all_open();
    uint32_t counts[N];
    params.min_p = 0.3f; /* token 3 has exp(-1) = 0.37 of the best, token 2 exp(-2) = 0.14 */
    count_draws(&params, LOGITS, counts);
    assert_true(counts[3] > 0);
    assert_int_equal(counts[1] + counts[3] + counts[4], DRAWS);
}

static void penalty_counts_only_the_last_tokens(void **state)
{
    (void)state;
    struct ps_sampler_params params = all_open();
    params.temp = 0.0f;
    params.repeat_penalty = 4.0f;
    params.repeat_last = 2;
    struct ps_sampler *sampler = new_sampler(&params);
    ps_sampler_accept(sampler, 1);
    ps_sampler_accept(sampler, 4);
    assert_int_equal(pick(sampler, LOGITS), 3);
    ps_sampler_accept(sampler, 3); /* 1 falls out of the window */
    assert_int_equal(pick(sampler, LOGITS), 1);
    ps_sampler_accept(sampler, 1);
    ps_sampler_accept(sampler, 1); /* counted once: 3 / 4 is below 4's 3 */
    assert_int_equal(pick(sampler, LOGITS), 4);
    float negative[N] = {-1.0f, -1.5f, -3.0f, -3.0f, -3.0f, -3.0f, -3.0f, -3.0f};
    ps_sampler_accept(sampler, 0);
    ps_sampler_accept(sampler, 0);
    assert_int_equal(pick(sampler, negative), 1); /* a negative logit moves down, too */
    ps_sampler_free(sampler);
}

static void same_seed_same_tokens(void **state)
{
    (void)state;
    struct ps_sampler_params params = all_open();
    struct ps_sampler *a = new_sampler(&params);
    struct ps_sampler *b = new_sampler(&params);
    params.seed = 8;
    struct ps_sampler *c = new_sampler(&params);
    int differs = 0;
    for (int i = 0; i < 200; i++) {
        int32_t token = pick(a, LOGITS);
        assert_int_equal(token, pick(b, LOGITS));
        differs += token != pick(c, LOGITS);
    }
    assert_true(differs > 0);
    ps_sampler_free(a);
    ps_sampler_free(b);
    ps_sampler_free(c);
}

static void parameters_out_of_range_are_refused(void **state)
{
    (void)state;
    struct ps_sampler *sampler;
    struct ps_error err;
    struct ps_sampler_params params = all_open();
    params.temp = NAN;
    assert_int_equal(ps_sampler_new(&sampler, &params, &err), PS_ERR_ARGUMENT);
    assert_null(sampler);
    params = all_open();
    params.top_p = 0.0f;
    assert_int_equal(ps_sampler_new(&sampler, &params, &err), PS_ERR_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_lowest_id_of_the_best),
        cmocka_unit_test(draws_follow_the_softmax),
        cmocka_unit_test(top_k_keeps_the_k_best),
        cmocka_unit_test(top_p_keeps_the_smallest_sufficient_set),
        cmocka_unit_test(min_p_drops_what_is_far_below_the_best),
        cmocka_unit_test(penalty_counts_only_the_last_tokens),
        cmocka_unit_test(same_seed_same_tokens),
        cmocka_unit_test(parameters_out_of_range_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
