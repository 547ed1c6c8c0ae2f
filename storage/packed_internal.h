/* Packed container: where fields stand in superblock, heads and index (packed.h describes them). For packed.c and
 * pack_writer.c. */
#ifndef PENSTOCK_STORAGE_PACKED_INTERNAL_H
#define PENSTOCK_STORAGE_PACKED_INTERNAL_H

#define PACKED_MAIN_MAGIC "penstock"
#define PACKED_DATA_MAGIC "penstrip"

enum {
    PACKED_MAGIC_BYTES = 8,

    /* The main file's superblock and the data files' heads; both are one aligned unit, zeros behind the hash. */
    PACKED_AT_VERSION = 8,
    PACKED_AT_N_FILES = 12, /* superblock */
    PACKED_AT_NUMBER = 12,  /* head */
    PACKED_AT_ID = 16,
    PACKED_AT_FILE_BYTES = 32,
    PACKED_AT_HEADER = 40,    /* superblock: u64 offset, bytes, hash of the GGUF header */
    PACKED_AT_INDEX = 64,     /* superblock: u64 offset, bytes, hash of the index */
    PACKED_AT_MAIN_HASH = 88, /* superblock */
    PACKED_AT_DATA_HASH = 40, /* head */

    /* The index. */
    PACKED_INDEX_COUNTS = 24, /* bytes: u32 n_files, n_tensors, n_layers, n_shards, u64 n_blocks */
    PACKED_AT_N_BLOCKS = 16,
    PACKED_INDEX_ALIGN = 8, /* of each section */
    PACKED_FILE_BYTES = 12, /* before a path */
    PACKED_TRUNK_BYTES = 16,
    PACKED_HASH_BYTES = 8,
    PACKED_EXTENT_BYTES = 32,

    PACKED_TENSOR_ALIGN = 64, /* of trunk tensors in file 0 */
    PACKED_MOST_PATH = 4095,  /* bytes of a path */
};

/* 1 GiB: of GGUF headers and of indices; the largest real ones take some 20 MB. */
#define PACKED_MOST_INDEX (UINT64_C(1) << 30)

#endif
