#include "runtime/predictor_correction.h"

#include <math.h>
#include <string.h>

static const float MAP_STEP = 0.1f;     /* of normalised LMS; 0.05 to 0.2 are equally good */
static const float SHIFT_STEP = 0.03f;  /* fast enough to follow a change of subject */
static const float LEAST_POWER = 0.01f; /* of x, in that of the truth: from nothing nothing is learnt */
static const float ERROR_FIRST =
    0.25f; /* mean square error before the first outcome, in variances of the estimate, */
enum {
    ERROR_FIRST_WEIGHT = 4, /* and how many outcomes it stands for */
    ERROR_MEMORY = 64,      /* outcomes that the error is the mean of */
};

uint64_t correction_floats(uint32_t n, bool with_map)
{
    return (uint64_t)n * (with_map ? n + 2ull : 2ull);
}

void correction_init(struct correction *c, uint32_t n, bool with_map, float *floats)
{
    memset(floats, 0, correction_floats(n, with_map) * sizeof(*floats));
    *c = (struct correction){.n = n, .shift = floats, .error = floats + n};
    if (!with_map)
        return;
    c->map = floats + 2ull * n;
    for (uint32_t e = 0; e < n; e++)
        c->map[(size_t)e * n + e] = 1.0f;
}

void correction_apply(const struct correction *c, const struct vector_ops *ops, const float *x,
                      float *estimate)
{
    for (uint32_t e = 0; e < c->n; e++)
        estimate[e] = c->shift[e] + (c->map ? ops->dot(c->map + (size_t)e * c->n, x, c->n) : x[e]);
}

static float variance(const float *x, uint32_t n)
{
    float squares = 0.0f;
    for (uint32_t e = 0; e < n; e++)
        squares += x[e] * x[e];
    return squares / (float)n;
}

float correction_error(const struct correction *c, const float *estimate, uint32_t expert)
{
    return sqrtf(c->n_learnt > 0 ? c->error[expert] : ERROR_FIRST * variance(estimate, c->n));
}

void correction_learn(struct correction *c, const struct vector_ops *ops, const float *x, float *estimate,
                      const float *truth)
{
    uint32_t n = c->n;
    float *miss = estimate;
    if (c->n_learnt == 0) {
        float first = ERROR_FIRST * variance(estimate, n);
        for (uint32_t e = 0; e < n; e++)
            c->error[e] = first;
    }
    for (uint32_t e = 0; e < n; e++)
        miss[e] = truth[e] - estimate[e];
    float power = ops->dot(x, x, n);
    if (!isfinite(power) || !isfinite(ops->dot(miss, miss, n)))
        return;
    power += LEAST_POWER * ops->dot(truth, truth, n);
    float map_step = power > 0.0f ? MAP_STEP / power : 0.0f;
    float error_step = 1.0f / (float)(c->n_learnt + ERROR_FIRST_WEIGHT + 1);
    for (uint32_t e = 0; e < n; e++) {
        if (c->map)
            ops->axpy(c->map + (size_t)e * n, x, map_step * miss[e], n);
        c->shift[e] += SHIFT_STEP * miss[e];
        c->error[e] += error_step * (miss[e] * miss[e] - c->error[e]);
    }
    if (c->n_learnt < ERROR_MEMORY)
        c->n_learnt++;
}

void correction_centre(float *logits, uint32_t n)
{
    float sum = 0.0f;
    for (uint32_t e = 0; e < n; e++)
        sum += logits[e];
    for (uint32_t e = 0; e < n; e++)
        logits[e] -= sum / (float)n;
}
