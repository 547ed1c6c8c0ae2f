/* Chunk codec: regrouping and zstd.
 *
 * Of zstd's frame only what is needed is stored: no magic, size or checksum, as the container knows where a chunk is, how
 * large it is and what it hashes to. */
#define ZSTD_STATIC_LINKING_ONLY /* frames without magic, a decoder whose memory is known */
#include "storage/chunk_codec.h"

#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "storage/regroup.h"

static const struct {
    const char *name;
    bool regroups;
    enum regrouping how;
} CODECS[CHUNK_N_CODECS] = {
    [CHUNK_RAW] = {"raw", false, REGROUP_BYTES},
    [CHUNK_ZSTD] = {"zstd", false, REGROUP_BYTES},
    [CHUNK_ZSTD_BYTES] = {"zstd-bytes", true, REGROUP_BYTES},
    [CHUNK_ZSTD_FLOATS] = {"zstd-floats", true, REGROUP_FLOATS},
    [CHUNK_ZSTD_BITS] = {"zstd-bits", true, REGROUP_BITS},
};

const char *chunk_codec_name(uint32_t codec)
{
    return codec < CHUNK_N_CODECS ? CODECS[codec].name : NULL;
}

bool chunk_codec_takes(enum chunk_codec codec, uint32_t stride)
{
    if (codec >= CHUNK_N_CODECS || stride == 0 || stride > CHUNK_BYTES)
        return false;
    return !CODECS[codec].regroups || regroup_takes(CODECS[codec].how, stride);
}

struct chunk_encoder {
    ZSTD_CCtx *zstd;
    uint8_t *packed; /* [packed_bytes]: zstd's output, which may be more than its input */
    size_t packed_bytes;
    uint8_t regrouped[CHUNK_BYTES];
};

struct chunk_encoder *chunk_encoder_new(int level)
{
    static const struct {
        ZSTD_cParameter parameter;
        int value;
    } frame[] = {
        {ZSTD_c_format, ZSTD_f_zstd1_magicless},
        {ZSTD_c_contentSizeFlag, 0},
        {ZSTD_c_checksumFlag, 0},
        {ZSTD_c_dictIDFlag, 0},
        /* Negative levels would store literals as they are, but they are all there is to compress. */
        {ZSTD_c_literalCompressionMode, ZSTD_ps_enable},
    };
    struct chunk_encoder *encoder = calloc(1, sizeof(*encoder));
    if (!encoder)
        return NULL;
    encoder->packed_bytes = ZSTD_compressBound(CHUNK_BYTES);
    encoder->packed = malloc(encoder->packed_bytes);
    encoder->zstd = ZSTD_createCCtx();
    bool ok = encoder->packed && encoder->zstd &&
              !ZSTD_isError(ZSTD_CCtx_setParameter(encoder->zstd, ZSTD_c_compressionLevel, level));
    for (size_t i = 0; ok && i < sizeof(frame) / sizeof(frame[0]); i++)
        ok = !ZSTD_isError(ZSTD_CCtx_setParameter(encoder->zstd, frame[i].parameter, frame[i].value));
    if (ok)
        return encoder;
    chunk_encoder_free(encoder);
    return NULL;
}

void chunk_encoder_free(struct chunk_encoder *encoder)
{
    if (!encoder)
        return;
    ZSTD_freeCCtx(encoder->zstd);
    free(encoder->packed);
    free(encoder);
}

uint32_t chunk_encode(struct chunk_encoder *encoder, enum chunk_codec codec, uint32_t stride,
                      const uint8_t *src, uint32_t bytes, uint8_t *dst)
{
    if (CODECS[codec].regroups) {
        regroup(CODECS[codec].how, stride, src, bytes, encoder->regrouped);
        src = encoder->regrouped;
    }
    size_t stored = ZSTD_compress2(encoder->zstd, encoder->packed, encoder->packed_bytes, src, bytes);
    if (ZSTD_isError(stored) || stored >= bytes)
        return 0;
    memcpy(dst, encoder->packed, stored);
    return (uint32_t)stored;
}

/* Followed by zstd's workspace. */
struct chunk_decoder {
    ZSTD_DCtx *zstd; /* in the workspace */
    _Alignas(64) uint8_t unpacked[CHUNK_BYTES];
};

struct chunk_decoder *chunk_decoder_new(void)
{
    struct chunk_decoder *decoder = aligned_alloc(_Alignof(struct chunk_decoder), chunk_decoder_memory());
    if (!decoder)
        return NULL;
    /* Takes no other memory later on: what a static one lacks is an error. */
    decoder->zstd = ZSTD_initStaticDCtx(decoder + 1, ZSTD_estimateDCtxSize());
    if (decoder->zstd &&
        !ZSTD_isError(ZSTD_DCtx_setParameter(decoder->zstd, ZSTD_d_format, ZSTD_f_zstd1_magicless)))
        return decoder;
    free(decoder);
    return NULL;
}

void chunk_decoder_free(struct chunk_decoder *decoder)
{
    free(decoder);
}

uint64_t chunk_decoder_memory(void)
{
    uint64_t unit = _Alignof(struct chunk_decoder);
    return (sizeof(struct chunk_decoder) + ZSTD_estimateDCtxSize() + unit - 1) / unit * unit;
}

bool chunk_decode(struct chunk_decoder *decoder, enum chunk_codec codec, uint32_t stride, const uint8_t *src,
                  uint32_t stored, uint8_t *dst, uint32_t bytes)
{
    if (bytes > CHUNK_BYTES ||
        ZSTD_decompressDCtx(decoder->zstd, decoder->unpacked, bytes, src, stored) != bytes)
        return false;
    if (CODECS[codec].regroups)
        regroup_undo(CODECS[codec].how, stride, decoder->unpacked, bytes, dst);
    else
        memcpy(dst, decoder->unpacked, bytes);
    return true;
}
