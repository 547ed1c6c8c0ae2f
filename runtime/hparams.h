/* Hyperparameters: the numbers of a model's metadata that its graph needs, checked. */
#ifndef PENSTOCK_RUNTIME_HPARAMS_H
#define PENSTOCK_RUNTIME_HPARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/gguf.h"
#include "storage/status.h"

struct arch;

enum {
    MAX_ROPES = 2, /* kinds of rotation in one model, such as of windowed and of other layers */
    MAX_EXPERT_GROUPS = 256,
    MAX_MODEL_LAYERS = 1024,
};

/* Metadata "expert_gating_func", numbered as llama.cpp does. */
enum gating {
    GATING_SOFTMAX = 1,
    GATING_SIGMOID = 2,
    GATING_SOFTMAX_OF_CHOSEN = 3, /* equals softmax, renormalized */
    GATING_SQRT_SOFTPLUS = 4,
};

enum norm_kind {
    NORM_RMS,
    NORM_LAYER, /* mean and variance */
};

struct rope_hparams {
    uint32_t n_rot;
    float freq_base, freq_scale, ext_factor, attn_factor;
    uint32_t ctx_orig;
    bool factors; /* divided by rope_freqs.weight, where the file has it */
    /* Of interleaved sections: pair i of each section_pairs belongs to axis i % 3 while below 3 * section[axis]; pairs of none are
     * not rotated. A text's positions are the same along all three axes. 0: no sections, all are rotated. */
    uint32_t section_pairs;
    uint32_t section[3];
};

/* What may differ between layers. */
struct layer_hparams {
    bool recurrent;             /* keeps a state of fixed size instead of keys and values */
    uint32_t n_head, n_kv_head; /* n_kv_head 0: the layer has no attention */
    uint32_t head_dim_k, head_dim_v;
    float attention_scale; /* of q.k */
    uint32_t window;       /* cells that a token sees, its own included; 0: all of the past */
    bool window_in_chunks; /* of a window: the token's own chunk of so many positions, not the last so many */
    uint32_t rope;         /* which of hparams.rope */
    bool no_rope;          /* q and k are not rotated */
    bool v_in_k;           /* values are the first head_dim_v of the key: nothing else is cached */
    uint32_t index_dim;    /* one more cached row per token, or per block, for choosing cells; 0: none */
    uint32_t block;        /* tokens of a block; 0: nothing is kept per block */
    bool index_by_cell;    /* index rows are kept per token even so, and each head of keys chooses blocks */
    bool compressed;       /* one more key per block, which stays where a window has left the block behind */
    uint32_t most_chosen;  /* cells of a full layer, or compressed blocks, that a token sees; 0: all */
    bool ngrams;           /* adds embeddings of n-grams before its attention */
    bool experts_by_token; /* the token id says which experts are used */
    uint64_t state_floats; /* recurrent state of a sequence, zero at its start */
    uint32_t n_ff;         /* dense FFN */
    float swiglu_limit, shared_swiglu_limit; /* 0: none */
};

/* Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): keys and values of all heads from one latent row. */
struct mla_hparams {
    uint32_t q_rank; /* 0: queries are projected at once */
    uint32_t kv_rank;
    bool absorbed; /* the cache holds latent rows, one for all heads; else each head's keys and values */
    uint32_t head_dim_k, head_dim_v; /* per head, before absorption; the last n_rot of k are rotated */
};

/* Choice of cells for sparse attention (DeepSeek-V3.2's indexer, arXiv:2512.02556). Layers with an index_dim choose, the others
 * take what the last one before them has chosen. */
struct index_hparams {
    uint32_t n_head, head_dim; /* head_dim: layer_hparams.index_dim */
    uint32_t top_k;            /* cells that a token attends to; 0: all, or layer_hparams.most_chosen */
    uint32_t last_blocks;      /* of blocks: that are always chosen, the token's own among them */
};

/* State-space and linear attention layers; which fields are used depends on the family. */
struct ssm_hparams {
    uint32_t conv_kernel; /* taps */
    uint32_t inner_size, state_size, group_count, time_step_rank;
};

/* Several residual streams, mixed before and after each branch. */
struct hyper_hparams {
    float eps;           /* DeepSeek-V4: */
    uint32_t iterations; /* of the normalization of rows and columns */
    uint32_t low_rank;   /* Qwen4-Exp: of the gates */
};

/* Embeddings of the last tokens by hashing (Qwen4-Exp): a head per row that a token looks up. */
enum { MAX_NGRAM = 8, MAX_NGRAM_HEADS = 64 };
struct ngram_hparams {
    uint32_t size;    /* tokens of the longest n-gram; 0: the model has none */
    uint32_t n_heads; /* so many for each length from 2 to size, which heads_per_ngram says */
    uint32_t heads_per_ngram;
    uint32_t head_dim, taps, end_token;
    uint64_t n_rows; /* of the table */
    uint64_t multiplier[MAX_NGRAM];
    uint64_t offset[MAX_NGRAM_HEADS], modulus[MAX_NGRAM_HEADS]; /* each head's rows */
};

struct hparams {
    uint32_t n_layers; /* without the trailing ones for next-token prediction, */
    uint32_t n_nextn;  /* which are never computed */
    uint32_t n_embd;
    uint32_t n_streams; /* residual streams of n_embd each, of hyper-connections; else 1 */
    uint32_t n_vocab;   /* rows of token_embd */
    uint32_t n_ctx_train;
    struct layer_hparams *layer; /* [n_layers] owned */

    enum norm_kind norm_kind;
    float norm_eps;
    float embedding_scale, residual_scale, logit_scale; /* factors; 1: none */
    float logit_softcap;                                /* 0: none */
    float attention_out_scale;                          /* factor after the output projection */
    struct {
        float
            scale; /* q is multiplied by 1 + scale * ln(1 + floor((position + offset) / length)); 0: is not */
        uint32_t length; /* at least 1 */
        uint32_t offset;
    } temperature;

    uint32_t n_ropes;
    struct rope_hparams rope[MAX_ROPES];

    uint32_t n_expert, n_expert_used;
    uint32_t n_embd_expert; /* width of what experts take and give: n_embd, or that of a latent row */
    uint32_t n_ff_expert, n_ff_shared;              /* 0: none */
    uint32_t n_expert_groups, n_expert_groups_used; /* 1, 1: experts are chosen among all */
    enum gating gating;
    float router_input_scale;   /* beside the router's norm; 1: none */
    bool renormalize;           /* the chosen weights are divided by their sum */
    float expert_weights_scale; /* 0: none */

    struct mla_hparams mla;
    struct index_hparams index;
    struct ssm_hparams ssm;
    struct hyper_hparams hyper;
    struct ngram_hparams ngram;
    uint32_t n_out_groups,
        out_rank;              /* the output projection in two steps, the first one by groups of heads */
    uint32_t widest_mixer_row; /* that a block has rounded, beside the inputs of trunk matrices */
    uint32_t mixer_floats;     /* per token: room that the family's blocks want in scratch.mixer */
};

/* A side of a tensor, or another size that follows from the numbers of a layer. */
typedef uint64_t dim_fn(const struct hparams *hp, const struct layer_hparams *l);
/* Largest over the layers, for buffers that all of them use. */
uint64_t hparams_most(const struct hparams *hp, dim_fn *of);

/* Looks up "<arch>.<suffix>". Required ones give PS_ERR_FORMAT naming the key; the others keep *out. */
enum ps_status hparam_u32(const struct gguf *gguf, const char *arch, const char *suffix, bool required,
                          uint32_t *out, struct ps_error *err);
enum ps_status hparam_f32(const struct gguf *gguf, const char *arch, const char *suffix, bool required,
                          float *out, struct ps_error *err);
/* A factor: absent ones keep *out, and 0 stands for none, which is 1, as in llama.cpp. */
enum ps_status hparam_factor(const struct gguf *gguf, const char *arch, const char *suffix, float *out,
                             struct ps_error *err);
enum ps_status hparam_bool(const struct gguf *gguf, const char *arch, const char *suffix, bool required,
                           bool *out, struct ps_error *err);
/* A required number that is a size: within 1 .. 2^20. */
enum ps_status hparam_size(const struct gguf *gguf, const char *arch, const char *suffix, uint32_t *out,
                           struct ps_error *err);
/* A number per layer: an array of at least n_layers, or one number for all. Absent ones keep out[], or the field of
 * struct layer_hparams at that offset. */
enum ps_status hparam_layers_u32(const struct gguf *gguf, const char *arch, const char *suffix, bool required,
                                 uint32_t n_layers, uint32_t *out, struct ps_error *err);
enum ps_status hparams_layer_f32(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                 const char *suffix, bool required, size_t field, struct ps_error *err);

/* Sliding windows, from the keys attention.sliding_window and .sliding_window_pattern: an array of booleans, or a period, of
 * which the last layer (dense_first: the first) sees all. Without a pattern in the file it is default_period; 0 windows
 * all layers, 1 none. Windowed layers get rope 1 with the keys rope.freq_base_swa and rope.dimension_count_swa, and the head
 * sizes of attention.key_length_swa and .value_length_swa, where the file has them. For a family's hparams function. */
enum ps_status hparams_windows(struct hparams *hp, const struct gguf *gguf, const char *arch,
                               uint32_t default_period, bool dense_first, struct ps_error *err);
/* The keys that hparams_windows reads, for a family's list of known ones. */
#define HPARAMS_WINDOW_KEYS                                                                                  \
    "attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa",                    \
        "rope.dimension_count_swa", "attention.key_length_swa", "attention.value_length_swa"

/* Interleaved sections of rope 0, from the key rope.dimension_sections. For a family's hparams function. */
enum ps_status hparams_rope_sections(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                     struct ps_error *err);

/* Latent attention, in all layers with attention that are not recurrent: hp->mla, the layers' heads as the cache has them, the
 * scale of attention with YaRN, room in scratch.mixer; whether the tensors for it are there. Files from before attn_kv_b was
 * split have no head sizes of their own for it: their keys and values are cached per head. For a family's hparams function.
 * pairs_mscale: the multiplier of YaRN that the file gives holds for rotated values, too. */
enum ps_status hparams_mla(struct hparams *hp, const struct gguf *gguf, const char *arch, bool pairs_mscale,
                           struct ps_error *err);
#define HPARAMS_MLA_KEYS                                                                                     \
    "attention.q_lora_rank", "attention.kv_lora_rank", "attention.key_length_mla",                           \
        "attention.value_length_mla", "rope.scaling.yarn_log_multiplier"

/* Reads what all transformer families share, then what arch->hparams adds, and checks the whole. Every "<arch>.*" key
 * of the file must be one that is read here or one of arch->known_keys (suffixes that the family reads itself or
 * that do not change the computation), else PS_ERR_UNSUPPORTED names it: a key that changes the result is never
 * ignored. hparams_deinit after failure, too. */
enum ps_status hparams_read(struct hparams *hp, const struct gguf *gguf, const struct arch *arch,
                            struct ps_error *err);
void hparams_deinit(struct hparams *hp);

#endif
