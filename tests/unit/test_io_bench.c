/* The drive benchmark's promises: what it counts is what was read, in the asked-for pieces, at most at the limit; and
 * percentiles are right to 1 %. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/io_bench.h"

enum { FILE_BYTES = 4 << 20, ODD_BYTES = 1234 };

static volatile sig_atomic_t cancel;

struct fixture {
    char path[64];
    struct io_bench *bench;
    struct latency_histogram latency;
    struct io_sample sample;
    struct ps_error err;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    assert_non_null(f);
    snprintf(f->path, sizeof(f->path), "/var/tmp/penstock-io-bench-XXXXXX");
    int fd = mkstemp(f->path);
    assert_true(fd >= 0);
    assert_int_equal(posix_fallocate(fd, 0, FILE_BYTES + ODD_BYTES), 0);
    close(fd);
    cancel = 0;
    assert_int_equal(io_bench_new(&f->bench, f->path, &cancel, &f->err), PS_OK);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    io_bench_free(f->bench);
    unlink(f->path);
    free(f);
    return 0;
}

static struct io_cell cell_of(enum io_pattern pattern, uint64_t extent, uint32_t block, uint32_t depth)
{
    return (struct io_cell){.pattern = pattern,
                            .backend = IO_BACKEND_THREADS,
                            .extent_bytes = extent,
                            .block_bytes = block,
                            .queue_depth = depth,
                            .memory_bytes = 64 << 20};
}

static enum ps_status measure(struct fixture *f, const struct io_cell *cell, uint64_t limit, double seconds)
{
    return io_bench_measure(f->bench, cell, limit, seconds, &f->sample, &f->latency, &f->err);
}

static void extents_are_counted_with_their_reads(void **state)
{
    struct fixture *f = *state;
    static const struct {
        uint64_t extent;
        uint32_t block, reads;
    } shapes[] = {
        {4096, 4096, 1}, {256 << 10, 64 << 10, 4}, {1 << 20, 384 << 10, 3}, {FILE_BYTES, 1 << 20, 4}};
    for (int pattern = IO_RANDOM; pattern <= IO_SEQUENTIAL; pattern++) {
        for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
            for (uint32_t depth = 1; depth <= 8; depth *= 8) {
                struct io_cell cell =
                    cell_of((enum io_pattern)pattern, shapes[i].extent, shapes[i].block, depth);
                f->latency.n = 0;
                assert_int_equal(measure(f, &cell, 0, 0.01), PS_OK);
                assert_true(f->sample.extents > 0);
                assert_true(f->sample.bytes == f->sample.extents * shapes[i].extent);
                assert_true(f->sample.reads == f->sample.extents * shapes[i].reads);
                assert_true(f->latency.n == f->sample.extents);
                assert_true(f->sample.seconds >= 0.01);
            }
        }
    }
}

static void limit_is_kept(void **state)
{
    struct fixture *f = *state;
    struct io_cell cell = cell_of(IO_RANDOM, 64 << 10, 64 << 10, 4);
    assert_int_equal(measure(f, &cell, 16 << 20, 0.25), PS_OK);
    /* From above it is exact, but for the 20 ms that a delayed reader may catch up on; load takes from below. */
    double rate = (double)f->sample.bytes / f->sample.seconds;
    assert_true(rate < (16 << 20) * 1.15);
}

static void interrupt_does_not_wait_for_the_limit(void **state)
{
    struct fixture *f = *state;
    struct io_cell cell = cell_of(IO_RANDOM, 1 << 20, 1 << 20, 8);
    cancel = 1;
    assert_int_equal(measure(f, &cell, 1000, 1000), PS_ERR_CANCELLED); /* a read would take 17 minutes */
}

static void what_cannot_be_had_is_said(void **state)
{
    struct fixture *f = *state;
    struct io_cell cell = cell_of(IO_RANDOM, 4096, 4096, 1000); /* threads stop at 16 */
    assert_int_equal(measure(f, &cell, 0, 0.01), PS_ERR_UNSUPPORTED);
    assert_non_null(strstr(f->err.message, "16"));
}

static void file_cut_short_is_an_error_that_names_it(void **state)
{
    struct fixture *f = *state;
    struct io_cell cell = cell_of(IO_SEQUENTIAL, 1 << 20, 64 << 10, 4);
    assert_int_equal(truncate(f->path, 1 << 20), 0);
    assert_int_equal(measure(f, &cell, 0, 10), PS_ERR_IO);
    assert_non_null(strstr(f->err.message, f->path));
}

static void sizes_are_whole_units_of_the_file(void **state)
{
    struct fixture *f = *state;
    assert_true(io_bench_largest_extent(f->bench) == FILE_BYTES);
    assert_true(io_bench_shard_bytes(f->bench) == 0);
    struct io_bench *none;
    assert_int_equal(truncate(f->path, 100), 0);
    assert_int_equal(io_bench_new(&none, f->path, &cancel, &f->err), PS_ERR_ARGUMENT);
    io_bench_free(none);
    assert_int_equal(unlink(f->path), 0);
    assert_int_equal(io_bench_new(&none, f->path, &cancel, &f->err), PS_ERR_IO);
    io_bench_free(none);
}

/* ---- latency ---- */

static bool is_near(double value, double expected)
{
    return value > expected * 0.99 && value < expected * 1.01;
}

static void quantiles_are_right_to_a_percent(void **state)
{
    struct latency_histogram *h = &((struct fixture *)*state)->latency;
    assert_true(latency_histogram_quantile(h, 0.5) == 0.0);
    for (uint64_t scale = 1; scale < UINT64_C(1) << 24; scale *= 37) {
        memset(h, 0, sizeof(*h));
        for (uint64_t i = 1000; i > 0; i--)
            latency_histogram_add(h, (i + 1000) * scale);
        assert_true(is_near(latency_histogram_quantile(h, 0.5), 1500.0 * (double)scale));
        assert_true(is_near(latency_histogram_quantile(h, 0.99), 1990.0 * (double)scale));
        assert_true(is_near(latency_histogram_quantile(h, 1.0), 2000.0 * (double)scale));
    }
}

static void extreme_latencies_have_a_bucket(void **state)
{
    struct latency_histogram *h = &((struct fixture *)*state)->latency;
    latency_histogram_add(h, 0);
    latency_histogram_add(h, 63);
    latency_histogram_add(h, UINT64_MAX);
    assert_true(latency_histogram_quantile(h, 0.0) == 0.0);
    assert_true(latency_histogram_quantile(h, 0.5) == 63.0);
    assert_true(latency_histogram_quantile(h, 1.0) > 4e12);
}

#define PROMISE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        PROMISE(extents_are_counted_with_their_reads),     PROMISE(limit_is_kept),
        PROMISE(interrupt_does_not_wait_for_the_limit),    PROMISE(what_cannot_be_had_is_said),
        PROMISE(file_cut_short_is_an_error_that_names_it), PROMISE(sizes_are_whole_units_of_the_file),
        PROMISE(quantiles_are_right_to_a_percent),         PROMISE(extreme_latencies_have_a_bucket),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
