/* GGUF header of one file, read and checked. For gguf.c, which joins the parts of a model. */
#ifndef PENSTOCK_STORAGE_GGUF_HEADER_H
#define PENSTOCK_STORAGE_GGUF_HEADER_H

#include <stdint.h>

#include "storage/gguf.h"
#include "storage/status.h"

enum { GGUF_DEFAULT_ALIGNMENT = 32 }; /* of tensor data, where general.alignment is absent */

struct gguf_header {
    uint8_t *data;       /* the raw header; keys, strings, arrays and tensor names point into it; owned */
    uint64_t bytes;      /* of data */
    uint64_t file_size;  /* bytes; 0 for a container's */
    uint64_t data_start; /* where tensor data begins in the file */
    uint32_t version;
    uint32_t alignment; /* bytes, a power of two */
    uint32_t n_kv;
    uint32_t n_tensors;
    struct gguf_kv *kv; /* owned */
    struct gguf_tensor
        *tensors; /* in directory order; each lies inside the file, if that has a size; owned */
};

/* Bytes of a metadata value in the file; 0 for strings, arrays and unknown types. */
uint32_t gguf_value_type_bytes(uint32_t type);

/* *out is empty on failure. file: the number of the part, for gguf_tensor.file. */
enum ps_status gguf_header_read(struct gguf_header *out, const char *path, uint32_t file,
                                struct ps_error *err);
/* The header that a packed container holds, `bytes` of it from offset on: all up to data_start. Tensors are those of the
 * GGUF that can be unpacked from it, whose size is unknown here. */
enum ps_status gguf_header_read_packed(struct gguf_header *out, const char *path, uint64_t offset,
                                       uint64_t bytes, struct ps_error *err);
void gguf_header_deinit(struct gguf_header *header);

#endif
