#include "runtime/pack_decide.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "storage/packed.h"

enum { DEFAULT_LEVEL = 3 };

int pack_level(uint32_t zstd)
{
    return zstd > 0 && zstd <= PACK_ZSTD_MAX ? (int)zstd : DEFAULT_LEVEL;
}

enum ps_status pack_decide(const struct ps_model *model, struct io_reader *reader,
                           const struct pack_params *params, struct pack_decisions *decisions,
                           struct ps_error *err)
{
    (void)reader;
    uint32_t n_layers = shard_map_n_layers(model->shards);
    uint8_t *codecs = calloc(n_layers + 1ul, PACKED_LAYER_CODECS);
    json_t *note = json_object();
    json_object_set_new(note, "zstd", json_string("off"));
    json_object_set_new(note, "order", json_string(params->trace ? "trace" : "expert"));
    char *text = json_dumps(note, JSON_COMPACT);
    json_decref(note);
    *decisions = (struct pack_decisions){.codecs = codecs, .note = text};
    if (!codecs || !text)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory to pack it", params->path);
    decisions->note_bytes = strlen(text);
    for (uint32_t i = 0; i < n_layers; i++) {
        const struct shard_layer *layer = shard_map_layer(model->shards, i);
        struct packed_layout layout;
        packed_layout_init(&layout, layer->slice, codecs + (size_t)i * PACKED_LAYER_CODECS);
        decisions->expected_extent_bytes += layout.bytes * layer->n_experts;
    }
    return PS_OK;
}
