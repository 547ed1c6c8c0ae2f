/* A whole extent from an unpacked expert and back, as packed.h describes it. For tools: readers that are in a hurry unpack
 * while the rest is on its way (unpacker.h). */
#ifndef PENSTOCK_STORAGE_EXTENT_CODEC_H
#define PENSTOCK_STORAGE_EXTENT_CODEC_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/chunk_codec.h"
#include "storage/packed.h"

/* Both: of a compressed layout. */

/* out: layout->slot_bytes. Returns the extent's bytes, whole aligned units. */
uint64_t extent_encode(struct chunk_encoder *encoder, const struct packed_layout *layout,
                       const uint8_t *expert, uint8_t *out);
/* Parts only: what is between them is left as it was. False: damaged. */
bool extent_decode(struct chunk_decoder *decoder, const struct packed_layout *layout, const uint8_t *extent,
                   uint64_t bytes, uint8_t *expert);

uint64_t extent_hash(const uint8_t *extent, uint64_t bytes);

#endif
