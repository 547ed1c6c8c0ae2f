/* Unpacker: threads that check and unpack what the reader brings, while the rest of it is still on its way.
 *
 * Whoever reads an extent of a packed container gives its io_job's progress to an unpack job: landed() for each read, from
 * the reader's thread, and ended() when the reader is done with it. Threads hash what has landed and unpack it chunk by
 * chunk, in order, in the slot (packed.h says why it fits), and call done() when all is in place or it has failed. */
#ifndef PENSTOCK_STORAGE_UNPACKER_H
#define PENSTOCK_STORAGE_UNPACKER_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/packed.h"
#include "storage/status.h"

struct unpacker;

enum unpack_outcome {
    UNPACK_OK,
    UNPACK_CORRUPT,     /* hash or chunks are wrong */
    UNPACK_READ_FAILED, /* as the reader said, or it was cancelled */
};

struct unpack_state; /* the hash's and the walk's */

struct unpack_job {
    const struct packed_layout *layout; /* borrowed until done() */
    uint8_t *slot;                      /* layout->slot_bytes, or layout->bytes where it is not compressed */
    uint64_t stored_at;                 /* where in the slot the extent lands */
    uint64_t stored_bytes;
    uint64_t hash;
    bool check;                           /* the hash is compared */
    void (*done)(struct unpack_job *job); /* once, on a thread of the unpacker or of the caller of ended() */
    void *owner;
    enum unpack_outcome outcome; /* valid in done() */

    struct unpack_state *state; /* the unpacker's own */
    struct unpack_job *next;
    uint64_t landed; /* bytes of the extent */
    bool queued, busy, ended, read_ok;
};

/* n_threads > 0; at most n_jobs jobs at once. PS_ERR_NOMEM. */
enum ps_status unpacker_new(struct unpacker **out, uint32_t n_threads, uint32_t n_jobs, struct ps_error *err);
void unpacker_free(struct unpacker *unpacker);                 /* every job is done; NULL is fine */
uint64_t unpacker_memory(uint32_t n_threads, uint32_t n_jobs); /* bytes, stacks included */

void unpacker_begin(struct unpacker *unpacker, struct unpack_job *job);
/* The first `bytes` of the extent are in memory. Never blocks for long, takes no lock of the reader's or the cache's. */
void unpacker_landed(struct unpacker *unpacker, struct unpack_job *job, uint64_t bytes);
/* No further landed(). ok: all of it is in memory. May call done(). */
void unpacker_ended(struct unpacker *unpacker, struct unpack_job *job, bool ok);

#endif
