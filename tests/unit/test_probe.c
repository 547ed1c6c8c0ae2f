/* Probes: each level has its own, and they do the work that their figures are made of. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/probe.h"

typedef void check_fn(const struct probe_kernels *probes);

static void at_each_level(check_fn *check)
{
    for (int level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (cpu_level_available((enum cpu_level)level)) {
            check(probe_kernels_get((enum cpu_level)level));
        }
    }
}

/* Those in plain C say nothing of what vectors can do. */
static void every_level_has_probes_of_its_own(void **state)
{
    (void)state;
    const struct probe_kernels *plain = probe_kernels_get(CPU_SCALAR);
    for (int level = CPU_SCALAR + 1; level < CPU_N_LEVELS; level++) {
        if (cpu_level_available((enum cpu_level)level)) {
            assert_ptr_not_equal(probe_kernels_get((enum cpu_level)level), plain);
        }
    }
}

static void check_read(const struct probe_kernels *probes)
{
    uint8_t data[1024] = {0};
    uint64_t zero = probes->read(data, sizeof(data));
    for (size_t i = 0; i < sizeof(data); i++) {
        data[i] = 1;
        assert_int_not_equal(probes->read(data, sizeof(data)), zero);
        data[i] = 0;
    }
}

static void reading_depends_on_every_byte(void **state)
{
    (void)state;
    at_each_level(check_read);
}

static void check_multiply(const struct probe_kernels *probes)
{
    uint64_t int8 = probes->multiply_int8(3);
    uint64_t f32 = probes->multiply_f32(3);
    assert_true(int8 > 0 && f32 > 0);
    assert_int_equal(probes->multiply_int8(6), 2 * int8);
    assert_int_equal(probes->multiply_f32(6), 2 * f32);
}

static void operations_grow_with_rounds(void **state)
{
    (void)state;
    at_each_level(check_multiply);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_level_has_probes_of_its_own),
        cmocka_unit_test(reading_depends_on_every_byte),
        cmocka_unit_test(operations_grow_with_rounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
