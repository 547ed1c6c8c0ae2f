/* What a packed container holds of a model, for those who ask. */
#include "runtime/model.h"
#include "storage/packed.h"

_Static_assert((int)PS_MAX_PARTS == (int)SHARD_N_PARTS, "room for all parts");

bool ps_model_packing(const struct ps_model *model, struct ps_packing *out)
{
    const struct packed *packed = gguf_packed(model->gguf);
    if (!packed)
        return false;
    *out = (struct ps_packing){.version = PACKED_VERSION};
    out->note = packed_note(packed, &out->note_bytes);
    return true;
}

static void fill_layer(const struct packed *packed, const struct shard_layer *layer, const uint8_t *codecs,
                       struct ps_packed_layer *out)
{
    *out = (struct ps_packed_layer){.bytes = layer->bytes * layer->n_experts};
    for (uint32_t expert = 0; expert < layer->n_experts; expert++)
        out->stored_bytes += packed_shard_extent(packed, layer->first_shard + expert).bytes;
    for (uint32_t part = 0; part < SHARD_N_PARTS; part++) {
        const struct shard_slice *slice = &layer->slice[part];
        if (!slice->present)
            continue;
        out->part[out->n_parts].name = shard_part_name(part);
        out->part[out->n_parts].type = gguf_type_find(slice->type)->name;
        out->part[out->n_parts].codec = chunk_codec_name(codecs[part]);
        out->part[out->n_parts++].bytes = slice->bytes * layer->n_experts;
    }
}

bool ps_model_packed_layer(const struct ps_model *model, uint32_t moe_layer, struct ps_packed_layer *out)
{
    const struct packed *packed = gguf_packed(model->gguf);
    for (uint32_t l = 0; packed && l < model->hp.n_layers; l++) {
        const struct shard_layer *layer = shard_map_layer(model->shards, l);
        if (layer->n_experts == 0 || moe_layer-- > 0)
            continue;
        fill_layer(packed, layer, packed_layer_codecs(packed, l), out);
        return true;
    }
    return false;
}

const char *ps_model_file(const struct ps_model *model, uint32_t file, uint64_t *bytes)
{
    *bytes = gguf_file_size(model->gguf, file);
    return gguf_file_path(model->gguf, file);
}
