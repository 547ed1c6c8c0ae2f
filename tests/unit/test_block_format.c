/* Block formats against ggml's own dequantization, and CPU levels. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/block_format.h"
#include "kernels/block_layout.h"
#include "kernels/cpu.h"

/* The whole of a golden file of `format`, or NULL where the goldens are absent. */
static void *read_golden(const char *name, const char *suffix, size_t *size)
{
    char path[1024];
    snprintf(path, sizeof(path), "%s/golden/dequant/%s.%s", TEST_SHARED_DIR, name, suffix);
    FILE *f = fopen(path, "rb");
    if (f == NULL) {
        return NULL;
    }
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    *size = (size_t)ftell(f);
    rewind(f);
    void *data = malloc(*size);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *size, f), *size);
    fclose(f);
    return data;
}

static void dequantizes_as_ggml_to_the_bit(void **state)
{
    (void)state;
    unsigned n_found = 0;
    for (uint32_t i = 0; block_format_at(i) != NULL; i++) {
        const struct block_format *format = block_format_at(i);
        size_t n_bytes = 0;
        size_t n_expected = 0;
        uint8_t *blocks = read_golden(format->name, "blocks", &n_bytes);
        float *expected = read_golden(format->name, "f32", &n_expected);
        if (blocks != NULL && expected != NULL) {
            size_t n = n_bytes / format->bytes * format->values;
            assert_int_equal(n * sizeof(float), n_expected);
            assert_true(n >= 1280);
            /* from an odd address, as blocks may stand in a file */
            uint8_t *shifted = malloc(n_bytes + 1);
            float *out = malloc(n_expected);
            assert_non_null(shifted);
            assert_non_null(out);
            memcpy(shifted + 1, blocks, n_bytes);
            format->dequantize(shifted + 1, out, n);
            assert_memory_equal(out, expected, n_expected);
            free(shifted);
            free(out);
            n_found++;
        }
        free(blocks);
        free(expected);
    }
    if (n_found == 0) {
        print_message("no golden data under %s\n", TEST_SHARED_DIR);
        skip();
    }
    assert_int_equal(n_found, 27); /* all but F32 */
}

static void f32_is_copied(void **state)
{
    (void)state;
    const float x[3] = {1.5f, -0.0f, 3e38f};
    float out[3];
    block_format_find(BLOCK_F32)->dequantize(x, out, 3);
    assert_memory_equal(out, x, sizeof(x));
}

static void formats_are_found_by_type(void **state)
{
    (void)state;
    uint32_t n = 0;
    for (; block_format_at(n) != NULL; n++) {
        assert_ptr_equal(block_format_find(block_format_at(n)->type), block_format_at(n));
    }
    assert_int_equal(n, 28);
    assert_null(block_format_at(n + 1));
    assert_null(block_format_find(4)); /* a type that ggml removed */
    assert_string_equal(block_format_find(39)->name, "MXFP4");
}

static void row_bytes_count_whole_blocks(void **state)
{
    (void)state;
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_F32), 5), 20);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_F16), 5), 10);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_BF16), 5), 10);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_Q8_0), 96), 3 * 34);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_Q4_0), 96), 3 * 18);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_MXFP4), 96), 3 * 17);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_Q4_1), 96), 3 * 20);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_Q5_0), 96), 3 * 22);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_Q5_1), 96), 3 * 24);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_IQ4_NL), 96), 3 * 18);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_NVFP4), 192), 3 * 36);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_Q1_0), 384), 3 * 18);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_Q2_0), 192), 3 * 18);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_Q2_K), 512), 2 * 84);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_Q3_K), 512), 2 * 110);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_IQ4_XS), 512), 2 * 136);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_Q4_K), 512), 2 * 144);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_Q5_K), 512), 2 * 176);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_Q6_K), 512), 2 * 210);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_IQ3_S), 512), 2 * 110);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_IQ3_XXS), 512), 2 * 98);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_IQ2_S), 512), 2 * 82);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_IQ2_XS), 512), 2 * 74);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_IQ2_XXS), 512), 2 * 66);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_IQ1_M), 512), 2 * 56);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_IQ1_S), 512), 2 * 50);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_TQ2_0), 512), 2 * 66);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_TQ1_0), 512), 2 * 54);
}

static void nvfp4_scales_are_halved_and_nan_is_0(void **state)
{
    (void)state;
    for (int e = 0; e < 256; e++) {
        struct block_nvfp4 block = {.d = {(uint8_t)e, 0x38, 0x38, 0x38}};
        memset(block.q, 0x22, sizeof(block.q)); /* 2 halves */
        int exponent = e >> 3 & 15;
        float mantissa = (float)(e & 7) / 8 + (exponent > 0 ? 1 : 0);
        float expected = e == 0x7f ? 0 : ldexpf(mantissa, (exponent > 0 ? exponent : 1) - 7);
        float out[64];
        block_format_find(BLOCK_NVFP4)->dequantize(&block, out, 64);
        assert_true(out[0] == expected);
        assert_true(out[63] == 1.0f);
    }
}

static void cpu_level_names_parse_back(void **state)
{
    (void)state;
    for (int i = 0; i < CPU_N_LEVELS; i++) {
        enum cpu_level level = CPU_N_LEVELS;
        assert_true(cpu_level_parse(cpu_level_name((enum cpu_level)i), &level));
        assert_int_equal(level, i);
    }
    enum cpu_level level = CPU_AVX2;
    assert_false(cpu_level_parse("avx", &level));
    assert_false(cpu_level_parse("", &level));
    assert_int_equal(level, CPU_AVX2);
}

static void best_level_is_the_highest_available(void **state)
{
    (void)state;
    enum cpu_level best = cpu_level_best();
    assert_true(cpu_level_available(CPU_SCALAR));
    assert_true(cpu_level_available(best));
    assert_false(cpu_level_available(CPU_N_LEVELS));
    for (int i = (int)best + 1; i < CPU_N_LEVELS; i++) {
        assert_false(cpu_level_available((enum cpu_level)i));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dequantizes_as_ggml_to_the_bit),
        cmocka_unit_test(f32_is_copied),
        cmocka_unit_test(formats_are_found_by_type),
        cmocka_unit_test(row_bytes_count_whole_blocks),
        cmocka_unit_test(nvfp4_scales_are_halved_and_nan_is_0),
        cmocka_unit_test(cpu_level_names_parse_back),
        cmocka_unit_test(best_level_is_the_highest_available),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
