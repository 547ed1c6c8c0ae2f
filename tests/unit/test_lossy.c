/* Lossy modes: which experts are left out or replaced, by rules that a hand can follow; and through a model, that they
 * change nothing where everything is in memory. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/lossy.h"
#include "runtime/penstock.h"
#include "runtime/synth.h"

#define NONE LOSSY_NO_EXPERT

/* ---- the rules ---- */

enum { N_EXPERT = 8, K = 3, MAX_TOKENS = 4 };

struct routing {
    float scores[MAX_TOKENS][N_EXPERT];
    float weights[MAX_TOKENS][K];
    uint32_t ids[MAX_TOKENS][K];
    uint8_t flags[N_EXPERT];
    uint32_t n_tokens;
    struct lossy_counts counts;
};

/* A token that chooses a, b, c with shares 0.6, 0.3 and 0.1; what it did not choose scores more the lower its id. */
static void add_token(struct routing *r, uint32_t a, uint32_t b, uint32_t c)
{
    const uint32_t ids[K] = {a, b, c};
    static const float shares[K] = {0.6f, 0.3f, 0.1f};
    uint32_t t = r->n_tokens++;
    for (uint32_t e = 0; e < N_EXPERT; e++)
        r->scores[t][e] = 0.01f / (float)(e + 1);
    for (uint32_t i = 0; i < K; i++) {
        r->ids[t][i] = ids[i];
        r->weights[t][i] = 2.0f * shares[i]; /* shares are of the sum, whatever it is */
        r->scores[t][ids[i]] = 0.5f * shares[i];
    }
}

static void set_resident(struct routing *r, const char *experts)
{
    memset(r->flags, 0, sizeof(r->flags));
    for (; *experts; experts++)
        r->flags[*experts - '0'] = LOSSY_RESIDENT;
}

static bool change(struct routing *r, float drop_below, bool substitute)
{
    const struct lossy_rules rules = {.drop_below = drop_below, .substitute = substitute};
    const struct lossy_routing routing = {.n_tokens = r->n_tokens,
                                          .k = K,
                                          .n_expert = N_EXPERT,
                                          .scores = r->scores[0],
                                          .weights = r->weights[0],
                                          .ids = r->ids[0],
                                          .flags = r->flags};
    return lossy_change(&rules, &routing, &r->counts);
}

static void assert_ids(const struct routing *r, uint32_t token, uint32_t a, uint32_t b, uint32_t c)
{
    assert_int_equal(r->ids[token][0], a);
    assert_int_equal(r->ids[token][1], b);
    assert_int_equal(r->ids[token][2], c);
}

static void drop_leaves_out_missing_experts_under_the_share(void **state)
{
    (void)state;
    struct routing r = {0};
    add_token(&r, 5, 6, 7);
    set_resident(&r, "5");
    assert_true(change(&r, 0.2f, false));
    assert_ids(&r, 0, 5, 6, NONE);
    assert_int_equal(r.counts.dropped, 1);
    assert_int_equal(r.counts.substituted, 0);
}

static void drop_leaves_alone_what_is_in_memory(void **state)
{
    (void)state;
    struct routing r = {0};
    add_token(&r, 5, 6, 7);
    set_resident(&r, "67");
    assert_false(change(&r, 1.0f, false));
    assert_ids(&r, 0, 5, 6, 7);
    assert_int_equal(r.counts.dropped, 0);
}

static void drop_keeps_a_tokens_first_expert(void **state)
{
    (void)state;
    struct routing r = {0};
    add_token(&r, 5, 6, 7);
    set_resident(&r, "");
    assert_true(change(&r, 1.0f, false));
    assert_ids(&r, 0, 5, NONE, NONE);
    assert_int_equal(r.counts.dropped, 2);
}

static void drop_keeps_what_another_token_of_the_chunk_needs(void **state)
{
    (void)state;
    struct routing r = {0};
    add_token(&r, 5, 6, 7); /* 7 weighs little here, */
    add_token(&r, 0, 7, 6); /* much here; 6 likewise the other way round */
    add_token(&r, 2, 3, 4);
    add_token(&r, 4, 2, 3);
    set_resident(&r, "");
    assert_true(change(&r, 0.4f, false)); /* of 2, 3 and 4, 3 is nobody's first */
    assert_ids(&r, 0, 5, NONE, NONE);
    assert_ids(&r, 1, 0, NONE, NONE);
    assert_ids(&r, 2, 2, NONE, 4);
    assert_ids(&r, 3, 4, 2, NONE);
    assert_int_equal(r.counts.dropped, 6);

    struct routing heavy = {0};
    add_token(&heavy, 5, 6, 7);
    add_token(&heavy, 0, 7, 6);
    set_resident(&heavy, "");
    assert_false(change(&heavy, 0.2f, false));
    assert_ids(&heavy, 0, 5, 6, 7);
}

static void drop_keeps_an_expert_of_unknown_weight(void **state)
{
    (void)state;
    struct routing r = {0};
    add_token(&r, 5, 6, 7);
    set_resident(&r, "");
    r.weights[0][1] = NAN;
    assert_false(change(&r, 1.0f, false));
    assert_ids(&r, 0, 5, 6, 7);
}

static void substitute_takes_the_best_that_is_in_memory(void **state)
{
    (void)state;
    struct routing r = {0};
    add_token(&r, 5, 6, 7);
    set_resident(&r, "2345");
    assert_true(change(&r, 0.0f, true));
    assert_ids(&r, 0, 5, 2, 3);
    assert_int_equal(r.counts.substituted, 2);
    assert_int_equal(r.counts.dropped, 0);
}

static void substitute_never_takes_an_expert_twice(void **state)
{
    (void)state;
    struct routing r = {0};
    add_token(&r, 0, 6, 1); /* 0 and 1 score best, but the token has them */
    set_resident(&r, "013");
    assert_true(change(&r, 0.0f, true));
    assert_ids(&r, 0, 0, 3, 1);
    assert_int_equal(r.counts.substituted, 1);
}

static void substitute_keeps_a_tokens_first_expert(void **state)
{
    (void)state;
    struct routing r = {0};
    add_token(&r, 5, 6, 7);
    set_resident(&r, "67012");
    assert_false(change(&r, 0.0f, true));
    assert_ids(&r, 0, 5, 6, 7);
}

static void substitute_keeps_the_best_where_too_few_are_in_memory(void **state)
{
    (void)state;
    struct routing r = {0};
    add_token(&r, 5, 6, 7);
    set_resident(&r, "2");
    assert_true(change(&r, 0.0f, true));
    assert_ids(&r, 0, 5, 6, 2);
    struct routing none = {0};
    add_token(&none, 5, 6, 7);
    set_resident(&none, "");
    assert_false(change(&none, 0.0f, true));
    assert_ids(&none, 0, 5, 6, 7);
}

static void substitute_keeps_what_is_read_for_another_token(void **state)
{
    (void)state;
    struct routing r = {0};
    add_token(&r, 5, 6, 7);
    add_token(&r, 7, 4, 3);
    set_resident(&r, "012");
    assert_true(change(&r, 0.0f, true));
    assert_ids(&r, 0, 5, 0, 7);
    assert_ids(&r, 1, 7, 0, 1);
    assert_int_equal(r.counts.substituted, 3);
}

static void substitute_passes_over_scores_that_are_no_numbers(void **state)
{
    (void)state;
    struct routing r = {0};
    add_token(&r, 5, 6, 7);
    r.scores[0][0] = r.scores[0][1] = NAN;
    set_resident(&r, "017");
    assert_false(change(&r, 0.0f, true));
    assert_ids(&r, 0, 5, 6, 7);
    set_resident(&r, "0137");
    assert_true(change(&r, 0.0f, true));
    assert_ids(&r, 0, 5, 3, 7);
}

static void what_is_not_dropped_is_substituted(void **state)
{
    (void)state;
    struct routing r = {0};
    add_token(&r, 5, 6, 7);
    set_resident(&r, "01");
    assert_true(change(&r, 0.2f, true));
    assert_ids(&r, 0, 5, 0, NONE);
    assert_int_equal(r.counts.dropped, 1);
    assert_int_equal(r.counts.substituted, 1);
}

/* ---- through a model ---- */

enum { N_TOKENS = 24, N_VOCAB = 96 };

static char directory[64];
static char path[128];

static int write_model(void **state)
{
    const char *arch = *state;
    struct ps_error err;
    struct synth_model *model;
    struct synth_params params = {.type = "q8_0", .seed = 11};
    snprintf(directory, sizeof(directory), "/tmp/penstock-lossy-XXXXXX");
    if (!mkdtemp(directory) || !synth_arch_shape(arch, &params.shape))
        return -1;
    snprintf(path, sizeof(path), "%s/model.gguf", directory);
    struct synth_shape *s = &params.shape;
    s->n_layers = 2;
    s->n_embd = 64;
    s->n_vocab = N_VOCAB;
    s->n_ctx = 256;
    s->n_heads = s->n_kv_heads = 2;
    s->head_dim = 32;
    s->n_experts = 4;
    s->n_top_k = 2;
    s->n_ff_expert = 64;
    struct synth_write_params write = {.path = path, .threads = 1};
    if (synth_new(&model, &params, &err) != PS_OK)
        return -1;
    enum ps_status status = synth_write(model, &write, &err);
    synth_free(model);
    return status == PS_OK ? 0 : -1;
}

static int remove_model(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(directory);
}

struct run {
    struct ps_model *model;
    struct ps_session *session;
};

static void start(struct run *run, float drop_below, bool substitute)
{
    struct ps_error err;
    struct ps_model_params params;
    ps_model_params_default(&params);
    params.ram = 256u << 20;
    params.threads = 1;
    params.ctx = params.chunk = 64;
    params.drop_below = drop_below;
    params.substitute = substitute;
    params.prefetch = PS_PREFETCH_OFF;
    if (ps_model_open(&run->model, path, &err) != PS_OK ||
        ps_model_load(run->model, &params, &err) != PS_OK ||
        ps_session_new(&run->session, run->model, &err) != PS_OK)
        fail_msg("%s", err.message);
}

static void stop(struct run *run)
{
    ps_session_free(run->session);
    ps_model_free(run->model);
}

/* The tokens from an empty context on, one at a time. */
static void feed(struct run *run, float *logits, struct ps_stats *stats)
{
    struct ps_error err;
    ps_session_truncate(run->session, 0);
    ps_session_reset_stats(run->session);
    for (int32_t i = 0; i < N_TOKENS; i++) {
        int32_t token = (i * 17 + 5) % N_VOCAB;
        assert_int_equal(ps_session_feed(run->session, &token, 1, &err), PS_OK);
        assert_int_equal(ps_session_logits(run->session, 0, 1, logits + (size_t)i * N_VOCAB, &err), PS_OK);
    }
    ps_session_stats(run->session, stats);
}

static void check_nothing_changes_once_all_is_in_memory(float drop_below, bool substitute)
{
    static float exact[N_TOKENS * N_VOCAB], lossy[N_TOKENS * N_VOCAB];
    struct run run;
    struct ps_stats stats;
    start(&run, 0.0f, false);
    feed(&run, exact, &stats);
    stop(&run);
    assert_int_equal(stats.choices, N_TOKENS * 2 * 2);
    assert_int_equal(stats.choices_trimmed + stats.choices_dropped + stats.choices_substituted, 0);

    start(&run, drop_below, substitute);
    feed(&run, lossy, &stats);
    assert_true(stats.choices_dropped + stats.choices_substituted > 0);
    assert_memory_not_equal(lossy, exact, sizeof(exact));
    /* Every first expert that the text comes to is read in turn; of four experts each is first somewhere. */
    for (int i = 0; i < 8 && stats.choices_dropped + stats.choices_substituted > 0; i++)
        feed(&run, lossy, &stats);
    stop(&run);
    assert_int_equal(stats.choices, N_TOKENS * 2 * 2);
    assert_int_equal(stats.choices_trimmed + stats.choices_dropped + stats.choices_substituted, 0);
    assert_int_equal(stats.expert_hits, N_TOKENS * 2 * 2);
    assert_memory_equal(lossy, exact, sizeof(exact));
}

static void drop_changes_nothing_once_all_is_in_memory(void **state)
{
    (void)state;
    check_nothing_changes_once_all_is_in_memory(1.0f, false);
}

static void substitute_changes_nothing_once_all_is_in_memory(void **state)
{
    (void)state;
    check_nothing_changes_once_all_is_in_memory(0.0f, true);
}

static void both_change_nothing_once_all_is_in_memory(void **state)
{
    (void)state;
    check_nothing_changes_once_all_is_in_memory(0.3f, true);
}

static void parameters_out_of_range_are_refused(void **state)
{
    (void)state;
    static const struct {
        uint32_t top_k;
        float drop_below;
        const char *message;
    } bad[] = {
        {3, 0.0f, "--top-k: 3 is more than the 2 experts"},
        {UINT32_MAX, 0.0f, "--top-k: 4294967295 is more"},
        {0, -0.1f, "--drop-below: -0.1 is not a share"},
        {0, 1.5f, "--drop-below: 1.5 is not a share"},
        {0, NAN, "--drop-below: "},
    };
    struct ps_error err;
    struct ps_model *model;
    assert_int_equal(ps_model_open(&model, path, &err), PS_OK);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct ps_model_params params;
        struct ps_plan plan;
        ps_model_params_default(&params);
        params.top_k = bad[i].top_k;
        params.drop_below = bad[i].drop_below;
        assert_int_equal(ps_model_plan(model, &params, &plan, &err), PS_ERR_ARGUMENT);
        assert_non_null(strstr(err.message, bad[i].message));
    }
    ps_model_free(model);
}

int main(void)
{
    static char renormalizing[] = "qwen3moe", plain[] = "olmoe";
    const struct CMUnitTest rules[] = {
        cmocka_unit_test(drop_leaves_out_missing_experts_under_the_share),
        cmocka_unit_test(drop_leaves_alone_what_is_in_memory),
        cmocka_unit_test(drop_keeps_a_tokens_first_expert),
        cmocka_unit_test(drop_keeps_what_another_token_of_the_chunk_needs),
        cmocka_unit_test(drop_keeps_an_expert_of_unknown_weight),
        cmocka_unit_test(substitute_takes_the_best_that_is_in_memory),
        cmocka_unit_test(substitute_never_takes_an_expert_twice),
        cmocka_unit_test(substitute_keeps_a_tokens_first_expert),
        cmocka_unit_test(substitute_keeps_the_best_where_too_few_are_in_memory),
        cmocka_unit_test(substitute_keeps_what_is_read_for_another_token),
        cmocka_unit_test(substitute_passes_over_scores_that_are_no_numbers),
        cmocka_unit_test(what_is_not_dropped_is_substituted),
    };
#define MODEL_TEST(name, arch) cmocka_unit_test_prestate_setup_teardown(name, write_model, remove_model, arch)
    const struct CMUnitTest models[] = {
        MODEL_TEST(drop_changes_nothing_once_all_is_in_memory, renormalizing),
        MODEL_TEST(drop_changes_nothing_once_all_is_in_memory, plain),
        MODEL_TEST(substitute_changes_nothing_once_all_is_in_memory, renormalizing),
        MODEL_TEST(substitute_changes_nothing_once_all_is_in_memory, plain),
        MODEL_TEST(both_change_nothing_once_all_is_in_memory, renormalizing),
        MODEL_TEST(parameters_out_of_range_are_refused, renormalizing),
    };
    int failed = cmocka_run_group_tests_name("rules", rules, NULL, NULL);
    return failed + cmocka_run_group_tests_name("models", models, NULL, NULL);
}
