#include "runtime/recorded_routing.h"

#include <math.h>
#include <stdlib.h>

#include "runtime/route_trace.h"

struct recorded_routing {
    struct route_trace *trace;
    uint64_t *first_prediction; /* [n_tokens + 1] in trace->predictions, which are in the order of tokens */
};

/* ---- does it fit ---- */

static enum ps_status check_layer(const struct route_trace *t, uint32_t layer, const char *path,
                                  const struct ps_model *model, struct ps_error *err)
{
    struct ps_expert_layer own;
    ps_model_expert_layer(model, layer, &own);
    if (t->n_experts[layer] == own.n_experts || (!t->n_experts_known && t->n_experts[layer] < own.n_experts))
        return PS_OK;
    return ps_error_set(
        err, PS_ERR_ARGUMENT,
        "%s: has %s%u experts in MoE layer %u, the model %u: give a model of the recorded shape", path,
        t->n_experts_known ? "" : "at least ", t->n_experts[layer], layer, own.n_experts);
}

static enum ps_status check_shape(const struct route_trace *t, const char *path, const struct ps_model *model,
                                  uint32_t top_k, struct ps_error *err)
{
    const struct ps_model_info *info = ps_model_info(model);
    uint32_t own_k = top_k > 0 ? top_k : info->n_expert_used;
    if (t->n_layers != info->n_moe_layers)
        return ps_error_set(err, PS_ERR_ARGUMENT,
                            "%s: has %u MoE layers, the model %u: give a model of the recorded shape", path,
                            t->n_layers, info->n_moe_layers);
    for (uint32_t l = 0; l < t->n_layers; l++) {
        enum ps_status status = check_layer(t, l, path, model, err);
        if (status != PS_OK)
            return status;
    }
    if (t->top_k == own_k)
        return PS_OK;
    if (t->top_k > info->n_expert_used)
        return ps_error_set(err, PS_ERR_ARGUMENT,
                            "%s: has %u experts per token, the model %u: give a model of the recorded shape",
                            path, t->top_k, info->n_expert_used);
    return ps_error_set(err, PS_ERR_ARGUMENT,
                        "%s: has %u experts per token, the model would use %u: add --top-k %u", path,
                        t->top_k, own_k, t->top_k);
}

/* ---- construction ---- */

static bool index_predictions(struct recorded_routing *recorded)
{
    const struct route_trace *t = recorded->trace;
    recorded->first_prediction = calloc(t->n_tokens + 1, sizeof(*recorded->first_prediction));
    if (!recorded->first_prediction)
        return false;
    for (uint64_t i = 0; i < t->n_predictions; i++)
        recorded->first_prediction[t->predictions[i].token + 1]++;
    for (uint64_t token = 0; token < t->n_tokens; token++)
        recorded->first_prediction[token + 1] += recorded->first_prediction[token];
    return true;
}

enum ps_status recorded_routing_new(struct recorded_routing **out, const char *path,
                                    const struct ps_model *model, uint32_t top_k, struct ps_error *err)
{
    struct recorded_routing *recorded = calloc(1, sizeof(*recorded));
    *out = NULL;
    if (!recorded)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: out of memory", path);
    enum ps_status status = route_trace_read(&recorded->trace, path, err);
    if (status == PS_OK)
        status = check_shape(recorded->trace, path, model, top_k, err);
    if (status == PS_OK && !index_predictions(recorded))
        status = ps_error_set(err, PS_ERR_NOMEM, "%s: out of memory", path);
    if (status == PS_OK)
        *out = recorded;
    else
        recorded_routing_free(recorded);
    return status;
}

void recorded_routing_free(struct recorded_routing *recorded)
{
    if (!recorded)
        return;
    route_trace_free(recorded->trace);
    free(recorded->first_prediction);
    free(recorded);
}

/* ---- facts ---- */

static double mean_expert_bytes(const struct route_trace *t)
{
    double bytes = 0.0, n = 0.0;
    for (uint32_t l = 0; l < t->n_layers; l++) {
        if (t->expert_bytes[l] == 0)
            return 0.0;
        bytes += (double)t->n_experts[l] * (double)t->expert_bytes[l];
        n += t->n_experts[l];
    }
    return n > 0.0 ? bytes / n : 0.0;
}

void recorded_routing_get_facts(const struct recorded_routing *recorded, struct recorded_routing_facts *facts)
{
    const struct route_trace *t = recorded->trace;
    *facts = (struct recorded_routing_facts){.model = t->model,
                                             .n_tokens = t->n_tokens,
                                             .n_unrecorded = t->n_tokens * t->n_layers - t->n_visits,
                                             .n_choices = t->n_tokens * t->n_layers,
                                             .n_experts = t->n_ids,
                                             .expert_bytes = mean_expert_bytes(t)};
    for (uint64_t i = 0; i < t->n_ids; i++)
        facts->n_weighed += !isnan(t->weights[i]);
    uint64_t seen = UINT64_MAX;
    for (uint64_t i = 0; i < t->n_predictions; i++) {
        if (t->predictions[i].n_tokens != 1 || t->predictions[i].token == seen)
            continue;
        seen = t->predictions[i].token;
        facts->n_tokens_predicted++;
    }
}

/* ---- replay ---- */

static void on_choice(void *ctx, uint32_t moe_layer, uint32_t position, uint32_t n_tokens, uint32_t k,
                      uint32_t *ids, float *weights)
{
    const struct recorded_routing *recorded = ctx;
    const struct route_trace *t = recorded->trace;
    for (uint32_t i = 0; i < n_tokens; i++) {
        const struct replay_visit *visit =
            route_trace_visit(t, ((uint64_t)position + i) % t->n_tokens, moe_layer);
        for (uint32_t rank = 0; rank < k; rank++) {
            bool has = visit && rank < visit->n;
            ids[i * k + rank] = has ? t->ids[visit->first + rank] : PS_NO_EXPERT;
            weights[i * k + rank] = has ? t->weights[visit->first + rank] : 0.0f;
        }
    }
}

/* The second layer is predicted twice at distance 1, from the embedding and after the first: the first guess stands for
 * both. */
static uint32_t on_prediction(void *ctx, uint32_t moe_layer, uint32_t distance, uint32_t position,
                              uint32_t n_tokens, const uint32_t **experts, const float **probabilities)
{
    const struct recorded_routing *recorded = ctx;
    const struct route_trace *t = recorded->trace;
    uint64_t token = position % t->n_tokens;
    for (uint64_t i = recorded->first_prediction[token]; i < recorded->first_prediction[token + 1]; i++) {
        const struct route_prediction *p = &t->predictions[i];
        if (n_tokens != 1 || p->n_tokens != 1 || p->layer != moe_layer || p->distance != distance)
            continue;
        *experts = t->predicted + p->first;
        *probabilities = t->probabilities + p->first;
        return p->n;
    }
    return 0;
}

enum ps_status recorded_routing_attach(struct recorded_routing *recorded, struct ps_session *session,
                                       bool predictions, struct ps_error *err)
{
    return ps_session_replay(session, on_choice, predictions ? on_prediction : NULL, recorded, err);
}
