/* Pre-tokenizer of byte-pair encoding: cuts a text into words, within which merges are then made. Which patterns do it is named
 * by tokenizer.ggml.pre. Cuts fall where llama.cpp v0.5.0 makes them. */
#ifndef PENSTOCK_RUNTIME_PRETOKENIZE_H
#define PENSTOCK_RUNTIME_PRETOKENIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/gguf.h"
#include "storage/status.h"

enum { PRE_MAX_PATTERNS = 6, PRE_MAX_NAMES = 16 };

/* The pattern that is a text up to and with a run of digits, group 1 being the run: this one's matches are cut further, into
 * groups of three digits from the right. \\G: it takes all of a text, so there is nothing to search for. */
#define PRE_DIGIT_GROUPS "\\G\\P{N}*+(\\p{N}++)"

struct pre_type {
    const char *names[PRE_MAX_NAMES + 1]; /* NULL ends them */
    const char *const
        *patterns; /* applied one after the other, each within the cuts of the one before; NULL ends them */
    bool ignore_merges; /* a word that is a token needs no merges */
    bool adds_bos;      /* unless the metadata says otherwise */
    bool always_bos;    /* whatever the metadata says */
    bool no_default_bos;
    bool raw_utf8;       /* tokens are plain text with U+2581 for the space, not GPT-2's byte alphabet */
    bool newline_tokens; /* a run of newlines that is a token stays whole */
    bool may_lack_merges;
};

/* NULL when unknown. */
const struct pre_type *pre_type_find(const char *name, size_t length);
/* Names as "a, b, c", cut short with "..." where size ends. */
void pre_type_list(char *out, size_t size);

struct pretokenizer;

/* PS_ERR_NOMEM; PS_ERR_UNSUPPORTED when the regular expression library lacks something. */
enum ps_status pretokenizer_new(struct pretokenizer **out, const struct pre_type *type, struct ps_error *err);
void pretokenizer_free(struct pretokenizer *pre); /* NULL is fine */
uint64_t pretokenizer_memory(const struct pretokenizer *pre);

struct word_list {
    uint32_t *ends; /* bytes from the start of the text; the last one is the text's length */
    size_t count;
    size_t capacity;
};

/* A text as it is encoded, cut into words. All zero: empty. Reused from one text to the next. */
struct word_text {
    char *text; /* valid UTF-8, but for surrogates */
    size_t length;
    struct word_list words;

    char *subject;   /* what the patterns see: as text, but for characters that need another's properties */
    size_t capacity; /* of text and of subject */
    struct word_list previous; /* cuts of the pattern before */
};

/* Any bytes; length <= UINT32_MAX / 3. What is not UTF-8 becomes U+FFFD. */
enum ps_status pretokenizer_split(struct pretokenizer *pre, const char *bytes, size_t length,
                                  struct word_text *out, struct ps_error *err);
void word_text_deinit(struct word_text *text);

#endif
