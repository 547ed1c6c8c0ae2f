/* GGUF writer: makes a GGUF v3 file: metadata, then the tensor directory, then tensor data streamed in order.
 *
 *     gguf_writer_new(&w, path, 0, &err);
 *     gguf_writer_set_u32(w, "general.file_type", 1); ...     these keep the first failure for begin_data()
 *     gguf_writer_add_tensor(w, "token_embd.weight", type, 2, dims); ...
 *     gguf_writer_begin_data(w, &err);                        header written, disk space reserved
 *     gguf_writer_write(w, data, bytes, &err); ...            tensor after tensor, in pieces of any size
 *     gguf_writer_finish(w, &err);                            on disk and under its name
 *     gguf_writer_free(w);
 *
 * The file grows under a temporary name beside the target and is renamed at the end: whoever opens the
 * target sees the old file or the whole new one. Data goes straight from the caller's buffer to the file;
 * pieces of 1 MiB and more run at the drive's speed. Pages are written back and dropped from the page cache
 * along the way. Not for several threads at once. */
#ifndef PENSTOCK_STORAGE_GGUF_WRITER_H
#define PENSTOCK_STORAGE_GGUF_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/gguf.h"
#include "storage/status.h"

struct gguf_writer;

/* alignment of tensor data: a power of two in bytes, or 0 for the format's default (32). */
enum ps_status gguf_writer_new(struct gguf_writer **out, const char *path, uint32_t alignment,
                               struct ps_error *err);
/* Removes the temporary file unless finish() has succeeded. NULL is fine. */
void gguf_writer_free(struct gguf_writer *writer);

/* Metadata, before begin_data(); keys must differ. general.alignment is the writer's own. Everything given is
 * copied. */
void gguf_writer_set_u32(struct gguf_writer *writer, const char *key, uint32_t value);
void gguf_writer_set_u64(struct gguf_writer *writer, const char *key, uint64_t value);
void gguf_writer_set_i32(struct gguf_writer *writer, const char *key, int32_t value);
void gguf_writer_set_f32(struct gguf_writer *writer, const char *key, float value);
void gguf_writer_set_bool(struct gguf_writer *writer, const char *key, bool value);
void gguf_writer_set_string(struct gguf_writer *writer, const char *key, const char *value);
void gguf_writer_set_strings(struct gguf_writer *writer, const char *key, const char *const *values,
                             uint64_t count);
/* values: count packed numbers or bools of that type. */
void gguf_writer_set_array(struct gguf_writer *writer, const char *key, enum gguf_value_type type,
                           const void *values, uint64_t count);
/* A value of any type, such as one that was read from another file. Nested arrays, which the reader skips,
 * cannot be copied: PS_ERR_UNSUPPORTED. */
void gguf_writer_set_value(struct gguf_writer *writer, struct gguf_string key,
                           const struct gguf_value *value);

/* Data is written in the order in which tensors are added. dims[n_dims], dims[0] the row length. */
void gguf_writer_add_tensor(struct gguf_writer *writer, const char *name, uint32_t type, uint32_t n_dims,
                            const uint64_t *dims);

/* The first failure of the calls above: PS_ERR_ARGUMENT (names the key or tensor), PS_ERR_UNSUPPORTED,
 * PS_ERR_NOMEM; or PS_ERR_IO, also when the disk has no room for the whole file. */
enum ps_status gguf_writer_begin_data(struct gguf_writer *writer, struct ps_error *err);
uint64_t gguf_writer_file_bytes(const struct gguf_writer *writer); /* of the whole file; after begin_data() */

/* For the header alone: no file is made. *header: what the file would start with, up to where its tensor data begins;
 * the caller frees it. Fails as begin_data() does. */
enum ps_status gguf_writer_new_header(struct gguf_writer **out, const char *path, uint32_t alignment,
                                      struct ps_error *err);
enum ps_status gguf_writer_header(struct gguf_writer *writer, uint8_t **header, uint64_t *bytes,
                                  struct ps_error *err);

/* The next bytes of tensor data; a piece may end one tensor and start the next, without padding between them.
 * PS_ERR_IO names file and offset; PS_ERR_ARGUMENT: more data than the tensors have. */
enum ps_status gguf_writer_write(struct gguf_writer *writer, const void *data, size_t bytes,
                                 struct ps_error *err);
/* PS_ERR_ARGUMENT when tensor data is missing. */
enum ps_status gguf_writer_finish(struct gguf_writer *writer, struct ps_error *err);

#endif
