/* A laid-out synthetic model: what synth.c computes and synth_write.c turns into a file. */
#ifndef PENSTOCK_RUNTIME_SYNTH_MODEL_H
#define PENSTOCK_RUNTIME_SYNTH_MODEL_H

#include <stdint.h>

#include "runtime/synth_arch.h"
#include "runtime/synth_blocks.h"

struct synth_model {
    struct synth_params params;   /* shape resolved */
    uint32_t file_type;           /* general.file_type */
    struct synth_tensor *tensors; /* [n_tensors] in file order */
    uint32_t n_tensors;
    struct synth_fill *fills; /* [n_fills] the distinct distributions */
    uint32_t n_fills;
    uint64_t data_bytes; /* of all tensors */
    char note[160];
};

#endif
