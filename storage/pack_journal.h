/* Journal of a container that is being written: what of it is final, so that a killed pack goes on where it was.
 *
 * A file beside the container, all numbers little-endian:
 *     head      magic "penspack", u32 version, u32 0, u8[16] key, u64 body bytes, u64 XXH3 of key and body
 *     body      what was decided when the pack began, the pack writer's own
 *     records   48 bytes each: struct pack_record, and the XXH3 of it with the number of the record as seed
 * A record is appended once what it tells of is on the drive. What follows the last whole record in sequence is ignored,
 * and overwritten. An empty or torn head is as good as no journal.
 * The file is locked while a pack is at work. */
#ifndef PENSTOCK_STORAGE_PACK_JOURNAL_H
#define PENSTOCK_STORAGE_PACK_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/packed.h"
#include "storage/status.h"

enum pack_record_kind {
    PACK_TRUNK = 1, /* a block; item: its tensor, in the order of the GGUF's directory */
    PACK_EXTENT,    /* item: shard */
    PACK_SEALED,    /* all files are whole and synced; only their names are temporary */
};

struct pack_record {
    uint32_t kind, item;
    uint32_t file, zero;
    uint64_t offset, bytes, hash;
};

struct pack_journal;

/* Creates the file, or opens the one that is there. PS_ERR_IO: cannot be made; PS_ERR_ARGUMENT: another pack is at work on it. */
enum ps_status pack_journal_open(struct pack_journal **out, const char *path, struct ps_error *err);
/* What is not committed is lost; the file stays. NULL is fine. */
void pack_journal_free(struct pack_journal *journal);
void pack_journal_remove(struct pack_journal *journal); /* the file */

/* The body that the file began with; NULL: there is none. Valid until begin() or free(). */
const uint8_t *pack_journal_body(const struct pack_journal *journal, const uint8_t **key, uint64_t *bytes);
/* Reads the next record; false at the end of those in sequence. */
bool pack_journal_next(struct pack_journal *journal, struct pack_record *record);
/* Drops the record that next() gave last, and those after it. False: it cannot. */
bool pack_journal_back(struct pack_journal *journal);

/* Empties the file and begins it anew, on the drive. */
enum ps_status pack_journal_begin(struct pack_journal *journal, const uint8_t key[PACKED_ID_BYTES],
                                  const uint8_t *body, uint64_t bytes, struct ps_error *err);
/* Behind the last that was read or appended, in memory until commit(). */
enum ps_status pack_journal_append(struct pack_journal *journal, const struct pack_record *record,
                                   struct ps_error *err);
enum ps_status pack_journal_commit(struct pack_journal *journal, struct ps_error *err);

#endif
