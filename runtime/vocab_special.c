/* Special tokens: which they are, which of them end a generation, and finding them in a text. The rules and the names are
 * llama.cpp v0.5.0's (src/llama-vocab.cpp: load, tokenizer_st_partition), for GGUF files do not mark these tokens reliably. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/vocab_internal.h"

static int32_t find_name(const struct vocab *vocab, const char *name)
{
    return vocab_find(vocab, name, strlen(name));
}

static bool ends(const struct vocab *vocab, const char *name)
{
    int32_t id = find_name(vocab, name);
    return id >= 0 && vocab->attributes[id] & TOKEN_ENDS;
}

static void set_type(struct vocab *vocab, const char *name, unsigned type, bool ends_generation)
{
    int32_t id = find_name(vocab, name);
    if (id >= 0)
        vocab->attributes[id] = (uint8_t)(type | (ends_generation ? TOKEN_ENDS : 0));
}

static const char *const end_names[] = {"<|eot_id|>",
                                        "<|im_end|>",
                                        "<|end|>",
                                        "<|return|>",
                                        "<|call|>",
                                        "<|flush|>",
                                        "<|calls|>",
                                        "<end_of_turn>",
                                        "<|endoftext|>",
                                        "</s>",
                                        "<|eom_id|>",
                                        "<EOT>",
                                        "_<EOT>",
                                        "[EOT]",
                                        "[EOS]",
                                        "<|end_of_text|>",
                                        "<end_of_utterance>",
                                        "<eos>",
                                        "<turn|>",
                                        "<|tool_response>",
                                        "<｜end▁of▁sentence｜>",
                                        "[e~["};

/* Fill-in-the-middle tokens are control tokens; the last three end a generation. */
static const struct fim_token {
    const char *key, *old_key;
    bool ends;
    const char *names[9];
} fim_tokens[] = {
    {"tokenizer.ggml.fim_pre_token_id",
     "tokenizer.ggml.prefix_token_id",
     false,
     {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
      "<|code_prefix|>", "<|prefix|>"}},
    {"tokenizer.ggml.fim_suf_token_id",
     "tokenizer.ggml.suffix_token_id",
     false,
     {"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
      "<|code_suffix|>", "<|suffix|>"}},
    {"tokenizer.ggml.fim_mid_token_id",
     "tokenizer.ggml.middle_token_id",
     false,
     {"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
      "<|middle|>"}},
    {"tokenizer.ggml.fim_pad_token_id",
     NULL,
     true,
     {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}},
    {"tokenizer.ggml.fim_rep_token_id",
     NULL,
     true,
     {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}},
    {"tokenizer.ggml.fim_sep_token_id", NULL, true, {"<|file_sep|>"}},
};

static void mark_fim(struct vocab *vocab, const struct gguf *gguf, const struct fim_token *fim)
{
    int32_t id = vocab_id_of_key(vocab, gguf, fim->key, -1);
    if (fim->old_key)
        id = vocab_id_of_key(vocab, gguf, fim->old_key, id);
    for (int i = 0; fim->names[i] && id < 0; i++) {
        id = find_name(vocab, fim->names[i]);
        if (id >= 0)
            vocab->attributes[id] |= TOKEN_CONTROL;
    }
    if (id >= 0 && fim->ends)
        vocab->attributes[id] |= TOKEN_ENDS;
}

static bool is_phi3(const struct gguf *gguf)
{
    struct gguf_string name;
    if (!gguf_get_string(gguf, "general.name", &name))
        return false;
    for (uint64_t i = 0; i + 4 <= name.length; i++) {
        if (strncasecmp(name.data + i, "phi3", 4) == 0)
            return true;
        if (i + 5 <= name.length && strncasecmp(name.data + i, "phi-3", 5) == 0)
            return true;
    }
    return false;
}

/* Phi-3's special tokens swallow the white space that follows, with three exceptions. */
static void mark_phi3(struct vocab *vocab)
{
    for (uint32_t id = 0; id < vocab->n_tokens; id++) {
        if (vocab->attributes[id] & (TOKEN_CONTROL | TOKEN_USER_DEFINED | TOKEN_UNKNOWN))
            vocab->attributes[id] |= TOKEN_STRIPS_RIGHT;
    }
    static const char *const exceptions[] = {"<unk>", "<s>", "<|endoftext|>"};
    for (size_t i = 0; i < sizeof(exceptions) / sizeof(exceptions[0]); i++) {
        int32_t id = find_name(vocab, exceptions[i]);
        if (id >= 0)
            vocab->attributes[id] &= (uint8_t)~TOKEN_STRIPS_RIGHT;
    }
}

void vocab_mark_special(struct vocab *vocab, const struct gguf *gguf)
{
    for (size_t i = 0; i < sizeof(fim_tokens) / sizeof(fim_tokens[0]); i++)
        mark_fim(vocab, gguf, &fim_tokens[i]);
    for (size_t i = 0; i < sizeof(end_names) / sizeof(end_names[0]); i++) {
        int32_t id = find_name(vocab, end_names[i]);
        if (id >= 0)
            vocab->attributes[id] |= TOKEN_ENDS | TOKEN_CONTROL;
    }

    /* o200k_harmony: these are part of the answer's text and stay visible. */
    static const char *const visible[] = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"};
    for (size_t i = 0; i < sizeof(visible) / sizeof(visible[0]); i++)
        set_type(vocab, visible[i], TOKEN_USER_DEFINED, ends(vocab, visible[i]));

    const int32_t by_key[] = {vocab->eos, vocab_id_of_key(vocab, gguf, "tokenizer.ggml.eot_token_id", -1),
                              vocab_id_of_key(vocab, gguf, "tokenizer.ggml.eom_token_id", -1)};
    for (size_t i = 0; i < sizeof(by_key) / sizeof(by_key[0]); i++) {
        if (by_key[i] >= 0)
            vocab->attributes[by_key[i]] |= TOKEN_ENDS;
    }

    /* Where a call or a flush ends the turn, <|end|> only closes a message within it. */
    bool calls = ends(vocab, "<|call|>") || ends(vocab, "<|calls|>");
    if (calls && (ends(vocab, "<|return|>") || ends(vocab, "<|flush|>")) && ends(vocab, "<|end|>"))
        set_type(vocab, "<|end|>", TOKEN_USER_DEFINED, false);
    /* In gemma4 </s> is an HTML tag. */
    if (ends(vocab, "<|tool_response>") && ends(vocab, "</s>"))
        set_type(vocab, "</s>", TOKEN_NORMAL, false);

    if (is_phi3(gguf))
        mark_phi3(vocab);
}

static int by_length(const void *a, const void *b, void *context)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    uint64_t x_length = vocab_text(context, (uint32_t)x).length,
             y_length = vocab_text(context, (uint32_t)y).length;
    if (x_length != y_length)
        return x_length > y_length ? -1 : 1;
    return x < y ? -1 : x > y;
}

static int by_bytes(const void *a, const void *b, void *context)
{
    const struct vocab *vocab = context;
    struct gguf_string x = vocab_text(vocab, (uint32_t)vocab->special[*(const int32_t *)a]);
    struct gguf_string y = vocab_text(vocab, (uint32_t)vocab->special[*(const int32_t *)b]);
    int order = memcmp(x.data, y.data, x.length < y.length ? x.length : y.length);
    if (order != 0 || x.length == y.length)
        return order;
    return x.length < y.length ? -1 : 1;
}

static bool is_special(const struct vocab *vocab, uint32_t id)
{
    return vocab->attributes[id] & (TOKEN_CONTROL | TOKEN_USER_DEFINED | TOKEN_UNKNOWN) &&
           vocab_text(vocab, id).length > 0;
}

bool vocab_index_special(struct vocab *vocab)
{
    uint32_t n = 0;
    for (uint32_t id = 0; id < vocab->n_tokens; id++)
        n += is_special(vocab, id);
    if (n == 0)
        return true;
    vocab->special = malloc(n * sizeof(*vocab->special));
    vocab->by_text = malloc(n * sizeof(*vocab->by_text));
    if (!vocab->special || !vocab->by_text)
        return false;
    vocab->n_special = n;
    n = 0;
    for (uint32_t id = 0; id < vocab->n_tokens; id++) {
        if (!is_special(vocab, id))
            continue;
        unsigned char start = (unsigned char)vocab_text(vocab, id).data[0];
        vocab->special_starts[start / 32] |= 1u << start % 32;
        vocab->by_text[n] = (int32_t)n;
        vocab->special[n++] = (int32_t)id;
    }
    qsort_r(vocab->special, n, sizeof(*vocab->special), by_length, vocab);
    qsort_r(vocab->by_text, n, sizeof(*vocab->by_text), by_bytes, vocab);
    return true;
}

static unsigned byte_at(const struct vocab *vocab, uint32_t index, size_t depth)
{
    return (unsigned char)vocab_text(vocab, (uint32_t)vocab->special[vocab->by_text[index]]).data[depth];
}

/* First index of [low, high) whose byte at depth is >= byte. */
static uint32_t lower_bound(const struct vocab *vocab, uint32_t low, uint32_t high, size_t depth,
                            unsigned byte)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (byte_at(vocab, middle, depth) < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Marks the special tokens that start at text. */
static void mark_present(const struct vocab *vocab, const char *text, size_t length, bool *present)
{
    uint32_t low = 0, high = vocab->n_special;
    for (size_t depth = 0; depth < length; depth++) {
        unsigned byte = (unsigned char)text[depth];
        low = lower_bound(vocab, low, high, depth, byte);
        high = lower_bound(vocab, low, high, depth, byte + 1);
        for (; low < high; low++) { /* a text comes before those that it begins */
            int32_t special = vocab->by_text[low];
            if (vocab_text(vocab, (uint32_t)vocab->special[special]).length > depth + 1)
                break;
            present[special] = true;
        }
        if (low == high)
            return;
    }
}

struct fragment_list {
    struct fragment *items;
    size_t count;
    size_t capacity;
};

/* Adds a fragment behind items[*after], or the first one where after is -1, and moves *after to it. */
static bool add_after(struct fragment_list *list, int32_t *after, struct fragment fragment)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 16;
        struct fragment *items = realloc(list->items, capacity * sizeof(*items));
        if (!items)
            return false;
        list->items = items;
        list->capacity = capacity;
    }
    int32_t index = (int32_t)list->count++;
    fragment.next = -1;
    if (*after >= 0) {
        fragment.next = list->items[*after].next;
        list->items[*after].next = index;
    }
    list->items[index] = fragment;
    *after = index;
    return true;
}

/* Takes every occurrence of a token out of the plain fragment at index. */
static bool split_fragment(struct fragment_list *list, int32_t index, int32_t token,
                           struct gguf_string needle, bool strips_right)
{
    for (;;) {
        struct fragment *f = &list->items[index];
        const char *end = f->text + f->length;
        const char *found = memmem(f->text, f->length, needle.data, needle.length);
        if (!found)
            return true;
        struct fragment special = {.text = found, .length = needle.length, .token = token, .next = f->next};
        if (found == f->text) {
            *f = special;
        } else {
            f->length = (size_t)(found - f->text);
            if (!add_after(list, &index, special))
                return false;
        }
        const char *rest = found + needle.length;
        while (strips_right && rest < end && isspace((unsigned char)*rest))
            rest++;
        if (rest == end)
            return true;
        if (!add_after(list, &index,
                       (struct fragment){.text = rest, .length = (size_t)(end - rest), .token = -1}))
            return false;
    }
}

/* Longest first: each token takes its places in what the longer ones have left. */
static bool split_all(const struct vocab *vocab, bool parse_special, const bool *present,
                      struct fragment_list *list)
{
    for (uint32_t s = 0; s < vocab->n_special; s++) {
        int32_t token = vocab->special[s];
        uint8_t attributes = vocab->attributes[token];
        if (!present[s] || (!parse_special && attributes & (TOKEN_CONTROL | TOKEN_UNKNOWN)))
            continue;
        for (int32_t i = 0; i >= 0;) {
            int32_t next = list->items[i].next;
            if (list->items[i].token < 0 &&
                !split_fragment(list, i, token, vocab_text(vocab, (uint32_t)token),
                                attributes & TOKEN_STRIPS_RIGHT))
                return false;
            i = next;
        }
    }
    return true;
}

enum ps_status vocab_split_special(const struct vocab *vocab, const char *text, size_t length,
                                   bool parse_special, struct fragment **fragments, struct ps_error *err)
{
    *fragments = NULL;
    if (length == 0)
        return PS_OK;
    struct fragment_list list = {0};
    int32_t first = -1;
    bool *present = calloc((size_t)vocab->n_special + 1, sizeof(*present));
    bool ok =
        present && add_after(&list, &first, (struct fragment){.text = text, .length = length, .token = -1});
    for (size_t i = 0; i < length && ok; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (vocab->special_starts[byte / 32] >> byte % 32 & 1)
            mark_present(vocab, text + i, length - i, present);
    }
    ok = ok && split_all(vocab, parse_special, present, &list);
    free(present);
    if (!ok) {
        free(list.items);
        return ps_error_set(err, PS_ERR_NOMEM, "tokenizer: out of memory");
    }
    *fragments = list.items;
    return PS_OK;
}
