/* SentencePiece BPE ("llama"): neighbours are joined while their text is a token, the highest score first; what is no token in
 * the end is spelled in bytes. */
#include <stdlib.h>
#include <string.h>

#include "runtime/token_merge.h"
#include "runtime/vocab_internal.h"

/* A larger score becomes a smaller rank. */
static uint32_t rank_of_score(float score)
{
    score += 0.0f; /* -0 and 0 are equals */
    uint32_t bits;
    memcpy(&bits, &score, sizeof(bits));
    uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return ~ascending;
}

static bool score_rank(const void *context, const char *text, uint32_t left, uint32_t right, uint32_t *rank)
{
    const struct vocab *vocab = context;
    int32_t id = vocab_find(vocab, text, (size_t)left + right);
    if (id < 0)
        return false;
    *rank = rank_of_score(vocab->scores ? (float)gguf_array_f64(vocab->scores, (uint64_t)id) : 0.0f);
    return true;
}

static bool add_bytes(const struct vocab *vocab, const char *text, size_t length, struct id_list *out)
{
    for (size_t i = 0; i < length; i++) {
        int32_t id = vocab_find_byte(vocab, (unsigned char)text[i]);
        if (id < 0)
            id = vocab_find(vocab, text + i, 1);
        if (id < 0)
            id = vocab->unknown;
        if (id >= 0 && !id_list_add(out, id))
            return false;
    }
    return true;
}

static bool encode_text(const struct vocab *vocab, struct token_merger *merger, const char *text,
                        size_t length, struct id_list *out)
{
    if (length == 0)
        return true;
    if (!token_merger_run(merger, text, length, score_rank, vocab))
        return false;
    for (int32_t i = 0; i >= 0; i = merger->symbols[i].next) {
        const char *symbol = text + merger->symbols[i].start;
        size_t bytes = merger->symbols[i].length;
        int32_t id = vocab_find(vocab, symbol, bytes);
        if (id >= 0 ? !id_list_add(out, id) : !add_bytes(vocab, symbol, bytes, out))
            return false;
    }
    return true;
}

enum ps_status spm_encode(const struct vocab *vocab, const struct fragment *fragments, struct id_list *out,
                          struct ps_error *err)
{
    struct token_merger merger = {0};
    bool ok = true;
    bool after_special = true;
    for (const struct fragment *f = fragments; f && ok; f = f->next < 0 ? NULL : &fragments[f->next]) {
        if (f->token >= 0) {
            ok = id_list_add(out, f->token);
            after_special = true;
            continue;
        }
        size_t length;
        char *text = escape_spaces(f->text, f->length, vocab->adds_space && after_special, &length);
        ok = text && encode_text(vocab, &merger, text, length, out);
        free(text);
        after_special = false;
    }
    token_merger_deinit(&merger);
    return ok ? PS_OK : ps_error_set(err, PS_ERR_NOMEM, "tokenizer: out of memory");
}
