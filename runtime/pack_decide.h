/* What a container's experts are compressed with, decided per layer and part from samples. */
#ifndef PENSTOCK_RUNTIME_PACK_DECIDE_H
#define PENSTOCK_RUNTIME_PACK_DECIDE_H

#include "runtime/model.h"
#include "runtime/pack.h"
#include "storage/io_reader.h"

/* The level that experts are compressed with. */
int pack_level(uint32_t zstd);

/* Fills decisions, whose codecs and note the caller frees. reader: of the model's files; the model, which is not loaded, is
 * as before afterwards. */
enum ps_status pack_decide(struct ps_model *model, struct io_reader *reader, const struct pack_params *params,
                           struct pack_decisions *decisions, struct ps_error *err);

#endif
