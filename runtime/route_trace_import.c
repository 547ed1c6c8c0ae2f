/* Reads the routing traces that other engines write: BigMoeOnEdge's CSV and WARP's JSON lines. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "runtime/route_trace_internal.h"

/* ---- CSV: one row per (token, layer, rank), in any order ---- */

enum csv_column {
    CSV_TURN,
    CSV_PHASE,
    CSV_STEP,
    CSV_LAYER,
    CSV_SLOT,
    CSV_EXPERT,
    CSV_WEIGHT,
    CSV_BYTES,
    CSV_N
};

static const struct {
    const char *name;
    uint64_t max;
    bool required;
} csv_columns[CSV_N] = {
    [CSV_TURN] = {"turn", UINT32_MAX, false},
    [CSV_PHASE] = {"phase", 1, false},
    [CSV_STEP] = {"step", UINT32_MAX, true},
    [CSV_LAYER] = {"layer", ROUTE_MAX_LAYERS - 1, true},
    [CSV_SLOT] = {"slot", ROUTE_MAX_EXPERTS, false},
    [CSV_EXPERT] = {"expert", ROUTE_MAX_EXPERTS - 1, true},
    [CSV_WEIGHT] = {"weight", 0, false}, /* not a whole number */
    [CSV_BYTES] = {"expert_bytes", INT64_MAX, false},
};

enum { CSV_MAX_FIELDS = 64, CSV_NO_FIELD = CSV_MAX_FIELDS };

struct csv_row {
    uint32_t turn, step, layer, slot, expert;
    float weight;
    bool decode;
    uint64_t line;
};

struct csv_reader {
    struct route_reader *r;
    uint32_t n_fields;
    uint32_t field[CSV_N]; /* where a column stands; CSV_NO_FIELD: absent */
    uint64_t n_experts;    /* per layer; 0: not known */
    struct csv_row *rows;
    uint64_t n_rows, capacity;
};

static enum ps_status read_csv_comment(struct csv_reader *csv)
{
    struct route_reader *r = csv->r;
    const char *model = route_find_key(r->line, "model"); /* a path */
    size_t n = model ? strcspn(model, " ") : 0;
    const char *slash = model ? memrchr(model, '/', n) : NULL;
    if (slash) {
        n -= (size_t)(slash + 1 - model);
        model = slash + 1;
    }
    if (model)
        route_set_model(r, model, n);
    if (!route_find_number(r->line, "n_expert", ROUTE_MAX_EXPERTS, &csv->n_experts))
        return route_fail(r, "n_expert is not a number up to %d", ROUTE_MAX_EXPERTS);
    uint64_t layer = UINT64_MAX, bytes = 0;
    if (!route_find_number(r->line, "layer", ROUTE_MAX_LAYERS - 1, &layer))
        return route_fail(r, "layer is not a number below %d", ROUTE_MAX_LAYERS);
    if (!route_find_number(r->line, "expert_bytes", INT64_MAX, &bytes))
        return route_fail(r, "expert_bytes is not a number of bytes");
    if (layer == UINT64_MAX)
        return PS_OK;
    enum ps_status status = route_add_layer(r, (uint32_t)layer);
    if (status == PS_OK)
        r->trace->expert_bytes[layer] = bytes;
    return status;
}

static enum ps_status read_csv_names(struct csv_reader *csv)
{
    struct route_reader *r = csv->r;
    for (uint32_t c = 0; c < CSV_N; c++)
        csv->field[c] = CSV_NO_FIELD;
    const char *at = r->line;
    for (; csv->n_fields < CSV_MAX_FIELDS; csv->n_fields++) {
        size_t n = strcspn(at, ",");
        for (uint32_t c = 0; c < CSV_N; c++) {
            if (strlen(csv_columns[c].name) == n && strncmp(at, csv_columns[c].name, n) == 0)
                csv->field[c] = csv->n_fields;
        }
        if (at[n] == 0)
            break;
        at += n + 1;
    }
    if (csv->n_fields++ == CSV_MAX_FIELDS)
        return route_fail(r, "has more than %d columns", CSV_MAX_FIELDS);
    for (uint32_t c = 0; c < CSV_N; c++) {
        if (csv_columns[c].required && csv->field[c] == CSV_NO_FIELD)
            return route_fail(r, "the column names lack \"%s\"", csv_columns[c].name);
    }
    r->trace->ranked = csv->field[CSV_SLOT] != CSV_NO_FIELD;
    return PS_OK;
}

/* One value into value[] or *weight; *text moves to the comma or the end of the line. */
static enum ps_status read_csv_field(struct csv_reader *csv, uint32_t field, const char **text,
                                     uint64_t value[CSV_N], float *weight)
{
    const char *at = *text;
    *text += strcspn(at, ",");
    for (uint32_t c = 0; c < CSV_N; c++) {
        if (csv->field[c] != field)
            continue;
        const char *end = at;
        bool ok = c == CSV_WEIGHT ? route_parse_float(&end, weight)
                                  : route_parse_u64(&end, csv_columns[c].max, &value[c]);
        if (!ok || end != *text)
            return route_fail(csv->r, "%s \"%.*s\" is not a number, or out of range", csv_columns[c].name,
                              (int)(*text - at < 40 ? *text - at : 40), at);
    }
    return PS_OK;
}

static enum ps_status add_csv_row(struct csv_reader *csv, const uint64_t value[CSV_N], float weight)
{
    struct route_reader *r = csv->r;
    uint32_t layer = (uint32_t)value[CSV_LAYER];
    enum ps_status status = route_add_layer(r, layer);
    if (status != PS_OK)
        return status;
    if (!route_reserve(&csv->rows, &csv->capacity, csv->n_rows, 1, sizeof(*csv->rows)))
        return route_no_memory(r);
    /* Rows have 0 where nothing had to be read. */
    if (value[CSV_BYTES] > r->trace->expert_bytes[layer])
        r->trace->expert_bytes[layer] = value[CSV_BYTES];
    csv->rows[csv->n_rows++] = (struct csv_row){.turn = (uint32_t)value[CSV_TURN],
                                                .step = (uint32_t)value[CSV_STEP],
                                                .layer = layer,
                                                .slot = (uint32_t)value[CSV_SLOT],
                                                .expert = (uint32_t)value[CSV_EXPERT],
                                                .weight = weight,
                                                .decode = value[CSV_PHASE] == 1,
                                                .line = r->line_number};
    return PS_OK;
}

static enum ps_status read_csv_row(struct csv_reader *csv)
{
    uint64_t value[CSV_N] = {[CSV_PHASE] = 1};
    float weight = NAN;
    const char *at = csv->r->line;
    for (uint32_t field = 0; field < csv->n_fields; field++) {
        enum ps_status status = read_csv_field(csv, field, &at, value, &weight);
        if (status != PS_OK)
            return status;
        bool last = field + 1 == csv->n_fields;
        if (*at != (last ? 0 : ','))
            return route_fail(csv->r, "has %s than the %u columns that were named", last ? "more" : "fewer",
                              csv->n_fields);
        at++;
    }
    return add_csv_row(csv, value, weight);
}

static int by_token_layer_rank(const void *a, const void *b)
{
    const struct csv_row *x = a;
    const struct csv_row *y = b;
    const uint64_t pairs[][2] = {
        {x->turn, y->turn}, {x->step, y->step}, {x->layer, y->layer}, {x->slot, y->slot}, {x->line, y->line}};
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        if (pairs[i][0] != pairs[i][1])
            return pairs[i][0] < pairs[i][1] ? -1 : 1;
    }
    return 0;
}

/* Rows in order, token by token: prefill is written layer by layer. */
static enum ps_status build_csv_trace(struct csv_reader *csv)
{
    struct route_reader *r = csv->r;
    for (uint32_t l = 0; csv->n_experts > 0 && l < r->trace->n_layers; l++)
        r->trace->n_experts[l] = (uint32_t)csv->n_experts;
    r->trace->n_experts_known = csv->n_experts > 0;
    if (csv->n_rows > 0)
        qsort(csv->rows, csv->n_rows, sizeof(*csv->rows), by_token_layer_rank);
    uint64_t last_line = r->line_number;
    enum ps_status status = PS_OK;
    for (uint64_t i = 0; i < csv->n_rows && status == PS_OK; i++) {
        const struct csv_row *row = &csv->rows[i];
        const struct csv_row *before = i > 0 ? row - 1 : NULL;
        bool token = !before || before->turn != row->turn || before->step != row->step;
        r->line_number = row->line;
        if (token)
            status = route_add_token(
                r, (struct route_token){.position = row->step, .id = -1, .decode = row->decode});
        if (status == PS_OK && (token || before->layer != row->layer))
            status = route_add_visit(r, row->layer);
        if (status == PS_OK)
            status = route_add_expert(r, row->expert, row->weight);
    }
    if (status == PS_OK)
        r->line_number = last_line;
    return status;
}

/* Where no line says how many there are, all layers are taken to have as many as the one that shows most. */
static void even_out_experts(struct route_trace *t)
{
    uint32_t most = 0;
    for (uint32_t l = 0; l < t->n_layers; l++)
        most = t->n_experts[l] > most ? t->n_experts[l] : most;
    for (uint32_t l = 0; l < t->n_layers; l++)
        t->n_experts[l] = most;
}

enum ps_status route_read_csv(struct route_reader *r)
{
    struct csv_reader csv = {.r = r};
    enum ps_status status = read_csv_comment(&csv);
    for (bool more = true; status == PS_OK;) {
        status = route_next_line(r, &more);
        if (status != PS_OK || !more)
            break;
        if (r->line[0] == '#')
            status = read_csv_comment(&csv);
        else if (csv.n_fields == 0)
            status = read_csv_names(&csv);
        else
            status = read_csv_row(&csv);
    }
    if (status == PS_OK)
        status = build_csv_trace(&csv);
    free(csv.rows);
    if (status != PS_OK)
        return status;
    route_drop_empty_layers(r->trace);
    even_out_experts(r->trace);
    return PS_OK;
}

/* ---- JSON lines: one object per token ---- */

static enum ps_status read_json_layer(struct route_reader *r, uint32_t layer, const json_t *experts)
{
    size_t i;
    json_t *value;
    if (!json_is_array(experts))
        return route_fail(r, "layer %u is not an array of experts", layer);
    if (json_array_size(experts) == 0)
        return PS_OK; /* a layer without experts */
    enum ps_status status = route_add_visit(r, layer);
    json_array_foreach(experts, i, value)
    {
        json_int_t expert = json_is_integer(value) ? json_integer_value(value) : -1;
        if (status == PS_OK && (expert < 0 || expert >= ROUTE_MAX_EXPERTS))
            status = route_fail(r, "layer %u: experts are whole numbers from 0 to %d", layer,
                                ROUTE_MAX_EXPERTS - 1);
        if (status == PS_OK)
            status = route_add_expert(r, (uint32_t)expert, NAN);
    }
    return status;
}

static enum ps_status read_json_token(struct route_reader *r, const json_t *object)
{
    struct route_trace *t = r->trace;
    const json_t *layers = json_object_get(object, "layers");
    size_t n = json_array_size(layers); /* 0: not an array */
    if (n == 0 || n > ROUTE_MAX_LAYERS)
        return route_fail(r, "\"layers\" is not an array of 1 to %d layers", ROUTE_MAX_LAYERS);
    if (t->n_tokens > 0 && n != t->n_layers)
        return route_fail(r, "has %zu layers, the lines before have %u", n, t->n_layers);
    const json_t *tok = json_object_get(object, "tok");
    json_int_t position = tok ? json_integer_value(tok) : (json_int_t)t->n_tokens;
    if ((tok && !json_is_integer(tok)) || position < 0 || position > UINT32_MAX)
        return route_fail(r, "\"tok\" is not a position");
    enum ps_status status = route_add_layer(r, (uint32_t)n - 1);
    if (status == PS_OK)
        status = route_add_token(
            r, (struct route_token){.position = (uint32_t)position, .id = -1, .decode = true});
    uint64_t n_visits = t->n_visits;
    for (uint32_t l = 0; l < n && status == PS_OK; l++)
        status = read_json_layer(r, l, json_array_get(layers, l));
    if (status == PS_OK && t->n_visits == n_visits)
        status = route_fail(r, "no layer has experts");
    return status;
}

enum ps_status route_read_json_lines(struct route_reader *r)
{
    enum ps_status status = PS_OK;
    for (bool more = true; status == PS_OK && more;) {
        if (r->line[strspn(r->line, " \t")] != 0) {
            json_error_t error;
            json_t *object = json_loadb(r->line, r->length, 0, &error);
            status = object ? read_json_token(r, object) : route_fail(r, "not JSON: %s", error.text);
            json_decref(object);
        }
        if (status == PS_OK)
            status = route_next_line(r, &more);
    }
    if (status != PS_OK)
        return status;
    route_drop_empty_layers(r->trace);
    even_out_experts(r->trace);
    return PS_OK;
}
