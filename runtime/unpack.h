/* Unpacking: gives back the GGUF that a container was made from, every checksum verified. */
#ifndef PENSTOCK_RUNTIME_UNPACK_H
#define PENSTOCK_RUNTIME_UNPACK_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "storage/status.h"

struct unpack_params {
    const char *input, *path;
    bool replace;
    uint32_t threads; /* 0: one per CPU */
    const volatile sig_atomic_t *cancel;
    void (*progress)(void *ctx, uint64_t done,
                     uint64_t total); /* on the calling thread; bytes; may be NULL */
    void *ctx;
};

/* The file has its name only when it is whole; on failure nothing is left. *bytes: of the file. PS_ERR_FORMAT: not a container, or
 * damaged, with the place; PS_ERR_ARGUMENT: the name is taken; PS_ERR_IO: no room, a read or write failed; PS_ERR_NOMEM;
 * PS_ERR_CANCELLED. */
enum ps_status unpack_model(const struct unpack_params *params, uint64_t *bytes, struct ps_error *err);

#endif
