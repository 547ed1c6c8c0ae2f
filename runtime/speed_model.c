#include "runtime/speed_model.h"

#include <math.h>

/* Time for n shards at once: between measured points along a line, beyond the last one at the drive's rate. */
static double set_seconds(const struct speed_parts *p, uint32_t n)
{
    double shard_s = p->shard_bytes / p->drive_rate;
    if (n == 0)
        return 0;
    if (p->n_sets == 0)
        return n * shard_s;
    const struct speed_set *above = p->sets;
    while (above < p->sets + p->n_sets && above->n < n)
        above++;
    if (above == p->sets + p->n_sets)
        return above[-1].seconds + (n - above[-1].n) * shard_s;
    if (above->n == n || above == p->sets)
        return above->seconds;
    const struct speed_set *below = above - 1;
    return below->seconds + (above->seconds - below->seconds) * (n - below->n) / (above->n - below->n);
}

/* Mean over the number of misses of a layer, as if each expert were missed independently. */
static double layer_seconds(const struct speed_parts *p, double miss_rate)
{
    double q = fmin(fmax(miss_rate, 0), 1);
    if (q >= 1)
        return set_seconds(p, p->top_k);
    double probability = pow(1 - q, p->top_k); /* of no miss */
    double sum = 0;
    for (uint32_t n = 1; n <= p->top_k; n++) {
        probability *= q / (1 - q) * (p->top_k - n + 1) / n;
        sum += probability * set_seconds(p, n);
    }
    return sum;
}

struct speed_estimate speed_predict(const struct speed_parts *p, const struct speed_load *load)
{
    double experts = (double)p->n_layers * p->top_k;
    double touch = experts * load->fresh_rate * p->shard_bytes * p->touch_s;
    double expert_bytes = experts * load->miss_rate * p->shard_bytes;
    double full_queue = p->drag * (expert_bytes + load->trunk_bytes) / p->drive_rate;
    double alone =
        p->drag * (p->n_layers * layer_seconds(p, load->miss_rate) + load->trunk_bytes / p->drive_rate);
    struct speed_estimate e = {.drive_s = full_queue + touch};
    e.best_s = fmax(p->compute_s, e.drive_s);
    e.worst_s = fmax(p->compute_s + alone + touch, e.best_s);
    e.token_s = e.worst_s - p->overlap * (e.worst_s - e.best_s);
    return e;
}

struct speed_parts speed_with_drive(const struct speed_parts *parts, double drive_rate)
{
    struct speed_parts other = *parts;
    other.drive_rate = drive_rate;
    for (uint32_t i = 0; i < other.n_sets; i++) {
        double bytes = other.sets[i].n * parts->shard_bytes;
        double latency = fmax(parts->sets[i].seconds - bytes / parts->drive_rate, 0);
        other.sets[i].seconds = latency + bytes / drive_rate;
    }
    return other;
}

/* Where x lies from a (0) to b (1). */
static double position(double a, double b, double x)
{
    return a == b ? 0 : fmin(fmax((x - a) / (b - a), 0), 1);
}

static double between(double a, double b, double share)
{
    return a + share * (b - a);
}

struct speed_estimate speed_between(const struct speed_fit *fits, uint32_t n, const struct speed_load *load)
{
    struct speed_estimate a = speed_predict(&fits[0].parts, load);
    if (n == 1)
        return a;
    struct speed_estimate b = speed_predict(&fits[1].parts, load);
    double share = position(fits[0].miss_rate, fits[1].miss_rate, load->miss_rate);
    return (struct speed_estimate){.token_s = between(a.token_s, b.token_s, share),
                                   .drive_s = between(a.drive_s, b.drive_s, share),
                                   .best_s = between(a.best_s, b.best_s, share),
                                   .worst_s = between(a.worst_s, b.worst_s, share)};
}

double speed_correct(const struct speed_correction *corrections, uint32_t n, double miss_rate)
{
    if (n == 1)
        return corrections[0].factor;
    return between(corrections[0].factor, corrections[1].factor,
                   position(corrections[0].miss_rate, corrections[1].miss_rate, miss_rate));
}

/* ---- the fit ---- */

/* Samples that count for a fit, and those that another process spoilt: three times over an earlier fit. */
struct selection {
    const struct speed_sample *samples;
    uint32_t n;
    bool fresh;                            /* those with slots never used before, or those without */
    const struct speed_parts *spoilt_over; /* NULL: keep all */
};

static bool is_selected(const struct selection *s, const struct speed_sample *sample)
{
    static const double SPOILT = 3;
    return (sample->load.fresh_rate > 0) == s->fresh &&
           (!s->spoilt_over ||
            sample->seconds <= SPOILT * speed_predict(s->spoilt_over, &sample->load).token_s);
}

struct sums {
    double n, seconds, token_s, best_s, worst_s, fresh_bytes;
};

static struct sums sum_selected(const struct selection *s, const struct speed_parts *p)
{
    struct sums sum = {0};
    double experts = (double)p->n_layers * p->top_k;
    for (const struct speed_sample *sample = s->samples; sample < s->samples + s->n; sample++) {
        if (!is_selected(s, sample))
            continue;
        struct speed_estimate e = speed_predict(p, &sample->load);
        sum.n++;
        sum.seconds += sample->seconds;
        sum.token_s += e.token_s;
        sum.best_s += e.best_s;
        sum.worst_s += e.worst_s;
        sum.fresh_bytes += experts * sample->load.fresh_rate * p->shard_bytes;
    }
    return sum;
}

/* The drag for which one bound comes to `seconds`; both grow with it. */
static double find_drag(const struct selection *s, struct speed_parts p, double seconds, bool worst)
{
    double low = 1.0 / 64, high = 64;
    for (int i = 0; i < 40; i++) {
        p.drag = sqrt(low * high);
        struct sums sum = sum_selected(s, &p);
        *((worst ? sum.worst_s : sum.best_s) < seconds ? &low : &high) = p.drag;
    }
    return sqrt(low * high);
}

static void fit_once(struct speed_parts *p, const struct selection *s)
{
    p->drag = 1;
    p->overlap = 0.5;
    struct sums sum = sum_selected(s, p);
    if (sum.n <= 0)
        return;
    if (p->compute_s > sum.seconds / sum.n) {
        p->compute_s = sum.seconds / sum.n;
        sum = sum_selected(s, p);
    }
    if (sum.seconds > sum.worst_s) {
        p->overlap = 0;
        p->drag = find_drag(s, *p, sum.seconds, true);
    } else if (sum.seconds < sum.best_s) {
        p->overlap = 1;
        p->drag = find_drag(s, *p, sum.seconds, false);
    } else if (sum.worst_s > sum.best_s) {
        p->overlap = (sum.worst_s - sum.seconds) / (sum.worst_s - sum.best_s);
    }
}

void speed_fit_parts(struct speed_parts *p, const struct speed_sample *samples, uint32_t n)
{
    enum { ROUNDS = 4 };
    struct selection settled = {.samples = samples, .n = n};
    struct selection filling = {.samples = samples, .n = n, .fresh = true};
    p->touch_s = 0;
    if (sum_selected(&settled, p).n <= 0)
        settled.fresh = true; /* no better ones */
    fit_once(p, &settled);
    for (int round = 1; round < ROUNDS; round++) {
        struct speed_parts before = *p;
        settled.spoilt_over = &before;
        fit_once(p, &settled);
    }
    struct sums sum = sum_selected(&filling, p);
    if (settled.fresh || sum.fresh_bytes <= 0)
        return;
    p->touch_s = fmax(sum.seconds - sum.token_s, 0) / sum.fresh_bytes;
    struct speed_parts before = *p;
    filling.spoilt_over = &before;
    p->touch_s = 0;
    sum = sum_selected(&filling, p);
    if (sum.fresh_bytes > 0)
        p->touch_s = fmax(sum.seconds - sum.token_s, 0) / sum.fresh_bytes;
}

/* ---- the curve ---- */

uint32_t speed_knee(const double *x, const double *y, uint32_t n)
{
    double width = x[n - 1] - x[0], height = y[n - 1] - y[0];
    uint32_t knee = 0;
    double farthest = 0;
    for (uint32_t i = 1; i < n && width > 0 && height > 0; i++) {
        double above = (y[i] - y[0]) / height - (x[i] - x[0]) / width;
        if (above > farthest) {
            farthest = above;
            knee = i;
        }
    }
    return knee;
}

uint32_t speed_first_near_best(const double *y, uint32_t n, double share)
{
    double best = y[0];
    for (uint32_t i = 1; i < n; i++)
        best = fmax(best, y[i]);
    for (uint32_t i = 0; i < n; i++) {
        if (y[i] >= share * best)
            return i;
    }
    return n - 1;
}
