/* penstock: runs mixture-of-experts language models that are larger than RAM, from a GGUF file.
 *
 * A program needs four calls to get logits, a fifth to choose a token:
 *
 *     struct ps_model_params params;
 *     ps_model_params_default(&params);
 *     params.ram = 8ull << 30;
 *     ps_model_open(&model, "model.gguf", &err);        header only; says what is in the file
 *     ps_model_load(model, &params, &err);              divides the budget, reads the trunk
 *     ps_session_new(&session, model, &err);
 *     ps_session_feed(session, tokens, n, &err);        prompt or one token, the same call
 *     ps_session_logits(session, 0, 1, logits, &err);   0: the newest token
 *     token = ps_sampler_pick(sampler, logits, ps_model_info(model)->n_vocab);
 *
 * Every call that can fail returns a status and fills the error object (which may be NULL). The library never
 * exits, aborts or prints. A model and its sessions are used by one thread at a time. */
#ifndef PENSTOCK_H
#define PENSTOCK_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Model ------------------------------------------------------------------------------------------------ */

struct ps_model;

enum ps_io { PS_IO_AUTO, PS_IO_URING, PS_IO_THREADS };
enum ps_kv { PS_KV_F32, PS_KV_F16 };
enum ps_activations {
    PS_ACTIVATIONS_AUTO, /* rounded once per use, the way llama.cpp does for each weight format: fast */
    PS_ACTIVATIONS_F32,  /* kept in F32, weights dequantized: the reference, slow */
};

struct ps_plan;

/* 0 and NULL mean: choose. */
struct ps_model_params {
    uint64_t ram;     /* bytes: a ceiling on the whole process; 0: auto */
    uint32_t threads; /* compute threads; 0: one per physical core this process may use */
    uint32_t ctx;     /* tokens a session holds; 0: the model's own, at most 4096 */
    uint32_t chunk;   /* most tokens per forward pass; 0: as many as the budget allows, at most 512 */
    uint32_t feed;    /* most tokens that one feed will bring: no more activations are planned; 0: ctx */
    enum ps_kv kv;    /* element type of the KV cache */
    enum ps_activations activations;
    enum ps_io io;            /* */
    bool direct;              /* O_DIRECT where the filesystem allows it */
    uint32_t queue_depth;     /* reads in flight; 0: the default */
    uint64_t io_limit;        /* bytes/s ceiling on reads; 0: none */
    const char *cache_policy; /* a name of ps_cache_policy_at; NULL: the default */
    const char *cpu;          /* "scalar", "avx2", "avx512"; NULL: the best this machine has */
    /* Called by load when the budget is divided, before the first read. May be NULL. */
    void (*planned)(void *ctx, const struct ps_plan *plan);
    void *planned_ctx;
    /* Called while the trunk is read; bytes. May be NULL. */
    void (*progress)(void *ctx, uint64_t done, uint64_t total);
    void *progress_ctx;
};
void ps_model_params_default(struct ps_model_params *params);

/* What stands in the file. Sizes in bytes. Strings live as long as the model. */
struct ps_model_info {
    const char *arch;  /* GGUF architecture name */
    const char *name;  /* general.name, or "" */
    char formats[160]; /* weight formats by share: "q4_K 84%, q6_K 15%, f32 1%" */
    uint32_t n_layers, n_moe_layers, n_embd, n_vocab, n_ctx_train;
    uint32_t n_head, n_kv_head, head_dim;
    uint32_t n_ff; /* dense FFN width; 0 when there is none */
    uint32_t n_expert, n_expert_used, n_ff_expert, n_ff_shared;
    uint64_t n_params, n_params_active;              /* weights in all / used per token */
    uint64_t file_bytes;                             /* over all parts */
    uint32_t n_files;                                /* */
    uint64_t trunk_bytes;                            /* weights that every token needs */
    uint64_t expert_bytes;                           /* all routed experts */
    uint32_t n_shards;                               /* experts over all layers */
    uint64_t shard_bytes_min, shard_bytes_max;       /* one expert */
    uint64_t token_cycle_bytes;                      /* what one token reads with no cache */
    uint64_t kv_token_bytes_f32, kv_token_bytes_f16; /* KV cache per token */
    bool has_text;                                   /* the file has a tokenizer */
};

/* How a budget is divided. Bytes. */
struct ps_plan {
    uint64_t budget;      /* ceiling */
    uint64_t process;     /* program, metadata, tokenizer, stacks, page tables */
    uint64_t trunk;       /* resident trunk, and the buffers of streamed layers */
    uint64_t kv;          /* */
    uint64_t activations; /* */
    uint64_t io;          /* the reader's own */
    uint64_t cache;       /* slots and their tables */
    uint64_t unused;      /* everything is resident and this is left */
    uint64_t minimum;     /* smallest budget that works with these parameters */
    uint32_t slots, n_shards;
    uint32_t ctx, chunk;
    uint32_t trunk_layers_resident; /* of n_layers; the others are streamed in order */
    double cycles;                  /* cache in token cycles; below 1 LRU would hit nothing */
};

/* Reads the header of path (or of all parts of a split model). */
enum ps_status ps_model_open(struct ps_model **out, const char *path, struct ps_error *err);
void ps_model_free(struct ps_model *model); /* sessions first; NULL is fine */
const struct ps_model_info *ps_model_info(const struct ps_model *model);
/* Divides the budget without allocating; PS_ERR_BUDGET names the smallest that works (also in plan->minimum). */
enum ps_status ps_model_plan(struct ps_model *model, const struct ps_model_params *params,
                             struct ps_plan *plan, struct ps_error *err);
/* Plans, allocates and reads the trunk. Once per model. */
enum ps_status ps_model_load(struct ps_model *model, const struct ps_model_params *params,
                             struct ps_error *err);
const struct ps_plan *ps_model_loaded_plan(const struct ps_model *model); /* NULL before load */

/* Budget that `auto` stands for on this machine now: within cgroup limits and what is available, bytes. */
uint64_t ps_ram_auto(void);

/* Rows of the tables behind names; NULL past the end. */
const char *ps_cache_policy_at(uint32_t index, const char **summary);
const char *ps_arch_at(uint32_t index);

/* ---- Text -------------------------------------------------------------------------------------------------- */

/* *tokens is malloc'ed, the caller's to free. add_special: BOS/EOS as the model asks. */
enum ps_status ps_tokenize(struct ps_model *model, const char *text, size_t length, bool add_special,
                           bool parse_special, int32_t **tokens, size_t *n_tokens, struct ps_error *err);
bool ps_token_is_end(const struct ps_model *model, int32_t token);

/* Turns tokens into text as they come; a character cut at a token's edge waits for the rest. */
struct ps_detokenizer;
enum ps_status ps_detokenizer_new(struct ps_detokenizer **out, struct ps_model *model, struct ps_error *err);
void ps_detokenizer_free(struct ps_detokenizer *detokenizer);
/* A 0-terminated string valid until the next call; token -1 flushes what is pending. */
const char *ps_detokenizer_push(struct ps_detokenizer *detokenizer, int32_t token);

/* ---- Session: one sequence with its KV cache ------------------------------------------------------------------ */

struct ps_session;

enum ps_status ps_session_new(struct ps_session **out, struct ps_model *model, struct ps_error *err);
void ps_session_free(struct ps_session *session);
/* Appends tokens and computes them, in chunks. On failure the session keeps the chunks that were finished:
 * ps_session_position() says how many tokens it holds. PS_ERR_CONTEXT: they do not fit; PS_ERR_ARGUMENT: a token id out
 * of range; PS_ERR_IO; PS_ERR_CANCELLED. */
enum ps_status ps_session_feed(struct ps_session *session, const int32_t *tokens, size_t n_tokens,
                               struct ps_error *err);
uint32_t ps_session_position(const struct ps_session *session);
void ps_session_truncate(struct ps_session *session, uint32_t n_tokens); /* forgets tokens from the end */
/* Logits of n tokens of the last chunk fed, the newest being back = 0: out[i] is for back + n - 1 - i, so rows
 * come in order of position. out[n][n_vocab]. PS_ERR_ARGUMENT when the last chunk held fewer than back + n. */
enum ps_status ps_session_logits(struct ps_session *session, uint32_t back, uint32_t n, float *out,
                                 struct ps_error *err);
/* While *flag is not 0, feeds return PS_ERR_CANCELLED; polled between layers. A signal handler or another thread may
 * set it. flag must outlive the session; NULL: none. */
void ps_session_cancel_on(struct ps_session *session, const volatile sig_atomic_t *flag);

/* Called once per MoE layer and chunk with the router's choice: ids and weights [n_tokens][k]; moe_layer counts MoE
 * layers from 0; position is that of the first token. */
typedef void ps_router_fn(void *ctx, uint32_t moe_layer, uint32_t position, uint32_t n_tokens, uint32_t k,
                          const uint32_t *ids, const float *weights);
void ps_session_on_router(struct ps_session *session, ps_router_fn *fn, void *ctx);

struct ps_stats {
    uint64_t expert_hits, expert_misses;
    uint64_t bytes_demand, bytes_speculative, bytes_wasted; /* read for experts and streamed trunk layers */
    double stall_s;                                         /* compute waited for reads */
    double compute_s;                                       /* forward passes without the stalls */
    uint64_t peak_rss_bytes;                                /* of the process, since its start */
    const char *io_backend;                                 /* in use */
    bool direct;                                            /* in use for every file */
    uint32_t threads;
    const char *cpu;
};
/* Counts since load or the last reset. */
void ps_session_stats(const struct ps_session *session, struct ps_stats *stats);
void ps_session_reset_stats(struct ps_session *session);

/* ---- Sampler --------------------------------------------------------------------------------------------------- */

struct ps_sampler_params {
    float temp;           /* 0: the most likely token */
    uint32_t top_k;       /* keep the k most likely; 0: all */
    float top_p;          /* keep the smallest set with this share; 1: all */
    float min_p;          /* keep tokens with at least this share of the best one's probability; 0: all */
    float repeat_penalty; /* divides positive logits of recent tokens, multiplies negative ones; 1: none */
    uint32_t repeat_last; /* how many recent tokens */
    uint64_t seed;        /* */
};
struct ps_sampler;
void ps_sampler_params_default(struct ps_sampler_params *params);
enum ps_status ps_sampler_new(struct ps_sampler **out, const struct ps_sampler_params *params,
                              struct ps_error *err);
void ps_sampler_free(struct ps_sampler *sampler);
/* Chooses from logits[n_vocab] (overwritten). Equal logits: the lowest id. PS_ERR_NOMEM leaves *token unset. */
enum ps_status ps_sampler_pick(struct ps_sampler *sampler, float *logits, uint32_t n_vocab, int32_t *token,
                               struct ps_error *err);
void ps_sampler_accept(struct ps_sampler *sampler, int32_t token); /* counts for the repetition penalty */

#ifdef __cplusplus
}
#endif
#endif
