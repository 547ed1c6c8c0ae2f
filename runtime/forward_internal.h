/* State of a forward pass, shared by the block files (forward.c, block_*.c, ffn.c, moe.c). */
#ifndef PENSTOCK_RUNTIME_FORWARD_INTERNAL_H
#define PENSTOCK_RUNTIME_FORWARD_INTERNAL_H

#include <signal.h>

#include "runtime/forward.h"
#include "runtime/kv_cache.h"
#include "runtime/lossy.h"
#include "runtime/model.h"
#include "runtime/scratch.h"
#include "runtime/step_parts.h"

struct forward {
    struct ps_model *model;
    struct scratch s;
    struct kv_cache *kv;
    uint32_t n_tokens;
    const int32_t *tokens;
    uint32_t position;    /* of the chunk's first token */
    uint64_t token_clock; /* tokens since load, for the cache policy */
    ps_router_fn *on_router;
    void *router_ctx;
    ps_prediction_fn *on_prediction;
    void *prediction_ctx;
    ps_replay_choice_fn *replay_choice; /* NULL: the routers' own */
    ps_replay_prediction_fn *replay_prediction;
    void *replay_ctx;
    uint32_t moe_layer; /* MoE layers passed in this chunk */
    struct lossy_counts lossy;
    struct step_parts parts;
};

/* Computes the residual stream and hidden[] of n tokens that continue the sequence; the KV cache grows by n when all
 * layers are done; after a failure it is as before, or empty where there are recurrent layers. cancel is polled between
 * layers. n <= the chunk that scratch was laid out for. */
enum ps_status forward_chunk(struct forward *f, const int32_t *tokens, uint32_t n,
                             const volatile sig_atomic_t *cancel, struct ps_error *err);
/* Rows [first, first + n) of hidden[] through the output head. */
void forward_logits(struct forward *f, uint32_t first, uint32_t n, float *out);

/* ---- for the block files ---- */

/* thread_pool_run, whose waiting at the end counts as sync. */
void run_region(struct forward *f, thread_pool_fn *fn, void *arg, uint32_t n_chunks);

struct acts acts_of(struct forward *f, const float *x, size_t stride, uint32_t n_tokens, uint64_t n_cols);
/* The rows in the form that w takes, rounded on first use; *stride in bytes. */
const void *acts_for(struct forward *f, struct acts *acts, const struct weight *w, size_t *stride);

/* out = scale * (w x) + bias */
struct matmul_job {
    const struct weight *w;
    const void *acts;
    size_t act_stride; /* bytes */
    uint32_t n_tokens;
    float *out;
    size_t out_stride;  /* floats */
    const float *bias;  /* [n_rows]; NULL: none */
    const float *scale; /* one; NULL: none */
};
enum { MAX_JOBS = 16 };
/* All jobs in one parallel region. n <= MAX_JOBS. */
void run_matmuls(struct forward *f, const struct matmul_job *jobs, uint32_t n);
/* The job for all rows of acts; out is [n_tokens][n_rows]. bias may be NULL or absent from the file. */
struct matmul_job chunk_job(struct forward *f, struct acts *acts, const struct weight *w,
                            const struct weight *bias, float *out);
/* Rows [begin, begin + n) of a weight. */
struct weight weight_rows(const struct weight *w, uint64_t begin, uint64_t n);
/* A row as floats: where it lies, or in room [n_cols]. */
const float *weight_row_floats(const struct weight *w, uint64_t row, float *room);
/* Scales rows [begin, end) of a product and adds their bias; either may be NULL. */
void finish_rows(const struct vector_ops *ops, const float *bias, const float *scale, uint64_t begin,
                 uint64_t end, uint32_t n_tokens, float *out, size_t out_stride);

/* out = down(activation(gate(x), up(x))) for some tokens and one expert, shared expert or dense FFN. */
struct ffn_job {
    struct weight gate, up, down; /* gate.format NULL: none */
    enum ffn_activation activation;
    float limit;                                     /* of the activation; 0: none */
    const float *gate_bias, *up_bias, *down_bias;    /* NULL: none */
    const float *gate_scale, *up_scale, *down_scale; /* NULL: none */
    const void *gate_acts, *up_acts;
    size_t gate_stride, up_stride; /* bytes */
    uint32_t n_tokens;
    uint8_t *hidden; /* n_tokens rows, ffn_hidden_stride() apart */
    float *out;      /* [n_tokens][n_embd] */
};
size_t ffn_hidden_stride(const struct forward *f, const struct weight *down);
/* All jobs together, in two parallel regions. n <= MAX_JOBS. */
void run_ffns(struct forward *f, const struct ffn_job *jobs, uint32_t n);
/* Dense or shared FFN over the whole chunk's acts, into out. job holds weights, activation and limit. */
void run_chunk_ffn(struct forward *f, struct acts *acts, struct ffn_job job, float *out);

/* Predicts what the MoE layers after `layer` will choose, and has the likely ones read ahead. */
enum predict_when {
    PREDICT_AT_START,  /* the residual stream is the embedding; layer -1 */
    PREDICT_AT_ROUTER, /* the layer's router has chosen */
    PREDICT_AT_END,    /* the layer's output is added */
};
void predict_ahead(struct forward *f, int layer, enum predict_when when);

/* fn for every token of the chunk, in parallel. */
void for_each_token(struct forward *f, void (*fn)(struct forward *f, uint32_t token, void *arg), void *arg);
/* n_embd values with the model's kind of norm; bias NULL: none. */
void norm_row(const struct ps_model *model, const float *weight, const float *bias, const float *x,
              float *out);
void norm_chunk(struct forward *f, const struct weight *weight, const struct weight *bias, const float *x,
                float *out);
/* x += residual_scale * norm(branch), norm where the file has it. */
void add_branch(struct forward *f, float *branch, const struct weight *norm);

/* Of the attention blocks (block_attention.c), for families that make q, k and v in their own way. */

/* k and v of a token to its place in the cache; k already rotated. v NULL: values lie in the keys. */
void store_kv(struct forward *f, uint32_t layer, uint32_t token, const float *k, const float *v);
/* Rotates n_heads heads of head_dim values, the first n_rot of each. */
void rotate_heads(const struct forward *f, uint32_t layer, uint32_t token, enum rope_pairs pairs,
                  float *heads, uint32_t n_heads, uint32_t head_dim);
/* n_rot/2 cosines and sines of rope `index` for a position that need not be in the chunk. */
void rope_angles(const struct forward *f, uint32_t index, uint32_t position, float *cosines, float *sines);
/* Scales n values of a token's query by hparams.temperature: Llama 4's and Mistral's way with late positions. */
void scale_query(const struct forward *f, uint32_t token, float *q, size_t n);
/* scratch.attended = attention of scratch.q over the cache. */
void attend(struct forward *f, uint32_t layer);
/* The same in two steps, for tokens [first, first + n) of the chunk. */
struct attention_args attention_args_of(struct forward *f, uint32_t layer, uint32_t first, uint32_t n);
void run_attention(struct forward *f, const struct attention_args *args);
/* Of sparse attention (block_index.c). */
struct index_rows {
    float *q;       /* [n_tokens][index.n_head][index.head_dim] */
    float *k;       /* [n_tokens][index.head_dim] */
    float *weights; /* [n_tokens][index.n_head] */
};
/* Finishes q and k, stores k, and chooses scratch.cells of the tokens that see more than index.top_k cells. */
void index_choose(struct forward *f, uint32_t layer, enum rope_pairs pairs, const struct index_rows *rows);
/* attend() over the chosen cells. */
void attend_chosen(struct forward *f, uint32_t layer);

/* scratch.branch = output(rows), with what the layer has of bias. rows: scratch.attended, or what was made of it. */
void attention_product(struct forward *f, uint32_t layer, const float *rows);
/* x += norm(output(rows)). */
void attention_output(struct forward *f, uint32_t layer, const float *rows);

#endif
