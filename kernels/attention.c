/* Attention in plain C, one query at a time, and the choice among the levels. */
#include "kernels/attention.h"

#include <math.h>

#include "kernels/attention_internal.h"
#include "kernels/block_layout.h"

static float kv_value(enum kv_type type, const char *row, size_t i)
{
    if (type == KV_Q8_0) {
        const struct block_q8_0 *block = (const struct block_q8_0 *)row + i / 32;
        return load_f16(block->d) * (float)block->q[i % 32]; /* exact */
    }
    return type == KV_F16 ? f16_to_f32_one(((const uint16_t *)(const void *)row)[i])
                          : ((const float *)(const void *)row)[i];
}

/* Running result of a segment, or of all of them so far: values / sum, relative to the largest logit. */
struct softmax_state {
    float max, sum;
    float *values; /* [head_dim_v] */
};

static void reset(struct softmax_state *state, float max, float sum, uint32_t dim)
{
    state->max = max;
    state->sum = sum;
    for (uint32_t i = 0; i < dim; i++) {
        state->values[i] = 0.0f;
    }
}

/* Scores of cells [begin, end), which lie in one block; slots of the block outside stay -INFINITY. */
static void score_keys(const struct attention_args *args, const char *k, const float *q, uint64_t begin,
                       uint64_t end, float *scores)
{
    for (uint32_t j = 0; j < ATTENTION_KEY_BLOCK; j++) {
        scores[j] = -INFINITY;
    }
    for (uint64_t cell = begin; cell < end; cell++) {
        const char *row = k + cell * args->k_row_stride;
        double dot = 0.0;
        for (uint32_t i = 0; i < args->head_dim_k; i++) {
            dot += (double)q[i] * (double)kv_value(args->type, row, i);
        }
        scores[cell % ATTENTION_KEY_BLOCK] = (float)dot * args->scale;
    }
}

/* scores -> weights relative to the new largest logit; max and sum move on to include the block (online
 * softmax, Milakov and Gimelshein 2018, arXiv:1805.02867). Returns the factor for earlier sums. */
static float softmax_block(float *scores, struct softmax_state *state)
{
    float new_max = state->max;
    for (uint32_t j = 0; j < ATTENTION_KEY_BLOCK; j++) {
        new_max = scores[j] > new_max ? scores[j] : new_max;
    }
    float reference = new_max == -INFINITY ? 0.0f : new_max;
    float decay = expf(state->max - reference);
    float block_sum = 0.0f;
    for (uint32_t j = 0; j < ATTENTION_KEY_BLOCK; j++) {
        scores[j] = expf(scores[j] - reference);
        block_sum += scores[j];
    }
    state->max = new_max;
    state->sum = state->sum * decay + block_sum;
    return decay;
}

static void add_values(const struct attention_args *args, const char *v, const float *weights, float decay,
                       uint64_t begin, uint64_t end, float *values)
{
    for (uint32_t i = 0; i < args->head_dim_v; i++) {
        values[i] *= decay;
    }
    for (uint64_t cell = begin; cell < end; cell++) {
        const char *row = v + cell * args->v_row_stride;
        float weight = weights[cell % ATTENTION_KEY_BLOCK];
        for (uint32_t i = 0; i < args->head_dim_v; i++) {
            values[i] += weight * kv_value(args->type, row, i);
        }
    }
}

static void attend_segment(const struct attention_args *args, const struct attention_tile *tile,
                           const float *q, struct attention_range range, float *scores,
                           struct softmax_state *state)
{
    reset(state, -INFINITY, 0.0f, args->head_dim_v);
    for (uint64_t begin = range.begin; begin < range.end;) {
        uint64_t end = (begin / ATTENTION_KEY_BLOCK + 1) * ATTENTION_KEY_BLOCK;
        end = end < range.end ? end : range.end;
        score_keys(args, tile->k, q, begin, end, scores);
        float decay = softmax_block(scores, state);
        add_values(args, tile->v, scores, decay, begin, end, state->values);
        begin = end;
    }
}

/* total moves on to include a segment. */
static void add_segment(struct softmax_state *total, float max, float sum, const float *values, uint32_t dim)
{
    float new_max = max > total->max ? max : total->max;
    float reference = new_max == -INFINITY ? 0.0f : new_max;
    float decay = expf(total->max - reference);
    float weight = expf(max - reference);
    total->max = new_max;
    total->sum = total->sum * decay + sum * weight;
    for (uint32_t i = 0; i < dim; i++) {
        total->values[i] = total->values[i] * decay + values[i] * weight;
    }
}

static struct softmax_state total_begin(const struct attention_args *args, uint32_t token, uint32_t head)
{
    struct softmax_state total = {.values =
                                      args->out + token * args->out_stride + (size_t)head * args->head_dim_v};
    float sink = args->sinks != NULL ? args->sinks[head] : -INFINITY;
    reset(&total, sink, sink == -INFINITY ? 0.0f : 1.0f, args->head_dim_v); /* 1: exp(sink - max) */
    return total;
}

static void total_end(const struct attention_args *args, const struct softmax_state *total)
{
    float divisor = total->sum == 0.0f ? 1.0f : total->sum;
    for (uint32_t i = 0; i < args->head_dim_v; i++) {
        total->values[i] /= divisor;
    }
}

static void attend_all(const struct attention_args *args, const struct attention_tile *tile, uint32_t t,
                       uint32_t head, const float *q, float *scratch)
{
    float *scores = scratch;
    struct softmax_state segment = {.values = scratch + ATTENTION_KEY_BLOCK};
    struct softmax_state total = total_begin(args, tile->token + t, head);
    for (uint32_t i = 0; i < tile->n_segments; i++) {
        struct attention_range range = attention_segment(&tile->spans[t], tile->segment[t] + i);
        if (range.begin < range.end) {
            attend_segment(args, tile, q, range, scores, &segment);
            add_segment(&total, segment.max, segment.sum, segment.values, args->head_dim_v);
        }
    }
    total_end(args, &total);
}

static void attend_part(const struct attention_args *args, const struct attention_work *work,
                        const struct attention_tile *tile, uint32_t t, uint32_t head, const float *q,
                        float *scratch)
{
    struct attention_range range = attention_segment(&tile->spans[t], tile->segment[t]);
    struct attention_partial *partial = attention_partial_at(args, work, tile->token + t, head, tile->part);
    struct softmax_state segment = {.values = partial->values};
    attend_segment(args, tile, q, range, scratch, &segment);
    partial->max = segment.max;
    partial->sum = segment.sum;
}

static void attention_item(const struct attention_args *args, const struct attention_work *work,
                           uint32_t item, float *scratch)
{
    struct attention_tile tile;
    attention_tile_at(args, work, item, &tile);
    for (uint32_t t = 0; t < tile.n_tokens; t++) {
        for (uint32_t head = tile.head; head < tile.head + tile.n_heads; head++) {
            const float *q = args->q + (tile.token + t) * args->q_stride + (size_t)head * args->head_dim_k;
            if (work->n_parts == 1) {
                attend_all(args, &tile, t, head, q, scratch);
            } else {
                attend_part(args, work, &tile, t, head, q, scratch);
            }
        }
    }
}

static void attention_combine(const struct attention_args *args, const struct attention_work *work,
                              uint32_t index)
{
    uint32_t token = index / args->n_head;
    uint32_t head = index % args->n_head;
    struct attention_span span = attention_span_of(args, token);
    struct softmax_state total = total_begin(args, token, head);
    for (uint32_t part = 0; part < attention_n_segments(&span); part++) {
        const struct attention_partial *partial = attention_partial_at(args, work, token, head, part);
        add_segment(&total, partial->max, partial->sum, partial->values, args->head_dim_v);
    }
    total_end(args, &total);
}

const struct attention_kernels attention_scalar = {
    .level = CPU_SCALAR, .item = attention_item, .combine = attention_combine};

const struct attention_kernels *attention_kernels_get(enum cpu_level level)
{
#if defined(__x86_64__)
    switch (level) {
    case CPU_AVX2:
        return &attention_avx2;
    case CPU_AVX512:
        return &attention_avx512;
    default:
        break;
    }
#elif defined(__aarch64__)
    if (level == CPU_NEON) {
        return &attention_neon;
    }
#else
    (void)level;
#endif
    return &attention_scalar;
}
