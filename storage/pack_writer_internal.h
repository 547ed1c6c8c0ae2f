/* State of the pack writer. For its own files: pack_writer.c writes, pack_writer_resume.c finds what an earlier pack left. */
#ifndef PENSTOCK_STORAGE_PACK_WRITER_INTERNAL_H
#define PENSTOCK_STORAGE_PACK_WRITER_INTERNAL_H

#include <time.h>

#include "storage/file_output.h"
#include "storage/pack_journal.h"
#include "storage/pack_writer.h"

enum { PACK_ID_AT = 16 }; /* in every file, and from its beginning, as what tells whose it is */

struct XXH3_state_s;

struct pack_file {
    char *path;      /* once it is whole */
    char *temporary; /* until then */
    char *named;     /* as the index names it */
    struct file_output out;
    uint64_t end;  /* bytes written */
    bool is_dirty; /* since the last commit */
};

struct pack_writer {
    const struct pack_plan *plan;
    uint32_t n_files;
    struct pack_file *files; /* [n_files] the main file first */
    struct pack_journal *journal;
    uint8_t key[PACKED_ID_BYTES]; /* of the plan */
    uint8_t id[PACKED_ID_BYTES];  /* of plan and decisions */

    struct pack_decisions decisions; /* all owned */
    uint64_t index_at, index_bytes;
    uint64_t *trunk_offset; /* [n_tensors] 0: an expert's */
    uint64_t extents_at;    /* of the main file: where trunk ends */

    uint64_t *block_hash;          /* [packed_blocks() of all the trunk] */
    uint64_t n_blocks;             /* done */
    uint32_t n_trunk;              /* tensors done or passed over */
    uint64_t filled;               /* bytes of the current one */
    struct XXH3_state_s *hash;     /* of those of its current block */
    struct packed_extent *extents; /* [n_shards] by shard */
    uint32_t n_extents;

    uint64_t uncommitted; /* bytes */
    struct timespec committed;
    bool is_sealed, is_finished;
};

/* Which file the nth extent of the order goes to. */
static inline uint32_t pack_file_of(const struct pack_writer *w, uint32_t nth)
{
    return w->n_files > 1 ? 1 + nth % (w->n_files - 1) : 0;
}

/* Fixes the places that follow from plan and decisions, and the id. */
enum ps_status pack_writer_lay_out(struct pack_writer *w, struct ps_error *err);
/* Passes over experts' tensors. */
void pack_writer_skip_experts(struct pack_writer *w);
/* Bytes that the current block of the current tensor has when it is whole. */
uint64_t pack_writer_block_bytes(const struct pack_writer *w);
/* Counts bytes of the current block, with its hash once it is whole. */
void pack_writer_fill(struct pack_writer *w, uint64_t bytes, uint64_t hash);
/* Opens the temporary files, cut to what is in them, and writes what precedes the index. */
enum ps_status pack_writer_open_files(struct pack_writer *w, struct ps_error *err);
/* Gives a sealed container its names. */
enum ps_status pack_writer_put_in_place(struct pack_writer *w, struct ps_error *err);

/* Bytes of a file of this packing; 0: there is none with this name. */
uint64_t pack_writer_bytes_of_ours(const struct pack_writer *w, const char *path);
/* Begins the journal with the decisions. */
enum ps_status pack_writer_begin_journal(struct pack_writer *w, struct ps_error *err);
/* Takes up what the journal tells of. PS_OK with *start. */
enum ps_status pack_writer_resume(struct pack_writer *w, enum pack_start *start, struct ps_error *err);

#endif
