/* The predictor of experts: on residual streams made by hand, where it is known what the router chooses; and through
 * a model, that its counts are right and that it changes nothing that is computed. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <malloc.h>

#include "runtime/forward_internal.h"
#include "runtime/penstock.h"
#include "runtime/predictor.h"
#include "runtime/splitmix.h"
#include "runtime/synth.h"
#include "runtime/trunk.h"

enum {
    N_LAYERS = 4,
    N_EMBD = 64,
    N_EXPERT = 16,
    K = 4,
    N_VOCAB = 96,
    CHUNK = 40, /* more than the predictor samples */
    N_TOKENS = 40,
    PROMPT = 16, /* one chunk */
    D = PS_PREDICTION_DISTANCES,
};

static char directory[64];
static char moe_path[96], dense_path[96];

static enum ps_status write_model(const char *path, const char *arch, bool dense)
{
    struct ps_error err;
    struct synth_model *model;
    struct synth_params params = {.type = "q8_0", .seed = 7};
    if (!synth_arch_shape(arch, &params.shape))
        return PS_ERR_ARGUMENT;
    struct synth_shape *s = &params.shape;
    s->n_layers = N_LAYERS;
    s->n_embd = N_EMBD;
    s->n_vocab = N_VOCAB;
    s->n_ctx = 256;
    s->n_heads = s->n_kv_heads = 2;
    s->head_dim = 32;
    s->n_ff = dense ? 256 : 0;
    s->n_experts = dense ? 0 : N_EXPERT;
    s->n_top_k = dense ? 0 : K;
    s->n_ff_expert = dense ? 0 : 256;
    enum ps_status status = synth_new(&model, &params, &err);
    if (status == PS_OK)
        status = synth_write(model, &(struct synth_write_params){.path = path, .threads = 1}, &err);
    synth_free(model);
    return status;
}

static int write_models(void **state)
{
    (void)state;
    snprintf(directory, sizeof(directory), "/tmp/penstock-predictor-XXXXXX");
    if (!mkdtemp(directory))
        return -1;
    snprintf(moe_path, sizeof(moe_path), "%s/moe.gguf", directory);
    snprintf(dense_path, sizeof(dense_path), "%s/dense.gguf", directory);
    return write_model(moe_path, "qwen3moe", false) == PS_OK &&
                   write_model(dense_path, "llama", true) == PS_OK
               ? 0
               : -1;
}

static int remove_models(void **state)
{
    (void)state;
    unlink(moe_path);
    unlink(dense_path);
    return rmdir(directory);
}

static void default_params(struct ps_model_params *params)
{
    ps_model_params_default(params);
    params->ram = 256u << 20;
    params->threads = 1;
    params->ctx = 64;
    params->chunk = CHUNK;
    params->prefetch = PS_PREFETCH_OFF;
}

static struct ps_model *open_model(const char *path)
{
    struct ps_error err;
    struct ps_model *model;
    if (ps_model_open(&model, path, &err) != PS_OK)
        fail_msg("%s", err.message);
    return model;
}

static void load(struct ps_model *model, const struct ps_model_params *params)
{
    struct ps_error err;
    if (ps_model_load(model, params, &err) != PS_OK)
        fail_msg("%s", err.message);
}

/* ---- on residual streams made by hand ---- */

struct bench {
    struct ps_model *model;
    struct predictor *predictor;
    struct forward f;
    uint8_t *scratch;
    uint64_t scratch_bytes;
    uint64_t random;
};

/* dense: bit per layer that is taken for one without experts. */
static void bench_init(struct bench *b, enum ps_activations activations, unsigned dense)
{
    struct ps_error err;
    struct ps_model_params params;
    default_params(&params);
    params.activations = activations;
    *b = (struct bench){.model = open_model(moe_path), .random = 99};
    load(b->model, &params);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        b->model->layers[l].moe = !(dense >> l & 1);
    assert_int_equal(predictor_new(&b->predictor, b->model, &err), PS_OK);
    b->scratch_bytes = scratch_layout(&b->f.s, NULL, b->model, &b->model->params, CHUNK, 1);
    b->scratch = aligned_alloc(64, (b->scratch_bytes + 63) / 64 * 64);
    assert_non_null(b->scratch);
    memset(b->scratch, 0, b->scratch_bytes);
    scratch_layout(&b->f.s, b->scratch, b->model, &b->model->params, CHUNK, 1);
    b->f.model = b->model;
    b->f.n_tokens = 1;
}

static void bench_deinit(struct bench *b)
{
    free(b->scratch);
    predictor_free(b->predictor);
    ps_model_free(b->model);
}

static float random_normal(struct bench *b)
{
    float sum = 0.0f;
    for (int i = 0; i < 12; i++)
        sum += (float)(splitmix64(&b->random) >> 40) / 16777216.0f;
    return sum - 6.0f;
}

static void fill_random(struct bench *b, float *x)
{
    for (uint32_t i = 0; i < N_EMBD; i++)
        x[i] = random_normal(b);
}

/* What the layer's router chooses for x: the definition, in double; its probabilities are left where the forward pass has
 * them. The layer must be in memory. */
static void choose(struct bench *b, uint32_t layer, const float *x, uint32_t *ids)
{
    const struct weight *w = b->model->layers[layer].w;
    const float *norm = w[LT_FFN_NORM].data;
    const float *router = w[LT_ROUTER].data;
    assert_int_equal(w[LT_ROUTER].format->type, BLOCK_F32);
    double squares = 0.0;
    for (uint32_t i = 0; i < N_EMBD; i++)
        squares += (double)x[i] * (double)x[i];
    double scale = 1.0 / sqrt(squares / N_EMBD + (double)b->model->hp.norm_eps);
    double logits[N_EXPERT] = {0};
    for (uint32_t e = 0; e < N_EXPERT; e++) {
        for (uint32_t i = 0; i < N_EMBD; i++)
            logits[e] += (double)x[i] * scale * (double)norm[i] * (double)router[e * N_EMBD + i];
    }
    double sum = 0.0;
    for (uint32_t e = 0; e < N_EXPERT; e++)
        sum += exp(logits[e]);
    for (uint32_t e = 0; e < N_EXPERT; e++)
        b->f.s.router[(b->f.n_tokens - 1) * N_EXPERT + e] = (float)(exp(logits[e]) / sum);
    for (uint32_t r = 0; r < K; r++) {
        ids[r] = 0;
        for (uint32_t e = 1; e < N_EXPERT; e++) {
            if (logits[e] > logits[ids[r]])
                ids[r] = e;
        }
        logits[ids[r]] = -INFINITY;
    }
}

/* The layer's router chooses for x, and the predictor sees it. */
static void observe(struct bench *b, uint32_t layer, const float *x)
{
    struct ps_error err;
    assert_int_equal(trunk_begin_layer(b->model->trunk, layer, &err), PS_OK);
    choose(b, layer, x, b->f.s.chosen);
    predictor_observe(b->predictor, &b->f, layer);
    trunk_end_layer(b->model->trunk, layer);
}

static void observe_all(struct bench *b)
{
    float x[N_EMBD];
    fill_random(b, x);
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        if (b->model->layers[l].moe)
            observe(b, l, x);
    }
    b->f.token_clock++;
}

static bool contains(const uint32_t *ids, uint32_t n, uint32_t id)
{
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] == id)
            return true;
    }
    return false;
}

static void assert_well_formed(const struct prediction *p)
{
    assert_in_range(p->n, 1, N_EXPERT);
    for (uint32_t i = 0; i < p->n; i++) {
        assert_true(p->experts[i] < N_EXPERT);
        assert_false(contains(p->experts, i, p->experts[i]));
        assert_true(p->probabilities[i] >= 0.0f && p->probabilities[i] <= 1.0f);
        assert_true(i == 0 || p->probabilities[i] <= p->probabilities[i - 1]);
    }
}

/* Predictions for a layer from x + noise, when its router chooses by x. */
struct trial {
    uint32_t layer, distance;
    float noise; /* standard deviations; INFINITY: nothing of x is in it */
    /* Of the predictions that were made. */
    double first, later; /* sum of the probabilities of the first K that are listed, and of the others */
    uint32_t n_first, n_later, right_first, right_later;
};

static void run_trial(struct bench *b, struct trial *t, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++, b->f.token_clock++) {
        float x[N_EMBD];
        fill_random(b, x);
        for (uint32_t j = 0; j < N_EMBD; j++) {
            float noise = random_normal(b);
            b->f.s.x[j] = isinf(t->noise) ? noise : x[j] + t->noise * noise;
        }
        struct prediction p;
        assert_true(predictor_predict(b->predictor, &b->f, (int)t->layer - 1, 1, t->distance, &p));
        assert_int_equal(p.layer, t->layer);
        assert_well_formed(&p);
        assert_true(p.n > K);
        observe(b, t->layer, x);
        for (uint32_t j = 0; j < p.n; j++) {
            bool right = contains(b->f.s.chosen, K, p.experts[j]);
            t->first += j < K ? (double)p.probabilities[j] : 0.0;
            t->later += j < K ? 0.0 : (double)p.probabilities[j];
            t->right_first += j < K && right;
            t->right_later += j >= K && right;
        }
        t->n_first += K;
        t->n_later += p.n - K;
    }
}

static struct trial measure(struct bench *b, uint32_t layer, uint32_t distance, float noise)
{
    struct trial learning = {.layer = layer, .distance = distance, .noise = noise}, trial = learning;
    run_trial(b, &learning, 1500);
    run_trial(b, &trial, 500);
    return trial;
}

static void memory_is_what_a_predictor_takes(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b, PS_ACTIVATIONS_AUTO, 0);
    uint64_t bytes = predictor_memory(b.model);
    size_t usable = malloc_usable_size(b.predictor);
    assert_true(usable >= bytes);
    assert_true(usable < bytes + 2 * 4096); /* what an allocator may round up to */
    /* A layer less: its copy in Q8_0 less, and the norm; with them what was counted. */
    b.model->layers[1].moe = false;
    uint64_t layer = bytes - predictor_memory(b.model);
    uint64_t copy = (uint64_t)N_EXPERT * N_EMBD / 32 * 34 + N_EMBD * sizeof(float);
    assert_true(layer >= copy);
    assert_true(layer < copy + 4096);
    bench_deinit(&b);
}

static void a_dense_model_takes_no_memory(void **state)
{
    (void)state;
    struct ps_model_params params;
    struct ps_prediction_stats stats;
    struct ps_session *session;
    struct ps_error err;
    const int32_t tokens[] = {1, 2, 3};
    struct ps_model *model = open_model(dense_path);
    assert_int_equal(predictor_memory(model), 0);
    default_params(&params);
    params.predict = true;
    load(model, &params);
    assert_int_equal(ps_model_loaded_plan(model)->predictor, 0);
    assert_int_equal(ps_session_new(&session, model, &err), PS_OK);
    assert_int_equal(ps_session_feed(session, tokens, 3, &err), PS_OK);
    ps_session_prediction_stats(session, &stats);
    for (uint32_t d = 0; d < D; d++)
        assert_int_equal(stats.chosen[d], 0);
    ps_session_free(session);
    ps_model_free(model);
}

static void nothing_is_predicted_before_the_router_was_seen(void **state)
{
    (void)state;
    struct bench b;
    struct prediction p;
    bench_init(&b, PS_ACTIVATIONS_AUTO, 0);
    fill_random(&b, b.f.s.x);
    for (uint32_t seen = 0; seen <= N_LAYERS; seen++) {
        for (uint32_t l = 0; l < N_LAYERS; l++) {
            bool known = predictor_predict(b.predictor, &b.f, -1, l + 1, 0, &p);
            assert_int_equal(known, l < seen);
            assert_true(!known || p.layer == l);
        }
        if (seen < N_LAYERS)
            observe(&b, seen, b.f.s.x);
    }
    bench_deinit(&b);
}

static void there_is_nothing_to_predict_past_the_last_layer(void **state)
{
    (void)state;
    struct bench b;
    struct prediction p;
    bench_init(&b, PS_ACTIVATIONS_AUTO, 0);
    observe_all(&b);
    for (int after = -1; after < N_LAYERS; after++) {
        for (uint32_t step = 1; step <= N_LAYERS + 2; step++) {
            bool there = predictor_predict(b.predictor, &b.f, after, step, 0, &p);
            assert_int_equal(there, after + (int)step < N_LAYERS);
            assert_true(!there || (int)p.layer == after + (int)step);
        }
    }
    bench_deinit(&b);
}

static void dense_layers_are_stepped_over(void **state)
{
    (void)state;
    static const struct {
        int after;
        uint32_t step, layer; /* N_LAYERS: none */
    } cases[] = {{-1, 1, 1}, {-1, 2, 3}, {0, 1, 1}, {0, 2, 3}, {1, 1, 3},
                 {2, 1, 3},  {-1, 3, 4}, {1, 2, 4}, {3, 1, 4}};
    struct bench b;
    bench_init(&b, PS_ACTIVATIONS_AUTO, 1 << 0 | 1 << 2);
    observe_all(&b);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct prediction p = {.layer = N_LAYERS};
        bool there = predictor_predict(b.predictor, &b.f, cases[i].after, cases[i].step, 0, &p);
        assert_int_equal(there, cases[i].layer < N_LAYERS);
        assert_int_equal(p.layer, cases[i].layer);
    }
    /* And the copies are those of the layers that they are said to be of. */
    for (uint32_t l = 1; l < N_LAYERS; l += 2) {
        struct trial t = {.layer = l};
        run_trial(&b, &t, 50);
        assert_true(t.right_first > t.n_first * 9 / 10);
    }
    bench_deinit(&b);
}

static void check_ranks_as_the_router_does(enum ps_activations activations)
{
    struct bench b;
    struct ps_prediction_stats stats;
    bench_init(&b, activations, 0);
    observe_all(&b);
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        struct trial t = {.layer = l, .distance = l % D};
        run_trial(&b, &t, 100);
        assert_true(t.right_first >= t.n_first * 95 / 100); /* the copy is rounded */
    }
    predictor_get_stats(b.predictor, &stats);
    for (uint32_t d = 0; d < D; d++) {
        assert_true(stats.right[d][0] >= stats.predicted[d][0] * 99 / 100);
        assert_true(stats.right[d][K + 1] <= stats.predicted[d][K + 1] / 50);
    }
    bench_deinit(&b);
}

static void what_the_router_sees_is_ranked_as_the_router_does(void **state)
{
    (void)state;
    check_ranks_as_the_router_does(PS_ACTIVATIONS_AUTO);
}

static void what_the_router_sees_is_ranked_likewise_with_f32_activations(void **state)
{
    (void)state;
    check_ranks_as_the_router_does(PS_ACTIVATIONS_F32);
}

static void right_predictions_become_certain(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b, PS_ACTIVATIONS_AUTO, 0);
    observe_all(&b);
    struct trial before = {.layer = 1};
    run_trial(&b, &before, 1);
    assert_true(before.first / before.n_first < 0.9);
    struct trial after = measure(&b, 1, 0, 0.0f);
    assert_true(after.first / after.n_first > 0.95);
    assert_true(after.later / after.n_later < 0.05);
    bench_deinit(&b);
}

static void random_predictions_fall_to_the_base_rate(void **state)
{
    (void)state;
    const double base = (double)K / N_EXPERT;
    struct bench b;
    bench_init(&b, PS_ACTIVATIONS_AUTO, 0);
    observe_all(&b);
    struct trial t = measure(&b, 2, 1, INFINITY);
    assert_true(fabs((t.first + t.later) / (t.n_first + t.n_later) - base) < 0.04);
    assert_true(fabs(t.first / t.n_first - base) < 0.1);
    bench_deinit(&b);
}

static void probabilities_are_how_often_predictions_come_true(void **state)
{
    (void)state;
    static const float noise[] = {0.3f, 0.7f, 1.5f};
    struct bench b;
    for (size_t i = 0; i < sizeof(noise) / sizeof(noise[0]); i++) {
        bench_init(&b, PS_ACTIVATIONS_AUTO, 0);
        observe_all(&b);
        struct trial t = measure(&b, 3, 2, noise[i]);
        assert_true(fabs(t.first - t.right_first) / t.n_first < 0.05);
        assert_true(fabs(t.later - t.right_later) / t.n_later < 0.05);
        assert_true(t.right_first * t.n_later > t.right_later * t.n_first);
        bench_deinit(&b);
    }
}

static void layers_and_distances_are_calibrated_apart(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b, PS_ACTIVATIONS_AUTO, 0);
    observe_all(&b);
    measure(&b, 1, 0, 0.0f);
    measure(&b, 2, 0, INFINITY);
    measure(&b, 2, 1, 0.0f);
    struct trial sure = {.layer = 1}, guess = {.layer = 2}, sure_too = {.layer = 2, .distance = 1};
    run_trial(&b, &sure, 50);
    run_trial(&b, &guess, 50);
    run_trial(&b, &sure_too, 50);
    assert_true(sure.first / sure.n_first > 0.9);
    assert_true(guess.first / guess.n_first < 0.5);
    assert_true(sure_too.first / sure_too.n_first > 0.9);
    bench_deinit(&b);
}

/* What layer 3 is told of its first prediction when layer 1 has had outcomes; for the same residual stream every time. */
static double first_after(float noise)
{
    struct bench b;
    bench_init(&b, PS_ACTIVATIONS_AUTO, 0);
    observe_all(&b);
    measure(&b, 1, 0, noise);
    struct trial t = {.layer = 3};
    run_trial(&b, &t, 1);
    bench_deinit(&b);
    return t.first / t.n_first;
}

static void a_layer_without_outcomes_goes_by_those_of_the_others(void **state)
{
    (void)state;
    assert_true(first_after(0.0f) > first_after(INFINITY) + 0.05);
}

/* ---- chunks ---- */

/* The listed experts by id; 0: not listed. */
static void predict_by_expert(struct bench *b, uint32_t n_tokens, float *by_expert)
{
    struct prediction p;
    b->f.n_tokens = n_tokens;
    assert_true(predictor_predict(b->predictor, &b->f, 0, 1, 1, &p));
    assert_well_formed(&p);
    memset(by_expert, 0, N_EXPERT * sizeof(*by_expert));
    for (uint32_t i = 0; i < p.n; i++)
        by_expert[p.experts[i]] = p.probabilities[i];
}

static void a_chunk_needs_what_any_of_its_tokens_needs(void **state)
{
    (void)state;
    enum { N = 3 };
    struct bench b;
    float x[N][N_EMBD], one[N_EXPERT], all[N_EXPERT], missed[N_EXPERT];
    bench_init(&b, PS_ACTIVATIONS_AUTO, 0);
    observe_all(&b);
    for (uint32_t e = 0; e < N_EXPERT; e++)
        missed[e] = 1.0f;
    for (uint32_t t = 0; t < N; t++) {
        fill_random(&b, x[t]);
        memcpy(b.f.s.x, x[t], sizeof(x[t]));
        predict_by_expert(&b, 1, one);
        for (uint32_t e = 0; e < N_EXPERT; e++)
            missed[e] *= 1.0f - one[e];
    }
    memcpy(b.f.s.x, x, sizeof(x));
    predict_by_expert(&b, N, all);
    uint32_t listed = 0;
    for (uint32_t e = 0; e < N_EXPERT; e++) {
        listed += all[e] > 0.0f;
        assert_true(fabsf(all[e] - (1.0f - missed[e])) < 1e-5f || (all[e] == 0.0f && missed[e] > 0.9f));
    }
    assert_true(listed > 2 * K);
    bench_deinit(&b);
}

static void tokens_that_are_not_sampled_count_as_those_that_are(void **state)
{
    (void)state;
    struct bench b;
    float one[N_EXPERT], all[N_EXPERT];
    bench_init(&b, PS_ACTIVATIONS_AUTO, 0);
    observe_all(&b);
    fill_random(&b, b.f.s.x);
    for (uint32_t t = 1; t < CHUNK; t++)
        memcpy(b.f.s.x + t * N_EMBD, b.f.s.x, N_EMBD * sizeof(float));
    predict_by_expert(&b, 1, one);
    for (uint32_t n = 2; n <= CHUNK; n += 19) {
        predict_by_expert(&b, n, all);
        for (uint32_t e = 0; e < N_EXPERT; e++) {
            float needed = 1.0f - powf(1.0f - one[e], (float)n);
            assert_true(fabsf(all[e] - needed) < 1e-4f || (all[e] == 0.0f && needed < 0.1f));
        }
    }
    bench_deinit(&b);
}

/* ---- what is scored ---- */

static uint64_t scored(const struct bench *b)
{
    struct ps_prediction_stats stats;
    predictor_get_stats(b->predictor, &stats);
    uint64_t n = 0;
    for (uint32_t d = 0; d < D; d++)
        n += stats.chosen[d];
    return n;
}

static void only_predictions_for_one_token_are_scored(void **state)
{
    (void)state;
    struct bench b;
    struct prediction p;
    bench_init(&b, PS_ACTIVATIONS_AUTO, 0);
    observe_all(&b);
    fill_random(&b, b.f.s.x);
    b.f.n_tokens = 2;
    assert_true(predictor_predict(b.predictor, &b.f, 0, 1, 1, &p));
    observe(&b, 1, b.f.s.x);
    assert_int_equal(scored(&b), 0);
    b.f.n_tokens = 1;
    assert_true(predictor_predict(b.predictor, &b.f, 0, 1, 1, &p));
    observe(&b, 1, b.f.s.x);
    assert_int_equal(scored(&b), K);
    observe(&b, 1, b.f.s.x); /* once */
    assert_int_equal(scored(&b), K);
    bench_deinit(&b);
}

static void predictions_for_another_token_are_not_scored(void **state)
{
    (void)state;
    struct bench b;
    struct prediction p;
    bench_init(&b, PS_ACTIVATIONS_AUTO, 0);
    observe_all(&b);
    fill_random(&b, b.f.s.x);
    assert_true(predictor_predict(b.predictor, &b.f, 0, 1, 1, &p));
    b.f.token_clock++;
    observe(&b, 1, b.f.s.x);
    assert_int_equal(scored(&b), 0);
    /* A pass that was cut short leaves the clock where it was: the next one begins anew. */
    assert_true(predictor_predict(b.predictor, &b.f, 0, 1, 1, &p));
    assert_true(predictor_predict(b.predictor, &b.f, -1, 1, 0, &p));
    observe(&b, 1, b.f.s.x);
    assert_int_equal(scored(&b), 0);
    bench_deinit(&b);
}

/* Where only the second half of a ranking comes true it is listed first, and keeps its ranks in the counts. */
static void ranks_are_those_of_the_ranking_not_of_the_list(void **state)
{
    (void)state;
    enum { N = 300 };
    struct bench b;
    struct prediction p;
    struct ps_prediction_stats stats;
    uint32_t reversed = 0;
    bench_init(&b, PS_ACTIVATIONS_AUTO, 0);
    observe_all(&b);
    for (uint32_t i = 0; i < N; i++, b.f.token_clock++) {
        uint32_t best[K], rest[2 * K], n = 0;
        fill_random(&b, b.f.s.x);
        choose(&b, 1, b.f.s.x, best);
        assert_true(predictor_predict(b.predictor, &b.f, 0, 1, 0, &p));
        assert_int_equal(p.n, 2 * K);
        for (uint32_t j = 0; j < p.n; j++) {
            if (!contains(best, K, p.experts[j]))
                rest[n++] = p.experts[j];
        }
        reversed += !contains(best, K, p.experts[0]);
        memcpy(b.f.s.chosen, rest, K * sizeof(*rest));
        predictor_observe(b.predictor, &b.f, 1);
    }
    assert_true(reversed > N / 2);
    predictor_get_stats(b.predictor, &stats);
    assert_true(stats.right[0][0] < N / 20);
    assert_true(stats.right[0][2 * K - 1] > N - N / 20);
    bench_deinit(&b);
}

static void predicting_leaves_the_forward_pass_as_it_was(void **state)
{
    (void)state;
    struct bench b;
    struct prediction p;
    bench_init(&b, PS_ACTIVATIONS_AUTO, 0);
    observe_all(&b);
    for (uint32_t i = 0; i < CHUNK; i++)
        fill_random(&b, b.f.s.x + i * N_EMBD);
    uint8_t *before = malloc(b.scratch_bytes);
    assert_non_null(before);
    memcpy(before, b.scratch, b.scratch_bytes);
    for (uint32_t n = 1; n <= CHUNK; n += CHUNK - 1) {
        struct forward f = b.f;
        f.n_tokens = b.f.n_tokens = n;
        assert_true(predictor_predict(b.predictor, &b.f, 0, 2, 2, &p));
        assert_memory_equal(&f, &b.f, sizeof(f));
        assert_memory_equal(before, b.scratch, b.scratch_bytes);
    }
    free(before);
    bench_deinit(&b);
}

/* ---- through a model ---- */

/* Counts what becomes of predictions from what a caller of the library is told. */
struct witness {
    struct {
        uint32_t n, experts[N_EXPERT]; /* n 0: none */
    } last[D][N_LAYERS];
    uint64_t right[D], predicted[D], chosen[D];
    uint64_t calls;
};

static void on_prediction(void *ctx, uint32_t moe_layer, uint32_t distance, uint32_t position,
                          uint32_t n_tokens, uint32_t n, const uint32_t *experts, const float *probabilities)
{
    struct witness *w = ctx;
    (void)position;
    (void)probabilities;
    assert_int_equal(n_tokens, 1);
    assert_true(moe_layer < N_LAYERS);
    assert_true(distance < D);
    w->last[distance][moe_layer].n = n;
    memcpy(w->last[distance][moe_layer].experts, experts, n * sizeof(*experts));
    w->calls++;
}

static void on_router(void *ctx, uint32_t moe_layer, uint32_t position, uint32_t n_tokens, uint32_t k,
                      const uint32_t *ids, const float *weights)
{
    struct witness *w = ctx;
    (void)position;
    (void)n_tokens;
    (void)weights;
    for (uint32_t d = 0; d < D; d++) {
        uint32_t n = w->last[d][moe_layer].n;
        if (n == 0)
            continue;
        w->chosen[d] += k;
        w->predicted[d] += n;
        for (uint32_t i = 0; i < n; i++)
            w->right[d] += contains(ids, k, w->last[d][moe_layer].experts[i]);
        w->last[d][moe_layer].n = 0;
    }
}

static int32_t token_at(int32_t i)
{
    return (i * 17 + 5) % N_VOCAB;
}

static void feed_one_by_one(struct ps_session *session)
{
    struct ps_error err;
    for (int32_t i = 0; i < N_TOKENS; i++) {
        int32_t token = token_at(i);
        assert_int_equal(ps_session_feed(session, &token, 1, &err), PS_OK);
    }
}

static void counts_are_those_of_predictions_and_choices(void **state)
{
    (void)state;
    /* Per token, layers that are predicted from that far off before their router chooses. */
    static const uint32_t layers[D] = {N_LAYERS, N_LAYERS - 1, N_LAYERS - 2};
    struct ps_error err;
    struct ps_model_params params;
    struct ps_session *session;
    struct ps_prediction_stats s;
    struct witness w = {0};
    default_params(&params);
    params.predict = true;
    struct ps_model *model = open_model(moe_path);
    load(model, &params);
    assert_int_equal(ps_session_new(&session, model, &err), PS_OK);
    ps_session_on_prediction(session, on_prediction, &w);
    ps_session_on_router(session, on_router, &w);
    ps_session_prediction_stats(session, &s);
    assert_int_equal(s.n_ranks, 0);
    feed_one_by_one(session);
    ps_session_prediction_stats(session, &s);
    assert_int_equal(s.n_ranks, 2 * K);
    for (uint32_t d = 0; d < D; d++) {
        uint64_t right = 0, predicted = 0;
        for (uint32_t r = 0; r < PS_PREDICTION_RANKS; r++) {
            assert_true(s.right[d][r] <= s.predicted[d][r]);
            assert_int_equal(s.predicted[d][r], r < s.n_ranks ? s.chosen[d] / K : 0);
            right += s.right[d][r];
            predicted += s.predicted[d][r];
        }
        assert_int_equal(s.chosen[d], (N_TOKENS - 1) * layers[d] * K); /* the first shows the routers */
        assert_int_equal(s.chosen[d], w.chosen[d]);
        assert_int_equal(right, w.right[d]);
        assert_int_equal(predicted, w.predicted[d]);
        assert_true(right <= s.chosen[d]);
        assert_true(right > s.chosen[d] / 2); /* half of the experts, drawn at random, would be as good */
    }
    /* One more than the layers: the second is predicted from the start, and again at the first's router. */
    assert_int_equal(w.calls, (N_TOKENS - 1) * (layers[0] + layers[1] + 1 + layers[2]));
    ps_session_free(session);
    ps_model_free(model);
}

/* Logits of the tokens: of a prompt, then one by one. With little memory, so that some experts stay out of it. */
static void compute(bool predict, enum ps_prefetch prefetch, float *logits, struct ps_stats *stats,
                    struct ps_prediction_stats *predictions)
{
    struct ps_error err;
    struct ps_model_params params;
    struct ps_plan plan;
    struct ps_session *session;
    int32_t tokens[N_TOKENS];
    struct ps_model *model = open_model(moe_path);
    default_params(&params);
    params.chunk = PROMPT;
    params.predict = predict;
    params.prefetch = prefetch;
    assert_int_equal(ps_model_plan(model, &params, &plan, &err), PS_OK);
    params.ram = plan.minimum + predictor_memory(model) + (256u << 10);
    load(model, &params);
    assert_int_equal(ps_session_new(&session, model, &err), PS_OK);
    for (int32_t i = 0; i < N_TOKENS; i++)
        tokens[i] = token_at(i);
    assert_int_equal(ps_session_feed(session, tokens, PROMPT, &err), PS_OK);
    assert_int_equal(ps_session_logits(session, 0, PROMPT, logits, &err), PS_OK);
    for (int32_t i = PROMPT; i < N_TOKENS; i++) {
        assert_int_equal(ps_session_feed(session, tokens + i, 1, &err), PS_OK);
        assert_int_equal(ps_session_logits(session, 0, 1, logits + (size_t)i * N_VOCAB, &err), PS_OK);
    }
    ps_session_stats(session, stats);
    ps_session_prediction_stats(session, predictions);
    assert_true(stats->expert_misses > 0);
    ps_session_free(session);
    ps_model_free(model);
}

static void predictions_never_change_the_logits(void **state)
{
    (void)state;
    static float plain[N_TOKENS * N_VOCAB], predicted[N_TOKENS * N_VOCAB];
    struct ps_stats stats;
    struct ps_prediction_stats predictions;
    compute(false, PS_PREFETCH_OFF, plain, &stats, &predictions);
    assert_int_equal(predictions.chosen[0], 0);
    compute(true, PS_PREFETCH_OFF, predicted, &stats, &predictions);
    assert_true(predictions.chosen[0] > 0);
    assert_int_equal(stats.bytes_speculative, 0);
    assert_memory_equal(predicted, plain, sizeof(plain));
    compute(true, PS_PREFETCH_AUTO, predicted, &stats, &predictions);
    assert_true(stats.bytes_speculative > 0);
    assert_memory_equal(predicted, plain, sizeof(plain));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_what_a_predictor_takes),
        cmocka_unit_test(a_dense_model_takes_no_memory),
        cmocka_unit_test(nothing_is_predicted_before_the_router_was_seen),
        cmocka_unit_test(there_is_nothing_to_predict_past_the_last_layer),
        cmocka_unit_test(dense_layers_are_stepped_over),
        cmocka_unit_test(what_the_router_sees_is_ranked_as_the_router_does),
        cmocka_unit_test(what_the_router_sees_is_ranked_likewise_with_f32_activations),
        cmocka_unit_test(right_predictions_become_certain),
        cmocka_unit_test(random_predictions_fall_to_the_base_rate),
        cmocka_unit_test(probabilities_are_how_often_predictions_come_true),
        cmocka_unit_test(layers_and_distances_are_calibrated_apart),
        cmocka_unit_test(a_layer_without_outcomes_goes_by_those_of_the_others),
        cmocka_unit_test(a_chunk_needs_what_any_of_its_tokens_needs),
        cmocka_unit_test(tokens_that_are_not_sampled_count_as_those_that_are),
        cmocka_unit_test(only_predictions_for_one_token_are_scored),
        cmocka_unit_test(predictions_for_another_token_are_not_scored),
        cmocka_unit_test(ranks_are_those_of_the_ranking_not_of_the_list),
        cmocka_unit_test(predicting_leaves_the_forward_pass_as_it_was),
        cmocka_unit_test(counts_are_those_of_predictions_and_choices),
        cmocka_unit_test(predictions_never_change_the_logits),
    };
    return cmocka_run_group_tests_name("predictor", tests, write_models, remove_models);
}
