/* Cuts a regrouped chunk into zstd's blocks: each has a code of its own for its bytes, so that rows (all first bytes, all second
 * ones, a bit plane) whose bytes are distributed differently should not share one, and noise should be a block that is not coded. */
#ifndef PENSTOCK_STORAGE_CHUNK_BLOCKS_H
#define PENSTOCK_STORAGE_CHUNK_BLOCKS_H

#include <stdint.h>

enum {
    CHUNK_BLOCK_BYTES = 128 << 10, /* zstd's limit */
    CHUNK_ROW_BYTES = 128,         /* narrower rows are taken together */
    CHUNK_MAX_BLOCKS = 4096,
};

/* src[bytes], bytes <= CHUNK_BYTES: rows of row_bytes, and what is left. ends[CHUNK_MAX_BLOCKS]: where each block ends, the last
 * at bytes. Returns how many. */
uint32_t chunk_blocks(const uint8_t *src, uint32_t bytes, uint32_t row_bytes, uint32_t *ends);

#endif
