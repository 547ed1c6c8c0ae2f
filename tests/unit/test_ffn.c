/* Gated feed-forward networks: how often weights are read, and that tokens do not depend on those beside them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/forward_internal.h"
#include "runtime/synth_blocks.h"

enum { N_EMBD = 256, N_FF = 544 /* two tiles and a strip */, MAX_TOKENS = 300 };
enum { GATE, UP, DOWN, N_WEIGHTS };

/* ---- kernels that count ---- */

static const struct matmul_kernels *real;
static const void *counted[N_WEIGHTS]; /* data of the weights */
static atomic_uint products[N_WEIGHTS][N_FF];

static void count_and_multiply(const struct weight *w, uint64_t row_begin, uint64_t row_end,
                               enum act_type act, const void *acts, size_t act_stride, uint32_t n_tokens,
                               float *out, size_t out_stride)
{
    for (unsigned i = 0; i < N_WEIGHTS; i++) {
        for (uint64_t row = row_begin; row < row_end && w->data == counted[i]; row++)
            atomic_fetch_add(&products[i][row], 1);
    }
    real->matmul(w, row_begin, row_end, act, acts, act_stride, n_tokens, out, out_stride);
}

/* ---- one FFN over random weights ---- */

struct fixture {
    struct ps_model model;
    struct matmul_kernels kernels;
    struct layer layer;
    struct layer_hparams layer_hp;
    struct forward f;
    uint8_t *scratch;
    uint8_t *acts; /* [MAX_TOKENS] */
    size_t act_stride;
    float *out; /* [MAX_TOKENS][N_EMBD] */
};

static struct weight weight_new(uint32_t type, uint64_t n_rows, uint64_t n_cols, uint32_t tensor)
{
    struct weight w = {.format = block_format_find(type), .n_rows = n_rows, .n_cols = n_cols};
    w.row_bytes = block_row_bytes(w.format, n_cols);
    size_t bytes = n_rows * w.row_bytes;
    uint8_t *data = malloc(bytes);
    float gauss[SYNTH_GAUSS_SIZE];
    synth_gauss_table(gauss);
    struct synth_fill fill;
    assert_non_null(data);
    assert_true(synth_fill_init(&fill, type, 0.0f, 0.05f, gauss));
    size_t unit = synth_unit_bytes(fill.recipe);
    for (size_t at = 0; at < bytes; at += unit)
        synth_fill_unit(&fill, 1, tensor, at / unit, data + at, bytes - at < unit ? bytes - at : unit);
    synth_fill_deinit(&fill);
    w.data = data;
    return w;
}

/* For chunks of max_tokens; down's activations are rounded in blocks of another size than those of gate and up. */
static void fixture_init(struct fixture *x, enum ps_activations activations, uint32_t max_tokens,
                         unsigned threads)
{
    *x = (struct fixture){0};
    enum cpu_level level = cpu_level_best();
    real = matmul_kernels_get(level);
    x->kernels = (struct matmul_kernels){level, real->act_blocks, count_and_multiply};
    struct weight *w = x->layer.w;
    w[LT_FFN_GATE] = weight_new(BLOCK_Q4_K, N_FF, N_EMBD, GATE);
    w[LT_FFN_UP] = weight_new(BLOCK_Q4_K, N_FF, N_EMBD, UP);
    w[LT_FFN_DOWN] = weight_new(BLOCK_Q8_0, N_EMBD, N_FF, DOWN);
    for (unsigned i = 0; i < N_WEIGHTS; i++)
        counted[i] = w[LT_FFN_GATE + i].data;
    memset(products, 0, sizeof(products));
    x->layer_hp =
        (struct layer_hparams){.n_head = 1, .n_kv_head = 1, .head_dim_k = 64, .head_dim_v = 64, .n_ff = N_FF};
    x->model.hp = (struct hparams){.n_layers = 1, .n_embd = N_EMBD, .n_streams = 1, .layer = &x->layer_hp};
    x->model.arch = &ARCH_LLAMA;
    x->model.layers = &x->layer;
    x->model.act_mask = 1u << ACT_Q8_0 | 1u << ACT_Q8_K;
    x->model.params = (struct ps_model_params){.activations = activations, .ctx = MAX_TOKENS};
    x->model.matmul = &x->kernels;
    x->model.ops = vector_ops_get(level);
    assert_int_equal(thread_pool_new(&x->model.pool, threads), 0);
    x->f.model = &x->model;
    uint64_t bytes = scratch_layout(&x->f.s, NULL, &x->model, &x->model.params, max_tokens, threads);
    x->scratch = malloc(bytes);
    assert_non_null(x->scratch);
    scratch_layout(&x->f.s, x->scratch, &x->model, &x->model.params, max_tokens, threads);

    enum act_type type = model_act_type(&x->model, &w[LT_FFN_GATE]);
    x->act_stride = act_row_bytes(type, N_EMBD);
    x->acts = malloc(MAX_TOKENS * x->act_stride);
    x->out = malloc(MAX_TOKENS * N_EMBD * sizeof(float));
    assert_non_null(x->acts);
    assert_non_null(x->out);
    float row[N_EMBD];
    for (uint32_t i = 0; i < MAX_TOKENS * N_EMBD; i++) {
        row[i % N_EMBD] = (float)((int)(i * 2654435761u >> 16) % 1000) / 500.0f;
        if (i % N_EMBD == N_EMBD - 1)
            act_quantize(real, type, row, x->acts + i / N_EMBD * x->act_stride, N_EMBD);
    }
}

static void fixture_deinit(struct fixture *x)
{
    for (unsigned i = 0; i < N_WEIGHTS; i++)
        free((void *)(uintptr_t)x->layer.w[LT_FFN_GATE + i].data);
    thread_pool_free(x->model.pool);
    free(x->scratch);
    free(x->acts);
    free(x->out);
}

static void run(struct fixture *x, uint32_t first, uint32_t n)
{
    const struct weight *w = x->layer.w;
    struct ffn_job job = {.gate = w[LT_FFN_GATE],
                          .up = w[LT_FFN_UP],
                          .down = w[LT_FFN_DOWN],
                          .gate_acts = x->acts + first * x->act_stride,
                          .up_acts = x->acts + first * x->act_stride,
                          .gate_stride = x->act_stride,
                          .up_stride = x->act_stride,
                          .n_tokens = n,
                          .hidden = x->f.s.ff_hidden,
                          .out = x->out + (size_t)first * N_EMBD};
    run_ffns(&x->f, &job, 1);
}

/* ---- the promises ---- */

static const enum ps_activations kinds[] = {PS_ACTIVATIONS_AUTO, PS_ACTIVATIONS_F32};

static void each_row_is_multiplied_once_whatever_the_number_of_tokens(void **state)
{
    (void)state;
    static const uint32_t counts[] = {1, FFN_FEW_TOKENS, FFN_FEW_TOKENS + 1, MAX_TOKENS};
    for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        struct fixture x;
        fixture_init(&x, PS_ACTIVATIONS_AUTO, counts[i], 2);
        run(&x, 0, counts[i]);
        for (unsigned w = 0; w < N_WEIGHTS; w++) {
            for (uint64_t row = 0; row < x.layer.w[LT_FFN_GATE + w].n_rows; row++)
                assert_int_equal(products[w][row], 1);
        }
        fixture_deinit(&x);
    }
}

static void a_token_does_not_depend_on_those_beside_it(void **state)
{
    (void)state;
    for (unsigned kind = 0; kind < 2; kind++) {
        struct fixture alone;
        fixture_init(&alone, kinds[kind], 1, 1);
        for (uint32_t t = 0; t < MAX_TOKENS; t++)
            run(&alone, t, 1);
        static const uint32_t chunks[] = {7, FFN_FEW_TOKENS, 100, MAX_TOKENS};
        for (unsigned i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++) {
            struct fixture beside;
            fixture_init(&beside, kinds[kind], chunks[i], 3);
            for (uint32_t t = 0; t < MAX_TOKENS; t += chunks[i])
                run(&beside, t, MAX_TOKENS - t < chunks[i] ? MAX_TOKENS - t : chunks[i]);
            assert_memory_equal(beside.out, alone.out, MAX_TOKENS * N_EMBD * sizeof(float));
            fixture_deinit(&beside);
        }
        fixture_deinit(&alone);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_row_is_multiplied_once_whatever_the_number_of_tokens),
        cmocka_unit_test(a_token_does_not_depend_on_those_beside_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
