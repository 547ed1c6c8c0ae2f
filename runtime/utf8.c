/* UTF-8: lenient decoding for the tokenizers, strict reassembly of pieces for output. */
#include "runtime/utf8.h"

#include <stdbool.h>
#include <string.h>

#include "runtime/vocab.h"

unsigned utf8_sequence_length(unsigned char lead)
{
    if (lead < 0xC0)
        return 1;
    return lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

unsigned utf8_decode(const char *bytes, size_t length, uint32_t *code_point)
{
    unsigned char lead = (unsigned char)bytes[0];
    unsigned n = utf8_sequence_length(lead);
    *code_point = lead;
    if (lead < 0x80)
        return 1;
    *code_point = UTF8_REPLACEMENT;
    if (lead < 0xC0 || lead >= 0xF8 || n > length)
        return 1;

    uint32_t value = lead & (0x7Fu >> n);
    for (unsigned i = 1; i < n; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        if ((byte & 0xC0) != 0x80)
            return 1;
        value = value << 6 | (byte & 0x3F);
    }
    if (value > 0x10FFFF)
        return 1;
    *code_point = value;
    return n;
}

unsigned utf8_put(uint32_t code_point, char *out)
{
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    unsigned n = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    for (unsigned i = n - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (code_point & 0x3F));
        code_point >>= 6;
    }
    out[0] = (char)((0xF00u >> n & 0xFF) | code_point);
    return n;
}

static size_t put_replacement(char *out)
{
    memcpy(out, "\xEF\xBF\xBD", 3);
    return 3;
}

/* Whether byte may follow the pending ones (Unicode standard, table 3-7: well-formed sequences). */
static bool may_continue(const struct utf8_stream *stream, unsigned char byte)
{
    if ((byte & 0xC0) != 0x80)
        return false;
    if (stream->n_pending > 1)
        return true;
    switch (stream->pending[0]) {
    case 0xE0:
        return byte >= 0xA0;
    case 0xED:
        return byte < 0xA0;
    case 0xF0:
        return byte >= 0x90;
    case 0xF4:
        return byte < 0x90;
    default:
        return true;
    }
}

size_t utf8_stream_push(struct utf8_stream *stream, const char *bytes, size_t length, char *out)
{
    size_t written = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        if (stream->n_pending > 0 && !may_continue(stream, byte)) {
            written += put_replacement(out + written);
            stream->n_pending = 0;
        }
        if (stream->n_pending == 0) {
            if (byte < 0x80) {
                out[written++] = (char)byte;
                continue;
            }
            if (byte < 0xC2 || byte > 0xF4) {
                written += put_replacement(out + written);
                continue;
            }
        }
        stream->pending[stream->n_pending++] = byte;
        if (stream->n_pending == utf8_sequence_length(stream->pending[0])) {
            memcpy(out + written, stream->pending, stream->n_pending);
            written += stream->n_pending;
            stream->n_pending = 0;
        }
    }
    return written;
}

size_t utf8_stream_finish(struct utf8_stream *stream, char *out)
{
    if (stream->n_pending == 0)
        return 0;
    stream->n_pending = 0;
    return put_replacement(out);
}
