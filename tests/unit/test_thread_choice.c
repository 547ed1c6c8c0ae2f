/* Choice of the number of compute threads, by measuring a matrix in memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "runtime/clock.h"
#include "runtime/thread_choice.h"

static struct ps_model *new_model(uint64_t n_rows, uint64_t n_cols)
{
    struct ps_model *model = calloc(1, sizeof(*model));
    float *data = calloc(n_rows * n_cols, sizeof(*data));
    assert_non_null(model);
    assert_non_null(data);
    model->matmul = matmul_kernels_get(cpu_level_best());
    model->params.activations = PS_ACTIVATIONS_F32;
    model->global[GT_OUTPUT] = (struct weight){.data = data,
                                               .n_rows = n_rows,
                                               .n_cols = n_cols,
                                               .row_bytes = n_cols * sizeof(*data),
                                               .format = block_format_find(0)};
    return model;
}

static void free_model(struct ps_model *model)
{
    thread_pool_free(model->pool);
    free((void *)(uintptr_t)model->global[GT_OUTPUT].data);
    free(model);
}

static void measured_choice_is_one_of_the_candidates(void **state)
{
    (void)state;
    static const uint64_t rows[] = {1, 31, 33, 1000, 20000}; /* of 1 KiB; a region is 1 MiB */
    const struct thread_candidate candidates[] = {{1, "cores"}, {2, "more cores"}, {5, "CPUs"}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct ps_model *model = new_model(rows[i], 256);
        double start = clock_seconds();
        assert_int_equal(thread_choice_among(model, candidates, 3, 0.0, NULL), PS_OK);
        assert_true(clock_seconds() - start < 5.0);
        uint32_t n = model->params.threads;
        assert_int_equal(thread_pool_size(model->pool), n);
        if (n == 1)
            assert_string_equal(model->threads_reason, "cores; measured fastest of 1, 2, 5");
        else if (n == 2)
            assert_string_equal(model->threads_reason, "more cores; measured fastest of 1, 2, 5");
        else
            assert_string_equal(model->threads_reason, "CPUs; measured fastest of 1, 2, 5");
        free_model(model);
    }
}

static void single_candidate_is_taken_without_a_look_at_weights(void **state)
{
    (void)state;
    struct ps_model model = {0};
    assert_int_equal(
        thread_choice_among(&model, &(struct thread_candidate){3, "physical cores"}, 1, 1.5, NULL), PS_OK);
    assert_int_equal(thread_pool_size(model.pool), 3);
    assert_string_equal(model.threads_reason, "physical cores");
    thread_pool_free(model.pool);
}

static void number_asked_for_is_kept(void **state)
{
    (void)state;
    struct ps_model model = {.params.threads = 7};
    assert_int_equal(thread_choice_make(&model, 7, NULL), PS_OK);
    assert_int_equal(thread_pool_size(model.pool), 7);
    assert_int_equal(model.params.threads, 7);
    assert_string_equal(model.threads_reason, "as asked");
    thread_pool_free(model.pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(measured_choice_is_one_of_the_candidates),
        cmocka_unit_test(single_candidate_is_taken_without_a_look_at_weights),
        cmocka_unit_test(number_asked_for_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
