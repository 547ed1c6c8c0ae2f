/* The KV cache: what layers with a window, with a state, and with neither keep and forget. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/kv_cache.h"

enum { HEADS = 2, DIM = 8, WINDOW = 5, STATE = 3, FULL = 0, WINDOWED = 1, RECURRENT = 2, N_LAYERS = 3 };
enum { CTX = 2000, CHUNK = 4 };

static struct layer_hparams layers[N_LAYERS];

static struct hparams three_layers(void)
{
    memset(layers, 0, sizeof(layers));
    for (uint32_t il = 0; il < N_LAYERS; il++)
        layers[il] =
            (struct layer_hparams){.n_head = HEADS, .n_kv_head = HEADS, .head_dim_k = DIM, .head_dim_v = DIM};
    layers[WINDOWED].window = WINDOW;
    layers[RECURRENT].recurrent = true;
    layers[RECURRENT].state_floats = STATE;
    return (struct hparams){.n_layers = N_LAYERS, .layer = layers};
}

static void fill(struct kv_cache *kv, uint32_t position)
{
    for (uint32_t il = 0; il < RECURRENT; il++) {
        for (uint32_t h = 0; h < HEADS; h++) {
            float row[DIM];
            for (uint32_t i = 0; i < DIM; i++)
                row[i] = (float)(position * 100 + il * 10 + h);
            memcpy(kv_cache_k(&kv->layers[il], h, position), row, sizeof(row));
            memcpy(kv_cache_v(&kv->layers[il], h, position), row, sizeof(row));
        }
    }
}

static float held(uint8_t *row)
{
    float x[DIM];
    memcpy(x, row, sizeof(x));
    assert_true(x[0] == x[DIM - 1]);
    return x[0];
}

static void sizes_follow_from_the_layers(void **state)
{
    (void)state;
    struct hparams hp = three_layers();
    uint64_t cell = 2ull * HEADS * DIM * sizeof(float);
    assert_int_equal(kv_token_bytes(&hp, KV_F32), cell);
    assert_int_equal(kv_fixed_bytes(&hp, KV_F32), WINDOW * cell + STATE * sizeof(float));
    uint64_t windowed = (WINDOW + attention_window_step(WINDOW) + CHUNK) * cell;
    uint64_t bytes = kv_cache_bytes(&hp, KV_F32, CTX, CHUNK);
    assert_in_range(bytes, CTX * cell + windowed + STATE * sizeof(float), CTX * cell + windowed + 512);
    layers[FULL].v_in_k = true;
    layers[FULL].index_dim = 4;
    assert_int_equal(kv_token_bytes(&hp, KV_F32), cell / 2 + 4 * sizeof(float));
}

static void a_window_keeps_what_the_next_token_sees(void **state)
{
    (void)state;
    struct hparams hp = three_layers();
    struct kv_cache kv;
    assert_int_equal(kv_cache_init(&kv, &hp, KV_F32, CTX, CHUNK), 0);
    uint32_t moves = 0;
    for (uint32_t n = 1; kv.n_used + n <= CTX; n = n % CHUNK + 1) {
        uint32_t first = kv.layers[WINDOWED].first;
        kv_cache_make_room(&kv, n);
        moves += kv.layers[WINDOWED].first != first;
        assert_int_equal(kv.layers[WINDOWED].first % attention_window_step(WINDOW), 0);
        for (uint32_t i = 0; i < n; i++)
            fill(&kv, kv.n_used + i);
        kv.n_used += n;
        for (uint32_t back = 1; back <= WINDOW && back <= kv.n_used; back++) {
            uint32_t position = kv.n_used - back;
            for (uint32_t h = 0; h < HEADS; h++) {
                assert_true(held(kv_cache_k(&kv.layers[WINDOWED], h, position)) ==
                            (float)(position * 100 + 10 + h));
                assert_true(held(kv_cache_v(&kv.layers[WINDOWED], h, position)) ==
                            (float)(position * 100 + 10 + h));
            }
        }
        assert_true(held(kv_cache_k(&kv.layers[FULL], 1, 0)) == 1.0f);
    }
    assert_in_range(moves, 2, CTX / attention_window_step(WINDOW));
    kv_cache_deinit(&kv);
}

static void forgetting_goes_back_as_far_as_it_can(void **state)
{
    (void)state;
    struct hparams hp = three_layers();
    struct kv_cache kv;
    hp.n_layers = 2; /* no state */
    assert_int_equal(kv_cache_init(&kv, &hp, KV_F32, CTX, CHUNK), 0);
    for (uint32_t i = 0; i < 1000; i++) {
        kv_cache_make_room(&kv, 1);
        kv.n_used++;
    }
    uint32_t first = kv.layers[WINDOWED].first;
    assert_in_range(first, 1, 1000);
    assert_int_equal(kv_cache_truncate(&kv, 1000), 1000);
    assert_int_equal(kv_cache_truncate(&kv, 999), 999);
    assert_int_equal(kv_cache_truncate(&kv, first + WINDOW - 1), first + WINDOW - 1); /* sees from first on */
    assert_int_equal(kv_cache_truncate(&kv, first + WINDOW - 2), 0);
    assert_int_equal(kv.layers[WINDOWED].first, 0);
    kv_cache_deinit(&kv);
}

static void a_state_goes_back_to_the_start_alone(void **state)
{
    (void)state;
    struct hparams hp = three_layers();
    struct kv_cache kv;
    assert_int_equal(kv_cache_init(&kv, &hp, KV_F32, CTX, CHUNK), 0);
    kv.n_used = 3;
    kv.layers[RECURRENT].state[STATE - 1] = 7.0f;
    assert_int_equal(kv_cache_truncate(&kv, 3), 3);
    assert_true(kv.layers[RECURRENT].state[STATE - 1] == 7.0f);
    assert_int_equal(kv_cache_truncate(&kv, 2), 0);
    assert_true(kv.layers[RECURRENT].state[STATE - 1] == 0.0f);
    kv_cache_deinit(&kv);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_follow_from_the_layers),
        cmocka_unit_test(a_window_keeps_what_the_next_token_sees),
        cmocka_unit_test(forgetting_goes_back_as_far_as_it_can),
        cmocka_unit_test(a_state_goes_back_to_the_start_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
