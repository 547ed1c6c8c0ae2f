#include "runtime/predictor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/clock.h"
#include "runtime/forward_internal.h"

enum {
    RANKS = PS_PREDICTION_RANKS,
    DISTANCES = PS_PREDICTION_DISTANCES,
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

/* A ranked expert falls into a class: its part of the ranking (first half of the top k, second half, beyond) and its
 * margin, the distance of its score to the edge of the top k in standard deviations of all scores. The margin says more
 * than the rank: in a flat ranking even the second is a guess. */
enum { PARTS = 3, MARGINS = 8, CLASSES = PARTS * MARGINS };
static const float MARGIN_STEP = 0.2f; /* standard deviations */

/* [distance][in the cache][class]: what is not in the cache is chosen less often in the same class. */
struct calibration {
    struct outcome cell[DISTANCES][2][CLASSES];
};

struct router_copy {
    struct weight router; /* data: the copy */
    float *norm;          /* [n_embd] */
    bool known;
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
    struct ranked {
        uint8_t rank, class;
        bool resident;
    } ranked[RANKS]; /* of a single token's */
};

struct predictor {
    struct ps_model *model;
    uint32_t n_moe;
    uint32_t *layer_of;                   /* [n_moe] of the model */
    struct router_copy *copies;           /* [n_moe] */
    struct calibration pool;              /* all layers */
    struct pending pending[DISTANCES][2]; /* by the target's parity: two targets of a distance may be open */
    float *normed;                        /* [SAMPLED_TOKENS][n_embd] */
    uint8_t *acts;                        /* [SAMPLED_TOKENS] rows */
    float *logits;                        /* [SAMPLED_TOKENS][n_expert] */
    float *missed;                        /* [n_expert] probability that no token chooses it */
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

static void *carve(uint8_t *base, uint64_t *used, uint64_t bytes)
{
    void *at = base ? base + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return at;
}

/* Lays a predictor out from base (NULL: only measures); returns its bytes. */
static uint64_t lay_out(struct predictor *p, uint8_t *base, const struct ps_model *model)
{
    const struct hparams *hp = &model->hp;
    const struct block_format *format = copy_format(model);
    size_t row_bytes = block_row_bytes(format, hp->n_embd);
    uint32_t n_moe = count_moe(model);
    uint64_t used = 0;
    carve(base, &used, sizeof(*p));
    uint32_t *layer_of = carve(base, &used, n_moe * sizeof(*layer_of));
    struct router_copy *copies = carve(base, &used, n_moe * sizeof(*copies));
    for (uint32_t m = 0; m < n_moe; m++) {
        void *data = carve(base, &used, hp->n_expert * row_bytes);
        float *norm = carve(base, &used, hp->n_embd * sizeof(*norm));
        if (base) {
            copies[m].router = (struct weight){format, data, hp->n_expert, hp->n_embd, row_bytes};
            copies[m].norm = norm;
        }
    }
    for (uint32_t i = 0; i < DISTANCES * 2; i++) {
        uint32_t *experts = carve(base, &used, hp->n_expert * sizeof(*experts));
        float *probabilities = carve(base, &used, hp->n_expert * sizeof(*probabilities));
        if (base) {
            p->pending[i / 2][i % 2].experts = experts;
            p->pending[i / 2][i % 2].probabilities = probabilities;
        }
    }
    float *normed = carve(base, &used, (uint64_t)SAMPLED_TOKENS * hp->n_embd * sizeof(*normed));
    uint8_t *acts = carve(base, &used, SAMPLED_TOKENS * act_row_bytes(format->act, hp->n_embd));
    float *logits = carve(base, &used, (uint64_t)SAMPLED_TOKENS * hp->n_expert * sizeof(*logits));
    float *missed = carve(base, &used, hp->n_expert * sizeof(*missed));
    if (base) {
        p->n_moe = n_moe;
        p->layer_of = layer_of;
        p->copies = copies;
        p->normed = normed;
        p->acts = acts;
        p->logits = logits;
        p->missed = missed;
    }
    return used;
}

uint64_t predictor_memory(const struct ps_model *model)
{
    return count_moe(model) > 0 ? lay_out(NULL, NULL, model) : 0;
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
    forget_pending(p);
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
        uint16_t half;
        ops->f32_to_f16(&half, &scale, 1);
        memcpy(out, &half, sizeof(half));
        int8_t *values = (int8_t *)out + sizeof(half);
        for (uint32_t j = 0; j < Q8_VALUES; j++)
            values[j] = scale > 0.0f ? (int8_t)lrintf(x[i + j] / scale) : 0;
    }
}

static void copy_router(struct predictor *p, struct router_copy *copy, const struct layer *layer)
{
    const struct weight *router = &layer->w[LT_ROUTER];
    uint32_t width = p->model->hp.n_embd;
    for (uint32_t e = 0; e < p->model->hp.n_expert; e++) {
        uint8_t *row = (uint8_t *)(uintptr_t)copy->router.data + e * copy->router.row_bytes;
        router->format->dequantize((const uint8_t *)router->data + e * router->row_bytes, p->normed, width);
        if (copy->router.format->type == BLOCK_Q8_0)
            quantize_q8_0(p->model->ops, p->normed, row, width);
        else
            memcpy(row, p->normed, width * sizeof(float));
    }
    memcpy(copy->norm, layer->w[LT_FFN_NORM].data, width * sizeof(float));
    copy->known = true;
}

/* ---- calibration ---- */

/* What others measured of a stale gate (DESIGN.md): rank 1 right 92 %, rank k 28 %; less from farther off, and less for
 * what the cache does not hold. Until there are outcomes a class is taken at the middle of its ranks and margins. */
static float prior(uint32_t d, bool resident, uint32_t class)
{
    static const float part[PARTS] = {0.75f, 0.4f, 0.15f};
    float inside = class / MARGINS < PARTS - 1 ? 1.0f : -1.0f;
    float right = part[class / MARGINS] + inside * 0.03f * (float)(class % MARGINS);
    right = fminf(fmaxf(right, 0.02f), 0.95f);
    return right * (1.0f - 0.15f * (float)d) * (resident ? 1.0f : 0.8f);
}

static float probability(const struct predictor *p, const struct router_copy *copy, uint32_t d, bool resident,
                         uint32_t class)
{
    const struct outcome *all = &p->pool.cell[d][resident][class];
    const struct outcome *own = &copy->calibration.cell[d][resident][class];
    float mean = (all->right + PRIOR_WEIGHT * prior(d, resident, class)) / (all->n + PRIOR_WEIGHT);
    return (own->right + POOL_WEIGHT * mean) / (own->n + POOL_WEIGHT);
}

static void count(struct outcome *outcome, bool right)
{
    outcome->right = outcome->right * KEEP + (right ? 1.0f : 0.0f);
    outcome->n = outcome->n * KEEP + 1.0f;
}

/* ---- prediction ---- */

static float standard_deviation(const float *x, uint32_t n)
{
    float sum = 0.0f;
    float squares = 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        sum += x[i];
        squares += x[i] * x[i];
    }
    float mean = sum / (float)n;
    return sqrtf(fmaxf(squares / (float)n - mean * mean, 1e-12f));
}

/* Ranks and classes of a token's experts: by router score, as top-k of the softmax is top-k of the logits. A router that
 * selects by a biased score has its bias added to the logits here. Returns how many. */
static uint32_t rank_experts(const struct predictor *p, const float *logits, uint32_t *ids, uint8_t *classes)
{
    uint32_t n_expert = p->model->hp.n_expert;
    uint32_t k = p->model->params.top_k;
    uint32_t n = 2 * k > k + 4 ? 2 * k : k + 4;
    n = n < RANKS ? n : RANKS;
    n = n < n_expert ? n : n_expert;
    top_k(ids, n, logits, n_expert);
    float unit = 1.0f / (MARGIN_STEP * standard_deviation(logits, n_expert));
    for (uint32_t r = 0; r < n; r++) {
        uint32_t edge = r < k ? k : k - 1; /* the first that is not chosen, or the last that is */
        float margin = edge < n ? fabsf(logits[ids[r]] - logits[ids[edge]]) * unit : 0.0f;
        uint32_t step = margin < MARGINS - 1 ? (uint32_t)margin : MARGINS - 1; /* NaN: the last */
        uint32_t part = r < k ? r * 2 / k : PARTS - 1;
        classes[r] = (uint8_t)(part * MARGINS + step);
    }
    return n;
}

static uint32_t router_logits(struct predictor *p, struct forward *f, const struct router_copy *copy)
{
    const struct ps_model *model = p->model;
    uint32_t width = model->hp.n_embd;
    uint32_t n = f->n_tokens < SAMPLED_TOKENS ? f->n_tokens : SAMPLED_TOKENS;
    enum act_type type = copy->router.format->act;
    size_t stride = act_row_bytes(type, width);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t token = (uint64_t)i * f->n_tokens / n;
        model->ops->rms_norm(p->normed, f->s.x + token * width, copy->norm, width, model->hp.norm_eps);
        model->matmul->act_quantize(type, p->normed, p->acts + i * stride, width);
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

static void predict_token(struct predictor *p, uint32_t target, uint32_t d, struct pending *list)
{
    uint32_t ids[RANKS];
    uint8_t classes[RANKS];
    uint32_t n = rank_experts(p, p->logits, ids, classes);
    for (uint32_t r = 0; r < n; r++) {
        bool resident = expert_cache_is_resident(p->model->cache, p->layer_of[target], ids[r]);
        uint32_t at = insert(list, ids[r], probability(p, &p->copies[target], d, resident, classes[r]));
        memmove(&list->ranked[at + 1], &list->ranked[at], (list->n - 1 - at) * sizeof(list->ranked[0]));
        list->ranked[at] = (struct ranked){(uint8_t)r, classes[r], resident};
    }
}

/* An expert is needed unless every token does without it; tokens between sampled ones are taken to be like them. */
static void predict_chunk(struct predictor *p, uint32_t target, uint32_t d, uint32_t n_sampled,
                          uint32_t n_tokens, struct pending *list)
{
    uint32_t n_expert = p->model->hp.n_expert;
    uint32_t ids[RANKS];
    uint8_t classes[RANKS];
    for (uint32_t e = 0; e < n_expert; e++)
        p->missed[e] = 1.0f;
    for (uint32_t t = 0; t < n_sampled; t++) {
        uint32_t n = rank_experts(p, p->logits + (size_t)t * n_expert, ids, classes);
        for (uint32_t r = 0; r < n; r++) {
            bool resident = expert_cache_is_resident(p->model->cache, p->layer_of[target], ids[r]);
            p->missed[ids[r]] *= 1.0f - probability(p, &p->copies[target], d, resident, classes[r]);
        }
    }
    for (uint32_t e = 0; e < n_expert; e++) {
        float chosen = 1.0f - powf(p->missed[e], (float)n_tokens / (float)n_sampled);
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
    *list = (struct pending){.target = target,
                             .clock = f->token_clock,
                             .single = f->n_tokens == 1,
                             .experts = list->experts,
                             .probabilities = list->probabilities};
    uint32_t n_sampled = router_logits(p, f, &p->copies[target]);
    if (list->single)
        predict_token(p, target, d, list);
    else
        predict_chunk(p, target, d, n_sampled, f->n_tokens, list);
    *out = (struct prediction){p->layer_of[target], list->n, list->experts, list->probabilities};
    p->seconds += clock_seconds() - start;
    return true;
}

/* ---- what came of it ---- */

static void score(struct predictor *p, uint32_t d, const struct pending *list, const uint32_t *chosen)
{
    uint32_t k = p->model->params.top_k;
    for (uint32_t i = 0; i < list->n; i++) {
        bool right = false;
        for (uint32_t j = 0; j < k; j++)
            right = right || chosen[j] == list->experts[i];
        const struct ranked *ranked = &list->ranked[i];
        count(&p->pool.cell[d][ranked->resident][ranked->class], right);
        count(&p->copies[list->target].calibration.cell[d][ranked->resident][ranked->class], right);
        p->stats.predicted[d][ranked->rank]++;
        p->stats.right[d][ranked->rank] += right;
    }
    p->stats.chosen[d] += k;
    p->stats.n_ranks = list->n > p->stats.n_ranks ? list->n : p->stats.n_ranks;
}

void predictor_observe(struct predictor *p, struct forward *f, uint32_t layer)
{
    double start = clock_seconds();
    uint32_t m = find_target(p, (int)layer - 1, 1);
    if (!p->copies[m].known)
        copy_router(p, &p->copies[m], &p->model->layers[layer]);
    for (uint32_t d = 0; d < DISTANCES; d++) {
        struct pending *list = &p->pending[d][m % 2];
        if (list->target == m && list->clock == f->token_clock && list->single && f->n_tokens == 1)
            score(p, d, list, f->s.chosen);
        if (list->target == m)
            list->target = NONE;
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
