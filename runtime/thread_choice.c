#include "runtime/thread_choice.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/clock.h"

enum {
    ROUNDS = 8, /* of all candidates in turn */
    REGIONS = 8,
    REGION_BYTES = 1 << 20, /* of weights: about a parallel region of a decode step */
    CHUNKS_PER_THREAD = 4,
    MIN_CHUNK_ROWS = 32,
    WORTH_PERCENT = 3, /* more threads have to be faster by this */
};
static const double TIME_LIMIT_S = 0.04;

uint32_t thread_choice_most(uint32_t most)
{
    struct topology topology;
    struct thread_candidate candidates[MAX_THREAD_CANDIDATES];
    topology_read_own(&topology);
    return candidates[topology_candidates(&topology, most, candidates) - 1].n;
}

/* ---- measuring ---- */

struct sample {
    const struct ps_model *model;
    const struct weight *w;
    const void *acts; /* one row */
    float *out;       /* [w->n_rows] */
    uint64_t begin, rows, chunk_rows;
};

static void multiply_chunk(void *arg, uint32_t chunk, unsigned worker)
{
    (void)worker;
    const struct sample *s = arg;
    uint64_t begin = s->begin + chunk * s->chunk_rows;
    uint64_t end = begin + s->chunk_rows;
    uint64_t last = s->begin + s->rows;
    s->model->matmul->matmul(s->w, begin, end < last ? end : last, model_act_type(s->model, s->w), s->acts, 0,
                             1, s->out + begin, s->w->n_rows);
}

/* Seconds for some regions; each goes on in the matrix where the last one ended, so that they read memory, not caches. */
static double time_regions(struct sample *s, struct thread_pool *pool)
{
    uint64_t chunks = (uint64_t)CHUNKS_PER_THREAD * thread_pool_size(pool);
    s->chunk_rows = (s->rows + chunks - 1) / chunks;
    s->chunk_rows = s->chunk_rows < MIN_CHUNK_ROWS ? MIN_CHUNK_ROWS : s->chunk_rows;
    double start = clock_seconds();
    for (int i = 0; i < REGIONS; i++) {
        s->begin = s->begin + 2 * s->rows <= s->w->n_rows ? s->begin + s->rows : 0;
        thread_pool_run(pool, multiply_chunk, s, (uint32_t)((s->rows + s->chunk_rows - 1) / s->chunk_rows));
    }
    return clock_seconds() - start;
}

/* Index of the fastest pool, by the least of its times: what else runs while a model is loaded may soon be gone. */
static uint32_t fastest_pool(struct sample *s, struct thread_pool *const pools[], uint32_t n)
{
    double least[MAX_THREAD_CANDIDATES];
    double start = clock_seconds();
    for (uint32_t i = 0; i < n; i++)
        least[i] = time_regions(s, pools[i]);
    for (int round = 1; round < ROUNDS && clock_seconds() - start < TIME_LIMIT_S; round++) {
        for (uint32_t i = 0; i < n; i++) {
            double seconds = time_regions(s, pools[i]);
            least[i] = seconds < least[i] ? seconds : least[i];
        }
    }
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++) {
        if (least[i] * (100 + WORTH_PERCENT) < least[best] * 100)
            best = i;
    }
    return best;
}

/* The output head: always in memory, and mostly larger than the caches. */
static enum ps_status measure(struct ps_model *model, struct thread_pool *const pools[], uint32_t n,
                              uint32_t *best, struct ps_error *err)
{
    const struct weight *w = &model->global[GT_OUTPUT];
    enum act_type type = model_act_type(model, w);
    uint64_t rows = REGION_BYTES / w->row_bytes;
    rows = rows < MIN_CHUNK_ROWS ? MIN_CHUNK_ROWS : rows;
    float *x = malloc(w->n_cols * sizeof(*x));
    void *acts = malloc(act_row_bytes(type, w->n_cols));
    float *out = malloc(w->n_rows * sizeof(*out));
    if (x && acts && out) {
        for (uint64_t i = 0; i < w->n_cols; i++)
            x[i] = 1.0f;
        act_quantize(model->matmul, type, x, acts, w->n_cols);
        struct sample sample = {
            .model = model, .w = w, .acts = acts, .out = out, .rows = rows < w->n_rows ? rows : w->n_rows};
        *best = fastest_pool(&sample, pools, n);
    }
    bool ok = x && acts && out;
    free(x);
    free(acts);
    free(out);
    return ok ? PS_OK : ps_error_set(err, PS_ERR_NOMEM, "threads: out of memory for measuring");
}

/* ---- choosing ---- */

static enum ps_status start_pool(struct thread_pool **pool, uint32_t n, double quota, struct ps_error *err)
{
    int failed = thread_pool_new(pool, n);
    if (failed < 0)
        return ps_error_set(err, PS_ERR_NOMEM, "threads: cannot start %u: %s", n, strerror(-failed));
    if (quota > 0.0 && quota < (double)n)
        thread_pool_never_spin(*pool);
    return PS_OK;
}

/* "performance cores; measured fastest of 8, 16, 24" */
static void describe(struct ps_model *model, const struct thread_candidate *candidates, uint32_t n,
                     uint32_t best)
{
    char *text = model->threads_reason;
    size_t size = sizeof(model->threads_reason);
    size_t used = (size_t)snprintf(text, size, "%s", candidates[best].what);
    for (uint32_t i = 0; n > 1 && i < n && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%u", i ? ", " : "; measured fastest of ",
                                 candidates[i].n);
}

enum ps_status thread_choice_among(struct ps_model *model, const struct thread_candidate *candidates,
                                   uint32_t n, double quota, struct ps_error *err)
{
    struct thread_pool *pools[MAX_THREAD_CANDIDATES] = {NULL};
    uint32_t best = 0;
    enum ps_status status = PS_OK;
    for (uint32_t i = 0; i < n && status == PS_OK; i++)
        status = start_pool(&pools[i], candidates[i].n, quota, err);
    if (status == PS_OK && n > 1)
        status = measure(model, pools, n, &best, err);
    if (status == PS_OK) {
        model->pool = pools[best];
        model->params.threads = candidates[best].n;
        describe(model, candidates, n, best);
        pools[best] = NULL;
    }
    for (uint32_t i = 0; i < n; i++)
        thread_pool_free(pools[i]);
    return status;
}

enum ps_status thread_choice_make(struct ps_model *model, uint32_t asked, struct ps_error *err)
{
    struct topology topology;
    struct thread_candidate candidates[MAX_THREAD_CANDIDATES] = {{asked, "as asked"}};
    topology_read_own(&topology);
    uint32_t n = asked > 0 ? 1 : topology_candidates(&topology, model->params.threads, candidates);
    return thread_choice_among(model, candidates, n, topology.quota, err);
}
