/* The working set: what is taken from a cache and given to the next one, and the file between them, which may be damaged. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "expert_cache_fixture.h"
#include "runtime/working_set.h"
#include "storage/fnv1a.h"

enum {
    MODEL = 0x1234,
    N_SHARDS = 512,
    BF16 = 30,
    /* The file's format. */
    VERSION_AT = 8,
    COUNT_AT = 12,
    MODEL_AT = 16,
    POLICY_AT = 24,
    ENTRIES_AT = 40,
    ENTRY = 6,
    CHECKSUM = 8,
};

static char folder[64];
static char path[96]; /* of the working set in it */

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof(folder), "penstock-warm-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof(path), "%s/set", folder);
    return 0;
}

static uint32_t files_in_folder(bool remove_them)
{
    uint32_t n = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (const struct dirent *entry; (entry = readdir(dir));) {
        n += entry->d_name[0] != '.';
        if (remove_them)
            unlinkat(dirfd(dir), entry->d_name, 0);
    }
    closedir(dir);
    return n;
}

static int remove_folder(void **state)
{
    (void)state;
    files_in_folder(true);
    return rmdir(folder);
}

static void write_bytes(const char *at, const void *bytes, size_t n)
{
    FILE *file = fopen(at, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

static void assert_same_sets(const struct working_set *a, const struct working_set *b)
{
    assert_int_equal(a->model, b->model);
    assert_memory_equal(a->policy, b->policy, sizeof(a->policy));
    assert_int_equal(a->n, b->n);
    for (uint32_t i = 0; i < a->n; i++) {
        assert_int_equal(a->entries[i].shard, b->entries[i].shard);
        assert_int_equal(a->entries[i].score, b->entries[i].score);
    }
}

static void assert_refused(enum ps_status expected, const char *text)
{
    struct working_set set;
    struct ps_error err = {0};
    enum ps_status status = working_set_read(&set, path, MODEL, N_SHARDS, &err);
    if (status != expected || !strstr(err.message, text) || !strstr(err.message, path))
        fail_msg("status %d, \"%s\"; expected %d, \"%s\"", status, err.message, expected, text);
    assert_int_equal(set.n, 0);
    assert_null(set.entries);
}

/* ---- the file ---- */

static struct working_set_entry some_entries[] = {
    {.shard = 511, .score = 65535}, {.shard = 0, .score = 300}, {.shard = 70, .score = 300}, {.shard = 9}};
static const struct working_set some = {MODEL, "decay", 4, some_entries};

enum { SOME_BYTES = ENTRIES_AT + 4 * ENTRY + CHECKSUM };

static void write_some(uint8_t bytes[SOME_BYTES + 1])
{
    assert_int_equal(working_set_write(&some, path, NULL), PS_OK);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(bytes, 1, SOME_BYTES + 1, file), SOME_BYTES);
    fclose(file);
}

static void seal(uint8_t *bytes, uint32_t n)
{
    uint64_t checksum = fnv1a_add(FNV1A_START, bytes, n - CHECKSUM);
    for (uint32_t i = 0; i < CHECKSUM; i++)
        bytes[n - CHECKSUM + i] = (uint8_t)(checksum >> 8 * i);
}

static void what_was_written_is_read(void **state)
{
    (void)state;
    struct working_set set;
    const struct working_set empty = {MODEL, "lru", 0, NULL};
    const struct working_set *const sets[] = {&some, &empty, &some};
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(working_set_write(sets[i], path, NULL), PS_OK);
        assert_int_equal(working_set_read(&set, path, MODEL, N_SHARDS, NULL), PS_OK);
        assert_same_sets(&set, sets[i]);
        working_set_deinit(&set);
        assert_int_equal(files_in_folder(false), 1);
    }
}

static void file_that_is_not_there_is_an_empty_set(void **state)
{
    (void)state;
    struct working_set set;
    char below[128];
    assert_int_equal(working_set_read(&set, path, MODEL, N_SHARDS, NULL), PS_OK);
    assert_int_equal(set.n, 0);
    write_bytes(path, "", 0);
    snprintf(below, sizeof(below), "%s/below", path);
    assert_int_equal(working_set_read(&set, below, MODEL, N_SHARDS, NULL), PS_OK);
    assert_int_equal(set.n, 0);
}

static void field_that_is_wrong_is_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        uint32_t at;
        uint8_t value;
        enum ps_status status;
        const char *text;
    } cases[] = {
        {0, 'X', PS_ERR_FORMAT, "is not a working set"},
        {VERSION_AT, 2, PS_ERR_UNSUPPORTED, "version 2, not 1"},
        {COUNT_AT, 3, PS_ERR_FORMAT, "do not hold 3 experts"},
        {COUNT_AT + 3, 0x80, PS_ERR_FORMAT, "do not hold 2147483652 experts"},
        {MODEL_AT, 0x35, PS_ERR_FORMAT, "of another model"},
        {ENTRIES_AT + 1, 2, PS_ERR_FORMAT, "list of experts"},            /* shard 512 + 255 */
        {ENTRIES_AT + 3, 1, PS_ERR_FORMAT, "list of experts"},            /* far out of range */
        {ENTRIES_AT + 2 * ENTRY, 0, PS_ERR_FORMAT, "list of experts"},    /* twice shard 0 */
        {ENTRIES_AT + 3 * ENTRY + 5, 2, PS_ERR_FORMAT, "list of experts"} /* better than the one before */
    };
    uint8_t bytes[SOME_BYTES + 1];
    for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        write_some(bytes);
        bytes[cases[i].at] = cases[i].value;
        seal(bytes, SOME_BYTES);
        write_bytes(path, bytes, SOME_BYTES);
        assert_refused(cases[i].status, cases[i].text);
        unlink(path);
    }
}

static void file_of_any_other_length_is_refused(void **state)
{
    (void)state;
    uint8_t bytes[SOME_BYTES + 1];
    write_some(bytes);
    bytes[SOME_BYTES] = 0;
    for (uint32_t n = 0; n <= SOME_BYTES + 1; n++) {
        if (n == SOME_BYTES)
            continue;
        write_bytes(path, bytes, n);
        assert_refused(PS_ERR_FORMAT, path);
    }
    static const uint8_t zeros[1 << 16];
    FILE *file = fopen(path, "ab");
    assert_non_null(file);
    assert_int_equal(fwrite(zeros, 1, sizeof(zeros), file), sizeof(zeros));
    fclose(file);
    assert_refused(PS_ERR_FORMAT, "do not hold");
}

static void each_flipped_bit_is_noticed(void **state)
{
    (void)state;
    uint8_t bytes[SOME_BYTES + 1];
    write_some(bytes);
    for (uint32_t bit = 0; bit < SOME_BYTES * 8; bit++) {
        struct working_set set;
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        write_bytes(path, bytes, SOME_BYTES);
        assert_int_not_equal(working_set_read(&set, path, MODEL, N_SHARDS, NULL), PS_OK);
        assert_int_equal(set.n, 0);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

/* Mutated and sealed again, so that the checks behind the checksum are reached. */
static void mutated_file_gives_a_valid_set_or_none(void **state)
{
    (void)state;
    enum { ROUNDS = 4000 };
    uint8_t good[SOME_BYTES + 1], bytes[2 * SOME_BYTES];
    write_some(good);
    uint32_t seed = 11, n_read = 0;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t n = SOME_BYTES;
        memset(bytes, 0, sizeof(bytes));
        memcpy(bytes, good, n);
        for (uint32_t i = 0; i <= next_random(&seed) % 4; i++)
            bytes[8 + next_random(&seed) % (n - 8)] = (uint8_t)next_random(&seed);
        if (next_random(&seed) % 4 == 0)
            n = CHECKSUM + next_random(&seed) % (sizeof(bytes) - CHECKSUM);
        seal(bytes, n);
        write_bytes(path, bytes, n);
        struct working_set set;
        bool seen[N_SHARDS] = {false};
        if (working_set_read(&set, path, MODEL, N_SHARDS, NULL) != PS_OK) {
            assert_null(set.entries);
            continue;
        }
        n_read++;
        for (uint32_t i = 0; i < set.n; i++) {
            assert_true(set.entries[i].shard < N_SHARDS && !seen[set.entries[i].shard]);
            assert_true(i == 0 || set.entries[i].score <= set.entries[i - 1].score);
            seen[set.entries[i].shard] = true;
        }
        working_set_deinit(&set);
    }
    assert_true(n_read > ROUNDS / 50 && n_read < ROUNDS / 2);
}

static void what_is_no_working_set_is_not_replaced(void **state)
{
    (void)state;
    struct ps_error err;
    write_bytes(path, "GGUF, of many gigabytes", 23);
    assert_int_equal(working_set_write(&some, path, &err), PS_ERR_IO);
    assert_non_null(strstr(err.message, "is not a working set: it is not replaced"));
    assert_refused(PS_ERR_FORMAT, "is not a working set");
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_refused(PS_ERR_FORMAT, "is not a regular file");
    assert_int_equal(working_set_write(&some, path, NULL), PS_ERR_FORMAT);
    unlink(path);
    assert_int_equal(working_set_write(&some, folder, NULL), PS_ERR_FORMAT);
    assert_int_equal(files_in_folder(false), 0);
}

static void damaged_working_set_is_replaced(void **state)
{
    (void)state;
    uint8_t bytes[SOME_BYTES + 1];
    write_some(bytes);
    bytes[VERSION_AT] = 9;
    for (uint32_t n = 0; n < SOME_BYTES; n += 5) {
        struct working_set set;
        write_bytes(path, bytes, n);
        assert_int_equal(working_set_write(&some, path, NULL), PS_OK);
        assert_int_equal(working_set_read(&set, path, MODEL, N_SHARDS, NULL), PS_OK);
        assert_same_sets(&set, &some);
        working_set_deinit(&set);
    }
}

static void write_that_fails_leaves_the_old_file_and_nothing_else(void **state)
{
    (void)state;
    struct working_set set;
    struct working_set_entry entries[100];
    for (uint32_t i = 0; i < 100; i++)
        entries[i] = (struct working_set_entry){.shard = i};
    const struct working_set larger = {MODEL, "decay", 100, entries};
    struct rlimit limit, small = {.rlim_cur = 256};
    struct ps_error err;
    assert_int_equal(working_set_write(&some, path, NULL), PS_OK);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small.rlim_max = limit.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    enum ps_status status = working_set_write(&larger, path, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(status, PS_ERR_IO);
    assert_non_null(strstr(err.message, "cannot write"));
    assert_int_equal(files_in_folder(false), 1);
    assert_int_equal(working_set_read(&set, path, MODEL, N_SHARDS, NULL), PS_OK);
    assert_same_sets(&set, &some);
    working_set_deinit(&set);
}

static atomic_int n_writing;

static void *write_often(void *arg)
{
    void *failed = NULL;
    for (uint32_t i = 0; i < 300 && !failed; i++)
        if (working_set_write(arg, path, NULL) != PS_OK)
            failed = arg;
    n_writing--;
    return failed;
}

static void writers_at_the_same_time_leave_one_whole_set(void **state)
{
    (void)state;
    struct working_set sets[2] = {some, some};
    sets[1].n = 2;
    pthread_t threads[2];
    assert_int_equal(working_set_write(&some, path, NULL), PS_OK);
    n_writing = 2;
    for (uint32_t t = 0; t < 2; t++)
        assert_int_equal(pthread_create(&threads[t], NULL, write_often, &sets[t]), 0);
    uint32_t n_wrong = 0;
    do {
        struct working_set set;
        if (working_set_read(&set, path, MODEL, N_SHARDS, NULL) != PS_OK || set.n == 0)
            n_wrong++;
        else
            assert_same_sets(&set, &sets[set.n == 2]);
        working_set_deinit(&set);
    } while (n_writing > 0);
    for (uint32_t t = 0; t < 2; t++) {
        void *failed;
        pthread_join(threads[t], &failed);
        assert_null(failed);
    }
    assert_int_equal(n_wrong, 0);
    assert_int_equal(files_in_folder(false), 1);
}

/* ---- the model's identity ---- */

struct header {
    const char *tensor, *name;
    uint32_t type, n_tensors;
    uint64_t cols;
};

static uint64_t id_of(const struct header *header, const char *file)
{
    char at[128];
    struct gguf_writer *writer;
    struct gguf *gguf;
    snprintf(at, sizeof(at), "%s/%s", folder, file);
    assert_int_equal(gguf_writer_new(&writer, at, 0, NULL), PS_OK);
    gguf_writer_set_string(writer, "general.name", header->name);
    const uint64_t dims[] = {header->cols, 4};
    for (uint32_t t = 0; t < header->n_tensors; t++) {
        char name[64];
        snprintf(name, sizeof(name), "%s.%u", header->tensor, t);
        gguf_writer_add_tensor(writer, name, header->type, 2, dims);
    }
    uint64_t bytes = header->n_tensors * header->cols * 4 * (header->type == F32 ? 4 : 2);
    uint8_t *data = calloc(1, bytes);
    assert_int_equal(gguf_writer_begin_data(writer, NULL), PS_OK);
    assert_int_equal(gguf_writer_write(writer, data, bytes, NULL), PS_OK);
    assert_int_equal(gguf_writer_finish(writer, NULL), PS_OK);
    gguf_writer_free(writer);
    free(data);
    assert_int_equal(gguf_open(&gguf, at, NULL), PS_OK);
    uint64_t id = working_set_model_id(gguf);
    gguf_free(gguf);
    return id;
}

static void copy_has_the_same_identity_and_every_other_model_another(void **state)
{
    (void)state;
    static const struct header models[] = {{"a", "one", F32, 2, 32}, {"b", "one", F32, 2, 32},
                                           {"a", "two", F32, 2, 32}, {"a", "one", F16, 2, 32},
                                           {"a", "one", F32, 3, 32}, {"a", "one", F32, 2, 64},
                                           {"a", "one", BF16, 2, 32}};
    enum { N = sizeof(models) / sizeof(models[0]) };
    uint64_t ids[N];
    for (uint32_t i = 0; i < N; i++) {
        ids[i] = id_of(&models[i], "model.gguf");
        assert_int_equal(id_of(&models[i], "moved.gguf"), ids[i]);
        for (uint32_t j = 0; j < i; j++)
            assert_int_not_equal(ids[i], ids[j]);
    }
}

/* ---- from one cache to the next ---- */

static const uint32_t loved[] = {3, 5, 7, 11}; /* chosen in every layer by every token */
enum { N_LOVED = 4, TOKENS = 20, TOP_K = 6 };

static void use_cache(struct model *model, struct expert_cache *cache, uint32_t n_layers)
{
    uint32_t seed = 3;
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t l = 0; l < n_layers; l++) {
            uint32_t ids[TOP_K];
            if (shard_map_layer(model->map, l)->n_experts == 0)
                continue;
            memcpy(ids, loved, sizeof(loved));
            ids[4] = 16 + next_random(&seed) % 50;
            ids[5] = 70 + next_random(&seed) % 50;
            walk(model, cache, l, ids, TOP_K, t, TOP_K);
        }
}

static void preload(struct model *model, struct expert_cache *cache, const struct working_set *set)
{
    working_set_prime(set, cache, model->map, "decay");
    working_set_preload(set, cache, model->map);
}

static bool set_holds(const struct working_set *set, uint32_t shard)
{
    for (uint32_t i = 0; i < set->n; i++)
        if (set->entries[i].shard == shard)
            return true;
    return false;
}

static uint32_t n_resident(struct model *model, struct expert_cache *cache, uint32_t n_layers)
{
    uint32_t n = 0;
    for (uint32_t l = 0; l < n_layers; l++)
        for (uint32_t e = 0; e < shard_map_layer(model->map, l)->n_experts; e++)
            n += expert_cache_is_resident(cache, l, e);
    return n;
}

static void wait_until_resident(struct model *model, struct expert_cache *cache, uint32_t n_layers,
                                uint32_t n)
{
    for (uint32_t i = 0; n_resident(model, cache, n_layers) < n; i++) {
        assert_true(i < 20000);
        usleep(1000);
    }
    assert_int_equal(n_resident(model, cache, n_layers), n);
}

static void set_holds_what_was_used_most_best_first_and_no_more_than_slots(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 4, IO_BACKEND_THREADS);
    struct expert_cache *cache = cache_of(&model, "decay", 30);
    struct working_set set;
    assert_int_equal(working_set_take(&set, MODEL, cache, model.map, "decay", NULL), PS_OK);
    assert_int_equal(set.n, 0);
    working_set_deinit(&set);
    use_cache(&model, cache, 4);
    assert_int_equal(working_set_take(&set, MODEL, cache, model.map, "decay", NULL), PS_OK);
    assert_int_equal(set.n, 30);
    for (uint32_t i = 0; i < set.n; i++) {
        uint32_t expert = set.entries[i].shard % N_EXPERTS;
        bool is_loved = expert == 3 || expert == 5 || expert == 7 || expert == 11;
        assert_int_equal(is_loved, i < 4 * N_LOVED);
        assert_int_equal(set.entries[i].score == WORKING_SET_SCORE_MAX, is_loved);
        assert_true(i == 0 || set.entries[i].score <= set.entries[i - 1].score);
        assert_true(set.entries[i].score > 0);
    }
    working_set_deinit(&set);
    expert_cache_free(cache);
    close_model(&model);
}

static void next_cache_holds_the_set_with_its_scores(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 4, IO_BACKEND_THREADS);
    struct expert_cache *cache = cache_of(&model, "decay", 30);
    use_cache(&model, cache, 4);
    struct working_set set, again;
    assert_int_equal(working_set_take(&set, MODEL, cache, model.map, "decay", NULL), PS_OK);
    expert_cache_free(cache);

    cache = cache_of(&model, "decay", 30);
    preload(&model, cache, &set);
    wait_until_resident(&model, cache, 4, 30);
    for (uint32_t i = 0; i < set.n; i++) {
        double score =
            expert_cache_score(cache, set.entries[i].shard / N_EXPERTS, set.entries[i].shard % N_EXPERTS);
        assert_true(score * WORKING_SET_SCORE_MAX > set.entries[i].score - 1 &&
                    score * WORKING_SET_SCORE_MAX < set.entries[i].score + 1);
    }
    assert_int_equal(working_set_take(&again, MODEL, cache, model.map, "decay", NULL), PS_OK);
    assert_same_sets(&again, &set);
    for (uint32_t l = 0; l < 4; l++)
        walk(&model, cache, l, loved, N_LOVED, 0, N_LOVED);
    assert_int_equal(stats_of(cache).misses, 0);
    assert_int_equal(stats_of(cache).hits, 4 * N_LOVED);
    working_set_deinit(&again);
    working_set_deinit(&set);
    expert_cache_free(cache);
    close_model(&model);
}

static void smaller_cache_takes_the_best_and_a_larger_one_all(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 4, IO_BACKEND_THREADS);
    struct expert_cache *cache = cache_of(&model, "decay", 30);
    use_cache(&model, cache, 4);
    struct working_set set;
    assert_int_equal(working_set_take(&set, MODEL, cache, model.map, "decay", NULL), PS_OK);
    expert_cache_free(cache);
    for (uint32_t slots = 10; slots <= 50; slots += 20) {
        cache = cache_of(&model, "decay", slots);
        preload(&model, cache, &set);
        uint32_t n = slots < set.n ? slots : set.n;
        wait_until_resident(&model, cache, 4, n);
        for (uint32_t i = 0; i < n; i++)
            assert_true(expert_cache_is_resident(cache, set.entries[i].shard / N_EXPERTS,
                                                 set.entries[i].shard % N_EXPERTS));
        expert_cache_free(cache);
    }
    working_set_deinit(&set);
    close_model(&model);
}

static void slots_of_every_size_are_filled(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, mixed, 4, IO_BACKEND_THREADS);
    const struct cache_policy *policy = cache_policy_find("decay");
    struct expert_cache_size size;
    struct expert_cache *cache;
    expert_cache_min_size(model.map, CACHE_CONFIG(policy, 20), &size);
    assert_int_equal(size.slots, 40);
    uint64_t bytes = size.arena_bytes + size.overhead_bytes;
    struct working_set_entry entries[3 * N_EXPERTS];
    struct working_set all = {MODEL, "decay", 0, entries};
    for (uint32_t shard = 0; shard < 3 * N_EXPERTS; shard++)
        entries[all.n++] = (struct working_set_entry){.shard = shard, .score = 100};
    assert_int_equal(expert_cache_new(&cache, model.map, model.reader, CACHE_CONFIG(policy, 20), bytes, NULL),
                     PS_OK);
    preload(&model, cache, &all);
    wait_until_resident(&model, cache, 4, 40);
    expert_cache_free(cache);
    close_model(&model);
}

static void scores_of_another_policy_do_not_count(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 4, IO_BACKEND_THREADS);
    struct working_set_entry entry = {.shard = 130, .score = 50000};
    for (uint32_t same = 0; same < 2; same++) {
        const struct working_set set = {MODEL, {0}, 1, &entry};
        struct working_set given = set;
        memcpy(given.policy, same ? "decay" : "other", 5);
        struct expert_cache *cache = cache_of(&model, "decay", 30);
        preload(&model, cache, &given);
        wait_until_resident(&model, cache, 4, 1);
        assert_true(expert_cache_is_resident(cache, 1, 2));
        assert_int_equal(expert_cache_score(cache, 1, 2) > 0, same);
        expert_cache_free(cache);
    }
    close_model(&model);
}

/* A short run must not forget what it had no time to read. */
static void set_whose_reads_are_not_done_is_taken_whole(void **state)
{
    (void)state;
    struct model model;
    open_model(&model, uniform, 4, IO_BACKEND_THREADS);
    const char *file = model.path;
    struct io_reader_config slow = {.backend = IO_BACKEND_THREADS, .limit_rate = 1 << 16};
    io_reader_free(model.reader);
    assert_int_equal(io_reader_new(&model.reader, &file, 1, &slow, NULL), PS_OK);
    struct expert_cache *cache = cache_of(&model, "decay", 30);
    struct working_set set, again;
    struct working_set_entry entries[30];
    set = (struct working_set){MODEL, "decay", 30, entries};
    for (uint32_t i = 0; i < 30; i++)
        entries[i] = (struct working_set_entry){.shard = 17 * i, .score = (uint16_t)(40000 - i)};
    preload(&model, cache, &set);
    assert_int_equal(working_set_take(&again, MODEL, cache, model.map, "decay", NULL), PS_OK);
    assert_true(n_resident(&model, cache, 4) < 30);
    assert_int_equal(again.n, 30);
    for (uint32_t i = 0; i < 30; i++)
        assert_true(set_holds(&again, entries[i].shard));
    working_set_deinit(&again);
    expert_cache_free(cache);
    close_model(&model);
}

#define WITH_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_FOLDER(what_was_written_is_read),
        WITH_FOLDER(file_that_is_not_there_is_an_empty_set),
        WITH_FOLDER(field_that_is_wrong_is_refused_by_name),
        WITH_FOLDER(file_of_any_other_length_is_refused),
        WITH_FOLDER(each_flipped_bit_is_noticed),
        WITH_FOLDER(mutated_file_gives_a_valid_set_or_none),
        WITH_FOLDER(what_is_no_working_set_is_not_replaced),
        WITH_FOLDER(damaged_working_set_is_replaced),
        WITH_FOLDER(write_that_fails_leaves_the_old_file_and_nothing_else),
        WITH_FOLDER(writers_at_the_same_time_leave_one_whole_set),
        WITH_FOLDER(copy_has_the_same_identity_and_every_other_model_another),
        cmocka_unit_test(set_holds_what_was_used_most_best_first_and_no_more_than_slots),
        cmocka_unit_test(next_cache_holds_the_set_with_its_scores),
        cmocka_unit_test(smaller_cache_takes_the_best_and_a_larger_one_all),
        cmocka_unit_test(slots_of_every_size_are_filled),
        cmocka_unit_test(scores_of_another_policy_do_not_count),
        cmocka_unit_test(set_whose_reads_are_not_done_is_taken_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
