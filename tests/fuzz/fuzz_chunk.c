/* Fuzz target: any bytes as a stored chunk, and any bytes as a chunk to store.
 *
 * With clang: -fsanitize=fuzzer,address,undefined. With FUZZ_REPLAY it has a main of its own, for any compiler:
 *     fuzz_chunk [COUNT]      chunks made here and damaged, that many times (default 1000)
 * Input: codec, stride (2 bytes), chunk size in strides (2 bytes), then the stored chunk. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/chunk_codec.h"

enum { HEAD_BYTES = 5 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* A promise that was broken; the fuzzer reports the input. */
static void require(int holds)
{
    if (!holds)
        abort();
}

static void store_and_restore(struct chunk_decoder *decoder, enum chunk_codec codec, uint32_t stride,
                              const uint8_t *data, uint32_t bytes)
{
    static struct chunk_encoder *encoder;
    if (!encoder)
        encoder = chunk_encoder_new(1);
    require(encoder != NULL);
    uint8_t *stored = malloc(bytes), *back = malloc(bytes);
    require(stored && back);
    uint32_t n = chunk_encode(encoder, codec, stride, data, bytes, stored);
    require(n < bytes);
    if (n > 0)
        require(chunk_decode(decoder, codec, stride, stored, n, back, bytes) &&
                memcmp(back, data, bytes) == 0);
    free(stored);
    free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct chunk_decoder *decoder;
    if (!decoder)
        decoder = chunk_decoder_new();
    require(decoder != NULL);
    if (bytes <= HEAD_BYTES || bytes > CHUNK_BYTES)
        return 0;
    enum chunk_codec codec = CHUNK_ZSTD + data[0] % (CHUNK_N_CODECS - 1);
    uint32_t stride = 1 + (uint32_t)(data[1] | data[2] << 8) % 300;
    uint32_t unpacked = (uint32_t)(data[3] | data[4] << 8) * stride;
    if (!chunk_codec_takes(codec, stride))
        return 0;
    data += HEAD_BYTES;
    bytes -= HEAD_BYTES;
    if (unpacked > 0 && unpacked <= CHUNK_BYTES) {
        uint8_t *out = malloc(unpacked);
        require(out != NULL);
        chunk_decode(decoder, codec, stride, data, (uint32_t)bytes, out, unpacked);
        free(out);
    }
    uint32_t whole = (uint32_t)bytes / stride * stride;
    if (whole > 0)
        store_and_restore(decoder, codec, stride, data, whole);
    return 0;
}

#ifdef FUZZ_REPLAY

/* xorshift64 (Marsaglia 2003) */
static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

int main(int argc, char **argv)
{
    static uint8_t input[CHUNK_BYTES], chunk[CHUNK_BYTES];
    static const uint32_t strides[] = {1, 2, 4, 17, 18, 34, 84, 144, 210};
    long count = argc > 1 ? atol(argv[1]) : 1000;
    uint64_t seed = 88172645463325252ull;
    struct chunk_encoder *encoder = chunk_encoder_new(1);
    require(encoder != NULL);
    for (long i = 0; i < count; i++) {
        uint32_t stride = strides[next_random(&seed) % 9];
        uint32_t n = 1 + (uint32_t)next_random(&seed) % (32768 / stride);
        enum chunk_codec codec = CHUNK_ZSTD + next_random(&seed) % (CHUNK_N_CODECS - 1);
        if (!chunk_codec_takes(codec, stride))
            codec = CHUNK_ZSTD;
        for (uint32_t k = 0; k < n * stride; k++)
            chunk[k] = (uint8_t)(next_random(&seed) >> 20 & 0xff >> k % stride % 8);
        const uint8_t head[HEAD_BYTES] = {(uint8_t)(codec - CHUNK_ZSTD), (uint8_t)(stride - 1), 0, (uint8_t)n,
                                          (uint8_t)(n >> 8)};
        memcpy(input, head, HEAD_BYTES);
        uint32_t stored = chunk_encode(encoder, codec, stride, chunk, n * stride, input + HEAD_BYTES);
        LLVMFuzzerTestOneInput(input, HEAD_BYTES + stored);
        for (uint64_t k = 1 + next_random(&seed) % 4; stored > 0 && k > 0; k--)
            input[HEAD_BYTES + next_random(&seed) % (k % 2 && stored > 32 ? 32 : stored)] =
                (uint8_t)next_random(&seed);
        LLVMFuzzerTestOneInput(input,
                               HEAD_BYTES + stored - (stored > 0 ? next_random(&seed) % 4 * stored / 4 : 0));
    }
    chunk_encoder_free(encoder);
    return 0;
}

#endif
