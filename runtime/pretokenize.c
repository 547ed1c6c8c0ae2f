/* Pre-tokenizing: the text is made valid UTF-8, then each pattern cuts the pieces that the one before has left. */
#include "runtime/pretokenize.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/utf8.h"

struct pretokenizer {
    uint32_t n_patterns;
    struct {
        pcre2_code *code;
        bool groups_digits;
    } pattern[PRE_MAX_PATTERNS];
    pcre2_match_data *match;
    pcre2_match_context *limits;
    uint64_t memory; /* bytes */
};

/* Characters assigned after Unicode 14 (the oldest in PCRE2 releases still in use) and up to 15.1 (llama.cpp's tables):
 * the patterns see a stand-in of the same category and the same length in UTF-8. Surrogates get a private-use one,
 * since PCRE2 must not see them. The ranges are sorted. */
static const struct stand_in {
    uint32_t first, last, as;
} stand_ins[] = {
    {0xCF3, 0xCF3, 0xCBC},       {0xECE, 0xECE, 0xECD},       {0x2FFC, 0x2FFF, 0x2FFB},
    {0x31EF, 0x31EF, 0x31E3},    {0xD800, 0xDFFF, 0xE000},    {0x10EFD, 0x10EFF, 0x101FD},
    {0x1123F, 0x11240, 0x10000}, {0x11241, 0x11241, 0x101FD}, {0x11B00, 0x11B09, 0x10100},
    {0x11F00, 0x11F01, 0x101FD}, {0x11F02, 0x11F02, 0x10000}, {0x11F03, 0x11F03, 0x101FD},
    {0x11F04, 0x11F10, 0x10000}, {0x11F12, 0x11F33, 0x10000}, {0x11F34, 0x11F3A, 0x101FD},
    {0x11F3E, 0x11F42, 0x101FD}, {0x11F43, 0x11F4F, 0x10100}, {0x11F50, 0x11F59, 0x10107},
    {0x1342F, 0x1342F, 0x10000}, {0x13440, 0x13440, 0x101FD}, {0x13441, 0x13446, 0x10000},
    {0x13447, 0x13455, 0x101FD}, {0x1B132, 0x1B132, 0x10000}, {0x1B155, 0x1B155, 0x10000},
    {0x1D2C0, 0x1D2D3, 0x10107}, {0x1DF25, 0x1DF2A, 0x10000}, {0x1E030, 0x1E06D, 0x10000},
    {0x1E08F, 0x1E08F, 0x101FD}, {0x1E4D0, 0x1E4EB, 0x10000}, {0x1E4EC, 0x1E4EF, 0x101FD},
    {0x1E4F0, 0x1E4F9, 0x10107}, {0x1F6DC, 0x1F6DC, 0x1F600}, {0x1F774, 0x1F776, 0x1F600},
    {0x1F77B, 0x1F77F, 0x1F600}, {0x1F7D9, 0x1F7D9, 0x1F600}, {0x1FA75, 0x1FA77, 0x1F600},
    {0x1FA87, 0x1FA88, 0x1F600}, {0x1FAAD, 0x1FAAF, 0x1F600}, {0x1FABB, 0x1FABD, 0x1F600},
    {0x1FABF, 0x1FABF, 0x1F600}, {0x1FACE, 0x1FACF, 0x1F600}, {0x1FADA, 0x1FADB, 0x1F600},
    {0x1FAE8, 0x1FAE8, 0x1F600}, {0x1FAF7, 0x1FAF8, 0x1F600}, {0x2B739, 0x2B739, 0x2A700},
    {0x2EBF0, 0x2EE5D, 0x10000}, {0x31350, 0x323AF, 0x10000},
};

static uint32_t stand_in_for(uint32_t code_point)
{
    size_t low = 0, high = sizeof(stand_ins) / sizeof(stand_ins[0]);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code_point > stand_ins[middle].last)
            low = middle + 1;
        else if (code_point < stand_ins[middle].first)
            high = middle;
        else
            return stand_ins[middle].as;
    }
    return code_point;
}

static enum ps_status out_of_memory(struct ps_error *err)
{
    return ps_error_set(err, PS_ERR_NOMEM, "pre-tokenizer: out of memory");
}

static enum ps_status compile(struct pretokenizer *pre, const struct pre_type *type, const char *pattern,
                              struct ps_error *err)
{
    int error;
    PCRE2_SIZE offset;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_DOLLAR_ENDONLY, &error, &offset, NULL);
    if (!code) {
        PCRE2_UCHAR message[128] = "";
        pcre2_get_error_message(error, message, sizeof(message));
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "pre-tokenizer '%s': PCRE2 refuses its pattern: %s",
                            type->names[0], (const char *)message);
    }
    uint32_t at = pre->n_patterns++;
    pre->pattern[at].code = code;
    pre->pattern[at].groups_digits = strcmp(pattern, PRE_DIGIT_GROUPS) == 0;
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* where it cannot be had, matching is only slower */

    size_t size = 0;
    pcre2_pattern_info(code, PCRE2_INFO_SIZE, &size);
    pre->memory += size;
    size = 0;
    pcre2_pattern_info(code, PCRE2_INFO_JITSIZE, &size);
    pre->memory += size;
    return PS_OK;
}

enum ps_status pretokenizer_new(struct pretokenizer **out, const struct pre_type *type, struct ps_error *err)
{
    *out = NULL;
    struct pretokenizer *pre = calloc(1, sizeof(*pre));
    if (!pre)
        return out_of_memory(err);
    enum ps_status status = PS_OK;
    pre->memory = sizeof(*pre);
    for (uint32_t i = 0; type->patterns[i] && status == PS_OK; i++)
        status = compile(pre, type, type->patterns[i], err);
    if (status == PS_OK) {
        pre->match = pcre2_match_data_create(3, NULL);
        pre->limits = pcre2_match_context_create(NULL);
        if (!pre->match || !pre->limits)
            status = out_of_memory(err);
        else /* the patterns are linear in the text, which may be long */
            pcre2_set_match_limit(pre->limits, UINT32_MAX);
    }
    if (status != PS_OK) {
        pretokenizer_free(pre);
        return status;
    }
    *out = pre;
    return PS_OK;
}

void pretokenizer_free(struct pretokenizer *pre)
{
    if (!pre)
        return;
    for (uint32_t i = 0; i < pre->n_patterns; i++)
        pcre2_code_free(pre->pattern[i].code);
    pcre2_match_data_free(pre->match);
    pcre2_match_context_free(pre->limits);
    free(pre);
}

uint64_t pretokenizer_memory(const struct pretokenizer *pre)
{
    return pre->memory;
}

static bool add_word(struct word_list *list, uint32_t end)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 256;
        uint32_t *ends = realloc(list->ends, capacity * sizeof(*ends));
        if (!ends)
            return false;
        list->ends = ends;
        list->capacity = capacity;
    }
    list->ends[list->count++] = end;
    return true;
}

/* A run of digits in groups of three from the right; the group at the left keeps what stands before the run. */
static bool add_digit_groups(struct word_list *list, const char *text, uint32_t begin, uint32_t end)
{
    uint32_t n_digits = 0;
    for (uint32_t at = begin; at < end; at++)
        n_digits += ((unsigned char)text[at] & 0xC0) != 0x80;
    uint32_t at = begin;
    for (uint32_t left = n_digits; left > 0; left--) {
        if (left < n_digits && left % 3 == 0 && !add_word(list, at))
            return false;
        at += utf8_sequence_length((unsigned char)text[at]);
    }
    return add_word(list, end);
}

/* Cuts the piece [begin, end) into matches and what lies between them. */
static enum ps_status cut(struct pretokenizer *pre, uint32_t pattern, struct word_text *text, uint32_t begin,
                          uint32_t end, struct ps_error *err)
{
    const char *piece = text->subject + begin; /* look-around must not see past the piece */
    uint32_t length = end - begin, at = 0;
    while (at < length) {
        int found = pcre2_match(pre->pattern[pattern].code, (PCRE2_SPTR)piece, length, at, PCRE2_NO_UTF_CHECK,
                                pre->match, pre->limits);
        if (found == PCRE2_ERROR_NOMATCH)
            break;
        if (found < 0)
            return ps_error_set(err, PS_ERR_NOMEM, "pre-tokenizer: matching failed in PCRE2 (error %d)",
                                found);
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(pre->match);
        uint32_t from = (uint32_t)span[0], to = (uint32_t)span[1];
        bool ok = from == at || add_word(&text->words, begin + from);
        if (pre->pattern[pattern].groups_digits)
            ok = ok && add_digit_groups(&text->words, text->subject, begin + (uint32_t)span[2], begin + to);
        else
            ok = ok && add_word(&text->words, begin + to);
        if (!ok)
            return out_of_memory(err);
        at = to;
    }
    if (at < length && !add_word(&text->words, end))
        return out_of_memory(err);
    return PS_OK;
}

/* Fills text and subject. */
static bool normalize(const char *bytes, size_t length, struct word_text *out)
{
    size_t capacity = 3 * length; /* a stray byte becomes U+FFFD */
    if (capacity > out->capacity) {
        char *text = realloc(out->text, capacity);
        if (text)
            out->text = text;
        char *subject = realloc(out->subject, capacity);
        if (subject)
            out->subject = subject;
        if (!text || !subject)
            return false;
        out->capacity = capacity;
    }
    size_t at = 0, to = 0;
    while (at < length) {
        uint32_t code_point;
        at += utf8_decode(bytes + at, length - at, &code_point);
        utf8_put(stand_in_for(code_point), out->subject + to);
        to += utf8_put(code_point, out->text + to);
    }
    out->length = to;
    return true;
}

enum ps_status pretokenizer_split(struct pretokenizer *pre, const char *bytes, size_t length,
                                  struct word_text *out, struct ps_error *err)
{
    out->length = 0;
    out->words.count = 0;
    if (length == 0)
        return PS_OK;
    if (!normalize(bytes, length, out) || !add_word(&out->words, (uint32_t)out->length))
        return out_of_memory(err);
    for (uint32_t p = 0; p < pre->n_patterns; p++) {
        struct word_list pieces = out->words;
        out->words = out->previous;
        out->previous = pieces;
        out->words.count = 0;
        uint32_t begin = 0;
        for (size_t i = 0; i < pieces.count; i++) {
            enum ps_status status = cut(pre, p, out, begin, pieces.ends[i], err);
            if (status != PS_OK)
                return status;
            begin = pieces.ends[i];
        }
    }
    return PS_OK;
}

void word_text_deinit(struct word_text *text)
{
    free(text->text);
    free(text->subject);
    free(text->words.ends);
    free(text->previous.ends);
    *text = (struct word_text){0};
}
