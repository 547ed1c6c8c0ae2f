/* Packing: makes a container of a GGUF model. Threads read, compress and hash experts while one of them writes. */
#ifndef PENSTOCK_RUNTIME_PACK_H
#define PENSTOCK_RUNTIME_PACK_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtime/penstock.h"
#include "storage/pack_writer.h"
#include "storage/status.h"

enum {
    PACK_ZSTD_AUTO = 255, /* where reading and unpacking beats reading alone, by measurement */
    PACK_ZSTD_OFF = 0,
    PACK_ZSTD_MAX = 22, /* 1..: that level, where it saves space */
};

struct pack_params {
    const char *path;
    bool replace;
    uint32_t zstd;
    uint32_t n_stripes;
    const char *const *stripes; /* directories; none: all is in one file */
    const char *trace;          /* NULL, or a recorded routing: experts by use */
    uint64_t
        drive_rate; /* bytes/s of the drive that it will be read from, for PACK_ZSTD_AUTO; 0: measure the source's */
    uint32_t threads; /* 0: one per CPU */
    const volatile sig_atomic_t *cancel;
    /* Called on the calling thread; any may be NULL. */
    void (*started)(void *ctx, enum pack_start start, const struct pack_decisions *decisions);
    void (*progress)(void *ctx, uint64_t done, uint64_t total); /* bytes of the source */
    void *ctx;
};

struct pack_result {
    enum pack_start start;
    uint64_t source_bytes;               /* of the GGUF's files */
    uint64_t expert_bytes, extent_bytes; /* before and after */
    uint64_t trunk_bytes;                /* */
    uint64_t packed_bytes;               /* of all files of the container */
    uint32_t n_experts, n_files;
    double seconds;
};

/* Opened, not loaded. A pack that was killed or cancelled goes on where it was when it is called with the same
 * parameters; after any other failure nothing is left. PS_ERR_CANCELLED; PS_ERR_ARGUMENT: a name is taken, or the trace is of
 * another model; PS_ERR_IO: no room, a read or write failed; PS_ERR_NOMEM. */
enum ps_status pack_model(struct ps_model *model, const struct pack_params *params,
                          struct pack_result *result, struct ps_error *err);

#endif
