/* Attention in plain C, and what all levels share. */
#include "kernels/attention.h"

#include <math.h>

#include "kernels/attention_group.h"
#include "kernels/vector_ops_f16.h"

size_t kv_row_bytes(enum kv_type type, uint32_t n)
{
    return (size_t)n * (type == KV_F16 ? sizeof(uint16_t) : sizeof(float));
}

uint32_t attention_n_items(const struct attention_args *args)
{
    return args->n_tokens * args->n_kv_head;
}

size_t attention_scratch_floats(const struct attention_args *args)
{
    return (size_t)(args->n_head / args->n_kv_head) * ATTENTION_SCRATCH_PER_HEAD;
}

struct attention_group attention_group_at(const struct attention_args *args, uint32_t item, float *scratch)
{
    uint32_t kv_head = item / args->n_tokens;
    uint32_t token = item % args->n_tokens;
    uint32_t n_heads = args->n_head / args->n_kv_head;
    size_t head = (size_t)kv_head * n_heads;
    struct attention_group group = {
        .q = args->q + token * args->q_stride + head * args->head_dim_k,
        .out = args->out + token * args->out_stride + head * args->head_dim_v,
        .sinks = args->sinks != NULL ? args->sinks + head : NULL,
        .k = (const char *)args->k + kv_head * args->k_head_stride,
        .v = (const char *)args->v + kv_head * args->v_head_stride,
        .n_heads = n_heads,
        .scores = scratch,
        .max = scratch + (size_t)n_heads * ATTENTION_KEY_BLOCK,
    };
    group.sum = group.max + n_heads;
    group.decay = group.sum + n_heads;
    if (args->pos[token] >= 0) {
        uint64_t pos = (uint64_t)args->pos[token];
        group.end = pos + 1;
        group.first = args->window > 0 && pos >= args->window ? pos - args->window + 1 : 0;
    }
    return group;
}

static float kv_value(enum kv_type type, const char *row, size_t i)
{
    return type == KV_F16 ? f16_to_f32_one(((const uint16_t *)row)[i]) : ((const float *)row)[i];
}

/* Scores of cells [begin, end), which lie in one block; slots of the block outside stay -INFINITY. */
static void score_keys(const struct attention_args *args, const struct attention_group *group, const float *q,
                       uint64_t begin, uint64_t end, float *scores)
{
    for (uint32_t j = 0; j < ATTENTION_KEY_BLOCK; j++) {
        scores[j] = -INFINITY;
    }
    for (uint64_t cell = begin; cell < end; cell++) {
        const char *row = group->k + cell * args->k_row_stride;
        double dot = 0.0;
        for (uint32_t i = 0; i < args->head_dim_k; i++) {
            dot += (double)q[i] * (double)kv_value(args->type, row, i);
        }
        scores[cell % ATTENTION_KEY_BLOCK] = (float)dot * args->scale;
    }
}

/* scores -> weights relative to the new largest logit; max and sum move on to include the block (online
 * softmax, Milakov and Gimelshein 2018, arXiv:1805.02867). Returns the factor for earlier sums. */
static float softmax_block(float *scores, float *max, float *sum)
{
    float new_max = *max;
    for (uint32_t j = 0; j < ATTENTION_KEY_BLOCK; j++) {
        new_max = scores[j] > new_max ? scores[j] : new_max;
    }
    float reference = new_max == -INFINITY ? 0.0f : new_max;
    float decay = expf(*max - reference);
    float block_sum = 0.0f;
    for (uint32_t j = 0; j < ATTENTION_KEY_BLOCK; j++) {
        scores[j] = expf(scores[j] - reference);
        block_sum += scores[j];
    }
    *max = new_max;
    *sum = *sum * decay + block_sum;
    return decay;
}

static void add_values(const struct attention_args *args, const struct attention_group *group,
                       const float *weights, float decay, uint64_t begin, uint64_t end, float *out)
{
    for (uint32_t i = 0; i < args->head_dim_v; i++) {
        out[i] *= decay;
    }
    for (uint64_t cell = begin; cell < end; cell++) {
        const char *row = group->v + cell * args->v_row_stride;
        float weight = weights[cell % ATTENTION_KEY_BLOCK];
        for (uint32_t i = 0; i < args->head_dim_v; i++) {
            out[i] += weight * kv_value(args->type, row, i);
        }
    }
}

static void attention_head(const struct attention_args *args, const struct attention_group *group,
                           uint32_t head)
{
    const float *q = group->q + (size_t)head * args->head_dim_k;
    float *out = group->out + (size_t)head * args->head_dim_v;
    float *scores = group->scores;
    float max = group->sinks != NULL ? group->sinks[head] : -INFINITY;
    float sum = max == -INFINITY ? 0.0f : 1.0f; /* exp(sink - max) */
    for (uint32_t i = 0; i < args->head_dim_v; i++) {
        out[i] = 0.0f;
    }
    uint64_t begin = group->first;
    while (begin < group->end) {
        uint64_t end = attention_block_end(group, begin);
        score_keys(args, group, q, begin, end, scores);
        float decay = softmax_block(scores, &max, &sum);
        add_values(args, group, scores, decay, begin, end, out);
        begin = end;
    }
    float divisor = sum == 0.0f ? 1.0f : sum;
    for (uint32_t i = 0; i < args->head_dim_v; i++) {
        out[i] /= divisor;
    }
}

static void attention_item(const struct attention_args *args, uint32_t item, float *scratch)
{
    struct attention_group group = attention_group_at(args, item, scratch);
    for (uint32_t head = 0; head < group.n_heads; head++) {
        attention_head(args, &group, head);
    }
}

const struct attention_kernels attention_scalar = {.level = CPU_SCALAR, .item = attention_item};

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
