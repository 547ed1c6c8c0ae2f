/* The pipeline of packing: every thread reads a piece ahead of the one that it works on, and they take turns to write, so that
 * the output is in order whatever the number of threads. */
#ifndef PENSTOCK_RUNTIME_PACK_PIPELINE_H
#define PENSTOCK_RUNTIME_PACK_PIPELINE_H

#include "runtime/pack.h"
#include "runtime/pack_source.h"
#include "storage/io_reader.h"
#include "storage/packed.h"

struct pack_pipeline {
    const struct ps_model *model;
    const struct pack_source *source;
    const struct packed_layout *layouts; /* [n_layers] */
    const uint32_t *order;               /* [n_shards] */
    struct pack_writer *writer;
    struct io_reader *reader;
    int level; /* of zstd */
    uint32_t threads;
    const struct pack_params *params;
};

/* Writes what the writer does not have yet. On failure what was committed by then can be gone on with. */
enum ps_status pack_pipeline_run(const struct pack_pipeline *pipeline, struct ps_error *err);

/* Copies the parts from where they were read to where the layout has them, with zeros between. */
void pack_arrange(const struct packed_layout *layout, const struct shard_location *location,
                  const uint8_t *slot, uint8_t *expert);

#endif
