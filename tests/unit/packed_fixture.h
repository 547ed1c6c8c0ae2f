/* Containers for tests, made from a GGUF by code of their own: what pack_writer.c writes is checked against packed.h by
 * a second hand. */
#ifndef PENSTOCK_TESTS_PACKED_FIXTURE_H
#define PENSTOCK_TESTS_PACKED_FIXTURE_H

#include "gguf_fixture.h"

#include <xxhash.h>

#include "storage/packed.h"
#include "storage/packed_internal.h"
#include "storage/shard_map.h"

enum { UNIT = IO_ALIGN, MAX_DATA_FILES = 4 };

struct buffer {
    uint8_t *data;
    size_t bytes;
};

static inline void buffer_add(struct buffer *b, const void *data, size_t bytes)
{
    b->data = realloc(b->data, b->bytes + bytes + 1);
    assert_non_null(b->data);
    if (data)
        memcpy(b->data + b->bytes, data, bytes);
    else
        memset(b->data + b->bytes, 0, bytes);
    b->bytes += bytes;
}

static inline void buffer_align(struct buffer *b, size_t unit)
{
    buffer_add(b, NULL, (unit - b->bytes % unit) % unit);
}

static inline void buffer_u32(struct buffer *b, uint32_t value)
{
    buffer_add(b, &value, sizeof(value));
}

static inline void buffer_u64(struct buffer *b, uint64_t value)
{
    buffer_add(b, &value, sizeof(value));
}

static inline void store_u64(uint8_t *data, uint64_t at, uint64_t value)
{
    memcpy(data + at, &value, sizeof(value));
}

static inline uint64_t fetch_u64(const uint8_t *data, uint64_t at)
{
    uint64_t value;
    memcpy(&value, data + at, sizeof(value));
    return value;
}

/* All parts of an expert as they are unpacked; slot[layout->bytes]. */
static inline void unpacked_expert(const struct gguf *gguf, const struct shard_map *map, uint32_t layer,
                                   uint32_t expert, const struct packed_layout *layout, uint8_t *slot)
{
    struct shard_location where;
    const struct shard_layer *shape = shard_map_layer(map, layer);
    uint8_t *read = malloc(shape->slot_bytes);
    assert_non_null(read);
    shard_map_locate(map, layer, expert, &where);
    for (uint32_t i = 0; i < where.n_ranges; i++) {
        const struct io_range *range = &where.ranges[i];
        size_t bytes;
        uint8_t *file = load_file(gguf_file_path(gguf, range->file), &bytes);
        assert_true(range->offset + range->length <= bytes);
        memcpy(read + range->at + range->offset % IO_ALIGN, file + range->offset, range->length);
        free(file);
    }
    memset(slot, 0, layout->bytes);
    for (uint32_t part = 0; part < SHARD_N_PARTS; part++) {
        if (shape->slice[part].present)
            memcpy(slot + layout->part_offset[part], read + where.part_offset[part],
                   shape->slice[part].bytes);
    }
    free(read);
}

/* An expert's extent. */
static inline struct buffer packed_expert(const struct packed_layout *layout, const uint8_t *slot)
{
    struct buffer out = {0};
    if (!layout->compressed) {
        buffer_add(&out, slot, layout->bytes);
        return out;
    }
    struct chunk_encoder *encoder = chunk_encoder_new(3);
    uint8_t *coded = malloc(CHUNK_BYTES);
    assert_true(encoder && coded);
    for (struct packed_chunk c = {0}; packed_chunk_next(layout, &c);) {
        enum chunk_codec codec = (enum chunk_codec)layout->codec[c.part];
        uint32_t n = codec == CHUNK_RAW
                         ? 0
                         : chunk_encode(encoder, codec, layout->stride[c.part], slot + c.at, c.bytes, coded);
        buffer_u32(&out, n > 0 ? n : c.bytes | CHUNK_AS_IS);
        buffer_add(&out, n > 0 ? coded : slot + c.at, n > 0 ? n : c.bytes);
    }
    buffer_align(&out, UNIT);
    chunk_encoder_free(encoder);
    free(coded);
    return out;
}

/* What is to be packed, and how. */
struct packing {
    const char *gguf; /* path */
    uint32_t n_layers;
    const uint8_t (*codecs)[SHARD_N_PARTS]; /* [n_layers] */
    uint32_t n_data_files;
    const char *data_path[MAX_DATA_FILES + 1]; /* from 1; as the index shall have it */
    uint8_t id;                                /* repeated */
    const char *note;
};

/* The files' bytes; [0] is the main file. */
struct container {
    struct buffer file[MAX_DATA_FILES + 1];
    uint64_t index_at, index_bytes;
    /* sections, from the file's start */
    uint64_t trunk_at, blocks_at, layers_at, extents_at, note_at;
};

/* Checksums and sizes of a main file made true, whatever it holds. */
static inline void sign_main(uint8_t *data)
{
    for (uint32_t i = 0; i < 2; i++) {
        uint64_t at = i == 0 ? PACKED_AT_HEADER : PACKED_AT_INDEX;
        store_u64(data, at + 16, XXH3_64bits(data + fetch_u64(data, at), fetch_u64(data, at + 8)));
    }
    store_u64(data, PACKED_AT_MAIN_HASH, XXH3_64bits(data, PACKED_AT_MAIN_HASH));
}

static inline void sign_data(uint8_t *data)
{
    store_u64(data, PACKED_AT_DATA_HASH, XXH3_64bits(data, PACKED_AT_DATA_HASH));
}

static inline void start_file(struct buffer *b, const char *magic, uint32_t number, uint8_t id)
{
    buffer_add(b, NULL, UNIT);
    uint32_t head[] = {PACKED_VERSION, number};
    memcpy(b->data, magic, PACKED_MAGIC_BYTES);
    memcpy(b->data + PACKED_AT_VERSION, head, sizeof(head));
    memset(b->data + PACKED_AT_ID, id, PACKED_ID_BYTES);
}

/* Blocks of 16 KiB; a tensor's last one may be shorter. */
static inline uint64_t blocks_of_trunk(const struct gguf *gguf, const struct shard_map *map)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < gguf_n_tensors(gguf); i++)
        if (!shard_map_owns_tensor(map, i))
            n += (gguf_tensor_at(gguf, i)->bytes + 16383) / 16384;
    return n;
}

/* The index with zeros for what is not known yet. */
static inline struct buffer empty_index(const struct packing *p, const struct gguf *gguf,
                                        const struct shard_map *map, struct container *c)
{
    uint32_t n_shards = shard_map_n_shards(map);
    uint64_t n_blocks = blocks_of_trunk(gguf, map);
    struct buffer index = {0};
    buffer_u32(&index, p->n_data_files + 1);
    buffer_u32(&index, gguf_n_tensors(gguf));
    buffer_u32(&index, p->n_layers);
    buffer_u32(&index, n_shards);
    buffer_u64(&index, n_blocks);
    for (uint32_t i = 0; i <= p->n_data_files; i++) {
        const char *path = i == 0 ? "" : p->data_path[i];
        buffer_u64(&index, 0);
        buffer_u32(&index, (uint32_t)strlen(path));
        buffer_add(&index, path, strlen(path));
    }
    buffer_align(&index, 8);
    c->trunk_at = index.bytes;
    buffer_add(&index, NULL, 16ul * gguf_n_tensors(gguf));
    c->blocks_at = index.bytes;
    buffer_add(&index, NULL, 8 * n_blocks);
    c->layers_at = index.bytes;
    for (uint32_t l = 0; l < p->n_layers; l++) {
        buffer_add(&index, p->codecs[l], SHARD_N_PARTS);
        buffer_add(&index, NULL, PACKED_LAYER_CODECS - SHARD_N_PARTS);
    }
    c->extents_at = index.bytes;
    buffer_add(&index, NULL, 32ul * n_shards);
    c->note_at = index.bytes;
    buffer_u64(&index, strlen(p->note));
    buffer_add(&index, p->note, strlen(p->note));
    return index;
}

static inline void add_trunk(struct container *c, const struct gguf *gguf, const struct shard_map *map,
                             const struct buffer *source)
{
    struct buffer *main_file = &c->file[0];
    uint64_t block = 0;
    for (uint32_t i = 0; i < gguf_n_tensors(gguf); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, i);
        if (shard_map_owns_tensor(map, i))
            continue;
        buffer_align(main_file, 64);
        store_u64(main_file->data, c->trunk_at + i * 16ul, main_file->bytes);
        store_u64(main_file->data, c->trunk_at + i * 16ul + 8, block);
        for (uint64_t at = 0; at < tensor->bytes; at += 16384, block++) {
            uint64_t n = tensor->bytes - at < 16384 ? tensor->bytes - at : 16384;
            store_u64(main_file->data, c->blocks_at + block * 8,
                      XXH3_64bits(source->data + tensor->offset + at, n));
        }
        buffer_add(main_file, source->data + tensor->offset, tensor->bytes);
    }
    buffer_align(main_file, UNIT);
}

static inline void add_extents(struct container *c, const struct packing *p, const struct gguf *gguf,
                               const struct shard_map *map)
{
    for (uint32_t l = 0, shard = 0; l < p->n_layers; l++) {
        const struct shard_layer *shape = shard_map_layer(map, l);
        struct packed_layout layout;
        packed_layout_init(&layout, shape->slice, p->codecs[l]);
        uint8_t *slot = malloc(layout.bytes + 1);
        assert_non_null(slot);
        for (uint32_t e = 0; e < shape->n_experts; e++, shard++) {
            unpacked_expert(gguf, map, l, e, &layout, slot);
            struct buffer extent = packed_expert(&layout, slot);
            uint32_t file = p->n_data_files > 0 ? 1 + shard % p->n_data_files : 0;
            uint8_t *entry = c->file[0].data + c->extents_at + shard * 32ul;
            memcpy(entry, &file, sizeof(file));
            store_u64(entry, 8, c->file[file].bytes);
            store_u64(entry, 16, extent.bytes);
            store_u64(entry, 24, XXH3_64bits(extent.data, extent.bytes));
            buffer_add(&c->file[file], extent.data, extent.bytes);
            free(extent.data);
        }
        free(slot);
    }
}

/* Sizes, in superblock, heads and index, and checksums. */
static inline void finish_files(struct container *c, const struct packing *p)
{
    uint8_t *main_file = c->file[0].data;
    uint64_t at = c->index_at + PACKED_INDEX_COUNTS;
    for (uint32_t i = 0; i <= p->n_data_files; i++) {
        store_u64(c->file[i].data, PACKED_AT_FILE_BYTES, c->file[i].bytes);
        store_u64(main_file, at, c->file[i].bytes);
        at += 12 + (i == 0 ? 0 : strlen(p->data_path[i]));
        if (i > 0)
            sign_data(c->file[i].data);
    }
    sign_main(main_file);
}

static inline struct container pack(const struct packing *p)
{
    struct container c = {0};
    struct gguf *gguf = open_ok(p->gguf);
    struct shard_map *map;
    assert_int_equal(shard_map_new(&map, gguf, p->n_layers, NULL), PS_OK);
    struct buffer source = {0};
    source.data = load_file(p->gguf, &source.bytes);
    uint64_t header_bytes = gguf_tensor_at(gguf, 0)->offset;
    start_file(&c.file[0], PACKED_MAIN_MAGIC, p->n_data_files + 1, p->id);
    for (uint32_t i = 1; i <= p->n_data_files; i++)
        start_file(&c.file[i], PACKED_DATA_MAGIC, i, p->id);
    store_u64(c.file[0].data, PACKED_AT_HEADER, c.file[0].bytes);
    store_u64(c.file[0].data, PACKED_AT_HEADER + 8, header_bytes);
    buffer_add(&c.file[0], source.data, header_bytes);
    buffer_align(&c.file[0], UNIT);
    struct buffer index = empty_index(p, gguf, map, &c);
    c.index_at = c.file[0].bytes;
    c.index_bytes = index.bytes;
    c.trunk_at += c.index_at;
    c.blocks_at += c.index_at;
    c.layers_at += c.index_at;
    c.extents_at += c.index_at;
    c.note_at += c.index_at;
    store_u64(c.file[0].data, PACKED_AT_INDEX, c.index_at);
    store_u64(c.file[0].data, PACKED_AT_INDEX + 8, index.bytes);
    buffer_add(&c.file[0], index.data, index.bytes);
    buffer_align(&c.file[0], UNIT);
    add_trunk(&c, gguf, map, &source);
    add_extents(&c, p, gguf, map);
    finish_files(&c, p);
    free(index.data);
    free(source.data);
    shard_map_free(map);
    gguf_free(gguf);
    return c;
}

static inline void container_free(struct container *c)
{
    for (uint32_t i = 0; i <= MAX_DATA_FILES; i++)
        free(c->file[i].data);
}

#endif
