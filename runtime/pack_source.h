/* What a container is made from: the header that it keeps of a GGUF, and its tensors. */
#ifndef PENSTOCK_RUNTIME_PACK_SOURCE_H
#define PENSTOCK_RUNTIME_PACK_SOURCE_H

#include <stdint.h>

#include "runtime/model.h"
#include "storage/status.h"

struct pack_source {
    uint8_t *header; /* up to where tensor data begins; owned */
    uint64_t header_bytes;
    uint32_t n_tensors;
    uint64_t *trunk_bytes; /* [n_tensors] in the order of the directory; 0: an expert's; owned */
    const char **paths;    /* the GGUF's files; owned, the paths are not */
    uint32_t n_paths;
    uint64_t bytes; /* of all files */
};

/* Of a single file the header is kept as it is; of a split model it is made anew, as of one file with the same metadata. */
enum ps_status pack_source_init(struct pack_source *source, const struct ps_model *model,
                                struct ps_error *err);
void pack_source_deinit(struct pack_source *source);

/* order[n_shards]: shards by layer, and in each layer by expert, or by how often the recorded routing uses them.
 * PS_ERR_ARGUMENT: the recording is of another model. */
enum ps_status pack_source_order(const struct ps_model *model, const char *trace, uint32_t *order,
                                 struct ps_error *err);

#endif
