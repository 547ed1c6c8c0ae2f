#include "runtime/block_ngrams.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/block_hyper.h"
#include "runtime/stored_rows.h"

/* ---- sizes ---- */

uint64_t dim_ngram_rows(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->ngram.n_rows;
}

uint64_t dim_ngram_head(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->ngram.head_dim;
}

uint64_t dim_ngram_all(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return (uint64_t)hp->ngram.n_heads * hp->ngram.head_dim;
}

uint64_t dim_ngram_taps(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->ngram.taps;
}

/* Where a token's rows lie in scratch.mixer: the embedding is at 0. */
struct ngram_parts {
    uint64_t value, streams, gates, end; /* streams: keys, then what is convolved */
};

static struct ngram_parts parts_of(const struct hparams *hp)
{
    struct ngram_parts p = {.value = dim_ngram_all(hp, NULL)};
    p.streams = p.value + hp->n_embd;
    p.gates = p.streams + dim_all_streams(hp, NULL);
    p.end = p.gates + hp->n_streams;
    return p;
}

uint64_t ngram_mixer(const struct hparams *hp)
{
    return hp->ngram.size > 0 ? parts_of(hp).end : 0;
}

/* Rows of the past that the convolution sees: its taps are as far apart as an n-gram is long. */
static uint64_t past_rows(const struct hparams *hp)
{
    return (hp->ngram.taps - 1ull) * hp->ngram.size;
}

static uint64_t past_tokens(const struct hparams *hp)
{
    return hp->ngram.size - 1ull;
}

uint64_t ngram_state(const struct hparams *hp)
{
    return past_rows(hp) * dim_all_streams(hp, NULL) + past_tokens(hp);
}

/* ---- hyperparameters ---- */

static enum ps_status read_u64s(const struct gguf *gguf, const char *arch, const char *suffix, uint32_t n,
                                uint64_t *out, struct ps_error *err)
{
    char key[128];
    snprintf(key, sizeof(key), "%s.%s", arch, suffix);
    const struct gguf_value *value = gguf_find(gguf, key);
    if (!value || value->type != GGUF_ARRAY || value->a.type == GGUF_STRING || value->a.type == GGUF_ARRAY ||
        value->a.count < n)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: not an array of at least %u numbers", key, n);
    for (uint32_t i = 0; i < n; i++)
        out[i] = gguf_array_u64(&value->a, i);
    return PS_OK;
}

static enum ps_status read_layer(struct hparams *hp, const struct gguf *gguf, const char *arch, bool *found,
                                 struct ps_error *err)
{
    char key[128];
    snprintf(key, sizeof(key), "%s.ple.layers", arch);
    const struct gguf_value *value = gguf_find(gguf, key);
    *found = value && (value->type != GGUF_ARRAY || value->a.count > 0);
    uint64_t layer = 0;
    if (!*found)
        return PS_OK;
    enum ps_status status = read_u64s(gguf, arch, "ple.layers", 1, &layer, err);
    if (status != PS_OK)
        return status;
    if (value->a.count != 1 || layer >= hp->n_layers)
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s: not one layer of %u", key, hp->n_layers);
    hp->layer[layer].ngrams = true;
    return PS_OK;
}

static enum ps_status check_rows(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                 struct ps_error *err)
{
    struct ngram_hparams *ngram = &hp->ngram;
    const struct gguf_tensor *table = gguf_tensor_find(gguf, "per_layer_token_embd.weight");
    if (!table)
        return ps_error_set(err, PS_ERR_FORMAT, "per_layer_token_embd.weight: tensor is missing");
    ngram->n_rows = table->dims[1];
    for (uint32_t h = 0; h < ngram->n_heads; h++) {
        if (ngram->modulus[h] == 0 || ngram->offset[h] > ngram->n_rows ||
            ngram->modulus[h] > ngram->n_rows - ngram->offset[h])
            return ps_error_set(err, PS_ERR_FORMAT,
                                "%s.ple.head_vocab_sizes: head %u: %llu rows from %llu on are not within the "
                                "table's %llu",
                                arch, h, (unsigned long long)ngram->modulus[h],
                                (unsigned long long)ngram->offset[h], (unsigned long long)ngram->n_rows);
    }
    return PS_OK;
}

enum ps_status hparams_ngrams(struct hparams *hp, const struct gguf *gguf, const char *arch,
                              struct ps_error *err)
{
    enum { MAX_TAPS = 16 };
    struct ngram_hparams *ngram = &hp->ngram;
    enum ps_status status;
    bool found;
    if ((status = read_layer(hp, gguf, arch, &found, err)) != PS_OK || !found)
        return status;
    if ((status = hparam_size(gguf, arch, "ple.ngram_size", &ngram->size, err)) != PS_OK ||
        (status = hparam_size(gguf, arch, "ple.heads_per_ngram", &ngram->heads_per_ngram, err)) != PS_OK ||
        (status = hparam_size(gguf, arch, "ple.conv_kernel", &ngram->taps, err)) != PS_OK ||
        (status = hparam_u32(gguf, arch, "ple.eos_token_id", true, &ngram->end_token, err)) != PS_OK ||
        (status = hparam_size(gguf, arch, "embedding_length_per_layer_input", &ngram->head_dim, err)) !=
            PS_OK)
        return status;
    if (ngram->size < 2 || ngram->size > MAX_NGRAM || ngram->taps > MAX_TAPS ||
        ngram->heads_per_ngram > MAX_NGRAM_HEADS / (ngram->size - 1))
        return ps_error_set(err, PS_ERR_UNSUPPORTED,
                            "%s.ple: n-grams of %u with %u heads each and %u taps are more than this handles",
                            arch, ngram->size, ngram->heads_per_ngram, ngram->taps);
    ngram->n_heads = (ngram->size - 1) * ngram->heads_per_ngram;
    if ((status = read_u64s(gguf, arch, "ple.layer_multipliers", ngram->size, ngram->multiplier, err)) !=
            PS_OK ||
        (status = read_u64s(gguf, arch, "ple.head_offsets", ngram->n_heads, ngram->offset, err)) != PS_OK ||
        (status = read_u64s(gguf, arch, "ple.head_vocab_sizes", ngram->n_heads, ngram->modulus, err)) !=
            PS_OK)
        return status;
    return check_rows(hp, gguf, arch, err);
}

/* ---- rows of the table ---- */

struct ngram_args {
    uint32_t layer;
    struct ngram_parts p;
    const struct weight *w;
    float *rows;   /* of the past, that of a position at its remainder */
    float *tokens; /* likewise; the bits of an int32_t */
};

static int32_t token_at(const struct forward *f, const struct ngram_args *a, uint32_t position)
{
    if (position >= f->position)
        return f->tokens[position - f->position];
    int32_t id;
    memcpy(&id, a->tokens + position % past_tokens(&f->model->hp), sizeof(id));
    return id;
}

/* The end token stands for what is before it, and before the sequence. */
static void hash_token(const struct forward *f, const struct ngram_args *a, uint32_t token, uint64_t *ids)
{
    const struct ngram_hparams *ngram = &f->model->hp.ngram;
    uint32_t position = f->position + token;
    uint64_t hash = (uint64_t)f->tokens[token] * ngram->multiplier[0];
    bool ended = false;
    for (uint32_t back = 1; back < ngram->size; back++) {
        uint64_t id = ngram->end_token;
        if (!ended && back <= position)
            id = (uint64_t)token_at(f, a, position - back);
        ended = ended || id == ngram->end_token;
        hash ^= id * ngram->multiplier[back];
        for (uint32_t h = (back - 1) * ngram->heads_per_ngram; h < back * ngram->heads_per_ngram; h++)
            ids[h] = hash % ngram->modulus[h] + ngram->offset[h];
    }
}

static enum ps_status read_rows(struct forward *f, const struct ngram_args *a, struct ps_error *err)
{
    const struct hparams *hp = &f->model->hp;
    uint32_t n_heads = hp->ngram.n_heads;
    uint32_t at_once = STORED_ROWS_AT_ONCE / n_heads;
    for (uint32_t first = 0; first < f->n_tokens; first += at_once) {
        uint64_t ids[STORED_ROWS_AT_ONCE];
        float *out[STORED_ROWS_AT_ONCE];
        uint32_t n = f->n_tokens - first < at_once ? f->n_tokens - first : at_once;
        for (uint32_t t = 0; t < n; t++) {
            hash_token(f, a, first + t, ids + t * n_heads);
            for (uint32_t h = 0; h < n_heads; h++)
                out[t * n_heads + h] =
                    f->s.mixer + (size_t)(first + t) * hp->mixer_floats + (size_t)h * hp->ngram.head_dim;
        }
        enum ps_status status = stored_rows_read(f->model, ids, n * n_heads, f->s.stored, out, err);
        if (status != PS_OK)
            return status;
    }
    return PS_OK;
}

/* ---- gates and convolution ---- */

static float *mixer_at(const struct forward *f, uint32_t token, uint64_t at)
{
    return f->s.mixer + (size_t)token * f->model->hp.mixer_floats + at;
}

/* How much a stream wants of the value: the square root keeps large products from saturating the gate. */
static float gate_of(float product)
{
    float root = sqrtf(fmaxf(fabsf(product), 1e-6f));
    float signed_root = product > 0.0f ? root : product < 0.0f ? -root : 0.0f;
    return 1.0f / (1.0f + expf(-signed_root));
}

static void gate_token(struct forward *f, uint32_t token, void *arg)
{
    const struct ngram_args *a = arg;
    const struct hparams *hp = &f->model->hp;
    const struct vector_ops *ops = f->model->ops;
    size_t n = hp->n_embd;
    const float *value = mixer_at(f, token, a->p.value);
    float *gates = mixer_at(f, token, a->p.gates);
    float *query = f->s.normed + token * n;
    float *room = f->s.branch + token * n;
    for (uint32_t s = 0; s < hp->n_streams; s++) {
        float *row = mixer_at(f, token, a->p.streams) + s * n;
        const float *x = f->s.x + ((size_t)token * hp->n_streams + s) * n;
        ops->rms_norm(row, row, weight_row_floats(&a->w[LT_PLE_NORM_KEY], s, room), n, hp->norm_eps);
        ops->rms_norm(query, x, weight_row_floats(&a->w[LT_PLE_NORM_QUERY], s, room), n, hp->norm_eps);
        gates[s] = gate_of(ops->dot(row, query, n) / sqrtf((float)n));
        ops->scale(row, value, gates[s], n);
        ops->rms_norm(row, row, weight_row_floats(&a->w[LT_PLE_NORM_CONV], s, room), n, hp->norm_eps);
    }
}

static const float *past_row(const struct forward *f, const struct ngram_args *a, uint32_t position)
{
    const struct hparams *hp = &f->model->hp;
    if (position >= f->position)
        return mixer_at(f, position - f->position, a->p.streams);
    return a->rows + position % past_rows(hp) * dim_all_streams(hp, NULL);
}

static void add_token(struct forward *f, uint32_t token, void *arg)
{
    enum { TILE = 256 };
    const struct ngram_args *a = arg;
    const struct hparams *hp = &f->model->hp;
    const struct vector_ops *ops = f->model->ops;
    uint32_t taps = hp->ngram.taps;
    uint32_t position = f->position + token;
    size_t all = dim_all_streams(hp, NULL);
    float *x = f->s.x + token * all;
    const float *weights = a->w[LT_PLE_CONV].data;
    for (uint32_t s = 0; s < hp->n_streams; s++)
        ops->axpy(x + (size_t)s * hp->n_embd, mixer_at(f, token, a->p.value),
                  mixer_at(f, token, a->p.gates)[s], hp->n_embd);
    for (size_t i = 0; i < all; i += TILE) {
        float sum[TILE] = {0}, gate[TILE];
        size_t n = all - i < TILE ? all - i : TILE;
        for (uint32_t tap = 0; tap < taps; tap++) {
            uint32_t back = (taps - 1 - tap) * hp->ngram.size;
            if (back > position)
                continue;
            const float *row = past_row(f, a, position - back) + i;
            for (size_t c = 0; c < n; c++)
                sum[c] += weights[(i + c) * taps + tap] * row[c];
        }
        ops->sigmoid(gate, sum, n);
        ops->mul(sum, sum, gate, n);
        ops->add(x + i, x + i, sum, n);
    }
}

static void keep_state(struct forward *f, const struct ngram_args *a)
{
    const struct hparams *hp = &f->model->hp;
    size_t all = dim_all_streams(hp, NULL);
    uint64_t rows = past_rows(hp);
    for (uint32_t t = f->n_tokens > rows ? f->n_tokens - (uint32_t)rows : 0; t < f->n_tokens; t++)
        memcpy(a->rows + (f->position + t) % rows * all, mixer_at(f, t, a->p.streams), all * sizeof(float));
    uint64_t tokens = past_tokens(hp);
    for (uint32_t t = f->n_tokens > tokens ? f->n_tokens - (uint32_t)tokens : 0; t < f->n_tokens; t++)
        memcpy(a->tokens + (f->position + t) % tokens, &f->tokens[t], sizeof(f->tokens[t]));
}

/* ---- the block ---- */

enum ps_status block_ngrams(struct forward *f, uint32_t layer, struct ps_error *err)
{
    const struct hparams *hp = &f->model->hp;
    const struct kv_layer *kv = &f->kv->layers[layer];
    struct ngram_args a = {.layer = layer, .p = parts_of(hp), .w = f->model->layers[layer].w};
    a.rows = kv->state + kv->state_floats - ngram_state(hp);
    a.tokens = a.rows + past_rows(hp) * dim_all_streams(hp, NULL);
    enum ps_status status = read_rows(f, &a, err);
    if (status != PS_OK)
        return status;
    step_part_done(&f->parts, PS_PART_OTHER);
    struct acts embedding = acts_of(f, f->s.mixer, hp->mixer_floats, f->n_tokens, dim_ngram_all(hp, NULL));
    struct matmul_job jobs[] = {
        chunk_job(f, &embedding, &a.w[LT_PLE_KEY], NULL, mixer_at(f, 0, a.p.streams)),
        chunk_job(f, &embedding, &a.w[LT_PLE_VALUE], NULL, mixer_at(f, 0, a.p.value))};
    jobs[0].out_stride = jobs[1].out_stride = hp->mixer_floats;
    run_matmuls(f, jobs, 2);
    step_part_done(&f->parts, PS_PART_TRUNK);
    for_each_token(f, gate_token, &a);
    for_each_token(f, add_token, &a);
    keep_state(f, &a);
    step_part_done(&f->parts, PS_PART_NORMS);
    return PS_OK;
}
