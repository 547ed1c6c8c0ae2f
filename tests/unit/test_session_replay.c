/* Routing that a caller puts in the place of the routers': what a session makes of it, and of choices that make no sense. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/penstock.h"
#include "runtime/synth.h"

enum { N_LAYERS = 3, N_EXPERT = 8, K = 2, N_VOCAB = 64, N_TOKENS = 12 };

static char directory[64];
static char path[96];

static int write_model(void **state)
{
    (void)state;
    struct ps_error err;
    struct synth_model *model;
    struct synth_params params = {.type = "q8_0", .seed = 3};
    snprintf(directory, sizeof(directory), "/tmp/penstock-replay-XXXXXX");
    if (!mkdtemp(directory) || !synth_arch_shape("qwen3moe", &params.shape))
        return -1;
    snprintf(path, sizeof(path), "%s/moe.gguf", directory);
    struct synth_shape *s = &params.shape;
    s->n_layers = N_LAYERS;
    s->n_embd = 64;
    s->n_vocab = N_VOCAB;
    s->n_ctx = 256;
    s->n_heads = s->n_kv_heads = 2;
    s->head_dim = 32;
    s->n_experts = N_EXPERT;
    s->n_top_k = K;
    s->n_ff_expert = 64;
    enum ps_status status = synth_new(&model, &params, &err);
    if (status == PS_OK)
        status = synth_write(model, &(struct synth_write_params){.path = path, .threads = 1}, &err);
    synth_free(model);
    return status == PS_OK ? 0 : -1;
}

static int remove_model(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(directory);
}

/* A session, what was chosen in it, and what is to be chosen. */
struct run {
    struct ps_model *model;
    struct ps_session *session;
    uint32_t ids[N_TOKENS][N_LAYERS][K]; /* reported */
    float weights[N_TOKENS][N_LAYERS][K];
    const struct run *source; /* of what is replayed; NULL: put[] and no weights */
    uint32_t put[K];
    uint32_t guesses[3];
    float chances[3];
    uint32_t n_guessed; /* of the last prediction reported */
    uint32_t last_guess;
    uint32_t n_predictions;
    float logits[N_TOKENS][N_VOCAB];
};

static void on_router(void *ctx, uint32_t moe_layer, uint32_t position, uint32_t n_tokens, uint32_t k,
                      const uint32_t *ids, const float *weights)
{
    struct run *run = ctx;
    assert_int_equal(k, K);
    for (uint32_t t = 0; t < n_tokens; t++) {
        memcpy(run->ids[position + t][moe_layer], ids + (size_t)t * K, sizeof(run->ids[0][0]));
        memcpy(run->weights[position + t][moe_layer], weights + (size_t)t * K, sizeof(run->weights[0][0]));
    }
}

static void replay(void *ctx, uint32_t moe_layer, uint32_t position, uint32_t n_tokens, uint32_t k,
                   uint32_t *ids, float *weights)
{
    struct run *run = ctx;
    assert_int_equal(k, K);
    for (uint32_t t = 0; t < n_tokens; t++) {
        const uint32_t *from = run->source ? run->source->ids[position + t][moe_layer] : run->put;
        for (uint32_t i = 0; i < K; i++) {
            ids[t * K + i] = from[i];
            weights[t * K + i] = run->source ? run->source->weights[position + t][moe_layer][i] : NAN;
        }
    }
}

static uint32_t replay_guess(void *ctx, uint32_t moe_layer, uint32_t distance, uint32_t position,
                             uint32_t n_tokens, const uint32_t **experts, const float **probabilities)
{
    struct run *run = ctx;
    (void)moe_layer, (void)distance, (void)position, (void)n_tokens;
    *experts = run->guesses;
    *probabilities = run->chances;
    return 3;
}

static void on_prediction(void *ctx, uint32_t moe_layer, uint32_t distance, uint32_t position,
                          uint32_t n_tokens, uint32_t n, const uint32_t *experts, const float *probabilities)
{
    struct run *run = ctx;
    (void)moe_layer, (void)distance, (void)position, (void)n_tokens, (void)probabilities;
    run->n_guessed = n;
    run->last_guess = n > 0 ? experts[n - 1] : 0;
    run->n_predictions++;
}

static struct run *run_new(const struct ps_model_params *params)
{
    struct ps_error err;
    struct run *run = calloc(1, sizeof(*run));
    assert_non_null(run);
    assert_int_equal(ps_model_open(&run->model, path, &err), PS_OK);
    assert_int_equal(ps_model_load(run->model, params, &err), PS_OK);
    assert_int_equal(ps_session_new(&run->session, run->model, &err), PS_OK);
    ps_session_on_router(run->session, on_router, run);
    return run;
}

static void run_free(struct run *run)
{
    ps_session_free(run->session);
    ps_model_free(run->model);
    free(run);
}

static struct ps_model_params default_params(void)
{
    struct ps_model_params params;
    ps_model_params_default(&params);
    params.threads = 2;
    params.ctx = N_TOKENS;
    params.ram = 64u << 20;
    return params;
}

/* The first tokens in one chunk, the others by themselves. */
static enum ps_status feed(struct run *run, struct ps_error *err)
{
    enum { PROMPT = 5 };
    int32_t tokens[N_TOKENS];
    for (int32_t i = 0; i < N_TOKENS; i++)
        tokens[i] = (i * 19 + 3) % N_VOCAB;
    enum ps_status status = ps_session_feed(run->session, tokens, PROMPT, err);
    if (status != PS_OK)
        return status;
    assert_int_equal(ps_session_logits(run->session, 0, PROMPT, run->logits[0], err), PS_OK);
    for (uint32_t i = PROMPT; i < N_TOKENS; i++) {
        assert_int_equal(ps_session_feed(run->session, tokens + i, 1, err), PS_OK);
        assert_int_equal(ps_session_logits(run->session, 0, 1, run->logits[i], err), PS_OK);
    }
    return PS_OK;
}

static struct run *own_routing(void)
{
    struct ps_error err;
    struct ps_model_params params = default_params();
    struct run *run = run_new(&params);
    assert_int_equal(feed(run, &err), PS_OK);
    return run;
}

/* A run of put[] in every layer and token. */
static struct run *replayed(uint32_t first, uint32_t second, enum ps_status expected, struct ps_error *err)
{
    struct ps_model_params params = default_params();
    struct run *run = run_new(&params);
    run->put[0] = first;
    run->put[1] = second;
    assert_int_equal(ps_session_replay(run->session, replay, NULL, run, err), PS_OK);
    assert_int_equal(feed(run, err), expected);
    return run;
}

static void own_routing_replayed_gives_the_same_logits(void **state)
{
    (void)state;
    struct ps_error err;
    struct ps_model_params params = default_params();
    struct run *own = own_routing();
    struct run *run = run_new(&params);
    run->source = own;
    assert_int_equal(ps_session_replay(run->session, replay, NULL, run, &err), PS_OK);
    assert_int_equal(feed(run, &err), PS_OK);
    assert_memory_equal(run->ids, own->ids, sizeof(own->ids));
    assert_memory_equal(run->logits, own->logits, sizeof(own->logits));
    run_free(run);
    run_free(own);
}

static void replayed_experts_are_those_that_are_reported_and_read(void **state)
{
    (void)state;
    struct ps_error err;
    struct ps_stats stats;
    struct run *own = own_routing();
    struct run *run = replayed(6, 1, PS_OK, &err);
    for (uint32_t t = 0; t < N_TOKENS; t++) {
        for (uint32_t l = 0; l < N_LAYERS; l++) {
            assert_int_equal(run->ids[t][l][0], 6);
            assert_int_equal(run->ids[t][l][1], 1);
            /* Weighed by the router: of this model normalized. */
            assert_true(fabsf(run->weights[t][l][0] + run->weights[t][l][1] - 1.0f) < 1e-5f);
        }
    }
    assert_memory_not_equal(run->logits, own->logits, sizeof(own->logits));
    ps_session_stats(run->session, &stats);
    assert_int_equal(stats.expert_misses + stats.expert_late, N_LAYERS * K);
    run_free(run);
    run_free(own);
}

static void tokens_may_have_fewer_experts_or_none(void **state)
{
    (void)state;
    struct ps_error err;
    struct ps_stats stats;
    struct run *run = replayed(4, PS_NO_EXPERT, PS_OK, &err);
    ps_session_stats(run->session, &stats);
    assert_int_equal(stats.expert_misses + stats.expert_late, N_LAYERS);
    assert_true(run->weights[0][0][1] == 0.0f);
    run_free(run);
    run = replayed(PS_NO_EXPERT, PS_NO_EXPERT, PS_OK, &err);
    ps_session_stats(run->session, &stats);
    assert_int_equal(stats.expert_misses + stats.expert_late + stats.expert_hits, 0);
    for (uint32_t i = 0; i < N_VOCAB; i++)
        assert_true(isfinite(run->logits[N_TOKENS - 1][i]));
    run_free(run);
}

static void experts_that_there_are_not_fail_the_feed(void **state)
{
    (void)state;
    struct ps_error err;
    struct run *run = replayed(1, N_EXPERT, PS_ERR_ARGUMENT, &err);
    assert_non_null(strstr(err.message, "expert 8, of 8"));
    assert_int_equal(ps_session_position(run->session), 0);
    run_free(run);
    run = replayed(PS_NO_EXPERT, 1, PS_ERR_ARGUMENT, &err);
    assert_non_null(strstr(err.message, "expert 1 stands after none"));
    run_free(run);
    run = replayed(3, 3, PS_ERR_ARGUMENT, &err);
    assert_non_null(strstr(err.message, "expert 3 is chosen twice"));
    run_free(run);
}

static void replay_can_end(void **state)
{
    (void)state;
    struct ps_error err;
    struct run *own = own_routing();
    struct run *run = replayed(6, 1, PS_OK, &err);
    assert_int_equal(ps_session_replay(run->session, NULL, NULL, NULL, &err), PS_OK);
    assert_int_equal(ps_session_truncate(run->session, 0), 0);
    assert_int_equal(feed(run, &err), PS_OK);
    assert_memory_equal(run->logits, own->logits, sizeof(own->logits));
    run_free(run);
    run_free(own);
}

static void lossy_modes_are_refused(void **state)
{
    (void)state;
    struct ps_error err;
    struct ps_model_params params = default_params();
    params.substitute = true;
    struct run *run = run_new(&params);
    assert_int_equal(ps_session_replay(run->session, replay, NULL, run, &err), PS_ERR_UNSUPPORTED);
    run_free(run);
    params.substitute = false;
    params.drop_below = 0.1f;
    run = run_new(&params);
    assert_int_equal(ps_session_replay(run->session, replay, NULL, run, &err), PS_ERR_UNSUPPORTED);
    run_free(run);
}

static void predictions_are_replayed_up_to_an_expert_that_there_is_not(void **state)
{
    (void)state;
    struct ps_error err;
    struct ps_model_params params = default_params();
    params.predict = true;
    struct run *run = run_new(&params);
    run->put[0] = 6;
    run->put[1] = 1;
    run->guesses[0] = 6;
    run->guesses[1] = 3;
    run->guesses[2] = N_EXPERT;
    run->chances[0] = run->chances[1] = run->chances[2] = 0.9f;
    ps_session_on_prediction(run->session, on_prediction, run);
    assert_int_equal(ps_session_replay(run->session, replay, replay_guess, run, &err), PS_OK);
    assert_int_equal(feed(run, &err), PS_OK);
    assert_true(run->n_predictions > N_LAYERS);
    assert_int_equal(run->n_guessed, 2);
    assert_int_equal(run->last_guess, 3);
    run_free(run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(own_routing_replayed_gives_the_same_logits),
        cmocka_unit_test(replayed_experts_are_those_that_are_reported_and_read),
        cmocka_unit_test(tokens_may_have_fewer_experts_or_none),
        cmocka_unit_test(experts_that_there_are_not_fail_the_feed),
        cmocka_unit_test(replay_can_end),
        cmocka_unit_test(lossy_modes_are_refused),
        cmocka_unit_test(predictions_are_replayed_up_to_an_expert_that_there_is_not),
    };
    return cmocka_run_group_tests_name("session_replay", tests, write_model, remove_model);
}
