/* Packed container, read: superblock and index, each number checked before it is believed. Of data files only the
 * heads are read. The index stays in memory as it is in the file; what is asked for is taken from it. */
#include "storage/packed.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "storage/io_reader.h"
#include "storage/packed_internal.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "containers are little-endian and are read in place");

enum { HASH_PIECE = 256 << 10 };

/* Bytes of the main file, as the superblock gives them. */
struct region {
    uint64_t offset, bytes, hash;
};

struct data_file {
    char *path; /* owned */
    uint64_t bytes;
};

struct packed {
    uint8_t id[PACKED_ID_BYTES];
    uint32_t n_files, n_tensors, n_layers, n_shards;
    uint64_t n_blocks;
    struct region header, index;
    struct data_file *files; /* [n_files] owned; 0: the main file */
    uint8_t *data;           /* the index; owned */
    /* bytes from its start */
    uint64_t trunk_at, blocks_at, layers_at, extents_at, note_at, note_bytes;
};

static uint32_t u32_at(const uint8_t *data, uint64_t at)
{
    uint32_t value;
    memcpy(&value, data + at, sizeof(value));
    return value;
}

static uint64_t u64_at(const uint8_t *data, uint64_t at)
{
    uint64_t value;
    memcpy(&value, data + at, sizeof(value));
    return value;
}

/* ---- files ---- */

struct open_file {
    const char *path;
    int fd; /* -1: not open */
    uint64_t bytes;
};

static enum ps_status damaged(const char *path, const char *what, struct ps_error *err)
{
    return ps_error_set(err, PS_ERR_FORMAT, "%s: %s: damaged: copy it again, or pack the model again", path,
                        what);
}

/* A regular file; a FIFO must not block. The error of open() is left to the caller, in errno. */
static enum ps_status open_regular(struct open_file *file, struct ps_error *err)
{
    file->fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->fd < 0)
        return PS_ERR_IO;
    struct stat st;
    if (fstat(file->fd, &st) != 0)
        return ps_error_set(err, PS_ERR_IO, "%s: cannot be examined: %s", file->path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return ps_error_set(err, PS_ERR_IO, "%s: is not a regular file", file->path);
    file->bytes = (uint64_t)st.st_size;
    return PS_OK;
}

static void close_file(struct open_file *file)
{
    if (file->fd >= 0)
        close(file->fd);
}

static enum ps_status read_bytes(const struct open_file *file, uint64_t offset, void *out, uint64_t bytes,
                                 struct ps_error *err)
{
    for (uint64_t done = 0; done < bytes;) {
        ssize_t n = pread(file->fd, (uint8_t *)out + done, bytes - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return ps_error_set(err, PS_ERR_IO, "%s: read failed at offset %" PRIu64 ": %s", file->path,
                                offset + done, n < 0 ? strerror(errno) : "the file has become shorter");
        done += (uint64_t)n;
    }
    return PS_OK;
}

/* The first unit of a main or a data file: magic, version and its own hash. */
static enum ps_status read_unit(const struct open_file *file, const char *magic, uint32_t hash_at,
                                uint8_t unit[static IO_ALIGN], struct ps_error *err)
{
    if (file->bytes < IO_ALIGN)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: has only %" PRIu64 " bytes: truncated: copy it again",
                            file->path, file->bytes);
    enum ps_status status = read_bytes(file, 0, unit, IO_ALIGN, err);
    if (status != PS_OK)
        return status;
    if (memcmp(unit, magic, PACKED_MAGIC_BYTES) != 0) {
        if (memcmp(unit, PACKED_DATA_MAGIC, PACKED_MAGIC_BYTES) == 0)
            return ps_error_set(err, PS_ERR_FORMAT,
                                "%s: is a data file of a packed model: name the main file", file->path);
        return ps_error_set(err, PS_ERR_FORMAT, "%s: is not a %s of a packed model", file->path,
                            hash_at == PACKED_AT_MAIN_HASH ? "main file" : "data file");
    }
    uint32_t version = u32_at(unit, PACKED_AT_VERSION);
    if (version > PACKED_VERSION)
        return ps_error_set(err, PS_ERR_UNSUPPORTED,
                            "%s: container version %" PRIu32
                            ", only %d can be read: a newer penstock made it, "
                            "or it is damaged",
                            file->path, version, PACKED_VERSION);
    if (XXH3_64bits(unit, hash_at) != u64_at(unit, hash_at))
        return damaged(file->path, "checksum of its first bytes differs", err);
    if (version != PACKED_VERSION)
        return ps_error_set(err, PS_ERR_UNSUPPORTED,
                            "%s: container version %" PRIu32
                            ", only %d can be read: an older penstock made it: pack the model again",
                            file->path, version, PACKED_VERSION);
    for (uint32_t i = hash_at + (uint32_t)sizeof(uint64_t); i < IO_ALIGN; i++) {
        if (unit[i] != 0)
            return damaged(file->path, "its first unit does not end in zeros", err);
    }
    uint64_t bytes = u64_at(unit, PACKED_AT_FILE_BYTES);
    if (bytes != file->bytes)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s: has %" PRIu64 " bytes, was written with %" PRIu64 ": %s: copy it again",
                            file->path, file->bytes, bytes, file->bytes < bytes ? "truncated" : "damaged");
    return PS_OK;
}

/* ---- superblock ---- */

static struct region region_at(const uint8_t *unit, uint64_t at)
{
    return (struct region){u64_at(unit, at), u64_at(unit, at + 8), u64_at(unit, at + 16)};
}

static bool overlap(uint64_t x, uint64_t x_bytes, uint64_t y, uint64_t y_bytes)
{
    return x < y + y_bytes && y < x + x_bytes;
}

static bool region_fits(const struct region *region, uint64_t file_bytes)
{
    return region->offset % IO_ALIGN == 0 && region->offset >= IO_ALIGN && region->bytes > 0 &&
           region->bytes <= PACKED_MOST_INDEX && region->offset <= file_bytes &&
           region->bytes <= file_bytes - region->offset;
}

static enum ps_status read_superblock(struct packed *packed, const struct open_file *file,
                                      struct ps_error *err)
{
    uint8_t unit[IO_ALIGN];
    enum ps_status status = read_unit(file, PACKED_MAIN_MAGIC, PACKED_AT_MAIN_HASH, unit, err);
    if (status != PS_OK)
        return status;
    memcpy(packed->id, unit + PACKED_AT_ID, sizeof(packed->id));
    packed->header = region_at(unit, PACKED_AT_HEADER);
    packed->index = region_at(unit, PACKED_AT_INDEX);
    if (!region_fits(&packed->header, file->bytes) || !region_fits(&packed->index, file->bytes) ||
        overlap(packed->header.offset, packed->header.bytes, packed->index.offset, packed->index.bytes))
        return damaged(file->path, "places of GGUF header and index", err);
    uint32_t n_files = u32_at(unit, PACKED_AT_N_FILES);
    if (n_files == 0 || n_files > packed->index.bytes / PACKED_FILE_BYTES)
        return damaged(file->path, "number of files", err);
    packed->files = calloc(n_files, sizeof(*packed->files));
    if (!packed->files)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory for %" PRIu32 " files", file->path, n_files);
    packed->n_files = n_files;
    return PS_OK;
}

/* The header is read once more where it is parsed: held only there, and not at all while the index is checked. */
static enum ps_status check_header(const struct packed *packed, const struct open_file *file,
                                   struct ps_error *err)
{
    enum ps_status status = PS_OK;
    uint8_t *piece = malloc(HASH_PIECE);
    XXH3_state_t *state = XXH3_createState();
    if (!piece || !state || XXH3_64bits_reset(state) != XXH_OK)
        status = ps_error_set(err, PS_ERR_NOMEM, "%s: no memory to check its header", file->path);
    for (uint64_t at = 0; status == PS_OK && at < packed->header.bytes; at += HASH_PIECE) {
        uint64_t left = packed->header.bytes - at;
        uint64_t bytes = left < HASH_PIECE ? left : HASH_PIECE;
        status = read_bytes(file, packed->header.offset + at, piece, bytes, err);
        if (status == PS_OK)
            XXH3_64bits_update(state, piece, bytes);
    }
    if (status == PS_OK && XXH3_64bits_digest(state) != packed->header.hash)
        status = damaged(file->path, "checksum of the GGUF header differs", err);
    XXH3_freeState(state);
    free(piece);
    return status;
}

/* ---- index ---- */

static enum ps_status read_index(struct packed *packed, const struct open_file *file, struct ps_error *err)
{
    packed->data = malloc(packed->index.bytes);
    if (!packed->data)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory for its index (%" PRIu64 " bytes)", file->path,
                            packed->index.bytes);
    enum ps_status status = read_bytes(file, packed->index.offset, packed->data, packed->index.bytes, err);
    if (status != PS_OK)
        return status;
    if (XXH3_64bits(packed->data, packed->index.bytes) != packed->index.hash)
        return damaged(file->path, "checksum of the index differs", err);
    posix_fadvise(file->fd, (off_t)packed->index.offset, (off_t)packed->index.bytes, POSIX_FADV_DONTNEED);
    return PS_OK;
}

struct cursor {
    uint64_t at, bytes;
};

static bool take(struct cursor *cursor, uint64_t bytes, uint64_t *at)
{
    if (bytes > cursor->bytes - cursor->at)
        return false;
    *at = cursor->at;
    cursor->at += bytes;
    return true;
}

/* n items of a section that starts at the next multiple. */
static bool take_section(struct cursor *cursor, uint64_t n, uint32_t item_bytes, uint64_t *at)
{
    uint64_t padding = -cursor->at % PACKED_INDEX_ALIGN, unused, bytes;
    return take(cursor, padding, &unused) && !__builtin_mul_overflow(n, item_bytes, &bytes) &&
           take(cursor, bytes, at);
}

/* "DIR/path" for a relative path, DIR being the main file's; NULL when memory runs out. */
static char *resolve_path(const char *main_path, const char *path, uint32_t bytes)
{
    const char *slash = path[0] == '/' ? NULL : strrchr(main_path, '/');
    char *out = NULL;
    if (asprintf(&out, "%.*s%.*s", slash ? (int)(slash - main_path + 1) : 0, main_path, (int)bytes, path) < 0)
        return NULL;
    return out;
}

/* The index's list of files. */
static enum ps_status take_files(struct packed *packed, const struct open_file *file, struct cursor *cursor,
                                 struct ps_error *err)
{
    for (uint32_t i = 0; i < packed->n_files; i++) {
        struct data_file *out = &packed->files[i];
        uint64_t at, path_at;
        if (!take(cursor, PACKED_FILE_BYTES, &at))
            return damaged(file->path, "the index ends in the list of files", err);
        uint32_t path_bytes = u32_at(packed->data, at + 8);
        if (!take(cursor, path_bytes, &path_at))
            return damaged(file->path, "the index ends in a file's path", err);
        const char *path = (const char *)packed->data + path_at;
        out->bytes = u64_at(packed->data, at);
        if (path_bytes > PACKED_MOST_PATH || (path_bytes == 0) != (i == 0) || memchr(path, 0, path_bytes) ||
            (i == 0 && out->bytes != file->bytes))
            return damaged(file->path, "list of files", err);
        out->path = i == 0 ? strdup(file->path) : resolve_path(file->path, path, path_bytes);
        if (!out->path)
            return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory for its files' paths", file->path);
    }
    return PS_OK;
}

static enum ps_status parse_index(struct packed *packed, const struct open_file *file, struct ps_error *err)
{
    struct cursor cursor = {.bytes = packed->index.bytes};
    uint64_t at;
    if (!take(&cursor, PACKED_INDEX_COUNTS, &at))
        return damaged(file->path, "the index is too short", err);
    packed->n_tensors = u32_at(packed->data, 4);
    packed->n_layers = u32_at(packed->data, 8);
    packed->n_shards = u32_at(packed->data, 12);
    packed->n_blocks = u64_at(packed->data, PACKED_AT_N_BLOCKS);
    if (u32_at(packed->data, 0) != packed->n_files)
        return damaged(file->path, "number of files in the index", err);
    enum ps_status status = take_files(packed, file, &cursor, err);
    if (status != PS_OK)
        return status;
    if (!take_section(&cursor, packed->n_tensors, PACKED_TRUNK_BYTES, &packed->trunk_at) ||
        !take_section(&cursor, packed->n_blocks, PACKED_HASH_BYTES, &packed->blocks_at) ||
        !take_section(&cursor, packed->n_layers, PACKED_LAYER_CODECS, &packed->layers_at) ||
        !take_section(&cursor, packed->n_shards, PACKED_EXTENT_BYTES, &packed->extents_at) ||
        !take_section(&cursor, 1, sizeof(uint64_t), &packed->note_at))
        return damaged(file->path, "the index is too short for its counts", err);
    packed->note_bytes = u64_at(packed->data, packed->note_at);
    packed->note_at += sizeof(uint64_t);
    if (packed->note_bytes != cursor.bytes - cursor.at)
        return damaged(file->path, "length of the note", err);
    return PS_OK;
}

static enum ps_status check_layers(const struct packed *packed, struct ps_error *err)
{
    const char *path = packed->files[0].path;
    for (uint32_t layer = 0; layer < packed->n_layers; layer++) {
        const uint8_t *codecs = packed_layer_codecs(packed, layer);
        for (uint32_t part = 0; part < PACKED_LAYER_CODECS; part++) {
            if (part >= SHARD_N_PARTS && codecs[part] != 0)
                return damaged(path, "codecs of a layer", err);
            if (codecs[part] >= CHUNK_N_CODECS)
                return ps_error_set(err, PS_ERR_UNSUPPORTED,
                                    "%s: layer %" PRIu32 ": codec %u is unknown: a newer penstock made it",
                                    path, layer, codecs[part]);
        }
    }
    return PS_OK;
}

static int compare_extents(const void *a, const void *b, void *context)
{
    struct packed_extent x = packed_shard_extent(context, *(const uint32_t *)a);
    struct packed_extent y = packed_shard_extent(context, *(const uint32_t *)b);
    if (x.file != y.file)
        return x.file < y.file ? -1 : 1;
    return x.offset < y.offset ? -1 : x.offset > y.offset;
}

/* If any two overlap, so do two that are neighbours once all are sorted by place. */
static enum ps_status check_overlaps(struct packed *packed, struct ps_error *err)
{
    const char *path = packed->files[0].path;
    enum ps_status status = PS_OK;
    uint32_t n = packed->n_shards;
    uint32_t *order = malloc((n + 1ul) * sizeof(*order));
    if (!order)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory to check %" PRIu32 " extents", path, n);
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    qsort_r(order, n, sizeof(*order), compare_extents, packed);
    for (uint32_t i = 1; status == PS_OK && i < n; i++) {
        struct packed_extent before = packed_shard_extent(packed, order[i - 1]);
        struct packed_extent extent = packed_shard_extent(packed, order[i]);
        if (before.file == extent.file && before.offset + before.bytes > extent.offset)
            status = ps_error_set(err, PS_ERR_FORMAT,
                                  "%s: extent %" PRIu32 " at offset %" PRIu64 " of file %" PRIu32
                                  " overlaps extent %" PRIu32 ": damaged",
                                  path, order[i], extent.offset, extent.file, order[i - 1]);
    }
    free(order);
    return status;
}

static enum ps_status check_places(const struct packed *packed, struct ps_error *err)
{
    const char *path = packed->files[0].path;
    for (uint32_t i = 0; i < packed->n_tensors; i++) {
        uint64_t offset, block;
        if (!packed_trunk_tensor(packed, i, &offset, &block) && block != 0)
            return damaged(path, "blocks of a tensor of the experts", err);
        if (offset != 0 && (offset % PACKED_TENSOR_ALIGN != 0 || !packed_is_data(packed, 0, offset, 1)))
            return ps_error_set(err, PS_ERR_FORMAT,
                                "%s: tensor %" PRIu32 " cannot be at offset %" PRIu64 ": damaged", path, i,
                                offset);
    }
    for (uint32_t i = 0; i < packed->n_shards; i++) {
        struct packed_extent extent = packed_shard_extent(packed, i);
        uint64_t at = packed->extents_at + (uint64_t)i * PACKED_EXTENT_BYTES;
        if (extent.file >= packed->n_files || u32_at(packed->data, at + 4) != 0 ||
            extent.offset % IO_ALIGN != 0 || extent.bytes % IO_ALIGN != 0 ||
            !packed_is_data(packed, extent.file, extent.offset, extent.bytes))
            return ps_error_set(err, PS_ERR_FORMAT,
                                "%s: extent %" PRIu32 " cannot be %" PRIu64 " bytes at offset %" PRIu64
                                " of file %" PRIu32 ": damaged",
                                path, i, extent.bytes, extent.offset, extent.file);
    }
    return PS_OK;
}

/* ---- data files ---- */

static enum ps_status check_data_file(const struct packed *packed, uint32_t number, struct ps_error *err)
{
    struct open_file file = {.path = packed->files[number].path, .fd = -1};
    const char *main_path = packed->files[0].path;
    uint8_t unit[IO_ALIGN];
    enum ps_status status = open_regular(&file, err);
    if (file.fd < 0)
        return ps_error_set(err, PS_ERR_IO, "%s: data file %" PRIu32 " of %s cannot be opened: %s%s",
                            file.path, number, main_path, strerror(errno),
                            errno == ENOENT ? ": a drive that is not mounted?" : "");
    if (status == PS_OK)
        status = read_unit(&file, PACKED_DATA_MAGIC, PACKED_AT_DATA_HASH, unit, err);
    if (status == PS_OK && memcmp(unit + PACKED_AT_ID, packed->id, sizeof(packed->id)) != 0)
        status = ps_error_set(err, PS_ERR_FORMAT, "%s: is of another packing than %s", file.path, main_path);
    if (status == PS_OK && u32_at(unit, PACKED_AT_NUMBER) != number)
        status =
            ps_error_set(err, PS_ERR_FORMAT,
                         "%s: is data file %" PRIu32 " of %s, should be %" PRIu32 ": exchanged or renamed",
                         file.path, u32_at(unit, PACKED_AT_NUMBER), main_path, number);
    if (status == PS_OK && file.bytes != packed->files[number].bytes)
        status = ps_error_set(err, PS_ERR_FORMAT, "%s: has %" PRIu64 " bytes, %s says %" PRIu64 ": damaged",
                              file.path, file.bytes, main_path, packed->files[number].bytes);
    close_file(&file);
    return status;
}

/* ---- public ---- */

bool packed_is_container(const char *path)
{
    struct open_file file = {.path = path, .fd = -1};
    char magic[PACKED_MAGIC_BYTES];
    bool is = open_regular(&file, NULL) == PS_OK && file.bytes >= sizeof(magic) &&
              read_bytes(&file, 0, magic, sizeof(magic), NULL) == PS_OK &&
              (memcmp(magic, PACKED_MAIN_MAGIC, sizeof(magic)) == 0 ||
               memcmp(magic, PACKED_DATA_MAGIC, sizeof(magic)) == 0);
    close_file(&file);
    return is;
}

static enum ps_status read_main_file(struct packed *packed, const struct open_file *file,
                                     struct ps_error *err)
{
    enum ps_status status;
    if ((status = read_superblock(packed, file, err)) != PS_OK ||
        (status = check_header(packed, file, err)) != PS_OK ||
        (status = read_index(packed, file, err)) != PS_OK ||
        (status = parse_index(packed, file, err)) != PS_OK)
        return status;
    return PS_OK;
}

enum ps_status packed_open(struct packed **out, const char *path, struct ps_error *err)
{
    *out = NULL;
    struct packed *packed = calloc(1, sizeof(*packed));
    if (!packed)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory", path);
    struct open_file file = {.path = path, .fd = -1};
    enum ps_status status = open_regular(&file, err);
    if (file.fd < 0)
        ps_error_set(err, PS_ERR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    if (status == PS_OK)
        status = read_main_file(packed, &file, err);
    close_file(&file);
    for (uint32_t i = 1; status == PS_OK && i < packed->n_files; i++)
        status = check_data_file(packed, i, err);
    if (status == PS_OK)
        status = check_layers(packed, err);
    if (status == PS_OK)
        status = check_places(packed, err);
    if (status == PS_OK)
        status = check_overlaps(packed, err);
    if (status != PS_OK) {
        packed_free(packed);
        return status;
    }
    *out = packed;
    return PS_OK;
}

void packed_free(struct packed *packed)
{
    if (!packed)
        return;
    for (uint32_t i = 0; i < packed->n_files; i++)
        free(packed->files[i].path);
    free(packed->files);
    free(packed->data);
    free(packed);
}

uint32_t packed_n_files(const struct packed *packed)
{
    return packed->n_files;
}

const char *packed_file_path(const struct packed *packed, uint32_t file)
{
    return packed->files[file].path;
}

uint64_t packed_file_bytes(const struct packed *packed, uint32_t file)
{
    return packed->files[file].bytes;
}

uint64_t packed_memory(const struct packed *packed)
{
    uint64_t bytes = sizeof(*packed) + packed->index.bytes + packed->n_files * sizeof(*packed->files);
    for (uint32_t i = 0; i < packed->n_files; i++)
        bytes += strlen(packed->files[i].path) + 1;
    return bytes;
}

void packed_gguf_header(const struct packed *packed, uint64_t *offset, uint64_t *bytes)
{
    *offset = packed->header.offset;
    *bytes = packed->header.bytes;
}

bool packed_is_data(const struct packed *packed, uint32_t file, uint64_t offset, uint64_t bytes)
{
    uint64_t size = packed->files[file].bytes;
    if (offset < IO_ALIGN || bytes == 0 || offset > size || bytes > size - offset)
        return false;
    return file > 0 || (!overlap(offset, bytes, packed->header.offset, packed->header.bytes) &&
                        !overlap(offset, bytes, packed->index.offset, packed->index.bytes));
}

uint32_t packed_n_tensors(const struct packed *packed)
{
    return packed->n_tensors;
}

uint64_t packed_n_blocks(const struct packed *packed)
{
    return packed->n_blocks;
}

bool packed_trunk_tensor(const struct packed *packed, uint32_t tensor, uint64_t *offset,
                         uint64_t *first_block)
{
    uint64_t at = packed->trunk_at + (uint64_t)tensor * PACKED_TRUNK_BYTES;
    *offset = u64_at(packed->data, at);
    *first_block = u64_at(packed->data, at + 8);
    return *offset != 0;
}

uint64_t packed_trunk_damage(const struct packed *packed, uint32_t tensor, uint64_t at, const uint8_t *data,
                             uint64_t bytes)
{
    uint64_t offset, block;
    packed_trunk_tensor(packed, tensor, &offset, &block);
    uint64_t hash_at = packed->blocks_at + (block + at / PACKED_BLOCK_BYTES) * PACKED_HASH_BYTES;
    for (uint64_t done = 0; done < bytes; done += PACKED_BLOCK_BYTES, hash_at += PACKED_HASH_BYTES) {
        uint64_t n = bytes - done < PACKED_BLOCK_BYTES ? bytes - done : PACKED_BLOCK_BYTES;
        if (XXH3_64bits(data + done, n) != u64_at(packed->data, hash_at))
            return at + done;
    }
    return UINT64_MAX;
}

uint32_t packed_n_layers(const struct packed *packed)
{
    return packed->n_layers;
}

const uint8_t *packed_layer_codecs(const struct packed *packed, uint32_t layer)
{
    return packed->data + packed->layers_at + (uint64_t)layer * PACKED_LAYER_CODECS;
}

uint32_t packed_n_shards(const struct packed *packed)
{
    return packed->n_shards;
}

struct packed_extent packed_shard_extent(const struct packed *packed, uint32_t shard)
{
    uint64_t at = packed->extents_at + (uint64_t)shard * PACKED_EXTENT_BYTES;
    return (struct packed_extent){u32_at(packed->data, at), u64_at(packed->data, at + 8),
                                  u64_at(packed->data, at + 16), u64_at(packed->data, at + 24)};
}

const char *packed_note(const struct packed *packed, uint64_t *bytes)
{
    *bytes = packed->note_bytes;
    return (const char *)packed->data + packed->note_at;
}
