/* Pack writer: makes a container as packed.h describes it.
 *
 *     pack_writer_new(&w, &plan, &start, &err);         what an interrupted pack left is found
 *     if (start == PACK_FRESH || PACK_STARTED_OVER)
 *         pack_writer_decide(w, &decisions, &err);      else pack_writer_decisions() are those made then
 *     pack_writer_trunk(w, data, bytes, &err); ...      tensors in order, from pack_writer_trunk_filled() of pack_writer_n_trunk() on
 *     pack_writer_extent(w, data, bytes, hash, &err);   those of plan.order from pack_writer_n_extents() on
 *     pack_writer_finish(w, &err);                      on disk and under their names
 *     pack_writer_free(w, false);
 *
 * Files grow under temporary names (NAME.partial) beside a journal (OUT.partial-journal) and are renamed at the end, the main
 * file last. None is written to by two packs at once. A pack that was killed goes on with the same plan, from what is known to
 * be on the drive, and ends with the same bytes. Pages go out of the page cache along the way. Not for several threads at once. */
#ifndef PENSTOCK_STORAGE_PACK_WRITER_H
#define PENSTOCK_STORAGE_PACK_WRITER_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/packed.h"
#include "storage/status.h"

/* Borrowed until pack_writer_free. */
struct pack_plan {
    const char *path; /* of the main file */
    bool replace;     /* files that have the names */
    uint32_t n_stripes;
    const char *const *stripes; /* directories, each for one data file; none: extents are in the main file */
    uint32_t n_sources;
    const char *const *sources; /* files that must not be written to */
    /* What the container is made of and how, in any form: two plans that would give different files differ in it or below. */
    const void *identity;
    uint64_t identity_bytes;

    const uint8_t *header; /* of the GGUF, up to where tensor data begins */
    uint64_t header_bytes;
    uint32_t n_tensors, n_layers, n_shards;
    const uint64_t *trunk_bytes; /* [n_tensors] in the order of the GGUF's directory; 0: an expert's */
    const uint32_t *order;       /* [n_shards] of extents in their files; dealt to the data files in turn */
};

struct pack_decisions {
    const uint8_t *codecs;          /* [n_layers][PACKED_LAYER_CODECS] */
    const char *note;               /* JSON */
    uint64_t note_bytes;            /* */
    uint64_t expected_extent_bytes; /* of all, for the check of free space */
};

struct pack_writer;

enum pack_start {
    PACK_FRESH,
    PACK_STARTED_OVER, /* fresh; what another plan had left was removed */
    PACK_RESUMED,
    PACK_COMPLETED, /* only names were missing, and now it is finished: free it */
};

/* PS_ERR_ARGUMENT: a name is taken, by a source or without `replace`, or another pack is at work; PS_ERR_IO: a directory is missing; PS_ERR_NOMEM. */
enum ps_status pack_writer_new(struct pack_writer **out, const struct pack_plan *plan, enum pack_start *start,
                               struct ps_error *err);
/* Unfinished: keep, which leaves what is committed for another time, or nothing is left; where finish() failed at the names only,
 * all is left. NULL is fine. */
void pack_writer_free(struct pack_writer *writer, bool keep);

/* Copied. PS_ERR_IO, also when a filesystem has too little room. */
enum ps_status pack_writer_decide(struct pack_writer *writer, const struct pack_decisions *decisions,
                                  struct ps_error *err);
/* Those in force; valid until free(). */
struct pack_decisions pack_writer_decisions(const struct pack_writer *writer);

uint32_t pack_writer_n_trunk(
    const struct pack_writer *writer); /* the tensor that takes the next byte; experts' are passed over */
uint64_t pack_writer_trunk_filled(const struct pack_writer *writer); /* bytes of that tensor that it has */
uint32_t pack_writer_n_extents(const struct pack_writer *writer);    /* written */
uint64_t pack_writer_bytes(const struct pack_writer *writer);        /* of all files, so far */
uint64_t pack_writer_extent_bytes(const struct pack_writer *writer); /* of all extents, so far */

/* PS_ERR_IO names file and offset. */
enum ps_status pack_writer_trunk(struct pack_writer *writer, const uint8_t *data, uint64_t bytes,
                                 struct ps_error *err);
/* bytes: a multiple of IO_ALIGN. */
enum ps_status pack_writer_extent(struct pack_writer *writer, const uint8_t *data, uint64_t bytes,
                                  uint64_t hash, struct ps_error *err);
/* What was written so far outlasts a kill. */
enum ps_status pack_writer_commit(struct pack_writer *writer, struct ps_error *err);
/* All of plan.trunk_bytes and plan.order was written. */
enum ps_status pack_writer_finish(struct pack_writer *writer, struct ps_error *err);

#endif
