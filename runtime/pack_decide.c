#include "runtime/pack_decide.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "storage/packed.h"

enum {
    DEFAULT_LEVEL = 3,
    MAX_KINDS = 64,
    MAX_SAMPLES = 4,    /* experts per kind, */
    SAMPLED_CHUNKS = 4, /* and chunks of each */
};

/* A part that is stored in one type: all of a kind are compressed alike. */
struct kind {
    uint32_t part, type, stride;
    uint32_t n_samples;
    uint64_t bytes;                  /* sampled */
    uint64_t stored[CHUNK_N_CODECS]; /* as that many; 0: the codec does not take it */
    uint8_t codec;
};

struct deciding {
    const struct ps_model *model;
    struct io_reader *reader;
    struct chunk_encoder *encoder;
    struct kind kinds[MAX_KINDS];
    uint32_t n_kinds;
};

int pack_level(uint32_t zstd)
{
    return zstd > 0 && zstd <= PACK_ZSTD_MAX ? (int)zstd : DEFAULT_LEVEL;
}

static const char *const part_names[SHARD_N_PARTS] = {
    "gate",      "up",           "down",       "gate_up",  "gate.bias",  "up.bias",
    "down.bias", "gate_up.bias", "gate.scale", "up.scale", "down.scale", "gate_up.scale",
};

/* NULL: there are too many. */
static struct kind *find_kind(struct deciding *d, uint32_t part, const struct shard_slice *slice)
{
    for (uint32_t i = 0; i < d->n_kinds; i++) {
        if (d->kinds[i].part == part && d->kinds[i].type == slice->type)
            return &d->kinds[i];
    }
    if (d->n_kinds == MAX_KINDS)
        return NULL;
    struct kind *kind = &d->kinds[d->n_kinds++];
    *kind = (struct kind){.part = part, .type = slice->type, .stride = gguf_type_find(slice->type)->bytes};
    return kind;
}

/* Compresses some chunks of a part with all codecs. dst: CHUNK_BYTES. */
static void sample_part(struct deciding *d, struct kind *kind, const uint8_t *data, uint64_t bytes,
                        uint8_t *dst)
{
    uint64_t limit = CHUNK_BYTES / kind->stride * kind->stride, n_chunks = (bytes - 1) / limit + 1;
    uint64_t n = n_chunks < SAMPLED_CHUNKS ? n_chunks : SAMPLED_CHUNKS;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t at = n_chunks * i / n * limit;
        uint32_t size = (uint32_t)(bytes - at < limit ? bytes - at : limit);
        kind->bytes += size;
        for (uint32_t codec = CHUNK_RAW + 1; codec < CHUNK_N_CODECS; codec++) {
            if (!chunk_codec_takes(codec, kind->stride))
                continue;
            uint32_t stored = chunk_encode(d->encoder, codec, kind->stride, data + at, size, dst);
            kind->stored[codec] += sizeof(uint32_t) + (stored > 0 ? stored : size);
        }
    }
    kind->n_samples++;
}

/* Samples an expert of the layer if some kind of it is in want of samples. */
static enum ps_status sample_layer(struct deciding *d, uint32_t number, struct ps_error *err)
{
    const struct shard_layer *layer = shard_map_layer(d->model->shards, number);
    struct kind *wanted[SHARD_N_PARTS] = {0};
    bool any = false;
    for (uint32_t part = 0; layer->n_experts > 0 && part < SHARD_N_PARTS; part++) {
        struct kind *kind = layer->slice[part].present ? find_kind(d, part, &layer->slice[part]) : NULL;
        if (kind && kind->n_samples < MAX_SAMPLES)
            wanted[part] = kind;
        any = any || wanted[part];
    }
    if (!any)
        return PS_OK;
    struct shard_location location;
    shard_map_locate(d->model->shards, number, number * 7 % layer->n_experts, &location);
    uint8_t *slot = aligned_alloc(IO_ALIGN, layer->slot_bytes), *dst = malloc(CHUNK_BYTES);
    enum ps_status status = slot && dst
                                ? io_reader_read(d->reader, location.ranges, location.n_ranges, slot, err)
                                : ps_error_set(err, PS_ERR_NOMEM, "no memory for samples of experts");
    for (uint32_t part = 0; status == PS_OK && part < SHARD_N_PARTS; part++) {
        if (wanted[part])
            sample_part(d, wanted[part], slot + location.part_offset[part], layer->slice[part].bytes, dst);
    }
    free(slot);
    free(dst);
    return status;
}

/* The smallest, if it saves half a percent: aligned ends take some of it back. */
static void choose_smallest(struct kind *kind)
{
    uint64_t least = kind->bytes - kind->bytes / 200;
    for (uint32_t codec = CHUNK_RAW + 1; codec < CHUNK_N_CODECS; codec++) {
        if (kind->stored[codec] > 0 && kind->stored[codec] < least) {
            least = kind->stored[codec];
            kind->codec = (uint8_t)codec;
        }
    }
}

static enum ps_status choose(struct deciding *d, uint32_t zstd, struct ps_error *err)
{
    enum ps_status status = PS_OK;
    d->encoder = chunk_encoder_new(pack_level(zstd));
    if (!d->encoder)
        return ps_error_set(err, PS_ERR_NOMEM, "no memory to compress samples of experts");
    for (uint32_t i = 0; status == PS_OK && i < shard_map_n_layers(d->model->shards); i++)
        status = sample_layer(d, i, err);
    for (uint32_t i = 0; i < d->n_kinds; i++)
        choose_smallest(&d->kinds[i]);
    chunk_encoder_free(d->encoder);
    return status;
}

static json_t *describe_kind(const struct kind *kind)
{
    json_t *stored = json_object();
    for (uint32_t codec = CHUNK_RAW + 1; codec < CHUNK_N_CODECS; codec++) {
        if (kind->stored[codec] > 0)
            json_object_set_new(stored, chunk_codec_name(codec),
                                json_integer((json_int_t)kind->stored[codec]));
    }
    return json_pack("{s:s, s:s, s:s, s:I, s:o}", "part", part_names[kind->part], "type",
                     gguf_type_find(kind->type)->name, "codec", chunk_codec_name(kind->codec),
                     "sampled_bytes", (json_int_t)kind->bytes, "stored_bytes", stored);
}

static char *make_note(const struct deciding *d, const struct pack_params *params)
{
    json_t *kinds = json_array();
    for (uint32_t i = 0; i < d->n_kinds; i++)
        json_array_append_new(kinds, describe_kind(&d->kinds[i]));
    json_t *note = json_pack("{s:s, s:o}", "order", params->trace ? "trace" : "expert", "kinds", kinds);
    if (params->zstd == PACK_ZSTD_OFF)
        json_object_set_new(note, "zstd", json_string("off"));
    else
        json_object_set_new(note, "zstd", json_integer(pack_level(params->zstd)));
    char *text = json_dumps(note, JSON_COMPACT);
    json_decref(note);
    return text;
}

/* Codecs of one layer, and what its experts are expected to take. */
static void settle_layer(struct deciding *d, uint32_t number, uint8_t *codecs,
                         struct pack_decisions *decisions)
{
    const struct shard_layer *layer = shard_map_layer(d->model->shards, number);
    struct packed_layout layout;
    double bytes = 0.0;
    if (layer->n_experts == 0)
        return;
    for (uint32_t part = 0; part < SHARD_N_PARTS; part++) {
        const struct shard_slice *slice = &layer->slice[part];
        struct kind *kind = slice->present && d->n_kinds > 0 ? find_kind(d, part, slice) : NULL;
        double share = 1.0;
        if (kind && kind->codec != CHUNK_RAW) {
            codecs[part] = kind->codec;
            share = (double)kind->stored[kind->codec] / (double)kind->bytes;
        }
        if (slice->present)
            bytes += share * (double)slice->bytes;
    }
    packed_layout_init(&layout, layer->slice, codecs);
    uint64_t each = layout.compressed ? (uint64_t)bytes + IO_ALIGN : layout.bytes;
    decisions->expected_extent_bytes += each * layer->n_experts;
}

enum ps_status pack_decide(const struct ps_model *model, struct io_reader *reader,
                           const struct pack_params *params, struct pack_decisions *decisions,
                           struct ps_error *err)
{
    struct deciding d = {.model = model, .reader = reader};
    uint32_t n_layers = shard_map_n_layers(model->shards);
    enum ps_status status = params->zstd == PACK_ZSTD_OFF ? PS_OK : choose(&d, params->zstd, err);
    if (status != PS_OK)
        return status;
    uint8_t *codecs = calloc(n_layers + 1ul, PACKED_LAYER_CODECS);
    char *note = make_note(&d, params);
    *decisions = (struct pack_decisions){.codecs = codecs, .note = note};
    if (!codecs || !note)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory to pack it", params->path);
    decisions->note_bytes = strlen(note);
    for (uint32_t i = 0; i < n_layers; i++)
        settle_layer(&d, i, codecs + (size_t)i * PACKED_LAYER_CODECS, decisions);
    return PS_OK;
}
