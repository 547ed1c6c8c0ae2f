/* Chunk codec: regrouping and zstd.
 *
 * Of zstd's frame only what is needed is stored: no magic, size or checksum, as the container knows where a chunk is, how
 * large it is and what it hashes to. */
#define ZSTD_STATIC_LINKING_ONLY /* frames without magic, a decoder whose memory is known */
#include "storage/chunk_codec.h"

#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "storage/chunk_blocks.h"
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

bool chunk_level_valid(int level)
{
    return level >= ZSTD_minCLevel() && level <= ZSTD_maxCLevel();
}

enum {
    LITERALS_CODED = 1, /* ZSTD_ps_enable; before 1.5.1 it was ZSTD_lcm_huffman */
    BLOCK_HEADER_BYTES = 3,
};

struct chunk_encoder {
    ZSTD_CCtx *matching; /* all that zstd has */
    ZSTD_CCtx *coding;   /* only codes bytes, in blocks cut here */
    size_t packed_bytes;
    uint8_t *packed[2]; /* [packed_bytes]: what each made, which may be more than its input */
    uint8_t regrouped[CHUNK_BYTES];
    uint32_t ends[CHUNK_MAX_BLOCKS];
    ZSTD_Sequence blocks[CHUNK_MAX_BLOCKS];
};

static ZSTD_CCtx *context_new(int level)
{
    const struct {
        ZSTD_cParameter parameter;
        int value;
    } parameters[] = {
        {ZSTD_c_compressionLevel, level},
        {ZSTD_c_format, ZSTD_f_zstd1_magicless},
        {ZSTD_c_contentSizeFlag, 0},
        {ZSTD_c_checksumFlag, 0},
        {ZSTD_c_dictIDFlag, 0},
        {ZSTD_c_blockDelimiters, ZSTD_sf_explicitBlockDelimiters},
        /* Negative levels would store literals as they are, but they are nearly all there is to compress. */
        {ZSTD_c_literalCompressionMode, LITERALS_CODED},
    };
    ZSTD_CCtx *context = ZSTD_createCCtx();
    for (size_t i = 0; context && i < sizeof(parameters) / sizeof(parameters[0]); i++) {
        if (ZSTD_isError(ZSTD_CCtx_setParameter(context, parameters[i].parameter, parameters[i].value))) {
            ZSTD_freeCCtx(context);
            context = NULL;
        }
    }
    return context;
}

struct chunk_encoder *chunk_encoder_new(int level)
{
    struct chunk_encoder *encoder = calloc(1, sizeof(*encoder));
    if (!encoder)
        return NULL;
    encoder->packed_bytes = ZSTD_compressBound(CHUNK_BYTES) + CHUNK_MAX_BLOCKS * BLOCK_HEADER_BYTES;
    encoder->packed[0] = malloc(encoder->packed_bytes);
    encoder->packed[1] = malloc(encoder->packed_bytes);
    encoder->matching = context_new(level);
    encoder->coding = context_new(1);
    if (encoder->packed[0] && encoder->packed[1] && encoder->matching && encoder->coding)
        return encoder;
    chunk_encoder_free(encoder);
    return NULL;
}

void chunk_encoder_free(struct chunk_encoder *encoder)
{
    if (!encoder)
        return;
    ZSTD_freeCCtx(encoder->matching);
    ZSTD_freeCCtx(encoder->coding);
    free(encoder->packed[0]);
    free(encoder->packed[1]);
    free(encoder);
}

/* As zstd's error or bytes in packed[1]. */
static size_t encode_blocks(struct chunk_encoder *encoder, const uint8_t *src, uint32_t bytes,
                            uint32_t row_bytes)
{
    uint32_t n = chunk_blocks(src, bytes, row_bytes, encoder->ends);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t start = i > 0 ? encoder->ends[i - 1] : 0;
        encoder->blocks[i] = (ZSTD_Sequence){.litLength = encoder->ends[i] - start};
    }
    return ZSTD_compressSequences(encoder->coding, encoder->packed[1], encoder->packed_bytes, encoder->blocks,
                                  n, src, bytes);
}

uint32_t chunk_encode(struct chunk_encoder *encoder, enum chunk_codec codec, uint32_t stride,
                      const uint8_t *src, uint32_t bytes, uint8_t *dst)
{
    uint32_t row_bytes = bytes;
    if (CODECS[codec].regroups) {
        regroup(CODECS[codec].how, stride, src, bytes, encoder->regrouped);
        src = encoder->regrouped;
        row_bytes = regroup_row_bytes(CODECS[codec].how, stride, bytes);
    }
    size_t stored = ZSTD_compress2(encoder->matching, encoder->packed[0], encoder->packed_bytes, src, bytes);
    size_t coded = encode_blocks(encoder, src, bytes, row_bytes);
    const uint8_t *best = encoder->packed[0];
    /* In noise of few bits a byte, matches are chance: they cost more than what they replace and decode at half the rate. */
    if (!ZSTD_isError(coded) && (ZSTD_isError(stored) || coded - coded / 64 <= stored)) {
        best = encoder->packed[1];
        stored = coded;
    }
    if (ZSTD_isError(stored) || stored >= bytes)
        return 0;
    memcpy(dst, best, stored);
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
