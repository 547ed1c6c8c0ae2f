/* Packed container: a GGUF's header and trunk as they were, and every expert as one aligned extent with a checksum, compressed
 * where that was found to pay, in one file or spread over several directories. This comment is the format's description; pack_writer.c
 * writes it, packed.c reads it.
 *
 * All numbers are little-endian; all hashes are XXH3 with 64 bits and seed 0; "aligned" is at multiples of IO_ALIGN (4096).
 *
 *   main file    superblock, one aligned unit:
 *                     0  magic "penstock"
 *                     8  u32 version, 2
 *                    12  u32 n_files: the main file and the data files
 *                    16  u8[16] id: the same in all files of one packing, different in any other
 *                    32  u64 bytes of this file
 *                    40  u64 offset, u64 bytes, u64 hash of the GGUF header
 *                    64  u64 offset, u64 bytes, u64 hash of the index
 *                    88  u64 hash of the 88 bytes before
 *                GGUF header, aligned: what a GGUF of the model starts with, up to where its tensor data begins. Of a split
 *                model it is that of the single file with the same metadata, without the keys split.*.
 *                index, aligned
 *                trunk, aligned: each tensor that is no expert's, by offset in the GGUF, each at a multiple of 64
 *                extents whose file is 0
 *   data file    head, one aligned unit:
 *                     0  magic "penstrip"
 *                     8  u32 version, 2
 *                    12  u32 number of this file, from 1
 *                    16  u8[16] id
 *                    32  u64 bytes of this file
 *                    40  u64 hash of the 40 bytes before
 *                extents whose file is its number
 *   Nothing overlaps anything else.
 *
 *   index        u32 n_files, n_tensors, n_layers, n_shards, u64 n_blocks; then, each section at a multiple of 8,
 *                files    n_files x { u64 bytes, u32 path_bytes, path, without a 0 }: of file 0 the path is empty. A relative path starts
 *                         at the main file's directory
 *                trunk    n_tensors x { u64 offset in file 0, u64 number of its first block }, by offset in the GGUF; of an
 *                         expert's tensor both are 0
 *                blocks   n_blocks x u64 hash: of each 16384 bytes of each trunk tensor, whose last block may be shorter, tensor
 *                         after tensor
 *                layers   n_layers x u8[16]: enum chunk_codec of each enum shard_part, the rest 0
 *                extents  n_shards x { u32 file, u32 0, u64 offset, u64 bytes, u64 hash }, by layer, then expert; offset and bytes
 *                         are aligned, the hash is of all these bytes
 *                note     u64 bytes, JSON: how it was packed and what was measured to decide it
 *
 * An expert unpacked is its parts in the order of enum shard_part, each at a multiple of PACKED_PART_ALIGN, zeros between.
 * In a layer whose codecs are all CHUNK_RAW that is what the extent holds. In others each part is cut into chunks of at most
 * CHUNK_BYTES (whole units of its stride, see packed_layout_init), and the extent is, chunk after chunk, u32 size and that many
 * bytes; with CHUNK_AS_IS set in the size they are the chunk itself, else what its part's codec made of it. Zeros follow
 * up to the next aligned offset.
 *
 * Such an extent is read to the end of its slot and unpacked to the start, in order and in the same memory: as no chunk is
 * stored in more bytes than it has, writing never overtakes reading in a slot of packed_layout.slot_bytes. */
#ifndef PENSTOCK_STORAGE_PACKED_H
#define PENSTOCK_STORAGE_PACKED_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/chunk_codec.h"
#include "storage/shard_parts.h"
#include "storage/status.h"

enum {
    PACKED_VERSION = 2,
    PACKED_ID_BYTES = 16,
    PACKED_PART_ALIGN = 64,
    PACKED_LAYER_CODECS = 16, /* bytes per layer in the index */
    PACKED_BLOCK_BYTES = 16 << 10,
};
#define CHUNK_AS_IS UINT32_C(0x80000000)

/* Blocks of a trunk tensor. */
static inline uint64_t packed_blocks(uint64_t bytes)
{
    return bytes / PACKED_BLOCK_BYTES + (bytes % PACKED_BLOCK_BYTES != 0);
}

/* ---- how one layer's experts are laid out ---- */

struct packed_layout {
    uint8_t codec[SHARD_N_PARTS];        /* enum chunk_codec */
    uint32_t stride[SHARD_N_PARTS];      /* bytes of a number, or of a block, of the part's type */
    uint64_t part_bytes[SHARD_N_PARTS];  /* 0: absent */
    uint64_t part_offset[SHARD_N_PARTS]; /* unpacked; UINT64_MAX: absent */
    uint64_t bytes;                      /* unpacked, whole aligned units */
    bool compressed;                     /* some codec is not CHUNK_RAW */
    uint32_t n_chunks;                   /* 0 unless compressed */
    uint64_t slot_bytes; /* memory in which an extent of it can be unpacked, whole aligned units */
};

/* slice[SHARD_N_PARTS] of the layer; codec[SHARD_N_PARTS]: enum chunk_codec. */
void packed_layout_init(struct packed_layout *layout, const struct shard_slice *slice, const uint8_t *codec);

/* A piece of one part: unpacked it is bytes [at, at + bytes). */
struct packed_chunk {
    uint32_t part;
    uint64_t at;
    uint32_t bytes;
};
/* The first chunk of a walk follows (struct packed_chunk){0}. False: there is none after *chunk. */
bool packed_chunk_next(const struct packed_layout *layout, struct packed_chunk *chunk);

/* ---- a container's directory ---- */

struct packed_extent {
    uint32_t file;
    uint64_t offset; /* bytes */
    uint64_t bytes;
    uint64_t hash;
};

struct packed;

/* Whether the file starts as a container's main file or a data file does; false also when it cannot be read. */
bool packed_is_container(const char *path);
/* Reads superblock and index, checks every hash, length and offset of them, that no extents overlap, and that each data file is
 * there, is of this packing and has its size. PS_ERR_IO: cannot be read, or a data file (a drive) is missing, named; PS_ERR_FORMAT: truncated, damaged,
 * not of this packing; PS_ERR_UNSUPPORTED: another version, or a codec of the future; PS_ERR_NOMEM. */
enum ps_status packed_open(struct packed **out, const char *path, struct ps_error *err);
void packed_free(struct packed *packed); /* NULL is fine */

uint32_t packed_n_files(const struct packed *packed);
const char *packed_file_path(const struct packed *packed, uint32_t file);
uint64_t packed_file_bytes(const struct packed *packed, uint32_t file);
uint64_t packed_memory(const struct packed *packed); /* bytes held */
/* Where the GGUF header is in file 0; its hash was checked. */
void packed_gguf_header(const struct packed *packed, uint64_t *offset, uint64_t *bytes);

/* Whether bytes of a file, file < n_files, are all in it and none are superblock's, head's, GGUF header's or index's. */
bool packed_is_data(const struct packed *packed, uint32_t file, uint64_t offset, uint64_t bytes);

uint32_t packed_n_tensors(const struct packed *packed);
uint64_t packed_n_blocks(const struct packed *packed);
/* tensor: index in the directory of gguf_open(). False: an expert's. */
bool packed_trunk_tensor(const struct packed *packed, uint32_t tensor, uint64_t *offset,
                         uint64_t *first_block);
/* Of what are to be bytes [at, at + bytes) of a trunk tensor: where in the tensor the first block begins that is not what it was;
 * UINT64_MAX: all are sound. at: a multiple of PACKED_BLOCK_BYTES; bytes too, unless they end with the tensor. */
uint64_t packed_trunk_damage(const struct packed *packed, uint32_t tensor, uint64_t at, const uint8_t *data,
                             uint64_t bytes);
uint32_t packed_n_layers(const struct packed *packed);
const uint8_t *packed_layer_codecs(const struct packed *packed, uint32_t layer); /* [SHARD_N_PARTS] */
uint32_t packed_n_shards(const struct packed *packed);
struct packed_extent packed_shard_extent(const struct packed *packed, uint32_t shard);
const char *packed_note(const struct packed *packed, uint64_t *bytes); /* JSON, not 0-terminated */

#endif
