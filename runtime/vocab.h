/* Vocabulary and tokenizer, read from GGUF metadata (tokenizer.ggml.*): text to token ids and back.
 *
 * Models: "gpt2" (byte-level BPE with a pre-tokenizer pattern), "llama" (SentencePiece BPE with byte fallback),
 * "gemma4" (BPE on plain text), "no_vocab"/"none" (ids only). Results are the same as llama.cpp's. Immutable after
 * vocab_new but for the encoder's tables and scratch, so encode calls on one vocab must not run at the same time. */
#ifndef PENSTOCK_RUNTIME_VOCAB_H
#define PENSTOCK_RUNTIME_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/gguf.h"
#include "storage/status.h"

struct vocab;

/* The gguf is borrowed: token strings point into its header. PS_ERR_UNSUPPORTED names a tokenizer model or pre-tokenizer
 * that is not handled and lists those that are; PS_ERR_FORMAT: arrays missing, of the wrong type or length. */
enum ps_status vocab_new(struct vocab **out, const struct gguf *gguf, struct ps_error *err);
void vocab_free(struct vocab *vocab);

bool vocab_has_text(const struct vocab *vocab); /* false for no_vocab */
uint32_t vocab_size(const struct vocab *vocab); /* 0 for no_vocab without a size */
/* Bytes held, without the gguf header; the table of merges, made at the first encode, is counted from the start. */
uint64_t vocab_memory(const struct vocab *vocab);
int32_t vocab_bos(const struct vocab *vocab); /* -1 when there is none; likewise below */
int32_t vocab_eos(const struct vocab *vocab);
bool vocab_adds_bos(const struct vocab *vocab); /* tokenizer.ggml.add_bos_token or the model's default */
bool vocab_is_end(const struct vocab *vocab, int32_t id); /* end of text, turn or message: generation stops */

/* Token ids of text[length] (any bytes; invalid UTF-8 is encoded, never refused). add_special: BOS/EOS as the metadata asks.
 * parse_special: text such as <|im_start|> becomes its special token. *ids is malloc'ed, the caller's to free.
 * PS_ERR_UNSUPPORTED for a vocabulary without text, PS_ERR_ARGUMENT for more than 64 MiB, PS_ERR_NOMEM. */
enum ps_status vocab_encode(struct vocab *vocab, const char *text, size_t length, bool add_special,
                            bool parse_special, int32_t **ids, size_t *n_ids, struct ps_error *err);

/* Bytes of one token as text; may be part of a UTF-8 sequence. Writes at most size bytes to out and returns the length needed.
 * Control tokens give nothing unless show_special. first: the first token of a text, where SentencePiece drops the space
 * that encoding put in front. Out-of-range ids give 0. */
size_t vocab_piece(const struct vocab *vocab, int32_t id, bool first, bool show_special, char *out,
                   size_t size);

/* Collects pieces and gives out whole UTF-8 characters only: a sequence cut at a token boundary waits for the rest; bytes that
 * can no longer become one are replaced by U+FFFD. */
struct utf8_stream {
    unsigned char pending[4];
    unsigned n_pending;
};
/* out needs 3 * (length + 4) bytes. Returns bytes written. */
size_t utf8_stream_push(struct utf8_stream *stream, const char *bytes, size_t length, char *out);
/* At the end: what is pending becomes U+FFFD. out needs 12 bytes. */
size_t utf8_stream_finish(struct utf8_stream *stream, char *out);

#endif
