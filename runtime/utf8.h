/* UTF-8 helpers of the tokenizers. Decoding is as lenient as llama.cpp's (src/unicode.cpp), so that any bytes give the same
 * tokens; what goes to the user is checked strictly by utf8_stream (vocab.h). */
#ifndef PENSTOCK_RUNTIME_UTF8_H
#define PENSTOCK_RUNTIME_UTF8_H

#include <stddef.h>
#include <stdint.h>

enum { UTF8_REPLACEMENT = 0xFFFD };

/* Bytes of the sequence that a lead byte announces; 1 for a continuation byte. */
unsigned utf8_sequence_length(unsigned char lead);

/* One code point from bytes[length], length > 0; returns the bytes it takes. Bytes that cannot be read as one give
 * U+FFFD, one byte at a time. Overlong forms and surrogates are let through. */
unsigned utf8_decode(const char *bytes, size_t length, uint32_t *code_point);

/* Writes 1..4 bytes and returns how many; code_point <= 0x10FFFF. */
unsigned utf8_put(uint32_t code_point, char *out);

#endif
