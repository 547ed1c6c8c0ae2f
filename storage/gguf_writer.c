/* GGUF writer: see the header. Metadata and directory are built in memory and written at begin_data(); tensor
 * data goes straight to its place. Padding is never written: the file is extended, and what is skipped reads
 * as zero. */
#include "storage/gguf_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "storage/file_output.h"
#include "storage/gguf_header.h"
#include "storage/name_table.h"

enum {
    GGUF_VERSION = 3,
    MAX_NAME = 63,           /* GGML_MAX_NAME less its end: longer names do not load elsewhere */
    MAX_ALIGNMENT = 1 << 30, /* bytes; padding stays far below what overflows */
};

/* Bytes that grow. */
struct buffer {
    uint8_t *data;
    size_t bytes;
    size_t capacity;
};

struct gguf_writer {
    char *path;
    char *temporary;         /* name until finish(); NULL: only the header is asked for */
    struct file_output file; /* under the temporary name */
    uint32_t alignment;
    enum ps_status status; /* first failure of a setter, */
    struct ps_error error; /* and its message */

    struct buffer metadata;   /* entries as they stand in the file */
    struct gguf_string *keys; /* owned copies */
    uint32_t n_keys;
    uint32_t keys_capacity;

    struct gguf_tensor *tensors; /* names owned; offset counts from the data section until begin_data() */
    uint32_t n_tensors;
    uint32_t tensors_capacity;
    uint64_t data_bytes; /* of all tensors, padded */

    bool started;        /* the header has been written */
    bool finished;       /* the file has its name */
    uint64_t file_bytes; /* of the whole file */
    uint32_t current;    /* tensor that takes the next byte of data */
    uint64_t filled;     /* bytes of it that have been written */
};

static void keep_error(struct gguf_writer *w, const struct ps_error *error)
{
    if (w->status != PS_OK)
        return;
    w->status = error->status;
    w->error = *error;
}

static void out_of_memory(struct gguf_writer *w)
{
    struct ps_error error;
    ps_error_set(&error, PS_ERR_NOMEM, "%s: no memory for its header", w->path);
    keep_error(w, &error);
}

static bool reserve(void **items, uint32_t n, uint32_t *capacity, size_t item_bytes)
{
    if (n < *capacity)
        return true;
    uint32_t wanted = *capacity ? *capacity * 2 : 16;
    size_t bytes;
    if (wanted <= n || __builtin_mul_overflow(wanted, item_bytes, &bytes))
        return false;
    void *grown = realloc(*items, bytes);
    if (!grown)
        return false;
    *items = grown;
    *capacity = wanted;
    return true;
}

static void append(struct gguf_writer *w, struct buffer *buffer, const void *data, size_t bytes)
{
    size_t needed;
    if (w->status != PS_OK || bytes == 0)
        return;
    if (__builtin_add_overflow(buffer->bytes, bytes, &needed) || needed > SIZE_MAX / 2) {
        out_of_memory(w);
        return;
    }
    if (needed > buffer->capacity) {
        size_t capacity = buffer->capacity * 2 > needed ? buffer->capacity * 2 : needed;
        uint8_t *grown = realloc(buffer->data, capacity);
        if (!grown) {
            out_of_memory(w);
            return;
        }
        buffer->data = grown;
        buffer->capacity = capacity;
    }
    memcpy(buffer->data + buffer->bytes, data, bytes);
    buffer->bytes = needed;
}

static void append_u32(struct gguf_writer *w, struct buffer *buffer, uint32_t value)
{
    append(w, buffer, &value, sizeof(value));
}

static void append_u64(struct gguf_writer *w, struct buffer *buffer, uint64_t value)
{
    append(w, buffer, &value, sizeof(value));
}

static void append_string(struct gguf_writer *w, struct buffer *buffer, struct gguf_string string)
{
    append_u64(w, buffer, string.length);
    append(w, buffer, string.data, string.length);
}

static struct gguf_string string_of(const char *text)
{
    return (struct gguf_string){text, strlen(text)};
}

enum ps_status gguf_writer_new_header(struct gguf_writer **out, const char *path, uint32_t alignment,
                                      struct ps_error *err)
{
    *out = NULL;
    if (alignment == 0)
        alignment = GGUF_DEFAULT_ALIGNMENT;
    if (alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)) != 0)
        return ps_error_set(err, PS_ERR_ARGUMENT, "%s: alignment %" PRIu32 " is no power of two", path,
                            alignment);
    struct gguf_writer *w = calloc(1, sizeof(*w));
    if (!w)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory", path);
    w->file.fd = -1;
    w->alignment = alignment;
    w->path = strdup(path);
    if (!w->path) {
        gguf_writer_free(w);
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory", path);
    }
    if (alignment != GGUF_DEFAULT_ALIGNMENT)
        gguf_writer_set_u32(w, "general.alignment", alignment);
    *out = w;
    return PS_OK;
}

enum ps_status gguf_writer_new(struct gguf_writer **out, const char *path, uint32_t alignment,
                               struct ps_error *err)
{
    enum ps_status status = gguf_writer_new_header(out, path, alignment, err);
    if (status != PS_OK)
        return status;
    struct gguf_writer *w = *out;
    if (asprintf(&w->temporary, "%s.%ld.partial", path, (long)getpid()) < 0) {
        w->temporary = NULL;
        status = ps_error_set(err, PS_ERR_NOMEM, "%s: no memory", path);
        goto failed;
    }
    w->file.path = w->temporary;
    w->file.fd = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (w->file.fd >= 0)
        return PS_OK;
    status = ps_error_set(err, PS_ERR_IO, "%s: cannot be created: %s", w->temporary, strerror(errno));
failed:
    gguf_writer_free(w);
    *out = NULL;
    return status;
}

void gguf_writer_free(struct gguf_writer *w)
{
    if (!w)
        return;
    if (w->file.fd >= 0) {
        close(w->file.fd);
        if (!w->finished)
            unlink(w->temporary);
    }
    for (uint32_t i = 0; i < w->n_keys; i++)
        free((char *)w->keys[i].data);
    for (uint32_t i = 0; i < w->n_tensors; i++)
        free((char *)w->tensors[i].name);
    free(w->keys);
    free(w->tensors);
    free(w->metadata.data);
    free(w->path);
    free(w->temporary);
    free(w);
}

/* Starts a metadata entry: key and type. */
static void begin_entry(struct gguf_writer *w, struct gguf_string key, enum gguf_value_type type)
{
    if (w->status != PS_OK)
        return;
    char *copy = malloc(key.length + 1);
    if (!copy || !reserve((void **)&w->keys, w->n_keys, &w->keys_capacity, sizeof(*w->keys))) {
        free(copy);
        out_of_memory(w);
        return;
    }
    memcpy(copy, key.data, key.length);
    w->keys[w->n_keys++] = (struct gguf_string){copy, key.length};
    append_string(w, &w->metadata, key);
    append_u32(w, &w->metadata, type);
}

static void set_scalar(struct gguf_writer *w, const char *key, enum gguf_value_type type, const void *value,
                       size_t bytes)
{
    begin_entry(w, string_of(key), type);
    append(w, &w->metadata, value, bytes);
}

void gguf_writer_set_u32(struct gguf_writer *w, const char *key, uint32_t value)
{
    set_scalar(w, key, GGUF_UINT32, &value, sizeof(value));
}

void gguf_writer_set_u64(struct gguf_writer *w, const char *key, uint64_t value)
{
    set_scalar(w, key, GGUF_UINT64, &value, sizeof(value));
}

void gguf_writer_set_i32(struct gguf_writer *w, const char *key, int32_t value)
{
    set_scalar(w, key, GGUF_INT32, &value, sizeof(value));
}

void gguf_writer_set_f32(struct gguf_writer *w, const char *key, float value)
{
    set_scalar(w, key, GGUF_FLOAT32, &value, sizeof(value));
}

void gguf_writer_set_bool(struct gguf_writer *w, const char *key, bool value)
{
    uint8_t byte = value;
    set_scalar(w, key, GGUF_BOOL, &byte, sizeof(byte));
}

void gguf_writer_set_string(struct gguf_writer *w, const char *key, const char *value)
{
    begin_entry(w, string_of(key), GGUF_STRING);
    append_string(w, &w->metadata, string_of(value));
}

void gguf_writer_set_strings(struct gguf_writer *w, const char *key, const char *const *values,
                             uint64_t count)
{
    begin_entry(w, string_of(key), GGUF_ARRAY);
    append_u32(w, &w->metadata, GGUF_STRING);
    append_u64(w, &w->metadata, count);
    for (uint64_t i = 0; i < count; i++)
        append_string(w, &w->metadata, string_of(values[i]));
}

void gguf_writer_set_array(struct gguf_writer *w, const char *key, enum gguf_value_type type,
                           const void *values, uint64_t count)
{
    struct gguf_value value = {.type = GGUF_ARRAY, .a = {type, count, values}};
    if (gguf_value_type_bytes(type) == 0) {
        struct ps_error error;
        ps_error_set(&error, PS_ERR_ARGUMENT, "%s: not an array of numbers", key);
        keep_error(w, &error);
        return;
    }
    gguf_writer_set_value(w, string_of(key), &value);
}

/* Bytes of an array's elements as they stand in a file. False: more than 64 bits can say. */
static bool array_bytes(const struct gguf_array *array, uint64_t *out)
{
    if (array->type != GGUF_STRING)
        return !__builtin_mul_overflow(array->count, gguf_value_type_bytes(array->type), out);
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < array->count; i++) {
        uint64_t length;
        memcpy(&length, array->data + bytes, sizeof(length));
        bytes += sizeof(length) + length;
    }
    *out = bytes;
    return true;
}

static void append_scalar(struct gguf_writer *w, const struct gguf_value *value)
{
    float narrow;
    switch (value->type) {
    case GGUF_FLOAT32:
        narrow = (float)value->f;
        append(w, &w->metadata, &narrow, sizeof(narrow));
        break;
    case GGUF_FLOAT64:
        append(w, &w->metadata, &value->f, sizeof(value->f));
        break;
    default: /* little-endian: the low bytes come first */
        append(w, &w->metadata, &value->u, gguf_value_type_bytes(value->type));
    }
}

void gguf_writer_set_value(struct gguf_writer *w, struct gguf_string key, const struct gguf_value *value)
{
    uint64_t bytes;
    bool is_array = value->type == GGUF_ARRAY;
    if (is_array && (value->a.type == GGUF_ARRAY || !array_bytes(&value->a, &bytes))) {
        struct ps_error error;
        ps_error_set(&error, PS_ERR_UNSUPPORTED, "%.*s: nested or oversized arrays cannot be written",
                     (int)(key.length < 80 ? key.length : 80), key.data);
        keep_error(w, &error);
        return;
    }
    begin_entry(w, key, value->type);
    if (is_array) {
        append_u32(w, &w->metadata, value->a.type);
        append_u64(w, &w->metadata, value->a.count);
        append(w, &w->metadata, value->a.data, bytes);
    } else if (value->type == GGUF_STRING) {
        append_string(w, &w->metadata, value->s);
    } else {
        append_scalar(w, value);
    }
}

/* Rounds up to the alignment. */
static bool align_up(const struct gguf_writer *w, uint64_t bytes, uint64_t *out)
{
    uint64_t mask = w->alignment - 1;
    if (__builtin_add_overflow(bytes, mask, out))
        return false;
    *out &= ~mask;
    return true;
}

void gguf_writer_add_tensor(struct gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                            const uint64_t *dims)
{
    struct gguf_tensor tensor = {
        .type = type, .n_dims = n_dims, .dims = {1, 1, 1, 1}, .offset = w->data_bytes};
    const struct gguf_type_info *info = gguf_type_find(type);
    uint64_t padded = 0;
    bool ok = info && n_dims >= 1 && n_dims <= 4 && strlen(name) <= MAX_NAME;
    for (uint32_t i = 0; ok && i < n_dims; i++)
        tensor.dims[i] = dims[i];
    ok = ok && gguf_type_bytes(info, tensor.dims, &tensor.bytes) && tensor.bytes > 0 &&
         align_up(w, tensor.bytes, &padded) && !__builtin_add_overflow(w->data_bytes, padded, &w->data_bytes);
    if (!ok) {
        struct ps_error error;
        ps_error_set(&error, PS_ERR_ARGUMENT,
                     "%.80s: type %" PRIu32 ": name too long, type unknown, or shape impossible", name, type);
        keep_error(w, &error);
        return;
    }
    tensor.name = strdup(name);
    if (!tensor.name ||
        !reserve((void **)&w->tensors, w->n_tensors, &w->tensors_capacity, sizeof(*w->tensors))) {
        free((char *)tensor.name);
        out_of_memory(w);
        return;
    }
    w->tensors[w->n_tensors++] = tensor;
}

static struct gguf_string key_at(const void *items, uint32_t index)
{
    return ((const struct gguf_string *)items)[index];
}

static struct gguf_string tensor_name_at(const void *items, uint32_t index)
{
    return string_of(((const struct gguf_tensor *)items)[index].name);
}

/* Keeps an error when a name occurs twice. */
static void check_names(struct gguf_writer *w, struct gguf_string (*name_at)(const void *, uint32_t),
                        const void *items, uint32_t n)
{
    struct name_table table;
    if (!name_table_init(&table, name_at, items, n)) {
        out_of_memory(w);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (name_table_add(&table, i) != NAME_TABLE_NONE) {
            struct gguf_string name = name_at(items, i);
            struct ps_error error;
            ps_error_set(&error, PS_ERR_ARGUMENT, "%s: %.*s: occurs twice", w->path,
                         (int)(name.length < 80 ? name.length : 80), name.data);
            keep_error(w, &error);
            break;
        }
    }
    name_table_deinit(&table);
}

/* The header: preamble, metadata, tensor directory. */
static void build_header(struct gguf_writer *w, struct buffer *header)
{
    append(w, header, "GGUF", 4);
    append_u32(w, header, GGUF_VERSION);
    append_u64(w, header, w->n_tensors);
    append_u64(w, header, w->n_keys);
    append(w, header, w->metadata.data, w->metadata.bytes);
    for (uint32_t i = 0; i < w->n_tensors; i++) {
        const struct gguf_tensor *tensor = &w->tensors[i];
        append_string(w, header, string_of(tensor->name));
        append_u32(w, header, tensor->n_dims);
        append(w, header, tensor->dims, tensor->n_dims * sizeof(tensor->dims[0]));
        append_u32(w, header, tensor->type);
        append_u64(w, header, tensor->offset);
    }
}

/* Checks what was given, builds the header, and sees where tensor data begins and where the file ends. */
static enum ps_status complete_header(struct gguf_writer *w, struct buffer *header, uint64_t *data_start,
                                      struct ps_error *err)
{
    if (w->status == PS_OK)
        check_names(w, key_at, w->keys, w->n_keys);
    if (w->status == PS_OK)
        check_names(w, tensor_name_at, w->tensors, w->n_tensors);
    build_header(w, header);
    if (w->status == PS_OK &&
        (!align_up(w, header->bytes, data_start) ||
         __builtin_add_overflow(*data_start, w->data_bytes, &w->file_bytes) || w->file_bytes > INT64_MAX)) {
        struct ps_error error;
        ps_error_set(&error, PS_ERR_ARGUMENT, "%s: larger than a file can be", w->path);
        keep_error(w, &error);
    }
    return w->status == PS_OK ? PS_OK : ps_error_set(err, w->status, "%s", w->error.message);
}

enum ps_status gguf_writer_header(struct gguf_writer *w, uint8_t **out, uint64_t *bytes, struct ps_error *err)
{
    struct buffer header = {0};
    enum ps_status status = complete_header(w, &header, bytes, err);
    *out = status == PS_OK ? calloc(1, *bytes) : NULL;
    if (*out)
        memcpy(*out, header.data, header.bytes);
    else if (status == PS_OK)
        status = ps_error_set(err, PS_ERR_NOMEM, "%s: no memory for its header", w->path);
    free(header.data);
    return status;
}

enum ps_status gguf_writer_begin_data(struct gguf_writer *w, struct ps_error *err)
{
    if (w->started || !w->temporary)
        return ps_error_set(err, PS_ERR_ARGUMENT, "%s: its header has been written already", w->path);
    struct buffer header = {0};
    uint64_t data_start;
    enum ps_status status = complete_header(w, &header, &data_start, err);
    if (status == PS_OK)
        status = file_output_reserve(&w->file, w->file_bytes, err);
    if (status == PS_OK)
        status = file_output_write(&w->file, header.data, header.bytes, 0, err);
    if (status == PS_OK) {
        for (uint32_t i = 0; i < w->n_tensors; i++)
            w->tensors[i].offset += data_start;
        w->started = true;
    }
    free(header.data);
    return status;
}

uint64_t gguf_writer_file_bytes(const struct gguf_writer *w)
{
    return w->file_bytes;
}

enum ps_status gguf_writer_write(struct gguf_writer *w, const void *data, size_t bytes, struct ps_error *err)
{
    const uint8_t *at = data;
    while (bytes > 0) {
        if (!w->started || w->current >= w->n_tensors)
            return ps_error_set(err, PS_ERR_ARGUMENT, "%s: %zu bytes of data more than its tensors have",
                                w->path, bytes);
        const struct gguf_tensor *tensor = &w->tensors[w->current];
        uint64_t left = tensor->bytes - w->filled;
        size_t n = bytes < left ? bytes : (size_t)left;
        enum ps_status status = file_output_write(&w->file, at, n, tensor->offset + w->filled, err);
        if (status != PS_OK)
            return status;
        at += n;
        bytes -= n;
        w->filled += n;
        file_output_push(&w->file, tensor->offset + w->filled);
        if (w->filled == tensor->bytes) {
            w->current++;
            w->filled = 0;
        }
    }
    return PS_OK;
}

enum ps_status gguf_writer_finish(struct gguf_writer *w, struct ps_error *err)
{
    if (!w->started || w->finished)
        return ps_error_set(err, PS_ERR_ARGUMENT, "%s: not between begin_data and finish", w->path);
    if (w->current < w->n_tensors)
        return ps_error_set(err, PS_ERR_ARGUMENT,
                            "%s: %s: %" PRIu64 " of %" PRIu64 " bytes of data are missing", w->path,
                            w->tensors[w->current].name, w->tensors[w->current].bytes - w->filled,
                            w->tensors[w->current].bytes);
    enum ps_status status = file_output_sync(&w->file, err);
    if (status == PS_OK)
        status = file_output_rename(w->temporary, w->path, err);
    w->finished = status == PS_OK;
    return status;
}
