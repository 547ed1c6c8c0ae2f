#include "runtime/predictor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/clock.h"
#include "runtime/forward_internal.h"
#include "runtime/predictor_correction.h"
#include "runtime/route.h"

enum {
    RANKS = PS_PREDICTION_RANKS,
    DISTANCES = PS_PREDICTION_DISTANCES,
    LEARN_ALL = 64,      /* outcomes of a layer and distance that its correction learns from, then only */
    LEARN_EVERY = 4,     /* every few tokens: learning costs half as much as predicting */
    SAMPLED_TOKENS = 16, /* of a chunk: it needs most experts anyway, and the cost must stay small */
    Q8_VALUES = 32,      /* Q8_0: 32 weights as int8 with one F16 scale */
    Q8_BYTES = 34,
};

/* How often predictions came true. Old outcomes are forgotten with a half-life of 355 tokens. */
static const float KEEP = 1.0f - 1.0f / 512.0f;
static const float PRIOR_WEIGHT = 8.0f; /* outcomes that the prior stands for, */
static const float POOL_WEIGHT = 16.0f; /* and the mean of all layers for one layer */
static const float FLOOR = 0.05f;       /* less likely experts are not listed for a chunk */

struct outcome {
    float right, n;
};

/* A ranked expert falls into a class by its margin: how far its logit is estimated above (or below) the edge of the top k,
 * in standard errors of that estimate. It says more than the rank, and is nearly the same curve for every layer and
 * distance, so that one layer can borrow from all. */
enum { CLASSES = 24 };
static const float MARGIN_STEP = 0.25f; /* standard errors per class; the edge is in the middle */

/* [distance][presence][class]: what is not in the cache is chosen less often in the same class, and what an earlier
 * prediction brought more often. */
struct calibration {
    struct outcome cell[DISTANCES][EXPERT_PRESENCES][CLASSES];
};

struct router_copy {
    struct weight router; /* data: the copy */
    float *norm;          /* [n_embd] weights, [n_embd] biases */
    float *select_bias;   /* [n_expert] */
    bool has_norm_bias, has_select_bias;
    bool known;
    struct correction correction[DISTANCES];
    struct calibration calibration;
};

/* What was predicted for one MoE layer, until its router has chosen. */
struct pending {
    uint32_t target; /* MoE layer; NONE: nothing */
    uint64_t clock;  /* token it was made for */
    bool single;     /* for one token: the ranks are those of its ranking */
    uint32_t n;
    uint32_t *experts;    /* [n_expert] */
    float *probabilities; /* [n_expert] */
    float *
        logits; /* [n_expert] of the last token, from the stale residual, less their mean: logits, or what else
                             experts are ranked by (route_preference) */
    float *estimate; /* [n_expert] corrected */
    struct ranked {
        uint8_t rank, class;
        enum expert_presence presence;
    } ranked[RANKS]; /* of a single token's */
};

struct predictor {
    struct ps_model *model;
    uint32_t n_moe;
    uint32_t *layer_of;                   /* [n_moe] of the model */
    struct router_copy *copies;           /* [n_moe] */
    struct calibration pool;              /* all layers */
    struct pending pending[DISTANCES][2]; /* by the target's parity: two targets of a distance may be open */
    float *row;                           /* [n_embd] normed residual, or a row of a router */
    uint8_t *acts;                        /* [SAMPLED_TOKENS] rows */
    float *logits;                        /* [SAMPLED_TOKENS][n_expert] */
    float *per_expert; /* [n_expert] of a chunk: no token chooses it; of an outcome: the truth */
    struct ps_prediction_stats stats;
    double seconds;
};

static const uint32_t NONE = UINT32_MAX;

/* ---- memory ---- */

static uint32_t count_moe(const struct ps_model *model)
{
    uint32_t n = 0;
    for (uint32_t l = 0; l < model->hp.n_layers; l++)
        n += model->layers[l].moe;
    return n;
}

static const struct block_format *copy_format(const struct ps_model *model)
{
    return block_format_find(model->hp.n_embd % Q8_VALUES == 0 ? BLOCK_Q8_0 : BLOCK_F32);
}

/* A map is kept where it is small beside the copies of the routers, in bytes and in time, and where there is something to
 * learn: how a missing MoE block moves the logits. */
static bool with_map(const struct ps_model *model, uint32_t distance)
{
    return distance > 0 && 8ull * model->hp.n_expert <= model->hp.n_embd;
}

static void *carve(uint8_t *base, uint64_t *used, uint64_t bytes)
{
    void *at = base ? base + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return at;
}

static void lay_out_copy(struct router_copy *copy, uint8_t *base, uint64_t *used,
                         const struct ps_model *model)
{
    const struct hparams *hp = &model->hp;
    const struct block_format *format = copy_format(model);
    size_t row_bytes = block_row_bytes(format, hp->n_embd);
    void *data = carve(base, used, hp->n_expert * row_bytes);
    float *norm = carve(base, used, 2ull * hp->n_embd * sizeof(*norm));
    float *select_bias = carve(base, used, hp->n_expert * sizeof(*select_bias));
    if (base) {
        copy->router = (struct weight){format, data, hp->n_expert, hp->n_embd, row_bytes};
        copy->norm = norm;
        copy->select_bias = select_bias;
    }
    for (uint32_t d = 0; d < DISTANCES; d++) {
        bool map = with_map(model, d);
        float *floats = carve(base, used, correction_floats(hp->n_expert, map) * sizeof(*floats));
        if (base)
            correction_init(&copy->correction[d], hp->n_expert, map, floats);
    }
}

/* Lays a predictor out from base (NULL: only measures); returns its bytes. */
static uint64_t lay_out(struct predictor *p, uint8_t *base, const struct ps_model *model)
{
    uint64_t n_expert = model->hp.n_expert;
    uint64_t act_bytes =
        act_row_bytes(ACT_F32, model->hp.n_embd); /* the largest: a plan precedes the choice */
    uint32_t n_moe = count_moe(model);
    uint64_t used = 0;
    struct predictor at = {.n_moe = n_moe};
    carve(base, &used, sizeof(*p));
    at.layer_of = carve(base, &used, n_moe * sizeof(*at.layer_of));
    at.copies = carve(base, &used, n_moe * sizeof(*at.copies));
    for (uint32_t m = 0; m < n_moe; m++)
        lay_out_copy(base ? &at.copies[m] : NULL, base, &used, model);
    for (uint32_t i = 0; i < DISTANCES * 2; i++) {
        struct pending *list = &at.pending[i / 2][i % 2];
        list->target = NONE;
        list->experts = carve(base, &used, n_expert * sizeof(*list->experts));
        list->probabilities = carve(base, &used, n_expert * sizeof(*list->probabilities));
        list->logits = carve(base, &used, n_expert * sizeof(*list->logits));
        list->estimate = carve(base, &used, n_expert * sizeof(*list->estimate));
    }
    at.row = carve(base, &used, model->hp.n_embd * sizeof(*at.row));
    at.acts = carve(base, &used, SAMPLED_TOKENS * act_bytes);
    at.logits = carve(base, &used, SAMPLED_TOKENS * n_expert * sizeof(*at.logits));
    at.per_expert = carve(base, &used, n_expert * sizeof(*at.per_expert));
    if (base)
        *p = at;
    return used;
}

uint64_t predictor_memory(const struct ps_model *model)
{
    /* Routers of hyper-connection models do not read the residual stream itself. */
    return count_moe(model) > 0 && model->hp.n_streams == 1 ? lay_out(NULL, NULL, model) : 0;
}

static void forget_pending(struct predictor *p)
{
    for (uint32_t i = 0; i < DISTANCES * 2; i++)
        p->pending[i / 2][i % 2].target = NONE;
}

enum ps_status predictor_new(struct predictor **out, struct ps_model *model, struct ps_error *err)
{
    uint64_t bytes = predictor_memory(model);
    struct predictor *p = calloc(1, bytes);
    *out = p;
    if (!p)
        return ps_error_set(err, PS_ERR_NOMEM, "predictor: out of memory: %llu bytes asked",
                            (unsigned long long)bytes);
    lay_out(p, (uint8_t *)p, model);
    p->model = model;
    for (uint32_t l = 0, m = 0; l < model->hp.n_layers; l++)
        if (model->layers[l].moe)
            p->layer_of[m++] = l;
    return PS_OK;
}

void predictor_free(struct predictor *predictor)
{
    free(predictor);
}

/* ---- copies of routers ---- */

static void quantize_q8_0(const struct vector_ops *ops, const float *x, uint8_t *out, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += Q8_VALUES, out += Q8_BYTES) {
        float most = 0.0f;
        for (uint32_t j = 0; j < Q8_VALUES; j++)
            most = fmaxf(most, fabsf(x[i + j]));
        float scale = most / 127.0f;
        float inverse = 127.0f / most;
        uint16_t half;
        ops->f32_to_f16(&half, &scale, 1);
        memcpy(out, &half, sizeof(half));
        int8_t *values = (int8_t *)out + sizeof(half);
        bool usable = isfinite(scale) && isfinite(inverse);
        for (uint32_t j = 0; j < Q8_VALUES; j++)
            values[j] = usable && isfinite(x[i + j]) ? (int8_t)lrintf(x[i + j] * inverse) : 0;
    }
}

static const float *select_bias_of(const struct router_copy *copy)
{
    return copy->has_select_bias ? copy->select_bias : NULL;
}

static void copy_router(struct predictor *p, struct router_copy *copy, const struct layer *layer)
{
    const struct weight *router = &layer->w[LT_ROUTER];
    uint32_t width = p->model->hp.n_embd;
    for (uint32_t e = 0; e < p->model->hp.n_expert; e++) {
        uint8_t *row = (uint8_t *)(uintptr_t)copy->router.data + e * copy->router.row_bytes;
        router->format->dequantize((const uint8_t *)router->data + e * router->row_bytes, p->row, width);
        if (copy->router.format->type == BLOCK_Q8_0)
            quantize_q8_0(p->model->ops, p->row, row, width);
        else
            memcpy(row, p->row, width * sizeof(float));
    }
    const struct weight *norm =
        &layer->w[p->model->arch->router_norm ? p->model->arch->router_norm : LT_FFN_NORM];
    const struct weight *norm_bias = &layer->w[LT_FFN_NORM_BIAS];
    const struct weight *select_bias = &layer->w[LT_SELECT_BIAS];
    p->model->ops->scale(copy->norm, norm->data, p->model->hp.router_input_scale, width);
    copy->has_norm_bias = norm_bias->format;
    if (copy->has_norm_bias)
        memcpy(copy->norm + width, norm_bias->data, width * sizeof(float));
    copy->has_select_bias = select_bias->format;
    if (copy->has_select_bias)
        memcpy(copy->select_bias, select_bias->data, p->model->hp.n_expert * sizeof(float));
    copy->known = true;
}

/* ---- calibration ---- */

/* Before there are outcomes: a logistic curve, fitted to those of fable-moe, which were alike at all distances. The edge
 * itself is 38 % because more experts are just outside of it than just inside. */
static float prior(uint32_t class)
{
    float margin = ((float)class + 0.5f - CLASSES / 2) * MARGIN_STEP;
    return 1.0f / (1.0f + expf(0.5f - 2.0f * margin));
}

static float probability(const struct predictor *p, uint32_t target, uint32_t d,
                         enum expert_presence presence, uint32_t class)
{
    const struct outcome *all = &p->pool.cell[d][presence][class];
    const struct outcome *own = &p->copies[target].calibration.cell[d][presence][class];
    float mean = (all->right + PRIOR_WEIGHT * prior(class)) / (all->n + PRIOR_WEIGHT);
    return (own->right + POOL_WEIGHT * mean) / (own->n + POOL_WEIGHT);
}

static void count(struct outcome *outcome, bool right)
{
    outcome->right = outcome->right * KEEP + (right ? 1.0f : 0.0f);
    outcome->n = outcome->n * KEEP + 1.0f;
}

/* ---- prediction ---- */

static enum expert_presence presence_of(const struct predictor *p, uint32_t target, uint32_t expert)
{
    return expert_cache_presence(p->model->cache, p->layer_of[target], expert);
}

/* Ranks and classes of a token's experts: by estimated logit, as top-k of the softmax is top-k of the logits. Returns
 * how many. */
static uint32_t rank_experts(const struct predictor *p, const struct correction *correction,
                             const float *estimate, uint32_t *ids, uint8_t *classes)
{
    uint32_t n_expert = p->model->hp.n_expert;
    uint32_t k = p->model->params.top_k;
    uint32_t n = 2 * k > k + 4 ? 2 * k : k + 4;
    n = n < RANKS ? n : RANKS;
    n = n < n_expert ? n : n_expert;
    top_k(ids, n, estimate, n_expert);
    float edge = n > k ? 0.5f * (estimate[ids[k - 1]] + estimate[ids[k]]) : -INFINITY;
    for (uint32_t r = 0; r < n; r++) {
        float error = correction_error(correction, estimate, ids[r]);
        float at = floorf((estimate[ids[r]] - edge) / (MARGIN_STEP * error)) + CLASSES / 2;
        classes[r] = (uint8_t)fminf(fmaxf(at, 0.0f), CLASSES - 1); /* NaN: the least */
    }
    return n;
}

/* Tokens of the chunk that are looked at, the last one among them. */
static uint32_t sampled_token(uint32_t i, uint32_t n_sampled, uint32_t n_tokens)
{
    return (uint32_t)((i + 1ull) * n_tokens / n_sampled) - 1;
}

static uint32_t router_logits(struct predictor *p, struct forward *f, const struct router_copy *copy)
{
    const struct ps_model *model = p->model;
    uint32_t width = model->hp.n_embd;
    uint32_t n = f->n_tokens < SAMPLED_TOKENS ? f->n_tokens : SAMPLED_TOKENS;
    enum act_type type = model_act_type(model, &copy->router);
    size_t stride = act_row_bytes(type, width);
    for (uint32_t i = 0; i < n; i++) {
        const float *x = f->s.x + (uint64_t)sampled_token(i, n, f->n_tokens) * width;
        norm_row(model, copy->norm, copy->has_norm_bias ? copy->norm + width : NULL, x, p->row);
        act_quantize(model->matmul, type, p->row, p->acts + i * stride, width);
    }
    if (n == 1) { /* a few microseconds: less than it takes to share the work */
        model->matmul->matmul(&copy->router, 0, copy->router.n_rows, type, p->acts, stride, 1, p->logits,
                              model->hp.n_expert);
        return 1;
    }
    struct matmul_job job = {.w = &copy->router,
                             .acts = p->acts,
                             .act_stride = stride,
                             .n_tokens = n,
                             .out = p->logits,
                             .out_stride = model->hp.n_expert};
    run_matmuls(f, &job, 1);
    return n;
}

/* Ranks of the i-th token looked at; its logits and their estimate stay in the list until the next one's. */
static uint32_t rank_token(struct predictor *p, uint32_t d, struct pending *list, uint32_t i, uint32_t *ids,
                           uint8_t *classes)
{
    uint32_t n_expert = p->model->hp.n_expert;
    const struct correction *correction = &p->copies[list->target].correction[d];
    memcpy(list->logits, p->logits + (size_t)i * n_expert, n_expert * sizeof(*list->logits));
    route_preference(p->model, select_bias_of(&p->copies[list->target]), list->logits);
    correction_centre(list->logits, n_expert);
    correction_apply(correction, p->model->ops, list->logits, list->estimate);
    return rank_experts(p, correction, list->estimate, ids, classes);
}

/* Keeps a list in order; it is short, or comes nearly in order. */
static uint32_t insert(struct pending *list, uint32_t expert, float p)
{
    uint32_t at = list->n++;
    for (; at > 0 && list->probabilities[at - 1] < p; at--) {
        list->experts[at] = list->experts[at - 1];
        list->probabilities[at] = list->probabilities[at - 1];
    }
    list->experts[at] = expert;
    list->probabilities[at] = p;
    return at;
}

static void predict_token(struct predictor *p, uint32_t d, struct pending *list)
{
    uint32_t ids[RANKS];
    uint8_t classes[RANKS];
    uint32_t n = rank_token(p, d, list, 0, ids, classes);
    for (uint32_t r = 0; r < n; r++) {
        enum expert_presence presence = presence_of(p, list->target, ids[r]);
        uint32_t at = insert(list, ids[r], probability(p, list->target, d, presence, classes[r]));
        memmove(&list->ranked[at + 1], &list->ranked[at], (list->n - 1 - at) * sizeof(list->ranked[0]));
        list->ranked[at] = (struct ranked){(uint8_t)r, classes[r], presence};
    }
}

/* An expert is needed unless every token does without it; tokens between sampled ones are taken to be like them. */
static void predict_chunk(struct predictor *p, uint32_t d, uint32_t n_sampled, uint32_t n_tokens,
                          struct pending *list)
{
    uint32_t n_expert = p->model->hp.n_expert;
    uint32_t ids[RANKS];
    uint8_t classes[RANKS];
    float *missed = p->per_expert;
    for (uint32_t e = 0; e < n_expert; e++)
        missed[e] = 1.0f;
    for (uint32_t t = 0; t < n_sampled; t++) {
        uint32_t n = rank_token(p, d, list, t, ids, classes);
        for (uint32_t r = 0; r < n; r++) {
            enum expert_presence presence = presence_of(p, list->target, ids[r]);
            missed[ids[r]] *= 1.0f - probability(p, list->target, d, presence, classes[r]);
        }
    }
    for (uint32_t e = 0; e < n_expert; e++) {
        float chosen = 1.0f - powf(missed[e], (float)n_tokens / (float)n_sampled);
        if (chosen > FLOOR)
            insert(list, e, chosen);
    }
}

/* The step-th MoE layer after a layer of the model; NONE when there is none. */
static uint32_t find_target(const struct predictor *p, int layer, uint32_t step)
{
    uint32_t m = 0;
    while (m < p->n_moe && (int)p->layer_of[m] <= layer)
        m++;
    return m + step - 1 < p->n_moe ? m + step - 1 : NONE;
}

bool predictor_predict(struct predictor *p, struct forward *f, int layer, uint32_t step, uint32_t d,
                       struct prediction *out)
{
    if (layer < 0 && step == 1)
        forget_pending(p);
    uint32_t target = find_target(p, layer, step);
    if (target == NONE || !p->copies[target].known)
        return false;
    double start = clock_seconds();
    struct pending *list = &p->pending[d][target % 2];
    list->target = target;
    list->clock = f->token_clock;
    list->single = f->n_tokens == 1;
    list->n = 0;
    uint32_t n_sampled = router_logits(p, f, &p->copies[target]);
    if (list->single)
        predict_token(p, d, list);
    else
        predict_chunk(p, d, n_sampled, f->n_tokens, list);
    *out = (struct prediction){p->layer_of[target], list->n, list->experts, list->probabilities};
    p->seconds += clock_seconds() - start;
    return true;
}

/* ---- what came of it ---- */

static void score(struct predictor *p, uint32_t target, uint32_t d, const struct pending *list,
                  const uint32_t *chosen)
{
    uint32_t k = p->model->params.top_k;
    for (uint32_t i = 0; i < list->n; i++) {
        bool right = false;
        for (uint32_t j = 0; j < k; j++)
            right = right || chosen[j] == list->experts[i];
        const struct ranked *ranked = &list->ranked[i];
        count(&p->pool.cell[d][ranked->presence][ranked->class], right);
        count(&p->copies[target].calibration.cell[d][ranked->presence][ranked->class], right);
        p->stats.predicted[d][ranked->rank]++;
        p->stats.right[d][ranked->rank] += right;
    }
    p->stats.chosen[d] += k;
    p->stats.n_ranks = list->n > p->stats.n_ranks ? list->n : p->stats.n_ranks;
}

/* What the chunk's last token was routed by, up to its mean. */
static float *true_logits(struct predictor *p, const struct forward *f, const struct router_copy *copy)
{
    uint32_t n = p->model->hp.n_expert;
    const float *scores = f->s.router + (size_t)(f->n_tokens - 1) * n;
    route_preference_of_scores(p->model, select_bias_of(copy), scores, p->per_expert);
    correction_centre(p->per_expert, n);
    return p->per_expert;
}

void predictor_observe(struct predictor *p, struct forward *f, uint32_t layer)
{
    double start = clock_seconds();
    uint32_t m = find_target(p, (int)layer - 1, 1);
    if (!p->copies[m].known)
        copy_router(p, &p->copies[m], &p->model->layers[layer]);
    const float *truth = NULL;
    for (uint32_t d = 0; d < DISTANCES; d++) {
        struct pending *list = &p->pending[d][m % 2];
        bool open = list->target == m && list->clock == f->token_clock;
        if (list->target == m)
            list->target = NONE;
        if (!open || list->single != (f->n_tokens == 1))
            continue;
        if (list->single)
            score(p, m, d, list, f->s.chosen);
        const struct correction *correction = &p->copies[m].correction[d];
        if (correction->n_learnt >= LEARN_ALL && (f->token_clock + m) % LEARN_EVERY != 0)
            continue;
        truth = truth ? truth : true_logits(p, f, &p->copies[m]);
        correction_learn(&p->copies[m].correction[d], p->model->ops, list->logits, list->estimate, truth);
    }
    p->seconds += clock_seconds() - start;
}

void predictor_get_stats(const struct predictor *predictor, struct ps_prediction_stats *stats)
{
    *stats = predictor->stats;
}

double predictor_seconds(const struct predictor *predictor)
{
    return predictor->seconds;
}
