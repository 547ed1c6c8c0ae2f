/* Choice of codecs: a slow drive is worth unpacking, a fast one is not, and noise never is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "storage/gguf.h"
#include "storage/pack_choice.h"

enum { F32 = 0, Q4_K = 12, BF16 = 30, SAMPLE_BYTES = 1 << 20 };
static const struct pack_machine SLOW = {.read_rate = 1e9, .n_cores = 2, .n_threads = 2};
static const struct pack_machine FAST = {.read_rate = 12e9, .n_cores = 2, .n_threads = 2};

/* A BF16 part that floats halve more or less, at 4 GB/s; bytes less so but quickly. */
static struct pack_choice kind_of(enum shard_part part, uint64_t bytes, double ratio, double rate)
{
    struct pack_choice choice = {
        .part = part, .type = BF16, .model_bytes = bytes, .expert_bytes = 9 << 20, .codec = CHUNK_ZSTD_BITS};
    choice.figures[CHUNK_RAW] = (struct pack_figures){true, 1, 20e9, 20e9, 0};
    choice.figures[CHUNK_ZSTD_FLOATS] = (struct pack_figures){true, ratio, rate, 3e8, 0};
    return choice;
}

static void a_slow_drive_is_worth_it_and_a_fast_one_is_not(void **state)
{
    (void)state;
    struct pack_choice choice = kind_of(SHARD_GATE, 1 << 30, 0.66, 4e9);
    pack_choose(&choice, 1, &SLOW, PACK_FASTEST);
    assert_int_equal(choice.codec, CHUNK_ZSTD_FLOATS);
    assert_true(choice.figures[CHUNK_ZSTD_FLOATS].gain > 1.25 &&
                choice.figures[CHUNK_ZSTD_FLOATS].gain < 1 / 0.66);
    assert_true(pack_gain(&choice, 1, &SLOW) > 1.25);
    pack_choose(&choice, 1, &FAST, PACK_FASTEST);
    assert_int_equal(choice.codec, CHUNK_RAW);
    assert_true(choice.figures[CHUNK_ZSTD_FLOATS].gain < 1);
    assert_true(pack_gain(&choice, 1, &FAST) == 1);
}

static void more_cores_unpack_for_faster_drives(void **state)
{
    (void)state;
    struct pack_machine machine = {.read_rate = 6e9, .n_cores = 2, .n_threads = 2};
    struct pack_choice choice = kind_of(SHARD_GATE, 1 << 30, 0.66, 4e9);
    pack_choose(&choice, 1, &machine, PACK_FASTEST);
    assert_int_equal(choice.codec, CHUNK_RAW);
    machine.n_cores = 16;
    machine.n_threads = 8;
    pack_choose(&choice, 1, &machine, PACK_FASTEST);
    assert_int_equal(choice.codec, CHUNK_ZSTD_FLOATS);
    machine.n_threads = 1;
    pack_choose(&choice, 1, &machine, PACK_FASTEST);
    assert_int_equal(choice.codec, CHUNK_RAW);
}

static void two_percent_are_not_worth_it_at_any_speed(void **state)
{
    (void)state;
    struct pack_machine slowest = {.read_rate = 1e6, .n_cores = 64, .n_threads = 64};
    struct pack_choice choice = kind_of(SHARD_GATE, 1 << 30, 0.98, 20e9);
    pack_choose(&choice, 1, &slowest, PACK_FASTEST);
    assert_int_equal(choice.codec, CHUNK_RAW);
    pack_choose(&choice, 1, &slowest, PACK_SMALLEST);
    assert_int_equal(choice.codec, CHUNK_RAW);
}

/* What one tensor saves can be lost by the others, which are copied where they were read in place. */
static void a_small_part_alone_is_not_worth_it(void **state)
{
    (void)state;
    struct pack_choice choices[] = {kind_of(SHARD_GATE_BIAS, 1 << 20, 0.3, 4e9),
                                    kind_of(SHARD_DOWN, 1 << 30, 1, 4e9)};
    pack_choose(choices, 2, &SLOW, PACK_FASTEST);
    assert_true(choices[0].figures[CHUNK_ZSTD_FLOATS].gain > 1.25);
    assert_int_equal(choices[0].codec, CHUNK_RAW);
    choices[0].model_bytes = 1 << 30;
    pack_choose(choices, 2, &SLOW, PACK_FASTEST);
    assert_int_equal(choices[0].codec, CHUNK_ZSTD_FLOATS);
    assert_int_equal(choices[1].codec, CHUNK_RAW);
}

static void the_best_of_several_by_the_goal(void **state)
{
    (void)state;
    struct pack_choice choice = kind_of(SHARD_GATE, 1 << 30, 0.66, 1e8);
    choice.figures[CHUNK_ZSTD_BYTES] = (struct pack_figures){true, 0.8, 8e9, 3e8, 0};
    choice.figures[CHUNK_ZSTD_BITS] = (struct pack_figures){false, 0.1, 8e9, 3e8, 0};
    pack_choose(&choice, 1, &SLOW, PACK_FASTEST);
    assert_int_equal(choice.codec, CHUNK_ZSTD_BYTES);
    pack_choose(&choice, 1, &FAST, PACK_SMALLEST);
    assert_int_equal(choice.codec, CHUNK_ZSTD_FLOATS);
}

static uint32_t random_state = 1;

static uint32_t random_u32(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

static struct pack_choice measured(uint32_t type, uint32_t mask, uint32_t bytes)
{
    uint8_t *data = malloc(SAMPLE_BYTES);
    assert_non_null(data);
    for (uint32_t i = 0; i < SAMPLE_BYTES; i += 2) {
        uint32_t word = random_u32() >> 8 & mask;
        data[i] = (uint8_t)word;
        data[i + 1] = (uint8_t)(word >> 8);
    }
    uint32_t stride = gguf_type_find(type)->bytes;
    uint64_t part = bytes / stride / 2 * stride;
    const struct pack_sample samples[] = {{data, part}, {data + part, bytes / stride * stride - part}};
    const struct pack_kind kind = {.part = SHARD_GATE,
                                   .type = type,
                                   .model_bytes = 1 << 30,
                                   .expert_bytes = 9 << 20,
                                   .samples = samples,
                                   .n_samples = 2};
    struct pack_choice choice;
    assert_int_equal(pack_measure(&choice, &kind, 1, NULL), PS_OK);
    free(data);
    return choice;
}

static void noise_stays_raw_even_from_a_tape(void **state)
{
    (void)state;
    static const struct pack_machine tape = {.read_rate = 1e5, .n_cores = 16, .n_threads = 8};
    static const uint32_t types[] = {F32, Q4_K, BF16};
    for (int i = 0; i < 3; i++) {
        struct pack_choice choice = measured(types[i], 0xffff, SAMPLE_BYTES);
        for (int goal = PACK_FASTEST; goal <= PACK_SMALLEST; goal++) {
            pack_choose(&choice, 1, &tape, goal);
            assert_int_equal(choice.codec, CHUNK_RAW);
        }
    }
}

static void measures_what_can_be_had(void **state)
{
    (void)state;
    static const struct pack_machine tape = {.read_rate = 1e5, .n_cores = 2, .n_threads = 2};
    struct pack_choice choice = measured(BF16, 0x03ff, SAMPLE_BYTES);
    for (uint32_t codec = 0; codec < CHUNK_N_CODECS; codec++) {
        assert_true(choice.figures[codec].measured);
        assert_true(choice.figures[codec].decode_rate > 1e6 && choice.figures[codec].encode_rate > 1e5);
    }
    assert_true(choice.figures[CHUNK_RAW].ratio == 1);
    assert_true(choice.figures[CHUNK_ZSTD_BYTES].ratio > 0.62 &&
                choice.figures[CHUNK_ZSTD_BYTES].ratio < 0.65);
    pack_choose(&choice, 1, &tape, PACK_FASTEST);
    assert_int_not_equal(choice.codec, CHUNK_RAW);

    choice = measured(Q4_K, 0x03ff, 144 * 3); /* less than a chunk */
    assert_false(choice.figures[CHUNK_ZSTD_FLOATS].measured);
    assert_true(choice.figures[CHUNK_ZSTD_BITS].measured);
}

static void bad_samples_and_levels_are_named(void **state)
{
    (void)state;
    static const uint8_t data[300];
    const struct pack_sample odd = {data, 145}, good = {data, 288}, empty = {data, 0};
    const struct {
        struct pack_sample sample;
        uint32_t n, type;
        int level;
        const char *text;
    } cases[] = {
        {odd, 1, Q4_K, 3, "145 bytes are not whole blocks of q4_K"},
        {empty, 1, Q4_K, 3, "0 bytes"},
        {good, 0, Q4_K, 3, "no samples of q4_K"},
        {good, 1, 31, 3, "unknown block type 31"},
        {good, 1, Q4_K, 23, "level 23"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct pack_kind kind = {.type = cases[i].type, .samples = &cases[i].sample, .n_samples = cases[i].n};
        struct pack_choice choice;
        struct ps_error err = {0};
        assert_int_equal(pack_measure(&choice, &kind, cases[i].level, &err), PS_ERR_ARGUMENT);
        if (!strstr(err.message, cases[i].text))
            fail_msg("\"%s\" lacks \"%s\"", err.message, cases[i].text);
    }
}

static void json_can_be_read_and_its_length_is_known(void **state)
{
    (void)state;
    struct pack_choice choices[] = {kind_of(SHARD_GATE, 1 << 30, 0.66, 4e9),
                                    kind_of(SHARD_DOWN_BIAS, 5, 1, 4e9)};
    pack_choose(choices, 2, &SLOW, PACK_FASTEST);
    size_t length = pack_choice_json(choices, 2, NULL, 0);
    char *text = malloc(length + 1), *less = malloc(length);
    assert_non_null(text);
    assert_non_null(less);
    assert_int_equal(pack_choice_json(choices, 2, text, length + 1), length);
    assert_int_equal(strlen(text), length);
    assert_int_equal(pack_choice_json(choices, 2, less, length), length);
    json_t *root = json_loads(text, 0, NULL);
    assert_int_equal(json_array_size(root), 2);
    json_t *gate = json_array_get(root, 0);
    assert_string_equal(json_string_value(json_object_get(gate, "part")), "gate");
    assert_string_equal(json_string_value(json_object_get(gate, "type")), "bf16");
    assert_string_equal(json_string_value(json_object_get(gate, "codec")), "zstd-floats");
    json_t *figures = json_object_get(json_object_get(gate, "codecs"), "zstd-floats");
    assert_true(json_number_value(json_object_get(figures, "ratio")) == 0.66);
    assert_true(json_number_value(json_object_get(figures, "decode_mb_s")) == 4000);
    assert_true(json_number_value(json_object_get(figures, "predicted_gain")) > 1.2);
    assert_null(json_object_get(json_object_get(gate, "codecs"), "zstd-bits"));
    json_decref(root);
    free(text);
    free(less);
    for (enum shard_part part = 0; part < SHARD_N_PARTS; part++)
        assert_non_null(shard_part_name(part));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slow_drive_is_worth_it_and_a_fast_one_is_not),
        cmocka_unit_test(more_cores_unpack_for_faster_drives),
        cmocka_unit_test(two_percent_are_not_worth_it_at_any_speed),
        cmocka_unit_test(a_small_part_alone_is_not_worth_it),
        cmocka_unit_test(the_best_of_several_by_the_goal),
        cmocka_unit_test(noise_stays_raw_even_from_a_tape),
        cmocka_unit_test(measures_what_can_be_had),
        cmocka_unit_test(bad_samples_and_levels_are_named),
        cmocka_unit_test(json_can_be_read_and_its_length_is_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
