#include "runtime/route.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Weights of a token's experts from the router's scores. */
static void weigh_token(struct forward *f, uint32_t token, void *arg)
{
    (void)arg;
    const struct hparams *hp = &f->model->hp;
    uint32_t k = f->model->params.top_k;
    const float *scores = f->s.router + (size_t)token * hp->n_expert;
    const uint32_t *ids = f->s.chosen + (size_t)token * k;
    float *weights = f->s.weights + (size_t)token * k;
    float sum = 0.0f;
    for (uint32_t i = 0; i < k; i++) {
        weights[i] = ids[i] == LOSSY_NO_EXPERT ? 0.0f : scores[ids[i]];
        sum += weights[i];
    }
    /* The least normal F16: llama.cpp's guard against a division by zero. */
    float divisor = hp->renormalize ? fmaxf(sum, 6.103515625e-5f) : 1.0f;
    float scale = hp->expert_weights_scale != 0.0f ? hp->expert_weights_scale : 1.0f;
    for (uint32_t i = 0; i < k; i++)
        weights[i] = weights[i] / divisor * scale;
}

void weigh_again(struct forward *f)
{
    for_each_token(f, weigh_token, NULL);
}

static float softplus(float x)
{
    return x > 20.0f ? x : log1pf(expf(x)); /* the same in F32 from there on */
}

static void score(const struct ps_model *model, float *logits)
{
    uint32_t n = model->hp.n_expert;
    switch (model->hp.gating) {
    case GATING_SOFTMAX:
    case GATING_SOFTMAX_OF_CHOSEN:
        model->ops->softmax(logits, logits, n);
        return;
    case GATING_SIGMOID:
        model->ops->sigmoid(logits, logits, n);
        return;
    case GATING_SQRT_SOFTPLUS:
        for (uint32_t e = 0; e < n; e++)
            logits[e] = sqrtf(softplus(logits[e]));
        return;
    }
}

static const int32_t *experts_of_token(const struct weight *by_token, int32_t token)
{
    return (const int32_t *)by_token->data + (size_t)token * by_token->n_cols;
}

/* Experts outside of the best groups are out of the choice. A group counts as the sum of its two best experts (DeepSeek-V3,
 * arXiv:2412.19437). */
static void keep_groups(const struct hparams *hp, float *preference)
{
    uint32_t size = hp->n_expert / hp->n_expert_groups;
    float group_score[MAX_EXPERT_GROUPS];
    uint32_t best[MAX_EXPERT_GROUPS];
    for (uint32_t g = 0; g < hp->n_expert_groups; g++) {
        uint32_t two[2];
        const float *of = preference + (size_t)g * size;
        top_k(two, size < 2 ? size : 2, of, size);
        group_score[g] = of[two[0]] + (size < 2 ? 0.0f : of[two[1]]);
    }
    top_k(best, hp->n_expert_groups_used, group_score, hp->n_expert_groups);
    for (uint32_t g = 0; g < hp->n_expert_groups; g++) {
        bool kept = false;
        for (uint32_t i = 0; i < hp->n_expert_groups_used; i++)
            kept = kept || best[i] == g;
        for (uint32_t e = 0; !kept && e < size; e++)
            preference[g * size + e] = -INFINITY;
    }
}

struct route_args {
    const float *select_bias;      /* NULL: none */
    const struct weight *by_token; /* experts of each token id; NULL: by score */
};

/* The experts of a token id, those with the best scores where fewer are to be used. */
static void choose_by_token(struct forward *f, uint32_t token, const struct weight *by_token)
{
    const struct hparams *hp = &f->model->hp;
    uint32_t k = f->model->params.top_k;
    const float *scores = f->s.router + (size_t)token * hp->n_expert;
    float *of_listed = f->s.preference + (size_t)token * hp->n_expert;
    uint32_t *chosen = f->s.chosen + (size_t)token * k;
    const int32_t *listed = experts_of_token(by_token, f->tokens[token]);
    for (uint32_t i = 0; i < by_token->n_cols; i++)
        of_listed[i] = scores[listed[i]];
    top_k(chosen, k, of_listed, (uint32_t)by_token->n_cols);
    for (uint32_t i = 0; i < k; i++)
        chosen[i] = (uint32_t)listed[chosen[i]];
}

/* Router logits of one token -> its experts and weights, best first. */
static void route_token(struct forward *f, uint32_t token, void *arg)
{
    const struct route_args *a = arg;
    const struct hparams *hp = &f->model->hp;
    uint32_t k = f->model->params.top_k;
    float *scores = f->s.router + (size_t)token * hp->n_expert;
    const float *preference = scores;
    float *biased = f->s.preference + (size_t)token * hp->n_expert;
    score(f->model, scores);
    if (a->by_token) {
        choose_by_token(f, token, a->by_token);
        weigh_token(f, token, NULL);
        return;
    }
    if (a->select_bias || hp->n_expert_groups > 1) {
        memcpy(biased, scores, hp->n_expert * sizeof(*biased));
        if (a->select_bias)
            f->model->ops->add(biased, biased, a->select_bias, hp->n_expert);
        if (hp->n_expert_groups > 1)
            keep_groups(hp, biased);
        preference = biased;
    }
    top_k(f->s.chosen + (size_t)token * k, k, preference, hp->n_expert);
    weigh_token(f, token, NULL);
}

static enum ps_status check_by_token(const struct forward *f, uint32_t layer, const struct weight *by_token,
                                     struct ps_error *err)
{
    for (uint32_t t = 0; t < f->n_tokens; t++) {
        const int32_t *ids = experts_of_token(by_token, f->tokens[t]);
        for (uint32_t i = 0; i < by_token->n_cols; i++) {
            if (ids[i] < 0 || (uint32_t)ids[i] >= f->model->hp.n_expert)
                return ps_error_set(err, PS_ERR_FORMAT, "blk.%u: token %d goes to expert %d, of %u", layer,
                                    f->tokens[t], ids[i], f->model->hp.n_expert);
        }
    }
    return PS_OK;
}

static bool is_among(const uint32_t *ids, uint32_t n, uint32_t expert)
{
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] == expert)
            return true;
    }
    return false;
}

/* One token's experts as a replay gave them. */
static enum ps_status take_replayed(struct forward *f, uint32_t token, struct ps_error *err)
{
    uint32_t n_expert = f->model->hp.n_expert;
    uint32_t k = f->model->params.top_k;
    const uint32_t *ids = f->s.chosen + (size_t)token * k;
    float *weights = f->s.weights + (size_t)token * k;
    bool weighed = true;
    uint32_t n = 0;
    for (; n < k && ids[n] != LOSSY_NO_EXPERT; n++) {
        if (ids[n] >= n_expert)
            return ps_error_set(err, PS_ERR_ARGUMENT, "replay: MoE layer %u: expert %u, of %u", f->moe_layer,
                                ids[n], n_expert);
        if (is_among(ids, n, ids[n]))
            return ps_error_set(err, PS_ERR_ARGUMENT, "replay: MoE layer %u: expert %u is chosen twice",
                                f->moe_layer, ids[n]);
        weighed = weighed && isfinite(weights[n]);
    }
    for (uint32_t i = n; i < k; i++) {
        if (ids[i] != LOSSY_NO_EXPERT)
            return ps_error_set(err, PS_ERR_ARGUMENT, "replay: MoE layer %u: expert %u stands after none",
                                f->moe_layer, ids[i]);
        weights[i] = 0.0f;
    }
    if (!weighed)
        weigh_token(f, token, NULL);
    return PS_OK;
}

static enum ps_status replay_choice(struct forward *f, struct ps_error *err)
{
    enum ps_status status = PS_OK;
    f->replay_choice(f->replay_ctx, f->moe_layer, f->position, f->n_tokens, f->model->params.top_k,
                     f->s.chosen, f->s.weights);
    for (uint32_t t = 0; t < f->n_tokens && status == PS_OK; t++)
        status = take_replayed(f, t, err);
    return status;
}

enum ps_status route(struct forward *f, uint32_t layer, struct acts *acts, struct ps_error *err)
{
    const struct weight *w = f->model->layers[layer].w;
    struct matmul_job job = chunk_job(f, acts, &w[LT_ROUTER], &w[LT_ROUTER_BIAS], f->s.router);
    run_matmuls(f, &job, 1);
    struct route_args args = {.select_bias = w[LT_SELECT_BIAS].format ? w[LT_SELECT_BIAS].data : NULL};
    if (w[LT_TOKEN_EXPERTS].format) {
        enum ps_status status = check_by_token(f, layer, &w[LT_TOKEN_EXPERTS], err);
        if (status != PS_OK)
            return status;
        args.by_token = &w[LT_TOKEN_EXPERTS];
    }
    for_each_token(f, route_token, &args);
    if (f->replay_choice) {
        enum ps_status status = replay_choice(f, err);
        if (status != PS_OK)
            return status;
    }
    if (f->on_router)
        f->on_router(f->router_ctx, f->moe_layer, f->position, f->n_tokens, f->model->params.top_k,
                     f->s.chosen, f->s.weights);
    f->moe_layer++;
    return PS_OK;
}

/* Softmax keeps the order of logits, which spread better than probabilities. */
static bool ranks_by_logits(const struct ps_model *model, const float *select_bias)
{
    return !select_bias &&
           (model->hp.gating == GATING_SOFTMAX || model->hp.gating == GATING_SOFTMAX_OF_CHOSEN);
}

void route_preference(const struct ps_model *model, const float *select_bias, float *logits)
{
    if (ranks_by_logits(model, select_bias))
        return;
    score(model, logits);
    if (select_bias)
        model->ops->add(logits, logits, select_bias, model->hp.n_expert);
}

void route_preference_of_scores(const struct ps_model *model, const float *select_bias, const float *scores,
                                float *out)
{
    bool logits = ranks_by_logits(model, select_bias);
    for (uint32_t e = 0; e < model->hp.n_expert; e++) {
        float bias = select_bias ? select_bias[e] : 0.0f;
        out[e] = logits ? logf(fmaxf(scores[e], FLT_MIN)) : scores[e] + bias;
    }
}
