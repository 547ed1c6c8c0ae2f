/* What penstock inspect says of a packed container: its files, which layers' experts are packed how, and the note that was
 * left at packing. Parts of an expert share its extent, so stored sizes are those of whole layers. */
#include "runtime/cli/inspect_packed.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/pack_note.h"
#include "runtime/size_text.h"

/* Layers whose parts have the same types and codecs. */
struct kind {
    struct ps_packed_layer sum;
    uint32_t n_layers;
};

static bool same_kind(const struct ps_packed_layer *x, const struct ps_packed_layer *y)
{
    bool same = x->n_parts == y->n_parts;
    for (uint32_t i = 0; same && i < x->n_parts; i++)
        same = strcmp(x->part[i].name, y->part[i].name) == 0 &&
               strcmp(x->part[i].type, y->part[i].type) == 0 &&
               strcmp(x->part[i].codec, y->part[i].codec) == 0;
    return same;
}

static void add_layer(struct kind *kind, const struct ps_packed_layer *layer)
{
    if (kind->n_layers++ == 0) {
        kind->sum = *layer;
        return;
    }
    kind->sum.bytes += layer->bytes;
    kind->sum.stored_bytes += layer->stored_bytes;
    for (uint32_t i = 0; i < layer->n_parts; i++)
        kind->sum.part[i].bytes += layer->part[i].bytes;
}

/* By the first layer of each; the caller frees them. NULL: out of memory. */
static struct kind *list_kinds(const struct ps_model *model, uint32_t *n)
{
    struct kind *kinds = calloc(ps_model_info(model)->n_moe_layers + (size_t)1, sizeof(*kinds));
    struct ps_packed_layer layer;
    *n = 0;
    for (uint32_t l = 0; kinds && ps_model_packed_layer(model, l, &layer); l++) {
        uint32_t k = 0;
        while (k < *n && !same_kind(&kinds[k].sum, &layer))
            k++;
        *n += k == *n;
        add_layer(&kinds[k], &layer);
    }
    return kinds;
}

static double ratio(const struct ps_packed_layer *layer)
{
    return layer->bytes > 0 ? (double)layer->stored_bytes / (double)layer->bytes : 1.0;
}

/* ---- text ---- */

static void print_kind(const struct kind *kind)
{
    char unpacked[SIZE_TEXT_SIZE], stored[SIZE_TEXT_SIZE];
    cli_printf("  %u layer%s: experts of %s in %s (%.3f)\n", kind->n_layers, kind->n_layers == 1 ? "" : "s",
               size_format(kind->sum.bytes, unpacked), size_format(kind->sum.stored_bytes, stored),
               ratio(&kind->sum));
    for (uint32_t i = 0; i < kind->sum.n_parts; i++)
        cli_printf("    %-13s %-8s %-12s %s\n", kind->sum.part[i].name, kind->sum.part[i].type,
                   kind->sum.part[i].codec, size_format(kind->sum.part[i].bytes, unpacked));
}

static json_t *load_note(const struct ps_packing *packing)
{
    return json_loadb(packing->note, packing->note_bytes, 0, NULL);
}

void inspect_packed_print(const struct ps_model *model)
{
    struct ps_packing packing;
    if (!ps_model_packing(model, &packing))
        return;
    const struct ps_model_info *info = ps_model_info(model);
    char size[SIZE_TEXT_SIZE];
    cli_printf("\npacked container, version %u: checksums XXH3 of header, index, trunk tensors and experts; "
               "the GGUF had %s\n",
               packing.version, size_format(info->unpacked_bytes, size));
    for (uint32_t i = 0; i < info->n_files; i++) {
        uint64_t bytes;
        const char *path = ps_model_file(model, i, &bytes);
        cli_printf("  %-9s %s  %s\n", i == 0 ? "main file" : "data file", path, size_format(bytes, size));
    }
    uint32_t n;
    struct kind *kinds = list_kinds(model, &n);
    for (uint32_t i = 0; kinds && i < n; i++)
        print_kind(&kinds[i]);
    free(kinds);
    json_t *note = load_note(&packing);
    if (note) {
        cli_printf("at packing: ");
        pack_note_print(note);
    } else if (packing.note_bytes > 0) {
        cli_printf("at packing: a note that cannot be read\n");
    }
    json_decref(note);
}

/* ---- JSON ---- */

static json_t *kind_json(const struct kind *kind)
{
    json_t *parts = json_array();
    for (uint32_t i = 0; i < kind->sum.n_parts; i++)
        json_array_append_new(parts, json_pack("{s:s, s:s, s:s, s:I}", "part", kind->sum.part[i].name, "type",
                                               kind->sum.part[i].type, "codec", kind->sum.part[i].codec,
                                               "bytes", (json_int_t)kind->sum.part[i].bytes));
    return json_pack("{s:i, s:I, s:I, s:f, s:o}", "layers", (int)kind->n_layers, "bytes",
                     (json_int_t)kind->sum.bytes, "stored_bytes", (json_int_t)kind->sum.stored_bytes, "ratio",
                     ratio(&kind->sum), "parts", parts);
}

json_t *inspect_packed_json(const struct ps_model *model)
{
    struct ps_packing packing;
    if (!ps_model_packing(model, &packing))
        return json_null();
    json_t *files = json_array(), *layers = json_array();
    for (uint32_t i = 0; i < ps_model_info(model)->n_files; i++) {
        uint64_t bytes;
        const char *path = ps_model_file(model, i, &bytes);
        json_t *text = json_string(path); /* NULL where it is not UTF-8 */
        json_array_append_new(
            files, json_pack("{s:o, s:I}", "path", text ? text : json_null(), "bytes", (json_int_t)bytes));
    }
    uint32_t n;
    struct kind *kinds = list_kinds(model, &n);
    for (uint32_t i = 0; kinds && i < n; i++)
        json_array_append_new(layers, kind_json(&kinds[i]));
    free(kinds);
    json_t *note = load_note(&packing);
    return json_pack("{s:i, s:s, s:I, s:o, s:o, s:o}", "version", (int)packing.version, "checksum", "xxh3-64",
                     "unpacked_bytes", (json_int_t)ps_model_info(model)->unpacked_bytes, "files", files,
                     "layers", layers, "note", note ? note : json_null());
}
