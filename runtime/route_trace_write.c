/* Writes routing traces (format: route_trace.h). A session passes a chunk layer by layer and a file has it token by
 * token, so one chunk is held until its last layer has chosen. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/route_trace.h"

struct pending_prediction {
    uint32_t n; /* 0: none */
    uint32_t n_tokens;
    uint32_t capacity;
    uint32_t *experts;
    float *probabilities;
};

struct pending_layer {
    uint32_t k;                                               /* 0: its router has not chosen */
    size_t capacity;                                          /* of the arrays */
    uint32_t *experts;                                        /* [n_tokens][k] */
    float *weights;                                           /* [n_tokens][k] */
    struct pending_prediction ahead[PS_PREDICTION_DISTANCES]; /* [distance] */
};

struct route_trace_writer {
    char *path;
    char *temporary;         /* name until finish() */
    FILE *file;              /* NULL after finish() */
    struct ps_error failure; /* status PS_OK: none */
    uint32_t n_layers;
    struct pending_layer *layers; /* [n_layers] of the chunk under way */
    const int32_t *tokens;        /* [n_tokens] being fed, the first at position */
    size_t n_tokens;
    uint32_t position;
    bool decode;
};

static void no_memory(struct route_trace_writer *w)
{
    if (w->failure.status == PS_OK)
        ps_error_set(&w->failure, PS_ERR_NOMEM, "%s: out of memory", w->path);
}

/* errno says why. */
static void write_failed(struct route_trace_writer *w)
{
    if (w->failure.status == PS_OK)
        ps_error_set(&w->failure, PS_ERR_IO, "%s: cannot write: %s", w->path, strerror(errno));
}

static enum ps_status first_failure(const struct route_trace_writer *w, struct ps_error *err)
{
    return w->failure.status == PS_OK ? PS_OK
                                      : ps_error_set(err, w->failure.status, "%s", w->failure.message);
}

/* ---- the file ---- */

/* What comes from a model's metadata stays on its line. */
static void put_name(FILE *file, const char *key, const char *name)
{
    fprintf(file, "%s=", key);
    for (const char *at = name; *at; at++)
        fputc((unsigned char)*at < ' ' || *at == 0x7f ? '?' : *at, file);
}

static void put_header(struct route_trace_writer *w, const struct route_trace_header *header)
{
    fputs("# penstock routing trace v1\n# ", w->file);
    put_name(w->file, "model", header->model);
    fputs("\n# ", w->file);
    put_name(w->file, "arch", header->arch);
    fprintf(w->file, " top_k=%u\n", header->top_k);
    for (uint32_t l = 0; l < header->n_layers; l++) {
        fprintf(w->file, "# layer=%u experts=%u expert_bytes=%llu pool=%u\n", l, header->layers[l].n_experts,
                (unsigned long long)header->layers[l].bytes, header->layers[l].pool);
    }
}

static enum ps_status open_file(struct route_trace_writer *w, struct ps_error *err)
{
    struct stat there;
    if (stat(w->path, &there) == 0 && !S_ISREG(there.st_mode))
        return ps_error_set(err, PS_ERR_IO, "%s: is not a regular file: give another name", w->path);
    int fd = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return ps_error_set(err, PS_ERR_IO, "%s: cannot be created: %s", w->temporary, strerror(errno));
    w->file = fdopen(fd, "w");
    if (!w->file) {
        close(fd);
        unlink(w->temporary);
        return ps_error_set(err, PS_ERR_NOMEM, "%s: out of memory", w->path);
    }
    return PS_OK;
}

enum ps_status route_trace_writer_new(struct route_trace_writer **out, const char *path,
                                      const struct route_trace_header *header, struct ps_error *err)
{
    *out = NULL;
    struct route_trace_writer *w = calloc(1, sizeof(*w));
    if (!w)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: out of memory", path);
    w->n_layers = header->n_layers;
    w->layers = calloc((size_t)header->n_layers + 1, sizeof(*w->layers));
    w->path = strdup(path);
    if (asprintf(&w->temporary, "%s.%ld.partial", path, (long)getpid()) < 0)
        w->temporary = NULL;
    enum ps_status status = w->layers && w->path && w->temporary
                                ? open_file(w, err)
                                : ps_error_set(err, PS_ERR_NOMEM, "%s: out of memory", path);
    if (status != PS_OK) {
        route_trace_writer_free(w);
        return status;
    }
    put_header(w, header);
    *out = w;
    return PS_OK;
}

void route_trace_writer_free(struct route_trace_writer *w)
{
    if (!w)
        return;
    if (w->file) {
        fclose(w->file);
        unlink(w->temporary);
    }
    for (uint32_t l = 0; w->layers && l < w->n_layers; l++) {
        free(w->layers[l].experts);
        free(w->layers[l].weights);
        for (uint32_t d = 0; d < PS_PREDICTION_DISTANCES; d++) {
            free(w->layers[l].ahead[d].experts);
            free(w->layers[l].ahead[d].probabilities);
        }
    }
    free(w->layers);
    free(w->path);
    free(w->temporary);
    free(w);
}

enum ps_status route_trace_writer_finish(struct route_trace_writer *w, struct ps_error *err)
{
    errno = EIO;
    if (fflush(w->file) != 0 || ferror(w->file))
        write_failed(w);
    bool closed = fclose(w->file) == 0;
    w->file = NULL;
    if (!closed)
        write_failed(w);
    if (w->failure.status == PS_OK && rename(w->temporary, w->path) != 0)
        ps_error_set(&w->failure, PS_ERR_IO, "%s: cannot be renamed to %s: %s", w->temporary, w->path,
                     strerror(errno));
    if (w->failure.status != PS_OK)
        unlink(w->temporary);
    return first_failure(w, err);
}

/* ---- a chunk ---- */

static void put_pairs(FILE *file, const uint32_t *experts, const float *values, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        fprintf(file, " %u:%.6g", experts[i], (double)values[i]);
    fputc('\n', file);
}

static void put_token(struct route_trace_writer *w, uint32_t position, uint32_t index)
{
    fprintf(w->file, "token %u ", position);
    /* Unsigned: a position before the feed's is far behind its end. */
    uint32_t fed = position - w->position;
    if (fed < w->n_tokens)
        fprintf(w->file, "%d", w->tokens[fed]);
    else
        fputc('-', w->file);
    fprintf(w->file, " %s\n", w->decode ? "decode" : "prefill");
    for (uint32_t l = 0; l < w->n_layers; l++) {
        struct pending_layer *layer = &w->layers[l];
        for (uint32_t d = 0; index == 0 && d < PS_PREDICTION_DISTANCES; d++) {
            const struct pending_prediction *ahead = &layer->ahead[d];
            if (ahead->n == 0)
                continue;
            fprintf(w->file, "ahead %u %u %u", l, d, ahead->n_tokens);
            put_pairs(w->file, ahead->experts, ahead->probabilities, ahead->n);
        }
        if (layer->k == 0)
            continue;
        size_t first = (size_t)index * layer->k;
        fprintf(w->file, "experts %u", l);
        put_pairs(w->file, layer->experts + first, layer->weights + first, layer->k);
    }
}

static void forget_chunk(struct route_trace_writer *w)
{
    for (uint32_t l = 0; l < w->n_layers; l++) {
        w->layers[l].k = 0;
        for (uint32_t d = 0; d < PS_PREDICTION_DISTANCES; d++)
            w->layers[l].ahead[d].n = 0;
    }
}

enum ps_status route_trace_writer_begin(struct route_trace_writer *w, uint32_t position,
                                        const int32_t *tokens, size_t n_tokens, bool decode,
                                        struct ps_error *err)
{
    w->position = position;
    w->tokens = tokens;
    w->n_tokens = n_tokens;
    w->decode = decode;
    forget_chunk(w); /* one that failed half-way */
    return first_failure(w, err);
}

/* Room for n experts and their values; what they held is lost. */
static bool resize(uint32_t **experts, float **values, size_t n)
{
    free(*experts);
    free(*values);
    *experts = malloc(n * sizeof(**experts));
    *values = malloc(n * sizeof(**values));
    return *experts && *values;
}

void route_trace_on_router(void *ctx, uint32_t moe_layer, uint32_t position, uint32_t n_tokens, uint32_t k,
                           const uint32_t *ids, const float *weights)
{
    struct route_trace_writer *w = ctx;
    if (moe_layer >= w->n_layers || w->failure.status != PS_OK)
        return;
    struct pending_layer *layer = &w->layers[moe_layer];
    size_t n = (size_t)n_tokens * k;
    if (n > layer->capacity) {
        layer->capacity = 0;
        if (!resize(&layer->experts, &layer->weights, n)) {
            no_memory(w);
            return;
        }
        layer->capacity = n;
    }
    memcpy(layer->experts, ids, n * sizeof(*ids));
    memcpy(layer->weights, weights, n * sizeof(*weights));
    layer->k = k;
    if (moe_layer + 1 < w->n_layers)
        return;
    errno = EIO;
    for (uint32_t t = 0; t < n_tokens; t++)
        put_token(w, position + t, t);
    if (ferror(w->file))
        write_failed(w);
    forget_chunk(w);
}

void route_trace_on_prediction(void *ctx, uint32_t moe_layer, uint32_t distance, uint32_t position,
                               uint32_t n_tokens, uint32_t n, const uint32_t *experts,
                               const float *probabilities)
{
    struct route_trace_writer *w = ctx;
    (void)position;
    if (moe_layer >= w->n_layers || distance >= PS_PREDICTION_DISTANCES || w->failure.status != PS_OK)
        return;
    struct pending_prediction *ahead = &w->layers[moe_layer].ahead[distance];
    ahead->n = 0;
    if (n > ahead->capacity) {
        ahead->capacity = 0;
        if (!resize(&ahead->experts, &ahead->probabilities, n)) {
            no_memory(w);
            return;
        }
        ahead->capacity = n;
    }
    if (n == 0)
        return;
    memcpy(ahead->experts, experts, n * sizeof(*experts));
    memcpy(ahead->probabilities, probabilities, n * sizeof(*probabilities));
    ahead->n = n;
    ahead->n_tokens = n_tokens;
}
