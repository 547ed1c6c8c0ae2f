/* The expert cache over a packed container: what it hands out, what it checks, and what becomes of damage. Damage enters through
 * the reader's filter, which sees each read's bytes before anyone else. */
#include <malloc.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>

#include <cmocka.h>

#include "expert_cache_fixture.h"
#include "storage/expert_cache_internal.h"
#include "storage/extent_codec.h"
#include "storage/io_reader_internal.h"
#include "storage/pack_writer.h"

enum { N_LAYERS = 2, N_SHARDS = N_LAYERS * N_EXPERTS, SPLIT = 4096 };

static const uint8_t types[N_LAYERS] = {F16, F16};

/* ---- a container of the fixture's model, with weights that shrink ---- */

struct packed_model {
    struct model model; /* bytes and GGUF are the source's, map and reader the container's */
    struct gguf *gguf;  /* the container's directory */
    char path[80];
};

static void make_compressible(struct model *model)
{
    uint64_t size = gguf_file_size(model->gguf, 0);
    for (uint64_t i = gguf_tensor_at(model->gguf, 0)->offset; i < size; i++)
        if (i % 2 == 1)
            model->bytes[i] = (uint8_t)(0x3c + model->bytes[i] % 3);
    FILE *file = fopen(model->path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(model->bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static void write_extents(struct pack_writer *writer, const struct model *model,
                          const struct packed_layout *layout)
{
    uint8_t *expert = calloc(1, layout->bytes), *out = malloc(layout->slot_bytes);
    struct chunk_encoder *encoder = chunk_encoder_new(1);
    for (uint32_t shard = 0; shard < N_SHARDS; shard++) {
        for (uint32_t part = 0; part < 3; part++) {
            const struct gguf_tensor *tensor = gguf_tensor_at(model->gguf, shard / N_EXPERTS * 3 + part);
            uint64_t bytes = tensor->bytes / N_EXPERTS;
            assert_int_equal(bytes, layout->part_bytes[part]);
            memcpy(expert + layout->part_offset[part],
                   model->bytes + tensor->offset + shard % N_EXPERTS * bytes, bytes);
        }
        const uint8_t *extent = expert;
        uint64_t bytes = layout->bytes;
        if (layout->compressed) {
            bytes = extent_encode(encoder, layout, expert, out);
            extent = out;
        }
        assert_int_equal(pack_writer_extent(writer, extent, bytes, extent_hash(extent, bytes), NULL), PS_OK);
    }
    chunk_encoder_free(encoder);
    free(expert);
    free(out);
}

static void pack(struct packed_model *packed, const uint8_t *codec)
{
    const struct model *model = &packed->model;
    uint8_t codecs[N_LAYERS][PACKED_LAYER_CODECS] = {{0}};
    uint64_t trunk_bytes[N_LAYERS * 3] = {0};
    uint32_t order[N_SHARDS];
    for (uint32_t i = 0; i < N_SHARDS; i++)
        order[i] = i;
    struct packed_layout layout;
    packed_layout_init(&layout, shard_map_layer(model->map, 0)->slice, codec);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        memcpy(codecs[l], codec, SHARD_N_PARTS);
    struct pack_plan plan = {.path = packed->path,
                             .identity = codecs,
                             .identity_bytes = sizeof(codecs),
                             .header = model->bytes,
                             .header_bytes = gguf_tensor_at(model->gguf, 0)->offset,
                             .n_tensors = N_LAYERS * 3,
                             .n_layers = N_LAYERS,
                             .n_shards = N_SHARDS,
                             .trunk_bytes = trunk_bytes,
                             .order = order};
    struct pack_decisions decisions = {.codecs = codecs[0], .note = "{}", .note_bytes = 2};
    struct pack_writer *writer;
    enum pack_start start;
    assert_int_equal(pack_writer_new(&writer, &plan, &start, NULL), PS_OK);
    assert_int_equal(start, PACK_FRESH);
    assert_int_equal(pack_writer_decide(writer, &decisions, NULL), PS_OK);
    write_extents(writer, model, &layout);
    assert_int_equal(pack_writer_finish(writer, NULL), PS_OK);
    pack_writer_free(writer, false);
}

/* False: this backend cannot be had here. */
static bool open_packed(struct packed_model *packed, bool compressed, enum io_backend backend)
{
    struct model *model = &packed->model;
    if (!open_model(model, types, N_LAYERS, backend)) {
        close_model(model);
        return false;
    }
    make_compressible(model);
    snprintf(packed->path, sizeof(packed->path), "%s.pack", model->path);
    const uint8_t codec[SHARD_N_PARTS] = {[SHARD_GATE] = compressed ? CHUNK_ZSTD_BYTES : CHUNK_RAW,
                                          [SHARD_DOWN] = compressed ? CHUNK_ZSTD_BYTES : CHUNK_RAW};
    pack(packed, codec);
    io_reader_free(model->reader);
    shard_map_free(model->map);
    assert_int_equal(gguf_open(&packed->gguf, packed->path, NULL), PS_OK);
    assert_int_equal(shard_map_new(&model->map, packed->gguf, N_LAYERS, NULL), PS_OK);
    const char *path = packed->path;
    struct io_reader_config config = {
        .backend = backend, .direct = true, .queue_depth = 8, .split_bytes = SPLIT};
    assert_int_equal(io_reader_new(&model->reader, &path, 1, &config, NULL), PS_OK);
    return true;
}

static void close_packed(struct packed_model *packed)
{
    close_model(&packed->model);
    gguf_free(packed->gguf);
    unlink(packed->path);
}

static struct expert_cache *cache_with(struct packed_model *packed, enum expert_verify verify,
                                       uint32_t n_slots, uint32_t n_threads)
{
    struct expert_cache_config config = {cache_policy_at(0), n_slots, verify, n_threads};
    struct expert_cache_size size;
    struct expert_cache *cache;
    expert_cache_min_size(packed->model.map, &config, &size);
    assert_int_equal(expert_cache_new(&cache, packed->model.map, packed->model.reader, &config,
                                      size.arena_bytes + size.overhead_bytes, NULL),
                     PS_OK);
    return cache;
}

static struct expert_cache *cache_over(struct packed_model *packed, enum expert_verify verify,
                                       uint32_t n_slots)
{
    return cache_with(packed, verify, n_slots, 2);
}

/* ---- damage ---- */

struct damage {
    uint64_t offset; /* in the file, of the byte that is read wrong; UINT64_MAX: none */
    uint32_t times, hits;
};

static int64_t spoil(void *context, const struct io_read *read, int64_t result)
{
    struct damage *damage = context;
    uint64_t at = damage->offset - read->offset;
    if (damage->offset >= read->offset && result > 0 && at < (uint64_t)result &&
        damage->hits < damage->times) {
        damage->hits++;
        read->buffer[at] ^= 0x10;
    }
    return result;
}

static void damage_shard(struct packed_model *packed, struct damage *damage, uint32_t layer, uint32_t expert,
                         uint32_t times)
{
    struct shard_location location;
    struct io_reader *reader = packed->model.reader;
    shard_map_locate(packed->model.map, layer, expert, &location);
    pthread_mutex_lock(&reader->lock);
    *damage = (struct damage){.offset = location.ranges[0].offset + 4321, .times = times};
    reader->filter = spoil;
    reader->filter_context = damage;
    pthread_mutex_unlock(&reader->lock);
}

/* ---- promises ---- */

static void run_walks(bool compressed, enum expert_verify verify, enum io_backend backend)
{
    struct packed_model packed;
    if (!open_packed(&packed, compressed, backend))
        return;
    struct expert_cache *cache = cache_over(&packed, verify, 24);
    uint32_t ids[N_EXPERTS], seed = 11;
    bool seen[N_LAYERS][N_EXPERTS] = {{false}};
    uint32_t n_seen = 0;
    for (uint64_t token = 0; token < 60; token++)
        for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
            uint32_t n = token % 10 == 9 ? 40 : 8; /* at times more than there are slots */
            for (uint32_t i = 0; i < 3; i++)
                expert_cache_prefetch(cache, 1 - layer, next_random(&seed) % N_EXPERTS);
            random_ids(ids, n, &seed);
            for (uint32_t i = 0; i < n; i++) {
                n_seen += !seen[layer][ids[i]];
                seen[layer][ids[i]] = true;
            }
            walk(&packed.model, cache, layer, ids, n, token, 4);
        }
    struct expert_cache_stats stats = stats_of(cache);
    assert_int_equal(stats.reread_sound, 0);
    assert_true((stats.bytes_unpacked > 0) == compressed);
    if (verify == EXPERT_VERIFY_OFF)
        assert_int_equal(stats.checked, 0);
    else if (verify == EXPERT_VERIFY_FIRST)
        assert_in_range(stats.checked, n_seen, N_SHARDS);
    else
        assert_true(stats.checked >= stats.misses && stats.misses > N_SHARDS);
    expert_cache_reset_stats(cache);
    stats = stats_of(cache);
    assert_int_equal(stats.checked + stats.bytes_unpacked, 0);
    expert_cache_free(cache);
    close_packed(&packed);
}

static void experts_are_handed_out_as_the_gguf_had_them(void **state)
{
    (void)state;
    static const enum io_backend backends[] = {IO_BACKEND_THREADS, IO_BACKEND_URING};
    for (uint32_t b = 0; b < 2; b++)
        for (uint32_t compressed = 0; compressed < 2; compressed++)
            for (int verify = EXPERT_VERIFY_OFF; verify <= EXPERT_VERIFY_ALWAYS; verify++)
                run_walks(compressed, (enum expert_verify)verify, backends[b]);
}

static void damage_that_passes_is_read_again(void **state)
{
    (void)state;
    for (uint32_t compressed = 0; compressed < 2; compressed++) {
        struct packed_model packed;
        struct damage damage;
        const uint32_t ids[] = {3, 9, 70};
        open_packed(&packed, compressed, IO_BACKEND_THREADS);
        struct expert_cache *cache = cache_over(&packed, EXPERT_VERIFY_FIRST, 8);
        damage_shard(&packed, &damage, 1, 9, 1);
        walk(&packed.model, cache, 1, ids, 3, 0, 4);
        assert_int_equal(damage.hits, 1);
        assert_int_equal(stats_of(cache).reread_sound, 1);
        expert_cache_free(cache);
        close_packed(&packed);
    }
}

static void damage_that_stays_is_an_error_that_names_it(void **state)
{
    (void)state;
    for (uint32_t compressed = 0; compressed < 2; compressed++) {
        struct packed_model packed;
        struct damage damage;
        struct ps_error err;
        struct expert_set set;
        struct expert_view views[4];
        const uint32_t ids[] = {3, 9, 70};
        open_packed(&packed, compressed, IO_BACKEND_THREADS);
        struct expert_cache *cache = cache_over(&packed, EXPERT_VERIFY_ALWAYS, 8);
        damage_shard(&packed, &damage, 1, 9, UINT32_MAX);
        uint32_t n, n_views = 0;
        expert_set_begin(cache, &set, 1, ids, 3, 0);
        while ((n = expert_set_next(cache, &set, views, 4)) > 0) {
            for (uint32_t i = 0; i < n; i++) {
                assert_int_not_equal(views[i].expert, 9);
                assert_view_equals_file(&packed.model, 1, &views[i]);
            }
            expert_set_release(cache, &set, views, n);
            n_views += n;
        }
        assert_true(n_views < 3);
        assert_int_equal(expert_set_end(cache, &set, &err), PS_ERR_FORMAT);
        assert_int_equal(damage.hits, 2);
        char expected[256];
        snprintf(expected, sizeof(expected), "layer 1, expert 9: %s: extent at offset %llu: checksum differs",
                 packed.path, (unsigned long long)damage.offset - 4321);
        assert_non_null(strstr(err.message, expected));
        damage_shard(&packed, &damage, 1, 9, 0);
        walk(&packed.model, cache, 1, ids, 3, 1, 4); /* the drive has recovered */
        expert_cache_free(cache);
        close_packed(&packed);
    }
}

static void first_checks_once_and_always_each_time(void **state)
{
    (void)state;
    for (uint32_t compressed = 0; compressed < 2; compressed++) {
        struct packed_model packed;
        struct damage damage;
        struct expert_set set;
        struct expert_view view;
        const uint32_t id = 5;
        open_packed(&packed, compressed, IO_BACKEND_THREADS);
        for (int verify = EXPERT_VERIFY_OFF; verify <= EXPERT_VERIFY_ALWAYS; verify++) {
            struct expert_cache *cache = cache_over(&packed, (enum expert_verify)verify, 1);
            uint32_t ids[] = {5, 6, 5};
            damage_shard(&packed, &damage, 0, 5, 0);
            for (uint32_t i = 0; i < 3; i++)
                walk(&packed.model, cache, 0, &ids[i], 1, i, 1); /* each evicts the last */
            const uint64_t checked[] = {0, 2, 3};
            assert_int_equal(stats_of(cache).checked, checked[verify]);
            walk(&packed.model, cache, 0, &ids[1], 1, 3, 1);
            damage_shard(&packed, &damage, 0, 5, UINT32_MAX);
            expert_set_begin(cache, &set, 0, &id, 1, 4);
            uint32_t n = expert_set_next(cache, &set, &view, 1);
            if (verify == EXPERT_VERIFY_ALWAYS)
                assert_int_equal(n, 0);
            else if (!compressed) /* of what is compressed some damage is noticed all the same */
                assert_int_equal(n, 1);
            assert_true((expert_set_end(cache, &set, NULL) == PS_OK) == (n == 1));
            expert_cache_free(cache);
        }
        close_packed(&packed);
    }
}

static void damage_ahead_of_a_walk_leaves_no_trace(void **state)
{
    (void)state;
    struct packed_model packed;
    struct damage damage;
    const uint32_t ids[] = {3, 9, 70};
    open_packed(&packed, true, IO_BACKEND_THREADS);
    for (uint32_t round = 0; round < 20; round++) {
        struct expert_cache *cache = cache_over(&packed, EXPERT_VERIFY_FIRST, 8);
        damage_shard(&packed, &damage, 1, 9, 2); /* both of its reads ahead, or the walk's are among them */
        assert_int_equal(expert_cache_prefetch(cache, 1, 9), EXPERT_PREFETCH_STARTED);
        if (round % 2 == 0) {
            struct damage now = {0};
            for (uint32_t i = 0; i < 2000 && now.hits < 2; i++) {
                nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
                pthread_mutex_lock(&packed.model.reader->lock);
                now = damage;
                pthread_mutex_unlock(&packed.model.reader->lock);
            }
            assert_int_equal(now.hits, 2);
            nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* the unpacker ends */
            assert_false(expert_cache_is_resident(cache, 1, 9));
            walk(&packed.model, cache, 1, ids, 3, 0, 4);
        } else { /* freed, or passed by, at any moment of it */
            nanosleep(&(struct timespec){.tv_nsec = round * 40000}, NULL);
            walk(&packed.model, cache, 1, ids, 1, 0, 4);
        }
        expert_cache_free(cache);
    }
    close_packed(&packed);
}

/* A job of its own keeps the cache's only unpacking thread from all others. */
struct hostage {
    struct unpack_job job;
    sem_t taken, let_go;
};

static void hold_thread(struct unpack_job *job)
{
    struct hostage *hostage = job->owner;
    sem_post(&hostage->taken);
    while (sem_wait(&hostage->let_go) < 0)
        ;
}

static void take_thread(struct hostage *hostage, struct expert_cache *cache)
{
    struct shard_location location;
    shard_map_locate(cache->map, 0, 0, &location);
    sem_init(&hostage->taken, 0, 0);
    sem_init(&hostage->let_go, 0, 0);
    hostage->job = (struct unpack_job){.layout = location.packed,
                                       .stored_bytes = location.ranges[0].length,
                                       .done = hold_thread,
                                       .owner = hostage};
    unpacker_ended(cache->unpacker, &hostage->job, false);
    while (sem_wait(&hostage->taken) < 0)
        ;
}

static bool is_urgent(const struct expert_cache *cache, uint32_t layer, uint32_t expert)
{
    return cache->unpack[expert_cache_slot_of(cache, layer, expert)].urgent;
}

static void what_a_set_waits_for_is_unpacked_as_urgent(void **state)
{
    (void)state;
    struct packed_model packed;
    struct hostage hostage;
    struct expert_set set;
    struct expert_view views[4];
    const uint32_t ids[] = {3, 21};
    open_packed(&packed, true, IO_BACKEND_THREADS);
    struct expert_cache *cache = cache_with(&packed, EXPERT_VERIFY_FIRST, 16, 1);
    take_thread(&hostage, cache);
    assert_int_equal(expert_cache_prefetch(cache, 0, 20), EXPERT_PREFETCH_STARTED);
    assert_int_equal(expert_cache_prefetch(cache, 1, 21), EXPERT_PREFETCH_STARTED);
    assert_false(is_urgent(cache, 0, 20) || is_urgent(cache, 1, 21));
    expert_set_begin(cache, &set, 1, ids, 2, 0);
    assert_true(is_urgent(cache, 1, 3) && is_urgent(cache, 1, 21));
    assert_false(is_urgent(cache, 0, 20));
    assert_int_equal(stats_of(cache).late, 1);
    sem_post(&hostage.let_go);
    for (uint32_t n; (n = expert_set_next(cache, &set, views, 4)) > 0;) {
        for (uint32_t i = 0; i < n; i++)
            assert_view_equals_file(&packed.model, 1, &views[i]);
        expert_set_release(cache, &set, views, n);
    }
    assert_int_equal(expert_set_end(cache, &set, NULL), PS_OK);
    expert_cache_free(cache);
    sem_destroy(&hostage.taken);
    sem_destroy(&hostage.let_go);
    close_packed(&packed);
}

static void unpacking_is_counted_and_costs_nothing_where_there_is_none(void **state)
{
    (void)state;
    mallopt(M_MMAP_THRESHOLD, 32 << 20); /* no block is rounded up to whole pages */
    for (uint32_t compressed = 0; compressed < 2; compressed++) {
        struct packed_model packed;
        uint64_t overhead[3];
        open_packed(&packed, compressed, IO_BACKEND_THREADS);
        for (int verify = EXPERT_VERIFY_OFF; verify <= EXPERT_VERIFY_ALWAYS; verify++) {
            struct expert_cache_size size;
            struct mallinfo2 before = mallinfo2();
            struct expert_cache *cache = cache_over(&packed, (enum expert_verify)verify, 16);
            struct mallinfo2 after = mallinfo2(); /* all zero under a sanitizer's allocator */
            expert_cache_get_size(cache, &size);
            assert_true(after.uordblks + after.hblkhd - before.uordblks - before.hblkhd <=
                        size.overhead_bytes + 1024); /* malloc's own headers */
            overhead[verify] = size.overhead_bytes;
            expert_cache_free(cache);
        }
        struct expert_cache_size none;
        struct expert_cache_config config = {cache_policy_at(0), 16, EXPERT_VERIFY_OFF, 4};
        expert_cache_min_size(packed.model.map, &config, &none);
        if (!compressed)
            assert_int_equal(none.overhead_bytes, overhead[EXPERT_VERIFY_OFF]);
        else
            assert_true(none.overhead_bytes > overhead[EXPERT_VERIFY_OFF]); /* more threads */
        assert_true(overhead[EXPERT_VERIFY_OFF] <= overhead[EXPERT_VERIFY_ALWAYS]);
        assert_int_equal(overhead[EXPERT_VERIFY_FIRST] - overhead[EXPERT_VERIFY_ALWAYS], N_SHARDS / 8 + 1);
        close_packed(&packed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(experts_are_handed_out_as_the_gguf_had_them),
        cmocka_unit_test(damage_that_passes_is_read_again),
        cmocka_unit_test(damage_that_stays_is_an_error_that_names_it),
        cmocka_unit_test(first_checks_once_and_always_each_time),
        cmocka_unit_test(damage_ahead_of_a_walk_leaves_no_trace),
        cmocka_unit_test(what_a_set_waits_for_is_unpacked_as_urgent),
        cmocka_unit_test(unpacking_is_counted_and_costs_nothing_where_there_is_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
