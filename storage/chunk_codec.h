/* How a chunk of weights is stored in fewer bytes: its bits are regrouped so that like ones lie together, then zstd packs them.
 *
 * Weights hardly repeat, so nearly all that can be saved is in numbers whose values are unevenly likely, above all exponents of
 * 16-bit floats: apart from the mantissas, which are noise, they take a third of their space. */
#ifndef PENSTOCK_STORAGE_CHUNK_CODEC_H
#define PENSTOCK_STORAGE_CHUNK_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CHUNK_BYTES = 256 << 10
}; /* of a chunk unpacked, at most: two blocks of zstd's, and fits a second-level cache */

/* Numbers stand in files: never change one. */
enum chunk_codec {
    CHUNK_RAW = 0,
    CHUNK_ZSTD = 1,       /* bytes as they are */
    CHUNK_ZSTD_BYTES = 2, /* all first bytes of the strides, all second ones, ... */
    CHUNK_ZSTD_FLOATS =
        3, /* 16-bit words turned left by one bit, then as BYTES: the exponent in one byte; strides 2 and 4 */
    CHUNK_ZSTD_BITS = 4, /* bit planes of the stride's 16-bit words; strides are even */
    CHUNK_N_CODECS,
};

const char *chunk_codec_name(uint32_t codec); /* "raw", "zstd", "zstd-bytes", ...; NULL: unknown */
/* Whether it can be had for a stride (bytes, 1 .. CHUNK_BYTES). */
bool chunk_codec_takes(enum chunk_codec codec, uint32_t stride);

bool chunk_level_valid(int level); /* of zstd */

/* One per thread. */
struct chunk_encoder;
struct chunk_encoder *chunk_encoder_new(int level); /* a valid one; NULL: no memory */
void chunk_encoder_free(struct chunk_encoder *encoder);
/* src: bytes <= CHUNK_BYTES, whole strides. dst: room for bytes. Returns the stored size, less than bytes; 0: it does not
 * shrink. Not CHUNK_RAW. The same input gives the same output. */
uint32_t chunk_encode(struct chunk_encoder *encoder, enum chunk_codec codec, uint32_t stride,
                      const uint8_t *src, uint32_t bytes, uint8_t *dst);

struct chunk_decoder;
struct chunk_decoder *chunk_decoder_new(void); /* NULL: no memory */
void chunk_decoder_free(struct chunk_decoder *decoder);
uint64_t chunk_decoder_memory(void); /* bytes that one takes */
/* All of src is read before dst[bytes] is written: they may overlap. False: src is damaged. */
bool chunk_decode(struct chunk_decoder *decoder, enum chunk_codec codec, uint32_t stride, const uint8_t *src,
                  uint32_t stored, uint8_t *dst, uint32_t bytes);

#endif
