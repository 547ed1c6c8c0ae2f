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
/* Elements of the KV cache. Q8_0: blocks of 32 values in 34 bytes, of which each head's row has a whole number. */
enum ps_kv { PS_KV_F32, PS_KV_F16, PS_KV_Q8_0 };
enum ps_activations {
    PS_ACTIVATIONS_AUTO, /* rounded once per use, the way llama.cpp does for each weight format: fast */
    PS_ACTIVATIONS_F32,  /* kept in F32, weights dequantized: the reference, slow */
};

enum ps_prefetch {
    PS_PREFETCH_AUTO, /* read predicted experts in idle bandwidth while that pays */
    PS_PREFETCH_OFF,
};

/* Of a packed container, which has a checksum for each expert and each tensor of the trunk. What is found damaged is read once
 * more, then it is an error. A GGUF has none: only AUTO and OFF will do. */
enum ps_verify {
    PS_VERIFY_AUTO,   /* FIRST for a container, OFF for a GGUF */
    PS_VERIFY_OFF,    /* */
    PS_VERIFY_FIRST,  /* each is compared when it is read for the first time */
    PS_VERIFY_ALWAYS, /* and each further time */
};

struct ps_plan;

/* 0 and NULL mean: choose. */
struct ps_model_params {
    uint64_t ram;     /* bytes: a ceiling on the whole process; 0: auto */
    uint32_t threads; /* compute threads; 0: the fastest number for this machine, measured in doubt */
    uint32_t ctx;     /* tokens a session holds; 0: the model's own, at most 4096 */
    uint32_t chunk;   /* most tokens per forward pass; 0: as many as the budget allows, at most 512 */
    uint32_t feed;    /* most tokens that one feed will bring: no more activations are planned; 0: ctx */
    enum ps_kv kv;    /* element type of the KV cache */
    enum ps_activations activations;
    enum ps_io io;            /* */
    bool direct;              /* O_DIRECT where the filesystem allows it */
    uint32_t queue_depth;     /* reads in flight; 0: the default */
    uint64_t io_limit;        /* bytes/s ceiling on reads; 0: none */
    enum ps_verify verify;    /* checksums */
    const char *cache_policy; /* a name of ps_cache_policy_at; NULL: the default */
    const char *cpu;          /* "scalar", "avx2", "avx512", "neon"; NULL: the best this machine has */
    enum ps_prefetch prefetch;
    bool predict; /* predict experts even where there is nothing to prefetch: for traces */
    /* File that holds the working set (which experts were kept, and how dear they were): read at load; slots that are still
     * empty when the first feed is done are filled with those experts in idle bandwidth. Written by
     * ps_model_save_working_set. Must outlive the model. NULL: none. */
    const char *warm;
    /* Lossy: these change what is computed. 0 and false: exact. */
    uint32_t top_k; /* experts per token instead of the model's own number */
    float
        drop_below; /* an expert that is not in memory is left out if its share of the token's weights is less */
    bool substitute; /* an expert that is not in memory is replaced by the best one that is */
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
    uint64_t n_params, n_params_active; /* weights in all / used per token */
    uint64_t file_bytes;                /* over all parts */
    uint64_t unpacked_bytes;            /* likewise; of a packed container: of the GGUF it was made from */
    uint32_t n_files;                   /* */
    uint64_t trunk_bytes;               /* weights that every token needs */
    uint64_t expert_bytes;              /* all routed experts, unpacked */
    uint32_t n_shards;                  /* experts over all layers */
    uint64_t shard_bytes_min, shard_bytes_max; /* one expert, unpacked */
    uint64_t token_cycle_bytes;                /* what one token reads with no cache */
    uint64_t token_cycle_unpacked_bytes;       /* what it computes with of that; the same unless compressed */
    uint64_t kv_token_bytes_f32,
        kv_token_bytes_f16;       /* KV cache per token, of layers that see all of the past */
    uint64_t kv_token_bytes_q8_0; /* likewise */
    uint64_t kv_fixed_bytes_f32, kv_fixed_bytes_f16; /* sliding windows when full, and recurrent states */
    uint64_t kv_fixed_bytes_q8_0;                    /* likewise */
    uint32_t n_windowed_layers, n_recurrent_layers;
    uint32_t window; /* tokens that a windowed layer sees */
    bool has_text;   /* the file has a tokenizer */
};

/* How a budget is divided. Bytes. */
struct ps_plan {
    uint64_t budget;      /* ceiling */
    uint64_t process;     /* program, metadata, tokenizer, stacks, page tables */
    uint64_t trunk;       /* resident trunk, and the buffers of streamed layers */
    uint64_t kv;          /* */
    uint64_t activations; /* */
    uint64_t io;          /* the reader's own */
    uint64_t predictor;   /* copies of the routers that predict experts; 0: no prefetch */
    uint64_t cache;       /* slots and their tables */
    uint64_t unused;      /* everything is resident and this is left */
    uint64_t minimum;     /* smallest budget that works with these parameters */
    uint32_t slots, n_shards;
    uint32_t ctx, chunk;
    uint32_t trunk_layers_resident; /* of n_layers; the others are streamed in order */
    uint64_t trunk_streamed_bytes;  /* of those, read for each token */
    uint64_t token_cycle_bytes;     /* what one token reads with no cache, by top_k */
    double cycles;                  /* cache in what one token computes with; below 1 LRU would hit nothing */
};

/* Reads the header of path (or of all parts of a split model). */
enum ps_status ps_model_open(struct ps_model **out, const char *path, struct ps_error *err);
void ps_model_free(struct ps_model *model); /* sessions first; NULL is fine */
const struct ps_model_info *ps_model_info(const struct ps_model *model);
/* How the experts of one MoE layer are kept. */
struct ps_expert_layer {
    uint32_t n_experts;
    uint32_t pool;       /* layers with experts of about one size share the slots of a pool; from 0 */
    uint64_t bytes;      /* one expert */
    uint64_t read_bytes; /* to read one, mean; less than bytes where a container holds it compressed */
};
/* moe_layer counts MoE layers from 0. False: no such layer. */
bool ps_model_expert_layer(const struct ps_model *model, uint32_t moe_layer, struct ps_expert_layer *out);

/* ---- packed containers ---- */

struct ps_packing {
    uint32_t version;
    const char *note; /* JSON: how it was packed; not 0-terminated. Lives as long as the model */
    uint64_t note_bytes;
};
/* False: the model is a GGUF. */
bool ps_model_packing(const struct ps_model *model, struct ps_packing *out);

enum { PS_MAX_PARTS = 12 };
/* The experts of a layer of a container. A part is a matrix, or its biases or scales. */
struct ps_packed_layer {
    uint64_t bytes;        /* of all its experts, unpacked */
    uint64_t stored_bytes; /* likewise, as they are in the files */
    uint32_t n_parts;
    struct {
        const char *name, *type, *codec; /* "gate", "bf16", "zstd-floats" */
        uint64_t bytes;                  /* of all experts, unpacked */
    } part[PS_MAX_PARTS];
};
/* moe_layer counts MoE layers from 0. False: no such layer, or the model is a GGUF. */
bool ps_model_packed_layer(const struct ps_model *model, uint32_t moe_layer, struct ps_packed_layer *out);

/* ---- */

/* Path and size of one of the model's files; file < n_files. */
const char *ps_model_file(const struct ps_model *model, uint32_t file, uint64_t *bytes);
/* Divides the budget without allocating; PS_ERR_BUDGET names the smallest that works (also in plan->minimum). */
enum ps_status ps_model_plan(struct ps_model *model, const struct ps_model_params *params,
                             struct ps_plan *plan, struct ps_error *err);
/* Plans, allocates and reads the trunk. Once per model. */
enum ps_status ps_model_load(struct ps_model *model, const struct ps_model_params *params,
                             struct ps_error *err);
/* Writes the working set to params.warm, aside and renamed into place. PS_OK and nothing done without a path.
 * PS_ERR_IO names the file. */
enum ps_status ps_model_save_working_set(struct ps_model *model, struct ps_error *err);
/* Why load made no use of params.warm, which is no failure of load: the file is damaged, of another model, or unreadable.
 * PS_OK when it was used, is not there yet, or none was given. */
enum ps_status ps_model_working_set_status(const struct ps_model *model, struct ps_error *err);
/* Tells models apart by what their headers say, wherever the files are: for names of files about a model. */
uint64_t ps_model_fingerprint(const struct ps_model *model);
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
/* Appends tokens and computes them, in chunks. On failure the session keeps the chunks that were finished, or none where
 * recurrent layers were in the middle of one: ps_session_position() says how many tokens it holds. PS_ERR_CONTEXT: they do not fit; PS_ERR_ARGUMENT: a token id out
 * of range; PS_ERR_IO; PS_ERR_CANCELLED. */
enum ps_status ps_session_feed(struct ps_session *session, const int32_t *tokens, size_t n_tokens,
                               struct ps_error *err);
uint32_t ps_session_position(const struct ps_session *session);
/* Forgets tokens from the end until n_tokens are left, or all of them where the model's state can not go back: recurrent
 * layers keep no history, sliding windows a short one. Returns how many are left; the caller feeds the rest again. */
uint32_t ps_session_truncate(struct ps_session *session, uint32_t n_tokens);
/* Logits of n tokens of the last chunk fed, the newest being back = 0: out[i] is for back + n - 1 - i, so rows
 * come in order of position. out[n][n_vocab]. PS_ERR_ARGUMENT when the last chunk held fewer than back + n. */
enum ps_status ps_session_logits(struct ps_session *session, uint32_t back, uint32_t n, float *out,
                                 struct ps_error *err);
/* While *flag is not 0, feeds return PS_ERR_CANCELLED; polled between layers. A signal handler or another thread may
 * set it. flag must outlive the session; NULL: none. */
void ps_session_cancel_on(struct ps_session *session, const volatile sig_atomic_t *flag);

/* Called once per MoE layer and chunk with the router's choice, or what a replay put there: ids and weights [n_tokens][k]; moe_layer counts MoE
 * layers from 0; position is that of the first token. */
typedef void ps_router_fn(void *ctx, uint32_t moe_layer, uint32_t position, uint32_t n_tokens, uint32_t k,
                          const uint32_t *ids, const float *weights);
void ps_session_on_router(struct ps_session *session, ps_router_fn *fn, void *ctx);

/* Called with a prediction when it is made: the experts that some token of the chunk will choose in a later MoE layer,
 * most likely first; probabilities are calibrated by what earlier predictions came to. distance: MoE blocks whose output the residual stream
 * still lacked, 0 to PS_PREDICTION_DISTANCES - 1. */
typedef void ps_prediction_fn(void *ctx, uint32_t moe_layer, uint32_t distance, uint32_t position,
                              uint32_t n_tokens, uint32_t n, const uint32_t *experts,
                              const float *probabilities);
void ps_session_on_prediction(struct ps_session *session, ps_prediction_fn *fn, void *ctx);

/* Replay: the routing of another run in the place of this model's own, to measure real routing on weights that are not the
 * real ones. Routers and predictor still compute, and experts are read and computed as ever, but logits mean nothing. */
#define PS_NO_EXPERT UINT32_MAX /* in the place of an id */

/* Called once per MoE layer and chunk, before ps_router_fn: ids and weights [n_tokens][k] hold the router's choice and take
 * the replayed one, best first, PS_NO_EXPERT after the last where a token has fewer than k. A weight that is not finite:
 * the token's experts are weighed by this model's router. */
typedef void ps_replay_choice_fn(void *ctx, uint32_t moe_layer, uint32_t position, uint32_t n_tokens,
                                 uint32_t k, uint32_t *ids, float *weights);
/* Called for each prediction, which it replaces: returns how many experts, most likely first, with probabilities that do not
 * increase; both stay until the chunk is done. The first id that there is not ends the list. Arguments as of
 * ps_prediction_fn, which is called with what is returned. */
typedef uint32_t ps_replay_prediction_fn(void *ctx, uint32_t moe_layer, uint32_t distance, uint32_t position,
                                         uint32_t n_tokens, const uint32_t **experts,
                                         const float **probabilities);
/* predict NULL: predictions stay the model's own. choose NULL ends a replay. PS_ERR_UNSUPPORTED where lossy modes change
 * choices by what this model's router says. A feed fails with PS_ERR_ARGUMENT where choose gives an expert that there is
 * not, or one twice for a token. */
enum ps_status ps_session_replay(struct ps_session *session, ps_replay_choice_fn *choose,
                                 ps_replay_prediction_fn *predict, void *ctx, struct ps_error *err);

/* Parts of a forward pass. */
enum ps_part {
    PS_PART_TRUNK,   /* products with resident weights: attention's, shared experts, dense FFN, output head */
    PS_PART_EXPERTS, /* routed experts, and their weighted sum */
    PS_PART_ATTENTION, /* bias, q/k norms, rotation, KV cache, attention */
    PS_PART_ROUTER,    /* its product and the choice */
    PS_PART_NORMS,     /* of the residual stream, and adding to it */
    PS_PART_SYNC,      /* the calling thread waits for the others */
    PS_PART_OTHER,     /* embedding, predictor, cache */
    PS_N_PARTS,
};
const char *ps_part_name(enum ps_part part); /* "trunk", ... */

struct ps_stats {
    uint64_t expert_hits;   /* found in memory */
    uint64_t expert_late;   /* found being read ahead: compute waited for the rest, if at all */
    uint64_t expert_misses; /* read on demand */
    uint64_t bytes_demand, bytes_speculative; /* read for experts and streamed trunk layers */
    uint64_t bytes_useful; /* speculative, and in memory when the router chose the expert */
    uint64_t bytes_late;   /* speculative, still under way then */
    uint64_t
        bytes_wasted; /* speculative, and the expert left again unused, or its layer has passed it by so far */
    uint64_t bytes_warm;       /* of the working set, part of bytes_speculative */
    double prefetch_threshold; /* least probability that is read ahead now; 1: prefetch is turned off */
    double prefetch_width;     /* experts read ahead per layer at most, now */
    double predictor_s;        /* time spent predicting */
    /* Lossy modes: (token, layer, rank) choices in all, and those changed. */
    uint64_t choices, choices_trimmed, choices_dropped, choices_substituted;
    /* Of a packed container. Checks of what load reads are counted up to the first reset. */
    uint64_t checked;          /* experts, trunk tensors, and rows of tables whose checksums were compared */
    uint64_t reread_sound;     /* times that damaged bytes were sound when read again */
    uint64_t bytes_unpacked;   /* of experts, made of compressed ones */
    double check_s, unpack_s;  /* time of threads beside the computing ones */
    double stall_s;            /* compute waited for reads */
    double compute_s;          /* forward passes without the stalls */
    double part_s[PS_N_PARTS]; /* what compute_s consists of */
    uint64_t peak_rss_bytes;   /* of the process, since its start */
    const char *io_backend;    /* in use */
    bool direct;               /* in use for every file */
    uint32_t queue_depth;      /* reads in flight at most */
    uint32_t threads;
    const char *threads_reason; /* "physical cores; measured fastest of 8, 16" */
    const char *cpu;
};
/* Counts since load or the last reset. */
void ps_session_stats(const struct ps_session *session, struct ps_stats *stats);
void ps_session_reset_stats(struct ps_session *session);

/* How good predictions are, by rank of the predicted expert. */
enum { PS_PREDICTION_RANKS = 32, PS_PREDICTION_DISTANCES = 3 };
struct ps_prediction_stats {
    uint32_t n_ranks;                                                 /* in use */
    uint64_t predicted[PS_PREDICTION_DISTANCES][PS_PREDICTION_RANKS]; /* [distance][rank] */
    uint64_t right[PS_PREDICTION_DISTANCES][PS_PREDICTION_RANKS];
    uint64_t chosen
        [PS_PREDICTION_DISTANCES]; /* experts that routers chose where there was a prediction: recall at rank
                                                 r is right[0..r] / chosen, precision right / predicted */
};
/* Since load; zeros when nothing was predicted. */
void ps_session_prediction_stats(const struct ps_session *session, struct ps_prediction_stats *stats);

/* Expert cache of one MoE layer, for displays. */
struct ps_expert_state {
    bool resident;
    float score; /* 0..1: how often chosen of late, as the cache policy sees it */
};
/* out[n_expert]. False: no such layer. */
bool ps_session_experts(const struct ps_session *session, uint32_t moe_layer, struct ps_expert_state *out);

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
