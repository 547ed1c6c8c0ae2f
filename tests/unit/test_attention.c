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
#include "kernels/vector_ops.h"

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
};

static const struct shape SHAPES[] = {
    {"first token", 1, 0, 4, 4, 64, 64, 0, false, KV_F32},
    {"one block less one", 1, 30, 4, 2, 64, 64, 0, false, KV_F32},
    {"one block", 1, 31, 4, 2, 64, 64, 0, false, KV_F16},
    {"one block and one", 1, 32, 4, 2, 64, 64, 0, true, KV_F16},
    {"prefill from 0", 70, 0, 4, 1, 64, 64, 0, false, KV_F32},
    {"prefill in the middle", 9, 91, 8, 2, 128, 128, 0, false, KV_F16},
    {"groups of 3", 3, 45, 6, 2, 80, 80, 0, false, KV_F16},
    {"groups of 5", 2, 77, 10, 2, 96, 64, 0, true, KV_F32},
    {"groups of 7", 2, 200, 14, 2, 112, 112, 0, false, KV_F16},
    {"groups of 8, window, sinks", 5, 300, 16, 2, 64, 64, 128, true, KV_F16},
    {"groups of 16, dims as MLA", 2, 66, 16, 1, 576, 512, 0, false, KV_F16},
    {"value dim below key dim", 3, 40, 4, 4, 192, 128, 0, false, KV_F32},
    {"odd dims", 4, 50, 6, 3, 13, 7, 0, true, KV_F16},
    {"odd dims, F32", 4, 50, 7, 1, 33, 31, 20, true, KV_F32},
    {"dims below a register", 4, 37, 3, 1, 3, 1, 0, false, KV_F16},
    {"window of one", 3, 64, 4, 2, 24, 24, 1, false, KV_F32},
    {"window within a block", 3, 61, 4, 2, 40, 40, 7, true, KV_F16},
    {"window larger than the past", 6, 3, 4, 2, 64, 64, 100, false, KV_F32},
    {"window of two blocks", 40, 10, 2, 2, 64, 64, 64, false, KV_F16},
};
enum { N_SHAPES = sizeof(SHAPES) / sizeof(SHAPES[0]) };

/* A shape filled with values; cells as [cell][kv head][dim]. */
struct problem {
    struct attention_args args;
    uint32_t n_cells;
    float *q, *k, *v; /* k and v as the kernels see them: rounded to F16 where the cache is */
    uint16_t *k_half, *v_half;
    float *sinks, *out;
    int32_t *pos;
};

static float *kv_values(size_t n, uint16_t **half, float magnitude)
{
    float *x = random_floats(n, -magnitude, magnitude);
    *half = allocate(n * sizeof(uint16_t));
    return x;
}

static void round_to_half(float *x, uint16_t *half, size_t n)
{
    const struct vector_ops *ops = vector_ops_get(CPU_SCALAR);
    ops->f32_to_f16(half, x, n);
    ops->f16_to_f32(x, half, n);
}

static struct problem problem_new(const struct shape *s)
{
    uint32_t n_cells = s->first_pos + s->n_tokens + 3;
    size_t n_k = (size_t)n_cells * s->n_kv_head * s->head_dim_k;
    size_t n_v = (size_t)n_cells * s->n_kv_head * s->head_dim_v;
    struct problem p = {.n_cells = n_cells};
    p.q = random_floats((size_t)s->n_tokens * s->n_head * s->head_dim_k, -2.0f, 2.0f);
    p.k = kv_values(n_k, &p.k_half, 2.0f);
    p.v = kv_values(n_v, &p.v_half, 1.0f);
    if (s->type == KV_F16) {
        round_to_half(p.k, p.k_half, n_k);
        round_to_half(p.v, p.v_half, n_v);
    }
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
                                     .k = s->type == KV_F16 ? (const void *)p.k_half : p.k,
                                     .v = s->type == KV_F16 ? (const void *)p.v_half : p.v,
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
                                     .sinks = s->sinks ? p.sinks : NULL};
    return p;
}

static void problem_free(struct problem *p)
{
    free(p->q);
    free(p->k);
    free(p->v);
    free(p->k_half);
    free(p->v_half);
    free(p->sinks);
    free(p->out);
    free(p->pos);
}

static void attend(enum cpu_level level, const struct attention_args *args)
{
    const struct attention_kernels *kernels = attention_kernels_get(level);
    assert_int_equal(kernels->level, level);
    float *scratch = allocate(attention_scratch_floats(args) * sizeof(float));
    for (uint32_t item = 0; item < attention_n_items(args); item++) {
        kernels->item(args, item, scratch);
    }
    free(scratch);
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

static void poison_cell(struct problem *p, uint32_t cell)
{
    const struct attention_args *a = &p->args;
    size_t n_k = (size_t)a->n_kv_head * a->head_dim_k;
    size_t n_v = (size_t)a->n_kv_head * a->head_dim_v;
    for (size_t i = 0; i < n_k; i++) {
        p->k[cell * n_k + i] = NAN;
        p->k_half[cell * n_k + i] = 0x7e00;
    }
    for (size_t i = 0; i < n_v; i++) {
        p->v[cell * n_v + i] = NAN;
        p->v_half[cell * n_v + i] = 0x7e00;
    }
}

static void check_invisible_cells(enum cpu_level level, const struct shape *shape)
{
    struct problem p = problem_new(shape);
    uint32_t last = shape->n_tokens - 1;
    attend(level, &p.args);
    for (uint32_t c = 0; c < p.n_cells; c++) {
        if (!sees(&p.args, last, c)) {
            poison_cell(&p, c);
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
    size_t unit = kv_row_bytes(shape->type, 1);
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

/* A copy that ends where memory ends. */
static char *copy_before_guard(const void *bytes, size_t n, void **map, size_t *map_bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t room = (n + page - 1) / page * page;
    *map_bytes = room + page;
    *map = mmap(NULL, *map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(*map != MAP_FAILED);
    assert_int_equal(mprotect((char *)*map + room, page, PROT_NONE), 0);
    return memcpy((char *)*map + room - n, bytes, n);
}

/* Fails by a segmentation fault. */
static void check_no_read_ahead(enum cpu_level level, const struct shape *shape)
{
    struct problem p = problem_new(shape);
    attend(level, &p.args);
    size_t n_visible = shape->first_pos + shape->n_tokens;
    void *maps[2];
    size_t map_bytes[2];
    struct attention_args args = p.args;
    args.k = copy_before_guard(args.k, n_visible * args.k_row_stride, &maps[0], &map_bytes[0]);
    args.v = copy_before_guard(args.v, n_visible * args.v_row_stride, &maps[1], &map_bytes[1]);
    float *out = attend_new(level, &args);
    assert_same_bits(out, p.out, p.args.n_tokens * p.args.out_stride, shape->name);
    free(out);
    for (size_t i = 0; i < 2; i++) {
        munmap(maps[i], map_bytes[i]);
    }
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
        poison_cell(&p, 40);
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
        for (size_t i = 0; i < (size_t)p.n_cells * p.args.n_kv_head * p.args.head_dim_k; i++) {
            p.k_half[i] = 0xfc00;
        }
        attend(level, &p.args);
        for (size_t i = 0; i < p.args.out_stride; i++) {
            assert_true(p.out[i] == 0.0f);
        }
        problem_free(&p);
    }
}

static void cache_row_is_as_long_as_its_values(void **state)
{
    (void)state;
    assert_int_equal(kv_row_bytes(KV_F32, 128), 512);
    assert_int_equal(kv_row_bytes(KV_F16, 128), 256);
    assert_int_equal(kv_row_bytes(KV_F16, 7), 14);
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
        cmocka_unit_test(cache_row_is_as_long_as_its_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
