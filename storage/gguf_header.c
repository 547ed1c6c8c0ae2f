/* GGUF header of one file: reads it in growing pieces and checks every field before it is believed.
 *
 * Where the header ends is known only once it has been walked, so it is walked twice: first while it is being
 * read (the buffer may move, nothing is kept), then to fill tables whose sizes the first walk has proved. No
 * allocation is therefore larger than a small multiple of bytes that really are in the file. */
#include "storage/gguf_header.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "GGUF files are little-endian and are read in place");

enum {
    FIRST_PIECE = 64 << 10,           /* a header without a vocabulary */
    LARGEST_PIECE = 1 << 20,          /* what is read past the header's end at worst */
    LARGEST_HEADER = 1 << 30,         /* the largest vocabularies take some 20 MB */
    MAX_NESTING = 4,                  /* arrays in arrays */
    MAX_DIMS = 4,                     /* GGML_MAX_DIMS */
    MIN_KV_BYTES = 8 + 4 + 1,         /* empty key, type, one-byte value */
    MIN_TENSOR_BYTES = 8 + 4 + 4 + 8, /* empty name, no dimension, type, offset */
    SHOWN_NAME = 80,                  /* characters of a name that a message shows */
};

/* printf arguments for "%.*s" */
#define SHOW(string) (int)((string).length < SHOWN_NAME ? (string).length : SHOWN_NAME), (string).data

struct walker {
    const char *path;
    int fd;
    uint64_t base;      /* of the header in the file */
    uint64_t file_size; /* bytes from base; where a container holds the header: its bytes */
    uint64_t data_end;  /* no tensor ends behind it; bytes from base */
    uint8_t *data;      /* what has been read, from base */
    uint64_t have;      /* bytes of data */
    uint64_t at;        /* next byte to take */
    enum ps_status status;
    struct ps_error *err;
};

static bool read_piece(struct walker *w)
{
    uint64_t piece = w->have < FIRST_PIECE ? FIRST_PIECE : w->have < LARGEST_PIECE ? w->have : LARGEST_PIECE;
    if (piece > w->file_size - w->have)
        piece = w->file_size - w->have;
    uint8_t *data = realloc(w->data, w->have + piece);
    if (!data) {
        w->status = ps_error_set(w->err, PS_ERR_NOMEM,
                                 "%s: no memory for its header (%" PRIu64 " bytes so far)", w->path, w->have);
        return false;
    }
    w->data = data;
    while (piece > 0) {
        ssize_t n = pread(w->fd, data + w->have, piece, (off_t)(w->base + w->have));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            w->status =
                ps_error_set(w->err, PS_ERR_IO, "%s: read failed at offset %" PRIu64 ": %s", w->path,
                             w->base + w->have, n < 0 ? strerror(errno) : "the file has become shorter");
            return false;
        }
        w->have += (uint64_t)n;
        piece -= (uint64_t)n;
    }
    return true;
}

/* Brings the next n bytes into memory; the buffer may move. */
static bool need(struct walker *w, uint64_t n)
{
    if (n > w->file_size - w->at) {
        w->status =
            ps_error_set(w->err, PS_ERR_FORMAT,
                         "%s: header goes past the end of the file (%" PRIu64 " bytes at offset %" PRIu64
                         ", file size %" PRIu64 "): truncated or damaged: download it again",
                         w->path, n, w->at, w->file_size);
        return false;
    }
    if (n > LARGEST_HEADER - w->at) {
        w->status = ps_error_set(w->err, PS_ERR_FORMAT, "%s: header is larger than 1 GiB: damaged", w->path);
        return false;
    }
    while (w->have - w->at < n) {
        if (!read_piece(w))
            return false;
    }
    return true;
}

/* n items of at least min_bytes each must still fit in the file: refuses absurd counts before any loop. */
static bool check_count(struct walker *w, const char *what, uint64_t n, uint64_t min_bytes)
{
    uint64_t left = w->file_size - w->at;
    if (n <= left / min_bytes)
        return true;
    w->status = ps_error_set(w->err, PS_ERR_FORMAT,
                             "%s: %" PRIu64 " %s at offset %" PRIu64 " cannot fit in the %" PRIu64
                             " bytes that follow: truncated or damaged: download it again",
                             w->path, n, what, w->at, left);
    return false;
}

static bool take(struct walker *w, void *out, size_t n)
{
    if (!need(w, n))
        return false;
    memcpy(out, w->data + w->at, n);
    w->at += n;
    return true;
}

static bool take_string(struct walker *w, struct gguf_string *out)
{
    if (!take(w, &out->length, sizeof(out->length)) || !need(w, out->length))
        return false;
    out->data = (const char *)w->data + w->at;
    w->at += out->length;
    return true;
}

uint32_t gguf_value_type_bytes(uint32_t type)
{
    static const uint8_t bytes[] = {
        [GGUF_UINT8] = 1,  [GGUF_INT8] = 1,    [GGUF_UINT16] = 2,  [GGUF_INT16] = 2,  [GGUF_UINT32] = 4,
        [GGUF_INT32] = 4,  [GGUF_FLOAT32] = 4, [GGUF_BOOL] = 1,    [GGUF_STRING] = 0, [GGUF_ARRAY] = 0,
        [GGUF_UINT64] = 8, [GGUF_INT64] = 8,   [GGUF_FLOAT64] = 8,
    };
    return type < sizeof(bytes) ? bytes[type] : 0;
}

static bool take_type(struct walker *w, enum gguf_value_type *out)
{
    uint32_t type;
    if (!take(w, &type, sizeof(type)))
        return false;
    if (type > GGUF_FLOAT64) {
        w->status = ps_error_set(w->err, PS_ERR_FORMAT,
                                 "%s: metadata type %" PRIu32 " at offset %" PRIu64 " is unknown", w->path,
                                 type, w->at - sizeof(type));
        return false;
    }
    *out = (enum gguf_value_type)type;
    return true;
}

static bool take_array(struct walker *w, struct gguf_array *out, uint32_t depth)
{
    uint64_t count;
    if (!take_type(w, &out->type) || !take(w, &count, sizeof(count)))
        return false;
    uint64_t start = w->at;
    uint32_t bytes = gguf_value_type_bytes(out->type);
    bool nested = out->type == GGUF_ARRAY;
    if (nested && depth >= MAX_NESTING) {
        w->status =
            ps_error_set(w->err, PS_ERR_UNSUPPORTED, "%s: arrays nested more than %d deep at offset %" PRIu64,
                         w->path, MAX_NESTING, w->at);
        return false;
    }
    if (!check_count(w, "array elements", count, bytes ? bytes : nested ? 4 + 8 : 8))
        return false;
    if (bytes) {
        if (!need(w, count * bytes))
            return false;
        w->at += count * bytes;
    }
    for (uint64_t i = 0; !bytes && i < count; i++) {
        struct gguf_string string;
        struct gguf_array inner;
        if (nested ? !take_array(w, &inner, depth + 1) : !take_string(w, &string))
            return false;
    }
    out->count = nested ? 0 : count;
    out->data = nested ? NULL : w->data + start;
    return true;
}

static bool take_value(struct walker *w, struct gguf_value *out)
{
    if (!take_type(w, &out->type))
        return false;
    if (out->type == GGUF_ARRAY)
        return take_array(w, &out->a, 1);
    if (out->type == GGUF_STRING)
        return take_string(w, &out->s);
    uint8_t raw[8] = {0};
    if (!take(w, raw, gguf_value_type_bytes(out->type)))
        return false;
    /* An array of one: the same conversions serve both. */
    struct gguf_array one = {.type = out->type, .count = 1, .data = raw};
    switch (out->type) {
    case GGUF_FLOAT32:
    case GGUF_FLOAT64:
        out->f = gguf_array_f64(&one, 0);
        break;
    default:
        out->u = gguf_array_u64(&one, 0); /* signed types: the same 64 bits */
    }
    return true;
}

static bool string_is(struct gguf_string string, const char *text)
{
    return string.length == strlen(text) && memcmp(string.data, text, string.length) == 0;
}

static bool take_alignment(struct walker *w, struct gguf_header *h, const struct gguf_value *value)
{
    uint64_t alignment = value->type == GGUF_UINT32 ? value->u : 0;
    if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
        w->status = ps_error_set(w->err, PS_ERR_FORMAT,
                                 "%s: general.alignment: not an unsigned 32-bit power of two", w->path);
        return false;
    }
    h->alignment = (uint32_t)alignment;
    return true;
}

/* name length, name, n_dims, dims, type, offset into the data section */
static bool take_tensor(struct walker *w, struct gguf_tensor *out, uint64_t *name_end)
{
    struct gguf_string name;
    if (!take_string(w, &name))
        return false;
    *name_end = w->at;
    *out = (struct gguf_tensor){.dims = {1, 1, 1, 1}};
    if (memchr(name.data, 0, name.length)) {
        w->status =
            ps_error_set(w->err, PS_ERR_FORMAT, "%s: a tensor name at offset %" PRIu64 " holds a zero byte",
                         w->path, w->at - name.length);
        return false;
    }
    if (!take(w, &out->n_dims, sizeof(out->n_dims)))
        return false;
    if (out->n_dims > MAX_DIMS) {
        name.data = (const char *)w->data + *name_end - name.length; /* the buffer may have moved */
        w->status = ps_error_set(w->err, PS_ERR_FORMAT, "%s: %.*s: %" PRIu32 " dimensions, at most %d can be",
                                 w->path, SHOW(name), out->n_dims, MAX_DIMS);
        return false;
    }
    return take(w, out->dims, out->n_dims * sizeof(out->dims[0])) && take(w, &out->type, sizeof(out->type)) &&
           take(w, &out->offset, sizeof(out->offset));
}

/* magic, version, counts */
static bool take_preamble(struct walker *w, struct gguf_header *h, uint64_t *n_tensors, uint64_t *n_kv)
{
    uint8_t magic[4] = {0};
    if (w->file_size < sizeof(magic) || !take(w, magic, sizeof(magic)) ||
        memcmp(magic, "GGUF", sizeof(magic)) != 0) {
        if (w->status == PS_OK)
            w->status =
                ps_error_set(w->err, PS_ERR_FORMAT, "%s: not a GGUF file (starts with %02x %02x %02x %02x)",
                             w->path, magic[0], magic[1], magic[2], magic[3]);
        return false;
    }
    if (!take(w, &h->version, sizeof(h->version)))
        return false;
    if (h->version != 0 && (h->version & 0xffff) == 0) {
        w->status = ps_error_set(
            w->err, PS_ERR_UNSUPPORTED,
            "%s: big-endian GGUF: only little-endian files can be read: convert it again", w->path);
        return false;
    }
    if (h->version < 2 || h->version > 3) {
        w->status =
            ps_error_set(w->err, PS_ERR_UNSUPPORTED,
                         "%s: GGUF version %" PRIu32 ": only versions 2 and 3 can be read: convert it again",
                         w->path, h->version);
        return false;
    }
    return take(w, n_tensors, sizeof(*n_tensors)) && take(w, n_kv, sizeof(*n_kv)) &&
           check_count(w, "metadata entries", *n_kv, MIN_KV_BYTES) &&
           check_count(w, "tensors", *n_tensors, MIN_TENSOR_BYTES);
}

/* Fills h->kv and h->tensors where they have been allocated. */
static bool walk(struct walker *w, struct gguf_header *h)
{
    uint64_t n_tensors, n_kv;
    w->at = 0;
    if (!take_preamble(w, h, &n_tensors, &n_kv))
        return false;
    h->alignment = GGUF_DEFAULT_ALIGNMENT;
    for (uint64_t i = 0; i < n_kv; i++) {
        struct gguf_kv kv;
        if (!take_string(w, &kv.key))
            return false;
        bool is_alignment = string_is(kv.key, "general.alignment");
        if (!take_value(w, &kv.value) || (is_alignment && !take_alignment(w, h, &kv.value)))
            return false;
        if (h->kv)
            h->kv[i] = kv;
    }
    for (uint64_t i = 0; i < n_tensors; i++) {
        struct gguf_tensor tensor;
        uint64_t name_end;
        uint64_t name_start = w->at + sizeof(uint64_t);
        if (!take_tensor(w, &tensor, &name_end))
            return false;
        if (h->tensors) {
            w->data[name_end] = 0; /* n_dims stood here and has been taken */
            tensor.name = (const char *)w->data + name_start;
            h->tensors[i] = tensor;
        }
    }
    h->n_kv = (uint32_t)n_kv; /* both below LARGEST_HEADER */
    h->n_tensors = (uint32_t)n_tensors;
    return true;
}

/* Checks a tensor's type and shape, and turns its offset into one from the start of the file. */
static bool place_tensor(struct walker *w, struct gguf_tensor *tensor, uint64_t data_start,
                         uint32_t alignment)
{
    struct gguf_string name = {tensor->name, strlen(tensor->name)};
    const struct gguf_type_info *type = gguf_type_find(tensor->type);
    if (!type) {
        w->status = ps_error_set(w->err, PS_ERR_UNSUPPORTED, "%s: %.*s: block type %" PRIu32 " is unknown",
                                 w->path, SHOW(name), tensor->type);
        return false;
    }
    if (tensor->n_dims == 0)
        tensor->n_dims = 1; /* a scalar */
    if (!gguf_type_bytes(type, tensor->dims, &tensor->bytes) || tensor->bytes == 0) {
        w->status = ps_error_set(w->err, PS_ERR_FORMAT,
                                 "%s: %.*s: shape %" PRIu64 " x %" PRIu64 " x %" PRIu64 " x %" PRIu64
                                 " is empty, too large, or its rows are no multiple of %" PRIu32 " (%s)",
                                 w->path, SHOW(name), tensor->dims[0], tensor->dims[1], tensor->dims[2],
                                 tensor->dims[3], type->values, type->name);
        return false;
    }
    if (tensor->offset % alignment != 0) {
        w->status =
            ps_error_set(w->err, PS_ERR_FORMAT, "%s: %.*s: offset %" PRIu64 " is no multiple of %" PRIu32,
                         w->path, SHOW(name), tensor->offset, alignment);
        return false;
    }
    uint64_t end;
    if (__builtin_add_overflow(tensor->offset, data_start, &tensor->offset) ||
        __builtin_add_overflow(tensor->offset, tensor->bytes, &end) || end > w->data_end) {
        w->status =
            ps_error_set(w->err, PS_ERR_FORMAT,
                         "%s: %.*s: %" PRIu64 " bytes at offset %" PRIu64
                         " go past the end of the file (%" PRIu64 " bytes): truncated: download it again",
                         w->path, SHOW(name), tensor->bytes, tensor->offset, w->data_end);
        return false;
    }
    return true;
}

/* After the first walk: keeps only the header, and makes room for what it holds. */
static bool allocate_tables(struct walker *w, struct gguf_header *h)
{
    h->bytes = w->have = w->at;
    uint8_t *trimmed = realloc(w->data, h->bytes);
    if (trimmed)
        w->data = trimmed;
    h->kv = calloc(h->n_kv + 1ul, sizeof(*h->kv));
    h->tensors = calloc(h->n_tensors + 1ul, sizeof(*h->tensors));
    if (h->kv && h->tensors)
        return true;
    w->status = ps_error_set(w->err, PS_ERR_NOMEM,
                             "%s: no memory for %" PRIu32 " metadata entries and %" PRIu32 " tensors",
                             w->path, h->n_kv, h->n_tensors);
    return false;
}

static bool read_header(struct walker *w, struct gguf_header *h, uint32_t file)
{
    posix_fadvise(w->fd, 0, 0, POSIX_FADV_RANDOM); /* no read-ahead into the tensor data */
    bool ok = walk(w, h);
    posix_fadvise(w->fd, (off_t)w->base, (off_t)w->have, POSIX_FADV_DONTNEED); /* it is in our memory now */
    if (!ok || !allocate_tables(w, h) || !walk(w, h))
        return false;
    h->data_start = h->bytes + (-h->bytes & (uint64_t)(h->alignment - 1));
    for (uint32_t i = 0; i < h->n_tensors; i++) {
        h->tensors[i].file = file;
        if (!place_tensor(w, &h->tensors[i], h->data_start, h->alignment))
            return false;
    }
    return true;
}

/* Opens a regular, non-empty file; a FIFO must not block. */
static enum ps_status open_file(struct walker *w)
{
    w->fd = open(w->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (w->fd < 0)
        return ps_error_set(w->err, PS_ERR_IO, "%s: cannot be opened: %s", w->path, strerror(errno));
    struct stat st;
    if (fstat(w->fd, &st) != 0)
        return ps_error_set(w->err, PS_ERR_IO, "%s: cannot be examined: %s", w->path, strerror(errno));
    if (S_ISDIR(st.st_mode))
        return ps_error_set(w->err, PS_ERR_IO, "%s: is a directory: name a .gguf file in it", w->path);
    if (!S_ISREG(st.st_mode))
        return ps_error_set(w->err, PS_ERR_IO, "%s: is not a regular file", w->path);
    if (st.st_size == 0)
        return ps_error_set(w->err, PS_ERR_FORMAT, "%s: is empty: download it again", w->path);
    w->file_size = w->data_end = (uint64_t)st.st_size;
    return PS_OK;
}

static enum ps_status finish(struct walker *w, struct gguf_header *out)
{
    out->data = w->data;
    if (w->fd >= 0)
        close(w->fd);
    if (w->status != PS_OK)
        gguf_header_deinit(out);
    return w->status;
}

enum ps_status gguf_header_read(struct gguf_header *out, const char *path, uint32_t file,
                                struct ps_error *err)
{
    *out = (struct gguf_header){0};
    struct walker w = {.path = path, .fd = -1, .err = err};
    w.status = open_file(&w);
    if (w.status == PS_OK)
        read_header(&w, out, file);
    out->file_size = w.file_size;
    return finish(&w, out);
}

enum ps_status gguf_header_read_packed(struct gguf_header *out, const char *path, uint64_t offset,
                                       uint64_t bytes, struct ps_error *err)
{
    *out = (struct gguf_header){0};
    struct walker w = {.path = path, .fd = -1, .err = err};
    w.status = open_file(&w);
    if (w.status == PS_OK && (offset > w.file_size || bytes > w.file_size - offset))
        w.status = ps_error_set(err, PS_ERR_IO, "%s: has become shorter", path);
    w.base = offset;
    w.file_size = bytes;
    w.data_end = INT64_MAX - UINT32_MAX; /* rounded up to any alignment it is the size of a file */
    if (w.status == PS_OK && read_header(&w, out, 0) && out->data_start != bytes)
        w.status = ps_error_set(err, PS_ERR_FORMAT,
                                "%s: its GGUF header takes %" PRIu64 " bytes, %" PRIu64 " are there: damaged",
                                path, out->data_start, bytes);
    return finish(&w, out);
}

void gguf_header_deinit(struct gguf_header *header)
{
    free(header->data);
    free(header->kv);
    free(header->tensors);
    *header = (struct gguf_header){0};
}
