/* Vocabulary: loading from GGUF metadata, look-ups by text and id, and the way into the tokenizers. Rules and defaults are
 * llama.cpp v0.5.0's (src/llama-vocab.cpp). */
#include "runtime/vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/utf8.h"
#include "runtime/vocab_internal.h"

static const char word_space[] = "\xE2\x96\x81"; /* U+2581, SentencePiece's space */
enum { WORD_SPACE_LENGTH = sizeof(word_space) - 1 };
enum { MAX_TEXT = 1 << 26 }; /* bytes; positions stay within 32 bits after escaping and replacing */

static enum ps_status out_of_memory(struct ps_error *err)
{
    return ps_error_set(err, PS_ERR_NOMEM, "vocabulary: out of memory");
}

/* --- tables --- */

static uint64_t slot_count(uint64_t count)
{
    uint64_t slots = 16;
    while (slots < count + count / 2)
        slots *= 2;
    return slots;
}

uint64_t slot_table_memory(uint64_t count)
{
    return slot_count(count) * sizeof(uint32_t);
}

bool slot_table_init(struct slot_table *table, uint64_t count)
{
    if (count > UINT32_MAX / 4)
        return false;
    uint64_t slots = slot_count(count);
    table->slots = malloc(slots * sizeof(*table->slots));
    if (!table->slots)
        return false;
    memset(table->slots, 0xFF, slots * sizeof(*table->slots));
    table->mask = (uint32_t)(slots - 1);
    return true;
}

void slot_table_deinit(struct slot_table *table)
{
    free(table->slots);
    *table = (struct slot_table){0};
}

struct gguf_string string_array_next(const uint8_t *strings, uint64_t *offset)
{
    struct gguf_string string;
    memcpy(&string.length, strings + *offset, sizeof(string.length));
    string.data = (const char *)strings + *offset + sizeof(string.length);
    *offset += sizeof(string.length) + string.length;
    return string;
}

bool id_list_add(struct id_list *list, int32_t id)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 64;
        int32_t *ids = realloc(list->ids, capacity * sizeof(*ids));
        if (!ids)
            return false;
        list->ids = ids;
        list->capacity = capacity;
    }
    list->ids[list->count++] = id;
    return true;
}

struct gguf_string vocab_text(const struct vocab *vocab, uint32_t id)
{
    uint64_t offset = vocab->offset[id];
    return string_array_next(vocab->strings, &offset);
}

/* The slot of a text: one that holds its id, or the empty one where it belongs. */
static uint32_t *id_slot(const struct vocab *vocab, const char *text, size_t length)
{
    const struct slot_table *table = &vocab->ids;
    uint32_t at = text_hash(text, length) & table->mask;
    for (; table->slots[at] != SLOT_EMPTY; at = (at + 1) & table->mask) {
        struct gguf_string other = vocab_text(vocab, table->slots[at]);
        if (other.length == length && memcmp(other.data, text, length) == 0)
            break;
    }
    return &table->slots[at];
}

int32_t vocab_find(const struct vocab *vocab, const char *text, size_t length)
{
    if (length > vocab->longest)
        return -1;
    uint32_t id = *id_slot(vocab, text, length);
    return id == SLOT_EMPTY ? -1 : (int32_t)id;
}

int32_t vocab_find_byte(const struct vocab *vocab, unsigned char byte)
{
    char text[8];
    snprintf(text, sizeof(text), "<0x%02X>", byte);
    return vocab_find(vocab, text, 6);
}

int32_t vocab_id_of_key(const struct vocab *vocab, const struct gguf *gguf, const char *key,
                        int32_t otherwise)
{
    uint64_t id;
    if (gguf_get_u64(gguf, key, &id) && id < vocab->n_tokens)
        return (int32_t)id;
    return otherwise;
}

/* --- loading --- */

/* An array of the given type with at least min_count elements; NULL in *out when the key is absent. */
static enum ps_status find_array(const struct gguf *gguf, const char *key, enum gguf_value_type type,
                                 uint64_t min_count, const struct gguf_array **out, struct ps_error *err)
{
    *out = NULL;
    if (!gguf_find(gguf, key))
        return PS_OK;
    const struct gguf_array *array = gguf_get_array(gguf, key, type);
    if (!array)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: not an array of the right type", key);
    if (array->count < min_count)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: %llu elements for %llu tokens", key,
                            (unsigned long long)array->count, (unsigned long long)min_count);
    *out = array;
    return PS_OK;
}

static enum ps_status load_texts(struct vocab *vocab, const struct gguf *gguf, struct ps_error *err)
{
    static const char key[] = "tokenizer.ggml.tokens";
    const struct gguf_array *tokens;
    enum ps_status status = find_array(gguf, key, GGUF_STRING, 1, &tokens, err);
    if (status != PS_OK)
        return status;
    if (!tokens)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: missing", key);
    if (tokens->count > INT32_MAX / 4)
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s: %llu tokens are too many", key,
                            (unsigned long long)tokens->count);
    vocab->n_tokens = (uint32_t)tokens->count;
    vocab->strings = tokens->data;
    vocab->offset = malloc(vocab->n_tokens * sizeof(*vocab->offset));
    if (!vocab->offset || !slot_table_init(&vocab->ids, vocab->n_tokens))
        return out_of_memory(err);

    uint64_t offset = 0;
    for (uint32_t id = 0; id < vocab->n_tokens; id++) {
        vocab->offset[id] = (uint32_t)offset;
        struct gguf_string text = string_array_next(vocab->strings, &offset);
        if (offset > UINT32_MAX)
            return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s: more than 4 GiB of text", key);
        if (text.length == 0)
            continue;
        uint32_t *slot = id_slot(vocab, text.data, text.length);
        if (*slot == SLOT_EMPTY) /* of equal texts the first counts */
            *slot = id;
        if (text.length > vocab->longest)
            vocab->longest = (uint32_t)text.length;
    }
    return PS_OK;
}

static enum ps_status load_attributes(struct vocab *vocab, const struct gguf *gguf, struct ps_error *err)
{
    /* tokenizer.ggml.token_type by value (GGUF specification) */
    static const uint8_t attribute_of_type[] = {
        0, TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER_DEFINED, TOKEN_UNUSED, TOKEN_BYTE};
    const struct gguf_array *types;
    enum ps_status status =
        find_array(gguf, "tokenizer.ggml.token_type", GGUF_INT32, vocab->n_tokens, &types, err);
    if (status != PS_OK)
        return status;
    vocab->attributes = malloc(vocab->n_tokens);
    if (!vocab->attributes)
        return out_of_memory(err);
    for (uint32_t id = 0; id < vocab->n_tokens; id++) {
        uint64_t type = types ? gguf_array_u64(types, id) : 1;
        vocab->attributes[id] = type < sizeof(attribute_of_type) ? attribute_of_type[type] : 0;
    }
    return PS_OK;
}

static enum ps_status load_scores(struct vocab *vocab, const struct gguf *gguf, struct ps_error *err)
{
    static const char key[] = "tokenizer.ggml.scores";
    enum gguf_value_type type = gguf_get_array(gguf, key, GGUF_INT32) ? GGUF_INT32 : GGUF_FLOAT32;
    return find_array(gguf, key, type, vocab->n_tokens, &vocab->scores, err);
}

static enum ps_status find_pre_type(struct vocab *vocab, struct gguf_string name, struct ps_error *err)
{
    vocab->pre_type = pre_type_find(name.data, name.length);
    if (vocab->pre_type)
        return PS_OK;
    char known[PS_ERROR_MESSAGE_SIZE - 128];
    pre_type_list(known, sizeof(known));
    return ps_error_set(err, PS_ERR_UNSUPPORTED, "tokenizer.ggml.pre: '%.*s' is not handled: these are: %s",
                        name.length < 60 ? (int)name.length : 60, name.data, known);
}

static enum ps_status load_merges(struct vocab *vocab, const struct gguf *gguf, struct ps_error *err)
{
    static const char key[] = "tokenizer.ggml.merges";
    enum ps_status status = find_array(gguf, key, GGUF_STRING, 0, &vocab->merges, err);
    if (status == PS_OK && !vocab->merges && !vocab->pre_type->may_lack_merges)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: missing", key);
    return status;
}

static enum ps_status load_no_text(struct vocab *vocab, const struct gguf *gguf)
{
    struct gguf_string architecture;
    char key[128];
    uint64_t n;
    if (!gguf_get_string(gguf, "general.architecture", &architecture) || architecture.length > 64)
        return PS_OK;
    snprintf(key, sizeof(key), "%.*s.vocab_size", (int)architecture.length, architecture.data);
    if (gguf_get_u64(gguf, key, &n) && n <= INT32_MAX)
        vocab->n_tokens = (uint32_t)n;
    return PS_OK;
}

static bool string_is(struct gguf_string string, const char *text)
{
    return string.length == strlen(text) && memcmp(string.data, text, string.length) == 0;
}

/* Kind, pre-tokenizer and the defaults that depend on them. */
static enum ps_status choose_model(struct vocab *vocab, const struct gguf *gguf, struct ps_error *err)
{
    struct gguf_string model, pre = {"default", 7};
    if (!gguf_get_string(gguf, "tokenizer.ggml.model", &model))
        return ps_error_set(err, PS_ERR_FORMAT, "tokenizer.ggml.model: missing");
    vocab->bos = vocab->eos = vocab->unknown = -1;
    if (string_is(model, "no_vocab") || string_is(model, "none"))
        return PS_OK;
    if (string_is(model, "llama")) {
        vocab->kind = VOCAB_SPM;
        vocab->bos = 1;
        vocab->eos = 2;
        vocab->unknown = 0;
        vocab->adds_bos = true;
        vocab->adds_space = true;
        gguf_get_bool(gguf, "tokenizer.ggml.add_space_prefix", &vocab->adds_space);
        return PS_OK;
    }
    vocab->kind = VOCAB_BPE;
    if (string_is(model, "gemma4")) {
        pre = (struct gguf_string){"gemma4", 6};
    } else if (string_is(model, "gpt2")) {
        vocab->bos = vocab->eos = 11;
        struct gguf_string name;
        if (gguf_get_string(gguf, "tokenizer.ggml.pre", &name) && name.length > 0)
            pre = name;
    } else {
        return ps_error_set(
            err, PS_ERR_UNSUPPORTED,
            "tokenizer.ggml.model: '%.*s' is not handled: these are: gpt2, llama, gemma4, no_vocab, none",
            model.length < 60 ? (int)model.length : 60, model.data);
    }
    enum ps_status status = find_pre_type(vocab, pre, err);
    if (status != PS_OK)
        return status;
    vocab->adds_bos = vocab->pre_type->adds_bos;
    if (vocab->pre_type->no_default_bos)
        vocab->bos = -1;
    return PS_OK;
}

static enum ps_status load_special(struct vocab *vocab, const struct gguf *gguf, struct ps_error *err)
{
    const struct {
        const char *key;
        int32_t *id;
    } ids[] = {{"tokenizer.ggml.bos_token_id", &vocab->bos},
               {"tokenizer.ggml.eos_token_id", &vocab->eos},
               {"tokenizer.ggml.unknown_token_id", &vocab->unknown}};
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        int32_t otherwise = *ids[i].id < (int32_t)vocab->n_tokens ? *ids[i].id : -1;
        *ids[i].id = vocab_id_of_key(vocab, gguf, ids[i].key, otherwise);
    }
    gguf_get_bool(gguf, "tokenizer.ggml.add_bos_token", &vocab->adds_bos);
    gguf_get_bool(gguf, "tokenizer.ggml.add_eos_token", &vocab->adds_eos);
    if (vocab->pre_type && vocab->pre_type->always_bos)
        vocab->adds_bos = true;
    if (vocab->adds_bos && vocab->bos < 0)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "tokenizer.ggml.bos_token_id: missing, but a text starts with it");
    if (vocab->adds_eos && vocab->eos < 0)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "tokenizer.ggml.eos_token_id: missing, but a text ends with it");
    vocab_mark_special(vocab, gguf);
    return vocab_index_special(vocab) ? PS_OK : out_of_memory(err);
}

static enum ps_status load(struct vocab *vocab, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status = choose_model(vocab, gguf, err);
    if (status == PS_OK && vocab->kind == VOCAB_NONE)
        return load_no_text(vocab, gguf);
    if (status == PS_OK)
        status = load_texts(vocab, gguf, err);
    if (status == PS_OK)
        status = load_attributes(vocab, gguf, err);
    if (status == PS_OK && vocab->kind == VOCAB_SPM)
        status = load_scores(vocab, gguf, err);
    if (status == PS_OK && vocab->kind == VOCAB_BPE)
        status = load_merges(vocab, gguf, err);
    if (status == PS_OK && vocab->kind == VOCAB_BPE)
        status = pretokenizer_new(&vocab->pretokenizer, vocab->pre_type, err);
    if (status == PS_OK)
        status = load_special(vocab, gguf, err);
    return status;
}

enum ps_status vocab_new(struct vocab **out, const struct gguf *gguf, struct ps_error *err)
{
    *out = NULL;
    struct vocab *vocab = calloc(1, sizeof(*vocab));
    if (!vocab)
        return out_of_memory(err);
    enum ps_status status = load(vocab, gguf, err);
    if (status != PS_OK) {
        vocab_free(vocab);
        return status;
    }
    *out = vocab;
    return PS_OK;
}

void vocab_free(struct vocab *vocab)
{
    if (!vocab)
        return;
    pretokenizer_free(vocab->pretokenizer);
    slot_table_deinit(&vocab->ids);
    slot_table_deinit(&vocab->merge_ranks);
    free(vocab->offset);
    free(vocab->attributes);
    free(vocab->special);
    free(vocab->by_text);
    free(vocab);
}

/* --- answers --- */

bool vocab_has_text(const struct vocab *vocab)
{
    return vocab->kind != VOCAB_NONE;
}

uint32_t vocab_size(const struct vocab *vocab)
{
    return vocab->n_tokens;
}

uint64_t vocab_memory(const struct vocab *vocab)
{
    uint64_t bytes = sizeof(*vocab);
    if (vocab->kind == VOCAB_NONE)
        return bytes;
    bytes += vocab->n_tokens * (sizeof(*vocab->offset) + sizeof(*vocab->attributes));
    bytes += slot_table_memory(vocab->n_tokens);
    bytes += vocab->n_special * (sizeof(*vocab->special) + sizeof(*vocab->by_text));
    if (vocab->merges)
        bytes += slot_table_memory(vocab->merges->count);
    if (vocab->pretokenizer)
        bytes += pretokenizer_memory(vocab->pretokenizer);
    return bytes;
}

int32_t vocab_bos(const struct vocab *vocab)
{
    return vocab->bos;
}

int32_t vocab_eos(const struct vocab *vocab)
{
    return vocab->eos;
}

bool vocab_adds_bos(const struct vocab *vocab)
{
    return vocab->adds_bos;
}

static bool has_attributes(const struct vocab *vocab, int32_t id)
{
    return vocab->kind != VOCAB_NONE && id >= 0 && (uint32_t)id < vocab->n_tokens;
}

bool vocab_is_end(const struct vocab *vocab, int32_t id)
{
    return has_attributes(vocab, id) && vocab->attributes[id] & TOKEN_ENDS;
}

/* --- text to tokens --- */

char *escape_spaces(const char *text, size_t length, bool prefix, size_t *escaped_length)
{
    size_t n_spaces = prefix;
    for (size_t i = 0; i < length; i++)
        n_spaces += text[i] == ' ';
    char *escaped = malloc(length + n_spaces * WORD_SPACE_LENGTH + 1);
    if (!escaped)
        return NULL;
    char *to = escaped;
    if (prefix)
        to = (char *)mempcpy(to, word_space, WORD_SPACE_LENGTH);
    for (size_t i = 0; i < length; i++) {
        if (text[i] == ' ')
            to = (char *)mempcpy(to, word_space, WORD_SPACE_LENGTH);
        else
            *to++ = text[i];
    }
    *escaped_length = (size_t)(to - escaped);
    return escaped;
}

enum ps_status vocab_encode(struct vocab *vocab, const char *text, size_t length, bool add_special,
                            bool parse_special, int32_t **ids, size_t *n_ids, struct ps_error *err)
{
    *ids = NULL;
    *n_ids = 0;
    if (vocab->kind == VOCAB_NONE)
        return ps_error_set(err, PS_ERR_UNSUPPORTED,
                            "this model has no vocabulary to encode text with: give token ids");
    if (length > MAX_TEXT)
        return ps_error_set(err, PS_ERR_ARGUMENT, "text of %zu bytes: at most %d can be encoded at once",
                            length, MAX_TEXT);

    struct id_list list = {0};
    struct fragment *fragments;
    enum ps_status status = vocab_split_special(vocab, text, length, parse_special, &fragments, err);
    if (status != PS_OK)
        return status;
    bool ok = id_list_add(&list, -1); /* an empty text gives a pointer to free, too */
    list.count = 0;
    if (ok && add_special && vocab->adds_bos)
        ok = id_list_add(&list, vocab->bos);
    if (!ok)
        status = out_of_memory(err);
    else if (vocab->kind == VOCAB_SPM)
        status = spm_encode(vocab, fragments, &list, err);
    else
        status = bpe_encode(vocab, fragments, &list, err);
    free(fragments);
    if (status == PS_OK && add_special && vocab->adds_eos && !id_list_add(&list, vocab->eos))
        status = out_of_memory(err);
    if (status != PS_OK) {
        free(list.ids);
        return status;
    }
    *ids = list.ids;
    *n_ids = list.count;
    return PS_OK;
}

/* --- tokens to text --- */

struct piece_writer {
    char *out;
    size_t size;
    size_t length; /* that is needed; what lies past size is dropped */
};

static void put(struct piece_writer *writer, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++, writer->length++) {
        if (writer->length < writer->size)
            writer->out[writer->length] = bytes[i];
    }
}

static void put_unescaped(struct piece_writer *writer, struct gguf_string text)
{
    for (uint64_t i = 0; i < text.length;) {
        bool space =
            text.length - i >= WORD_SPACE_LENGTH && memcmp(text.data + i, word_space, WORD_SPACE_LENGTH) == 0;
        put(writer, space ? " " : text.data + i, 1);
        i += space ? WORD_SPACE_LENGTH : 1;
    }
}

static void put_alphabet(struct piece_writer *writer, struct gguf_string text)
{
    for (uint64_t i = 0; i < text.length;) {
        uint32_t code_point;
        unsigned n = utf8_decode(text.data + i, text.length - i, &code_point);
        int byte = byte_of_alphabet(code_point);
        char c = (char)byte;
        if (byte >= 0)
            put(writer, &c, 1);
        else /* an added token in plain text */
            put(writer, text.data + i, n);
        i += n;
    }
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* <0xXX> */
static void put_byte(struct piece_writer *writer, struct gguf_string text)
{
    if (text.length < 5 || hex_digit(text.data[3]) < 0 || hex_digit(text.data[4]) < 0)
        return;
    char byte = (char)(hex_digit(text.data[3]) * 16 + hex_digit(text.data[4]));
    put(writer, &byte, 1);
}

size_t vocab_piece(const struct vocab *vocab, int32_t id, bool first, bool show_special, char *out,
                   size_t size)
{
    if (!has_attributes(vocab, id))
        return 0;
    struct piece_writer writer = {out, size, 0};
    struct gguf_string text = vocab_text(vocab, (uint32_t)id);
    uint8_t attributes = vocab->attributes[id];
    if (attributes & (TOKEN_CONTROL | TOKEN_UNKNOWN)) {
        if (show_special)
            put(&writer, text.data, text.length);
    } else if (attributes & TOKEN_USER_DEFINED) {
        put(&writer, text.data, text.length);
    } else if (attributes & TOKEN_NORMAL) {
        bool front = first && vocab->adds_space && text.length >= WORD_SPACE_LENGTH &&
                     memcmp(text.data, word_space, WORD_SPACE_LENGTH) == 0;
        if (front) {
            text.data += WORD_SPACE_LENGTH;
            text.length -= WORD_SPACE_LENGTH;
        }
        if (vocab->kind == VOCAB_SPM || vocab->pre_type->raw_utf8)
            put_unescaped(&writer, text);
        else
            put_alphabet(&writer, text);
    } else if (attributes & TOKEN_BYTE) {
        put_byte(&writer, text);
    }
    return writer.length;
}
