#include "storage/shard_parts.h"

const char *shard_part_name(enum shard_part part)
{
    static const char *const names[SHARD_N_PARTS] = {
        [SHARD_GATE] = "gate",
        [SHARD_UP] = "up",
        [SHARD_DOWN] = "down",
        [SHARD_GATE_UP] = "gate_up",
        [SHARD_GATE_BIAS] = "gate bias",
        [SHARD_UP_BIAS] = "up bias",
        [SHARD_DOWN_BIAS] = "down bias",
        [SHARD_GATE_UP_BIAS] = "gate_up bias",
        [SHARD_GATE_SCALE] = "gate scale",
        [SHARD_UP_SCALE] = "up scale",
        [SHARD_DOWN_SCALE] = "down scale",
        [SHARD_GATE_UP_SCALE] = "gate_up scale",
    };
    return names[part];
}
