/* The expert cache over a small model on disk: what it hands out, what it keeps, what it costs, how it fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "expert_cache_fixture.h"
#include "policy_replay.h"

/* ---- size ---- */

static void fit_is_within_the_budget_monotone_and_wastes_less_than_a_slot(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, mixed, 4, IO_BACKEND_THREADS);
    for (uint32_t p = 0; cache_policy_at(p); p++) {
        const struct cache_policy *policy = cache_policy_at(p);
        struct expert_cache_size least, size, before = {0};
        expert_cache_min_size(model.map, CACHE_CONFIG(policy, 3), &least);
        assert_int_equal(least.slots, 6);
        uint64_t smallest = least.arena_bytes + least.overhead_bytes;
        assert_false(expert_cache_fit(model.map, CACHE_CONFIG(policy, 3), smallest - 1, &size));
        assert_true(expert_cache_fit(model.map, CACHE_CONFIG(policy, 3), smallest, &size));
        assert_memory_equal(&size, &least, sizeof(size));
        for (uint64_t bytes = smallest; bytes < (uint64_t)16 << 20; bytes += 9973) {
            assert_true(expert_cache_fit(model.map, CACHE_CONFIG(policy, 3), bytes, &size));
            assert_true(size.arena_bytes + size.overhead_bytes <= bytes);
            assert_true(size.arena_bytes >= before.arena_bytes && size.slots >= before.slots);
            uint64_t largest_slot = shard_map_layer(model.map, 0)->slot_bytes + 4096;
            if (size.slots < shard_map_n_shards(model.map))
                assert_true(bytes - size.arena_bytes - size.overhead_bytes < largest_slot);
            assert_int_equal(size.arena_bytes % (uint64_t)sysconf(_SC_PAGESIZE), 0);
            before = size;
        }
        assert_int_equal(size.slots, shard_map_n_shards(model.map));
    }
    close_model(&model);
}

static void cache_takes_no_more_heap_than_it_says(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, mixed, 4, IO_BACKEND_THREADS);
    mallopt(M_MMAP_THRESHOLD, 32 << 20); /* no block is rounded up to whole pages */
    for (uint32_t p = 0; cache_policy_at(p); p++)
        for (uint64_t bytes = 1 << 20; bytes <= 16 << 20; bytes *= 2) {
            struct expert_cache *cache;
            struct expert_cache_size fit, size;
            assert_true(expert_cache_fit(model.map, CACHE_CONFIG(cache_policy_at(p), 1), bytes, &fit));
            struct mallinfo2 before = mallinfo2();
            assert_int_equal(expert_cache_new(&cache, model.map, model.reader,
                                              CACHE_CONFIG(cache_policy_at(p), 1), bytes, NULL),
                             PS_OK);
            struct mallinfo2 after = mallinfo2(); /* all zero under a sanitizer's allocator */
            expert_cache_get_size(cache, &size);
            assert_memory_equal(&size, &fit, sizeof(size));
            uint64_t heap = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd;
            assert_true(heap <= size.overhead_bytes + 512); /* malloc's own headers */
            assert_true(heap == 0 || heap >= size.overhead_bytes);
            expert_cache_free(cache);
        }
    close_model(&model);
}

static void budget_too_small_is_refused_with_the_smallest_that_works(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, mixed, 4, IO_BACKEND_THREADS);
    struct expert_cache *cache;
    struct expert_cache_size least;
    struct ps_error err;
    expert_cache_min_size(model.map, CACHE_CONFIG(cache_policy_at(0), 8), &least);
    unsigned long long smallest = least.arena_bytes + least.overhead_bytes;
    assert_int_equal(expert_cache_new(&cache, model.map, model.reader, CACHE_CONFIG(cache_policy_at(0), 8),
                                      smallest - 1, &err),
                     PS_ERR_BUDGET);
    assert_null(cache);
    char number[32];
    snprintf(number, sizeof(number), "%llu", smallest);
    assert_non_null(strstr(err.message, number));
    assert_int_equal(expert_cache_new(&cache, model.map, model.reader, CACHE_CONFIG(cache_policy_at(0), 8),
                                      smallest, &err),
                     PS_OK);
    expert_cache_free(cache);
    expert_cache_free(NULL);
    close_model(&model);
}

static void model_without_experts_gives_an_empty_cache(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, (const uint8_t[]){DENSE}, 1, IO_BACKEND_THREADS);
    struct expert_cache *cache;
    struct expert_cache_size size;
    assert_int_equal(
        expert_cache_new(&cache, model.map, model.reader, CACHE_CONFIG(cache_policy_at(0), 8), 1 << 20, NULL),
        PS_OK);
    expert_cache_get_size(cache, &size);
    assert_int_equal(size.slots, 0);
    assert_int_equal(size.arena_bytes, 0);
    walk(&model, cache, 0, NULL, 0, 0, 1);
    expert_cache_free(cache);
    close_model(&model);
}

static void pools_of_two_slot_sizes_share_the_budget_in_proportion(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, mixed, 4, IO_BACKEND_THREADS);
    uint64_t large = shard_map_layer(model.map, 0)->slot_bytes,
             small = shard_map_layer(model.map, 1)->slot_bytes;
    assert_true(small < large);
    struct expert_cache *cache;
    assert_int_equal(
        expert_cache_new(&cache, model.map, model.reader, CACHE_CONFIG(cache_policy_at(0), 1), 4 << 20, NULL),
        PS_OK);
    struct expert_cache_size size;
    expert_cache_get_size(cache, &size);
    /* Two layers of large shards and one of small ones. */
    uint64_t n_small = (size.slots * large - size.arena_bytes) / (large - small);
    assert_in_range(size.slots - n_small, 2 * n_small - 2, 2 * n_small + 2);
    /* Each pool keeps what it has room for, whatever the other does. */
    uint32_t ids[N_EXPERTS], seed = 1;
    random_ids(ids, N_EXPERTS, &seed);
    walk(&model, cache, 1, ids, (uint32_t)n_small, 0, 8);
    walk(&model, cache, 0, ids, N_EXPERTS, 0, 8);
    walk(&model, cache, 3, ids, N_EXPERTS, 0, 8);
    expert_cache_reset_stats(cache);
    walk(&model, cache, 1, ids, (uint32_t)n_small, 1, 8);
    assert_int_equal(stats_of(cache).hits, n_small);
    expert_cache_free(cache);
    close_model(&model);
}

/* ---- content ---- */

static void random_walks(struct model *model, const struct cache_policy *policy, uint64_t bytes,
                         uint32_t n_sets)
{
    struct expert_cache *cache;
    assert_int_equal(
        expert_cache_new(&cache, model->map, model->reader, CACHE_CONFIG(policy, 1), bytes, NULL), PS_OK);
    uint32_t ids[N_EXPERTS], seed = (uint32_t)bytes, n_asked = 0;
    for (uint32_t s = 0; s < n_sets; s++) {
        uint32_t layer = (const uint32_t[]){0, 1, 3}[s % 3];
        uint32_t n = s % 16 == 15 ? N_EXPERTS : next_random(&seed) % 12;
        random_ids(ids, n, &seed);
        walk(model, cache, layer, ids, n, s / 3, 1 + next_random(&seed) % 8);
        n_asked += n;
    }
    struct expert_cache_stats stats = stats_of(cache);
    assert_int_equal(stats.hits + stats.misses, n_asked);
    expert_cache_free(cache);
}

static void content_equals_the_file(enum io_backend backend)
{
    struct model model;
    if (!open_model(&model, mixed, 4, backend)) {
        close_model(&model);
        print_message("this backend cannot be had here: skipped\n");
        skip();
    }
    for (uint32_t p = 0; cache_policy_at(p); p++) {
        struct expert_cache_size least;
        expert_cache_min_size(model.map, CACHE_CONFIG(cache_policy_at(p), 1), &least);
        uint64_t smallest = least.arena_bytes + least.overhead_bytes;
        random_walks(&model, cache_policy_at(p), smallest, 48);
        random_walks(&model, cache_policy_at(p), smallest + (512 << 10), 96);
        random_walks(&model, cache_policy_at(p), smallest + (4 << 20), 96);
        random_walks(&model, cache_policy_at(p), smallest + (32 << 20), 96);
    }
    close_model(&model);
}

static void content_equals_the_file_with_uring(void **state)
{
    (void)state;
    content_equals_the_file(IO_BACKEND_URING);
}

static void content_equals_the_file_with_threads(void **state)
{
    (void)state;
    content_equals_the_file(IO_BACKEND_THREADS);
}

static void set_larger_than_the_cache_reads_each_expert_once(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 1, IO_BACKEND_AUTO);
    for (uint32_t n_slots = 1; n_slots <= 64; n_slots *= 4) {
        struct expert_cache *cache = cache_of(&model, "decay", n_slots);
        uint32_t ids[N_EXPERTS], seed = n_slots;
        uint64_t before = bytes_read(&model), expected = 0;
        random_ids(ids, N_EXPERTS, &seed);
        for (uint32_t e = 0; e < N_EXPERTS; e++)
            expected += spans_of_shard(&model, 0, e);
        walk(&model, cache, 0, ids, N_EXPERTS, 0, 16);
        assert_int_equal(bytes_read(&model) - before, expected);
        assert_int_equal(stats_of(cache).evictions, N_EXPERTS - n_slots);
        /* What stayed is used first, and so not read again. */
        walk(&model, cache, 0, ids, N_EXPERTS, 1, 16);
        assert_int_equal(stats_of(cache).hits, n_slots);
        expert_cache_free(cache);
    }
    close_model(&model);
}

/* ---- order and pins ---- */

static void hits_are_handed_out_before_misses(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 1, IO_BACKEND_AUTO);
    struct expert_cache *cache = cache_of(&model, "decay", 16);
    const uint32_t warm[] = {5, 6, 7}, ids[] = {1, 5, 2, 7, 3, 6};
    walk(&model, cache, 0, warm, 3, 0, 8);
    struct expert_set set;
    struct expert_view view;
    uint32_t order[6];
    expert_set_begin(cache, &set, 0, ids, 6, 1);
    usleep(20000); /* misses have landed by now, most likely, and still come last */
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(expert_set_next(cache, &set, &view, 1), 1);
        order[i] = view.index;
        expert_set_release(cache, &set, &view, 1);
    }
    assert_int_equal(expert_set_next(cache, &set, &view, 1), 0);
    assert_int_equal(expert_set_end(cache, &set, NULL), PS_OK);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(order[i] % 2, 1);
        assert_int_equal(order[i + 3] % 2, 0);
    }
    expert_cache_free(cache);
    close_model(&model);
}

static void hits_of_a_set_are_not_evicted_by_its_own_misses(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 1, IO_BACKEND_AUTO);
    for (uint32_t p = 0; cache_policy_at(p); p++) {
        struct expert_cache *cache = cache_of(&model, cache_policy_at(p)->name, 4);
        const uint32_t warm[] = {0, 1, 2, 3}, ids[] = {10, 11, 12, 13, 14, 3, 2, 1, 0};
        walk(&model, cache, 0, warm, 4, 0, 8);
        expert_cache_reset_stats(cache);
        walk(&model, cache, 0, ids, 9, 1, 2);
        assert_int_equal(stats_of(cache).hits, 4);
        assert_int_equal(stats_of(cache).misses, 5);
        expert_cache_free(cache);
    }
    close_model(&model);
}

static void pinned_slot_is_never_evicted_when_full(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 1, IO_BACKEND_AUTO);
    for (uint32_t p = 0; cache_policy_at(p); p++) {
        struct expert_cache *cache = cache_of(&model, cache_policy_at(p)->name, 3);
        uint32_t ids[40], seed = 3, n_views;
        random_ids(ids, 40, &seed);
        struct expert_set set;
        struct expert_view held[2], view;
        expert_set_begin(cache, &set, 0, ids, 40, 0);
        for (uint32_t i = 0; i < 2; i++)
            assert_int_equal(expert_set_next(cache, &set, &held[i], 1), 1);
        for (uint32_t i = 2; i < 40; i++) { /* all others pass through the third slot */
            assert_int_equal(expert_set_next(cache, &set, &view, 1), 1);
            assert_view_equals_file(&model, 0, &view);
            expert_set_release(cache, &set, &view, 1);
        }
        while ((n_views = expert_set_next(cache, &set, &view, 1)) > 0)
            fail();
        assert_view_equals_file(&model, 0, &held[0]);
        assert_view_equals_file(&model, 0, &held[1]);
        expert_set_release(cache, &set, held, 2);
        assert_int_equal(expert_set_end(cache, &set, NULL), PS_OK);
        expert_cache_free(cache);
    }
    close_model(&model);
}

static void holding_every_slot_is_an_error_not_a_missing_expert(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 1, IO_BACKEND_AUTO);
    struct expert_cache *cache = cache_of(&model, "decay", 2);
    const uint32_t ids[] = {4, 5, 6};
    struct expert_set set;
    struct expert_view views[3];
    struct ps_error err;
    expert_set_begin(cache, &set, 0, ids, 3, 0);
    for (uint32_t n = 0; n < 2;)
        n += expert_set_next(cache, &set, views + n, 1);
    assert_int_equal(expert_set_next(cache, &set, views + 2, 1), 0);
    assert_int_equal(expert_set_end(cache, &set, &err), PS_ERR_ARGUMENT);
    assert_non_null(strstr(err.message, "release"));
    walk(&model, cache, 0, ids, 3, 1, 8);
    expert_cache_free(cache);
    close_model(&model);
}

static void walk_may_be_abandoned_at_any_point(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 2, IO_BACKEND_AUTO);
    for (uint32_t n_slots = 1; n_slots <= 256; n_slots *= 4) {
        struct expert_cache *cache = cache_of(&model, "decay", n_slots);
        uint32_t seed = n_slots, ids[N_EXPERTS];
        for (uint32_t round = 0; round < 40; round++) {
            struct expert_set set;
            struct expert_view views[8];
            random_ids(ids, N_EXPERTS, &seed);
            expert_set_begin(cache, &set, round % 2, ids, round % 3 ? 20 : N_EXPERTS, round);
            for (uint32_t i = 0; i < round % 4; i++) {
                uint32_t n_views = expert_set_next(cache, &set, views, 1 + round % 8);
                expert_set_release(cache, &set, views, n_views > 0 && i < 2 ? n_views - 1 : n_views);
                if (i < 2 && n_views > 0)
                    break; /* one view stays borrowed */
            }
            assert_int_equal(expert_set_end(cache, &set, NULL), PS_OK);
        }
        walk(&model, cache, 0, ids, N_EXPERTS, 41, 8);
        walk(&model, cache, 1, ids, N_EXPERTS, 41, 8);
        expert_cache_free(cache);
    }
    close_model(&model);
}

/* ---- failure ---- */

static void failed_read_is_reported_and_the_cache_stays_usable(enum io_backend backend)
{
    struct model model;
    if (!open_model(&model, uniform, 2, backend)) {
        close_model(&model);
        print_message("this backend cannot be had here: skipped\n");
        skip();
    }
    const struct gguf_tensor *down = gguf_tensor_find(model.gguf, "blk.1.ffn_down_exps.weight");
    uint64_t kept = down->offset + 100 * (down->bytes / N_EXPERTS);
    assert_int_equal(truncate(model.path, (off_t)kept), 0); /* experts 100 and up of layer 1 are gone */
    for (uint32_t n_slots = 1; n_slots <= 64; n_slots *= 8) {
        struct expert_cache *cache = cache_of(&model, "decay", n_slots);
        const uint32_t good[] = {1, 2, 3, 97}, bad[] = {1, 2, 110, 3, 4};
        for (uint32_t round = 0; round < 3; round++) {
            struct expert_set set;
            struct expert_view views[8];
            struct ps_error err;
            uint32_t n_views;
            walk(&model, cache, 1, good, 4, 2 * round, 2);
            expert_set_begin(cache, &set, 1, bad, 5, 2 * round + 1);
            while ((n_views = expert_set_next(cache, &set, views, 2)) > 0) {
                for (uint32_t i = 0; i < n_views; i++) {
                    assert_true(views[i].expert != 110);
                    assert_view_equals_file(&model, 1, &views[i]);
                }
                expert_set_release(cache, &set, views, n_views);
            }
            assert_int_equal(expert_set_end(cache, &set, &err), PS_ERR_IO);
            assert_non_null(strstr(err.message, "layer 1, expert 110"));
            assert_non_null(strstr(err.message, model.path));
            assert_non_null(strstr(err.message, "offset"));
        }
        walk(&model, cache, 0, bad, 5, 7, 2);
        expert_cache_free(cache);
    }
    close_model(&model);
}

static void failed_read_is_reported_and_the_cache_stays_usable_with_uring(void **state)
{
    (void)state;
    failed_read_is_reported_and_the_cache_stays_usable(IO_BACKEND_URING);
}

static void failed_read_is_reported_and_the_cache_stays_usable_with_threads(void **state)
{
    (void)state;
    failed_read_is_reported_and_the_cache_stays_usable(IO_BACKEND_THREADS);
}

/* ---- policies, live ---- */

static uint64_t live_hits(struct model *model, const struct trace *trace, const char *policy,
                          uint32_t n_slots)
{
    struct expert_cache *cache = cache_of(model, policy, n_slots);
    for (uint32_t s = 0; s < trace->n_sets; s++) {
        const struct trace_set *set = &trace->sets[s];
        walk(model, cache, set->layer, set->ids, set->n, set->token, 1 + s % 4);
    }
    uint64_t hits = stats_of(cache).hits;
    expert_cache_free(cache);
    return hits;
}

static struct trace make_trace(uint32_t n_tokens, bool ring)
{
    struct trace trace = {MAX_LAYERS, N_EXPERTS, MAX_LAYERS * n_tokens, NULL};
    trace.sets = calloc(trace.n_sets, sizeof(*trace.sets));
    uint32_t seed = 5;
    for (uint32_t s = 0; s < trace.n_sets; s++) {
        uint32_t ids[N_EXPERTS];
        struct trace_set *set = &trace.sets[s];
        *set = (struct trace_set){.token = s / MAX_LAYERS, .layer = s % MAX_LAYERS, .n = 8};
        random_ids(ids, N_EXPERTS, &seed);
        for (uint32_t i = 0; i < 8; i++) /* half of them always the same */
            set->ids[i] = ring || i < 4 ? i : 4 + ids[i] % 124;
        for (uint32_t i = 4; i < 8 && !ring; i++)
            for (uint32_t j = 4; j < i; j++)
                if (set->ids[j] == set->ids[i]) {
                    set->ids[i] = 4 + (set->ids[i] - 3) % 124;
                    j = 3;
                }
    }
    return trace;
}

static void live_cache_hits_as_often_as_a_replay_of_its_policy(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, MAX_LAYERS, IO_BACKEND_AUTO);
    struct trace trace = make_trace(40, false);
    for (uint32_t p = 0; cache_policy_at(p); p++)
        for (uint32_t n_slots = 8; n_slots <= 512; n_slots *= 2) {
            uint64_t hits = live_hits(&model, &trace, cache_policy_at(p)->name, n_slots);
            assert_int_equal(hits, replay_hits(&trace, cache_policy_at(p), n_slots));
        }
    free(trace.sets);
    close_model(&model);
}

static void below_one_token_cycle_lru_never_hits_and_the_default_does(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, MAX_LAYERS, IO_BACKEND_AUTO);
    struct trace ring = make_trace(20, true); /* a cycle of 32 */
    assert_int_equal(live_hits(&model, &ring, "lru", 24), 0);
    assert_true(live_hits(&model, &ring, cache_policy_at(0)->name, 24) >= 19 * 16);
    free(ring.sets);
    close_model(&model);
}

/* ---- threads ---- */

struct watcher {
    struct expert_cache *cache;
    atomic_bool stop;
    uint64_t n_seen;
};

static void *watch(void *arg)
{
    struct watcher *watcher = arg;
    while (!atomic_load(&watcher->stop)) {
        struct expert_cache_stats stats = stats_of(watcher->cache);
        if (stats.hits + stats.misses > watcher->n_seen)
            watcher->n_seen = stats.hits + stats.misses;
        usleep(100);
    }
    return NULL;
}

static void statistics_may_be_read_while_a_walk_is_under_way(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 2, IO_BACKEND_AUTO);
    struct watcher watcher = {.cache = cache_of(&model, "decay", 24)};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, watch, &watcher), 0);
    uint32_t ids[N_EXPERTS], seed = 11;
    for (uint32_t s = 0; s < 200; s++) {
        random_ids(ids, 16, &seed);
        walk(&model, watcher.cache, s % 2, ids, 16, s / 2, 4);
    }
    atomic_store(&watcher.stop, true);
    pthread_join(thread, NULL);
    assert_in_range(watcher.n_seen, 0, 200 * 16);
    struct expert_cache_stats stats = stats_of(watcher.cache);
    assert_int_equal(stats.hits + stats.misses, 200 * 16);
    assert_int_equal(stats.evictions, stats.misses - 24);
    assert_true(stats.stall_s > 0);
    expert_cache_free(watcher.cache);
    close_model(&model);
}

static void waiting_is_counted_only_when_nothing_is_ready(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 1, IO_BACKEND_AUTO);
    struct expert_cache *cache = cache_of(&model, "decay", 8);
    const uint32_t ids[] = {0, 1, 2, 3, 4, 5, 6, 7};
    walk(&model, cache, 0, ids, 8, 0, 8);
    expert_cache_reset_stats(cache);
    walk(&model, cache, 0, ids, 8, 1, 1);
    assert_int_equal(stats_of(cache).hits, 8);
    assert_true(stats_of(cache).stall_s == 0);
    expert_cache_free(cache);
    close_model(&model);
}

/* ---- ahead of the walk ---- */

static void wait_until_resident(struct expert_cache *cache, uint32_t layer, uint32_t expert)
{
    for (int i = 0; i < 5000 && !expert_cache_is_resident(cache, layer, expert); i++)
        usleep(1000);
    assert_true(expert_cache_is_resident(cache, layer, expert));
}

static void expert_read_ahead_is_a_hit_and_counts_as_useful(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 4, IO_BACKEND_THREADS);
    struct expert_cache *cache = cache_of(&model, "lru", 16);
    assert_false(expert_cache_is_resident(cache, 1, 7));
    assert_int_equal(expert_cache_prefetch(cache, 1, 7), EXPERT_PREFETCH_STARTED);
    assert_int_equal(expert_cache_prefetch(cache, 1, 7), EXPERT_PREFETCH_PRESENT);
    wait_until_resident(cache, 1, 7);
    walk(&model, cache, 1, (const uint32_t[]){7, 8}, 2, 1, 2);
    struct expert_cache_stats stats = stats_of(cache);
    assert_int_equal(stats.hits, 1);
    assert_int_equal(stats.misses, 1);
    assert_int_equal(stats.bytes_useful, spans_of_shard(&model, 1, 7));
    assert_int_equal(stats.bytes_wasted, 0);
    expert_cache_free(cache);
    close_model(&model);
}

static void expert_read_ahead_in_vain_is_wasted_until_it_is_used(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 4, IO_BACKEND_THREADS);
    struct expert_cache *cache = cache_of(&model, "lru", 16);
    assert_int_equal(expert_cache_prefetch(cache, 1, 7), EXPERT_PREFETCH_STARTED);
    wait_until_resident(cache, 1, 7);
    walk(&model, cache, 1, (const uint32_t[]){8}, 1, 1, 1);
    assert_int_equal(stats_of(cache).bytes_wasted, spans_of_shard(&model, 1, 7));
    walk(&model, cache, 1, (const uint32_t[]){7}, 1, 2, 1);
    assert_int_equal(stats_of(cache).bytes_wasted, 0);
    assert_int_equal(stats_of(cache).bytes_useful, spans_of_shard(&model, 1, 7));
    expert_cache_free(cache);
    close_model(&model);
}

static void held_slots_leave_room_for_the_current_token(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 4, IO_BACKEND_THREADS);
    struct expert_cache *cache = cache_of(&model, "lru", 16);
    uint32_t started = 0;
    for (uint32_t e = 0; e < 16; e++)
        started += expert_cache_prefetch(cache, 2, e) == EXPERT_PREFETCH_STARTED;
    assert_int_equal(started, 4);
    uint32_t ids[40];
    for (uint32_t i = 0; i < 40; i++)
        ids[i] = i;
    walk(&model, cache, 0, ids, 40, 1, 3); /* more than there are slots: none of the held ones may leave */
    for (uint32_t e = 0; e < 4; e++)
        wait_until_resident(cache, 2, e);
    walk(&model, cache, 2, ids, 4, 1, 4);
    assert_int_equal(stats_of(cache).hits, 4);
    expert_cache_free(cache);
    close_model(&model);
}

/* A reader so slow that nothing submitted later than the first read lands by itself. */
static void slow_down(struct model *model)
{
    const char *path = model->path;
    io_reader_free(model->reader);
    struct io_reader_config config = {
        .backend = IO_BACKEND_THREADS, .direct = true, .queue_depth = 1, .limit_rate = 1 << 20};
    assert_int_equal(io_reader_new(&model->reader, &path, 1, &config, NULL), PS_OK);
}

static void reads_ahead_not_begun_are_taken_back_when_their_layer_passes(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 4, IO_BACKEND_THREADS);
    slow_down(&model);
    struct expert_cache *cache = cache_of(&model, "lru", 16);
    for (uint32_t e = 0; e < 4; e++)
        assert_int_equal(expert_cache_prefetch(cache, 1, e), EXPERT_PREFETCH_STARTED);
    walk(&model, cache, 1, (const uint32_t[]){3, 9}, 2, 1, 2);
    struct expert_cache_stats stats = stats_of(cache);
    assert_true(stats.withdrawn >= 2); /* of three; the first may have begun */
    assert_int_equal(stats.late, 1);
    assert_int_equal(stats.misses, 1);
    assert_int_equal(stats.bytes_late, spans_of_shard(&model, 1, 3));
    assert_false(expert_cache_is_resident(cache, 1, 2));
    expert_cache_free(cache); /* with reads ahead possibly under way */
    close_model(&model);
}

static void preload_fills_empty_slots_only_and_gives_way_to_the_walk(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 4, IO_BACKEND_THREADS);
    slow_down(&model);
    struct expert_cache *cache = cache_of(&model, "decay", 8);
    uint32_t n = 0;
    while (expert_cache_preload(cache, 3, n))
        n++;
    assert_int_equal(n, 8);
    walk(&model, cache, 0, (const uint32_t[]){1, 2, 3, 4, 5, 6}, 6, 1, 2);
    struct expert_cache_stats stats = stats_of(cache);
    assert_int_equal(stats.misses, 6);
    assert_true(stats.withdrawn >= 5);
    walk(&model, cache, 3, (const uint32_t[]){7, 0}, 2, 1, 2); /* the first was preloaded first and kept */
    assert_int_equal(stats_of(cache).misses, 7);
    expert_cache_free(cache);
    close_model(&model);
}

static void speculation_at_random_hands_out_what_is_in_the_file(enum io_backend backend)
{
    struct model model;
    if (!open_model(&model, mixed, 4, backend)) {
        close_model(&model);
        skip();
    }
    struct expert_cache_size size;
    expert_cache_min_size(model.map, CACHE_CONFIG(cache_policy_at(0), 12), &size);
    struct expert_cache *cache;
    assert_int_equal(expert_cache_new(&cache, model.map, model.reader, CACHE_CONFIG(cache_policy_at(0), 12),
                                      size.arena_bytes + size.overhead_bytes, NULL),
                     PS_OK);
    static const uint32_t layers[] = {0, 1, 3};
    uint32_t seed = 3;
    for (uint32_t i = 0; i < 9; i++)
        expert_cache_preload(cache, layers[i % 3], i);
    for (uint64_t token = 1; token <= 150; token++)
        for (uint32_t l = 0; l < 3; l++) {
            uint32_t ids[N_EXPERTS], ahead[N_EXPERTS];
            random_ids(ahead, 6, &seed);
            for (uint32_t i = 0; i < 6; i++)
                expert_cache_prefetch(cache, layers[(l + i % 2) % 3], ahead[i]);
            random_ids(ids, 8, &seed);
            ids[7] = next_random(&seed) % 2 ? ahead[0] : ids[7];
            uint32_t n = 8;
            for (uint32_t i = 0; i < 7; i++)
                if (ids[i] == ids[7])
                    n = 7;
            walk(&model, cache, layers[l], ids, n, token, 3);
        }
    struct expert_cache_stats stats = stats_of(cache);
    struct io_reader_stats io;
    io_reader_get_stats(model.reader, &io);
    assert_true(stats.bytes_useful > 0 && stats.bytes_wasted <= io.bytes_speculative);
    expert_cache_free(cache);
    close_model(&model);
}

static void speculation_at_random_hands_out_what_is_in_the_file_with_uring(void **state)
{
    (void)state;
    speculation_at_random_hands_out_what_is_in_the_file(IO_BACKEND_URING);
}

static void speculation_at_random_hands_out_what_is_in_the_file_with_threads(void **state)
{
    (void)state;
    speculation_at_random_hands_out_what_is_in_the_file(IO_BACKEND_THREADS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fit_is_within_the_budget_monotone_and_wastes_less_than_a_slot),
        cmocka_unit_test(cache_takes_no_more_heap_than_it_says),
        cmocka_unit_test(budget_too_small_is_refused_with_the_smallest_that_works),
        cmocka_unit_test(model_without_experts_gives_an_empty_cache),
        cmocka_unit_test(pools_of_two_slot_sizes_share_the_budget_in_proportion),
        cmocka_unit_test(content_equals_the_file_with_uring),
        cmocka_unit_test(content_equals_the_file_with_threads),
        cmocka_unit_test(set_larger_than_the_cache_reads_each_expert_once),
        cmocka_unit_test(hits_are_handed_out_before_misses),
        cmocka_unit_test(hits_of_a_set_are_not_evicted_by_its_own_misses),
        cmocka_unit_test(pinned_slot_is_never_evicted_when_full),
        cmocka_unit_test(holding_every_slot_is_an_error_not_a_missing_expert),
        cmocka_unit_test(walk_may_be_abandoned_at_any_point),
        cmocka_unit_test(failed_read_is_reported_and_the_cache_stays_usable_with_uring),
        cmocka_unit_test(failed_read_is_reported_and_the_cache_stays_usable_with_threads),
        cmocka_unit_test(live_cache_hits_as_often_as_a_replay_of_its_policy),
        cmocka_unit_test(below_one_token_cycle_lru_never_hits_and_the_default_does),
        cmocka_unit_test(statistics_may_be_read_while_a_walk_is_under_way),
        cmocka_unit_test(waiting_is_counted_only_when_nothing_is_ready),
        cmocka_unit_test(expert_read_ahead_is_a_hit_and_counts_as_useful),
        cmocka_unit_test(expert_read_ahead_in_vain_is_wasted_until_it_is_used),
        cmocka_unit_test(held_slots_leave_room_for_the_current_token),
        cmocka_unit_test(reads_ahead_not_begun_are_taken_back_when_their_layer_passes),
        cmocka_unit_test(preload_fills_empty_slots_only_and_gives_way_to_the_walk),
        cmocka_unit_test(speculation_at_random_hands_out_what_is_in_the_file_with_uring),
        cmocka_unit_test(speculation_at_random_hands_out_what_is_in_the_file_with_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
