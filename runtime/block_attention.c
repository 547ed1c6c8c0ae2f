/* Attention: q, k and v of a chunk, the KV cache, and the output. Which steps there are follows from the layer's tensors. */
#include <math.h>
#include <string.h>

#include "runtime/forward_internal.h"

struct qkv_args {
    uint32_t layer;
    const struct attention_options *options;
};

/* ---- one token's q, k and v ---- */

static void norm_heads(const struct forward *f, float *row, uint32_t n_head, uint32_t head_dim,
                       const float *weight, bool whole_row)
{
    uint32_t n = whole_row ? 1 : n_head;
    uint32_t width = whole_row ? n_head * head_dim : head_dim;
    for (uint32_t h = 0; h < n; h++)
        f->model->ops->rms_norm(row + (size_t)h * width, row + (size_t)h * width, weight, width,
                                f->model->hp.norm_eps);
}

void rotate_heads(const struct forward *f, uint32_t layer, uint32_t token, enum rope_pairs pairs,
                  float *heads, uint32_t n_heads, uint32_t head_dim)
{
    uint32_t index = f->model->hp.layer[layer].rope;
    uint32_t n_rot = f->model->hp.rope[index].n_rot;
    size_t at = (size_t)token * n_rot / 2;
    if (pairs == ROPE_NONE || f->model->hp.layer[layer].no_rope)
        return;
    for (uint32_t h = 0; h < n_heads; h++)
        f->model->ops->rope(heads + (size_t)h * head_dim, f->s.rope_cos[index] + at,
                            f->s.rope_sin[index] + at, n_rot, pairs == ROPE_NEOX);
}

void store_kv(struct forward *f, uint32_t layer, uint32_t token, const float *k, const float *v)
{
    const struct layer_hparams *l = &f->model->hp.layer[layer];
    const struct kv_layer *kv = &f->kv->layers[layer];
    const struct vector_ops *ops = f->model->ops;
    const struct matmul_kernels *matmul = f->model->matmul;
    uint32_t position = f->position + token;
    for (uint32_t h = 0; h < l->n_kv_head; h++) {
        kv_row_store(f->kv->type, ops, matmul, kv_cache_k(kv, h, position), k + (size_t)h * l->head_dim_k,
                     l->head_dim_k);
        if (v)
            kv_row_store(f->kv->type, ops, matmul, kv_cache_v(kv, h, position), v + (size_t)h * l->head_dim_v,
                         l->head_dim_v);
    }
}

/* [query | gate] per head -> q and the gate's row. */
static void split_gate(const struct forward *f, uint32_t layer, uint32_t token, float *q)
{
    const struct layer_hparams *l = &f->model->hp.layer[layer];
    uint32_t n = l->head_dim_k;
    const float *both = f->s.mixer + (size_t)token * f->model->hp.mixer_floats;
    float *gate = f->s.gate + (size_t)token * l->n_head * n;
    for (uint32_t h = 0; h < l->n_head; h++) {
        memcpy(q + (size_t)h * n, both + (size_t)h * 2 * n, n * sizeof(*q));
        memcpy(gate + (size_t)h * n, both + (size_t)h * 2 * n + n, n * sizeof(*q));
    }
}

void scale_query(const struct forward *f, uint32_t token, float *q, size_t n)
{
    const struct hparams *hp = &f->model->hp;
    uint32_t position = f->position + token;
    float steps = floorf((float)(position + hp->temperature.offset) / (float)hp->temperature.length);
    if (hp->temperature.scale != 0.0f)
        f->model->ops->scale(q, q, 1.0f + hp->temperature.scale * logf(steps + 1.0f), n);
}

static void finish_head_rows(const struct forward *f, uint32_t layer, uint32_t token, float *row,
                             uint32_t n_head, const struct weight *norm,
                             const struct attention_options *options)
{
    uint32_t head_dim = f->model->hp.layer[layer].head_dim_k;
    if (norm->format && !options->norm_after_rope)
        norm_heads(f, row, n_head, head_dim, norm->data, options->norm_whole_row);
    rotate_heads(f, layer, token, options->rope, row, n_head, head_dim);
    if (norm->format && options->norm_after_rope)
        norm_heads(f, row, n_head, head_dim, norm->data, options->norm_whole_row);
    if (options->norm_unweighted)
        norm_heads(f, row, n_head, head_dim, NULL, false);
}

/* Norms and rotation of one token's q and k; k and v go to its cell. */
static void finish_qkv(struct forward *f, uint32_t token, void *arg)
{
    const struct qkv_args *a = arg;
    const struct layer_hparams *l = &f->model->hp.layer[a->layer];
    const struct weight *w = f->model->layers[a->layer].w;
    float *q = f->s.q + (size_t)token * l->n_head * l->head_dim_k;
    float *k = f->s.k + (size_t)token * l->n_kv_head * l->head_dim_k;
    float *v = f->s.v + (size_t)token * l->n_kv_head * l->head_dim_v;
    if (a->options->gate_in_q)
        split_gate(f, a->layer, token, q);
    if (!w[LT_V].format && !w[LT_QKV].format)
        memcpy(v, k, (size_t)l->n_kv_head * l->head_dim_v * sizeof(*v));
    finish_head_rows(f, a->layer, token, q, l->n_head, &w[LT_Q_NORM], a->options);
    finish_head_rows(f, a->layer, token, k, l->n_kv_head, &w[LT_K_NORM], a->options);
    if (a->options->norm_values)
        norm_heads(f, v, l->n_kv_head, l->head_dim_v, NULL, false);
    if (a->options->scale_q)
        scale_query(f, token, q, (size_t)l->n_head * l->head_dim_k);
    store_kv(f, a->layer, token, k, v);
}

/* ---- over the cache ---- */

struct attend_args {
    struct forward *f;
    struct attention_args args;
    struct attention_work work;
};

static void attend_item(void *arg, uint32_t item, unsigned worker)
{
    const struct attend_args *a = arg;
    a->f->model->attention->item(&a->args, &a->work, item,
                                 a->f->s.attention + worker * a->f->s.attention_floats);
}

static void attend_combine(void *arg, uint32_t index, unsigned worker)
{
    (void)worker;
    const struct attend_args *a = arg;
    a->f->model->attention->combine(&a->args, &a->work, index);
}

struct attention_args attention_args_of(struct forward *f, uint32_t layer, uint32_t first, uint32_t n)
{
    const struct layer_hparams *l = &f->model->hp.layer[layer];
    const struct kv_layer *kv = &f->kv->layers[layer];
    const struct weight *sinks = &f->model->layers[layer].w[LT_ATTN_SINKS];
    for (uint32_t t = first; t < first + n; t++)
        f->s.rows[t] = f->s.positions[t] - (int32_t)kv->first;
    size_t q_stride = (size_t)l->n_head * l->head_dim_k;
    size_t out_stride = (size_t)l->n_head * l->head_dim_v;
    return (struct attention_args){.q = f->s.q + first * q_stride,
                                   .q_stride = q_stride,
                                   .k = kv->k,
                                   .v = kv->v,
                                   .k_head_stride = kv->cells * kv->k_row,
                                   .v_head_stride = kv->cells * kv->v_row,
                                   .k_row_stride = kv->k_row,
                                   .v_row_stride = kv->v_row,
                                   .type = f->kv->type,
                                   .out = f->s.attended + first * out_stride,
                                   .out_stride = out_stride,
                                   .pos = f->s.rows + first,
                                   .n_tokens = n,
                                   .n_head = l->n_head,
                                   .n_kv_head = l->n_kv_head,
                                   .head_dim_k = l->head_dim_k,
                                   .head_dim_v = l->head_dim_v,
                                   .scale = l->attention_scale,
                                   .window = l->window,
                                   .window_in_chunks = l->window_in_chunks,
                                   .sinks = sinks->format ? sinks->data : NULL,
                                   .partials = f->s.attention_partials};
}

void run_attention(struct forward *f, const struct attention_args *args)
{
    struct attend_args a = {.f = f, .args = *args, .work = attention_work_of(args)};
    run_region(f, attend_item, &a, a.work.n_items);
    run_region(f, attend_combine, &a, a.work.n_combines);
}

void attend(struct forward *f, uint32_t layer)
{
    struct attention_args args = attention_args_of(f, layer, 0, f->n_tokens);
    run_attention(f, &args);
}

/* ---- output ---- */

struct gate_args {
    uint32_t layer;
    bool per_head;
};

static void gate_token(struct forward *f, uint32_t token, void *arg)
{
    const struct gate_args *a = arg;
    const struct layer_hparams *l = &f->model->hp.layer[a->layer];
    const struct vector_ops *ops = f->model->ops;
    size_t n = (size_t)l->n_head * l->head_dim_v;
    float *row = f->s.attended + token * n;
    size_t n_gates = a->per_head ? l->n_head : n;
    float *gate = f->s.gate + token * n_gates;
    ops->sigmoid(gate, gate, n_gates);
    if (!a->per_head) {
        ops->mul(row, row, gate, n);
        return;
    }
    for (uint32_t h = 0; h < l->n_head; h++)
        ops->scale(row + (size_t)h * l->head_dim_v, row + (size_t)h * l->head_dim_v, gate[h], l->head_dim_v);
}

void attention_product(struct forward *f, uint32_t layer, const float *rows)
{
    const struct hparams *hp = &f->model->hp;
    const struct weight *w = f->model->layers[layer].w;
    size_t width = w[LT_ATTN_OUTPUT].n_cols;
    struct acts attended = acts_of(f, rows, width, f->n_tokens, width);
    struct matmul_job job = chunk_job(f, &attended, &w[LT_ATTN_OUTPUT], &w[LT_ATTN_OUTPUT_BIAS], f->s.branch);
    if (hp->attention_out_scale != 1.0f)
        job.scale = &hp->attention_out_scale;
    run_matmuls(f, &job, 1);
    step_part_done(&f->parts, PS_PART_TRUNK);
}

void attention_output(struct forward *f, uint32_t layer, const float *rows)
{
    attention_product(f, layer, rows);
    add_branch(f, f->s.branch, &f->model->layers[layer].w[LT_ATTN_POST_NORM]);
}

/* ---- the block ---- */

struct weight weight_rows(const struct weight *w, uint64_t begin, uint64_t n)
{
    struct weight rows = *w;
    rows.data = (const uint8_t *)w->data + begin * w->row_bytes;
    rows.n_rows = n;
    return rows;
}

static void project(struct forward *f, uint32_t layer, const struct attention_options *options)
{
    const struct hparams *hp = &f->model->hp;
    const struct layer_hparams *l = &hp->layer[layer];
    const struct weight *w = f->model->layers[layer].w;
    const enum layer_tensor ids[] = {LT_Q, LT_K, LT_V};
    const enum layer_tensor biases[] = {LT_Q_BIAS, LT_K_BIAS, LT_V_BIAS};
    const uint64_t n_rows[] = {dim_q(hp, l), dim_k(hp, l), dim_v(hp, l)};
    float *out[] = {f->s.q, f->s.k, f->s.v};
    struct acts acts = acts_of(f, f->s.normed, hp->n_embd, f->n_tokens, hp->n_embd);
    struct weight part[3];
    struct matmul_job jobs[4];
    uint32_t n = 0;
    uint64_t row = 0;
    for (uint32_t i = 0; i < 3; i++) {
        bool fused = w[LT_QKV].format;
        if (!fused && !w[ids[i]].format)
            continue;
        part[i] = fused ? weight_rows(&w[LT_QKV], row, n_rows[i]) : w[ids[i]];
        jobs[n] = chunk_job(f, &acts, &part[i], &w[biases[i]], out[i]);
        if (fused && w[LT_QKV_BIAS].format)
            jobs[n].bias = (const float *)w[LT_QKV_BIAS].data + row;
        row += n_rows[i];
        n++;
    }
    if (options->gate_in_q) {
        jobs[0].out = f->s.mixer;
        jobs[0].out_stride = hp->mixer_floats;
    }
    if (w[LT_ATTN_GATE].format)
        jobs[n++] = chunk_job(f, &acts, &w[LT_ATTN_GATE], NULL, f->s.gate);
    run_matmuls(f, jobs, n);
}

void block_attention(struct forward *f, uint32_t layer, const struct attention_options *options)
{
    const struct layer_hparams *l = &f->model->hp.layer[layer];
    const struct weight *w = f->model->layers[layer].w;
    if (!options->input_ready) {
        norm_chunk(f, &w[LT_ATTN_NORM], &w[LT_ATTN_NORM_BIAS], f->s.x, f->s.normed);
        step_part_done(&f->parts, PS_PART_NORMS);
    }
    project(f, layer, options);
    step_part_done(&f->parts, PS_PART_TRUNK);
    struct qkv_args args = {.layer = layer, .options = options};
    for_each_token(f, finish_qkv, &args);
    if (options->attend)
        options->attend(f, layer);
    else
        attend(f, layer);
    if (w[LT_ATTN_GATE].format || options->gate_in_q) {
        struct gate_args gate = {.layer = layer,
                                 .per_head = w[LT_ATTN_GATE].format && w[LT_ATTN_GATE].n_rows == l->n_head};
        for_each_token(f, gate_token, &gate);
    }
    step_part_done(&f->parts, PS_PART_ATTENTION);
    if (options->keep_branch)
        attention_product(f, layer, f->s.attended);
    else
        attention_output(f, layer, f->s.attended);
}
