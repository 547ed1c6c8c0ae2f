/* Shard map: where each routed expert's bytes are. An expert of one layer is a shard: 1..n extents in the
 * model's files. Read from tensor names, for the three ways in which GGUF files store experts:
 *   stacked     blk.L.ffn_{gate,up,down}_exps.weight  [cols, rows, n_expert]
 *   fused       blk.L.ffn_gate_up_exps.weight         [cols, 2*rows, n_expert]
 *   per expert  blk.L.ffn_{gate,up,down}.E.weight     (old Mixtral files)
 * each with optional .bias ([rows, n_expert] F32) and .scale ([n_expert] F32).
 * In a packed container (packed.h) it is one extent, whichever way the GGUF had it.
 * Immutable after shard_map_new; locations are computed, not stored, so the map stays small. */
#ifndef PENSTOCK_STORAGE_SHARD_MAP_H
#define PENSTOCK_STORAGE_SHARD_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/gguf.h"
#include "storage/io_reader.h"
#include "storage/packed.h"
#include "storage/shard_parts.h"
#include "storage/status.h"

struct shard_layer {
    uint32_t n_experts;   /* 0: this layer has no routed experts */
    uint32_t first_shard; /* id of expert 0; shard id = first_shard + expert */
    uint64_t bytes;       /* of one expert, all parts, as computed with */
    uint64_t read_bytes;  /* to read one, mean: less than bytes where a container holds it compressed */
    uint64_t slot_bytes;  /* memory one of its shards needs in a slot: the sum of aligned spans, worst case */
    struct shard_slice slice[SHARD_N_PARTS];
};

/* One shard, ready to be read: ranges for the reader, and where each part then lies in the slot. */
struct shard_location {
    uint32_t n_ranges;
    struct io_range ranges[SHARD_N_PARTS]; /* neighbours in the file are merged into one range */
    uint64_t part_offset[SHARD_N_PARTS];   /* bytes into the slot; UINT64_MAX when absent */
    const struct packed_layout
        *packed;   /* NULL: of a GGUF. Borrowed from the map. One range, of the extent: where it is
                                              compressed, parts are in place once it has been unpacked */
    uint64_t hash; /* of a packed one's extent */
};

struct shard_map;

/* n_layers: layers to look for, blk.0 .. blk.(n_layers-1). PS_ERR_FORMAT when parts of a layer disagree in
 * expert count or shape, or one is missing, or a container was not packed as these layers ask for; a model without
 * experts gives an empty map. The directory of a container is borrowed. */
enum ps_status shard_map_new(struct shard_map **out, const struct gguf *gguf, uint32_t n_layers,
                             struct ps_error *err);
void shard_map_free(struct shard_map *map);

uint32_t shard_map_n_layers(const struct shard_map *map);
uint32_t shard_map_n_shards(const struct shard_map *map); /* over all layers */
const struct shard_layer *shard_map_layer(const struct shard_map *map, uint32_t layer);
uint32_t shard_map_shard_layer(const struct shard_map *map, uint32_t shard); /* layer of a shard id */
/* layer < n_layers, expert < n_experts of it. */
void shard_map_locate(const struct shard_map *map, uint32_t layer, uint32_t expert,
                      struct shard_location *out);
/* Where a part that is present begins in its file; of a container, in the GGUF that was packed. */
uint64_t shard_map_part_offset(const struct shard_map *map, uint32_t layer, uint32_t expert, uint32_t part);
/* Whether a tensor (by directory index) belongs to an expert; what is left is the trunk. */
bool shard_map_owns_tensor(const struct shard_map *map, uint32_t tensor_index);

/* Layout of a set of whole tensors in one buffer, for the trunk: tensors that are neighbours in a file share one
 * range. The same struct serves the resident trunk and a streamed layer of it. */
struct tensor_layout {
    uint32_t n_ranges;
    struct io_range *ranges; /* owned */
    uint32_t n_tensors;
    uint64_t *offset; /* [n_tensors] bytes into the buffer, in the order given; owned */
    uint64_t bytes;   /* buffer size, a multiple of IO_ALIGN */
};
/* tensors[n]: directory indices, no duplicates. */
enum ps_status tensor_layout_init(struct tensor_layout *layout, const struct gguf *gguf,
                                  const uint32_t *tensors, uint32_t n_tensors, struct ps_error *err);
void tensor_layout_deinit(struct tensor_layout *layout);

#endif
