/* A small model on disk with an expert cache over it. Shared by the cache's and the prefetch scheduler's tests. */
#ifndef PENSTOCK_TESTS_EXPERT_CACHE_FIXTURE_H
#define PENSTOCK_TESTS_EXPERT_CACHE_FIXTURE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "storage/expert_cache.h"
#include "storage/gguf_writer.h"

enum { F32 = 0, F16 = 1, DENSE = 255, COLS = 64, ROWS = 20, N_EXPERTS = 128, MAX_LAYERS = 4 };

#define CACHE_CONFIG(cache_policy, slots)                                                                    \
    (&(struct expert_cache_config){.policy = (cache_policy), .min_slots = (slots)})

/* ---- a model, and a cache over it ---- */

struct model {
    char path[64];
    struct gguf *gguf;
    struct shard_map *map;
    struct io_reader *reader;
    uint8_t *bytes; /* the whole file */
};

static inline uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static inline void write_model(const char *path, const uint8_t *layer_types, uint32_t n_layers)
{
    static const char *const parts[] = {"gate", "up", "down"};
    struct gguf_writer *writer;
    assert_int_equal(gguf_writer_new(&writer, path, 0, NULL), PS_OK);
    uint64_t n_bytes = 0;
    for (uint32_t l = 0; l < n_layers; l++)
        for (uint32_t p = 0; p < 3 && layer_types[l] != DENSE; p++) {
            char name[64];
            snprintf(name, sizeof(name), "blk.%u.ffn_%s_exps.weight", l, parts[p]);
            const uint64_t dims[] = {p == 2 ? ROWS : COLS, p == 2 ? COLS : ROWS, N_EXPERTS};
            gguf_writer_add_tensor(writer, name, layer_types[l], 3, dims);
            n_bytes += (uint64_t)COLS * ROWS * N_EXPERTS * (layer_types[l] == F32 ? 4 : 2);
        }
    assert_int_equal(gguf_writer_begin_data(writer, NULL), PS_OK);
    uint8_t *data = malloc(n_bytes + 1);
    uint32_t seed = 7;
    for (uint64_t i = 0; i < n_bytes; i++)
        data[i] = (uint8_t)next_random(&seed);
    assert_int_equal(gguf_writer_write(writer, data, n_bytes, NULL), PS_OK);
    assert_int_equal(gguf_writer_finish(writer, NULL), PS_OK);
    gguf_writer_free(writer);
    free(data);
}

static inline uint8_t *read_file(const char *path, uint64_t bytes)
{
    uint8_t *data = malloc(bytes);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(data, 1, bytes, file), bytes);
    fclose(file);
    return data;
}

/* False: this backend cannot be had here. */
static inline bool open_model(struct model *model, const uint8_t *layer_types, uint32_t n_layers,
                              enum io_backend backend)
{
    *model = (struct model){.path = "/var/tmp/penstock-cache-XXXXXX"};
    int fd = mkstemp(model->path);
    assert_true(fd >= 0);
    close(fd);
    write_model(model->path, layer_types, n_layers);
    assert_int_equal(gguf_open(&model->gguf, model->path, NULL), PS_OK);
    assert_int_equal(shard_map_new(&model->map, model->gguf, n_layers, NULL), PS_OK);
    model->bytes = read_file(model->path, gguf_file_size(model->gguf, 0));
    const char *path = model->path;
    struct io_reader_config config = {.backend = backend, .direct = true, .queue_depth = 8};
    return io_reader_new(&model->reader, &path, 1, &config, NULL) == PS_OK;
}

static inline void close_model(struct model *model)
{
    io_reader_free(model->reader);
    shard_map_free(model->map);
    gguf_free(model->gguf);
    free(model->bytes);
    unlink(model->path);
}

static const uint8_t mixed[MAX_LAYERS] = {F32, F16, DENSE,
                                          F32}; /* two size classes and a layer without experts */
static const uint8_t uniform[MAX_LAYERS] = {F32, F32, F32, F32};

/* A cache of n slots; the model must have one size class. */
static inline struct expert_cache *cache_of(struct model *model, const char *policy, uint32_t n_slots)
{
    struct expert_cache_size size;
    struct expert_cache *cache;
    expert_cache_min_size(model->map, CACHE_CONFIG(cache_policy_find(policy), n_slots), &size);
    assert_int_equal(size.slots, n_slots);
    assert_int_equal(expert_cache_new(&cache, model->map, model->reader,
                                      CACHE_CONFIG(cache_policy_find(policy), n_slots),
                                      size.arena_bytes + size.overhead_bytes, NULL),
                     PS_OK);
    return cache;
}

static inline void assert_view_equals_file(const struct model *model, uint32_t layer,
                                           const struct expert_view *view)
{
    static const char *const parts[] = {"gate", "up", "down"};
    const struct shard_layer *shape = shard_map_layer(model->map, layer);
    assert_int_equal(view->shard, shape->first_shard + view->expert);
    for (uint32_t p = 0; p < 3; p++) {
        char name[64];
        snprintf(name, sizeof(name), "blk.%u.ffn_%s_exps.weight", layer, parts[p]);
        const struct gguf_tensor *tensor = gguf_tensor_find(model->gguf, name);
        uint64_t bytes = tensor->bytes / N_EXPERTS;
        assert_memory_equal(view->part[p], model->bytes + tensor->offset + view->expert * bytes, bytes);
    }
    for (uint32_t p = 3; p < SHARD_N_PARTS; p++)
        assert_null(view->part[p]);
}

static inline uint64_t spans_of_shard(const struct model *model, uint32_t layer, uint32_t expert)
{
    struct shard_location location;
    uint64_t bytes = 0;
    shard_map_locate(model->map, layer, expert, &location);
    for (uint32_t r = 0; r < location.n_ranges; r++)
        bytes += io_range_span(location.ranges[r].offset, location.ranges[r].length);
    return bytes;
}

static inline uint64_t bytes_read(const struct model *model)
{
    struct io_reader_stats stats;
    io_reader_get_stats(model->reader, &stats);
    return stats.bytes_demand;
}

static inline struct expert_cache_stats stats_of(struct expert_cache *cache)
{
    struct expert_cache_stats stats;
    expert_cache_get_stats(cache, &stats);
    return stats;
}

/* n distinct ids in random order. */
static inline void random_ids(uint32_t *ids, uint32_t n, uint32_t *seed)
{
    uint32_t all[N_EXPERTS];
    for (uint32_t i = 0; i < N_EXPERTS; i++)
        all[i] = i;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = i + next_random(seed) % (N_EXPERTS - i);
        ids[i] = all[j];
        all[j] = all[i];
    }
}

/* Walks a whole set, checking the content and that each id comes once. */
static inline void walk(struct model *model, struct expert_cache *cache, uint32_t layer, const uint32_t *ids,
                        uint32_t n, uint64_t token, uint32_t max)
{
    struct expert_set set;
    struct expert_view views[N_EXPERTS];
    bool seen[N_EXPERTS] = {false};
    uint32_t n_views, n_seen = 0;
    expert_set_begin(cache, &set, layer, ids, n, token);
    while ((n_views = expert_set_next(cache, &set, views, max)) > 0) {
        assert_true(n_views <= max);
        for (uint32_t i = 0; i < n_views; i++) {
            assert_true(views[i].index < n && !seen[views[i].index]);
            assert_int_equal(views[i].expert, ids[views[i].index]);
            assert_view_equals_file(model, layer, &views[i]);
            seen[views[i].index] = true;
        }
        expert_set_release(cache, &set, views, n_views);
        n_seen += n_views;
    }
    assert_int_equal(n_seen, n);
    assert_int_equal(expert_set_end(cache, &set, NULL), PS_OK);
}

#endif
