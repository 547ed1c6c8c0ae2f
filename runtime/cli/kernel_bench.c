#include "runtime/cli/kernel_bench.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/probe.h"
#include "runtime/clock.h"
#include "runtime/splitmix.h"
#include "runtime/synth_blocks.h"
#include "storage/mapping.h"

enum { CHUNK_ROWS = 64 }; /* of a work item */

struct kernel_bench {
    struct kernel_bench_params params;
    const struct matmul_kernels *kernels;
    const struct probe_kernels *probes;
    struct thread_pool *pool;
    uint8_t *memory;
    uint64_t memory_bytes;
    float *x;   /* [KERNEL_BENCH_MAX_TOKENS][cols] */
    void *acts; /* the same, as the format takes them */
    float *out; /* [threads][KERNEL_BENCH_MAX_TOKENS][CHUNK_ROWS] */
    float gauss[SYNTH_GAUSS_SIZE];
    struct weight matrix; /* the first one; the others follow it */
    uint32_t n_matrices;
};

static uint64_t matrix_bytes(const struct kernel_bench *b, const struct block_format *format)
{
    return b->params.rows * (uint64_t)block_row_bytes(format, b->params.cols);
}

/* Room for one matrix of any format, however little memory was asked for. */
static uint64_t least_memory(const struct kernel_bench *b)
{
    const struct block_format *format;
    uint64_t most = b->params.memory_bytes;
    for (uint32_t i = 0; (format = block_format_at(i)) != NULL; i++) {
        uint64_t bytes = matrix_bytes(b, format);
        most = bytes > most ? bytes : most;
    }
    return most;
}

enum ps_status kernel_bench_new(struct kernel_bench **out, const struct kernel_bench_params *params,
                                struct ps_error *err)
{
    enum { ALIGN = 64 };
    struct kernel_bench *b = calloc(1, sizeof(*b));
    *out = b;
    if (!b)
        return ps_error_set(err, PS_ERR_NOMEM, "bench kernels: out of memory");
    b->params = *params;
    b->kernels = matmul_kernels_get(params->level);
    b->probes = probe_kernels_get(params->level);
    uint64_t n_values = (uint64_t)KERNEL_BENCH_MAX_TOKENS * params->cols;
    b->memory_bytes = least_memory(b);
    b->memory = mapping_new(b->memory_bytes);
    b->x = malloc(n_values * sizeof(*b->x));
    b->acts = aligned_alloc(ALIGN, n_values * sizeof(float)); /* no form takes more */
    b->out = malloc((uint64_t)params->threads * KERNEL_BENCH_MAX_TOKENS * CHUNK_ROWS * sizeof(*b->out));
    if (!b->memory || !b->x || !b->acts || !b->out || thread_pool_new(&b->pool, params->threads) < 0)
        return ps_error_set(err, PS_ERR_NOMEM, "bench kernels: cannot have %llu bytes and %u threads",
                            (unsigned long long)b->memory_bytes, params->threads);
    uint64_t seed = 1;
    for (uint64_t i = 0; i < n_values; i++)
        b->x[i] = (float)(int64_t)splitmix64(&seed) * 0x1p-63f;
    synth_gauss_table(b->gauss);
    return PS_OK;
}

void kernel_bench_free(struct kernel_bench *b)
{
    if (!b)
        return;
    thread_pool_free(b->pool);
    mapping_free(b->memory, b->memory_bytes);
    free(b->x);
    free(b->acts);
    free(b->out);
    free(b);
}

/* ---- timing ---- */

/* Seconds of the fastest pass among those that fit the time. */
static double best_pass(struct kernel_bench *b, thread_pool_fn *fn, void *arg, uint32_t n_chunks)
{
    double start = clock_seconds();
    double best = 0.0;
    double now = start;
    do {
        double before = now;
        thread_pool_run(b->pool, fn, arg, n_chunks);
        now = clock_seconds();
        if (best <= 0.0 || now - before < best)
            best = now - before;
    } while (now - start < b->params.seconds);
    return best > 0.0 ? best : 1e-9;
}

/* ---- the machine ---- */

enum { MULTIPLY_ROUNDS = 100000, MAX_THREADS = 256 };

struct probe_pass {
    struct kernel_bench *b;
    uint64_t read_chunk; /* bytes */
    uint64_t (*multiply)(uint64_t rounds);
    uint64_t sums[MAX_THREADS]; /* by worker: the reads are for something */
    uint64_t ops[MAX_THREADS];  /* by chunk */
};

static void read_chunk(void *arg, uint32_t chunk, unsigned worker)
{
    struct probe_pass *pass = arg;
    pass->sums[worker] += pass->b->probes->read(pass->b->memory + chunk * pass->read_chunk, pass->read_chunk);
}

static void multiply_chunk(void *arg, uint32_t chunk, unsigned worker)
{
    struct probe_pass *pass = arg;
    (void)worker;
    pass->ops[chunk] = pass->multiply(MULTIPLY_ROUNDS);
}

static double multiply_rate(struct probe_pass *pass, uint64_t (*multiply)(uint64_t rounds))
{
    uint32_t threads = pass->b->params.threads;
    pass->multiply = multiply;
    double seconds = best_pass(pass->b, multiply_chunk, pass, threads);
    uint64_t ops = 0;
    for (uint32_t i = 0; i < threads; i++)
        ops += pass->ops[i];
    return (double)ops / seconds;
}

void kernel_bench_peak(struct kernel_bench *b, struct machine_peak *peak)
{
    enum { MOST = 1 << 20, UNIT = 512 };
    struct probe_pass pass = {.b = b, .read_chunk = MOST};
    if (b->memory_bytes < MOST)
        pass.read_chunk = b->memory_bytes / UNIT * UNIT;
    memset(b->memory, 1, b->memory_bytes); /* pages that were never written are all the same one */
    uint32_t n = pass.read_chunk > 0 ? (uint32_t)(b->memory_bytes / pass.read_chunk) : 0;
    peak->read_bytes = (double)(n * pass.read_chunk) / best_pass(b, read_chunk, &pass, n);
    peak->int8_ops = multiply_rate(&pass, b->probes->multiply_int8);
    peak->f32_ops = multiply_rate(&pass, b->probes->multiply_f32);
}

/* ---- products ---- */

/* Formats that synth has no recipe for: bytes below 0x40, so that a scale among them is finite and small. */
static void fill_plain(uint8_t *out, uint64_t bytes)
{
    uint64_t seed = 1;
    for (uint64_t i = 0; i < bytes; i++)
        out[i] = (uint8_t)(splitmix64(&seed) & 0x3f);
}

static enum ps_status fill_matrix(struct kernel_bench *b, const struct block_format *format, uint64_t bytes,
                                  struct ps_error *err)
{
    struct synth_fill fill;
    if (!synth_recipe_find(format->type)) {
        fill_plain(b->memory, bytes);
        return PS_OK;
    }
    if (!synth_fill_init(&fill, format->type, 0.0f, 0.02f, b->gauss))
        return ps_error_set(err, PS_ERR_NOMEM, "bench kernels: out of memory");
    uint64_t unit = synth_unit_bytes(fill.recipe);
    for (uint64_t at = 0, i = 0; at < bytes; at += unit, i++)
        synth_fill_unit(&fill, 1, 0, i, b->memory + at, bytes - at < unit ? bytes - at : unit);
    synth_fill_deinit(&fill);
    return PS_OK;
}

enum ps_status kernel_bench_fill(struct kernel_bench *b, const struct block_format *format,
                                 struct ps_error *err)
{
    uint64_t bytes = matrix_bytes(b, format);
    enum ps_status status = fill_matrix(b, format, bytes, err);
    if (status != PS_OK)
        return status;
    b->matrix = (struct weight){.format = format,
                                .data = b->memory,
                                .n_rows = b->params.rows,
                                .n_cols = b->params.cols,
                                .row_bytes = block_row_bytes(format, b->params.cols)};
    b->n_matrices = (uint32_t)(b->memory_bytes / bytes);
    for (uint32_t i = 1; i < b->n_matrices; i++)
        memcpy(b->memory + i * bytes, b->memory, bytes);
    size_t stride = act_row_bytes(format->act, b->params.cols);
    for (uint32_t t = 0; t < KERNEL_BENCH_MAX_TOKENS; t++)
        act_quantize(b->kernels, format->act, b->x + (size_t)t * b->params.cols,
                     (uint8_t *)b->acts + t * stride, b->params.cols);
    return PS_OK;
}

struct matmul_pass {
    struct kernel_bench *b;
    uint32_t n_tokens;
    uint32_t chunks; /* of a matrix */
};

static void matmul_chunk(void *arg, uint32_t chunk, unsigned worker)
{
    const struct matmul_pass *pass = arg;
    struct kernel_bench *b = pass->b;
    float *out = b->out + (size_t)worker * KERNEL_BENCH_MAX_TOKENS * CHUNK_ROWS;
    struct weight w = b->matrix;
    w.data = b->memory + chunk / pass->chunks * (w.n_rows * w.row_bytes);
    uint64_t begin = (uint64_t)(chunk % pass->chunks) * CHUNK_ROWS;
    uint64_t end = begin + CHUNK_ROWS < w.n_rows ? begin + CHUNK_ROWS : w.n_rows;
    b->kernels->matmul(&w, begin, end, w.format->act, b->acts, act_row_bytes(w.format->act, w.n_cols),
                       pass->n_tokens, out, CHUNK_ROWS);
}

void kernel_bench_matmul(struct kernel_bench *b, uint32_t n_tokens, struct kernel_rate *rate)
{
    enum { FEW_TOKENS = 8 };
    struct matmul_pass pass = {.b = b, .n_tokens = n_tokens};
    pass.chunks = (b->params.rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
    /* With many tokens memory is no limit, and one matrix is enough. */
    uint32_t n = n_tokens > FEW_TOKENS ? 1 : b->n_matrices;
    double seconds = best_pass(b, matmul_chunk, &pass, n * pass.chunks);
    double matrices = (double)n / seconds;
    rate->weight_bytes = matrices * (double)(b->matrix.n_rows * b->matrix.row_bytes);
    rate->ops = matrices * 2.0 * (double)b->matrix.n_rows * (double)b->matrix.n_cols * n_tokens;
}
