/* Attention: every level against a naive softmax in double precision, and against itself, to the bit, for the ways in
 * which the same token can be asked for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/attention.h"
#include "kernels/block_format.h"
#include "kernels/matmul.h"
#include "kernels/vector_ops.h"
#include "thinned.h"

static uint32_t random_state = 7;

static float random_float(float low, float high)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return low + (high - low) * (float)(random_state >> 8) * 0x1p-24f;
}

static void *allocate(size_t bytes)
{
    void *p = malloc(bytes > 0 ? bytes : 1);
    assert_non_null(p);
    return p;
}

static float *random_floats(size_t n, float low, float high)
{
    float *x = allocate(n * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        x[i] = random_float(low, high);
    }
    return x;
}

struct shape {
    const char *name;
    uint32_t n_tokens, first_pos;
    uint32_t n_head, n_kv_head, head_dim_k, head_dim_v;
    uint32_t window;
    bool sinks;
    enum kv_type type;
    bool window_in_chunks;
};

static const struct shape SHAPES[] = {
    {"first token", 1, 0, 4, 4, 64, 64, 0, false, KV_F32, false},
    {"one block less one", 1, 30, 4, 2, 64, 64, 0, false, KV_F32, false},
    {"one block", 1, 31, 4, 2, 64, 64, 0, false, KV_F16, false},
    {"one block and one", 1, 32, 4, 2, 64, 64, 0, true, KV_F16, false},
    {"prefill from 0", 70, 0, 4, 1, 64, 64, 0, false, KV_F32, false},
    {"prefill in the middle", 9, 91, 8, 2, 128, 128, 0, false, KV_F16, false},
    {"groups of 3", 3, 45, 6, 2, 80, 80, 0, false, KV_F16, false},
    {"groups of 5", 2, 77, 10, 2, 96, 64, 0, true, KV_F32, false},
    {"groups of 7", 2, 200, 14, 2, 112, 112, 0, false, KV_F16, false},
    {"groups of 8, window, sinks", 5, 300, 16, 2, 64, 64, 128, true, KV_F16, false},
    {"groups of 16, dims as MLA", 2, 66, 16, 1, 576, 512, 0, false, KV_F16, false},
    {"value dim below key dim", 3, 40, 4, 4, 192, 128, 0, false, KV_F32, false},
    {"odd dims", 4, 50, 6, 3, 13, 7, 0, true, KV_F16, false},
    {"odd dims, F32", 4, 50, 7, 1, 33, 31, 20, true, KV_F32, false},
    {"dims below a register", 4, 37, 3, 1, 3, 1, 0, false, KV_F16, false},
    {"window of one", 3, 64, 4, 2, 24, 24, 1, false, KV_F32, false},
    {"window within a block", 3, 61, 4, 2, 40, 40, 7, true, KV_F16, false},
    {"window larger than the past", 6, 3, 4, 2, 64, 64, 100, false, KV_F32, false},
    {"window of two blocks", 40, 10, 2, 2, 64, 64, 64, false, KV_F16, false},
    {"Q8_0, groups of 4", 9, 91, 8, 2, 128, 128, 0, false, KV_Q8_0, false},
    {"Q8_0, dims of no whole block", 5, 60, 6, 3, 80, 40, 0, true, KV_Q8_0, false},
    {"Q8_0, dims below a register", 3, 70, 2, 1, 5, 3, 0, false, KV_Q8_0, false},
    {"Q8_0, ungrouped", 1, 150, 3, 3, 64, 64, 0, false, KV_Q8_0, false},
    {"Q8_0, dims as MLA", 2, 66, 20, 1, 576, 512, 0, false, KV_Q8_0, false},
    {"ungrouped, window across blocks", 3, 200, 2, 2, 96, 64, 75, false, KV_F32, false},
    {"ungrouped, window across blocks, F16", 3, 309, 2, 2, 192, 128, 45, true, KV_F16, false},
    {"ungrouped, window across blocks, Q8_0", 3, 255, 2, 2, 64, 160, 37, true, KV_Q8_0, false},
    {"ungrouped prefill", 45, 200, 4, 4, 64, 96, 0, false, KV_F16, false},
    {"more heads in a group than in a tile", 2, 130, 72, 1, 48, 32, 0, true, KV_F16, false},
    {"one segment", 1, 255, 4, 2, 64, 64, 0, false, KV_F16, false},
    {"one segment and one", 1, 256, 4, 2, 64, 64, 0, true, KV_Q8_0, false},
    {"segments within a chunk", 40, 500, 4, 2, 16, 16, 0, false, KV_F32, false},
    {"window over a segment's end", 70, 230, 4, 1, 32, 32, 60, true, KV_F16, false},
    {"longer segments from a token on", 9, 4090, 15, 1, 8, 8, 0, false, KV_F16, false},
    {"few tokens where segments grow", 3, 4094, 4, 1, 8, 8, 0, true, KV_F16, false},
    {"long window where segments grow", 9, 4500, 16, 2, 8, 4, 4095, false, KV_Q8_0, false},
    {"chunks of positions", 70, 90, 4, 2, 32, 32, 50, false, KV_F16, true},
    {"a chunk's first position", 1, 300, 4, 1, 32, 16, 100, true, KV_F32, true},
    {"a chunk of many segments", 5, 1500, 2, 1, 8, 8, 2048, false, KV_F32, true},
};
enum { N_SHAPES = sizeof(SHAPES) / sizeof(SHAPES[0]) };

/* A shape filled with values; cells as [cell][kv head][dim]. */
struct problem {
    struct attention_args args;
    uint32_t n_cells;
    float *q, *k, *v; /* k and v: what the rows of the cache stand for */
    char *k_rows, *v_rows;
    float *sinks, *out;
    int32_t *pos;
};

static const struct matmul_kernels
    *scalar_matmul; /* asking the CPU for each row takes long where it is virtual */

static void store_row(enum kv_type type, void *row, const float *x, uint32_t n)
{
    kv_row_store(type, vector_ops_get(CPU_SCALAR), scalar_matmul, row, x, n);
}

static void load_row(enum kv_type type, const void *row, float *x, uint32_t n)
{
    if (type == KV_F16) {
        vector_ops_get(CPU_SCALAR)->f16_to_f32(x, row, n);
    } else if (type == KV_Q8_0) {
        size_t whole = ((size_t)n + 31) / 32 * 32;
        float *values = allocate(whole * sizeof(float));
        block_format_find(BLOCK_Q8_0)->dequantize(row, values, whole);
        memcpy(x, values, n * sizeof(float));
        free(values);
    } else {
        memcpy(x, row, n * sizeof(float));
    }
}

/* Random rows of a cache, and the values they stand for. */
static char *cache_new(enum kv_type type, size_t n_rows, uint32_t dim, float magnitude, float **values)
{
    size_t row_bytes = kv_row_bytes(type, dim);
    char *rows = allocate(n_rows * row_bytes);
    *values = random_floats(n_rows * dim, -magnitude, magnitude);
    for (size_t i = 0; i < n_rows; i++) {
        store_row(type, rows + i * row_bytes, *values + i * dim, dim);
        load_row(type, rows + i * row_bytes, *values + i * dim, dim);
    }
    return rows;
}

static struct problem problem_new(const struct shape *s)
{
    uint32_t n_cells = s->first_pos + s->n_tokens + 3;
    size_t n_rows = (size_t)n_cells * s->n_kv_head;
    struct problem p = {.n_cells = n_cells};
    p.q = random_floats((size_t)s->n_tokens * s->n_head * s->head_dim_k, -2.0f, 2.0f);
    p.k_rows = cache_new(s->type, n_rows, s->head_dim_k, 2.0f, &p.k);
    p.v_rows = cache_new(s->type, n_rows, s->head_dim_v, 1.0f, &p.v);
    p.sinks = random_floats(s->n_head, -2.0f, 4.0f);
    p.out = allocate((size_t)s->n_tokens * s->n_head * s->head_dim_v * sizeof(float));
    p.pos = allocate(s->n_tokens * sizeof(int32_t));
    for (uint32_t t = 0; t < s->n_tokens; t++) {
        p.pos[t] = (int32_t)(s->first_pos + t);
    }
    size_t k_row = kv_row_bytes(s->type, s->head_dim_k);
    size_t v_row = kv_row_bytes(s->type, s->head_dim_v);
    p.args = (struct attention_args){.q = p.q,
                                     .q_stride = (size_t)s->n_head * s->head_dim_k,
                                     .k = p.k_rows,
                                     .v = p.v_rows,
                                     .k_head_stride = k_row,
                                     .k_row_stride = k_row * s->n_kv_head,
                                     .v_head_stride = v_row,
                                     .v_row_stride = v_row * s->n_kv_head,
                                     .type = s->type,
                                     .out = p.out,
                                     .out_stride = (size_t)s->n_head * s->head_dim_v,
                                     .pos = p.pos,
                                     .n_tokens = s->n_tokens,
                                     .n_head = s->n_head,
                                     .n_kv_head = s->n_kv_head,
                                     .head_dim_k = s->head_dim_k,
                                     .head_dim_v = s->head_dim_v,
                                     .scale = 1.0f / sqrtf((float)s->head_dim_k),
                                     .window = s->window,
                                     .window_in_chunks = s->window_in_chunks,
                                     .sinks = s->sinks ? p.sinks : NULL};
    return p;
}

static void problem_free(struct problem *p)
{
    free(p->q);
    free(p->k);
    free(p->v);
    free(p->k_rows);
    free(p->v_rows);
    free(p->sinks);
    free(p->out);
    free(p->pos);
}

/* Memory that ends where a page begins that nobody may touch. */
struct guarded {
    void *map;
    size_t map_bytes;
    void *at; /* n bytes */
};

static struct guarded guarded_new(size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t room = (n + page - 1) / page * page;
    struct guarded g = {.map_bytes = room + page};
    g.map = mmap(NULL, g.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(g.map != MAP_FAILED);
    assert_int_equal(mprotect((char *)g.map + room, page, PROT_NONE), 0);
    g.at = (char *)g.map + room - n;
    return g;
}

static void guarded_free(const struct guarded *g)
{
    munmap(g->map, g->map_bytes);
}

/* Items from the last to the first, as no order may be needed. */
static void attend(enum cpu_level level, const struct attention_args *args)
{
    const struct attention_kernels *kernels = attention_kernels_get(level);
    assert_int_equal(kernels->level, level);
    uint64_t n_cells = 0;
    for (uint32_t t = 0; t < args->n_tokens; t++) {
        n_cells = args->pos[t] >= (int64_t)n_cells ? (uint64_t)args->pos[t] + 1 : n_cells;
    }
    struct guarded scratch = guarded_new(attention_scratch_floats(args) * sizeof(float));
    struct guarded partials = guarded_new(attention_partial_floats(args, n_cells) * sizeof(float));
    struct attention_args copy = *args;
    copy.partials = partials.at;
    struct attention_work work = attention_work_of(&copy);
    for (uint32_t item = work.n_items; item-- > 0;) {
        kernels->item(&copy, &work, item, scratch.at);
    }
    for (uint32_t i = work.n_combines; i-- > 0;) {
        kernels->combine(&copy, &work, i);
    }
    guarded_free(&scratch);
    guarded_free(&partials);
}

/* Runs the problem into a fresh buffer of args->out's size. */
static float *attend_new(enum cpu_level level, const struct attention_args *args)
{
    struct attention_args copy = *args;
    copy.out = random_floats(args->n_tokens * args->out_stride, -9.0f, 9.0f);
    attend(level, &copy);
    return copy.out;
}

static bool sees(const struct attention_args *args, uint32_t token, uint32_t cell)
{
    int64_t distance = (int64_t)args->pos[token] - (int64_t)cell;
    if (args->window > 0 && args->window_in_chunks) {
        return distance >= 0 && (uint32_t)args->pos[token] / args->window == cell / args->window;
    }
    return distance >= 0 && (args->window == 0 || distance < (int64_t)args->window);
}

/* The definition: softmax(scale * q k^T) v over the visible cells, in double precision, for one token and head. */
static void reference(const struct problem *p, uint32_t token, uint32_t head, double *out)
{
    const struct attention_args *a = &p->args;
    uint32_t kv_head = head / (a->n_head / a->n_kv_head);
    const float *q = p->q + token * a->q_stride + (size_t)head * a->head_dim_k;
    double *logits = allocate(p->n_cells * sizeof(double));
    double max = a->sinks != NULL ? (double)a->sinks[head] : -INFINITY;
    for (uint32_t c = 0; c < p->n_cells; c++) {
        const float *k = p->k + ((size_t)c * a->n_kv_head + kv_head) * a->head_dim_k;
        logits[c] = 0.0;
        for (uint32_t i = 0; i < a->head_dim_k; i++) {
            logits[c] += (double)q[i] * (double)k[i] * (double)a->scale;
        }
        if (sees(a, token, c)) {
            max = fmax(max, logits[c]);
        }
    }
    double sum = a->sinks != NULL ? exp((double)a->sinks[head] - max) : 0.0;
    memset(out, 0, a->head_dim_v * sizeof(*out));
    for (uint32_t c = 0; c < p->n_cells; c++) {
        if (sees(a, token, c)) {
            const float *v = p->v + ((size_t)c * a->n_kv_head + kv_head) * a->head_dim_v;
            double weight = exp(logits[c] - max);
            sum += weight;
            for (uint32_t i = 0; i < a->head_dim_v; i++) {
                out[i] += weight * (double)v[i];
            }
        }
    }
    for (uint32_t i = 0; i < a->head_dim_v; i++) {
        out[i] /= sum;
    }
    free(logits);
}

static void assert_same_bits(const float *a, const float *b, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t x;
        uint32_t y;
        memcpy(&x, a + i, sizeof(x));
        memcpy(&y, b + i, sizeof(y));
        if (x != y) {
            fail_msg("%s: [%zu]: %.9g and %.9g differ in bits", what, i, (double)a[i], (double)b[i]);
        }
    }
}

/* Runs check for each shape at each level that this CPU has. */
static void at_each_level(void (*check)(enum cpu_level level, const struct shape *shape))
{
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (!cpu_level_available(level)) {
            print_message("no %s here: skipped\n", cpu_level_name(level));
            continue;
        }
        for (size_t i = 0; i < N_SHAPES; i++) {
            check(level, &SHAPES[i]);
        }
    }
}

static void check_reference(enum cpu_level level, const struct shape *shape)
{
    struct problem p = problem_new(shape);
    attend(level, &p.args);
    double *expected = allocate(shape->head_dim_v * sizeof(*expected));
    for (uint32_t t = 0; t < shape->n_tokens; t++) {
        for (uint32_t h = 0; h < shape->n_head; h++) {
            reference(&p, t, h, expected);
            const float *got = p.out + t * p.args.out_stride + (size_t)h * shape->head_dim_v;
            for (uint32_t i = 0; i < shape->head_dim_v; i++) {
                if (!(fabs((double)got[i] - expected[i]) <= 2e-6)) {
                    fail_msg("%s, %s: token %u head %u [%u]: got %.9g, expected %.9g", cpu_level_name(level),
                             shape->name, t, h, i, (double)got[i], expected[i]);
                }
            }
        }
    }
    free(expected);
    problem_free(&p);
}

static void attention_matches_double_precision(void **state)
{
    (void)state;
    at_each_level(check_reference);
}

static void check_alone(enum cpu_level level, const struct shape *shape)
{
    struct problem p = problem_new(shape);
    attend(level, &p.args);
    for (uint32_t t = 0; t < shape->n_tokens; t++) {
        struct attention_args alone = p.args;
        alone.n_tokens = 1;
        alone.q += t * alone.q_stride;
        alone.pos += t;
        float *out = attend_new(level, &alone);
        assert_same_bits(out, p.out + t * p.args.out_stride, p.args.out_stride, shape->name);
        free(out);
    }
    problem_free(&p);
}

static void token_alone_gives_the_bits_it_has_in_a_chunk(void **state)
{
    (void)state;
    at_each_level(check_alone);
}

static void fill_cell(struct problem *p, uint32_t cell, float k, float v)
{
    const struct attention_args *a = &p->args;
    float x[2][1024];
    for (size_t i = 0; i < 1024; i++) {
        x[0][i] = k;
        x[1][i] = v;
    }
    for (uint32_t h = 0; h < a->n_kv_head; h++) {
        store_row(a->type, p->k_rows + cell * a->k_row_stride + h * a->k_head_stride, x[0], a->head_dim_k);
        store_row(a->type, p->v_rows + cell * a->v_row_stride + h * a->v_head_stride, x[1], a->head_dim_v);
    }
}

static void check_invisible_cells(enum cpu_level level, const struct shape *shape)
{
    struct problem p = problem_new(shape);
    uint32_t last = shape->n_tokens - 1;
    attend(level, &p.args);
    for (uint32_t c = 0; c < p.n_cells; c++) {
        if (!sees(&p.args, last, c)) {
            fill_cell(&p, c, NAN, NAN);
        }
    }
    float *out = attend_new(level, &p.args);
    size_t at = last * p.args.out_stride;
    assert_same_bits(out + at, p.out + at, p.args.out_stride, shape->name);
    free(out);
    problem_free(&p);
}

static void cells_outside_the_window_or_in_the_future_leave_no_trace(void **state)
{
    (void)state;
    at_each_level(check_invisible_cells);
}

/* Each head with a kv head of its own, which is a copy of the shared one only in its address. */
static void check_ungrouped(enum cpu_level level, const struct shape *shape)
{
    struct problem p = problem_new(shape);
    attend(level, &p.args);
    uint32_t group = shape->n_head / shape->n_kv_head;
    for (uint32_t h = 0; h < shape->n_head; h++) {
        struct attention_args single = p.args;
        single.n_head = 1;
        single.n_kv_head = 1;
        single.q += (size_t)h * shape->head_dim_k;
        single.k = (const char *)single.k + h / group * single.k_head_stride;
        single.v = (const char *)single.v + h / group * single.v_head_stride;
        single.sinks = single.sinks != NULL ? single.sinks + h : NULL;
        single.out_stride = shape->head_dim_v;
        float *out = attend_new(level, &single);
        for (uint32_t t = 0; t < shape->n_tokens; t++) {
            const float *grouped = p.out + t * p.args.out_stride + (size_t)h * shape->head_dim_v;
            assert_same_bits(out + t * single.out_stride, grouped, shape->head_dim_v, shape->name);
        }
        free(out);
    }
    problem_free(&p);
}

static void head_does_not_depend_on_the_others_of_its_group(void **state)
{
    (void)state;
    at_each_level(check_ungrouped);
}

/* The same rows as [kv head][cell][dim], at an odd address, with room between rows. */
static char *spread(const char *rows, const struct problem *p, size_t row_bytes, size_t unit)
{
    size_t spaced = row_bytes + unit;
    uint32_t n_kv_head = p->args.n_kv_head;
    char *copy = allocate(unit + (size_t)p->n_cells * n_kv_head * spaced);
    for (uint32_t c = 0; c < p->n_cells; c++) {
        for (uint32_t h = 0; h < n_kv_head; h++) {
            memcpy(copy + unit + ((size_t)h * p->n_cells + c) * spaced,
                   rows + ((size_t)c * n_kv_head + h) * row_bytes, row_bytes);
        }
    }
    return copy;
}

static void check_layout(enum cpu_level level, const struct shape *shape)
{
    struct problem p = problem_new(shape);
    attend(level, &p.args);
    size_t unit = shape->type == KV_F32 ? sizeof(float) : sizeof(uint16_t);
    size_t k_row = kv_row_bytes(shape->type, shape->head_dim_k);
    size_t v_row = kv_row_bytes(shape->type, shape->head_dim_v);
    char *k = spread(p.args.k, &p, k_row, unit);
    char *v = spread(p.args.v, &p, v_row, unit);
    struct attention_args args = p.args;
    args.k = k + unit;
    args.v = v + unit;
    args.k_row_stride = k_row + unit;
    args.v_row_stride = v_row + unit;
    args.k_head_stride = args.k_row_stride * p.n_cells;
    args.v_head_stride = args.v_row_stride * p.n_cells;
    float *out = attend_new(level, &args);
    assert_same_bits(out, p.out, p.args.n_tokens * p.args.out_stride, shape->name);
    free(out);
    free(k);
    free(v);
    problem_free(&p);
}

static void layout_and_alignment_of_the_cache_change_no_bit(void **state)
{
    (void)state;
    at_each_level(check_layout);
}

/* Fails by a segmentation fault. */
static void check_no_read_ahead(enum cpu_level level, const struct shape *shape)
{
    struct problem p = problem_new(shape);
    attend(level, &p.args);
    size_t n_visible = shape->first_pos + shape->n_tokens;
    struct guarded k = guarded_new(n_visible * p.args.k_row_stride);
    struct guarded v = guarded_new(n_visible * p.args.v_row_stride);
    struct attention_args args = p.args;
    args.k = memcpy(k.at, args.k, n_visible * args.k_row_stride);
    args.v = memcpy(v.at, args.v, n_visible * args.v_row_stride);
    float *out = attend_new(level, &args);
    assert_same_bits(out, p.out, p.args.n_tokens * p.args.out_stride, shape->name);
    free(out);
    guarded_free(&k);
    guarded_free(&v);
    problem_free(&p);
}

static void nothing_is_read_past_the_last_visible_cell(void **state)
{
    (void)state;
    at_each_level(check_no_read_ahead);
}

static void token_without_cells_gives_zero(void **state)
{
    (void)state;
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (!cpu_level_available(level)) {
            continue;
        }
        struct problem p = problem_new(&SHAPES[0]);
        p.pos[0] = -1;
        attend(level, &p.args);
        for (size_t i = 0; i < p.args.out_stride; i++) {
            assert_true(p.out[i] == 0.0f);
        }
        problem_free(&p);
    }
}

static void nan_in_a_visible_cell_reaches_the_output(void **state)
{
    (void)state;
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (!cpu_level_available(level)) {
            continue;
        }
        struct problem p = problem_new(&SHAPES[5]);
        fill_cell(&p, 40, NAN, NAN);
        attend(level, &p.args);
        for (size_t i = 0; i < p.args.n_tokens * p.args.out_stride; i++) {
            assert_true(isnan(p.out[i]));
        }
        problem_free(&p);
    }
}

/* Scores of +-1e5 or so: weights of 0 and 1, which must neither overflow nor vanish all together. */
static void huge_scores_select_the_largest(void **state)
{
    (void)state;
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (!cpu_level_available(level)) {
            continue;
        }
        struct problem p = problem_new(&SHAPES[4]);
        p.args.scale = 1e5f;
        attend(level, &p.args);
        double expected[64];
        for (uint32_t t = 0; t < p.args.n_tokens; t++) {
            reference(&p, t, 1, expected);
            for (size_t i = 0; i < 64; i++) {
                assert_true(fabs((double)p.out[t * p.args.out_stride + 64 + i] - expected[i]) < 1e-5);
            }
        }
        problem_free(&p);
    }
}

static void scores_of_minus_infinity_count_for_nothing(void **state)
{
    (void)state;
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (!cpu_level_available(level)) {
            continue;
        }
        struct problem p = problem_new(&SHAPES[2]);
        for (size_t i = 0; i < p.args.q_stride; i++) {
            p.q[i] = 1.0f;
        }
        for (uint32_t c = 0; c < p.n_cells; c++) {
            fill_cell(&p, c, -INFINITY, 1.0f);
        }
        attend(level, &p.args);
        for (size_t i = 0; i < p.args.out_stride; i++) {
            assert_true(p.out[i] == 0.0f);
        }
        problem_free(&p);
    }
}

/* The cells are read as F32 rows that hold the values they stand for. */
static void check_types(enum cpu_level level, const struct shape *shape)
{
    struct problem p = problem_new(shape);
    attend(level, &p.args);
    struct attention_args args = p.args;
    args.type = KV_F32;
    args.k = p.k;
    args.v = p.v;
    args.k_head_stride = shape->head_dim_k * sizeof(float);
    args.v_head_stride = shape->head_dim_v * sizeof(float);
    args.k_row_stride = args.k_head_stride * shape->n_kv_head;
    args.v_row_stride = args.v_head_stride * shape->n_kv_head;
    float *out = attend_new(level, &args);
    assert_same_bits(out, p.out, p.args.n_tokens * p.args.out_stride, shape->name);
    free(out);
    problem_free(&p);
}

static void type_of_the_cache_changes_no_bit_but_by_rounding_its_values(void **state)
{
    (void)state;
    at_each_level(check_types);
}

static uint32_t random_below(uint32_t n)
{
    return (uint32_t)(random_float(0.0f, 1.0f) * (float)n) % n;
}

static struct shape random_shape(void)
{
    static const uint32_t GROUPS[] = {1, 1, 2, 3, 4, 5, 8, 16, 40};
    struct shape s = {.name = "random"};
    s.n_kv_head = 1 + random_below(3);
    s.n_head = s.n_kv_head * GROUPS[random_below(sizeof(GROUPS) / sizeof(GROUPS[0]))];
    s.n_tokens = 1 + random_below(random_below(2) == 0 ? 4 : 50);
    s.first_pos = random_below(random_below(2) == 0 ? 70 : 900);
    s.head_dim_k = 1 + random_below(150);
    s.head_dim_v = random_below(2) == 0 ? s.head_dim_k : 1 + random_below(150);
    s.window = random_below(2) == 0 ? 0 : 1 + random_below(400);
    s.window_in_chunks = random_below(4) == 0;
    s.sinks = random_below(2) == 0;
    s.type = (enum kv_type)random_below(KV_N_TYPES);
    return s;
}

enum { N_RANDOM_SHAPES = THINNED(40, 4) };

static void random_shapes_keep_all_of_this(void **state)
{
    (void)state;
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (!cpu_level_available(level)) {
            continue;
        }
        random_state = 99;
        for (int i = 0; i < N_RANDOM_SHAPES; i++) {
            struct shape s = random_shape();
            check_reference(level, &s);
            check_alone(level, &s);
            check_ungrouped(level, &s);
            check_types(level, &s);
        }
    }
}

/* Positions in any order, with gaps, more than once and before all cells: a token's result is its own. */
static void positions_may_come_in_any_order(void **state)
{
    (void)state;
    static const int32_t POSITIONS[] = {700, 3, 3, -1, 256, 255, 701, 64, 63, 0, 511, 512, 700};
    enum { N = sizeof(POSITIONS) / sizeof(POSITIONS[0]) };
    const struct shape shape = {"any order", N, 700, 12, 2, 64, 64, 300, true, KV_F16, false};
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (!cpu_level_available(level)) {
            continue;
        }
        struct problem p = problem_new(&shape);
        memcpy(p.pos, POSITIONS, sizeof(POSITIONS));
        attend(level, &p.args);
        for (uint32_t t = 0; t < N; t++) {
            struct attention_args alone = p.args;
            alone.n_tokens = 1;
            alone.q += t * alone.q_stride;
            alone.pos += t;
            float *out = attend_new(level, &alone);
            assert_same_bits(out, p.out + t * p.args.out_stride, p.args.out_stride, shape.name);
            free(out);
        }
        problem_free(&p);
    }
}

/* A long context of one kv head is work for many threads; so are a few tokens of it. */
static void few_tokens_of_a_long_context_are_many_items(void **state)
{
    (void)state;
    int32_t pos[512];
    struct attention_args args = {
        .pos = pos, .n_head = 32, .n_kv_head = 4, .head_dim_k = 128, .head_dim_v = 128};
    for (uint32_t n = 1; n <= 512; n *= 2) {
        args.n_tokens = n;
        for (uint32_t t = 0; t < n; t++) {
            pos[t] = (int32_t)(8000 + t);
        }
        struct attention_work work = attention_work_of(&args);
        assert_true(work.n_items >= (n == 8 ? 32 : 64));
        assert_true(work.n_parts <= ATTENTION_MAX_SEGMENTS);
    }
}

/* What a run plans for its longest chunk and context does for every call. */
static void planned_partials_suffice_for_smaller_calls(void **state)
{
    (void)state;
    random_state = 5;
    int32_t pos[64];
    for (int i = 0; i < 2000; i++) {
        struct shape s = random_shape();
        uint32_t n_cells = 1 + random_below(20000);
        struct attention_args args = {.pos = pos,
                                      .n_tokens = 64,
                                      .n_head = s.n_head,
                                      .n_kv_head = s.n_kv_head,
                                      .head_dim_k = s.head_dim_k,
                                      .head_dim_v = s.head_dim_v,
                                      .window = s.window};
        size_t planned = attention_partial_floats(&args, n_cells);
        args.n_tokens = 1 + random_below(64);
        for (uint32_t t = 0; t < args.n_tokens; t++) {
            pos[t] = (int32_t)random_below(n_cells);
        }
        struct attention_work work = attention_work_of(&args);
        size_t rows = (size_t)args.n_tokens * args.n_head;
        size_t used = work.n_parts > 1 ? rows * work.n_parts * (args.head_dim_v + 2) : 0;
        assert_true(used <= planned);
    }
}

/* NaN and infinities in one token's q: its own output is NaN, all others keep their bits. */
static void token_with_nan_harms_no_other(void **state)
{
    (void)state;
    static const float BAD[] = {NAN, INFINITY, -INFINITY};
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (!cpu_level_available(level)) {
            continue;
        }
        for (size_t b = 0; b < 3; b++) {
            struct problem p = problem_new(&SHAPES[5]);
            attend(level, &p.args);
            size_t bad = 4 * p.args.q_stride + 3 * (size_t)p.args.head_dim_k;
            for (size_t i = 0; i < p.args.head_dim_k; i++) {
                p.q[bad + i] = BAD[b];
            }
            float *out = attend_new(level, &p.args);
            size_t row = 4 * p.args.out_stride + 3 * (size_t)p.args.head_dim_v;
            assert_same_bits(out, p.out, row, "before");
            assert_true(isnan(out[row]) && isnan(out[row + p.args.head_dim_v - 1]));
            size_t after = row + p.args.head_dim_v;
            assert_same_bits(out + after, p.out + after, p.args.n_tokens * p.args.out_stride - after,
                             "after");
            free(out);
            problem_free(&p);
        }
    }
}

static void cache_row_is_as_long_as_its_values(void **state)
{
    (void)state;
    assert_int_equal(kv_row_bytes(KV_F32, 128), 512);
    assert_int_equal(kv_row_bytes(KV_F16, 128), 256);
    assert_int_equal(kv_row_bytes(KV_F16, 7), 14);
    assert_int_equal(kv_row_bytes(KV_Q8_0, 128), 4 * 34);
    assert_int_equal(kv_row_bytes(KV_Q8_0, 80), 3 * 34);
    assert_int_equal(kv_row_bytes(KV_Q8_0, 1), 34);
}

static void q8_0_row_is_near_its_values_and_the_same_at_every_level(void **state)
{
    (void)state;
    enum { N = 80 };
    float *x = random_floats(N, -3.0f, 3.0f);
    unsigned char row[3 * 34];
    float back[N];
    store_row(KV_Q8_0, row, x, N);
    load_row(KV_Q8_0, row, back, N);
    for (uint32_t i = 0; i < N; i++) {
        assert_true(fabsf(back[i] - x[i]) <= 3.0f / 127.0f * 0.51f);
    }
    for (size_t i = 16; i < 32; i++) {
        assert_int_equal(row[2 * 34 + 2 + i], 0);
    }
    for (enum cpu_level level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (!cpu_level_available(level)) {
            continue;
        }
        unsigned char other[sizeof(row)];
        kv_row_store(KV_Q8_0, vector_ops_get(level), matmul_kernels_get(level), other, x, N);
        assert_memory_equal(other, row, sizeof(row));
    }
    x[40] = INFINITY;
    store_row(KV_Q8_0, row, x, N);
    load_row(KV_Q8_0, row, back, N);
    for (uint32_t i = 0; i < N; i++) {
        assert_true(isnan(back[i]) == (i / 32 == 1));
    }
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_matches_double_precision),
        cmocka_unit_test(token_alone_gives_the_bits_it_has_in_a_chunk),
        cmocka_unit_test(cells_outside_the_window_or_in_the_future_leave_no_trace),
        cmocka_unit_test(head_does_not_depend_on_the_others_of_its_group),
        cmocka_unit_test(layout_and_alignment_of_the_cache_change_no_bit),
        cmocka_unit_test(nothing_is_read_past_the_last_visible_cell),
        cmocka_unit_test(token_without_cells_gives_zero),
        cmocka_unit_test(nan_in_a_visible_cell_reaches_the_output),
        cmocka_unit_test(huge_scores_select_the_largest),
        cmocka_unit_test(scores_of_minus_infinity_count_for_nothing),
        cmocka_unit_test(type_of_the_cache_changes_no_bit_but_by_rounding_its_values),
        cmocka_unit_test(random_shapes_keep_all_of_this),
        cmocka_unit_test(positions_may_come_in_any_order),
        cmocka_unit_test(few_tokens_of_a_long_context_are_many_items),
        cmocka_unit_test(planned_partials_suffice_for_smaller_calls),
        cmocka_unit_test(token_with_nan_harms_no_other),
        cmocka_unit_test(cache_row_is_as_long_as_its_values),
        cmocka_unit_test(q8_0_row_is_near_its_values_and_the_same_at_every_level),
    };
    scalar_matmul = matmul_kernels_get(CPU_SCALAR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
