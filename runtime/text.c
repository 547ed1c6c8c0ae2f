/* The public text calls: tokenizing, and turning tokens back into whole characters. */
#include <stdlib.h>

#include "runtime/model.h"

struct ps_detokenizer {
    struct ps_model *model;
    struct utf8_stream stream;
    char *piece, *text; /* grown as needed */
    size_t piece_size;
};

enum ps_status ps_tokenize(struct ps_model *model, const char *text, size_t length, bool add_special,
                           bool parse_special, int32_t **tokens, size_t *n_tokens, struct ps_error *err)
{
    return vocab_encode(model->vocab, text, length, add_special, parse_special, tokens, n_tokens, err);
}

bool ps_token_is_end(const struct ps_model *model, int32_t token)
{
    return vocab_is_end(model->vocab, token);
}

enum { TEXT_FACTOR = 3, TEXT_EXTRA = 4 * TEXT_FACTOR + 1 }; /* what utf8_stream_push may write, and the 0 */

static bool reserve(struct ps_detokenizer *d, size_t size)
{
    if (size <= d->piece_size)
        return true;
    char *piece = realloc(d->piece, size);
    if (piece)
        d->piece = piece;
    char *text = piece ? realloc(d->text, TEXT_FACTOR * size + TEXT_EXTRA) : NULL;
    if (!text)
        return false;
    d->text = text;
    d->piece_size = size;
    return true;
}

enum ps_status ps_detokenizer_new(struct ps_detokenizer **out, struct ps_model *model, struct ps_error *err)
{
    enum { USUAL_PIECE = 128 };
    *out = NULL;
    struct ps_detokenizer *d = calloc(1, sizeof(*d));
    if (!d || !reserve(d, USUAL_PIECE)) {
        ps_detokenizer_free(d);
        return ps_error_set(err, PS_ERR_NOMEM, "text: out of memory");
    }
    d->model = model;
    *out = d;
    return PS_OK;
}

void ps_detokenizer_free(struct ps_detokenizer *d)
{
    if (!d)
        return;
    free(d->piece);
    free(d->text);
    free(d);
}

const char *ps_detokenizer_push(struct ps_detokenizer *d, int32_t token)
{
    size_t n = 0;
    if (token < 0) {
        n = utf8_stream_finish(&d->stream, d->text);
    } else {
        size_t length = vocab_piece(d->model->vocab, token, false, false, d->piece, d->piece_size);
        if (length > d->piece_size && reserve(d, length))
            length = vocab_piece(d->model->vocab, token, false, false, d->piece, d->piece_size);
        if (length <= d->piece_size)
            n = utf8_stream_push(&d->stream, d->piece, length, d->text);
    }
    d->text[n] = 0;
    return d->text;
}
