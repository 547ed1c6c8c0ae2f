/* The async reader under failing reads, truncated files, malformed jobs and limits. Faults enter through the reader's
 * filter, which sees every system read's outcome. */
#include "io_reader_fixture.h"

#include <sys/mman.h>

/* ---- faults ---- */

struct fault {
    int64_t result; /* what the read returns instead; positive: a short read of at most so many bytes */
    uint32_t times; /* how often, over all reads of the file at or past offset */
    uint64_t offset;
    bool direct_only; /* buffered reads pass */
    uint32_t hits;
};

static int64_t inject(void *context, const struct io_read *read, int64_t result)
{
    struct fault *fault = context;
    if (read->file != 0 || read->offset < fault->offset || fault->hits >= fault->times)
        return result;
    if (fault->result >= result || (fault->direct_only && !read->direct))
        return result;
    fault->hits++;
    uint64_t kept = read->resume + (uint64_t)(fault->result > 0 ? fault->result : 0);
    memset(read->buffer + kept, POISON,
           read->length - kept); /* what a failed read leaves is not the file's */
    return fault->result;
}

static void fault_that_passes_is_retried(struct fixture *fixture, int64_t result, uint32_t times)
{
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    struct fault fault = {.result = result, .times = times};
    set_filter(reader, inject, &fault);
    struct io_range range = {.offset = 4321, .length = 10 * SPLIT};
    uint8_t *buffer = new_buffer(io_range_span(range.offset, range.length));
    assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
    assert_true(range_holds_file_bytes(buffer, &range));
    assert_int_equal(fault.hits, times);
    struct io_reader_stats stats;
    io_reader_get_stats(reader, &stats);
    assert_true(stats.retries >= times);
    free(buffer);
    io_reader_free(reader);
    fixture->reader = NULL;
}

static void passing_faults_are_retried_until_the_bytes_are_there(void **state)
{
    static const int errors[] = {EINTR, EAGAIN, ENOMEM, ECANCELED, EIO};
    for (uint32_t i = 0; i < COUNT(errors); i++)
        fault_that_passes_is_retried(*state, -errors[i], 3);
}

static void short_reads_are_continued(void **state)
{
    fault_that_passes_is_retried(*state, SPLIT / 2, 4);        /* aligned */
    fault_that_passes_is_retried(*state, SPLIT / 2 + 1234, 4); /* inside an aligned unit */
    fault_that_passes_is_retried(*state, IO_ALIGN, 40);        /* small steps */
}

/* Reads 10 splits, of which the one at offset and all later ones fail; checks that nothing else was harmed. */
static void fault_that_stays_is_reported(struct fixture *fixture, int64_t result, uint32_t min_hits,
                                         int error)
{
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){.queue_depth = 2});
    struct fault fault = {.result = result, .times = UINT32_MAX, .offset = 3 * SPLIT};
    set_filter(reader, inject, &fault);
    sem_t landed;
    sem_init(&landed, 0, 0);
    struct probe bad, good;
    probe_init(&bad, &landed, 17, 10 * SPLIT, IO_DEMAND);
    probe_init(&good, &landed, 17, 10 * SPLIT, IO_DEMAND);
    good.range.file = 1;
    io_reader_submit(reader, &bad.job);
    io_reader_submit(reader, &good.job);
    wait_for(&landed, 2);
    assert_int_equal(bad.times_done, 1);
    assert_int_equal(bad.job.status, PS_ERR_IO);
    assert_int_equal(bad.job.error, error);
    assert_int_equal(bad.job.error_file, 0);
    assert_in_range(bad.job.error_offset, 3 * SPLIT, 5 * SPLIT);
    assert_true(fault.hits >= min_hits);
    assert_int_equal(good.job.status, PS_OK);
    assert_true(range_holds_file_bytes(good.job.buffer, &good.range));

    char offset[32];
    snprintf(offset, sizeof(offset), "%llu", (unsigned long long)bad.job.error_offset);
    assert_int_equal(io_reader_job_error(reader, &bad.job, &fixture->err), PS_ERR_IO);
    assert_non_null(strstr(fixture->err.message, fixture->paths[0]));
    assert_non_null(strstr(fixture->err.message, offset));
    assert_non_null(strstr(fixture->err.message, error ? strerror(error) : "end of file"));

    fault.times = 0; /* the drive has recovered; no read is in flight */
    io_reader_submit(reader, &bad.job);
    wait_for(&landed, 1);
    assert_int_equal(bad.job.status, PS_OK);
    assert_true(range_holds_file_bytes(bad.job.buffer, &bad.range));
    probe_deinit(&bad);
    probe_deinit(&good);
    sem_destroy(&landed);
    io_reader_free(reader);
    fixture->reader = NULL;
}

static void faults_that_stay_are_reported_with_file_and_offset(void **state)
{
    fault_that_stays_is_reported(*state, -EIO, 3, EIO);        /* retried a few times */
    fault_that_stays_is_reported(*state, -EAGAIN, 10, EAGAIN); /* bounded */
    fault_that_stays_is_reported(*state, -EFAULT, 1, EFAULT);
    fault_that_stays_is_reported(*state, 0, 1, 0); /* end of file */
    if (((struct fixture *)*state)->mode->direct)
        fault_that_stays_is_reported(*state, 100, 1, 0); /* end of file inside an aligned unit */
}

static void file_that_refuses_direct_reads_is_read_buffered(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    if (!io_reader_is_direct(reader))
        skip(); /* nothing to fall back from */
    struct fault fault = {.result = -EINVAL, .times = UINT32_MAX, .direct_only = true};
    set_filter(reader, inject, &fault);
    struct io_range range = {.offset = 99, .length = 20 * SPLIT};
    uint8_t *buffer = new_buffer(io_range_span(range.offset, range.length));
    assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
    assert_true(range_holds_file_bytes(buffer, &range));
    assert_false(io_reader_is_direct(reader));
    assert_int_equal(fcntl(reader->files[0].fd, F_GETFL) & O_DIRECT, 0);
    assert_int_equal(fcntl(reader->files[1].fd, F_GETFL) & O_DIRECT, O_DIRECT);
    range.offset = FILE_BYTES - range.length;
    assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
    assert_true(range_holds_file_bytes(buffer, &range));
    free(buffer);
}

static void truncated_file_is_reported_not_delivered(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    struct io_range range = {.file = 1, .offset = 1000, .length = 20 * SPLIT};
    uint8_t *buffer = new_buffer(io_range_span(range.offset, range.length));
    static const uint64_t sizes[] = {15 * SPLIT + 700, 15 * SPLIT, 1000 + 20 * SPLIT - 1};
    for (uint32_t i = 0; i < COUNT(sizes); i++) {
        write_file(fixture->paths[1], 1);
        assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
        assert_int_equal(truncate(fixture->paths[1], (off_t)sizes[i]), 0);
        assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_ERR_IO);
        assert_non_null(strstr(fixture->err.message, fixture->paths[1]));
        assert_non_null(strstr(fixture->err.message, "end of file"));
    }
    /* The last byte that is left can still be read. */
    struct io_range tail = {.file = 1, .offset = sizes[2] - 50, .length = 50};
    assert_int_equal(io_reader_read(reader, &tail, 1, buffer, &fixture->err), PS_OK);
    assert_true(range_holds_file_bytes(buffer, &tail));
    free(buffer);
}

static void malformed_ranges_fail_in_the_job(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    static const struct io_range bad[] = {
        {.file = N_FILES, .length = 1},
        {.length = 0},
        {.length = 1, .at = 5},
        {.offset = UINT64_MAX - 10, .length = 100},
        {.offset = FILE_BYTES + 100, .length = 10},
    };
    uint8_t *buffer = new_buffer(2 * IO_ALIGN);
    for (uint32_t i = 0; i < COUNT(bad); i++)
        assert_int_equal(io_reader_read(reader, &bad[i], 1, buffer, &fixture->err), PS_ERR_IO);
    struct io_range fine = {.length = 10};
    assert_int_equal(io_reader_read(reader, &fine, 1, buffer + 8, &fixture->err), PS_ERR_IO);
    assert_true(io_reader_is_direct(reader) ==
                fixture->mode->direct); /* not taken for a refusal of O_DIRECT */
    assert_int_equal(io_reader_read(reader, NULL, 0, buffer, &fixture->err), PS_OK);
    free(buffer);
}

/* ---- progress ---- */

/* A job whose progress is recorded, and what happens to its read at late_at. */
struct progress {
    struct probe probe;
    uint64_t late_at;
    uint32_t times, hits; /* of the fault there */
    int64_t result;
    uint64_t bytes, largest_step;
    uint32_t steps;
    bool wrong;
};

static int64_t delay_one(void *context, const struct io_read *read, int64_t result)
{
    struct progress *p = context;
    if (read->offset != p->late_at || p->hits >= p->times || result <= p->result)
        return result;
    p->hits++;
    uint64_t kept = read->resume + (uint64_t)(p->result > 0 ? p->result : 0);
    memset(read->buffer + kept, POISON, read->length - kept);
    return p->result;
}

/* Each report is of more than the last, of bytes that are there, and none goes past the read that is late. */
static void note_progress(struct io_job *job, uint64_t bytes)
{
    struct progress *p = (struct progress *)((char *)job->owner - offsetof(struct progress, probe));
    uint64_t step = bytes - p->bytes;
    struct io_range held = p->probe.range;
    held.length = bytes < held.length ? bytes : held.length;
    p->wrong = p->wrong || bytes <= p->bytes || p->probe.times_done > 0 ||
               (p->hits < p->times && bytes > p->late_at - p->probe.range.offset) ||
               !range_holds_file_bytes(job->buffer, &held);
    p->largest_step = step > p->largest_step ? step : p->largest_step;
    p->bytes = bytes;
    p->steps++;
}

static void run_with_progress(struct fixture *fixture, struct progress *p, uint64_t length)
{
    sem_t landed;
    sem_init(&landed, 0, 0);
    probe_init(&p->probe, &landed, 2 * SPLIT, length, IO_DEMAND);
    p->probe.job.landed = note_progress;
    p->bytes = p->largest_step = p->steps = p->hits = 0;
    set_filter(fixture->reader, delay_one, p);
    io_reader_submit(fixture->reader, &p->probe.job);
    wait_for(&landed, 1);
    probe_deinit(&p->probe);
    sem_destroy(&landed);
}

static void progress_is_what_is_in_memory_without_a_gap(void **state)
{
    struct fixture *fixture = *state;
    enum { READS = 12, LENGTH = READS * SPLIT - 5000 };
    open_reader(fixture, (struct io_reader_config){.queue_depth = 6});
    struct progress p = {.late_at = UINT64_MAX};
    run_with_progress(fixture, &p, LENGTH);
    assert_false(p.wrong);
    assert_in_range(p.steps, 1, READS);
    assert_int_equal(p.bytes, io_range_span(p.probe.range.offset, LENGTH));

    for (uint32_t late = 0; late < READS;
         late += 4) { /* it waits until the other reads under way have landed */
        p = (struct progress){.late_at = (2 + late) * SPLIT, .times = 6, .result = -EAGAIN};
        run_with_progress(fixture, &p, LENGTH);
        assert_false(p.wrong);
        assert_int_equal(p.hits, p.times);
        assert_int_equal(p.probe.job.status, PS_OK);
        assert_int_equal(p.bytes, io_range_span(p.probe.range.offset, LENGTH));
        assert_true(p.largest_step >= 2 * SPLIT);
    }
    p = (struct progress){.late_at = 4 * SPLIT, .times = 3, .result = SPLIT / 4}; /* short */
    run_with_progress(fixture, &p, LENGTH);
    assert_false(p.wrong);
    assert_int_equal(p.hits, p.times);
    assert_int_equal(p.bytes, io_range_span(p.probe.range.offset, LENGTH));

    p = (struct progress){.late_at = 5 * SPLIT, .times = UINT32_MAX, .result = -EFAULT};
    run_with_progress(fixture, &p, LENGTH);
    assert_int_equal(p.probe.job.status, PS_ERR_IO);
    assert_false(p.wrong);
    assert_true(p.bytes <= 3 * SPLIT);
}

/* ---- throttle, memory, page cache ---- */

static void limited_reader_keeps_its_rate_without_spinning(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){.limit_rate = 32 << 20});
    struct io_range ranges[16]; /* 8 MiB */
    for (uint32_t i = 0; i < COUNT(ranges); i++)
        ranges[i] = (struct io_range){0, i * 300000, (512 << 10) - IO_ALIGN, i * (512ull << 10)};
    uint8_t *buffer = new_buffer(COUNT(ranges) * (512ull << 10));
    double start = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    assert_int_equal(io_reader_read(reader, ranges, COUNT(ranges), buffer, &fixture->err), PS_OK);
    double took = seconds(CLOCK_MONOTONIC) - start;
    cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    assert_true(took > 0.23 && took < 2.5); /* 0.25 s; the upper bound is for loaded machines */
    assert_true(cpu < took / 2);
    free(buffer);
}

static void limited_reader_saves_nothing_up_while_idle(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){.limit_rate = 16 << 20});
    struct io_range range = {.length = 1 << 20}; /* 62 ms */
    uint8_t *buffer = new_buffer(1 << 20);
    for (uint32_t i = 0; i < 2; i++) {
        let_the_reader_sleep();
        double start = seconds(CLOCK_MONOTONIC);
        assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
        double took = seconds(CLOCK_MONOTONIC) - start;
        assert_true(took > 0.055 && took < 0.7);
    }
    free(buffer);
}

/* Pages of the file in the page cache. */
static uint32_t cached_pages(const char *path)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = (FILE_BYTES + page - 1) / page;
    int fd = open(path, O_RDONLY);
    void *map = mmap(NULL, FILE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(map, MAP_FAILED);
    unsigned char *resident = calloc(n, 1);
    assert_int_equal(mincore(map, FILE_BYTES, resident), 0);
    uint32_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += resident[i] & 1;
    munmap(map, FILE_BYTES);
    close(fd);
    free(resident);
    return count;
}

static void page_cache_does_not_grow(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    uint32_t before = cached_pages(fixture->paths[0]);
    if (before > 16)
        skip(); /* a filesystem in memory */
    uint64_t seed = 5;
    uint8_t *buffer = new_buffer(1 << 20);
    for (uint32_t i = 0; i < 20; i++) {
        struct io_range range = {.length = 900000};
        range.offset = next_random(&seed) % (FILE_BYTES - range.length);
        assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
    }
    assert_true(cached_pages(fixture->paths[0]) <= 64); /* of 1281 */
    free(buffer);
}

static void memory_and_statistics_are_accounted(void **state)
{
    struct fixture *fixture = *state;
    struct io_reader *reader = open_reader(fixture, (struct io_reader_config){0});
    assert_in_range(io_reader_memory(reader), 1, 512 << 10);
    assert_in_range(io_reader_queue_depth(reader), 1, 64);
    struct io_range range = {.offset = 4000, .length = 3 * SPLIT};
    uint8_t *buffer = new_buffer(io_range_span(range.offset, range.length));
    assert_int_equal(io_reader_read(reader, &range, 1, buffer, &fixture->err), PS_OK);
    struct io_reader_stats stats;
    io_reader_get_stats(reader, &stats);
    assert_int_equal(stats.bytes_demand, io_range_span(range.offset, range.length));
    assert_int_equal(stats.bytes_speculative, 0);
    assert_true(stats.reads >= 4);
    assert_true(stats.busy_s > 0 && stats.busy_s < 10);
    free(buffer);
}

int main(void)
{
    static const struct promise promises[] = {
        PROMISE(passing_faults_are_retried_until_the_bytes_are_there),
        PROMISE(short_reads_are_continued),
        PROMISE(faults_that_stay_are_reported_with_file_and_offset),
        PROMISE(file_that_refuses_direct_reads_is_read_buffered),
        PROMISE(truncated_file_is_reported_not_delivered),
        PROMISE(malformed_ranges_fail_in_the_job),
        PROMISE(progress_is_what_is_in_memory_without_a_gap),
        PROMISE(limited_reader_keeps_its_rate_without_spinning),
        PROMISE(limited_reader_saves_nothing_up_while_idle),
        PROMISE(page_cache_does_not_grow),
        PROMISE(memory_and_statistics_are_accounted),
    };
    return run_in_all_modes("io_reader_faults", promises, COUNT(promises));
}
