/* Packed containers: they say what their GGUF says, and any byte that is wrong, missing or a lie is noticed. */
#include "packed_fixture.h"
#include "thinned.h"

enum {
    F32 = 0,
    Q8_0 = 8,
    BF16 = 30,
    MXFP4 = 39,
    N_LAYERS = 3,
    STACKED = 4,
    SINGLES = 2,
    N_EXTENTS = STACKED + SINGLES
};
enum { ROUNDS = THINNED(20000, 4000) };

static void add(struct gguf_writer *writer, uint64_t *bytes, const char *name, uint32_t type, uint64_t d0,
                uint64_t d1, uint64_t d2)
{
    const uint64_t dims[4] = {d0, d1, d2, 1};
    uint64_t more;
    assert_true(gguf_type_bytes(gguf_type_find(type), dims, &more));
    gguf_writer_add_tensor(writer, name, type, d2 > 1 ? 3 : d1 > 1 ? 2 : 1, dims);
    *bytes += more;
}

/* Layer 0 is dense, 1 has stacked experts with biases, 2 has experts of their own, of more than one chunk. */
static const char *make_gguf(const char *name)
{
    struct gguf_writer *writer = writer_new(scratch_path(name));
    uint64_t bytes = 0;
    gguf_writer_set_string(writer, "general.name", "packed");
    gguf_writer_set_u32(writer, "general.file_type", 7);
    add(writer, &bytes, "token_embd.weight", F32, 64, 33, 1);
    add(writer, &bytes, "blk.1.ffn_gate_exps.weight", Q8_0, 64, 96, STACKED);
    add(writer, &bytes, "blk.1.ffn_up_exps.weight", MXFP4, 64, 96, STACKED);
    add(writer, &bytes, "blk.1.ffn_norm.weight", F32, 63, 1, 1);
    add(writer, &bytes, "blk.1.ffn_down_exps.weight", F32, 96, 64, STACKED);
    add(writer, &bytes, "blk.1.ffn_down_exps.bias", F32, 64, STACKED, 1);
    for (int e = 0; e < SINGLES; e++) {
        char tensor[64];
        snprintf(tensor, sizeof(tensor), "blk.2.ffn_up.%d.weight", e);
        add(writer, &bytes, tensor, BF16, 512, 300, 1);
        snprintf(tensor, sizeof(tensor), "blk.2.ffn_down.%d.weight", e);
        add(writer, &bytes, tensor, BF16, 300, 512, 1);
    }
    add(writer, &bytes, "output_norm.weight", F32, 64, 1, 1);
    writer_complete(writer, bytes);
    return scratch_path(name);
}

static const uint8_t plain[N_LAYERS][SHARD_N_PARTS];
static const uint8_t mixed[N_LAYERS][SHARD_N_PARTS] = {
    [1] = {[SHARD_UP] = CHUNK_ZSTD, [SHARD_DOWN] = CHUNK_ZSTD_BYTES},
    [2] = {[SHARD_UP] = CHUNK_ZSTD_FLOATS},
};

static const struct packing one_file = {
    .n_layers = N_LAYERS, .codecs = mixed, .id = 7, .note = "{\"level\": 3}"};

static void write_container(const struct container *c, uint32_t n_data_files)
{
    static const char *const names[] = {"main", "data1", "data2"};
    for (uint32_t i = 0; i <= n_data_files; i++)
        write_file(names[i], c->file[i].data, c->file[i].bytes);
}

/* "main", and "data1" by its name alone and "data2" by its whole path. */
static struct container make_container(const uint8_t (*codecs)[SHARD_N_PARTS], uint32_t n_data_files,
                                       uint8_t id)
{
    struct packing p = one_file;
    char second[512];
    snprintf(second, sizeof(second), "%s", scratch_path("data2"));
    p.gguf = make_gguf("model.gguf");
    p.codecs = codecs;
    p.n_data_files = n_data_files;
    p.data_path[1] = "data1";
    p.data_path[2] = second;
    p.id = id;
    struct container c = pack(&p);
    write_container(&c, n_data_files);
    return c;
}

static enum ps_status map_of(const char *path, struct ps_error *err)
{
    struct gguf *gguf;
    struct shard_map *map = NULL;
    enum ps_status status = gguf_open(&gguf, path, err);
    if (status == PS_OK)
        status = shard_map_new(&map, gguf, packed_n_layers(gguf_packed(gguf)), err);
    shard_map_free(map);
    gguf_free(gguf);
    return status;
}

static void refused(const char *path, enum ps_status status, const char *text)
{
    struct ps_error err = {0};
    enum ps_status got = map_of(path, &err);
    if (got != status || !strstr(err.message, text))
        fail_msg("status %d, message \"%s\"; expected status %d, \"%s\"", got, err.message, status, text);
}

/* ---- what a container says ---- */

static void container_opens_as_its_gguf(void **state)
{
    (void)state;
    struct container c = make_container(mixed, 2, 7);
    struct gguf *packed = open_ok(scratch_path("main")), *gguf = open_ok(scratch_path("model.gguf"));
    size_t bytes;
    uint8_t *source = load_file(scratch_path("model.gguf"), &bytes);
    assert_non_null(gguf_packed(packed));
    assert_null(gguf_packed(gguf));
    assert_true(packed_is_container(scratch_path("main")) && packed_is_container(scratch_path("data1")));
    assert_false(packed_is_container(scratch_path("model.gguf")) ||
                 packed_is_container(scratch_path("none")));
    assert_int_equal(gguf_n_files(packed), 3);
    assert_string_equal(gguf_file_path(packed, 0), scratch_path("main"));
    assert_string_equal(gguf_file_path(packed, 1), scratch_path("data1"));
    assert_string_equal(gguf_file_path(packed, 2), scratch_path("data2"));
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(gguf_file_size(packed, i), c.file[i].bytes);
    assert_true(gguf_memory(packed) > gguf_memory(gguf) + c.index_bytes);
    assert_int_equal(gguf_unpacked_bytes(packed), gguf_file_size(gguf, 0));
    assert_int_equal(gguf_n_kv(packed), gguf_n_kv(gguf));
    struct gguf_string name;
    assert_true(gguf_get_string(packed, "general.name", &name) && name.length == 6);
    assert_int_equal(gguf_n_tensors(packed), gguf_n_tensors(gguf));
    for (uint32_t i = 0; i < gguf_n_tensors(gguf); i++) {
        const struct gguf_tensor *x = gguf_tensor_at(packed, i), *y = gguf_tensor_at(gguf, i);
        assert_string_equal(x->name, y->name);
        assert_ptr_equal(gguf_tensor_find(packed, y->name), x);
        assert_true(x->type == y->type && x->bytes == y->bytes && x->n_dims == y->n_dims);
        assert_memory_equal(x->dims, y->dims, sizeof(x->dims));
        assert_int_equal(gguf_unpacked_offset(packed, i), y->offset);
        if (strstr(y->name, "exps") || strstr(y->name, "blk.2.")) {
            assert_int_equal(x->file, GGUF_NO_FILE);
            continue;
        }
        assert_int_equal(x->file, 0);
        assert_memory_equal(c.file[0].data + x->offset, source + y->offset, y->bytes);
    }
    uint64_t note_bytes;
    const char *note = packed_note(gguf_packed(packed), &note_bytes);
    assert_int_equal(note_bytes, strlen(one_file.note));
    assert_memory_equal(note, one_file.note, note_bytes);
    free(source);
    gguf_free(packed);
    gguf_free(gguf);
    container_free(&c);
}

/* As packed.h says it goes: in order, in the same memory. */
static void unpack_slot(const struct packed_layout *layout, uint8_t *slot, uint64_t at)
{
    struct chunk_decoder *decoder = chunk_decoder_new();
    assert_non_null(decoder);
    for (struct packed_chunk chunk = {0}; packed_chunk_next(layout, &chunk);) {
        uint32_t size;
        memcpy(&size, slot + at, sizeof(size));
        at += sizeof(size);
        uint32_t bytes = size & ~CHUNK_AS_IS;
        assert_true(bytes <= chunk.bytes && at + bytes <= layout->slot_bytes && chunk.at <= at);
        if (size & CHUNK_AS_IS)
            memmove(slot + chunk.at, slot + at, bytes);
        else
            assert_true(chunk_decode(decoder, (enum chunk_codec)layout->codec[chunk.part],
                                     layout->stride[chunk.part], slot + at, bytes, slot + chunk.at,
                                     chunk.bytes));
        at += bytes;
    }
    chunk_decoder_free(decoder);
}

static void check_expert(const struct container *c, const struct gguf *gguf, const struct shard_map *source,
                         const struct shard_map *map, uint32_t layer, uint32_t expert)
{
    const struct shard_layer *shape = shard_map_layer(map, layer);
    struct shard_location where;
    shard_map_locate(map, layer, expert, &where);
    const struct packed_layout *layout = where.packed;
    assert_non_null(layout);
    assert_int_equal(where.n_ranges, 1);
    const struct io_range *range = &where.ranges[0];
    assert_int_equal(range->at, layout->compressed ? shape->slot_bytes - range->length : 0);
    assert_true(range->at + range->length <= shape->slot_bytes && range->offset % IO_ALIGN == 0);
    assert_int_equal(where.hash, XXH3_64bits(c->file[range->file].data + range->offset, range->length));
    uint8_t *slot = malloc(shape->slot_bytes), *expected = malloc(layout->bytes);
    assert_true(slot && expected);
    memcpy(slot + range->at, c->file[range->file].data + range->offset, range->length);
    if (layout->compressed)
        unpack_slot(layout, slot, range->at);
    unpacked_expert(gguf, source, layer, expert, layout, expected);
    for (uint32_t part = 0; part < SHARD_N_PARTS; part++) {
        assert_int_equal(where.part_offset[part], layout->part_offset[part]);
        if (shape->slice[part].present)
            assert_memory_equal(slot + where.part_offset[part], expected + layout->part_offset[part],
                                shape->slice[part].bytes);
        else
            assert_true(where.part_offset[part] == UINT64_MAX);
    }
    free(slot);
    free(expected);
}

static void check_experts(const uint8_t (*codecs)[SHARD_N_PARTS], uint32_t n_data_files)
{
    struct container c = make_container(codecs, n_data_files, 7);
    struct gguf *packed = open_ok(scratch_path("main")), *gguf = open_ok(scratch_path("model.gguf"));
    struct shard_map *map, *source;
    assert_int_equal(shard_map_new(&map, packed, N_LAYERS, NULL), PS_OK);
    assert_int_equal(shard_map_new(&source, gguf, N_LAYERS, NULL), PS_OK);
    assert_int_equal(shard_map_n_shards(map), STACKED + SINGLES);
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
        const struct shard_layer *x = shard_map_layer(map, layer), *y = shard_map_layer(source, layer);
        assert_true(x->n_experts == y->n_experts && x->first_shard == y->first_shard && x->bytes == y->bytes);
        assert_memory_equal(x->slice, y->slice, sizeof(x->slice));
        assert_int_equal(y->read_bytes, y->bytes);
        if (codecs == mixed && layer > 0)
            assert_true(x->read_bytes < x->bytes && x->slot_bytes > x->bytes);
        for (uint32_t expert = 0; expert < x->n_experts; expert++)
            check_expert(&c, gguf, source, map, layer, expert);
    }
    shard_map_free(map);
    shard_map_free(source);
    gguf_free(packed);
    gguf_free(gguf);
    container_free(&c);
}

static void experts_of_one_file_are_the_ggufs(void **state)
{
    (void)state;
    check_experts(plain, 0);
    check_experts(mixed, 0);
}

static void experts_of_several_files_are_the_ggufs(void **state)
{
    (void)state;
    check_experts(plain, 1);
    check_experts(mixed, 2);
}

/* ---- damage ---- */

/* Changes each byte in turn; not one may go unnoticed. */
static void flip_all(const char *name, uint64_t start, uint64_t bytes)
{
    int fd = open(scratch_path(name), O_RDWR);
    assert_true(fd >= 0);
    for (uint64_t at = start; at < start + bytes; at++) {
        uint8_t byte, flipped;
        assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
        flipped = (uint8_t)(byte ^ 1u << at % 8);
        assert_int_equal(pwrite(fd, &flipped, 1, (off_t)at), 1);
        struct ps_error err = {0};
        struct gguf *gguf;
        enum ps_status status = gguf_open(&gguf, scratch_path("main"), &err);
        if (status != PS_ERR_FORMAT && status != PS_ERR_UNSUPPORTED)
            fail_msg("%s: byte %llu changed: status %d", name, (unsigned long long)at, status);
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    }
    close(fd);
    gguf_free(open_ok(scratch_path("main")));
}

static void every_changed_byte_of_the_directory_is_noticed(void **state)
{
    (void)state;
    struct container c = make_container(mixed, 1, 7);
    flip_all("main", 0, UNIT);
    flip_all("main", fetch_u64(c.file[0].data, PACKED_AT_HEADER),
             fetch_u64(c.file[0].data, PACKED_AT_HEADER + 8));
    flip_all("main", c.index_at, c.index_bytes);
    flip_all("data1", 0, UNIT);
    container_free(&c);
}

static void truncated_files_are_refused(void **state)
{
    (void)state;
    struct container c = make_container(mixed, 1, 7);
    for (uint32_t i = 0; i < 2; i++) {
        const char *name = i == 0 ? "main" : "data1";
        for (size_t bytes = i == 0 ? 8 : 0; bytes < c.file[i].bytes; bytes += 1 + bytes / 7) {
            write_file(name, c.file[i].data, bytes);
            refused(scratch_path("main"), PS_ERR_FORMAT, "truncated");
        }
        buffer_add(&c.file[i], NULL, 1);
        write_file(name, c.file[i].data, c.file[i].bytes);
        refused(scratch_path("main"), PS_ERR_FORMAT, "was written with");
        write_file(name, c.file[i].data, c.file[i].bytes - 1);
        gguf_free(open_ok(scratch_path("main")));
    }
    container_free(&c);
}

static void missing_or_foreign_data_files_are_named(void **state)
{
    (void)state;
    struct container c = make_container(mixed, 2, 7);
    char path[2][512];
    snprintf(path[0], sizeof(path[0]), "%s", scratch_path("data1"));
    snprintf(path[1], sizeof(path[1]), "%s", scratch_path("data2"));
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(unlink(path[i]), 0);
        refused(scratch_path("main"), PS_ERR_IO, path[i]);
        refused(scratch_path("main"), PS_ERR_IO, "a drive that is not mounted?");
        assert_int_equal(mkfifo(path[i], 0600), 0);
        refused(scratch_path("main"), PS_ERR_IO, "is not a regular file");
        unlink(path[i]);
        write_file(i == 0 ? "data1" : "data2", c.file[2 - i].data, c.file[2 - i].bytes);
        refused(scratch_path("main"), PS_ERR_FORMAT, "exchanged or renamed");
        write_container(&c, 2);
    }
    struct container other = make_container(mixed, 2, 8);
    write_file("main", c.file[0].data, c.file[0].bytes);
    refused(scratch_path("main"), PS_ERR_FORMAT, "is of another packing");
    refused(scratch_path("data1"), PS_ERR_FORMAT, "name the main file");
    write_container(&c, 2);
    write_file("data1", c.file[0].data, c.file[0].bytes);
    refused(scratch_path("main"), PS_ERR_FORMAT, "is not a data file");
    container_free(&c);
    container_free(&other);
}

/* ---- lies whose checksums are true ---- */

struct lie {
    const char *what;
    enum ps_status status;
    uint64_t at; /* in the main file */
    uint32_t bytes;
    uint64_t value;
};

static void check_lies(const struct container *c, const struct lie *lies, size_t n)
{
    uint8_t *data = malloc(c->file[0].bytes);
    assert_non_null(data);
    for (size_t i = 0; i < n; i++) {
        memcpy(data, c->file[0].data, c->file[0].bytes);
        memcpy(data + lies[i].at, &lies[i].value, lies[i].bytes);
        /* Places that are lies cannot be signed, only what names them. */
        if (lies[i].at >= UNIT)
            sign_main(data);
        store_u64(data, PACKED_AT_MAIN_HASH, XXH3_64bits(data, PACKED_AT_MAIN_HASH));
        write_file("main", data, c->file[0].bytes);
        refused(scratch_path("main"), lies[i].status, lies[i].what);
    }
    free(data);
    write_file("main", c->file[0].data, c->file[0].bytes);
    struct ps_error err = {0};
    if (map_of(scratch_path("main"), &err) != PS_OK)
        fail_msg("%s", err.message);
}

static void other_versions_and_codecs_are_refused(void **state)
{
    (void)state;
    struct container c = make_container(mixed, 1, 7);
    const struct lie lies[] = {
        {"container version 3", PS_ERR_UNSUPPORTED, PACKED_AT_VERSION, 4, 3},
        {"container version 1, only 2", PS_ERR_UNSUPPORTED, PACKED_AT_VERSION, 4, 1},
        {"codec 5 is unknown", PS_ERR_UNSUPPORTED, c.layers_at + PACKED_LAYER_CODECS + SHARD_UP, 1,
         CHUNK_N_CODECS},
        {"blk.1.ffn_up_exps.weight: cannot be packed with codec zstd-bits", PS_ERR_FORMAT,
         c.layers_at + PACKED_LAYER_CODECS + SHARD_UP, 1, CHUNK_ZSTD_BITS},
        {"codecs of a layer", PS_ERR_FORMAT, c.layers_at + SHARD_N_PARTS, 1, 1},
    };
    check_lies(&c, lies, sizeof(lies) / sizeof(lies[0]));
    store_u64(c.file[1].data, PACKED_AT_VERSION, 3 | 1ull << 32);
    sign_data(c.file[1].data);
    write_container(&c, 1);
    refused(scratch_path("main"), PS_ERR_UNSUPPORTED, "data1: container version 3");
    container_free(&c);
}

static void hostile_superblocks_are_refused(void **state)
{
    (void)state;
    struct container c = make_container(mixed, 0, 7);
    const char *const places = "places of GGUF header and index";
    uint64_t file_bytes = c.file[0].bytes;
    const struct lie lies[] = {
        {"number of files", PS_ERR_FORMAT, PACKED_AT_N_FILES, 4, 0},
        {"number of files", PS_ERR_FORMAT, PACKED_AT_N_FILES, 4, UINT32_MAX},
        {"number of files in the index", PS_ERR_FORMAT, PACKED_AT_N_FILES, 4, 2},
        {"was written with", PS_ERR_FORMAT, PACKED_AT_FILE_BYTES, 8, UINT64_MAX},
        {places, PS_ERR_FORMAT, PACKED_AT_HEADER, 8, 0},
        {places, PS_ERR_FORMAT, PACKED_AT_HEADER, 8, UINT64_MAX - 4095},
        {places, PS_ERR_FORMAT, PACKED_AT_HEADER, 8, UNIT + 64},
        {places, PS_ERR_FORMAT, PACKED_AT_HEADER, 8, c.index_at},
        {places, PS_ERR_FORMAT, PACKED_AT_HEADER + 8, 8, 0},
        {places, PS_ERR_FORMAT, PACKED_AT_HEADER + 8, 8, UINT64_MAX},
        {places, PS_ERR_FORMAT, PACKED_AT_HEADER + 8, 8, file_bytes - UNIT + 1},
        {places, PS_ERR_FORMAT, PACKED_AT_INDEX, 8, file_bytes + UNIT},
        {places, PS_ERR_FORMAT, PACKED_AT_INDEX + 8, 8, UINT64_MAX},
        {"checksum of the GGUF header", PS_ERR_FORMAT, PACKED_AT_HEADER + 16, 8, 1},
        {"checksum of the index", PS_ERR_FORMAT, PACKED_AT_INDEX + 16, 8, 1},
    };
    check_lies(&c, lies, sizeof(lies) / sizeof(lies[0]));
    container_free(&c);
}

static void grow_data_file(struct container *c, uint64_t bytes)
{
    buffer_add(&c->file[1], NULL, bytes - c->file[1].bytes);
    store_u64(c->file[1].data, PACKED_AT_FILE_BYTES, bytes);
    store_u64(c->file[0].data, c->index_at + PACKED_INDEX_COUNTS + PACKED_FILE_BYTES, bytes);
    sign_data(c->file[1].data);
}

/* An expert's tensor in the place of one of the trunk, both of one block; itself: none is there any more. */
static void mistake(const struct container *c, uint32_t trunk, uint32_t expert, const char *what)
{
    uint8_t *data = malloc(c->file[0].bytes);
    assert_non_null(data);
    memcpy(data, c->file[0].data, c->file[0].bytes);
    memmove(data + c->trunk_at + expert * 16ul, data + c->trunk_at + trunk * 16ul, 16);
    memset(data + c->trunk_at + trunk * 16ul, 0, 16);
    sign_main(data);
    write_file("main", data, c->file[0].bytes);
    refused(scratch_path("main"), PS_ERR_FORMAT, what);
    free(data);
}

static void hostile_indices_are_refused(void **state)
{
    (void)state;
    struct container c = make_container(mixed, 1, 7);
    uint64_t file = c.index_at + PACKED_INDEX_COUNTS, extent = c.extents_at, trunk = c.trunk_at;
    const char *const counts = "too short for its counts", *const tensor = "cannot be at offset",
                      *const place = "extent 0 cannot be";
    enum { NORM = 3, BIAS = 5, LAST = 10 }; /* tensors */
    grow_data_file(&c, c.file[1].bytes + (2 << 20));
    write_container(&c, 1);
    uint64_t trunk_offset = fetch_u64(c.file[0].data, trunk),
             last_offset = fetch_u64(c.file[0].data, trunk + LAST * 16ul);
    store_u64(c.file[0].data, trunk + LAST * 16ul, last_offset + 1024); /* room for a tensor before it */
    sign_main(c.file[0].data);
    const struct lie lies[] = {
        {"number of files in the index", PS_ERR_FORMAT, c.index_at, 4, UINT32_MAX},
        {counts, PS_ERR_FORMAT, c.index_at + 4, 4, UINT32_MAX},
        {counts, PS_ERR_FORMAT, c.index_at + 8, 4, UINT32_MAX},
        {counts, PS_ERR_FORMAT, c.index_at + 12, 4, UINT32_MAX},
        {counts, PS_ERR_FORMAT, c.index_at + PACKED_AT_N_BLOCKS, 8, UINT64_MAX},
        {counts, PS_ERR_FORMAT, c.index_at + PACKED_AT_N_BLOCKS, 8, UINT64_MAX / 8 + 2},
        {"blocks of a tensor of the experts", PS_ERR_FORMAT, trunk + BIAS * 16ul + 8, 8, 1},
        {"token_embd.weight: its first block is 1, must be 0", PS_ERR_FORMAT, trunk + 8, 8, 1},
        {"output_norm.weight: its first block is", PS_ERR_FORMAT, trunk + LAST * 16ul + 8, 8, UINT64_MAX},
        {"list of files", PS_ERR_FORMAT, file, 8, UINT64_MAX},
        {"list of files", PS_ERR_FORMAT, file + 8, 4, 1},
        {"ends in a file's path", PS_ERR_FORMAT, file + 20, 4, UINT32_MAX},
        {"list of files", PS_ERR_FORMAT, file + 20, 4, 0},
        {"list of files", PS_ERR_FORMAT, file + 26, 1, 0},
        {"data1: has", PS_ERR_FORMAT, file + 12, 8, 4096},
        {"xata1: data file 1", PS_ERR_IO, file + 24, 1, 'x'},
        {tensor, PS_ERR_FORMAT, trunk, 8, 64},
        {tensor, PS_ERR_FORMAT, trunk, 8, trunk_offset + 32},
        {tensor, PS_ERR_FORMAT, trunk, 8, UINT64_MAX - 63},
        {tensor, PS_ERR_FORMAT, trunk, 8, c.index_at + 64},
        {"token_embd.weight: ", PS_ERR_FORMAT, trunk, 8, (c.file[0].bytes - 64) / 64 * 64},
        {"token_embd.weight: ", PS_ERR_FORMAT, trunk, 8, c.index_at - 64},
        {place, PS_ERR_FORMAT, extent, 4, 2},
        {place, PS_ERR_FORMAT, extent + 4, 4, 1},
        {place, PS_ERR_FORMAT, extent + 8, 8, 0},
        {place, PS_ERR_FORMAT, extent + 8, 8, UNIT + 512},
        {place, PS_ERR_FORMAT, extent + 8, 8, UINT64_MAX - 4095},
        {place, PS_ERR_FORMAT, extent + 16, 8, 0},
        {place, PS_ERR_FORMAT, extent + 16, 8, UINT64_MAX - 4095},
        {place, PS_ERR_FORMAT, extent + 16, 8, 100},
        {"layer 2, expert 1: an extent of", PS_ERR_FORMAT, extent + (N_EXTENTS - 1) * 32ul + 16, 8,
         fetch_u64(c.file[0].data, extent + (N_EXTENTS - 1) * 32ul + 16) + (2 << 20)},
        {"blk.1.ffn_norm.weight at offset", PS_ERR_FORMAT, trunk + NORM * 16ul, 8, trunk_offset},
        {"overlaps or precedes the tensor before it", PS_ERR_FORMAT, trunk + NORM * 16ul, 8,
         trunk_offset + 64},
        {"of file 1 overlaps extent 1: damaged", PS_ERR_FORMAT, extent + 8, 8,
         fetch_u64(c.file[0].data, extent + 32 + 8) + UNIT},
        {"length of the note", PS_ERR_FORMAT, c.note_at, 8, UINT64_MAX},
        {"length of the note", PS_ERR_FORMAT, c.note_at, 8, 0},
    };
    check_lies(&c, lies, sizeof(lies) / sizeof(lies[0]));
    mistake(&c, LAST, LAST, "3 blocks of the trunk in the index, must be 2"); /* one too few */
    mistake(&c, NORM, BIAS, "blk.1.ffn_norm.weight: packed as part of the experts");
    mistake(&c, LAST, BIAS, "blk.1.ffn_down_exps.bias: packed as part of the trunk");
    container_free(&c);
}

/* By looking at every pair. */
static bool any_overlap(const uint8_t *entries, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < i; j++) {
            uint64_t x = fetch_u64(entries, i * 32ul + 8), y = fetch_u64(entries, j * 32ul + 8);
            if (x < y + fetch_u64(entries, j * 32ul + 16) && y < x + fetch_u64(entries, i * 32ul + 16))
                return true;
        }
    return false;
}

/* Extents at random places of a data file with room for many of their size. */
static void extents_that_overlap_are_refused_and_no_others(void **state)
{
    (void)state;
    enum { UNITS = 1200, PLACEMENTS = 2000 };
    struct container c = make_container(plain, 1, 7);
    grow_data_file(&c, UNITS * UNIT);
    write_container(&c, 1);
    uint8_t *entries = c.file[0].data + c.extents_at;
    uint64_t seed = 88172645463325252ull;
    int n_overlapping = 0;
    for (int round = 0; round < PLACEMENTS; round++) {
        for (uint32_t i = 0; i < N_EXTENTS; i++) {
            uint64_t units = UNITS - fetch_u64(entries, i * 32ul + 16) / UNIT;
            store_u64(entries, i * 32ul + 8, UNIT * (1 + next_random(&seed) % units));
        }
        sign_main(c.file[0].data);
        write_file("main", c.file[0].data, c.file[0].bytes);
        bool overlaps = any_overlap(entries, N_EXTENTS);
        struct ps_error err = {0};
        enum ps_status status = map_of(scratch_path("main"), &err);
        if (overlaps ? status != PS_ERR_FORMAT || !strstr(err.message, "overlaps extent") : status != PS_OK)
            fail_msg("round %d, %s: status %d, \"%s\"", round, overlaps ? "overlapping" : "apart", status,
                     err.message);
        n_overlapping += overlaps;
    }
    assert_in_range(n_overlapping, PLACEMENTS / 10, PLACEMENTS - PLACEMENTS / 10); /* both ways are tried */
    container_free(&c);
}

/* Extents in the main file keep off what else is in it. */
static void extents_keep_off_the_rest_of_the_main_file(void **state)
{
    (void)state;
    struct container c = make_container(plain, 0, 7);
    uint64_t extent = c.extents_at + 8;
    uint64_t trunk = fetch_u64(c.file[0].data, c.trunk_at) / UNIT * UNIT;
    const struct lie lies[] = {
        {"extent 0 cannot be", PS_ERR_FORMAT, extent, 8, 0},
        {"extent 0 cannot be", PS_ERR_FORMAT, extent, 8, UNIT},
        {"extent 0 cannot be", PS_ERR_FORMAT, extent, 8, c.index_at},
        {"overlaps the trunk", PS_ERR_FORMAT, extent, 8, trunk},
    };
    check_lies(&c, lies, sizeof(lies) / sizeof(lies[0]));
    container_free(&c);
}

static void other_layers_than_packed_are_refused(void **state)
{
    (void)state;
    struct container c = make_container(mixed, 0, 7);
    struct gguf *gguf = open_ok(scratch_path("main"));
    struct shard_map *map;
    struct ps_error err = {0};
    assert_int_equal(shard_map_new(&map, gguf, N_LAYERS - 1, &err), PS_ERR_FORMAT);
    assert_non_null(strstr(err.message, "packed with 3 layers, has 2"));
    assert_int_equal(shard_map_new(&map, gguf, N_LAYERS + 1, &err), PS_ERR_FORMAT);
    gguf_free(gguf);
    container_free(&c);
}

/* Whatever opens keeps its promises. False: refused. */
static bool use(const char *path)
{
    struct gguf *gguf;
    struct shard_map *map;
    struct ps_error err = {0};
    if (gguf_open(&gguf, path, &err) != PS_OK)
        return false;
    bool mapped = shard_map_new(&map, gguf, packed_n_layers(gguf_packed(gguf)), &err) == PS_OK;
    if (mapped) {
        for (uint32_t shard = 0; shard < shard_map_n_shards(map); shard++) {
            uint32_t layer = shard_map_shard_layer(map, shard);
            const struct shard_layer *shape = shard_map_layer(map, layer);
            struct shard_location where;
            shard_map_locate(map, layer, shard - shape->first_shard, &where);
            const struct io_range *range = &where.ranges[0];
            assert_true(range->at + range->length <= shape->slot_bytes && range->at % IO_ALIGN == 0);
            assert_true(range->offset + range->length <= gguf_file_size(gguf, range->file));
        }
        shard_map_free(map);
    }
    gguf_free(gguf);
    return mapped;
}

static void random_lies_do_no_harm(void **state)
{
    (void)state;
    static const uint64_t extremes[] = {0, 1, 64, 4096, UINT32_MAX, 1ull << 40, INT64_MAX, UINT64_MAX};
    struct container c = make_container(mixed, 0, 7);
    uint8_t *data = malloc(c.file[0].bytes);
    assert_non_null(data);
    memcpy(data, c.file[0].data, c.file[0].bytes);
    const char *path = write_file("main", data, c.file[0].bytes);
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    uint64_t head = fetch_u64(data, PACKED_AT_HEADER), head_bytes = fetch_u64(data, PACKED_AT_HEADER + 8);
    uint64_t seed = 88172645463325252ull;
    int n_used = 0;
    for (int round = 0; round < ROUNDS; round++) {
        memcpy(data, c.file[0].data, c.index_at + c.index_bytes);
        for (uint64_t n = 1 + next_random(&seed) % 3; n > 0; n--) {
            bool index = next_random(&seed) % 3 != 0;
            uint64_t at = index ? c.index_at + next_random(&seed) % (c.index_bytes - 8)
                                : head + next_random(&seed) % (head_bytes - 8);
            if (next_random(&seed) % 2)
                data[at] = (uint8_t)next_random(&seed);
            else
                store_u64(data, at / 4 * 4, extremes[next_random(&seed) % 8]);
        }
        sign_main(data);
        assert_int_equal(pwrite(fd, data, c.index_at + c.index_bytes, 0), c.index_at + c.index_bytes);
        n_used += use(scratch_path("main"));
    }
    assert_true(n_used > ROUNDS / 50 && n_used < ROUNDS - ROUNDS / 50); /* both ways are tried */
    close(fd);
    free(data);
    container_free(&c);
}

int main(void)
{
#define IN_SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_make, scratch_remove)
    const struct CMUnitTest tests[] = {
        IN_SCRATCH(container_opens_as_its_gguf),
        IN_SCRATCH(experts_of_one_file_are_the_ggufs),
        IN_SCRATCH(experts_of_several_files_are_the_ggufs),
        IN_SCRATCH(every_changed_byte_of_the_directory_is_noticed),
        IN_SCRATCH(truncated_files_are_refused),
        IN_SCRATCH(missing_or_foreign_data_files_are_named),
        IN_SCRATCH(other_versions_and_codecs_are_refused),
        IN_SCRATCH(hostile_superblocks_are_refused),
        IN_SCRATCH(hostile_indices_are_refused),
        IN_SCRATCH(extents_that_overlap_are_refused_and_no_others),
        IN_SCRATCH(extents_keep_off_the_rest_of_the_main_file),
        IN_SCRATCH(other_layers_than_packed_are_refused),
        IN_SCRATCH(random_lies_do_no_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
