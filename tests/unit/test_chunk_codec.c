/* Chunk codec: what goes in comes out, in the same memory too; damaged chunks harm nobody. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "storage/chunk_blocks.h"
#include "storage/chunk_codec.h"
#include "storage/regroup.h"
#include "thinned.h"

static const uint32_t STRIDES[] = {1,  2,  3,  4,   8,   16,  17,  18,  22,  32,
                                   34, 84, 98, 110, 136, 144, 176, 210, 256, CHUNK_BYTES};
enum { N_STRIDES = sizeof(STRIDES) / sizeof(STRIDES[0]) };
static const uint32_t COUNTS[] = {1,  2,   7,   8,   9,   15,  16,  17,  31,   33,
                                  63, 127, 128, 129, 135, 136, 255, 257, 1000, UINT32_MAX};
enum { N_COUNTS = sizeof(COUNTS) / sizeof(COUNTS[0]) };

static uint32_t random_state = 1;

static uint32_t random_u32(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

/* Each byte of a stride with its own number of random bits, as in blocks of weights. */
static void fill(uint8_t *data, uint32_t bytes, uint32_t stride)
{
    for (uint32_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)((random_u32() >> 9 & 0xffu >> (i % stride * 5 + 3) % 9) + i % stride);
}

static uint32_t whole(uint32_t count, uint32_t stride)
{
    uint32_t most = CHUNK_BYTES / stride;
    return (count < most ? count : most) * stride;
}

/* Of exactly these bytes, so that a sanitizer sees an access past them. */
static uint8_t *exact(const uint8_t *data, uint32_t bytes)
{
    uint8_t *copy = malloc(bytes);
    assert_non_null(copy);
    if (data)
        memcpy(copy, data, bytes);
    return copy;
}

static void regrouping_is_its_definition_and_undone(void **state)
{
    (void)state;
    for (enum regrouping how = REGROUP_BYTES; how <= REGROUP_BITS; how++) {
        for (uint32_t s = 0; s < N_STRIDES; s++) {
            for (uint32_t c = 0; c < N_COUNTS && regroup_takes(how, STRIDES[s]); c++) {
                uint32_t stride = STRIDES[s], bytes = whole(COUNTS[c], stride);
                uint8_t *data = exact(NULL, bytes), *fast = exact(NULL, bytes), *plain = exact(NULL, bytes);
                fill(data, bytes, stride);
                regroup(how, stride, data, bytes, fast);
                regroup_plain(how, stride, data, bytes, plain);
                assert_memory_equal(fast, plain, bytes);
                memset(plain, 0xa5, bytes);
                regroup_undo_plain(how, stride, fast, bytes, plain);
                assert_memory_equal(plain, data, bytes);
                memset(plain, 0x5a, bytes);
                regroup_undo(how, stride, fast, bytes, plain);
                assert_memory_equal(plain, data, bytes);
                free(data);
                free(fast);
                free(plain);
            }
        }
    }
}

/* By hand: the format must not change with the code. */
static void regrouping_is_what_files_hold(void **state)
{
    (void)state;
    static const uint8_t data[] = {0x01, 0x80, 0x02, 0x40, 0x03, 0xc0};
    static const uint8_t bytes[] = {0x01, 0x02, 0x03, 0x80, 0x40, 0xc0};
    static const uint8_t floats[] = {0x03, 0x04, 0x07, 0x00, 0x80, 0x80};
    uint8_t out[16];
    regroup(REGROUP_BYTES, 2, data, sizeof(data), out);
    assert_memory_equal(out, bytes, sizeof(bytes));
    regroup(REGROUP_FLOATS, 2, data, sizeof(data), out);
    assert_memory_equal(out, floats, sizeof(floats));
    uint8_t eight[18] = {0}, planes[18];
    eight[2 * 3] = 0x10;     /* fourth stride, bit 4 */
    eight[2 * 7 + 1] = 0x01; /* eighth stride, bit 8 */
    eight[16] = 0x77;        /* a ninth */
    regroup(REGROUP_BITS, 2, eight, sizeof(eight), planes);
    uint8_t expected[18] = {[4] = 0x08, [8] = 0x80, [16] = 0x77};
    assert_memory_equal(planes, expected, sizeof(expected));
}

static void codecs_take_the_strides_they_say(void **state)
{
    (void)state;
    for (enum chunk_codec codec = CHUNK_RAW; codec < CHUNK_N_CODECS; codec++) {
        assert_non_null(chunk_codec_name(codec));
        assert_false(chunk_codec_takes(codec, 0));
        assert_false(chunk_codec_takes(codec, CHUNK_BYTES + 1));
        assert_true(chunk_codec_takes(codec, 2));
    }
    assert_null(chunk_codec_name(CHUNK_N_CODECS));
    assert_false(chunk_codec_takes(CHUNK_N_CODECS, 2));
    assert_true(chunk_codec_takes(CHUNK_ZSTD, 1));
    assert_true(chunk_codec_takes(CHUNK_ZSTD_FLOATS, 4));
    assert_false(chunk_codec_takes(CHUNK_ZSTD_FLOATS, 144));
    assert_false(chunk_codec_takes(CHUNK_ZSTD_BITS, 17));
    assert_true(chunk_level_valid(-5) && chunk_level_valid(1) && chunk_level_valid(22));
    assert_false(chunk_level_valid(23));
}

static void round_trip(struct chunk_encoder *encoder, struct chunk_decoder *decoder, enum chunk_codec codec,
                       uint32_t stride, uint32_t bytes, bool must_shrink)
{
    uint8_t *data = exact(NULL, bytes), *stored = exact(NULL, bytes), *again = exact(NULL, bytes);
    fill(data, bytes, stride);
    uint32_t n = chunk_encode(encoder, codec, stride, data, bytes, stored);
    assert_true(n < bytes);
    if (must_shrink)
        assert_true(n > 0);
    assert_int_equal(chunk_encode(encoder, codec, stride, data, bytes, again), n);
    assert_memory_equal(stored, again, n);
    if (n > 0) {
        uint8_t *src = exact(stored, n);
        memset(again, 0xee, bytes);
        assert_true(chunk_decode(decoder, codec, stride, src, n, again, bytes));
        assert_memory_equal(again, data, bytes);
        free(src);
    }
    free(data);
    free(stored);
    free(again);
}

static void every_codec_round_trips_every_stride_and_size(void **state)
{
    (void)state;
    static const int levels[] = {-4, 1, 3};
    struct chunk_decoder *decoder = chunk_decoder_new();
    assert_non_null(decoder);
    for (size_t l = 0; l < THINNED(sizeof(levels) / sizeof(levels[0]), 1); l++) {
        struct chunk_encoder *encoder = chunk_encoder_new(levels[l]);
        assert_non_null(encoder);
        for (enum chunk_codec codec = CHUNK_ZSTD; codec < CHUNK_N_CODECS; codec++) {
            for (uint32_t s = 0; s < N_STRIDES; s++) {
                for (uint32_t c = 0; c < N_COUNTS && chunk_codec_takes(codec, STRIDES[s]); c++) {
                    uint32_t bytes = whole(COUNTS[c], STRIDES[s]);
                    bool must_shrink = codec == CHUNK_ZSTD_BYTES && COUNTS[c] >= 1000 && STRIDES[s] < 256;
                    round_trip(encoder, decoder, codec, STRIDES[s], bytes, must_shrink);
                }
            }
        }
        chunk_encoder_free(encoder);
    }
    chunk_decoder_free(decoder);
}

static void output_is_the_same_from_any_encoder(void **state)
{
    (void)state;
    struct chunk_encoder *fresh = chunk_encoder_new(3), *used = chunk_encoder_new(3);
    uint8_t *data = exact(NULL, CHUNK_BYTES), *one = exact(NULL, CHUNK_BYTES),
            *two = exact(NULL, CHUNK_BYTES);
    fill(data, CHUNK_BYTES, 144);
    chunk_encode(used, CHUNK_ZSTD_BITS, 144, data, whole(UINT32_MAX, 144), one);
    fill(data, CHUNK_BYTES, 2);
    uint32_t n = chunk_encode(fresh, CHUNK_ZSTD_FLOATS, 2, data, CHUNK_BYTES, one);
    assert_true(n > 0);
    assert_int_equal(chunk_encode(used, CHUNK_ZSTD_FLOATS, 2, data, CHUNK_BYTES, two), n);
    assert_memory_equal(one, two, n);
    free(data);
    free(one);
    free(two);
    chunk_encoder_free(fresh);
    chunk_encoder_free(used);
}

static void noise_does_not_shrink_and_zeros_vanish(void **state)
{
    (void)state;
    struct chunk_encoder *encoder = chunk_encoder_new(3);
    uint8_t *data = exact(NULL, CHUNK_BYTES), *out = exact(NULL, CHUNK_BYTES);
    for (uint32_t i = 0; i < CHUNK_BYTES; i++)
        data[i] = (uint8_t)(random_u32() >> 11);
    for (enum chunk_codec codec = CHUNK_ZSTD; codec < CHUNK_N_CODECS; codec++)
        assert_int_equal(chunk_encode(encoder, codec, 2, data, CHUNK_BYTES, out), 0);
    memset(data, 0, CHUNK_BYTES);
    for (enum chunk_codec codec = CHUNK_ZSTD; codec < CHUNK_N_CODECS; codec++) {
        uint32_t n = chunk_encode(encoder, codec, 2, data, CHUNK_BYTES, out);
        assert_in_range(n, 1, 200);
    }
    free(data);
    free(out);
    chunk_encoder_free(encoder);
}

/* As a slot is unpacked: what is stored lies over the end of where it goes, or anywhere else over it. */
static void decodes_over_its_own_input(void **state)
{
    (void)state;
    struct chunk_encoder *encoder = chunk_encoder_new(1);
    struct chunk_decoder *decoder = chunk_decoder_new();
    uint8_t *data = exact(NULL, CHUNK_BYTES), *stored = exact(NULL, CHUNK_BYTES),
            *slot = exact(NULL, CHUNK_BYTES);
    for (enum chunk_codec codec = CHUNK_ZSTD; codec < CHUNK_N_CODECS; codec++) {
        fill(data, CHUNK_BYTES, 2);
        uint32_t n = chunk_encode(encoder, codec, 2, data, CHUNK_BYTES, stored);
        assert_true(n > 0);
        const uint32_t at[] = {0, 1, (CHUNK_BYTES - n) / 2, CHUNK_BYTES - n};
        for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
            memcpy(slot + at[i], stored, n);
            assert_true(chunk_decode(decoder, codec, 2, slot + at[i], n, slot, CHUNK_BYTES));
            assert_memory_equal(slot, data, CHUNK_BYTES);
        }
    }
    free(data);
    free(stored);
    free(slot);
    chunk_encoder_free(encoder);
    chunk_decoder_free(decoder);
}

static void damaged_chunks_are_refused_or_wrong_but_stay_in_bounds(void **state)
{
    (void)state;
    enum { ROUNDS = 400 };
    struct chunk_encoder *encoder = chunk_encoder_new(3);
    struct chunk_decoder *decoder = chunk_decoder_new();
    uint32_t refused = 0;
    for (int round = 0; round < ROUNDS; round++) {
        enum chunk_codec codec = CHUNK_ZSTD + random_u32() % (CHUNK_N_CODECS - 1);
        uint32_t stride = codec == CHUNK_ZSTD_FLOATS ? 2 : STRIDES[1 + random_u32() % 14] & ~1u;
        uint32_t bytes = whole(1 + random_u32() % 3000, stride);
        uint8_t *data = exact(NULL, bytes), *stored = exact(NULL, bytes), *out = exact(NULL, bytes);
        fill(data, bytes, stride);
        uint32_t n = chunk_encode(encoder, codec, stride, data, bytes, stored);
        if (n > 0) {
            uint32_t kept = random_u32() % 4 == 0 ? random_u32() % (n + 1) : n;
            uint8_t *src = exact(stored, kept);
            for (uint32_t k = random_u32() % 4; kept > 0 && k > 0; k--)
                src[random_u32() % (random_u32() % 2 && kept > 16 ? 16 : kept)] ^=
                    (uint8_t)(1u << random_u32() % 8);
            refused += !chunk_decode(decoder, codec, stride, src, kept, out, bytes);
            free(src);
            /* The decoder is as good as before. */
            assert_true(chunk_decode(decoder, codec, stride, stored, n, out, bytes));
            assert_memory_equal(out, data, bytes);
            /* A chunk of another size. */
            assert_false(chunk_decode(decoder, codec, stride, stored, n, out, bytes - stride));
            assert_false(chunk_decode(decoder, codec, stride, stored, n, out, CHUNK_BYTES + stride));
        }
        free(data);
        free(stored);
        free(out);
    }
    assert_true(refused > ROUNDS / 10);
    chunk_encoder_free(encoder);
    chunk_decoder_free(decoder);
}

static void blocks_end_where_rows_change_and_at_the_end(void **state)
{
    (void)state;
    uint8_t *data = exact(NULL, CHUNK_BYTES);
    uint32_t *ends = malloc(CHUNK_MAX_BLOCKS * sizeof(*ends));
    assert_non_null(ends);
    const uint32_t half = CHUNK_BYTES / 4; /* two rows, one noise and one of few bits */
    for (uint32_t i = 0; i < 2 * half; i++)
        data[i] = (uint8_t)(random_u32() >> 8 & (i < half ? 0xff : 3));
    assert_int_equal(chunk_blocks(data, 2 * half, half, ends), 2);
    assert_int_equal(ends[0], half);
    assert_int_equal(ends[1], 2 * half);
    for (uint32_t row = 1; row <= CHUNK_BYTES; row = row * 5 / 2 + 1) {
        for (uint32_t bytes = 1; bytes <= CHUNK_BYTES; bytes = bytes * 7 / 2 + 3) {
            fill(data, bytes, 7);
            uint32_t n = chunk_blocks(data, bytes, row, ends), last = 0;
            assert_in_range(n, 1, CHUNK_MAX_BLOCKS);
            for (uint32_t i = 0; i < n; i++) {
                assert_true(ends[i] > last && ends[i] - last <= CHUNK_BLOCK_BYTES);
                last = ends[i];
            }
            assert_int_equal(last, bytes);
        }
    }
    free(ends);
    free(data);
}

/* BF16 of normal values holds 10.6 bits each: what is promised of it, so that no change loses it unseen. */
static void exponents_of_floats_are_coded_near_their_entropy(void **state)
{
    (void)state;
    struct chunk_encoder *encoder = chunk_encoder_new(1);
    uint8_t *data = exact(NULL, CHUNK_BYTES), *out = exact(NULL, CHUNK_BYTES);
    for (uint32_t i = 0; i < CHUNK_BYTES; i += 2) {
        float sum = 0;
        for (int k = 0; k < 12; k++)
            sum += (float)(random_u32() >> 8) * 0x1p-24f - 0.5f;
        sum *= 0.02f;
        memcpy(data + i, (uint8_t *)&sum + 2, 2);
    }
    uint32_t n = chunk_encode(encoder, CHUNK_ZSTD_FLOATS, 2, data, CHUNK_BYTES, out);
    assert_in_range(n, CHUNK_BYTES / 100 * 64, CHUNK_BYTES / 100 * 67);
    free(data);
    free(out);
    chunk_encoder_free(encoder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(regrouping_is_its_definition_and_undone),
        cmocka_unit_test(regrouping_is_what_files_hold),
        cmocka_unit_test(codecs_take_the_strides_they_say),
        cmocka_unit_test(every_codec_round_trips_every_stride_and_size),
        cmocka_unit_test(output_is_the_same_from_any_encoder),
        cmocka_unit_test(noise_does_not_shrink_and_zeros_vanish),
        cmocka_unit_test(decodes_over_its_own_input),
        cmocka_unit_test(damaged_chunks_are_refused_or_wrong_but_stay_in_bounds),
        cmocka_unit_test(blocks_end_where_rows_change_and_at_the_end),
        cmocka_unit_test(exponents_of_floats_are_coded_near_their_entropy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
