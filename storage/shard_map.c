/* Shard map: finds the expert tensors by name, checks that the parts of a layer fit together, and computes
 * where each expert's bytes are. */
#include "storage/shard_map.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/file_extent.h"

enum {
    MAX_LAYERS = 4096,   /* bounds the table against a damaged layer count; models have up to some 130 */
    MAX_EXPERTS = 65535, /* per layer; models have up to some 512 */
    N_WEIGHTS = SHARD_GATE_BIAS,
    TYPE_F32 = 0,
    MIN_CHUNK_BYTES = 5, /* of a packed chunk: its size and something */
};
#define MAX_PACKED_EXPERT (UINT64_C(1) << 40)

#define NO_TENSOR UINT32_MAX

/* Where the slices of one part are in the files. */
struct part_place {
    uint32_t tensor; /* directory index of a stacked tensor, or NO_TENSOR */
    uint32_t file;
    uint64_t offset; /* of expert 0's slice; expert e's is at offset + e * slice.bytes */
};

/* Where one expert's slice of a part is, in files that store every expert as tensors of its own. */
struct single_place {
    uint32_t file;
    uint64_t offset;
};

struct layer {
    struct shard_layer shape;
    struct packed_layout *packed; /* NULL: of a GGUF; owned */
    struct part_place place[SHARD_N_PARTS];
    uint32_t n_singles;           /* experts stored as tensors of their own: the highest number + 1 */
    uint32_t n_single_tensors;    /* their tensors */
    struct single_place *singles; /* [n_singles * 3]: gate, up, down; NULL for stacked layers */
};

struct shard_map {
    uint32_t n_layers;
    uint32_t n_shards;
    struct layer *layers;
    uint8_t *owned;              /* bit per tensor of the directory */
    const struct packed *packed; /* NULL: of a GGUF; borrowed */
};

/* A tensor name taken apart. */
struct expert_name {
    uint32_t layer;
    enum shard_part part;
    bool single;     /* one tensor per expert */
    uint32_t expert; /* of a single */
};

/* In the order of enum shard_part, weights, biases and scales alike. */
static const char *const matrix_names[] = {"ffn_gate", "ffn_up", "ffn_down", "ffn_gate_up"};
static const char *const suffixes[] = {"weight", "bias", "scale"};

enum { N_MATRICES = 4, N_SUFFIXES = 3 };
_Static_assert((int)N_MATRICES == (int)N_WEIGHTS && N_MATRICES * N_SUFFIXES == SHARD_N_PARTS,
               "order of the parts");

/* Decimal number without sign or leading zeros; advances *at. */
static bool parse_number(const char **at, uint32_t *out)
{
    const char *p = *at;
    uint64_t number = 0;
    if (*p < '0' || *p > '9' || (*p == '0' && p[1] >= '0' && p[1] <= '9'))
        return false;
    for (; *p >= '0' && *p <= '9'; p++) {
        number = number * 10 + (uint64_t)(*p - '0');
        if (number > UINT32_MAX)
            return false;
    }
    *at = p;
    *out = (uint32_t)number;
    return true;
}

static bool skip_text(const char **at, const char *text)
{
    size_t n = strlen(text);
    if (strncmp(*at, text, n) != 0)
        return false;
    *at += n;
    return true;
}

/* "_exps.SUFFIX" or ".E.weight", after the matrix name. */
static bool parse_tail(const char *at, uint32_t matrix, struct expert_name *out)
{
    out->single = false;
    if (skip_text(&at, "_exps.")) {
        for (uint32_t i = 0; i < N_SUFFIXES; i++) {
            if (strcmp(at, suffixes[i]) == 0) {
                out->part = (enum shard_part)(i * N_MATRICES + matrix);
                return true;
            }
        }
        return false;
    }
    out->single = true;
    out->part = (enum shard_part)matrix;
    return matrix != SHARD_GATE_UP && skip_text(&at, ".") && parse_number(&at, &out->expert) &&
           strcmp(at, ".weight") == 0;
}

static bool parse_name(const char *name, struct expert_name *out)
{
    const char *at = name;
    if (!skip_text(&at, "blk.") || !parse_number(&at, &out->layer) || !skip_text(&at, "."))
        return false;
    for (uint32_t matrix = 0; matrix < N_MATRICES; matrix++) {
        const char *tail = at;
        if (skip_text(&tail, matrix_names[matrix]) && parse_tail(tail, matrix, out))
            return true;
    }
    return false;
}

/* "blk.3.ffn_up_exps.bias", for messages. */
static const char *part_name(char out[static 64], uint32_t layer, uint32_t part)
{
    snprintf(out, 64, "blk.%" PRIu32 ".%s_exps.%s", layer, matrix_names[part % N_MATRICES],
             suffixes[part / N_MATRICES]);
    return out;
}

static uint32_t single_index(const struct expert_name *name)
{
    return name->expert * 3 + (uint32_t)name->part;
}

/* First pass over the names: which parts there are, and how many experts are stored singly. */
static enum ps_status note_tensor(struct shard_map *map, const struct gguf *gguf, uint32_t index,
                                  struct ps_error *err)
{
    const struct gguf_tensor *tensor = gguf_tensor_at(gguf, index);
    struct expert_name name;
    if (!parse_name(tensor->name, &name) || name.layer >= map->n_layers)
        return PS_OK;
    map->owned[index / 8] |= (uint8_t)(1u << index % 8);
    struct layer *layer = &map->layers[name.layer];
    if (!name.single) {
        layer->place[name.part] = (struct part_place){index, tensor->file, tensor->offset};
    } else {
        if (name.expert >= MAX_EXPERTS)
            return ps_error_set(err, PS_ERR_FORMAT, "%.80s: expert number %" PRIu32 ", at most %d can be",
                                tensor->name, name.expert, MAX_EXPERTS - 1);
        layer->n_single_tensors++;
        if (name.expert >= layer->n_singles)
            layer->n_singles = name.expert + 1;
    }
    return PS_OK;
}

/* A slice must have the shape its neighbours in the layer have. */
static bool same_slice(const struct shard_slice *x, const struct shard_slice *y)
{
    return x->type == y->type && x->cols == y->cols && x->rows == y->rows && x->bytes == y->bytes;
}

/* Second pass, for singly stored experts: where each is. */
static enum ps_status place_single(struct shard_map *map, const struct gguf *gguf, uint32_t index,
                                   struct ps_error *err)
{
    const struct gguf_tensor *tensor = gguf_tensor_at(gguf, index);
    struct expert_name name;
    if (!parse_name(tensor->name, &name) || name.layer >= map->n_layers || !name.single)
        return PS_OK;
    struct layer *layer = &map->layers[name.layer];
    struct shard_slice slice = {true, tensor->type, tensor->dims[0], tensor->dims[1], tensor->bytes};
    struct shard_slice *first = &layer->shape.slice[name.part];
    if (!first->present)
        *first = slice;
    if (!same_slice(first, &slice) || tensor->dims[2] != 1 || tensor->dims[3] != 1)
        return ps_error_set(err, PS_ERR_FORMAT, "%.80s: type or shape differs from the layer's other experts",
                            tensor->name);
    if (layer->n_singles > layer->n_single_tensors)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "blk.%" PRIu32 ": experts are numbered up to %" PRIu32
                            ", but there are only %" PRIu32 " tensors of them",
                            name.layer, layer->n_singles - 1, layer->n_single_tensors);
    if (!layer->singles) {
        layer->singles = calloc(layer->n_singles * 3ul, sizeof(*layer->singles));
        if (!layer->singles)
            return ps_error_set(err, PS_ERR_NOMEM, "%.80s: no memory for the map of experts", tensor->name);
    }
    /* Offset 0 is the file's header, so it marks what is missing. */
    layer->singles[single_index(&name)] = (struct single_place){tensor->file, tensor->offset};
    return PS_OK;
}

static enum ps_status check_singles(const struct layer *layer, uint32_t number, struct ps_error *err)
{
    for (uint32_t part = 0; part < 3; part++) {
        for (uint32_t e = 0; layer->shape.slice[part].present && e < layer->n_singles; e++) {
            if (layer->singles[e * 3 + part].offset == 0)
                return ps_error_set(err, PS_ERR_FORMAT, "blk.%" PRIu32 ".%s.%" PRIu32 ".weight: missing",
                                    number, matrix_names[part], e);
        }
    }
    for (uint32_t part = 0; part < SHARD_N_PARTS; part++) {
        char name[64];
        if (layer->place[part].tensor != NO_TENSOR)
            return ps_error_set(err, PS_ERR_FORMAT, "%s: beside experts that are stored singly",
                                part_name(name, number, part));
    }
    return PS_OK;
}

/* Shape of a stacked part: weights [cols, rows, n], biases [cols, n], scales [n]. */
static enum ps_status slice_stacked(struct layer *layer, const struct gguf_tensor *tensor, uint32_t part,
                                    struct ps_error *err)
{
    const uint64_t *dims = tensor->dims;
    uint32_t inner = part < SHARD_GATE_BIAS ? 2 : part < SHARD_GATE_SCALE ? 1 : 0; /* dims of one slice */
    uint64_t n_experts = dims[inner];
    for (uint32_t i = inner + 1; i < 4; i++) {
        if (dims[i] != 1)
            return ps_error_set(err, PS_ERR_FORMAT, "%s: too many dimensions", tensor->name);
    }
    if (n_experts > MAX_EXPERTS)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: %" PRIu64 " experts, at most %d can be", tensor->name,
                            n_experts, MAX_EXPERTS);
    if (layer->shape.n_experts == 0)
        layer->shape.n_experts = (uint32_t)n_experts;
    if (n_experts != layer->shape.n_experts)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "%s: %" PRIu64 " experts, but other parts of the layer have %" PRIu32,
                            tensor->name, n_experts, layer->shape.n_experts);
    if (inner < 2 && tensor->type != TYPE_F32)
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s: stored as %s, only f32 is handled", tensor->name,
                            gguf_type_find(tensor->type)->name);
    layer->shape.slice[part] = (struct shard_slice){
        .present = true,
        .type = tensor->type,
        .cols = inner > 0 ? dims[0] : 1,
        .rows = inner > 1 ? dims[1] : 1,
        .bytes = tensor->bytes / n_experts,
    };
    return PS_OK;
}

/* The value must be the one that another part implies. */
static enum ps_status expect(uint32_t layer, uint32_t part, const char *what, uint64_t value,
                             uint64_t expected, struct ps_error *err)
{
    char name[64];
    if (value == expected)
        return PS_OK;
    return ps_error_set(err, PS_ERR_FORMAT,
                        "%s: %" PRIu64 " %s, but the layer's other parts ask for %" PRIu64,
                        part_name(name, layer, part), value, what, expected);
}

static enum ps_status missing(uint32_t layer, uint32_t part, struct ps_error *err)
{
    char name[64];
    return ps_error_set(err, PS_ERR_FORMAT, "%s: missing, though the layer has other expert tensors",
                        part_name(name, layer, part));
}

/* Which matrices there are: up and down, with or without a gate, or gate and up fused. */
static enum ps_status check_matrices(const struct shard_layer *shape, uint32_t number, struct ps_error *err)
{
    const struct shard_slice *slice = shape->slice;
    bool fused = slice[SHARD_GATE_UP].present;
    if (!slice[SHARD_DOWN].present)
        return missing(number, SHARD_DOWN, err);
    if (!fused && !slice[SHARD_UP].present)
        return missing(number, SHARD_UP, err);
    if (fused && (slice[SHARD_GATE].present || slice[SHARD_UP].present || slice[SHARD_GATE_UP].rows % 2 != 0))
        return ps_error_set(
            err, PS_ERR_FORMAT,
            "blk.%" PRIu32 ".ffn_gate_up_exps.weight: beside a separate gate or up, or an odd number of rows",
            number);
    const struct shard_slice *in = fused ? &slice[SHARD_GATE_UP] : &slice[SHARD_UP];
    enum ps_status status =
        expect(number, SHARD_DOWN, "columns", slice[SHARD_DOWN].cols, fused ? in->rows / 2 : in->rows, err);
    if (status == PS_OK)
        status = expect(number, SHARD_DOWN, "rows", slice[SHARD_DOWN].rows, in->cols, err);
    if (status == PS_OK && slice[SHARD_GATE].present)
        status = expect(number, SHARD_GATE, "columns", slice[SHARD_GATE].cols, in->cols, err);
    if (status == PS_OK && slice[SHARD_GATE].present)
        status = expect(number, SHARD_GATE, "rows", slice[SHARD_GATE].rows, in->rows, err);
    return status;
}

/* Biases and scales belong to a matrix; a bias has a value per row of it. */
static enum ps_status check_vectors(const struct shard_layer *shape, uint32_t number, struct ps_error *err)
{
    for (uint32_t part = N_WEIGHTS; part < SHARD_N_PARTS; part++) {
        const struct shard_slice *matrix = &shape->slice[part % N_MATRICES];
        if (!shape->slice[part].present)
            continue;
        if (!matrix->present)
            return missing(number, part % N_MATRICES, err);
        if (part < SHARD_GATE_SCALE) {
            enum ps_status status =
                expect(number, part, "values", shape->slice[part].cols, matrix->rows, err);
            if (status != PS_OK)
                return status;
        }
    }
    return PS_OK;
}

static struct file_extent part_extent(const struct layer *layer, uint32_t part, uint32_t expert)
{
    uint64_t bytes = layer->shape.slice[part].bytes;
    if (layer->singles) {
        const struct single_place *single = &layer->singles[expert * 3ul + part];
        return (struct file_extent){single->file, single->offset, bytes};
    }
    return (struct file_extent){layer->place[part].file, layer->place[part].offset + expert * bytes, bytes};
}

static void locate_parts(const struct layer *layer, uint32_t expert, struct shard_location *out)
{
    struct file_extent extent[SHARD_N_PARTS];
    uint32_t order[SHARD_N_PARTS]; /* parts by place in the files */
    uint32_t n = 0;
    for (uint32_t part = 0; part < SHARD_N_PARTS; part++) {
        out->part_offset[part] = UINT64_MAX;
        if (!layer->shape.slice[part].present)
            continue;
        extent[part] = part_extent(layer, part, expert);
        uint32_t i = n++;
        for (; i > 0 && file_extent_compare(&extent[part], &extent[order[i - 1]]) < 0; i--)
            order[i] = order[i - 1];
        order[i] = part;
    }
    out->packed = NULL;
    out->hash = 0;
    out->n_ranges = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct file_extent *next = &extent[order[i]];
        const struct io_range *range = file_extent_add(out->ranges, &out->n_ranges, next);
        out->part_offset[order[i]] = file_extent_place(range, next->offset);
    }
}

static void locate_extent(const struct shard_map *map, const struct layer *layer, uint32_t expert,
                          struct shard_location *out)
{
    struct packed_extent extent = packed_shard_extent(map->packed, layer->shape.first_shard + expert);
    const struct packed_layout *packed = layer->packed;
    memcpy(out->part_offset, packed->part_offset, sizeof(out->part_offset));
    out->packed = packed;
    out->hash = extent.hash;
    out->n_ranges = 1;
    out->ranges[0] = (struct io_range){.file = extent.file,
                                       .offset = extent.offset,
                                       .length = extent.bytes,
                                       .at = packed->compressed ? packed->slot_bytes - extent.bytes : 0};
}

/* What a shard of a GGUF needs. */
static void measure_layer(struct layer *layer)
{
    struct shard_layer *shape = &layer->shape;
    shape->read_bytes = shape->bytes;
    for (uint32_t expert = 0; expert < shape->n_experts; expert++) {
        struct shard_location location;
        locate_parts(layer, expert, &location);
        uint64_t bytes = file_extent_buffer_bytes(location.ranges, location.n_ranges);
        if (bytes > shape->slot_bytes)
            shape->slot_bytes = bytes;
    }
}

/* Whether the container's codecs can be had for the layer's parts, and its parts fit in 64 bits many times over: sizes of
 * compressed ones are not bounded by that of any file. */
static enum ps_status check_codecs(const struct shard_layer *shape, const uint8_t *codecs, uint32_t number,
                                   struct ps_error *err)
{
    uint64_t bytes = 0;
    for (uint32_t part = 0; part < SHARD_N_PARTS; part++) {
        const struct shard_slice *slice = &shape->slice[part];
        char name[64];
        if (!slice->present)
            continue;
        bytes += slice->bytes < MAX_PACKED_EXPERT ? slice->bytes : MAX_PACKED_EXPERT;
        if (codecs[part] != CHUNK_RAW &&
            !chunk_codec_takes((enum chunk_codec)codecs[part], gguf_type_find(slice->type)->bytes))
            return ps_error_set(err, PS_ERR_FORMAT, "%s: cannot be packed with codec %s: damaged",
                                part_name(name, number, part), chunk_codec_name(codecs[part]));
    }
    if (bytes >= MAX_PACKED_EXPERT)
        return ps_error_set(err, PS_ERR_FORMAT, "blk.%" PRIu32 ": experts of more than 1 TiB: damaged",
                            number);
    return PS_OK;
}

/* What a shard of a container needs; each of its extents must be one that a slot can take. */
static enum ps_status pack_layer(struct shard_map *map, uint32_t number, struct ps_error *err)
{
    struct layer *layer = &map->layers[number];
    struct shard_layer *shape = &layer->shape;
    if (shape->n_experts > packed_n_shards(map->packed) - map->n_shards)
        return ps_error_set(err, PS_ERR_FORMAT,
                            "blk.%" PRIu32 ": %" PRIu32 " experts, but the container has only %" PRIu32
                            " extents in all: damaged",
                            number, shape->n_experts, packed_n_shards(map->packed));
    const uint8_t *codecs = packed_layer_codecs(map->packed, number);
    enum ps_status status = check_codecs(shape, codecs, number, err);
    if (status != PS_OK)
        return status;
    layer->packed = malloc(sizeof(*layer->packed));
    if (!layer->packed)
        return ps_error_set(err, PS_ERR_NOMEM, "no memory for the map of experts");
    packed_layout_init(layer->packed, shape->slice, codecs);
    shape->slot_bytes = layer->packed->slot_bytes;
    uint64_t least =
        layer->packed->compressed ? layer->packed->n_chunks * MIN_CHUNK_BYTES : shape->slot_bytes;
    uint64_t total = 0;
    for (uint32_t expert = 0; expert < shape->n_experts; expert++) {
        struct packed_extent extent = packed_shard_extent(map->packed, shape->first_shard + expert);
        if (extent.bytes < least || extent.bytes > shape->slot_bytes)
            return ps_error_set(err, PS_ERR_FORMAT,
                                "layer %" PRIu32 ", expert %" PRIu32 ": an extent of %" PRIu64
                                " bytes, it must have %" PRIu64 " to %" PRIu64 ": damaged",
                                number, expert, extent.bytes, least, shape->slot_bytes);
        total += extent.bytes;
    }
    shape->read_bytes = total / shape->n_experts;
    return PS_OK;
}

/* Checks a layer and computes what its shards need. */
static enum ps_status finish_layer(struct shard_map *map, const struct gguf *gguf, uint32_t number,
                                   struct ps_error *err)
{
    struct layer *layer = &map->layers[number];
    struct shard_layer *shape = &layer->shape;
    enum ps_status status = PS_OK;
    shape->first_shard = map->n_shards;
    if (layer->singles) {
        shape->n_experts = layer->n_singles;
        status = check_singles(layer, number, err);
    }
    for (uint32_t part = 0; status == PS_OK && part < SHARD_N_PARTS; part++) {
        if (layer->place[part].tensor != NO_TENSOR)
            status = slice_stacked(layer, gguf_tensor_at(gguf, layer->place[part].tensor), part, err);
    }
    if (status != PS_OK || shape->n_experts == 0)
        return status;
    status = check_matrices(shape, number, err);
    if (status == PS_OK)
        status = check_vectors(shape, number, err);
    if (status != PS_OK)
        return status;
    for (uint32_t part = 0; part < SHARD_N_PARTS; part++)
        shape->bytes += shape->slice[part].bytes;
    if (map->packed)
        status = pack_layer(map, number, err);
    else
        measure_layer(layer);
    map->n_shards += shape->n_experts; /* at most MAX_LAYERS * MAX_EXPERTS */
    return status;
}

/* The container's index and the tensors' names must say the same. */
static enum ps_status check_packed(const struct shard_map *map, const struct gguf *gguf, struct ps_error *err)
{
    if (packed_n_shards(map->packed) != map->n_shards)
        return ps_error_set(err, PS_ERR_FORMAT, "packed with %" PRIu32 " experts, has %" PRIu32 ": damaged",
                            packed_n_shards(map->packed), map->n_shards);
    for (uint32_t i = 0; i < gguf_n_tensors(gguf); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, i);
        if (shard_map_owns_tensor(map, i) != (tensor->file == GGUF_NO_FILE))
            return ps_error_set(err, PS_ERR_FORMAT, "%.80s: packed as %s: damaged", tensor->name,
                                tensor->file == GGUF_NO_FILE ? "part of the experts" : "part of the trunk");
    }
    return PS_OK;
}

static enum ps_status fill_map(struct shard_map *map, const struct gguf *gguf, struct ps_error *err)
{
    enum ps_status status = PS_OK;
    uint32_t n_tensors = gguf_n_tensors(gguf);
    if (map->packed && packed_n_layers(map->packed) != map->n_layers)
        return ps_error_set(err, PS_ERR_FORMAT, "packed with %" PRIu32 " layers, has %" PRIu32 ": damaged",
                            packed_n_layers(map->packed), map->n_layers);
    for (uint32_t i = 0; i < map->n_layers; i++) {
        for (uint32_t part = 0; part < SHARD_N_PARTS; part++)
            map->layers[i].place[part].tensor = NO_TENSOR;
    }
    for (uint32_t i = 0; status == PS_OK && i < n_tensors; i++)
        status = note_tensor(map, gguf, i, err);
    for (uint32_t i = 0; status == PS_OK && i < n_tensors; i++)
        status = place_single(map, gguf, i, err);
    for (uint32_t i = 0; status == PS_OK && i < map->n_layers; i++)
        status = finish_layer(map, gguf, i, err);
    return status == PS_OK && map->packed ? check_packed(map, gguf, err) : status;
}

enum ps_status shard_map_new(struct shard_map **out, const struct gguf *gguf, uint32_t n_layers,
                             struct ps_error *err)
{
    *out = NULL;
    if (n_layers > MAX_LAYERS)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: %" PRIu32 " layers, at most %d can be",
                            gguf_file_path(gguf, 0), n_layers, MAX_LAYERS);
    struct shard_map *map = calloc(1, sizeof(*map));
    if (!map)
        return ps_error_set(err, PS_ERR_NOMEM, "no memory for the map of experts");
    map->n_layers = n_layers;
    map->packed = gguf_packed(gguf);
    map->layers = calloc(n_layers + 1ul, sizeof(*map->layers));
    map->owned = calloc(gguf_n_tensors(gguf) / 8 + 1ul, 1);
    enum ps_status status = PS_OK;
    if (!map->layers || !map->owned)
        status = ps_error_set(err, PS_ERR_NOMEM, "no memory for the map of experts of %" PRIu32 " layers",
                              n_layers);
    else
        status = fill_map(map, gguf, err);
    if (status != PS_OK) {
        shard_map_free(map);
        return status;
    }
    *out = map;
    return PS_OK;
}

void shard_map_free(struct shard_map *map)
{
    if (!map)
        return;
    for (uint32_t i = 0; map->layers && i < map->n_layers; i++) {
        free(map->layers[i].singles);
        free(map->layers[i].packed);
    }
    free(map->layers);
    free(map->owned);
    free(map);
}

uint32_t shard_map_n_layers(const struct shard_map *map)
{
    return map->n_layers;
}

uint32_t shard_map_n_shards(const struct shard_map *map)
{
    return map->n_shards;
}

const struct shard_layer *shard_map_layer(const struct shard_map *map, uint32_t layer)
{
    return &map->layers[layer].shape;
}

/* Layers without experts share the first shard of the next layer that has some, so the last layer that starts
 * at or before the shard holds it. */
uint32_t shard_map_shard_layer(const struct shard_map *map, uint32_t shard)
{
    uint32_t low = 0, high = map->n_layers;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (map->layers[middle].shape.first_shard <= shard)
            low = middle;
        else
            high = middle;
    }
    return low;
}

void shard_map_locate(const struct shard_map *map, uint32_t layer, uint32_t expert,
                      struct shard_location *out)
{
    if (map->packed)
        locate_extent(map, &map->layers[layer], expert, out);
    else
        locate_parts(&map->layers[layer], expert, out);
}

uint64_t shard_map_part_offset(const struct shard_map *map, uint32_t layer, uint32_t expert, uint32_t part)
{
    return part_extent(&map->layers[layer], part, expert).offset;
}

bool shard_map_owns_tensor(const struct shard_map *map, uint32_t tensor_index)
{
    return (map->owned[tensor_index / 8] >> tensor_index % 8) & 1;
}
