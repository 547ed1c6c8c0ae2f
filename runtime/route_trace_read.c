/* Reads routing traces (formats: route_trace.h): what all formats share, and our own. */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/route_trace_internal.h"

static const char own_first_line[] = "# penstock routing trace v1";

/* ---- lines ---- */

enum ps_status route_fail(struct route_reader *r, const char *format, ...)
{
    char text[PS_ERROR_MESSAGE_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return ps_error_set(r->err, PS_ERR_FORMAT, "%s: line %llu: %s", r->path,
                        (unsigned long long)r->line_number, text);
}

enum ps_status route_no_memory(struct route_reader *r)
{
    return ps_error_set(r->err, PS_ERR_NOMEM, "%s: line %llu: out of memory", r->path,
                        (unsigned long long)r->line_number);
}

bool route_reserve(void *array, uint64_t *capacity, uint64_t used, uint64_t n, size_t element)
{
    if (n <= *capacity - used)
        return true;
    uint64_t wanted = *capacity > 0 ? *capacity : 64;
    while (wanted - used < n)
        wanted *= 2; /* what is counted was read from a file: far from 2^63 */
    size_t bytes;
    if (__builtin_mul_overflow(wanted, element, &bytes))
        return false;
    void *grown;
    memcpy(&grown, array, sizeof(grown)); /* a pointer of any type */
    grown = realloc(grown, bytes);
    if (!grown)
        return false;
    memcpy(array, &grown, sizeof(grown));
    *capacity = wanted;
    return true;
}

enum ps_status route_next_line(struct route_reader *r, bool *more)
{
    r->length = 0;
    r->ended = false;
    r->line_number++;
    errno = 0;
    for (int c; (c = getc_unlocked(r->file)) != EOF;) {
        if (c == '\n') {
            r->ended = true;
            break;
        }
        if (c == 0)
            return route_fail(r, "byte %zu is 0: not a text file", r->length);
        if (r->length == ROUTE_MAX_LINE)
            return route_fail(r, "is longer than %d bytes: not a routing trace", ROUTE_MAX_LINE);
        if (!route_reserve(&r->line, &r->line_capacity, r->length, 2, 1))
            return route_no_memory(r);
        r->line[r->length++] = (char)c;
    }
    if (ferror(r->file))
        return ps_error_set(r->err, PS_ERR_IO, "%s: line %llu: cannot read: %s", r->path,
                            (unsigned long long)r->line_number, strerror(errno));
    *more = r->ended || r->length > 0;
    if (r->length > 0 && r->line[r->length - 1] == '\r')
        r->length--;
    if (!route_reserve(&r->line, &r->line_capacity, r->length, 1, 1))
        return route_no_memory(r);
    r->line[r->length] = 0;
    return PS_OK;
}

/* ---- words ---- */

bool route_parse_u64(const char **text, uint64_t max, uint64_t *out)
{
    if (**text < '0' || **text > '9')
        return false;
    char *end;
    errno = 0;
    unsigned long long value = strtoull(*text, &end, 10);
    if (errno || value > max)
        return false;
    *text = end;
    *out = value;
    return true;
}

bool route_parse_float(const char **text, float *out)
{
    if (**text == ' ')
        return false;
    char *end;
    float value = strtof(*text, &end);
    if (end == *text || !isfinite(value))
        return false;
    *text = end;
    *out = value;
    return true;
}

const char *route_find_key(const char *line, const char *key)
{
    size_t length = strlen(key);
    for (const char *at = line; (at = strstr(at, key)) != NULL; at += length) {
        if ((at == line || at[-1] == ' ') && at[length] == '=')
            return at + length + 1;
    }
    return NULL;
}

bool route_find_number(const char *line, const char *key, uint64_t max, uint64_t *out)
{
    const char *value = route_find_key(line, key);
    return !value || (route_parse_u64(&value, max, out) && (*value == ' ' || *value == 0));
}

void route_set_model(struct route_reader *r, const char *name, size_t n)
{
    snprintf(r->trace->model, sizeof(r->trace->model), "%.*s", n < 1024 ? (int)n : 1024, name);
}

/* ---- the trace ---- */

enum ps_status route_add_layer(struct route_reader *r, uint32_t layer)
{
    struct route_trace *t = r->trace;
    if (layer < t->n_layers)
        return PS_OK;
    uint64_t n = layer + 1 - t->n_layers;
    uint64_t capacity = r->layers_capacity;
    uint64_t pool_capacity = capacity;
    if (!route_reserve(&t->n_experts, &capacity, t->n_layers, n, sizeof(*t->n_experts)) ||
        !route_reserve(&t->pool, &pool_capacity, t->n_layers, n, sizeof(*t->pool)) ||
        !route_reserve(&t->expert_bytes, &r->layers_capacity, t->n_layers, n, sizeof(*t->expert_bytes)))
        return route_no_memory(r);
    for (; t->n_layers <= layer; t->n_layers++) {
        t->n_experts[t->n_layers] = 0;
        t->expert_bytes[t->n_layers] = 0;
        t->pool[t->n_layers] = 0;
    }
    return PS_OK;
}

enum ps_status route_add_token(struct route_reader *r, struct route_token token)
{
    struct route_trace *t = r->trace;
    if (!route_reserve(&t->tokens, &r->tokens_capacity, t->n_tokens, 1, sizeof(*t->tokens)))
        return route_no_memory(r);
    t->tokens[t->n_tokens++] = token;
    return PS_OK;
}

enum ps_status route_add_visit(struct route_reader *r, uint32_t layer)
{
    struct route_trace *t = r->trace;
    if (!route_reserve(&t->visits, &r->visits_capacity, t->n_visits, 1, sizeof(*t->visits)))
        return route_no_memory(r);
    t->visits[t->n_visits++] =
        (struct replay_visit){.token = t->n_tokens - 1, .layer = layer, .first = t->n_ids};
    r->n_lists++;
    return PS_OK;
}

enum ps_status route_check_expert(struct route_reader *r, uint32_t layer, uint64_t expert)
{
    uint32_t *n_experts = &r->trace->n_experts[layer];
    if (r->trace->n_experts_known && expert >= *n_experts)
        return route_fail(r, "layer %u has experts 0 to %u, not %llu", layer, *n_experts - 1,
                          (unsigned long long)expert);
    if (expert >= ROUTE_MAX_EXPERTS)
        return route_fail(r, "layer %u: expert %llu is beyond the %d that a layer may have", layer,
                          (unsigned long long)expert, ROUTE_MAX_EXPERTS);
    if (r->chosen_by[expert] == r->n_lists)
        return route_fail(r, "layer %u: expert %llu is named twice", layer, (unsigned long long)expert);
    r->chosen_by[expert] = r->n_lists;
    if (expert >= *n_experts)
        *n_experts = (uint32_t)expert + 1;
    return PS_OK;
}

enum ps_status route_add_expert(struct route_reader *r, uint32_t expert, float weight)
{
    struct route_trace *t = r->trace;
    struct replay_visit *visit = &t->visits[t->n_visits - 1];
    uint64_t capacity = r->ids_capacity;
    enum ps_status status = route_check_expert(r, visit->layer, expert);
    if (status != PS_OK)
        return status;
    if (!route_reserve(&t->ids, &capacity, t->n_ids, 1, sizeof(*t->ids)) ||
        !route_reserve(&t->weights, &r->ids_capacity, t->n_ids, 1, sizeof(*t->weights)))
        return route_no_memory(r);
    t->ids[t->n_ids] = expert;
    t->weights[t->n_ids++] = weight;
    if (++visit->n > t->top_k)
        t->top_k = visit->n;
    return PS_OK;
}

void route_drop_empty_layers(struct route_trace *t)
{
    uint32_t place[ROUTE_MAX_LAYERS];
    bool visited[ROUTE_MAX_LAYERS] = {false};
    for (uint64_t v = 0; v < t->n_visits; v++)
        visited[t->visits[v].layer] = true;
    uint32_t n = 0;
    for (uint32_t l = 0; l < t->n_layers; l++) {
        place[l] = n;
        if (!visited[l] && t->expert_bytes[l] == 0)
            continue;
        t->n_experts[n] = t->n_experts[l];
        t->pool[n] = t->pool[l];
        t->expert_bytes[n++] = t->expert_bytes[l];
    }
    t->n_layers = n;
    for (uint64_t v = 0; v < t->n_visits; v++)
        t->visits[v].layer = place[t->visits[v].layer];
}

/* ---- our own format ---- */

struct own_reader {
    struct route_reader *r;
    uint64_t token_line; /* of the last token; 0: there is none yet */
    int64_t layer;       /* of its last experts; -1: none */
};

static enum ps_status read_own_header(struct route_reader *r)
{
    uint64_t layer = UINT64_MAX, experts = 0, bytes = 0, pool = 0;
    const char *name = route_find_key(r->line, "model");
    if (name && strncmp(r->line, "# model=", 8) == 0)
        route_set_model(r, name, strlen(name));
    if (strncmp(r->line, "# layer=", 8) != 0)
        return PS_OK;
    if (r->trace->n_tokens > 0)
        return route_fail(r, "a layer is declared after the first token");
    if (!route_find_number(r->line, "layer", ROUTE_MAX_LAYERS - 1, &layer) || layer != r->trace->n_layers)
        return route_fail(r, "layers are declared from 0 up, at most %d: expected layer=%u", ROUTE_MAX_LAYERS,
                          r->trace->n_layers);
    if (!route_find_number(r->line, "experts", ROUTE_MAX_EXPERTS, &experts) || experts == 0)
        return route_fail(r, "layer %llu: experts=N, 1 to %d, is missing", (unsigned long long)layer,
                          ROUTE_MAX_EXPERTS);
    if (!route_find_number(r->line, "expert_bytes", INT64_MAX, &bytes))
        return route_fail(r, "layer %llu: expert_bytes is not a number of bytes", (unsigned long long)layer);
    if (!route_find_number(r->line, "pool", ROUTE_MAX_LAYERS - 1, &pool))
        return route_fail(r, "layer %llu: pool is not a number below %d", (unsigned long long)layer,
                          ROUTE_MAX_LAYERS);
    enum ps_status status = route_add_layer(r, (uint32_t)layer);
    if (status != PS_OK)
        return status;
    r->trace->n_experts[layer] = (uint32_t)experts;
    r->trace->pool[layer] = (uint32_t)pool;
    r->trace->expert_bytes[layer] = bytes;
    return PS_OK;
}

static enum ps_status end_own_token(struct own_reader *own)
{
    if (own->token_line == 0 || own->layer >= 0)
        return PS_OK;
    own->r->line_number = own->token_line;
    return route_fail(own->r, "no experts follow this token");
}

static enum ps_status read_own_token(struct own_reader *own, const char *at)
{
    struct route_reader *r = own->r;
    enum ps_status status = end_own_token(own);
    if (status != PS_OK)
        return status;
    if (r->trace->n_layers == 0)
        return route_fail(r, "no layer was declared before the first token");
    uint64_t position, id = UINT64_MAX;
    if (!route_parse_u64(&at, UINT32_MAX, &position) || *at++ != ' ')
        return route_fail(r, "token: a position and a space are expected");
    if (*at == '-')
        at++;
    else if (!route_parse_u64(&at, INT32_MAX, &id))
        return route_fail(r, "token: an id, or -, is expected after the position");
    bool decode = strcmp(at, " decode") == 0;
    if (!decode && strcmp(at, " prefill") != 0)
        return route_fail(r, "token: \"prefill\" or \"decode\" is expected at the end");
    own->token_line = r->line_number;
    own->layer = -1;
    return route_add_token(r, (struct route_token){.position = (uint32_t)position,
                                                   .id = id == UINT64_MAX ? -1 : (int32_t)id,
                                                   .decode = decode});
}

/* The layer that a line is about. */
static enum ps_status read_own_layer(struct own_reader *own, const char **at, uint32_t *layer)
{
    struct route_reader *r = own->r;
    uint64_t value;
    if (own->token_line == 0)
        return route_fail(r, "stands before the first token");
    if (!route_parse_u64(at, UINT32_MAX, &value))
        return route_fail(r, "a layer is expected after the first word");
    if (value >= r->trace->n_layers)
        return route_fail(r, "layer %llu was not declared: there are %u", (unsigned long long)value,
                          r->trace->n_layers);
    *layer = (uint32_t)value;
    return PS_OK;
}

/* " E" or " E:V"; *value is NaN where there is none. */
static enum ps_status read_own_pair(struct route_reader *r, const char **at, uint64_t *expert, float *value)
{
    const char *word = *at + 1;
    *value = NAN;
    const char *end = word;
    bool ok = **at == ' ' && route_parse_u64(&end, UINT32_MAX, expert);
    if (ok && *end == ':') {
        end++;
        ok = route_parse_float(&end, value);
    }
    *at = end;
    if (ok && (*end == ' ' || *end == 0))
        return PS_OK;
    return route_fail(r, "\"%.*s\": EXPERT or EXPERT:NUMBER is expected", (int)strcspn(word, " "), word);
}

static enum ps_status read_own_experts(struct own_reader *own, const char *at)
{
    struct route_reader *r = own->r;
    uint32_t layer = 0;
    enum ps_status status = read_own_layer(own, &at, &layer);
    if (status != PS_OK)
        return status;
    if ((int64_t)layer <= own->layer)
        return route_fail(r, "layer %u comes after layer %lld of the same token", layer,
                          (long long)own->layer);
    own->layer = layer;
    status = route_add_visit(r, layer);
    do {
        uint64_t expert = 0;
        float weight = NAN;
        if (status == PS_OK)
            status = read_own_pair(r, &at, &expert, &weight);
        if (status == PS_OK)
            status = route_add_expert(r, (uint32_t)expert, weight);
    } while (status == PS_OK && *at);
    return status;
}

static enum ps_status read_own_predicted(struct route_reader *r, struct route_prediction *prediction,
                                         const char *at)
{
    struct route_trace *t = r->trace;
    enum ps_status status = PS_OK;
    while (*at) {
        uint64_t expert;
        float probability;
        status = read_own_pair(r, &at, &expert, &probability);
        if (status != PS_OK)
            return status;
        if (!(probability >= 0.0f && probability <= 1.0f))
            return route_fail(r, "expert %llu: a probability, 0 to 1, is expected",
                              (unsigned long long)expert);
        status = route_check_expert(r, prediction->layer, expert);
        if (status != PS_OK)
            return status;
        uint64_t capacity = r->predicted_capacity;
        if (!route_reserve(&t->predicted, &capacity, t->n_predicted, 1, sizeof(*t->predicted)) ||
            !route_reserve(&t->probabilities, &r->predicted_capacity, t->n_predicted, 1,
                           sizeof(*t->probabilities)))
            return route_no_memory(r);
        t->predicted[t->n_predicted] = (uint32_t)expert;
        t->probabilities[t->n_predicted++] = probability;
        prediction->n++;
    }
    return PS_OK;
}

static enum ps_status read_own_ahead(struct own_reader *own, const char *at)
{
    struct route_reader *r = own->r;
    struct route_trace *t = r->trace;
    struct route_prediction prediction = {.token = t->n_tokens - 1, .first = t->n_predicted};
    enum ps_status status = read_own_layer(own, &at, &prediction.layer);
    if (status != PS_OK)
        return status;
    uint64_t distance, tokens;
    if (*at++ != ' ' || !route_parse_u64(&at, ROUTE_MAX_LAYERS, &distance) || *at++ != ' ' ||
        !route_parse_u64(&at, UINT32_MAX, &tokens) || tokens == 0 || *at != ' ')
        return route_fail(r, "ahead: LAYER DISTANCE TOKENS and experts are expected");
    prediction.distance = (uint32_t)distance;
    prediction.n_tokens = (uint32_t)tokens;
    r->n_lists++;
    status = read_own_predicted(r, &prediction, at);
    if (status != PS_OK)
        return status;
    if (!route_reserve(&t->predictions, &r->predictions_capacity, t->n_predictions, 1,
                       sizeof(*t->predictions)))
        return route_no_memory(r);
    t->predictions[t->n_predictions++] = prediction;
    return PS_OK;
}

/* Rest of a line that begins with a word and a space; NULL: it does not. */
static const char *after_word(const char *line, const char *word)
{
    size_t n = strlen(word);
    return strncmp(line, word, n) == 0 && line[n] == ' ' ? line + n + 1 : NULL;
}

static enum ps_status read_own_line(struct own_reader *own)
{
    struct route_reader *r = own->r;
    const char *rest;
    if (!r->ended)
        return route_fail(r, "is cut short: the file does not end with a newline");
    if (r->line[0] == '#')
        return read_own_header(r);
    if ((rest = after_word(r->line, "experts")) != NULL)
        return read_own_experts(own, rest);
    if ((rest = after_word(r->line, "ahead")) != NULL)
        return read_own_ahead(own, rest);
    if ((rest = after_word(r->line, "token")) != NULL)
        return read_own_token(own, rest);
    return route_fail(r, "does not begin with token, ahead, experts or #");
}

static enum ps_status read_own(struct route_reader *r)
{
    struct own_reader own = {.r = r, .layer = -1};
    bool more = true;
    r->trace->n_experts_known = true;
    r->trace->ranked = true;
    enum ps_status status = route_next_line(r, &more);
    while (status == PS_OK && more) {
        status = read_own_line(&own);
        if (status == PS_OK)
            status = route_next_line(r, &more);
    }
    return status == PS_OK ? end_own_token(&own) : status;
}

/* ---- any format ---- */

static enum ps_status read_any(struct route_reader *r)
{
    bool more;
    enum ps_status status = route_next_line(r, &more);
    if (status != PS_OK)
        return status;
    if (!more)
        return ps_error_set(r->err, PS_ERR_FORMAT, "%s: line 1: the file is empty: not a routing trace",
                            r->path);
    if (strcmp(r->line, own_first_line) == 0)
        return read_own(r);
    if (strncmp(r->line, own_first_line, sizeof(own_first_line) - 2) == 0)
        return route_fail(r, "\"%.40s\" is of another version: this program reads v1", r->line);
    if (after_word(r->line, "# route_trace v1") || strcmp(r->line, "# route_trace v1") == 0)
        return route_read_csv(r);
    if (r->line[0] == '{')
        return route_read_json_lines(r);
    return route_fail(
        r,
        "not a routing trace: it opens with \"%.20s\", not with \"%s\", \"# route_trace v1\" or "
        "a JSON object",
        r->line, own_first_line);
}

/* No experts at all, or more than a cache policy can number. */
static enum ps_status check_totals(struct route_reader *r)
{
    const struct route_trace *t = r->trace;
    uint64_t n_experts = 0;
    for (uint32_t l = 0; l < t->n_layers; l++)
        n_experts += t->n_experts[l];
    if (t->n_tokens == 0)
        return ps_error_set(r->err, PS_ERR_FORMAT, "%s: line %llu: the file ends without a token", r->path,
                            (unsigned long long)r->line_number);
    if (n_experts >= INT32_MAX)
        return ps_error_set(r->err, PS_ERR_FORMAT, "%s: %llu experts in all are too many", r->path,
                            (unsigned long long)n_experts);
    return PS_OK;
}

enum ps_status route_trace_read(struct route_trace **out, const char *path, struct ps_error *err)
{
    *out = NULL;
    struct route_reader r = {.path = path, .err = err};
    enum ps_status status = PS_OK;
    r.file = fopen(path, "re");
    if (!r.file)
        return ps_error_set(err, PS_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    r.trace = calloc(1, sizeof(*r.trace));
    r.chosen_by = calloc(ROUTE_MAX_EXPERTS, sizeof(*r.chosen_by));
    status = r.trace && r.chosen_by ? read_any(&r) : route_no_memory(&r);
    if (status == PS_OK)
        status = check_totals(&r);
    fclose(r.file);
    free(r.line);
    free(r.chosen_by);
    if (status == PS_OK)
        *out = r.trace;
    else
        route_trace_free(r.trace);
    return status;
}

void route_trace_free(struct route_trace *trace)
{
    if (!trace)
        return;
    free(trace->n_experts);
    free(trace->expert_bytes);
    free(trace->pool);
    free(trace->tokens);
    free(trace->visits);
    free(trace->ids);
    free(trace->weights);
    free(trace->predictions);
    free(trace->predicted);
    free(trace->probabilities);
    free(trace);
}

const struct replay_visit *route_trace_visit(const struct route_trace *trace, uint64_t token, uint32_t layer)
{
    uint64_t low = 0, high = trace->n_visits;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        const struct replay_visit *visit = &trace->visits[middle];
        if (visit->token == token && visit->layer == layer)
            return visit;
        if (visit->token < token || (visit->token == token && visit->layer < layer))
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static int by_id(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

enum ps_status route_trace_replay(const struct route_trace *trace, struct replay_trace *out, uint32_t **ids,
                                  struct ps_error *err)
{
    *ids = malloc(trace->n_ids * sizeof(**ids));
    if (!*ids)
        return ps_error_set(err, PS_ERR_NOMEM, "routing trace: out of memory for %llu choices",
                            (unsigned long long)trace->n_ids);
    memcpy(*ids, trace->ids, trace->n_ids * sizeof(**ids));
    for (uint64_t v = 0; v < trace->n_visits; v++)
        qsort(*ids + trace->visits[v].first, trace->visits[v].n, sizeof(**ids), by_id);
    *out = (struct replay_trace){.n_layers = trace->n_layers,
                                 .n_experts = trace->n_experts,
                                 .n_visits = trace->n_visits,
                                 .visits = trace->visits,
                                 .ids = *ids};
    return PS_OK;
}
