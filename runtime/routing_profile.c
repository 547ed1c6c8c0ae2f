/* Routing profiles: fitting one to a recording, and drawing a trace from one. */
#include "runtime/routing_profile.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/splitmix.h"
#include "runtime/synth_blocks.h"

const double ROUTING_TOKENS[ROUTING_PARTS] = {INFINITY, 48, 8, 1.5};

/* Near the fits to recordings of OLMoE (.24 .19 0 .35) and Qwen3-30B-A3B (.35 .19 0 .28); with 5 to 70 % of the experts in
 * memory the default policy hits within .06 of what it does on either. */
const struct routing_profile ROUTING_TEXT = {{0.25, 0.2, 0.2, 0.2}};

static double part_correlation(uint32_t part, double distance)
{
    return part == 0 ? 1.0 : exp(-distance / ROUTING_TOKENS[part]);
}

/* ---- overlap and correlation ---- */

static double normal_above(double x)
{
    return 0.5 * erfc(x * M_SQRT1_2);
}

/* The score that a share q of standard normal ones exceeds. */
static double normal_quantile_above(double q)
{
    double low = -10, high = 10;
    for (int i = 0; i < 60; i++) {
        double x = 0.5 * (low + high);
        *(normal_above(x) > q ? &low : &high) = x;
    }
    return 0.5 * (low + high);
}

/* Of the share q of best scores, what share is among the best of scores that correlate with them by r:
 * P(Y > u | X > u) of a bivariate normal, integrated over x by Simpson's rule. */
static double overlap_of(double r, double q)
{
    enum { STEPS = 200 };
    if (r >= 1)
        return 1;
    double u = normal_quantile_above(q);
    double spread = sqrt(1 - r * r);
    double width = 8.0 / STEPS;
    double sum = 0;
    for (int i = 0; i <= STEPS; i++) {
        double x = u + i * width;
        double weight = i == 0 || i == STEPS ? 1 : i % 2 ? 4 : 2;
        sum += weight * exp(-0.5 * x * x) * normal_above((u - r * x) / spread);
    }
    return sum * width / 3 / sqrt(2 * M_PI) / q;
}

/* Less overlap than chance is no correlation. */
static double correlation_of(double overlap, double q)
{
    double low = 0, high = 1;
    for (int i = 0; i < 30; i++) {
        double r = 0.5 * (low + high);
        *(overlap_of(r, q) < overlap ? &low : &high) = r;
    }
    return 0.5 * (low + high);
}

/* ---- fitting ---- */

enum { N_LAGS = 12 };
static const uint32_t LAGS[N_LAGS] = {1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256};

struct lag {
    double common;  /* experts that two tokens had in common */
    double choices; /* of how many */
};

/* Visits of one layer in the order of tokens. */
struct layer_visits {
    const struct replay_visit **visit;
    uint64_t n;
};

static uint32_t count_common(const struct replay_trace *trace, const struct replay_visit *a,
                             const struct replay_visit *b)
{
    uint32_t common = 0;
    for (uint32_t i = 0; i < a->n; i++)
        for (uint32_t j = 0; j < b->n; j++)
            common += trace->ids[a->first + i] == trace->ids[b->first + j];
    return common;
}

static void count_lags(const struct replay_trace *trace, const struct layer_visits *layer,
                       struct lag lags[N_LAGS])
{
    for (uint32_t l = 0; l < N_LAGS; l++) {
        for (uint64_t v = 0; v + LAGS[l] < layer->n; v++) {
            const struct replay_visit *a = layer->visit[v], *b = layer->visit[v + LAGS[l]];
            lags[l].common += count_common(trace, a, b);
            lags[l].choices += a->n < b->n ? a->n : b->n;
        }
    }
}

/* Adds the correlations of all layers with as many experts as the given one, if it is the first of them. Layers of
 * different sizes overlap by chance differently; few tokens say more of many layers together. */
static void add_layers_like(const struct replay_trace *trace, const struct layer_visits *layers,
                            uint32_t first, double r[N_LAGS], double weight[N_LAGS])
{
    struct lag lags[N_LAGS] = {{0}};
    double chosen = 0, offered = 0;
    for (uint32_t l = 0; l < trace->n_layers; l++) {
        if (trace->n_experts[l] != trace->n_experts[first])
            continue;
        if (l < first)
            return;
        count_lags(trace, &layers[l], lags);
        offered += (double)layers[l].n * trace->n_experts[l];
        for (uint64_t v = 0; v < layers[l].n; v++)
            chosen += layers[l].visit[v]->n;
    }
    if (chosen >= offered)
        return; /* no choice: all experts, or none */
    for (uint32_t i = 0; i < N_LAGS; i++) {
        if (lags[i].choices <= 0)
            continue;
        r[i] += lags[i].choices * correlation_of(lags[i].common / lags[i].choices, chosen / offered);
        weight[i] += lags[i].choices;
    }
}

/* Non-negative least squares over the lags, by coordinate descent; the shares add up to 1 at most. */
static void fit_shares(const double r[N_LAGS], const double weight[N_LAGS], double share[ROUTING_PARTS])
{
    enum { ROUNDS = 2000 };
    memset(share, 0, ROUTING_PARTS * sizeof(*share));
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t p = 0; p < ROUTING_PARTS; p++) {
            double along = 0, square = 0, others = 0;
            for (uint32_t o = 0; o < ROUTING_PARTS; o++)
                others += o == p ? 0 : share[o];
            for (uint32_t l = 0; l < N_LAGS; l++) {
                double rest = r[l];
                for (uint32_t o = 0; o < ROUTING_PARTS; o++)
                    rest -= o == p ? 0 : share[o] * part_correlation(o, LAGS[l]);
                double slope = part_correlation(p, LAGS[l]);
                along += weight[l] * slope * rest;
                square += weight[l] * slope * slope;
            }
            share[p] = square > 0 ? fmin(fmax(along / square, 0), 1 - others) : 0;
        }
    }
}

static enum ps_status collect_layers(const struct replay_trace *trace, struct layer_visits *layers,
                                     const struct replay_visit **pointers, struct ps_error *err)
{
    for (uint64_t v = 0; v < trace->n_visits; v++) {
        if (trace->visits[v].layer >= trace->n_layers)
            return ps_error_set(err, PS_ERR_ARGUMENT, "routing trace: visit %llu: layer %u of %u",
                                (unsigned long long)v, trace->visits[v].layer, trace->n_layers);
        layers[trace->visits[v].layer].n++;
    }
    for (uint32_t l = 0; l < trace->n_layers; l++) {
        layers[l].visit = pointers;
        pointers += layers[l].n;
        layers[l].n = 0;
    }
    for (uint64_t v = 0; v < trace->n_visits; v++) {
        struct layer_visits *layer = &layers[trace->visits[v].layer];
        layer->visit[layer->n++] = &trace->visits[v];
    }
    return PS_OK;
}

enum ps_status routing_profile_fit(struct routing_profile *out, const struct replay_trace *recorded,
                                   struct ps_error *err)
{
    *out = (struct routing_profile){0};
    struct layer_visits *layers = calloc(recorded->n_layers + UINT64_C(1), sizeof(*layers));
    const struct replay_visit **pointers = calloc(recorded->n_visits + 1, sizeof(*pointers));
    enum ps_status status = PS_OK;
    if (!layers || !pointers)
        status = ps_error_set(err, PS_ERR_NOMEM, "routing profile: out of memory for %llu visits",
                              (unsigned long long)recorded->n_visits);
    else
        status = collect_layers(recorded, layers, pointers, err);
    if (status != PS_OK)
        goto done;
    double r[N_LAGS] = {0}, weight[N_LAGS] = {0};
    for (uint32_t l = 0; l < recorded->n_layers; l++)
        add_layers_like(recorded, layers, l, r, weight);
    bool pairs = false;
    for (uint32_t l = 0; l < recorded->n_layers; l++)
        pairs = pairs || layers[l].n > 1;
    if (!pairs) {
        status = ps_error_set(err, PS_ERR_ARGUMENT,
                              "routing profile: a recording of two tokens or more is needed");
        goto done;
    }
    for (uint32_t l = 0; l < N_LAGS; l++)
        r[l] = weight[l] > 0 ? r[l] / weight[l] : 0;
    fit_shares(r, weight, out->share);
done:
    free(layers);
    free(pointers);
    return status;
}

/* ---- drawing ---- */

struct generator {
    uint64_t random;
    float gauss[SYNTH_GAUSS_SIZE];
    double keep[ROUTING_PARTS], renew[ROUTING_PARTS]; /* of a part, per token: x = keep x + renew new */
    float scale[ROUTING_PARTS], noise;                /* standard deviations of the parts in a score */
    float (*parts)[ROUTING_PARTS];                    /* [experts of all layers] */
    float *score;                                     /* [largest layer] */
};

static float draw_normal(struct generator *g)
{
    return g->gauss[splitmix64(&g->random) % SYNTH_GAUSS_SIZE];
}

static bool generator_init(struct generator *g, const struct routing_profile *profile, uint32_t n_layers,
                           const uint32_t *n_experts, uint64_t seed)
{
    uint64_t total = 0, largest = 0;
    for (uint32_t l = 0; l < n_layers; l++) {
        total += n_experts[l];
        largest = n_experts[l] > largest ? n_experts[l] : largest;
    }
    *g = (struct generator){.random = seed};
    synth_gauss_table(g->gauss);
    double rest = 1;
    for (uint32_t p = 0; p < ROUTING_PARTS; p++) {
        g->keep[p] = part_correlation(p, 1);
        g->renew[p] = sqrt(1 - g->keep[p] * g->keep[p]);
        g->scale[p] = (float)sqrt(profile->share[p]);
        rest -= profile->share[p];
    }
    g->noise = (float)sqrt(fmax(rest, 0));
    g->parts = calloc(total + 1, sizeof(*g->parts));
    g->score = calloc(largest + 1, sizeof(*g->score));
    if (!g->parts || !g->score)
        return false;
    for (uint64_t e = 0; e < total; e++)
        for (uint32_t p = 0; p < ROUTING_PARTS; p++)
            g->parts[e][p] = draw_normal(g);
    return true;
}

static void generator_deinit(struct generator *g)
{
    free(g->parts);
    free(g->score);
}

/* The next token's scores of one layer. */
static void draw_scores(struct generator *g, float (*parts)[ROUTING_PARTS], uint32_t n)
{
    for (uint32_t e = 0; e < n; e++) {
        float score = g->noise > 0 ? g->noise * draw_normal(g) : 0;
        for (uint32_t p = 0; p < ROUTING_PARTS; p++) {
            if (g->scale[p] <= 0)
                continue;
            if (g->renew[p] > 0)
                parts[e][p] = (float)(g->keep[p] * parts[e][p] + g->renew[p] * draw_normal(g));
            score += g->scale[p] * parts[e][p];
        }
        g->score[e] = score;
    }
}

/* Ids of the k best, ascending. */
static void choose(const float *score, uint32_t n, uint32_t k, uint32_t *ids)
{
    uint32_t n_chosen = 0;
    for (uint32_t e = 0; e < n; e++) {
        /* ids[0 .. n_chosen) best first */
        uint32_t at = n_chosen;
        while (at > 0 && score[ids[at - 1]] < score[e])
            at--;
        if (at == k)
            continue;
        n_chosen += n_chosen < k;
        memmove(ids + at + 1, ids + at, (n_chosen - at - 1) * sizeof(*ids));
        ids[at] = e;
    }
    for (uint32_t i = 1; i < n_chosen; i++) {
        uint32_t id = ids[i], at = i;
        for (; at > 0 && ids[at - 1] > id; at--)
            ids[at] = ids[at - 1];
        ids[at] = id;
    }
}

static bool sample_alloc(struct routing_sample *out, uint32_t n_layers, const uint32_t *n_experts,
                         uint32_t top_k, uint32_t n_tokens)
{
    uint64_t n_visits, n_ids;
    *out = (struct routing_sample){0};
    if (__builtin_mul_overflow((uint64_t)n_layers, n_tokens, &n_visits) ||
        __builtin_mul_overflow(n_visits, top_k, &n_ids) || n_ids > SIZE_MAX / sizeof(struct replay_visit) - 1)
        return false;
    out->n_experts = calloc(n_layers + UINT64_C(1), sizeof(*out->n_experts));
    out->visits = calloc(n_visits + 1, sizeof(*out->visits));
    out->ids = calloc(n_ids + 1, sizeof(*out->ids));
    if (!out->n_experts || !out->visits || !out->ids) {
        routing_sample_free(out);
        return false;
    }
    memcpy(out->n_experts, n_experts, n_layers * sizeof(*n_experts));
    out->trace = (struct replay_trace){.n_layers = n_layers,
                                       .n_experts = out->n_experts,
                                       .n_visits = n_visits,
                                       .visits = out->visits,
                                       .ids = out->ids};
    return true;
}

enum ps_status routing_profile_sample(struct routing_sample *out, const struct routing_profile *profile,
                                      uint32_t n_layers, const uint32_t *n_experts, uint32_t top_k,
                                      uint32_t n_tokens, uint64_t seed, struct ps_error *err)
{
    struct generator g = {0};
    if (!sample_alloc(out, n_layers, n_experts, top_k, n_tokens) ||
        !generator_init(&g, profile, n_layers, n_experts, seed)) {
        generator_deinit(&g);
        routing_sample_free(out);
        return ps_error_set(err, PS_ERR_NOMEM, "routing profile: out of memory for %u tokens", n_tokens);
    }
    uint64_t n_ids = 0;
    struct replay_visit *visit = out->visits;
    for (uint32_t t = 0; t < n_tokens; t++) {
        float(*parts)[ROUTING_PARTS] = g.parts;
        for (uint32_t l = 0; l < n_layers; l++) {
            uint32_t k = top_k < n_experts[l] ? top_k : n_experts[l];
            draw_scores(&g, parts, n_experts[l]);
            choose(g.score, n_experts[l], k, out->ids + n_ids);
            *visit++ = (struct replay_visit){.token = t, .layer = l, .n = k, .first = n_ids};
            n_ids += k;
            parts += n_experts[l];
        }
    }
    generator_deinit(&g);
    return PS_OK;
}

void routing_sample_free(struct routing_sample *sample)
{
    free(sample->n_experts);
    free(sample->visits);
    free(sample->ids);
    *sample = (struct routing_sample){0};
}
