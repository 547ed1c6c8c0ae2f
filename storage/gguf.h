/* GGUF directory: reads the header of a GGUF v2/v3 model, single or split, or packed into a container (packed.h), and
 * answers what is in it.
 *
 * Only metadata and the tensor directory are read; tensor data is never touched. Every count, length and
 * offset is checked against the file's size before it is used, so a truncated or hostile file yields an error
 * and never a bad access. The raw header stays in memory: strings and arrays point into it.
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 * Immutable after gguf_open; may be shared by threads. */
#ifndef PENSTOCK_STORAGE_GGUF_H
#define PENSTOCK_STORAGE_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/status.h"

enum gguf_value_type {
    GGUF_UINT8 = 0,
    GGUF_INT8 = 1,
    GGUF_UINT16 = 2,
    GGUF_INT16 = 3,
    GGUF_UINT32 = 4,
    GGUF_INT32 = 5,
    GGUF_FLOAT32 = 6,
    GGUF_BOOL = 7,
    GGUF_STRING = 8,
    GGUF_ARRAY = 9,
    GGUF_UINT64 = 10,
    GGUF_INT64 = 11,
    GGUF_FLOAT64 = 12,
};

struct gguf_string {
    const char *data; /* borrowed from the header; not 0-terminated; may hold any byte */
    uint64_t length;  /* bytes */
};

struct gguf_array {
    enum gguf_value_type type; /* of the elements */
    uint64_t count;
    const uint8_t *data; /* count packed little-endian elements, or count length-prefixed strings */
};

struct gguf_value {
    enum gguf_value_type type;
    union {
        uint64_t u;           /* unsigned integers and bool */
        int64_t i;            /* signed integers */
        double f;             /* floats */
        struct gguf_string s; /* GGUF_STRING */
        struct gguf_array a;  /* GGUF_ARRAY; nested arrays are validated and skipped: count 0, data NULL */
    };
};

struct gguf_kv {
    struct gguf_string key;
    struct gguf_value value;
};

/* Sizes of a block type as it stands in a file; the arithmetic lives in kernels/. */
struct gguf_type_info {
    uint32_t id;      /* ggml type id */
    const char *name; /* as llama.cpp prints it, lower case: "q4_K" */
    uint32_t values;  /* per block */
    uint32_t bytes;   /* per block */
};

/* NULL when the id is not a known type. */
const struct gguf_type_info *gguf_type_find(uint32_t id);
/* Case-insensitive; NULL when unknown. */
const struct gguf_type_info *gguf_type_find_name(const char *name);
/* Bytes of a tensor. False: a row is not a whole number of blocks, or the size does not fit 64 bits. */
bool gguf_type_bytes(const struct gguf_type_info *type, const uint64_t dims[4], uint64_t *bytes);

struct gguf_tensor {
    const char *name; /* 0-terminated, owned by the directory */
    uint32_t type;    /* ggml type id; always one that gguf_type_find knows */
    uint32_t n_dims;  /* 1..4 */
    uint64_t dims[4]; /* dims[0] is the row length; unused ones are 1 */
    uint32_t
        file; /* index of the file that holds it; GGUF_NO_FILE: none does, it is the experts' of a container */
    uint64_t offset; /* bytes from the start of that file; without one, of the GGUF that was packed */
    uint64_t bytes;
};
#define GGUF_NO_FILE UINT32_MAX

struct gguf;
struct packed;

/* Opens path; for a split model any part's path opens all of them (`-00001-of-0000N`), for a container that of its main
 * file. *out is NULL on failure. PS_ERR_IO: cannot be opened or read, a directory, a missing split part or data file;
 * PS_ERR_FORMAT: neither a GGUF nor a container, truncated, inconsistent; PS_ERR_UNSUPPORTED: version or block type;
 * PS_ERR_NOMEM. */
enum ps_status gguf_open(struct gguf **out, const char *path, struct ps_error *err);
void gguf_free(struct gguf *gguf); /* NULL is fine */

uint32_t gguf_version(const struct gguf *gguf);
uint32_t gguf_n_files(const struct gguf *gguf);
const char *gguf_file_path(const struct gguf *gguf, uint32_t file);
uint64_t gguf_file_size(const struct gguf *gguf, uint32_t file); /* bytes */
uint64_t gguf_memory(const struct gguf *gguf);                   /* bytes held by the directory */

/* NULL for a GGUF. Lives as long as the directory. */
const struct packed *gguf_packed(const struct gguf *gguf);
/* Of the GGUF that unpacking a container writes: its size, and where a tensor (directory index) begins in it. What it
 * starts with is packed_gguf_header(). */
uint64_t gguf_unpacked_bytes(const struct gguf *gguf);
uint64_t gguf_unpacked_offset(const struct gguf *gguf, uint32_t tensor);
/* Of a container: compares what was read of a trunk tensor, bytes [at, at + bytes) as for packed_trunk_damage(), with its checksums.
 * PS_ERR_FORMAT names tensor, file, and the offset of the first block that differs. */
enum ps_status gguf_check_trunk(const struct gguf *gguf, uint32_t tensor, uint64_t at, const uint8_t *data,
                                uint64_t bytes, struct ps_error *err);

/* Metadata of the first part. */
uint64_t gguf_n_kv(const struct gguf *gguf);
const struct gguf_kv *gguf_kv_at(const struct gguf *gguf, uint64_t index);
const struct gguf_value *gguf_find(const struct gguf *gguf, const char *key); /* NULL when absent */

/* Typed look-ups: false, *out untouched, when the key is absent or its value does not convert without loss
 * (any integer type or bool -> u64; any number -> f64). */
bool gguf_get_u64(const struct gguf *gguf, const char *key, uint64_t *out);
bool gguf_get_f64(const struct gguf *gguf, const char *key, double *out);
bool gguf_get_bool(const struct gguf *gguf, const char *key, bool *out);
bool gguf_get_string(const struct gguf *gguf, const char *key, struct gguf_string *out);
/* NULL unless the key is an array of that element type. */
const struct gguf_array *gguf_get_array(const struct gguf *gguf, const char *key, enum gguf_value_type type);
/* Element as double / as u64; index < count; for non-string element types. */
double gguf_array_f64(const struct gguf_array *array, uint64_t index);
uint64_t gguf_array_u64(const struct gguf_array *array, uint64_t index); /* negative values wrap */
/* Fills strings[count] from a string array. */
void gguf_array_strings(const struct gguf_array *array, struct gguf_string *strings);

/* Tensor directory over all parts, in file order; of a container, in that of the GGUF that was packed. */
uint32_t gguf_n_tensors(const struct gguf *gguf);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *gguf, uint32_t index);
/* By name, O(1); NULL when absent. The index of a tensor is (tensor - gguf_tensor_at(gguf, 0)). */
const struct gguf_tensor *gguf_tensor_find(const struct gguf *gguf, const char *name);

#endif
