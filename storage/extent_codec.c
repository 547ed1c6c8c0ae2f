#include "storage/extent_codec.h"

#include <string.h>
#include <xxhash.h>

#include "storage/io_reader.h"

uint64_t extent_hash(const uint8_t *extent, uint64_t bytes)
{
    return XXH3_64bits(extent, bytes);
}

uint64_t extent_encode(struct chunk_encoder *encoder, const struct packed_layout *layout,
                       const uint8_t *expert, uint8_t *out)
{
    uint8_t *at = out;
    for (struct packed_chunk chunk = {0}; packed_chunk_next(layout, &chunk);) {
        enum chunk_codec codec = layout->codec[chunk.part];
        const uint8_t *src = expert + chunk.at;
        uint8_t *dst = at + sizeof(uint32_t);
        uint32_t size = codec == CHUNK_RAW
                            ? 0
                            : chunk_encode(encoder, codec, layout->stride[chunk.part], src, chunk.bytes, dst);
        if (size == 0) {
            memcpy(dst, src, chunk.bytes);
            size = chunk.bytes | CHUNK_AS_IS;
        }
        memcpy(at, &size, sizeof(size));
        at = dst + (size & ~CHUNK_AS_IS);
    }
    uint64_t bytes = (uint64_t)(at - out), padding = -bytes % IO_ALIGN;
    memset(at, 0, padding);
    return bytes + padding;
}

static bool decode_chunk(struct chunk_decoder *decoder, const struct packed_layout *layout,
                         const struct packed_chunk *chunk, const uint8_t *stored, uint32_t size,
                         uint8_t *expert)
{
    if (!(size & CHUNK_AS_IS))
        return chunk_decode(decoder, layout->codec[chunk->part], layout->stride[chunk->part], stored, size,
                            expert + chunk->at, chunk->bytes);
    memcpy(expert + chunk->at, stored, chunk->bytes);
    return true;
}

bool extent_decode(struct chunk_decoder *decoder, const struct packed_layout *layout, const uint8_t *extent,
                   uint64_t bytes, uint8_t *expert)
{
    uint64_t at = 0;
    for (struct packed_chunk chunk = {0}; packed_chunk_next(layout, &chunk);) {
        uint32_t size;
        if (bytes - at < sizeof(size))
            return false;
        memcpy(&size, extent + at, sizeof(size));
        at += sizeof(size);
        uint32_t stored = size & ~CHUNK_AS_IS;
        bool is_raw = layout->codec[chunk.part] == CHUNK_RAW;
        if (stored > bytes - at || stored > chunk.bytes || stored == 0 ||
            ((size & CHUNK_AS_IS) && stored != chunk.bytes) || (is_raw && !(size & CHUNK_AS_IS)))
            return false;
        if (!decode_chunk(decoder, layout, &chunk, extent + at, size, expert))
            return false;
        at += stored;
    }
    return true;
}
