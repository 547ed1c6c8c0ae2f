/* The parts of a routed expert, and the shape that each has in a layer. */
#ifndef PENSTOCK_STORAGE_SHARD_PARTS_H
#define PENSTOCK_STORAGE_SHARD_PARTS_H

#include <stdbool.h>
#include <stdint.h>

enum shard_part {
    SHARD_GATE,
    SHARD_UP,
    SHARD_DOWN,
    SHARD_GATE_UP, /* gate rows, then up rows */
    SHARD_GATE_BIAS,
    SHARD_UP_BIAS,
    SHARD_DOWN_BIAS,
    SHARD_GATE_UP_BIAS,
    SHARD_GATE_SCALE,
    SHARD_UP_SCALE,
    SHARD_DOWN_SCALE,
    SHARD_GATE_UP_SCALE,
    SHARD_N_PARTS,
};

/* The slice of one part that one expert owns; the same for all experts of a layer. */
struct shard_slice {
    bool present;
    uint32_t type;  /* ggml type id */
    uint64_t cols;  /* values per row */
    uint64_t rows;  /* 1 for biases and scales */
    uint64_t bytes; /* of one expert's slice */
};

const char *shard_part_name(enum shard_part part); /* "gate", "down bias", ... */

#endif
