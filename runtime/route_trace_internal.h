/* Shared by the readers of routing traces: lines of a file, messages that name them, and a trace that grows. Every
 * function that can fail has filled reader->err when it returns another status than PS_OK. */
#ifndef PENSTOCK_RUNTIME_ROUTE_TRACE_INTERNAL_H
#define PENSTOCK_RUNTIME_ROUTE_TRACE_INTERNAL_H

#include <stdio.h>

#include "runtime/route_trace.h"

enum {
    ROUTE_MAX_LINE = 4 << 20, /* bytes */
    ROUTE_MAX_LAYERS = 4096,
    ROUTE_MAX_EXPERTS = 65536, /* per layer */
};

struct route_reader {
    const char *path;
    FILE *file;
    struct ps_error *err;
    char *line; /* [length], 0-terminated, without its end */
    size_t length;
    uint64_t line_capacity;
    uint64_t line_number; /* from 1 */
    bool ended;           /* the line had an end; only the last one may lack it */

    struct route_trace *trace;
    uint64_t layers_capacity, tokens_capacity, visits_capacity, ids_capacity;
    uint64_t predictions_capacity, predicted_capacity;
    uint64_t *chosen_by; /* [ROUTE_MAX_EXPERTS] last list that named an expert; lists count from 1 */
    uint64_t n_lists;
};

/* PS_ERR_FORMAT: "path: line N: ...". */
__attribute__((format(printf, 2, 3))) enum ps_status route_fail(struct route_reader *r, const char *format,
                                                                ...);
enum ps_status route_no_memory(struct route_reader *r);
/* *more: false at the end of the file. */
enum ps_status route_next_line(struct route_reader *r, bool *more);

/* A whole number up to max that ends where *text then points; false: none. */
bool route_parse_u64(const char **text, uint64_t max, uint64_t *out);
bool route_parse_float(const char **text, float *out); /* finite */
/* The value of `key=` in a line of words, up to the next space; NULL: it has none. */
const char *route_find_key(const char *line, const char *key);
/* `key=` as a whole number; out keeps what it holds where there is no such key. False: it is none, or above max. */
bool route_find_number(const char *line, const char *key, uint64_t max, uint64_t *out);
/* Keeps a model's name of n bytes. */
void route_set_model(struct route_reader *r, const char *name, size_t n);

/* Doubles *array of *capacity elements until it holds n more than used. */
bool route_reserve(void *array, uint64_t *capacity, uint64_t used, uint64_t n, size_t element);

/* Layers 0..layer exist from here on. */
enum ps_status route_add_layer(struct route_reader *r, uint32_t layer);
enum ps_status route_add_token(struct route_reader *r, struct route_token token);
/* A visit of the last token at a layer; its experts follow. */
enum ps_status route_add_visit(struct route_reader *r, uint32_t layer);
enum ps_status route_add_expert(struct route_reader *r, uint32_t expert, float weight);
/* An expert of the list under way (a visit or a prediction): checks that it exists and comes once. Where the number of
 * experts is not known, it grows. */
enum ps_status route_check_expert(struct route_reader *r, uint32_t layer, uint64_t expert);

/* Leaves out layers that no token visits and of which no size is known. */
void route_drop_empty_layers(struct route_trace *trace);

enum ps_status route_read_csv(struct route_reader *r);        /* the first line is read */
enum ps_status route_read_json_lines(struct route_reader *r); /* likewise */

#endif
