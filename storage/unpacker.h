/* Unpacker: threads that check and unpack what the reader brings, while the rest of it is still on its way.
 *
 * Whoever reads an extent of a packed container passes its io_job's progress on to an unpack job: landed() for each
 * report, from the reader's thread, and ended() when the reader is done with it. Threads hash what has landed and unpack it
 * chunk by chunk, in order, in the slot (packed.h says why it fits), and call done() when all is in place or it has
 * failed. Urgent jobs go first, and make others wait after the piece that is being worked at; otherwise jobs are served in
 * the order in which they have something new, each by one thread at a time. */
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

/* The first call of landed() or ended() starts it; until then it costs nothing, and can be forgotten. */
struct unpack_job {
    const struct packed_layout *layout; /* borrowed until done() */
    uint8_t *slot;                      /* layout->slot_bytes */
    uint64_t stored_at;                 /* where in the slot the extent lands */
    uint64_t stored_bytes;              /* of it; it ends inside the slot */
    uint64_t hash;
    bool check;  /* the hash is compared */
    bool urgent; /* compute waits for it; once it has begun, unpacker_promote() sets it */
    void (*done)(
        struct unpack_job *
            job); /* once, on a thread of the unpacker, without a lock; from there on the job may begin again as it is, or be reused */
    void *owner;
    enum unpack_outcome outcome; /* valid in done() */

    /* The unpacker's own, 0 at the start. */
    struct unpack_state *state; /* the hash's and the walk's */
    struct unpack_job *prev, *next;
    uint64_t landed; /* bytes of the extent, */
    uint64_t worked; /* and how many of them were worked at */
    bool queued, busy, ended, read_ok;
};

struct unpacker_config {
    uint32_t n_threads; /* > 0 */
    uint32_t n_jobs;    /* at once, at most */
    bool decodes;       /* some layout is compressed */
};

/* PS_ERR_NOMEM. */
enum ps_status unpacker_new(struct unpacker **out, const struct unpacker_config *config,
                            struct ps_error *err);
void unpacker_free(struct unpacker *unpacker);                  /* every job is done; NULL is fine */
uint64_t unpacker_memory(const struct unpacker_config *config); /* bytes, stacks included */

/* The first `bytes` of the extent are in memory. Neither waits, takes a lock other than the unpacker's, nor calls done(). */
void unpacker_landed(struct unpacker *unpacker, struct unpack_job *job, uint64_t bytes);
/* No further landed(). ok: all of it is in memory. */
void unpacker_ended(struct unpacker *unpacker, struct unpack_job *job, bool ok);
/* Compute has come to wait for the job, which may be anywhere between its begin and done(). */
void unpacker_promote(struct unpacker *unpacker, struct unpack_job *job);

struct unpacker_stats {
    uint64_t checked;        /* extents whose hash was compared */
    uint64_t bytes_unpacked; /* made of compressed extents */
    double check_s;          /* time of threads, */
    double unpack_s;         /* likewise */
};
/* Since new(). */
void unpacker_get_stats(struct unpacker *unpacker, struct unpacker_stats *stats);

#endif
