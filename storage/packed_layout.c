/* Packed container: where the parts and chunks of a layer's experts are. */
#include "storage/packed.h"

#include <string.h>

#include "storage/gguf.h"
#include "storage/io_reader.h"

static uint64_t round_up(uint64_t n, uint64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

static uint32_t chunk_limit(const struct packed_layout *layout, uint32_t part)
{
    return CHUNK_BYTES / layout->stride[part] * layout->stride[part];
}

void packed_layout_init(struct packed_layout *layout, const struct shard_slice *slice, const uint8_t *codec)
{
    *layout = (struct packed_layout){0};
    memcpy(layout->codec, codec, sizeof(layout->codec));
    uint64_t at = 0;
    for (uint32_t part = 0; part < SHARD_N_PARTS; part++) {
        layout->part_offset[part] = UINT64_MAX;
        if (!slice[part].present)
            continue;
        layout->stride[part] = gguf_type_find(slice[part].type)->bytes;
        layout->part_bytes[part] = slice[part].bytes;
        layout->part_offset[part] = at;
        at = round_up(at + slice[part].bytes, PACKED_PART_ALIGN);
        layout->compressed = layout->compressed || codec[part] != CHUNK_RAW;
    }
    layout->bytes = layout->slot_bytes = round_up(at, IO_ALIGN);
    if (!layout->compressed)
        return;
    for (uint32_t part = 0; part < SHARD_N_PARTS; part++) {
        if (layout->part_bytes[part] > 0)
            layout->n_chunks += (uint32_t)((layout->part_bytes[part] - 1) / chunk_limit(layout, part) + 1);
    }
    /* Beside the chunks: a size before each, and less than an aligned unit of zeros after the last. */
    layout->slot_bytes = round_up(at + layout->n_chunks * sizeof(uint32_t) + IO_ALIGN, IO_ALIGN);
}

bool packed_chunk_next(const struct packed_layout *layout, struct packed_chunk *chunk)
{
    uint64_t done = chunk->bytes > 0 ? chunk->at + chunk->bytes - layout->part_offset[chunk->part] : 0;
    uint32_t part = chunk->part;
    while (part < SHARD_N_PARTS && done == layout->part_bytes[part]) {
        part++;
        done = 0;
    }
    if (part == SHARD_N_PARTS)
        return false;
    uint64_t left = layout->part_bytes[part] - done;
    uint32_t limit = chunk_limit(layout, part);
    *chunk =
        (struct packed_chunk){part, layout->part_offset[part] + done, left < limit ? (uint32_t)left : limit};
    return true;
}
