/* Pack writer: wherever it is stopped, the next one ends with the same files; whatever fails leaves none. */
#include "gguf_fixture.h"

#include <sys/wait.h>

#include "storage/io_reader.h"
#include "storage/pack_writer.h"
#include "storage/packed.h"

enum { N_TENSORS = 3, N_LAYERS = 2, N_SHARDS = 6, N_STRIPES = 2, N_ITEMS = 2 + N_SHARDS };

static const uint64_t trunk_bytes[N_TENSORS] = {1000, 0, 70000};
static const uint32_t order[N_SHARDS] = {2, 0, 1, 3, 5, 4};
static const uint8_t header[] = "a header, as long as it is one";
static const uint8_t codecs[N_LAYERS * PACKED_LAYER_CODECS];
static const char note[] = "{}";
static const char *const files[] = {"m.pack", "m.pack.1", "m.pack.2"};

static char directory[256], main_path[512];
static const char *const stripes[N_STRIPES] = {directory, directory};

static struct pack_plan plan_of(const char *identity, uint32_t n_stripes)
{
    snprintf(main_path, sizeof(main_path), "%s/m.pack", scratch);
    return (struct pack_plan){.path = main_path,
                              .n_stripes = n_stripes,
                              .stripes = stripes,
                              .identity = identity,
                              .identity_bytes = strlen(identity),
                              .header = header,
                              .header_bytes = sizeof(header),
                              .n_tensors = N_TENSORS,
                              .n_layers = N_LAYERS,
                              .n_shards = N_SHARDS,
                              .trunk_bytes = trunk_bytes,
                              .order = order};
}

static void decide(struct pack_writer *w)
{
    const struct pack_decisions decisions = {codecs, note, sizeof(note) - 1, N_SHARDS * 8192};
    assert_int_equal(pack_writer_decide(w, &decisions, NULL), PS_OK);
}

/* Writes items [from, end): the trunk's tensors, then extents; a resumed pack's from is 0: what it has is passed over. */
static void write_items(struct pack_writer *w, uint32_t end)
{
    static uint8_t data[70000];
    uint32_t n_trunk = pack_writer_n_trunk(w), first = n_trunk == 0 ? 0 : n_trunk < N_TENSORS ? 1 : 2;
    for (uint32_t item = first + pack_writer_n_extents(w); item < end; item++) {
        memset(data, (int)item + 1, sizeof(data));
        if (item < 2)
            assert_int_equal(pack_writer_trunk(w, data, trunk_bytes[2 * item], NULL), PS_OK);
        else
            assert_int_equal(pack_writer_extent(w, data, 4096 * (1 + item % 2), item, NULL), PS_OK);
    }
}

static struct pack_writer *open_writer(const struct pack_plan *plan, enum pack_start expected)
{
    struct pack_writer *w;
    enum pack_start start;
    struct ps_error err = {0};
    if (pack_writer_new(&w, plan, &start, &err) != PS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(start, expected);
    return w;
}

static void finish(struct pack_writer *w)
{
    struct ps_error err = {0};
    write_items(w, N_ITEMS);
    if (pack_writer_finish(w, &err) != PS_OK)
        fail_msg("%s", err.message);
    pack_writer_free(w, false);
}

struct contents {
    uint8_t *data[3];
    size_t bytes[3];
};

static struct contents undisturbed(const struct pack_plan *plan)
{
    struct contents whole = {0};
    struct pack_writer *w = open_writer(plan, PACK_FRESH);
    decide(w);
    finish(w);
    assert_int_equal(scratch_count(), 1 + plan->n_stripes);
    for (uint32_t i = 0; i <= plan->n_stripes; i++)
        whole.data[i] = load_file(scratch_path(files[i]), &whole.bytes[i]);
    return whole;
}

static void forget(void)
{
    for (uint32_t i = 0; i < 3; i++)
        unlink(scratch_path(files[i]));
}

static void expect_same(const struct contents *whole, uint32_t n_files)
{
    assert_int_equal(scratch_count(), n_files);
    for (uint32_t i = 0; i < n_files; i++) {
        size_t bytes;
        uint8_t *data = load_file(scratch_path(files[i]), &bytes);
        assert_int_equal(bytes, whole->bytes[i]);
        assert_memory_equal(data, whole->data[i], bytes);
        free(data);
    }
}

static void drop(struct contents *whole)
{
    for (uint32_t i = 0; i < 3; i++)
        free(whole->data[i]);
    forget();
}

static uint32_t stripes_of(int variant)
{
    snprintf(directory, sizeof(directory), "%s", scratch);
    return variant; /* more than one would share the only directory, which is refused */
}

static void what_it_writes_is_a_container(void **state)
{
    (void)state;
    for (int variant = 0; variant < 2; variant++) {
        struct pack_plan plan = plan_of("x", stripes_of(variant));
        struct contents whole = undisturbed(&plan);
        struct packed *packed;
        struct ps_error err = {0};
        if (packed_open(&packed, plan.path, &err) != PS_OK)
            fail_msg("%s", err.message);
        uint64_t offset, bytes, block;
        assert_int_equal(packed_n_files(packed), 1 + plan.n_stripes);
        assert_int_equal(packed_n_shards(packed), N_SHARDS);
        packed_gguf_header(packed, &offset, &bytes);
        assert_int_equal(bytes, sizeof(header));
        assert_memory_equal(whole.data[0] + offset, header, bytes);
        assert_int_equal(packed_n_blocks(packed), 1 + 5);
        assert_true(packed_trunk_tensor(packed, 0, &offset, &block));
        assert_int_equal(block, 0);
        assert_int_equal(packed_trunk_damage(packed, 0, 0, whole.data[0] + offset, 1000), UINT64_MAX);
        assert_false(packed_trunk_tensor(packed, 1, &offset, &block));
        assert_true(packed_trunk_tensor(packed, 2, &offset, &block));
        assert_int_equal(offset % 64, 0);
        assert_int_equal(block, 1);
        uint8_t *tensor = whole.data[0] + offset;
        assert_int_equal(packed_trunk_damage(packed, 2, 0, tensor, 70000), UINT64_MAX);
        for (uint64_t at = 0; at < 70000; at += 997) {
            uint64_t start = at / PACKED_BLOCK_BYTES * PACKED_BLOCK_BYTES;
            tensor[at] ^= 1;
            assert_int_equal(packed_trunk_damage(packed, 2, 0, tensor, 70000), start);
            assert_int_equal(packed_trunk_damage(packed, 2, start, tensor + start, 70000 - start), start);
            tensor[at] ^= 1;
        }
        for (uint32_t i = 0; i < N_SHARDS; i++) {
            struct packed_extent extent = packed_shard_extent(packed, order[i]);
            assert_int_equal(extent.offset % IO_ALIGN, 0);
            assert_int_equal(extent.bytes, 4096 * (1 + i % 2));
            assert_int_equal(extent.hash, 2 + i);
            assert_int_equal(whole.data[extent.file][extent.offset], 3 + i);
            assert_int_equal(whole.data[extent.file][extent.offset + extent.bytes - 1], 3 + i);
        }
        packed_free(packed);
        drop(&whole);
    }
}

static void stopped_anywhere_it_goes_on_to_the_same_bytes(void **state)
{
    (void)state;
    for (int variant = 0; variant < 2; variant++) {
        struct pack_plan plan = plan_of("x", stripes_of(variant));
        struct contents whole = undisturbed(&plan);
        for (uint32_t committed = 0; committed <= N_ITEMS; committed++) {
            for (uint32_t written = committed; written <= N_ITEMS; written += 1 + written / 2) {
                forget();
                pid_t child = fork();
                if (child == 0) {
                    struct pack_writer *w = open_writer(&plan, PACK_FRESH);
                    decide(w);
                    write_items(w, committed);
                    if (pack_writer_commit(w, NULL) == PS_OK)
                        write_items(w, written);
                    _exit(0);
                }
                int status;
                assert_int_equal(waitpid(child, &status, 0), child);
                assert_int_equal(status, 0);
                struct pack_writer *w = open_writer(&plan, PACK_RESUMED);
                uint32_t done = pack_writer_n_extents(w) + (pack_writer_n_trunk(w) == 0  ? 0
                                                            : pack_writer_n_trunk(w) < 3 ? 1
                                                                                         : 2);
                assert_int_equal(done, committed);
                finish(w);
                expect_same(&whole, 1 + plan.n_stripes);
            }
        }
        drop(&whole);
    }
}

/* A large tensor is not begun again: what of it is in whole blocks counts. */
static void stopped_in_a_tensor_it_goes_on_there(void **state)
{
    (void)state;
    struct pack_plan plan = plan_of("x", stripes_of(0));
    struct contents whole = undisturbed(&plan);
    static uint8_t data[70000];
    memset(data, 2, sizeof(data));
    for (uint64_t bytes = 0; bytes < sizeof(data); bytes += 4999) {
        forget();
        struct pack_writer *w = open_writer(&plan, PACK_FRESH);
        decide(w);
        write_items(w, 1);
        for (uint64_t at = 0; at < bytes; at += 3000)
            assert_int_equal(pack_writer_trunk(w, data, bytes - at < 3000 ? bytes - at : 3000, NULL), PS_OK);
        assert_int_equal(pack_writer_commit(w, NULL), PS_OK);
        pack_writer_free(w, true);
        w = open_writer(&plan, PACK_RESUMED);
        uint64_t filled = pack_writer_trunk_filled(w);
        assert_int_equal(pack_writer_n_trunk(w), 2);
        assert_int_equal(filled, bytes / PACKED_BLOCK_BYTES * PACKED_BLOCK_BYTES);
        assert_int_equal(pack_writer_trunk(w, data, sizeof(data) - filled, NULL), PS_OK);
        finish(w);
        expect_same(&whole, 1);
    }
    drop(&whole);
}

/* Killed between two renames, and after the last: of the names, those in `renamed` are final. */
static void stopped_among_its_last_steps_it_is_completed(void **state)
{
    (void)state;
    struct pack_plan plan = plan_of("x", stripes_of(1));
    struct contents whole = undisturbed(&plan);
    static const char *const temporary[] = {"m.pack.partial", "m.pack.1.partial"};
    for (int n_renamed = 0; n_renamed <= 2; n_renamed++) {
        forget();
        struct pack_writer *w = open_writer(&plan, PACK_FRESH);
        decide(w);
        assert_int_equal(link(scratch_path("m.pack.partial-journal"), scratch_path("saved")), 0);
        finish(w);
        assert_int_equal(rename(scratch_path("saved"), scratch_path("m.pack.partial-journal")), 0);
        for (int i = 0; i < 2 - n_renamed; i++)
            assert_int_equal(rename(scratch_path(files[i]), scratch_path(temporary[i])), 0);
        pack_writer_free(open_writer(&plan, PACK_COMPLETED), false);
        expect_same(&whole, 2);
    }
    drop(&whole);
}

static void another_plan_starts_over(void **state)
{
    (void)state;
    struct pack_plan plan = plan_of("x", stripes_of(1)), other = plan_of("y", 0);
    struct contents whole = undisturbed(&other);
    forget();
    struct pack_writer *w = open_writer(&plan, PACK_FRESH);
    decide(w);
    write_items(w, 5);
    assert_int_equal(pack_writer_commit(w, NULL), PS_OK);
    pack_writer_free(w, true);
    assert_int_equal(scratch_count(), 3);
    w = open_writer(&other, PACK_STARTED_OVER);
    decide(w);
    finish(w);
    expect_same(&whole, 1);
    drop(&whole);
}

static void given_up_it_leaves_nothing(void **state)
{
    (void)state;
    struct pack_plan plan = plan_of("x", stripes_of(1));
    for (uint32_t items = 0; items <= N_ITEMS; items += 4) {
        struct pack_writer *w = open_writer(&plan, PACK_FRESH);
        decide(w);
        write_items(w, items);
        pack_writer_free(w, false);
        assert_int_equal(scratch_count(), 0);
    }
    pack_writer_free(open_writer(&plan, PACK_FRESH), false);
    assert_int_equal(scratch_count(), 0);
}

static void a_taken_name_is_refused_and_kept(void **state)
{
    (void)state;
    struct pack_plan plan = plan_of("x", stripes_of(1));
    struct pack_writer *w;
    enum pack_start start;
    struct ps_error err = {0};
    for (uint32_t i = 0; i < 2; i++) {
        write_file(files[i], "old", 3);
        assert_int_equal(pack_writer_new(&w, &plan, &start, &err), PS_ERR_ARGUMENT);
        assert_non_null(strstr(err.message, files[i]));
        assert_int_equal(scratch_count(), 1);
        const char *const sources[] = {scratch_path(files[i])};
        struct pack_plan onto = plan;
        onto.replace = true;
        onto.n_sources = 1;
        onto.sources = sources;
        assert_int_equal(pack_writer_new(&w, &onto, &start, &err), PS_ERR_ARGUMENT);
        assert_int_equal(scratch_count(), 1);
        forget();
    }
    plan.n_stripes = 2;
    assert_int_equal(pack_writer_new(&w, &plan, &start, &err), PS_ERR_ARGUMENT);
    assert_non_null(strstr(err.message, "twice"));
    assert_int_equal(scratch_count(), 0);
}

/* Its main file has the name of m.pack's data file, as data files of containers in two directories may have. */
static struct pack_plan plan_of_a_neighbour(void)
{
    static char path[512];
    struct pack_plan plan = plan_of("neighbour", 0);
    snprintf(path, sizeof(path), "%s/m.pack.1", scratch);
    plan.path = path;
    return plan;
}

static void a_file_that_another_pack_writes_is_left_to_it(void **state)
{
    (void)state;
    struct pack_plan plan = plan_of("x", stripes_of(1)), other = plan_of_a_neighbour();
    struct contents whole = undisturbed(&plan);
    forget();
    struct pack_writer *w = open_writer(&plan, PACK_FRESH);
    decide(w);
    write_items(w, 4);
    for (int time = 0; time < 2; time++) {
        const struct pack_decisions decisions = {codecs, note, sizeof(note) - 1, N_SHARDS * 8192};
        struct pack_writer *neighbour = open_writer(&other, PACK_FRESH);
        struct ps_error err = {0};
        assert_int_equal(pack_writer_decide(neighbour, &decisions, &err), PS_ERR_ARGUMENT);
        assert_non_null(strstr(err.message, "m.pack.1.partial: another penstock"));
        /* Once it left its journal, as if killed: what another plan removes then is not this file. */
        pack_writer_free(neighbour, time == 0);
        other.identity = "changed";
        other.identity_bytes = 7;
        if (time == 0)
            pack_writer_free(open_writer(&other, PACK_STARTED_OVER), false);
    }
    finish(w);
    expect_same(&whole, 2);
    drop(&whole);
}

static void what_another_pack_wrote_does_not_count(void **state)
{
    (void)state;
    struct pack_plan plan = plan_of("x", stripes_of(1)), other = plan_of_a_neighbour();
    struct contents whole = undisturbed(&plan);
    forget();
    for (int i = 0; i < 2; i++) {
        struct pack_writer *w = open_writer(i == 0 ? &plan : &other, PACK_FRESH);
        decide(w);
        write_items(w, 6);
        assert_int_equal(pack_writer_commit(w, NULL), PS_OK);
        pack_writer_free(w, true);
    }
    struct pack_writer *w = open_writer(&plan, PACK_RESUMED);
    assert_int_equal(pack_writer_n_trunk(w), N_TENSORS);
    assert_int_equal(pack_writer_n_extents(w), 0);
    finish(w);
    struct pack_writer *neighbour;
    enum pack_start start;
    assert_int_equal(pack_writer_new(&neighbour, &other, &start, NULL), PS_ERR_ARGUMENT); /* name is taken */
    assert_int_equal(unlink(scratch_path("m.pack.1.partial-journal")), 0);
    expect_same(&whole, 2);
    drop(&whole);
}

/* The first tensor is an expert's: then the trunk seems to have begun before it has. */
static struct contents over_what_lay_there(bool any)
{
    static const uint64_t expert_first[N_TENSORS] = {0, 1000, 70000};
    static uint8_t data[200000];
    struct pack_plan plan = plan_of("x", 0);
    struct contents whole = {0};
    plan.trunk_bytes = expert_first;
    forget();
    memset(data, 0xff, sizeof(data));
    if (any)
        write_file("m.pack.partial", data, sizeof(data));
    struct pack_writer *w = open_writer(&plan, PACK_FRESH);
    decide(w);
    assert_int_equal(pack_writer_trunk(w, data, 71000, NULL), PS_OK);
    for (uint32_t i = 0; i < N_SHARDS; i++)
        assert_int_equal(pack_writer_extent(w, data, 4096, i, NULL), PS_OK);
    assert_int_equal(pack_writer_finish(w, NULL), PS_OK);
    pack_writer_free(w, false);
    whole.data[0] = load_file(scratch_path(files[0]), &whole.bytes[0]);
    return whole;
}

static void what_lay_under_its_temporary_name_does_not_show(void **state)
{
    (void)state;
    struct contents whole = over_what_lay_there(false), again = over_what_lay_there(true);
    expect_same(&whole, 1);
    free(again.data[0]);
    drop(&whole);
}

static void a_name_that_was_taken_meanwhile_is_refused_and_kept(void **state)
{
    (void)state;
    struct pack_plan plan = plan_of("x", stripes_of(1));
    struct contents whole = undisturbed(&plan);
    for (uint32_t i = 0; i < 2; i++) {
        forget();
        struct pack_writer *w = open_writer(&plan, PACK_FRESH);
        decide(w);
        write_items(w, N_ITEMS);
        write_file(files[i], "precious", 8);
        struct ps_error err = {0};
        assert_int_equal(pack_writer_finish(w, &err), PS_ERR_ARGUMENT);
        assert_non_null(strstr(err.message, files[i]));
        assert_non_null(strstr(err.message, "exists"));
        pack_writer_free(w, false);
        size_t bytes;
        uint8_t *data = load_file(scratch_path(files[i]), &bytes);
        assert_int_equal(bytes, 8);
        assert_memory_equal(data, "precious", 8);
        free(data);
        enum pack_start start;
        assert_int_equal(pack_writer_new(&w, &plan, &start, &err), PS_ERR_ARGUMENT);
        struct pack_plan onto = plan;
        onto.replace = true;
        pack_writer_free(open_writer(&onto, PACK_COMPLETED), false);
        expect_same(&whole, 2);
    }
    drop(&whole);
}

static void more_than_there_is_room_for_is_refused(void **state)
{
    (void)state;
    struct pack_plan plan = plan_of("x", stripes_of(1));
    struct pack_writer *w = open_writer(&plan, PACK_FRESH);
    const struct pack_decisions decisions = {codecs, note, sizeof(note) - 1, UINT64_C(1) << 60};
    struct ps_error err = {0};
    assert_int_equal(pack_writer_decide(w, &decisions, &err), PS_ERR_IO);
    assert_non_null(strstr(err.message, "no room"));
    assert_non_null(strstr(err.message, "missing"));
    pack_writer_free(w, false);
    assert_int_equal(scratch_count(), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_it_writes_is_a_container),
        TEST(stopped_anywhere_it_goes_on_to_the_same_bytes),
        TEST(stopped_in_a_tensor_it_goes_on_there),
        TEST(stopped_among_its_last_steps_it_is_completed),
        TEST(another_plan_starts_over),
        TEST(given_up_it_leaves_nothing),
        TEST(a_taken_name_is_refused_and_kept),
        TEST(a_file_that_another_pack_writes_is_left_to_it),
        TEST(what_another_pack_wrote_does_not_count),
        TEST(what_lay_under_its_temporary_name_does_not_show),
        TEST(a_name_that_was_taken_meanwhile_is_refused_and_kept),
        TEST(more_than_there_is_room_for_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
