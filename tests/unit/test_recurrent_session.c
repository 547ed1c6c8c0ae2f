/* A session of a model with recurrent layers: their state never goes on from the middle of a chunk. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/penstock.h"

enum { N_TOKENS = 12, N_VOCAB = 192 };
static const char *const NAMES[] = {"qwen3next", "qwen35moe", "lfm2moe", "nemotron_h_moe", "kimi-linear"};

struct run {
    struct ps_model *model;
    struct ps_session *session;
    volatile sig_atomic_t cancel;
    bool cancels; /* when the first router of a chunk has chosen */
};

static void on_router(void *ctx, uint32_t moe_layer, uint32_t position, uint32_t n_tokens, uint32_t k,
                      const uint32_t *ids, const float *weights)
{
    (void)moe_layer, (void)position, (void)n_tokens, (void)k, (void)ids, (void)weights;
    struct run *run = ctx;
    run->cancel = run->cancels;
}

static void start(struct run *run, const char *name)
{
    struct ps_error err;
    struct ps_model_params params;
    char path[512];
    snprintf(path, sizeof(path), "%s/golden/base/%s.gguf", TEST_SHARED_DIR, name);
    ps_model_params_default(&params);
    params.ram = 256u << 20;
    params.threads = 1;
    params.ctx = 64;
    *run = (struct run){0};
    if (ps_model_open(&run->model, path, &err) != PS_OK ||
        ps_model_load(run->model, &params, &err) != PS_OK ||
        ps_session_new(&run->session, run->model, &err) != PS_OK)
        fail_msg("%s: %s", name, err.message);
    assert_int_equal(ps_model_info(run->model)->n_vocab, N_VOCAB);
    ps_session_cancel_on(run->session, &run->cancel);
    ps_session_on_router(run->session, on_router, run);
}

static void stop(struct run *run)
{
    ps_session_free(run->session);
    ps_model_free(run->model);
}

static enum ps_status feed(struct run *run, int32_t first, size_t n)
{
    int32_t tokens[N_TOKENS];
    struct ps_error err;
    for (size_t i = 0; i < n; i++)
        tokens[i] = (int32_t)((17 * ((size_t)first + i) + 5) % N_VOCAB);
    return ps_session_feed(run->session, tokens, n, &err);
}

static void last_logits(struct run *run, float *out)
{
    struct ps_error err;
    assert_int_equal(ps_session_logits(run->session, 0, 1, out, &err), PS_OK);
}

static void check_failed_chunk(const char *name)
{
    static float expected[N_VOCAB], logits[N_VOCAB];
    struct run run;
    start(&run, name);
    assert_int_equal(feed(&run, 0, N_TOKENS), PS_OK);
    last_logits(&run, expected);

    run.cancels = true;
    assert_int_equal(feed(&run, N_TOKENS, 2), PS_ERR_CANCELLED);
    assert_int_equal(ps_session_position(run.session), 0);
    run.cancels = false;
    run.cancel = 0;
    assert_int_equal(feed(&run, 0, N_TOKENS), PS_OK);
    last_logits(&run, logits);
    assert_memory_equal(logits, expected, sizeof(expected));
    stop(&run);
}

static void a_chunk_cancelled_among_the_layers_empties_the_session(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(NAMES) / sizeof(*NAMES); i++)
        check_failed_chunk(NAMES[i]);
}

static void a_chunk_cancelled_before_the_first_layer_changes_nothing(void **state)
{
    (void)state;
    static float expected[N_VOCAB], logits[N_VOCAB];
    struct run run;
    start(&run, NAMES[0]);
    assert_int_equal(feed(&run, 0, N_TOKENS), PS_OK);
    last_logits(&run, expected);
    assert_int_equal(ps_session_truncate(run.session, 0), 0);
    assert_int_equal(feed(&run, 0, N_TOKENS - 1), PS_OK);
    run.cancel = 1;
    assert_int_equal(feed(&run, N_TOKENS - 1, 1), PS_ERR_CANCELLED);
    assert_int_equal(ps_session_position(run.session), N_TOKENS - 1);
    run.cancel = 0;
    assert_int_equal(feed(&run, N_TOKENS - 1, 1), PS_OK);
    last_logits(&run, logits);
    assert_memory_equal(logits, expected, sizeof(expected));
    stop(&run);
}

static void truncating_forgets_all(void **state)
{
    (void)state;
    static float expected[N_VOCAB], logits[N_VOCAB];
    struct run run;
    start(&run, NAMES[0]);
    assert_int_equal(feed(&run, 0, N_TOKENS), PS_OK);
    last_logits(&run, expected);
    assert_int_equal(ps_session_truncate(run.session, N_TOKENS), N_TOKENS);
    assert_int_equal(ps_session_truncate(run.session, N_TOKENS - 1), 0);
    assert_int_equal(feed(&run, 0, N_TOKENS), PS_OK);
    last_logits(&run, logits);
    assert_memory_equal(logits, expected, sizeof(expected));
    stop(&run);
}

int main(void)
{
    enum { SKIPPED = 77 };
    if (access(TEST_SHARED_DIR "/golden/base/qwen3next.gguf", R_OK) != 0)
        return SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chunk_cancelled_among_the_layers_empties_the_session),
        cmocka_unit_test(a_chunk_cancelled_before_the_first_layer_changes_nothing),
        cmocka_unit_test(truncating_forgets_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
