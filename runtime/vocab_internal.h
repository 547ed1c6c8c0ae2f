/* What the files of the vocabulary share: vocab.c loads and answers, vocab_special.c finds special tokens, tokenizer_bpe.c and
 * tokenizer_spm.c encode what lies between them. */
#ifndef PENSTOCK_RUNTIME_VOCAB_INTERNAL_H
#define PENSTOCK_RUNTIME_VOCAB_INTERNAL_H

#include "runtime/pretokenize.h"
#include "runtime/vocab.h"
#include "storage/fnv1a.h"

enum vocab_kind { VOCAB_NONE, VOCAB_SPM, VOCAB_BPE };

enum {
    TOKEN_UNKNOWN = 1 << 0,
    TOKEN_UNUSED = 1 << 1,
    TOKEN_NORMAL = 1 << 2,
    TOKEN_CONTROL = 1 << 3,
    TOKEN_USER_DEFINED = 1 << 4,
    TOKEN_BYTE = 1 << 5,
    TOKEN_STRIPS_RIGHT = 1 << 6, /* swallows the white space that follows it in a text */
    TOKEN_ENDS = 1 << 7,         /* generation stops */
};

/* Open-addressing table of positions in a string array; the strings stay where they are. */
struct slot_table {
    uint32_t *slots; /* SLOT_EMPTY or what the owner put in */
    uint32_t mask;   /* slots - 1, a power of two less one */
};

#define SLOT_EMPTY UINT32_MAX

struct vocab {
    enum vocab_kind kind;
    uint32_t n_tokens;

    const uint8_t *strings; /* the packed array of token texts in the gguf header */
    uint32_t
        *offset; /* [n_tokens] of each text's bytes in strings; its length stands in the 8 bytes before */
    uint8_t *attributes;             /* [n_tokens] TOKEN_* */
    struct slot_table ids;           /* by text */
    uint32_t longest;                /* bytes of the longest text */
    const struct gguf_array *scores; /* NULL: all 0 */

    int32_t bos, eos, unknown; /* -1: none */
    bool adds_bos, adds_eos;
    bool adds_space; /* SPM: a space in front of text at the start or after a special token */

    int32_t *special; /* [n_special] tokens to be found in text, longest first */
    int32_t *by_text; /* [n_special] indices into special, by text */
    uint32_t n_special;
    uint32_t special_starts[8]; /* bit set: a special token starts with this byte */

    const struct pre_type *pre_type;   /* BPE */
    struct pretokenizer *pretokenizer; /* BPE */
    const struct gguf_array *merges;   /* BPE; NULL: none */
    struct slot_table
        merge_ranks; /* by "left right"; made at the first encode. A slot holds the merge's offset in the
                                          array's data, which orders as its rank does */
    uint32_t longest_merge; /* bytes */
};

/* Text of a token; id < n_tokens. */
struct gguf_string vocab_text(const struct vocab *vocab, uint32_t id);
/* -1 when there is none. */
int32_t vocab_find(const struct vocab *vocab, const char *text, size_t length);
/* A token named in the metadata; otherwise if the key is absent or its id is not one of the vocabulary. */
int32_t vocab_id_of_key(const struct vocab *vocab, const struct gguf *gguf, const char *key,
                        int32_t otherwise);
/* The token <0xXX>; -1 when there is none. */
int32_t vocab_find_byte(const struct vocab *vocab, unsigned char byte);

/* Slots for count entries, a third or more left empty; all SLOT_EMPTY. False when memory runs out or count is too large. */
bool slot_table_init(struct slot_table *table, uint64_t count);
uint64_t slot_table_memory(uint64_t count); /* bytes */
void slot_table_deinit(struct slot_table *table);

/* Folds a hash made with fnv1a_add. */
static inline uint32_t text_hash_end(uint64_t state)
{
    return (uint32_t)(state ^ state >> 32);
}
static inline uint32_t text_hash(const char *text, size_t length)
{
    return text_hash_end(fnv1a_add(FNV1A_START, text, length));
}

/* One step through a packed string array: the string at *offset, which moves behind it. */
struct gguf_string string_array_next(const uint8_t *strings, uint64_t *offset);

/* Ids, growing. */
struct id_list {
    int32_t *ids;
    size_t count;
    size_t capacity;
};
bool id_list_add(struct id_list *list, int32_t id);

/* A stretch of the text to be encoded: a special token, or plain text. */
struct fragment {
    const char *text;
    size_t length;
    int32_t token; /* -1: plain text */
    int32_t next;  /* index of the fragment that follows; -1 at the end */
};

/* Corrects attributes by what tokens are called, as llama.cpp does, and marks those that end a generation. */
void vocab_mark_special(struct vocab *vocab, const struct gguf *gguf);
/* Fills special, by_text and special_starts from the attributes. False when memory runs out. */
bool vocab_index_special(struct vocab *vocab);
/* Splits text at special tokens; a chain from *fragments[0] (malloc'ed, the caller's; NULL for an empty text). Control and
 * unknown tokens are found only with parse_special. */
enum ps_status vocab_split_special(const struct vocab *vocab, const char *text, size_t length,
                                   bool parse_special, struct fragment **fragments, struct ps_error *err);

/* Encode the chain of fragments. */
enum ps_status spm_encode(const struct vocab *vocab, const struct fragment *fragments, struct id_list *out,
                          struct ps_error *err);
enum ps_status bpe_encode(struct vocab *vocab, const struct fragment *fragments, struct id_list *out,
                          struct ps_error *err);

/* text with every space replaced by U+2581, after one more if prefix; malloc'ed, NULL when memory runs out. */
char *escape_spaces(const char *text, size_t length, bool prefix, size_t *escaped_length);

/* The byte that a character of GPT-2's byte alphabet stands for; -1 when it is not of it. */
int byte_of_alphabet(uint32_t code_point);
uint32_t alphabet_of_byte(unsigned char byte);

#endif
