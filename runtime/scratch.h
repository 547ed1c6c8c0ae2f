/* Scratch: the activations of one chunk of tokens, laid out in one mapping. The plan asks for its size with the same
 * function that lays it out. */
#ifndef PENSTOCK_RUNTIME_SCRATCH_H
#define PENSTOCK_RUNTIME_SCRATCH_H

#include <stdint.h>

#include "kernels/matmul.h"
#include "runtime/model.h"

enum {
    FFN_TILE_ROWS = 256, /* hidden rows per work item; a multiple of every activation block */
    FFN_STRIP_ROWS = 32, /* of them multiplied at a time with more than FFN_FEW_TOKENS tokens */
    FFN_FEW_TOKENS = 64,
    BLOCK_TILE = 256, /* blocks per work item of the index */
    MAX_GATHER_SLOTS = 16,
    INDEX_TOKENS = 8, /* that share loads of keys when cells are chosen */
    INDEX_CELLS = 64, /* per work item */
};

/* Hidden rows that n_tokens tokens are multiplied with at a time. */
static inline uint32_t ffn_strip_rows(uint64_t n_tokens)
{
    return n_tokens > FFN_FEW_TOKENS ? FFN_STRIP_ROWS : FFN_TILE_ROWS;
}

/* Rows of activations in each form that some weight takes; F32 is the row itself. */
struct acts {
    const float *x; /* n_tokens rows, stride floats apart */
    size_t stride;
    uint32_t n_tokens;
    uint64_t n_cols;
    uint8_t *rounded[ACT_N_TYPES]; /* buffers; [ACT_F32] unused */
    bool ready[ACT_N_TYPES];
};

/* Sizes: T = chunk, E = n_embd, K = experts per token, P = T * K pairs of token and expert, L = n_embd_expert. Per-layer widths: the
 * largest. */
struct scratch {
    float *x;         /* [T][n_streams * E] residual stream */
    float *normed;    /* [T][E] */
    float *branch;    /* [T][E] output of a block before it is added */
    float *hidden;    /* [T][E] after the last norm: what logits are made of */
    float *q, *k, *v; /* [T][heads * head_dim] */
    float *attended;  /* [T][n_head * head_dim_v] */
    float *gate;      /* [T][n_head * head_dim_v] of the attention's output; NULL: the family has none */
    float *mixer;     /* [T][hp.mixer_floats] for the family's own blocks */
    float *rope_cos[MAX_ROPES];    /* [T][n_rot/2] */
    float *rope_sin[MAX_ROPES];    /* [T][n_rot/2] */
    int32_t *positions;            /* [T] */
    int32_t *rows;                 /* [T] rows of the positions in a layer's cache */
    uint8_t *rounded[ACT_N_TYPES]; /* [T] rows of the widest input */
    uint8_t *ff_hidden;            /* [T] rows of activations: dense and shared FFN */
    float *tiles;                  /* per thread: a tile and two strips of [T] rows */
    size_t tile_floats;            /* per thread */
    float *attention;              /* per thread */
    size_t attention_floats;       /* per thread */
    float *attention_partials;     /* of the segments of a long context */
    uint32_t *cells;          /* [T][index.top_k] that a token attends to, ascending; NULL: all have room */
    float *index_scores;      /* [INDEX_TOKENS][ctx] */
    float *index_tiles;       /* per thread: [INDEX_TOKENS][index.n_head][INDEX_CELLS] */
    size_t index_tile_floats; /* per thread */
    uint8_t *gathered;        /* [index.top_k] rows of keys */

    /* Attention over rows that differ from token to token, for a few tokens (slots) at a time; sizes are of one slot. */
    uint32_t gather_slots;
    size_t rows_bytes, rows_partial_floats, block_score_floats, chosen_block_ids;
    uint8_t *slot_rows;      /* keys, then values */
    float *rows_partials;    /* as attention_partials */
    float *block_scores;     /* of blocks */
    uint32_t *chosen_blocks; /* or cells */
    float *block_tiles;      /* per thread: [index heads][BLOCK_TILE] */

    uint8_t *stored; /* stored_rows_buffer; NULL: the model keeps all weights in memory */

    float
        *router; /* [T][n_expert] scores, after route(): probabilities or the like, without selection bias */
    float *preference;      /* [T][n_expert] by which experts are chosen, where that differs from scores */
    uint32_t *chosen;       /* [T][K] expert ids in rank order; LOSSY_NO_EXPERT: left out */
    float *weights;         /* [T][K] */
    float *shared_gate;     /* [T] */
    uint32_t *expert_start; /* [n_expert + 1] first pair of each expert */
    uint32_t *expert_ids;   /* [n_expert] chosen by some token, ascending */
    uint32_t *pair_token;   /* [P] in expert order */
    uint32_t *pair_row;     /* [T][K] row of a pair in expert order */
    uint32_t *row_pair;     /* [P] the other way round */
    float *latent;  /* [T][L] input of experts that do not take normed itself, then their sum; else NULL */
    float *weighed; /* per thread: [L] input of an expert, times its weight */
    uint8_t *lossy_flags;         /* [n_expert] enum lossy_flag */
    uint8_t *packed[ACT_N_TYPES]; /* [P] rows of width L, in expert order */
    uint8_t *expert_hidden;       /* [P] rows of activations of width n_ff_expert */
    float *expert_out;            /* [P][L] in expert order */
};

/* Most cells that a token of a layer that chooses them sees; 0: the layer does not. */
uint32_t gathered_cells(const struct layer_hparams *l, uint32_t ctx);

/* Lays out scratch for `chunk` tokens and `threads` threads from base (NULL: only measure); returns its bytes. */
uint64_t scratch_layout(struct scratch *scratch, uint8_t *base, const struct ps_model *model,
                        const struct ps_model_params *params, uint32_t chunk, uint32_t threads);

#endif
