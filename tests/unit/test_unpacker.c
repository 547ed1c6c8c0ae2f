/* The unpacker, fed as a reader would: extents that land in pieces of any size, sound and damaged ones. */
#include <malloc.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>
#include <xxhash.h>

#include "storage/io_reader.h"
#include "storage/unpacker.h"

enum { BF16 = 30, CANARY = 0xa5, CANARY_BYTES = 64, MAX_JOBS = 32 };

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* ---- an expert, and the extent that holds it ---- */

struct extent {
    struct packed_layout layout;
    uint8_t *expert; /* layout.bytes */
    uint8_t *stored;
    uint64_t bytes; /* of stored */
    uint64_t hash;
};

/* Exponents that are alike, with noise below; in places noise alone, which does not shrink. */
static void make_weights(uint8_t *data, uint64_t bytes, uint32_t *seed)
{
    for (uint64_t i = 0; i < bytes; i++) {
        bool noise = i / 300000 % 2 == 1 || i % 2 == 0;
        data[i] = (uint8_t)(noise ? next_random(seed) : 0x3c + next_random(seed) % 3);
    }
}

static void encode(struct extent *extent)
{
    struct chunk_encoder *encoder = chunk_encoder_new(1);
    struct packed_chunk chunk = {0};
    assert_non_null(encoder);
    extent->stored = calloc(1, extent->layout.slot_bytes);
    uint64_t at = 0;
    while (packed_chunk_next(&extent->layout, &chunk)) {
        enum chunk_codec codec = (enum chunk_codec)extent->layout.codec[chunk.part];
        uint8_t *out = extent->stored + at + sizeof(uint32_t);
        uint32_t size = 0;
        if (codec != CHUNK_RAW)
            size = chunk_encode(encoder, codec, extent->layout.stride[chunk.part], extent->expert + chunk.at,
                                chunk.bytes, out);
        if (size == 0) {
            memcpy(out, extent->expert + chunk.at, chunk.bytes);
            size = chunk.bytes | CHUNK_AS_IS;
        }
        memcpy(extent->stored + at, &size, sizeof(size));
        at += sizeof(size) + (size & ~CHUNK_AS_IS);
    }
    extent->bytes = (at + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN;
    chunk_encoder_free(encoder);
}

static void extent_init(struct extent *extent, bool compressed, uint32_t seed)
{
    struct shard_slice slice[SHARD_N_PARTS] = {0};
    slice[SHARD_GATE] = (struct shard_slice){.present = true, .type = BF16, .bytes = 700000};
    slice[SHARD_UP] = (struct shard_slice){.present = true, .type = BF16, .bytes = 2 * CHUNK_BYTES};
    slice[SHARD_DOWN] = (struct shard_slice){.present = true, .type = BF16, .bytes = 123450};
    uint8_t codec[SHARD_N_PARTS] = {0};
    if (compressed) {
        codec[SHARD_GATE] = CHUNK_ZSTD_FLOATS;
        codec[SHARD_DOWN] = CHUNK_ZSTD_BYTES; /* SHARD_UP stays as it is */
    }
    packed_layout_init(&extent->layout, slice, codec);
    assert_true(extent->layout.compressed == compressed);
    extent->expert = calloc(1, extent->layout.bytes);
    for (uint32_t part = 0; part < SHARD_N_PARTS; part++)
        if (slice[part].present)
            make_weights(extent->expert + extent->layout.part_offset[part], slice[part].bytes, &seed);
    if (compressed) {
        encode(extent);
    } else {
        extent->bytes = extent->layout.bytes;
        extent->stored = malloc(extent->bytes);
        memcpy(extent->stored, extent->expert, extent->bytes);
    }
    extent->hash = XXH3_64bits(extent->stored, extent->bytes);
}

static void extent_deinit(struct extent *extent)
{
    free(extent->expert);
    free(extent->stored);
}

/* ---- a slot, and the job that fills it ---- */

struct load {
    struct unpack_job job;
    const struct extent *extent;
    uint8_t *memory; /* the slot with bytes around it that nobody may touch */
    sem_t *done;
    uint64_t landed;
};

static void on_done(struct unpack_job *job)
{
    sem_post(((struct load *)job->owner)->done);
}

static void load_init(struct load *load, const struct extent *extent, bool check, sem_t *done)
{
    uint64_t slot_bytes = extent->layout.slot_bytes;
    *load = (struct load){.extent = extent, .done = done, .memory = malloc(slot_bytes + 2 * CANARY_BYTES)};
    memset(load->memory, CANARY, slot_bytes + 2 * CANARY_BYTES);
    load->job = (struct unpack_job){
        .layout = &extent->layout,
        .slot = load->memory + CANARY_BYTES,
        .stored_at = slot_bytes - extent->bytes,
        .stored_bytes = extent->bytes,
        .hash = extent->hash,
        .check = check,
        .done = on_done,
        .owner = load,
    };
}

static void load_deinit(struct load *load)
{
    uint64_t slot_bytes = load->extent->layout.slot_bytes;
    for (uint32_t i = 0; i < CANARY_BYTES; i++) {
        assert_int_equal(load->memory[i], CANARY);
        assert_int_equal(load->memory[CANARY_BYTES + slot_bytes + i], CANARY);
    }
    free(load->memory);
}

/* The next piece lands: nothing is written behind it before. */
static void land(struct unpacker *unpacker, struct load *load, uint64_t bytes)
{
    uint64_t left = load->extent->bytes - load->landed;
    bytes = bytes < left ? bytes : left;
    memcpy(load->job.slot + load->job.stored_at + load->landed, load->extent->stored + load->landed, bytes);
    load->landed += bytes;
    unpacker_landed(unpacker, &load->job, load->landed);
}

static void wait_for(sem_t *done, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        while (sem_wait(done) < 0)
            ;
}

static bool holds_the_expert(const struct load *load)
{
    const struct packed_layout *layout = &load->extent->layout;
    for (uint32_t part = 0; part < SHARD_N_PARTS; part++)
        if (layout->part_bytes[part] > 0 &&
            memcmp(load->job.slot + layout->part_offset[part],
                   load->extent->expert + layout->part_offset[part], layout->part_bytes[part]) != 0)
            return false;
    return true;
}

static struct unpacker *new_unpacker(uint32_t n_threads, uint32_t n_jobs)
{
    struct unpacker *unpacker;
    struct unpacker_config config = {.n_threads = n_threads, .n_jobs = n_jobs, .decodes = true};
    assert_int_equal(unpacker_new(&unpacker, &config, NULL), PS_OK);
    return unpacker;
}

/* All of the extent in pieces of up to `most` bytes. */
static enum unpack_outcome run(struct unpacker *unpacker, const struct extent *extent, bool check,
                               uint32_t most, uint32_t *seed)
{
    sem_t done;
    struct load load;
    sem_init(&done, 0, 0);
    load_init(&load, extent, check, &done);
    while (load.landed < extent->bytes)
        land(unpacker, &load, 1 + next_random(seed) % most);
    unpacker_ended(unpacker, &load.job, true);
    wait_for(&done, 1);
    enum unpack_outcome outcome = load.job.outcome;
    if (outcome == UNPACK_OK && check)
        assert_true(holds_the_expert(&load));
    load_deinit(&load);
    sem_destroy(&done);
    return outcome;
}

/* ---- promises ---- */

static void extents_are_unpacked_in_place_however_they_land(void **state)
{
    (void)state;
    struct unpacker *unpacker = new_unpacker(2, 1);
    static const uint32_t steps[] = {50, 5000, 100000, 512 << 10, 64 << 20};
    uint32_t seed = 1;
    for (uint32_t compressed = 0; compressed < 2; compressed++) {
        struct extent extent;
        extent_init(&extent, compressed, 3 + compressed);
        if (compressed)
            assert_true(extent.bytes < extent.layout.bytes * 9 / 10);
        for (uint32_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
            assert_int_equal(run(unpacker, &extent, true, steps[i], &seed), UNPACK_OK);
            assert_int_equal(run(unpacker, &extent, false, steps[i], &seed), UNPACK_OK);
        }
        extent_deinit(&extent);
    }
    struct unpacker_stats stats;
    unpacker_get_stats(unpacker, &stats);
    assert_int_equal(stats.checked, 10);
    assert_int_equal(stats.bytes_unpacked, 10 * (700000 + 2 * CHUNK_BYTES + 123450));
    assert_true(stats.check_s > 0 && stats.unpack_s > 0);
    unpacker_free(unpacker);
}

static void chunks_are_unpacked_before_the_rest_has_landed(void **state)
{
    (void)state;
    struct unpacker *unpacker = new_unpacker(1, 1);
    struct extent extent;
    struct load load;
    struct unpacker_stats stats;
    sem_t done;
    sem_init(&done, 0, 0);
    extent_init(&extent, true, 5);
    load_init(&load, &extent, true, &done);
    land(unpacker, &load, extent.bytes / 2);
    do
        unpacker_get_stats(unpacker, &stats);
    while (stats.bytes_unpacked < extent.layout.bytes / 3);
    land(unpacker, &load, extent.bytes);
    assert_int_equal(sem_trywait(&done), -1); /* not before the reader is done with its memory */
    unpacker_ended(unpacker, &load.job, true);
    wait_for(&done, 1);
    assert_int_equal(load.job.outcome, UNPACK_OK);
    assert_true(holds_the_expert(&load));
    load_deinit(&load);
    extent_deinit(&extent);
    sem_destroy(&done);
    unpacker_free(unpacker);
}

static void any_flipped_bit_is_found(void **state)
{
    (void)state;
    struct unpacker *unpacker = new_unpacker(1, 1);
    uint32_t seed = 2;
    for (uint32_t compressed = 0; compressed < 2; compressed++) {
        struct extent extent;
        extent_init(&extent, compressed, 7);
        for (uint32_t i = 0; i < 60; i++) {
            uint64_t at = i < 4   ? i                    /* the first chunk's size */
                          : i < 8 ? extent.bytes - 1 - i /* padding */
                                  : next_random(&seed) % extent.bytes;
            uint8_t bit = (uint8_t)(1u << next_random(&seed) % 8);
            extent.stored[at] ^= bit;
            assert_int_equal(run(unpacker, &extent, true, 400000, &seed), UNPACK_CORRUPT);
            extent.stored[at] ^= bit;
        }
        assert_int_equal(run(unpacker, &extent, true, 400000, &seed), UNPACK_OK);
        extent_deinit(&extent);
    }
    unpacker_free(unpacker);
}

/* Without a check only sizes and codecs stand between damage and memory. */
static void damaged_sizes_touch_nothing_outside(void **state)
{
    (void)state;
    struct unpacker *unpacker = new_unpacker(1, 1);
    struct extent extent;
    uint32_t seed = 9;
    extent_init(&extent, true, 11);
    uint32_t first, n_corrupt = 0;
    memcpy(&first, extent.stored, sizeof(first));
    const uint32_t sizes[] = {0,
                              1,
                              first - 1,
                              first + 1,
                              CHUNK_BYTES,
                              CHUNK_AS_IS,
                              CHUNK_AS_IS | CHUNK_BYTES,
                              CHUNK_AS_IS | (CHUNK_BYTES - 2),
                              INT32_MAX,
                              UINT32_MAX};
    for (uint32_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        memcpy(extent.stored, &sizes[i], sizeof(first));
        assert_int_equal(run(unpacker, &extent, false, 64 << 20, &seed), UNPACK_CORRUPT);
    }
    memcpy(extent.stored, &first, sizeof(first));
    for (uint32_t i = 0; i < 100; i++) {
        uint64_t at = next_random(&seed) % (extent.bytes - 8);
        uint8_t before[8];
        memcpy(before, extent.stored + at, sizeof(before));
        for (uint32_t j = 0; j < sizeof(before); j++)
            extent.stored[at + j] = (uint8_t)next_random(&seed);
        n_corrupt += run(unpacker, &extent, false, 400000, &seed) == UNPACK_CORRUPT;
        memcpy(extent.stored + at, before, sizeof(before));
    }
    assert_true(n_corrupt > 0);

    /* An extent whose chunks all claim to be stored as they are would overtake what has not been unpacked. */
    struct packed_chunk chunk = {0};
    uint64_t at = 0;
    uint8_t *sound = malloc(extent.bytes);
    memcpy(sound, extent.stored, extent.bytes);
    while (packed_chunk_next(&extent.layout, &chunk) && at + sizeof(uint32_t) <= extent.bytes) {
        uint32_t size = chunk.bytes | CHUNK_AS_IS;
        memcpy(extent.stored + at, &size, sizeof(size));
        at += sizeof(size) + chunk.bytes;
    }
    assert_true(at > extent.bytes);
    assert_int_equal(run(unpacker, &extent, false, 64 << 20, &seed), UNPACK_CORRUPT);
    memcpy(extent.stored, sound, extent.bytes);
    free(sound);

    extent.bytes += IO_ALIGN; /* more than padding behind the last chunk */
    assert_int_equal(run(unpacker, &extent, false, 64 << 20, &seed), UNPACK_CORRUPT);
    extent_deinit(&extent);
    unpacker_free(unpacker);
}

static void failed_reads_are_passed_on_and_the_job_can_be_used_again(void **state)
{
    (void)state;
    struct unpacker *unpacker = new_unpacker(2, 1);
    struct extent extent;
    struct load load;
    uint32_t seed = 4;
    sem_t done;
    sem_init(&done, 0, 0);
    extent_init(&extent, true, 13);
    for (uint32_t i = 0; i < 20; i++) {
        load_init(&load, &extent, true, &done);
        for (uint32_t j = 0; j < i; j++)
            land(unpacker, &load, extent.bytes / 25);
        unpacker_ended(unpacker, &load.job, false);
        wait_for(&done, 1);
        assert_int_equal(load.job.outcome, UNPACK_READ_FAILED);
        load_deinit(&load);
        assert_int_equal(run(unpacker, &extent, true, 200000, &seed), UNPACK_OK);
    }
    extent_deinit(&extent);
    sem_destroy(&done);
    unpacker_free(unpacker);
}

/* ---- order ---- */

/* Jobs that note when they are done. Before the first of them is, its thread waits for the gate. */
struct race {
    struct load loads[6];
    uint32_t order[6], n_done;
    sem_t gate, at_gate, done;
};

static struct race race;

static void note_done(struct unpack_job *job)
{
    race.order[race.n_done++] = (uint32_t)((struct load *)job->owner - race.loads); /* by the only thread */
    if (race.n_done == 1) {
        sem_post(&race.at_gate);
        wait_for(&race.gate, 1);
    }
    sem_post(&race.done);
}

static void race_init(const struct extent *extents, uint32_t n)
{
    race.n_done = 0;
    sem_init(&race.gate, 0, 0);
    sem_init(&race.at_gate, 0, 0);
    sem_init(&race.done, 0, 0);
    for (uint32_t i = 0; i < n; i++) {
        load_init(&race.loads[i], &extents[i % 2], true, &race.done);
        race.loads[i].job.done = note_done;
    }
}

static void race_deinit(const uint32_t *order, uint32_t n)
{
    wait_for(&race.done, n);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(race.order[i], order[i]);
        assert_int_equal(race.loads[i].job.outcome, UNPACK_OK);
        assert_true(holds_the_expert(&race.loads[i]));
        load_deinit(&race.loads[i]);
    }
    sem_destroy(&race.gate);
    sem_destroy(&race.at_gate);
    sem_destroy(&race.done);
}

static void land_whole(struct unpacker *unpacker, struct load *load)
{
    land(unpacker, load, UINT64_MAX);
    unpacker_ended(unpacker, &load->job, true);
}

/* All of them queue while the only thread waits at the gate. */
static void urgent_jobs_and_those_promoted_go_first(void **state)
{
    (void)state;
    struct unpacker *unpacker = new_unpacker(1, 6);
    struct extent extents[2];
    extent_init(&extents[0], true, 29);
    extent_init(&extents[1], false, 31);
    race_init(extents, 6);
    land_whole(unpacker, &race.loads[0]);
    wait_for(&race.at_gate, 1);
    race.loads[4].job.urgent = true;
    for (uint32_t i = 1; i < 5; i++)
        land_whole(unpacker, &race.loads[i]);
    unpacker_promote(unpacker, &race.loads[3].job);
    unpacker_promote(unpacker, &race.loads[3].job); /* once more changes nothing */
    unpacker_promote(unpacker, &race.loads[5].job); /* before any of it has landed */
    land_whole(unpacker, &race.loads[5]);
    sem_post(&race.gate);
    race_deinit((const uint32_t[]){0, 4, 3, 5, 1, 2}, 6);
    for (uint32_t i = 0; i < 2; i++)
        extent_deinit(&extents[i]);
    unpacker_free(unpacker);
}

/* A page of a slot that stops who touches it, until it is let go. */
struct trap {
    uint8_t *page;
    int hit[2], go[2]; /* pipes */
};

static struct trap trap;

static void on_fault(int signal_number, siginfo_t *info, void *context)
{
    (void)context;
    uint8_t byte = 0, *at = info->si_addr;
    if (at < trap.page || at >= trap.page + IO_ALIGN) {
        signal(signal_number, SIG_DFL);
        return;
    }
    bool ok = write(trap.hit[1], &byte, 1) == 1 && read(trap.go[0], &byte, 1) == 1;
    if (!ok || mprotect(trap.page, IO_ALIGN, PROT_READ | PROT_WRITE) != 0)
        abort();
}

static struct sigaction trap_set(uint8_t *page)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, before;
    trap.page = page;
    assert_int_equal(pipe(trap.hit) | pipe(trap.go), 0);
    assert_int_equal(sigaction(SIGSEGV, &action, &before), 0);
    assert_int_equal(mprotect(page, IO_ALIGN, PROT_NONE), 0);
    return before;
}

/* The unpacker's threads take no signals; in a job's done() they can be made to take this one. */
static void take_faults(struct unpack_job *job)
{
    sigset_t faults;
    sigemptyset(&faults);
    sigaddset(&faults, SIGSEGV);
    pthread_sigmask(SIG_UNBLOCK, &faults, NULL);
    on_done(job);
}

static void trap_await(void)
{
    uint8_t byte;
    assert_int_equal(read(trap.hit[0], &byte, 1), 1);
}

static void trap_release(const struct sigaction *before)
{
    uint8_t byte = 0;
    assert_int_equal(write(trap.go[1], &byte, 1), 1);
    wait_for(&race.at_gate, 1); /* what was stopped has gone on */
    assert_int_equal(sigaction(SIGSEGV, before, NULL), 0);
    for (uint32_t i = 0; i < 2; i++) {
        close(trap.hit[i]);
        close(trap.go[i]);
    }
}

/* A plain extent of more than one piece that lies on pages of its own. */
static void long_extent_init(struct extent *extent, uint64_t bytes)
{
    struct shard_slice slice[SHARD_N_PARTS] = {0};
    slice[SHARD_UP] = (struct shard_slice){.present = true, .type = BF16, .bytes = bytes};
    packed_layout_init(&extent->layout, slice, (const uint8_t[SHARD_N_PARTS]){0});
    assert_int_equal(extent->layout.slot_bytes, bytes);
    extent->bytes = bytes;
    extent->expert = calloc(1, bytes);
    extent->stored = calloc(1, bytes);
    extent->hash = XXH3_64bits(extent->stored, bytes);
}

/* The only thread is stopped in the middle of a job that nobody waits for; then one comes that is waited for. */
static void an_urgent_job_does_not_wait_for_all_of_another(void **state)
{
    (void)state;
    struct unpacker *unpacker = new_unpacker(1, 6);
    struct extent extents[2];
    long_extent_init(&extents[0], 8 << 20);
    extent_init(&extents[1], true, 31);
    for (uint32_t promoted = 0; promoted < 2; promoted++) {
        race_init(extents, 3);
        race.loads[2].job.done = take_faults;
        land_whole(unpacker, &race.loads[2]);
        wait_for(&race.done, 1);
        struct load *first = &race.loads[0];
        uint8_t *unaligned = first->memory, *pages = NULL;
        assert_int_equal(posix_memalign((void **)&pages, IO_ALIGN, (8 << 20) + IO_ALIGN), 0);
        free(unaligned);
        first->memory = pages;
        first->job.slot = pages;
        memcpy(pages, extents[0].stored, extents[0].bytes);
        first->landed = extents[0].bytes;
        struct sigaction before = trap_set(pages + IO_ALIGN);
        unpacker_ended(unpacker, &first->job, true);
        trap_await();
        race.loads[1].job.urgent = true;
        land_whole(unpacker, &race.loads[1]);
        if (promoted) /* then it goes on */
            unpacker_promote(unpacker, &first->job);
        trap_release(&before);
        sem_post(&race.gate);
        wait_for(&race.done, 2);
        assert_int_equal(race.order[0], promoted ? 0 : 1);
        assert_int_equal(race.order[1], promoted ? 1 : 0);
        for (uint32_t i = 0; i < 2; i++)
            assert_int_equal(race.loads[i].job.outcome, UNPACK_OK);
        free(pages);
        for (uint32_t i = 1; i < 3; i++)
            load_deinit(&race.loads[i]);
    }
    for (uint32_t i = 0; i < 2; i++)
        extent_deinit(&extents[i]);
    unpacker_free(unpacker);
}

/* ---- many jobs ---- */

struct feeder {
    struct unpacker *unpacker;
    const struct extent *extents; /* [3]: compressed, plain, damaged */
    uint32_t seed;
    uint32_t n_wrong;
};

/* Feeds a set of jobs in turns, as a reader with several under way, and cancels some. */
static void *feed(void *context)
{
    struct feeder *feeder = context;
    struct load loads[MAX_JOBS / 2];
    enum unpack_outcome expected[MAX_JOBS / 2];
    sem_t done;
    sem_init(&done, 0, 0);
    for (uint32_t round = 0; round < 3; round++) {
        uint32_t n = MAX_JOBS / 2, n_open = n;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t which = next_random(&feeder->seed) % 3;
            load_init(&loads[i], &feeder->extents[which], true, &done);
            loads[i].job.urgent = next_random(&feeder->seed) % 4 == 0;
            expected[i] = which == 2 ? UNPACK_CORRUPT : UNPACK_OK;
        }
        while (n_open > 0) {
            struct load *load = &loads[next_random(&feeder->seed) % n];
            uint32_t i = (uint32_t)(load - loads);
            if (load->landed == UINT64_MAX)
                continue;
            bool cancelled = next_random(&feeder->seed) % 40 == 0;
            if (next_random(&feeder->seed) % 8 == 0)
                unpacker_promote(feeder->unpacker, &load->job);
            bool whole = load->landed == load->extent->bytes;
            if (!whole && !cancelled) {
                land(feeder->unpacker, load, 1 + next_random(&feeder->seed) % 300000);
                continue;
            }
            expected[i] = whole ? expected[i] : UNPACK_READ_FAILED;
            load->landed = UINT64_MAX;
            n_open--;
            unpacker_ended(feeder->unpacker, &load->job, whole);
        }
        wait_for(&done, n);
        for (uint32_t i = 0; i < n; i++) {
            feeder->n_wrong += loads[i].job.outcome != expected[i];
            feeder->n_wrong += expected[i] == UNPACK_OK && !holds_the_expert(&loads[i]);
            load_deinit(&loads[i]);
        }
    }
    sem_destroy(&done);
    return NULL;
}

static void many_jobs_and_threads_do_not_disturb_each_other(void **state)
{
    (void)state;
    struct extent extents[3];
    extent_init(&extents[0], true, 17);
    extent_init(&extents[1], false, 19);
    extent_init(&extents[2], true, 23);
    extents[2].stored[extents[2].bytes / 3] ^= 4;
    for (uint32_t n_threads = 1; n_threads <= 4; n_threads += 3) {
        struct unpacker *unpacker = new_unpacker(n_threads, MAX_JOBS);
        struct feeder feeders[2] = {{unpacker, extents, 1, 0}, {unpacker, extents, 2, 0}};
        pthread_t threads[2];
        for (uint32_t i = 0; i < 2; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, feed, &feeders[i]), 0);
        for (uint32_t i = 0; i < 2; i++) {
            pthread_join(threads[i], NULL);
            assert_int_equal(feeders[i].n_wrong, 0);
        }
        unpacker_free(unpacker);
    }
    for (uint32_t i = 0; i < 3; i++)
        extent_deinit(&extents[i]);
}

static void unpacker_takes_no_more_heap_than_it_says(void **state)
{
    (void)state;
    for (uint32_t decodes = 0; decodes < 2; decodes++)
        for (uint32_t n_jobs = 1; n_jobs <= 1000; n_jobs *= 10) {
            struct unpacker *unpacker;
            struct unpacker_config config = {.n_threads = 1, .n_jobs = n_jobs, .decodes = decodes};
            struct mallinfo2 before = mallinfo2();
            assert_int_equal(unpacker_new(&unpacker, &config, NULL), PS_OK);
            struct mallinfo2 after = mallinfo2(); /* all zero under a sanitizer's allocator */
            uint64_t taken = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd;
            assert_true(taken <= unpacker_memory(&config));
            unpacker_free(unpacker);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(extents_are_unpacked_in_place_however_they_land),
        cmocka_unit_test(chunks_are_unpacked_before_the_rest_has_landed),
        cmocka_unit_test(any_flipped_bit_is_found),
        cmocka_unit_test(damaged_sizes_touch_nothing_outside),
        cmocka_unit_test(failed_reads_are_passed_on_and_the_job_can_be_used_again),
        cmocka_unit_test(urgent_jobs_and_those_promoted_go_first),
        cmocka_unit_test(an_urgent_job_does_not_wait_for_all_of_another),
        cmocka_unit_test(many_jobs_and_threads_do_not_disturb_each_other),
        cmocka_unit_test(unpacker_takes_no_more_heap_than_it_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
