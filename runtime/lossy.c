#include "runtime/lossy.h"

#include <string.h>

#include "runtime/forward_internal.h"

static bool is_missing(const struct lossy_routing *r, uint32_t expert)
{
    return expert != LOSSY_NO_EXPERT && !(r->flags[expert] & LOSSY_RESIDENT);
}

static bool may_change(const struct lossy_routing *r, uint32_t expert)
{
    return is_missing(r, expert) && !(r->flags[expert] & LOSSY_NEEDED);
}

static void forget_needs(const struct lossy_routing *r)
{
    for (uint32_t e = 0; e < r->n_expert; e++)
        r->flags[e] &= (uint8_t)~LOSSY_NEEDED;
}

/* ---- dropping ---- */

static void need_heavy(const struct lossy_routing *r, uint32_t token, float drop_below)
{
    const uint32_t *ids = r->ids + (size_t)token * r->k;
    const float *weights = r->weights + (size_t)token * r->k;
    float sum = 0.0f;
    for (uint32_t i = 0; i < r->k; i++)
        sum += weights[i];
    for (uint32_t i = 0; i < r->k; i++) {
        if (i == 0 || !(weights[i] / sum < drop_below))
            r->flags[ids[i]] |= LOSSY_NEEDED;
    }
}

static uint64_t drop(const struct lossy_routing *r, float drop_below)
{
    size_t n_pairs = (size_t)r->n_tokens * r->k;
    uint64_t dropped = 0;
    forget_needs(r);
    for (uint32_t t = 0; t < r->n_tokens; t++)
        need_heavy(r, t, drop_below);
    for (size_t i = 0; i < n_pairs; i++) {
        if (may_change(r, r->ids[i])) {
            r->ids[i] = LOSSY_NO_EXPERT;
            dropped++;
        }
    }
    return dropped;
}

/* ---- substituting ---- */

/* The first expert, and the best of the missing ones for which no substitute would be left. */
static void need_irreplaceable(const struct lossy_routing *r, uint32_t token, uint32_t n_resident)
{
    const uint32_t *ids = r->ids + (size_t)token * r->k;
    uint32_t substitutes = n_resident;
    uint32_t missing = 0;
    r->flags[ids[0]] |= LOSSY_NEEDED;
    for (uint32_t i = 0; i < r->k; i++) {
        if (may_change(r, ids[i]))
            missing++;
        else if (ids[i] != LOSSY_NO_EXPERT && !is_missing(r, ids[i]))
            substitutes--;
    }
    for (uint32_t i = 1; i < r->k && missing > substitutes; i++) {
        if (may_change(r, ids[i])) {
            r->flags[ids[i]] |= LOSSY_NEEDED;
            missing--;
        }
    }
}

static bool contains(const uint32_t *ids, uint32_t n, uint32_t expert)
{
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] == expert)
            return true;
    }
    return false;
}

/* The best expert in memory that the token has not chosen; of equal ones the lowest id. */
static uint32_t best_substitute(const struct lossy_routing *r, const uint32_t *ids, const float *scores)
{
    uint32_t best = LOSSY_NO_EXPERT;
    for (uint32_t e = 0; e < r->n_expert; e++) {
        bool better = best == LOSSY_NO_EXPERT ? scores[e] >= 0.0f : scores[e] > scores[best];
        if (better && (r->flags[e] & LOSSY_RESIDENT) && !contains(ids, r->k, e))
            best = e;
    }
    return best;
}

static uint64_t substitute(const struct lossy_routing *r)
{
    uint32_t n_resident = 0;
    uint64_t substituted = 0;
    forget_needs(r);
    for (uint32_t e = 0; e < r->n_expert; e++)
        n_resident += (r->flags[e] & LOSSY_RESIDENT) != 0;
    for (uint32_t t = 0; t < r->n_tokens; t++)
        need_irreplaceable(r, t, n_resident);
    for (uint32_t t = 0; t < r->n_tokens; t++) {
        uint32_t *ids = r->ids + (size_t)t * r->k;
        for (uint32_t i = 1; i < r->k; i++) {
            if (!may_change(r, ids[i]))
                continue;
            uint32_t other = best_substitute(r, ids, r->scores + (size_t)t * r->n_expert);
            if (other == LOSSY_NO_EXPERT)
                continue;
            ids[i] = other;
            substituted++;
        }
    }
    return substituted;
}

bool lossy_change(const struct lossy_rules *rules, const struct lossy_routing *routing,
                  struct lossy_counts *counts)
{
    uint64_t dropped = rules->drop_below > 0.0f ? drop(routing, rules->drop_below) : 0;
    uint64_t substituted = rules->substitute ? substitute(routing) : 0;
    counts->dropped += dropped;
    counts->substituted += substituted;
    return dropped + substituted > 0;
}

bool lossy_choose(struct forward *f, uint32_t layer)
{
    const struct hparams *hp = &f->model->hp;
    const struct ps_model_params *params = &f->model->params;
    f->lossy.choices += (uint64_t)f->n_tokens * hp->n_expert_used;
    f->lossy.trimmed += (uint64_t)f->n_tokens * (hp->n_expert_used - params->top_k);
    const struct lossy_rules rules = {.drop_below = params->drop_below, .substitute = params->substitute};
    if (!(rules.drop_below > 0.0f) && !rules.substitute)
        return false;
    struct lossy_routing routing = {.n_tokens = f->n_tokens,
                                    .k = params->top_k,
                                    .n_expert = hp->n_expert,
                                    .scores = f->s.router,
                                    .weights = f->s.weights,
                                    .ids = f->s.chosen,
                                    .flags = f->s.lossy_flags};
    for (uint32_t e = 0; e < hp->n_expert; e++)
        routing.flags[e] = expert_cache_is_resident(f->model->cache, layer, e) ? LOSSY_RESIDENT : 0;
    return lossy_change(&rules, &routing, &f->lossy);
}
