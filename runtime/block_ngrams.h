/* Embeddings of n-grams (Qwen4-Exp): the last tokens are hashed to rows of a table, which stays in the file. What the rows say is
 * added to the residual streams, gated by each, as it is and through a convolution over time. */
#ifndef PENSTOCK_RUNTIME_BLOCK_NGRAMS_H
#define PENSTOCK_RUNTIME_BLOCK_NGRAMS_H

#include "runtime/forward_internal.h"

#define HPARAMS_NGRAM_KEYS                                                                                   \
    "ple.layers", "ple.ngram_size", "ple.heads_per_ngram", "ple.conv_kernel", "ple.eos_token_id",            \
        "ple.image_token_id", "ple.layer_multipliers", "ple.head_offsets", "ple.head_vocab_sizes",           \
        "embedding_length_per_layer_input"
/* Reads these, and marks the layer. Where there are none, hp->ngram stays empty. */
enum ps_status hparams_ngrams(struct hparams *hp, const struct gguf *gguf, const char *arch,
                              struct ps_error *err);

dim_fn dim_ngram_rows, dim_ngram_head, dim_ngram_all, dim_ngram_taps;
/* Floats per token of scratch.mixer, and of the layer's state, at its end. */
uint64_t ngram_mixer(const struct hparams *hp);
uint64_t ngram_state(const struct hparams *hp);

/* Adds to the streams. May use scratch.normed and scratch.branch. */
enum ps_status block_ngrams(struct forward *f, uint32_t layer, struct ps_error *err);

#endif
