/* GGUF directory of a model: joins the headers of its parts, finds tensors and keys by name, converts values.
 * What one file's header may look like is gguf_header.c's business. */
#include "storage/gguf.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "storage/gguf_header.h"
#include "storage/name_table.h"
#include "storage/packed.h"

enum { MAX_PARTS = 99999 }; /* five digits in a part's name */

struct gguf {
    uint32_t n_files;
    uint32_t n_tensors;
    char **path;                 /* [n_files] owned */
    struct gguf_header *header;  /* [n_files] owned */
    struct gguf_tensor *tensors; /* all parts' in file order; owned */
    struct name_table keys;      /* of the first part */
    struct name_table names;     /* of tensors */
    struct packed *packed;       /* NULL: a GGUF; owned. Of a container, n_files is 1 here: one header */
    uint64_t *unpacked_offset;   /* [n_tensors] of a container; owned */
};

static struct gguf_string key_at(const void *items, uint32_t index)
{
    return ((const struct gguf_kv *)items)[index].key;
}

static struct gguf_string tensor_name_at(const void *items, uint32_t index)
{
    const char *name = ((const struct gguf_tensor *)items)[index].name;
    return (struct gguf_string){name, strlen(name)};
}

static enum ps_status index_keys(struct name_table *keys, const struct gguf_header *header, const char *path,
                                 struct ps_error *err)
{
    if (!name_table_init(keys, key_at, header->kv, header->n_kv))
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory for %" PRIu32 " metadata keys", path,
                            header->n_kv);
    for (uint32_t i = 0; i < header->n_kv; i++) {
        if (name_table_add(keys, i) != NAME_TABLE_NONE) {
            struct gguf_string key = header->kv[i].key;
            return ps_error_set(err, PS_ERR_FORMAT, "%s: %.*s: metadata key occurs twice", path,
                                (int)(key.length < 80 ? key.length : 80), key.data);
        }
    }
    return PS_OK;
}

/* Where a file says it stands in a split model. */
struct split {
    uint64_t number; /* of this part, from 0 */
    uint64_t count;  /* parts; 0 or 1: not split */
    uint64_t n_tensors;
    bool has_n_tensors;
};

static bool find_u64(const struct name_table *keys, const char *key, uint64_t *out);

static void read_split(const struct name_table *keys, struct split *out)
{
    *out = (struct split){0};
    find_u64(keys, "split.no", &out->number);
    find_u64(keys, "split.count", &out->count);
    out->has_n_tensors = find_u64(keys, "split.tensors.count", &out->n_tensors);
}

/* "PREFIX-00002-of-00003.gguf" for part 1 of 3; NULL when memory runs out. */
static char *part_path(const char *path, size_t prefix_length, uint32_t part, uint32_t count)
{
    char *out = NULL;
    if (asprintf(&out, "%.*s-%05" PRIu32 "-of-%05" PRIu32 ".gguf", (int)prefix_length, path, part + 1,
                 count) < 0)
        return NULL;
    return out;
}

/* Length of PREFIX in the path of a part; fails when the name is not the one its metadata asks for. */
static enum ps_status split_prefix(const char *path, const struct split *split, size_t *out,
                                   struct ps_error *err)
{
    if (split->count > MAX_PARTS || split->number >= split->count)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s: part %" PRIu64 " of %" PRIu64 ": damaged split.no or split.count", path,
                            split->number, split->count);
    char suffix[32];
    int n = snprintf(suffix, sizeof(suffix), "-%05u-of-%05u.gguf", (unsigned)split->number + 1,
                     (unsigned)split->count);
    size_t length = strlen(path);
    if (length < (size_t)n || strcmp(path + length - n, suffix) != 0)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s: holds part %" PRIu64 " of %" PRIu64
                            " of a split model, but its name does not end in %s: rename it",
                            path, split->number + 1, split->count, suffix);
    *out = length - (size_t)n;
    return PS_OK;
}

/* Names all parts and sees that they are there, so that a claimed count is a proved one. */
static enum ps_status name_parts(struct gguf *gguf, const char *path, const struct split *split,
                                 struct ps_error *err)
{
    size_t prefix_length = 0;
    enum ps_status status = split_prefix(path, split, &prefix_length, err);
    if (status != PS_OK)
        return status;
    uint32_t count = (uint32_t)split->count;
    for (uint32_t i = 0; i < count; i++) {
        char *name = part_path(path, prefix_length, i, count);
        if (!name)
            return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory", path);
        struct stat st;
        if (stat(name, &st) != 0)
            status = ps_error_set(err, PS_ERR_IO,
                                  "%s: part %" PRIu32 " of %" PRIu32 " of a split model: %s: "
                                  "all parts must lie in one folder",
                                  name, i + 1, count, strerror(errno));
        free(name);
        if (status != PS_OK)
            return status;
    }
    gguf->path = calloc(count, sizeof(*gguf->path));
    gguf->header = calloc(count, sizeof(*gguf->header));
    if (!gguf->path || !gguf->header)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory for %" PRIu32 " parts", path, count);
    gguf->n_files = count;
    for (uint32_t i = 0; i < count; i++) {
        gguf->path[i] = part_path(path, prefix_length, i, count);
        if (!gguf->path[i])
            return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory", path);
    }
    return PS_OK;
}

/* Reads part i and checks that it is the part that its name promises. */
static enum ps_status read_part(struct gguf *gguf, uint32_t i, const struct split *expected,
                                struct ps_error *err)
{
    struct gguf_header *header = &gguf->header[i];
    enum ps_status status = gguf_header_read(header, gguf->path[i], i, err);
    if (status != PS_OK)
        return status;
    struct name_table keys = {0};
    status = index_keys(&keys, header, gguf->path[i], err);
    struct split split;
    if (status == PS_OK) {
        read_split(&keys, &split);
        if (split.count != expected->count || split.number != i)
            status = ps_error_set(err, PS_ERR_FORMAT,
                                  "%s: its metadata says part %" PRIu64 " of %" PRIu64
                                  ": not a part of this model",
                                  gguf->path[i], split.number + 1, split.count);
    }
    if (status == PS_OK && i == 0) {
        gguf->keys = keys;
        return PS_OK;
    }
    name_table_deinit(&keys);
    free(header->kv); /* metadata is that of the first part */
    header->kv = NULL;
    header->n_kv = 0;
    return status;
}

static enum ps_status read_split_model(struct gguf *gguf, const char *path, const struct split *split,
                                       struct ps_error *err)
{
    enum ps_status status = name_parts(gguf, path, split, err);
    for (uint32_t i = 0; status == PS_OK && i < gguf->n_files; i++)
        status = read_part(gguf, i, split, err);
    return status;
}

/* Takes over the header of a model that is one file. */
static enum ps_status adopt_single(struct gguf *gguf, const char *path, struct gguf_header *header,
                                   struct name_table *keys, struct ps_error *err)
{
    gguf->path = calloc(1, sizeof(*gguf->path));
    gguf->header = calloc(1, sizeof(*gguf->header));
    if (!gguf->path || !gguf->header)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory", path);
    gguf->n_files = 1;
    gguf->path[0] = strdup(path);
    if (!gguf->path[0])
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory", path);
    gguf->header[0] = *header;
    gguf->keys = *keys;
    *header = (struct gguf_header){0};
    *keys = (struct name_table){0};
    return PS_OK;
}

static enum ps_status read_container(struct gguf *gguf, const char *path, struct ps_error *err)
{
    enum ps_status status = packed_open(&gguf->packed, path, err);
    if (status != PS_OK)
        return status;
    struct gguf_header header;
    struct name_table keys = {0};
    uint64_t offset, bytes;
    packed_gguf_header(gguf->packed, &offset, &bytes);
    status = gguf_header_read_packed(&header, path, offset, bytes, err);
    if (status == PS_OK)
        status = index_keys(&keys, &header, path, err);
    if (status == PS_OK)
        status = adopt_single(gguf, path, &header, &keys, err);
    name_table_deinit(&keys);
    gguf_header_deinit(&header);
    return status;
}

static enum ps_status read_files(struct gguf *gguf, const char *path, struct ps_error *err)
{
    if (packed_is_container(path))
        return read_container(gguf, path, err);
    struct gguf_header header;
    struct name_table keys = {0};
    struct split split;
    enum ps_status status = gguf_header_read(&header, path, 0, err);
    if (status == PS_OK)
        status = index_keys(&keys, &header, path, err);
    if (status == PS_OK) {
        read_split(&keys, &split);
        if (split.count <= 1) {
            status = adopt_single(gguf, path, &header, &keys, err);
        } else {
            name_table_deinit(&keys);
            gguf_header_deinit(&header); /* read again in its turn: once more, but never two at a time */
            return read_split_model(gguf, path, &split, err);
        }
    }
    name_table_deinit(&keys);
    gguf_header_deinit(&header);
    return status;
}

static int compare_place(const void *a, const void *b)
{
    const struct gguf_tensor *x = a, *y = b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* One directory of all parts' tensors, in file order. */
static enum ps_status join_tensors(struct gguf *gguf, struct ps_error *err)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < gguf->n_files; i++)
        total += gguf->header[i].n_tensors;
    if (total >= UINT32_MAX)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: %" PRIu64 " tensors are too many", gguf->path[0], total);
    gguf->tensors = realloc(gguf->header[0].tensors, (total + 1) * sizeof(*gguf->tensors));
    if (!gguf->tensors)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory for %" PRIu64 " tensors", gguf->path[0], total);
    gguf->n_tensors = gguf->header[0].n_tensors;
    gguf->header[0].tensors = NULL;
    for (uint32_t i = 1; i < gguf->n_files; i++) {
        struct gguf_header *header = &gguf->header[i];
        memcpy(gguf->tensors + gguf->n_tensors, header->tensors,
               header->n_tensors * sizeof(*header->tensors));
        gguf->n_tensors += header->n_tensors;
        free(header->tensors);
        header->tensors = NULL;
    }
    for (uint32_t i = 1; i < gguf->n_tensors; i++) {
        if (compare_place(&gguf->tensors[i - 1], &gguf->tensors[i]) > 0) {
            qsort(gguf->tensors, gguf->n_tensors, sizeof(*gguf->tensors), compare_place);
            break;
        }
    }
    return PS_OK;
}

static enum ps_status check_tensors(struct gguf *gguf, struct ps_error *err)
{
    const struct gguf_tensor *t = gguf->tensors;
    uint64_t claimed;
    if (gguf->n_files > 1 && gguf_get_u64(gguf, "split.tensors.count", &claimed) &&
        claimed != gguf->n_tensors)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s: split.tensors.count: %" PRIu64 ", but the parts hold %" PRIu32,
                            gguf->path[0], claimed, gguf->n_tensors);
    for (uint32_t i = 1; i < gguf->n_tensors; i++) {
        if (t[i - 1].file == t[i].file && t[i - 1].offset + t[i - 1].bytes > t[i].offset)
            return ps_error_set(err, PS_ERR_FORMAT, "%s: %.80s overlaps %.80s at offset %" PRIu64,
                                gguf->path[t[i].file], t[i - 1].name, t[i].name, t[i].offset);
    }
    if (!name_table_init(&gguf->names, tensor_name_at, gguf->tensors, gguf->n_tensors))
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory for %" PRIu32 " tensor names", gguf->path[0],
                            gguf->n_tensors);
    for (uint32_t i = 0; i < gguf->n_tensors; i++) {
        if (name_table_add(&gguf->names, i) != NAME_TABLE_NONE)
            return ps_error_set(err, PS_ERR_FORMAT, "%s: %.80s: tensor name occurs twice",
                                gguf->path[t[i].file], t[i].name);
    }
    return PS_OK;
}

/* No expert's extent is between the trunk's first and last byte. */
static enum ps_status check_trunk(const struct gguf *gguf, uint64_t start, uint64_t end, struct ps_error *err)
{
    for (uint32_t i = 0; i < packed_n_shards(gguf->packed); i++) {
        struct packed_extent extent = packed_shard_extent(gguf->packed, i);
        if (extent.file == 0 && extent.offset < end && start < extent.offset + extent.bytes)
            return ps_error_set(err, PS_ERR_FORMAT,
                                "%s: extent %" PRIu32 " at offset %" PRIu64 " overlaps the trunk: damaged",
                                gguf->path[0], i, extent.offset);
    }
    return PS_OK;
}

/* From where a container's tensors were in the GGUF to where they are in the container. */
static enum ps_status place_packed(struct gguf *gguf, struct ps_error *err)
{
    if (gguf->n_tensors != packed_n_tensors(gguf->packed))
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s: %" PRIu32 " tensors in the GGUF header, %" PRIu32 " in the index: damaged",
                            gguf->path[0], gguf->n_tensors, packed_n_tensors(gguf->packed));
    gguf->unpacked_offset = malloc((gguf->n_tensors + 1ul) * sizeof(*gguf->unpacked_offset));
    if (!gguf->unpacked_offset)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory for %" PRIu32 " tensors", gguf->path[0],
                            gguf->n_tensors);
    uint64_t start = UINT64_MAX, end = 0, n_blocks = 0;
    for (uint32_t i = 0; i < gguf->n_tensors; i++) {
        struct gguf_tensor *tensor = &gguf->tensors[i];
        uint64_t offset, block;
        gguf->unpacked_offset[i] = tensor->offset;
        if (!packed_trunk_tensor(gguf->packed, i, &offset, &block)) {
            tensor->file = GGUF_NO_FILE;
            continue;
        }
        if (!packed_is_data(gguf->packed, 0, offset, tensor->bytes))
            return ps_error_set(err, PS_ERR_FORMAT,
                                "%s: %.80s: %" PRIu64 " bytes cannot be at offset %" PRIu64 ": damaged",
                                gguf->path[0], tensor->name, tensor->bytes, offset);
        if (offset < end)
            return ps_error_set(err, PS_ERR_FORMAT,
                                "%s: %.80s at offset %" PRIu64 " overlaps or precedes the tensor before it: "
                                "damaged",
                                gguf->path[0], tensor->name, offset);
        if (block != n_blocks)
            return ps_error_set(err, PS_ERR_FORMAT,
                                "%s: %.80s: its first block is %" PRIu64 ", must be %" PRIu64 ": damaged",
                                gguf->path[0], tensor->name, block, n_blocks);
        n_blocks += packed_blocks(tensor->bytes);
        tensor->offset = offset;
        start = offset < start ? offset : start;
        end = offset + tensor->bytes;
    }
    if (n_blocks != packed_n_blocks(gguf->packed))
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s: %" PRIu64 " blocks of the trunk in the index, must be %" PRIu64 ": damaged",
                            gguf->path[0], packed_n_blocks(gguf->packed), n_blocks);
    return check_trunk(gguf, start, end, err);
}

enum ps_status gguf_open(struct gguf **out, const char *path, struct ps_error *err)
{
    *out = NULL;
    struct gguf *gguf = calloc(1, sizeof(*gguf));
    if (!gguf)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory", path);
    enum ps_status status = read_files(gguf, path, err);
    if (status == PS_OK)
        status = join_tensors(gguf, err);
    if (status == PS_OK)
        status = check_tensors(gguf, err);
    if (status == PS_OK && gguf->packed)
        status = place_packed(gguf, err);
    if (status != PS_OK) {
        gguf_free(gguf);
        return status;
    }
    *out = gguf;
    return PS_OK;
}

void gguf_free(struct gguf *gguf)
{
    if (!gguf)
        return;
    for (uint32_t i = 0; i < gguf->n_files; i++) {
        free(gguf->path[i]);
        gguf_header_deinit(&gguf->header[i]);
    }
    free(gguf->path);
    free(gguf->header);
    free(gguf->tensors);
    name_table_deinit(&gguf->keys);
    name_table_deinit(&gguf->names);
    packed_free(gguf->packed);
    free(gguf->unpacked_offset);
    free(gguf);
}

uint32_t gguf_version(const struct gguf *gguf)
{
    return gguf->header[0].version;
}

uint32_t gguf_n_files(const struct gguf *gguf)
{
    return gguf->packed ? packed_n_files(gguf->packed) : gguf->n_files;
}

const char *gguf_file_path(const struct gguf *gguf, uint32_t file)
{
    return gguf->packed ? packed_file_path(gguf->packed, file) : gguf->path[file];
}

uint64_t gguf_file_size(const struct gguf *gguf, uint32_t file)
{
    return gguf->packed ? packed_file_bytes(gguf->packed, file) : gguf->header[file].file_size;
}

uint64_t gguf_memory(const struct gguf *gguf)
{
    uint64_t bytes = sizeof(*gguf) + name_table_memory(&gguf->keys) + name_table_memory(&gguf->names) +
                     (gguf->n_tensors + 1ul) * sizeof(*gguf->tensors);
    for (uint32_t i = 0; i < gguf->n_files; i++) {
        const struct gguf_header *header = &gguf->header[i];
        bytes += sizeof(*header) + sizeof(char *) + strlen(gguf->path[i]) + 1 + header->bytes +
                 header->n_kv * sizeof(*header->kv);
    }
    if (gguf->packed)
        bytes += packed_memory(gguf->packed) + (gguf->n_tensors + 1ul) * sizeof(*gguf->unpacked_offset);
    return bytes;
}

const struct packed *gguf_packed(const struct gguf *gguf)
{
    return gguf->packed;
}

uint64_t gguf_unpacked_bytes(const struct gguf *gguf)
{
    uint64_t end = gguf->header[0].data_start;
    if (gguf->n_tensors > 0)
        end = gguf->unpacked_offset[gguf->n_tensors - 1] + gguf->tensors[gguf->n_tensors - 1].bytes;
    return end + (-end & (uint64_t)(gguf->header[0].alignment - 1));
}

enum ps_status gguf_check_trunk(const struct gguf *gguf, uint32_t tensor, uint64_t at, const uint8_t *data,
                                uint64_t bytes, struct ps_error *err)
{
    uint64_t damage = packed_trunk_damage(gguf->packed, tensor, at, data, bytes);
    if (damage == UINT64_MAX)
        return PS_OK;
    const struct gguf_tensor *t = &gguf->tensors[tensor];
    return ps_error_set(err, PS_ERR_FORMAT,
                        "%.80s: %s: block at offset %" PRIu64
                        ": checksum differs: copy the file again, or pack "
                        "the model again",
                        t->name, gguf_file_path(gguf, t->file), t->offset + damage);
}

uint64_t gguf_unpacked_offset(const struct gguf *gguf, uint32_t tensor)
{
    return gguf->unpacked_offset[tensor];
}

uint64_t gguf_n_kv(const struct gguf *gguf)
{
    return gguf->header[0].n_kv;
}

const struct gguf_kv *gguf_kv_at(const struct gguf *gguf, uint64_t index)
{
    return &gguf->header[0].kv[index];
}

static const struct gguf_value *find_value(const struct name_table *keys, const char *key)
{
    uint32_t index = name_table_find(keys, (struct gguf_string){key, strlen(key)});
    return index == NAME_TABLE_NONE ? NULL : &((const struct gguf_kv *)keys->items)[index].value;
}

const struct gguf_value *gguf_find(const struct gguf *gguf, const char *key)
{
    return find_value(&gguf->keys, key);
}

static bool is_signed(enum gguf_value_type type)
{
    return type == GGUF_INT8 || type == GGUF_INT16 || type == GGUF_INT32 || type == GGUF_INT64;
}

static bool is_unsigned(enum gguf_value_type type)
{
    return type == GGUF_UINT8 || type == GGUF_UINT16 || type == GGUF_UINT32 || type == GGUF_UINT64;
}

static bool find_u64(const struct name_table *keys, const char *key, uint64_t *out)
{
    const struct gguf_value *value = find_value(keys, key);
    if (!value)
        return false;
    bool converts =
        is_unsigned(value->type) || value->type == GGUF_BOOL || (is_signed(value->type) && value->i >= 0);
    if (converts)
        *out = value->u;
    return converts;
}

bool gguf_get_u64(const struct gguf *gguf, const char *key, uint64_t *out)
{
    return find_u64(&gguf->keys, key, out);
}

bool gguf_get_f64(const struct gguf *gguf, const char *key, double *out)
{
    const struct gguf_value *value = gguf_find(gguf, key);
    if (!value)
        return false;
    if (value->type == GGUF_FLOAT32 || value->type == GGUF_FLOAT64) {
        *out = value->f;
        return true;
    }
    if (!is_signed(value->type) && !is_unsigned(value->type))
        return false;
    bool negative = is_signed(value->type) && value->i < 0;
    uint64_t magnitude = negative ? -value->u : value->u;
    double number = (double)magnitude;
    /* 2^64 itself does not convert back */
    if (number >= 0x1p64 || (uint64_t)number != magnitude)
        return false;
    *out = negative ? -number : number;
    return true;
}

bool gguf_get_bool(const struct gguf *gguf, const char *key, bool *out)
{
    uint64_t number;
    if (!gguf_get_u64(gguf, key, &number) || number > 1)
        return false;
    *out = number != 0;
    return true;
}

bool gguf_get_string(const struct gguf *gguf, const char *key, struct gguf_string *out)
{
    const struct gguf_value *value = gguf_find(gguf, key);
    if (!value || value->type != GGUF_STRING)
        return false;
    *out = value->s;
    return true;
}

const struct gguf_array *gguf_get_array(const struct gguf *gguf, const char *key, enum gguf_value_type type)
{
    const struct gguf_value *value = gguf_find(gguf, key);
    return value && value->type == GGUF_ARRAY && value->a.type == type ? &value->a : NULL;
}

/* The bits of an element, zero-extended. */
static uint64_t load(const struct gguf_array *array, uint64_t index, uint32_t bytes)
{
    uint64_t bits = 0;
    memcpy(&bits, array->data + index * bytes, bytes);
    return bits;
}

static int64_t load_signed(const struct gguf_array *array, uint64_t index, uint32_t bytes)
{
    uint32_t unused = 64 - 8 * bytes;
    return (int64_t)(load(array, index, bytes) << unused) >> unused;
}

static double load_float(const struct gguf_array *array, uint64_t index)
{
    float value;
    memcpy(&value, array->data + index * sizeof(value), sizeof(value));
    return (double)value;
}

static double load_double(const struct gguf_array *array, uint64_t index)
{
    double value;
    memcpy(&value, array->data + index * sizeof(value), sizeof(value));
    return value;
}

double gguf_array_f64(const struct gguf_array *array, uint64_t index)
{
    switch (array->type) {
    case GGUF_FLOAT32:
        return load_float(array, index);
    case GGUF_FLOAT64:
        return load_double(array, index);
    default:
        break;
    }
    uint64_t bits = gguf_array_u64(array, index);
    return is_signed(array->type) ? (double)(int64_t)bits : (double)bits;
}

/* Floats are cut towards zero; those outside of int64 give 0. */
static uint64_t integer_part(double value)
{
    return value > -0x1p63 && value < 0x1p63 ? (uint64_t)(int64_t)value : 0;
}

uint64_t gguf_array_u64(const struct gguf_array *array, uint64_t index)
{
    switch (array->type) {
    case GGUF_UINT8:
        return load(array, index, 1);
    case GGUF_BOOL:
        return load(array, index, 1) != 0;
    case GGUF_UINT16:
        return load(array, index, 2);
    case GGUF_UINT32:
        return load(array, index, 4);
    case GGUF_UINT64:
        return load(array, index, 8);
    case GGUF_INT8:
        return (uint64_t)load_signed(array, index, 1);
    case GGUF_INT16:
        return (uint64_t)load_signed(array, index, 2);
    case GGUF_INT32:
        return (uint64_t)load_signed(array, index, 4);
    case GGUF_INT64:
        return (uint64_t)load_signed(array, index, 8);
    case GGUF_FLOAT32:
    case GGUF_FLOAT64:
        return integer_part(gguf_array_f64(array, index));
    case GGUF_STRING:
    case GGUF_ARRAY:
        break; /* excluded by the contract */
    }
    return 0;
}

void gguf_array_strings(const struct gguf_array *array, struct gguf_string *strings)
{
    const uint8_t *at = array->data;
    for (uint64_t i = 0; i < array->count; i++) {
        memcpy(&strings[i].length, at, sizeof(strings[i].length));
        at += sizeof(strings[i].length);
        strings[i].data = (const char *)at;
        at += strings[i].length;
    }
}

uint32_t gguf_n_tensors(const struct gguf *gguf)
{
    return gguf->n_tensors;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *gguf, uint32_t index)
{
    return &gguf->tensors[index];
}

const struct gguf_tensor *gguf_tensor_find(const struct gguf *gguf, const char *name)
{
    uint32_t index = name_table_find(&gguf->names, (struct gguf_string){name, strlen(name)});
    return index == NAME_TABLE_NONE ? NULL : &gguf->tensors[index];
}
