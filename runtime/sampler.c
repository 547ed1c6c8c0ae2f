/* Sampler: repetition penalty, then temperature, top-k, top-p and min-p over the candidates, then a draw. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/vector_ops.h"
#include "runtime/penstock.h"

struct candidate {
    int32_t token;
    float logit;
    double p;
};

struct ps_sampler {
    struct ps_sampler_params params;
    uint64_t state[4]; /* xoshiro256** (Blackman, Vigna 2018) */
    int32_t *recent;   /* ring of repeat_last tokens */
    uint32_t n_recent, next_recent;
    struct candidate *candidates; /* [capacity] */
    uint32_t *ids;                /* [capacity] */
    uint32_t capacity;
};

void ps_sampler_params_default(struct ps_sampler_params *params)
{
    *params = (struct ps_sampler_params){
        .temp = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1.0f, .repeat_last = 64};
}

static uint64_t splitmix(uint64_t *x)
{
    uint64_t z = *x += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t rotate(uint64_t x, int n)
{
    return x << n | x >> (64 - n);
}

static uint64_t next_random(uint64_t s[4])
{
    uint64_t result = rotate(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return result;
}

enum ps_status ps_sampler_new(struct ps_sampler **out, const struct ps_sampler_params *params,
                              struct ps_error *err)
{
    *out = NULL;
    if (!(params->temp >= 0.0f) || !(params->top_p > 0.0f) || !(params->min_p >= 0.0f) ||
        !(params->repeat_penalty > 0.0f))
        return ps_error_set(err, PS_ERR_ARGUMENT,
                            "sampler: temp and min-p must be at least 0, top-p and repeat-penalty above 0");
    struct ps_sampler *sampler = calloc(1, sizeof(*sampler));
    if (!sampler)
        return ps_error_set(err, PS_ERR_NOMEM, "sampler: out of memory");
    sampler->params = *params;
    sampler->recent = calloc(params->repeat_last + 1u, sizeof(*sampler->recent));
    if (!sampler->recent) {
        free(sampler);
        return ps_error_set(err, PS_ERR_NOMEM, "sampler: out of memory");
    }
    uint64_t seed = params->seed;
    for (int i = 0; i < 4; i++)
        sampler->state[i] = splitmix(&seed);
    *out = sampler;
    return PS_OK;
}

void ps_sampler_free(struct ps_sampler *sampler)
{
    if (!sampler)
        return;
    free(sampler->recent);
    free(sampler->candidates);
    free(sampler->ids);
    free(sampler);
}

void ps_sampler_accept(struct ps_sampler *sampler, int32_t token)
{
    uint32_t size = sampler->params.repeat_last;
    if (size == 0)
        return;
    sampler->recent[sampler->next_recent] = token;
    sampler->next_recent = (sampler->next_recent + 1) % size;
    if (sampler->n_recent < size)
        sampler->n_recent++;
}

static void penalize(const struct ps_sampler *sampler, float *logits, uint32_t n_vocab)
{
    float penalty = sampler->params.repeat_penalty;
    if (penalty == 1.0f)
        return;
    for (uint32_t i = 0; i < sampler->n_recent; i++) {
        int32_t token = sampler->recent[i];
        bool seen = token < 0 || (uint32_t)token >= n_vocab;
        for (uint32_t j = 0; !seen && j < i; j++)
            seen = sampler->recent[j] == token;
        if (!seen)
            logits[token] = logits[token] > 0.0f ? logits[token] / penalty : logits[token] * penalty;
    }
}

static int32_t most_likely(const float *logits, uint32_t n_vocab)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n_vocab; i++) {
        /* Written so that a NaN never wins. */
        if (logits[i] > logits[best] || (isnan(logits[best]) && !isnan(logits[i])))
            best = i;
    }
    return (int32_t)best;
}

/* Softmax at the sampler's temperature over n sorted candidates. */
static void set_probabilities(struct candidate *c, uint32_t n, float temp)
{
    double sum = 0.0;
    for (uint32_t i = 0; i < n; i++)
        sum += c[i].p = exp(((double)c[i].logit - (double)c[0].logit) / (double)temp);
    for (uint32_t i = 0; i < n; i++)
        c[i].p /= sum;
}

/* Cuts the tail by top-p and min-p; at least one candidate stays. */
static uint32_t cut_tail(const struct candidate *c, uint32_t n, const struct ps_sampler_params *params)
{
    double sum = 0.0;
    uint32_t kept = 0;
    while (kept < n &&
           (kept == 0 || (sum < (double)params->top_p && c[kept].p >= (double)params->min_p * c[0].p)))
        sum += c[kept++].p;
    return kept;
}

static int32_t draw(struct ps_sampler *sampler, const struct candidate *c, uint32_t n)
{
    double sum = 0.0;
    for (uint32_t i = 0; i < n; i++)
        sum += c[i].p;
    double target = (double)(next_random(sampler->state) >> 11) * 0x1p-53 * sum;
    uint32_t i = 0;
    while (i + 1 < n && target >= c[i].p)
        target -= c[i++].p;
    return c[i].token;
}

static bool reserve(struct ps_sampler *sampler, uint32_t n)
{
    if (n <= sampler->capacity)
        return true;
    struct candidate *candidates = realloc(sampler->candidates, n * sizeof(*candidates));
    if (candidates)
        sampler->candidates = candidates;
    uint32_t *ids = candidates ? realloc(sampler->ids, n * sizeof(*ids)) : NULL;
    if (!ids)
        return false;
    sampler->ids = ids;
    sampler->capacity = n;
    return true;
}

/* The top-k (or all) candidates, best first, NaNs left out; UINT32_MAX when memory runs out. */
static uint32_t sort_candidates(struct ps_sampler *sampler, const float *logits, uint32_t n_vocab)
{
    uint32_t k = sampler->params.top_k;
    if (k == 0 || k > n_vocab)
        k = n_vocab;
    if (!reserve(sampler, k))
        return UINT32_MAX;
    top_k(sampler->ids, k, logits, n_vocab);
    uint32_t n = 0;
    for (uint32_t i = 0; i < k; i++) {
        uint32_t id = sampler->ids[i];
        if (!isnan(logits[id]))
            sampler->candidates[n++] = (struct candidate){.token = (int32_t)id, .logit = logits[id]};
    }
    return n;
}

enum ps_status ps_sampler_pick(struct ps_sampler *sampler, float *logits, uint32_t n_vocab, int32_t *token,
                               struct ps_error *err)
{
    penalize(sampler, logits, n_vocab);
    if (sampler->params.temp == 0.0f) {
        *token = most_likely(logits, n_vocab);
        return PS_OK;
    }
    uint32_t n = sort_candidates(sampler, logits, n_vocab);
    if (n == UINT32_MAX)
        return ps_error_set(err, PS_ERR_NOMEM, "sampler: out of memory");
    struct candidate *c = sampler->candidates;
    if (n == 0) {
        *token = 0;
        return PS_OK;
    }
    set_probabilities(c, n, sampler->params.temp);
    n = cut_tail(c, n, &sampler->params);
    *token = draw(sampler, c, n);
    return PS_OK;
}
