#include "runtime/pack_decide.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/drive_probe.h"
#include "runtime/topology.h"
#include "storage/pack_choice.h"
#include "storage/packed.h"

enum {
    DEFAULT_LEVEL = 3,
    MAX_KINDS = 64,
    MAX_SAMPLES = 4,        /* experts per kind, */
    SAMPLE_BYTES = 1 << 20, /* and of each part at most */
};
#define PROBE_SECONDS 1.0

/* A part in one type, over all layers, and the samples of it. */
struct kind {
    struct pack_kind described;
    struct pack_sample samples[MAX_SAMPLES]; /* data owned */
};

struct deciding {
    struct ps_model *model;
    struct io_reader *reader;
    const struct pack_params *params;
    struct kind kinds[MAX_KINDS];
    struct pack_choice choices[MAX_KINDS];
    uint32_t n_kinds;
    struct pack_machine machine; /* what is decided for, with PACK_ZSTD_AUTO */
};

int pack_level(uint32_t zstd)
{
    return zstd > 0 && zstd <= PACK_ZSTD_MAX ? (int)zstd : DEFAULT_LEVEL;
}

/* ---- samples ---- */

/* MAX_KINDS: it is none that is known. */
static uint32_t find_kind(const struct deciding *d, uint32_t part, uint32_t type)
{
    for (uint32_t i = 0; i < d->n_kinds; i++) {
        if (d->kinds[i].described.part == part && d->kinds[i].described.type == type)
            return i;
    }
    return MAX_KINDS;
}

/* Kinds beyond those that fit stay as they are. */
static void list_kinds(struct deciding *d)
{
    for (uint32_t i = 0; i < shard_map_n_layers(d->model->shards); i++) {
        const struct shard_layer *layer = shard_map_layer(d->model->shards, i);
        for (uint32_t part = 0; layer->n_experts > 0 && part < SHARD_N_PARTS; part++) {
            const struct shard_slice *slice = &layer->slice[part];
            if (!slice->present)
                continue;
            uint32_t k = find_kind(d, part, slice->type);
            if (k == MAX_KINDS && d->n_kinds < MAX_KINDS) {
                k = d->n_kinds++;
                d->kinds[k].described = (struct pack_kind){.part = part,
                                                           .type = slice->type,
                                                           .expert_bytes = layer->bytes,
                                                           .samples = d->kinds[k].samples};
            }
            if (k < MAX_KINDS)
                d->kinds[k].described.model_bytes += slice->bytes * layer->n_experts;
        }
    }
}

static bool keep_sample(struct kind *kind, const uint8_t *data, uint64_t bytes)
{
    uint64_t stride = gguf_type_find(kind->described.type)->bytes;
    uint64_t most = SAMPLE_BYTES / stride * stride;
    bytes = bytes < most ? bytes : most;
    uint8_t *copy = malloc(bytes);
    if (!copy)
        return false;
    memcpy(copy, data, bytes);
    kind->samples[kind->described.n_samples++] = (struct pack_sample){copy, bytes};
    return true;
}

/* Samples an expert of the layer if some kind in it is in want of samples. */
static enum ps_status sample_layer(struct deciding *d, uint32_t number, struct ps_error *err)
{
    const struct shard_layer *layer = shard_map_layer(d->model->shards, number);
    struct kind *wanted[SHARD_N_PARTS] = {0};
    bool any = false;
    for (uint32_t part = 0; layer->n_experts > 0 && part < SHARD_N_PARTS; part++) {
        uint32_t k = layer->slice[part].present ? find_kind(d, part, layer->slice[part].type) : MAX_KINDS;
        if (k < MAX_KINDS && d->kinds[k].described.n_samples < MAX_SAMPLES)
            wanted[part] = &d->kinds[k];
        any = any || wanted[part];
    }
    if (!any)
        return PS_OK;
    struct shard_location location;
    shard_map_locate(d->model->shards, number, number * 7 % layer->n_experts, &location);
    uint8_t *slot = aligned_alloc(IO_ALIGN, layer->slot_bytes);
    bool ok = slot != NULL;
    enum ps_status status =
        ok ? io_reader_read(d->reader, location.ranges, location.n_ranges, slot, err) : PS_OK;
    for (uint32_t part = 0; ok && status == PS_OK && part < SHARD_N_PARTS; part++) {
        if (wanted[part])
            ok = keep_sample(wanted[part], slot + location.part_offset[part], layer->slice[part].bytes);
    }
    free(slot);
    return ok ? status : ps_error_set(err, PS_ERR_NOMEM, "no memory for samples of experts");
}

/* ---- choice ---- */

/* How fast the experts' drive is, unless that was said. */
static enum ps_status know_machine(struct deciding *d, struct ps_error *err)
{
    struct topology topology;
    topology_read_own(&topology);
    d->machine = (struct pack_machine){.read_rate = (double)d->params->drive_rate,
                                       .n_cores = topology.logical,
                                       .n_threads = topology.logical};
    if (d->params->zstd != PACK_ZSTD_AUTO || d->params->drive_rate > 0)
        return PS_OK;
    /* It reads through the loaded model's reader: this one lends it its own. */
    struct speed_parts parts;
    d->model->reader = d->reader;
    d->model->params.top_k = 1;
    enum ps_status status = drive_probe(d->model, PROBE_SECONDS, d->params->cancel, &parts, err);
    d->model->reader = NULL;
    d->model->params.top_k = 0;
    d->machine.read_rate = parts.drive_rate;
    return status;
}

static enum ps_status choose(struct deciding *d, struct ps_error *err)
{
    list_kinds(d);
    if (d->n_kinds == 0)
        return PS_OK;
    enum ps_status status = know_machine(d, err);
    for (uint32_t i = 0; status == PS_OK && i < shard_map_n_layers(d->model->shards); i++)
        status = sample_layer(d, i, err);
    for (uint32_t i = 0; status == PS_OK && i < d->n_kinds; i++) {
        if (d->params->cancel && *d->params->cancel)
            return ps_error_set(err, PS_ERR_CANCELLED, "%s: interrupted", d->params->path);
        status = pack_measure(&d->choices[i], &d->kinds[i].described, pack_level(d->params->zstd), err);
    }
    if (status == PS_OK)
        pack_choose(d->choices, d->n_kinds, &d->machine,
                    d->params->zstd == PACK_ZSTD_AUTO ? PACK_FASTEST : PACK_SMALLEST);
    return status;
}

/* ---- what comes of it ---- */

/* All figures where they were what decided; without times the note is the same each time. */
static json_t *describe_kinds(const struct deciding *d)
{
    json_t *kinds = json_array();
    if (d->params->zstd == PACK_ZSTD_AUTO && d->n_kinds > 0) {
        size_t room = pack_choice_json(d->choices, d->n_kinds, NULL, 0) + 1;
        char *text = malloc(room);
        json_t *loaded = NULL;
        if (text) {
            pack_choice_json(d->choices, d->n_kinds, text, room);
            loaded = json_loads(text, 0, NULL);
        }
        free(text);
        json_decref(kinds);
        return loaded;
    }
    for (uint32_t i = 0; i < d->n_kinds; i++) {
        const struct pack_choice *choice = &d->choices[i];
        json_array_append_new(
            kinds,
            json_pack("{s:s, s:s, s:I, s:s, s:f}", "part", shard_part_name(choice->part), "type",
                      gguf_type_find(choice->type)->name, "bytes", (json_int_t)choice->model_bytes, "codec",
                      chunk_codec_name(choice->codec), "ratio", choice->figures[choice->codec].ratio));
    }
    return kinds;
}

static char *make_note(const struct deciding *d)
{
    const struct pack_params *params = d->params;
    json_t *note = json_pack("{s:s}", "order", params->trace ? "trace" : "expert");
    json_t *zstd = params->zstd == PACK_ZSTD_AUTO  ? json_string("auto")
                   : params->zstd == PACK_ZSTD_OFF ? json_string("off")
                                                   : json_integer(params->zstd);
    json_object_set_new(note, "zstd", zstd);
    if (params->zstd == PACK_ZSTD_AUTO)
        json_object_set_new(note, "level", json_integer(pack_level(params->zstd)));
    if (params->zstd == PACK_ZSTD_AUTO && d->n_kinds > 0) {
        json_object_set_new(note, "read_rate", json_real(d->machine.read_rate));
        json_object_set_new(note, "cores", json_integer(d->machine.n_cores));
        json_object_set_new(note, "predicted_gain",
                            json_real(pack_gain(d->choices, d->n_kinds, &d->machine)));
    }
    char *text = NULL;
    if (json_object_set_new(note, "kinds", describe_kinds(d)) == 0)
        text = json_dumps(note, JSON_COMPACT | JSON_REAL_PRECISION(6));
    json_decref(note);
    return text;
}

/* Codecs of one layer, and what its experts are expected to take. */
static void settle_layer(const struct deciding *d, uint32_t number, uint8_t *codecs,
                         struct pack_decisions *decisions)
{
    const struct shard_layer *layer = shard_map_layer(d->model->shards, number);
    struct packed_layout layout;
    double bytes = 0.0;
    for (uint32_t part = 0; layer->n_experts > 0 && part < SHARD_N_PARTS; part++) {
        const struct shard_slice *slice = &layer->slice[part];
        uint32_t k = slice->present ? find_kind(d, part, slice->type) : MAX_KINDS;
        double ratio = 1.0;
        if (k < MAX_KINDS) {
            codecs[part] = (uint8_t)d->choices[k].codec;
            ratio = d->choices[k].figures[d->choices[k].codec].ratio;
        }
        if (slice->present)
            bytes += ratio * (double)slice->bytes;
    }
    packed_layout_init(&layout, layer->slice, codecs);
    uint64_t each = layout.compressed ? (uint64_t)bytes + IO_ALIGN : layout.bytes;
    decisions->expected_extent_bytes += each * layer->n_experts;
}

static enum ps_status settle(const struct deciding *d, struct pack_decisions *decisions, struct ps_error *err)
{
    uint32_t n_layers = shard_map_n_layers(d->model->shards);
    uint8_t *codecs = calloc(n_layers + 1ul, PACKED_LAYER_CODECS);
    char *note = make_note(d);
    *decisions = (struct pack_decisions){.codecs = codecs, .note = note};
    if (!codecs || !note)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory to pack it", d->params->path);
    decisions->note_bytes = strlen(note);
    for (uint32_t i = 0; i < n_layers; i++)
        settle_layer(d, i, codecs + (size_t)i * PACKED_LAYER_CODECS, decisions);
    return PS_OK;
}

enum ps_status pack_decide(struct ps_model *model, struct io_reader *reader, const struct pack_params *params,
                           struct pack_decisions *decisions, struct ps_error *err)
{
    *decisions = (struct pack_decisions){0};
    struct deciding *d = calloc(1, sizeof(*d));
    if (!d)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory to pack it", params->path);
    d->model = model;
    d->reader = reader;
    d->params = params;
    enum ps_status status = params->zstd == PACK_ZSTD_OFF ? PS_OK : choose(d, err);
    if (status == PS_OK)
        status = settle(d, decisions, err);
    for (uint32_t i = 0; i < d->n_kinds; i++) {
        for (uint32_t k = 0; k < d->kinds[i].described.n_samples; k++)
            free((void *)d->kinds[i].samples[k].data);
    }
    free(d);
    return status;
}
