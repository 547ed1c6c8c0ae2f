/* Byte-pair encoding with a list of merges ("gpt2", "gemma4"): the pre-tokenizer cuts the text into words, and within a word
 * neighbours are joined in the order of the merges. */
#include <stdlib.h>
#include <string.h>

#include "runtime/token_merge.h"
#include "runtime/utf8.h"
#include "runtime/vocab_internal.h"

static enum ps_status out_of_memory(struct ps_error *err)
{
    return ps_error_set(err, PS_ERR_NOMEM, "tokenizer: out of memory");
}

/* GPT-2 writes every byte as a printable character: printable ones as themselves, the rest, in order, from U+0100
 * (bytes_to_unicode in openai/gpt-2, src/encoder.py). */
uint32_t alphabet_of_byte(unsigned char byte)
{
    if (byte <= 0x20)
        return 0x100u + byte;
    if (byte >= 0x7F && byte <= 0xA0)
        return 0x121u + byte - 0x7F;
    return byte == 0xAD ? 0x143u : byte;
}

int byte_of_alphabet(uint32_t code_point)
{
    if (code_point < 0x100)
        return alphabet_of_byte((unsigned char)code_point) == code_point ? (int)code_point : -1;
    if (code_point <= 0x120)
        return (int)(code_point - 0x100);
    if (code_point <= 0x142)
        return (int)(code_point - 0x121 + 0x7F);
    return code_point == 0x143 ? 0xAD : -1;
}

/* As text_hash of "left right". */
static uint32_t pair_hash(const char *text, uint32_t left, uint32_t right)
{
    uint64_t state = fnv1a_add(FNV1A_START, text, left);
    state = fnv1a_add(state, " ", 1);
    return text_hash_end(fnv1a_add(state, text + left, right));
}

static bool merge_is(const struct vocab *vocab, uint64_t offset, const char *text, uint32_t left,
                     uint32_t right)
{
    struct gguf_string merge = string_array_next(vocab->merges->data, &offset);
    return merge.length == (uint64_t)left + 1 + right && memcmp(merge.data, text, left) == 0 &&
           merge.data[left] == ' ' && memcmp(merge.data + left + 1, text + left, right) == 0;
}

static bool pair_rank(const void *context, const char *text, uint32_t left, uint32_t right, uint32_t *rank)
{
    const struct vocab *vocab = context;
    if ((uint64_t)left + 1 + right > vocab->longest_merge)
        return false;
    const struct slot_table *table = &vocab->merge_ranks;
    for (uint32_t at = pair_hash(text, left, right) & table->mask; table->slots[at] != SLOT_EMPTY;
         at = (at + 1) & table->mask) {
        if (merge_is(vocab, table->slots[at], text, left, right)) {
            *rank = table->slots[at];
            return true;
        }
    }
    return false;
}

/* Of equal merges the first counts. The others stay out, or a file full of them would make one long chain. */
static void add_merge(struct vocab *vocab, struct gguf_string merge, uint64_t offset)
{
    const struct slot_table *table = &vocab->merge_ranks;
    uint32_t at = text_hash(merge.data, merge.length) & table->mask;
    for (; table->slots[at] != SLOT_EMPTY; at = (at + 1) & table->mask) {
        uint64_t earlier_offset = table->slots[at];
        struct gguf_string earlier = string_array_next(vocab->merges->data, &earlier_offset);
        if (earlier.length == merge.length && memcmp(earlier.data, merge.data, merge.length) == 0)
            return;
    }
    table->slots[at] = (uint32_t)offset;
    if (merge.length > vocab->longest_merge)
        vocab->longest_merge = (uint32_t)merge.length;
}

static enum ps_status index_merges(struct vocab *vocab, struct ps_error *err)
{
    struct slot_table *table = &vocab->merge_ranks;
    if (table->slots || !vocab->merges)
        return PS_OK;
    if (!slot_table_init(table, vocab->merges->count))
        return out_of_memory(err);
    uint64_t offset = 0;
    for (uint64_t i = 0; i < vocab->merges->count; i++) {
        uint64_t at = offset;
        struct gguf_string merge = string_array_next(vocab->merges->data, &offset);
        if (offset >= SLOT_EMPTY) {
            slot_table_deinit(table);
            return ps_error_set(err, PS_ERR_UNSUPPORTED, "tokenizer.ggml.merges: more than 4 GiB of text");
        }
        add_merge(vocab, merge, at);
    }
    return PS_OK;
}

struct bpe_encoder {
    const struct vocab *vocab;
    struct word_text words;
    struct token_merger merger;
    char *spelled; /* a word in the byte alphabet */
    size_t spelled_capacity;
    struct id_list *out;
};

/* The word as its tokens are written. NULL when memory runs out. */
static const char *spell(struct bpe_encoder *encoder, const char *word, size_t *length)
{
    if (encoder->vocab->pre_type->raw_utf8)
        return word;
    if (2 * *length > encoder->spelled_capacity) {
        char *grown = realloc(encoder->spelled, 4 * *length);
        if (!grown)
            return NULL;
        encoder->spelled = grown;
        encoder->spelled_capacity = 4 * *length;
    }
    size_t n = 0;
    for (size_t i = 0; i < *length; i++)
        n += utf8_put(alphabet_of_byte((unsigned char)word[i]), encoder->spelled + n);
    *length = n;
    return encoder->spelled;
}

/* What is no token is spelled in byte tokens; a vocabulary that lacks those loses it, as in llama.cpp. */
static bool add_symbol(struct bpe_encoder *encoder, const char *symbol, size_t length)
{
    const struct vocab *vocab = encoder->vocab;
    int32_t id = vocab_find(vocab, symbol, length);
    if (id >= 0)
        return id_list_add(encoder->out, id);
    for (size_t i = 0; i < length; i++) {
        id = vocab->pre_type->raw_utf8 ? vocab_find_byte(vocab, (unsigned char)symbol[i])
                                       : vocab_find(vocab, symbol + i, 1);
        if (id >= 0 && !id_list_add(encoder->out, id))
            return false;
    }
    return true;
}

static bool is_newlines(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (text[i] != '\n')
            return false;
    }
    return true;
}

static bool encode_word(struct bpe_encoder *encoder, const char *word, size_t length)
{
    const struct vocab *vocab = encoder->vocab;
    const char *text = spell(encoder, word, &length);
    if (!text)
        return false;
    bool whole =
        vocab->pre_type->ignore_merges || (vocab->pre_type->newline_tokens && is_newlines(text, length));
    int32_t id = whole ? vocab_find(vocab, text, length) : -1;
    if (id >= 0)
        return id_list_add(encoder->out, id);

    if (!token_merger_run(&encoder->merger, text, length, pair_rank, vocab))
        return false;
    const struct merge_symbol *symbols = encoder->merger.symbols;
    for (int32_t i = 0; i >= 0; i = symbols[i].next) {
        if (!add_symbol(encoder, text + symbols[i].start, symbols[i].length))
            return false;
    }
    return true;
}

static enum ps_status encode_text(struct bpe_encoder *encoder, const char *text, size_t length,
                                  struct ps_error *err)
{
    enum ps_status status =
        pretokenizer_split(encoder->vocab->pretokenizer, text, length, &encoder->words, err);
    if (status != PS_OK)
        return status;
    uint32_t begin = 0;
    for (size_t i = 0; i < encoder->words.words.count; i++) {
        uint32_t end = encoder->words.words.ends[i];
        if (!encode_word(encoder, encoder->words.text + begin, end - begin))
            return out_of_memory(err);
        begin = end;
    }
    return PS_OK;
}

static enum ps_status encode_fragment(struct bpe_encoder *encoder, const struct fragment *f,
                                      struct ps_error *err)
{
    if (f->token >= 0)
        return id_list_add(encoder->out, f->token) ? PS_OK : out_of_memory(err);
    if (!encoder->vocab->pre_type->raw_utf8)
        return encode_text(encoder, f->text, f->length, err);
    size_t length;
    char *escaped = escape_spaces(f->text, f->length, false, &length);
    if (!escaped)
        return out_of_memory(err);
    enum ps_status status = encode_text(encoder, escaped, length, err);
    free(escaped);
    return status;
}

enum ps_status bpe_encode(struct vocab *vocab, const struct fragment *fragments, struct id_list *out,
                          struct ps_error *err)
{
    enum ps_status status = index_merges(vocab, err);
    struct bpe_encoder encoder = {.vocab = vocab, .out = out};
    for (const struct fragment *f = fragments; f && status == PS_OK;
         f = f->next < 0 ? NULL : &fragments[f->next])
        status = encode_fragment(&encoder, f, err);
    word_text_deinit(&encoder.words);
    token_merger_deinit(&encoder.merger);
    free(encoder.spelled);
    return status;
}
