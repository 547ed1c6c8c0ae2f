/* Journal of a pack: what was committed comes back, and nothing that is damaged, torn or out of sequence does. */
#include "gguf_fixture.h"

#include "storage/pack_journal.h"

enum { N_RECORDS = 5, RECORD_BYTES = 48, HEAD_BYTES = 48 };

static const uint8_t key[PACKED_ID_BYTES] = "the key is here";
static const char body[] = "what was decided";

static struct pack_journal *open_journal(void)
{
    struct pack_journal *journal;
    struct ps_error err = {0};
    if (pack_journal_open(&journal, scratch_path("j"), &err) != PS_OK)
        fail_msg("%s", err.message);
    return journal;
}

static struct pack_record record_of(uint32_t i)
{
    return (struct pack_record){PACK_EXTENT, i, i % 3, 0, i * 4096ul, 4096, i * 77ul};
}

static void append_from(struct pack_journal *journal, uint32_t first, uint32_t end)
{
    for (uint32_t i = first; i < end; i++) {
        struct pack_record record = record_of(i);
        assert_int_equal(pack_journal_append(journal, &record, NULL), PS_OK);
    }
    assert_int_equal(pack_journal_commit(journal, NULL), PS_OK);
}

static void write_journal(void)
{
    struct pack_journal *journal = open_journal();
    assert_int_equal(pack_journal_begin(journal, key, (const uint8_t *)body, sizeof(body), NULL), PS_OK);
    append_from(journal, 0, 2);
    append_from(journal, 2, N_RECORDS);
    pack_journal_free(journal);
}

/* How many records come back, each as it was; -1: no head. */
static int count_records(void)
{
    struct pack_journal *journal = open_journal();
    const uint8_t *read_key;
    uint64_t bytes;
    const uint8_t *read_body = pack_journal_body(journal, &read_key, &bytes);
    struct pack_record record;
    int n = 0;
    if (!read_body) {
        assert_false(pack_journal_next(journal, &record));
        pack_journal_free(journal);
        return -1;
    }
    assert_int_equal(bytes, sizeof(body));
    assert_memory_equal(read_body, body, sizeof(body));
    assert_memory_equal(read_key, key, sizeof(key));
    for (; pack_journal_next(journal, &record); n++) {
        struct pack_record expected = record_of((uint32_t)n);
        assert_memory_equal(&record, &expected, sizeof(record));
    }
    pack_journal_free(journal);
    return n;
}

static void what_was_committed_comes_back(void **state)
{
    (void)state;
    assert_int_equal(count_records(), -1);
    write_journal();
    assert_int_equal(count_records(), N_RECORDS);
    struct pack_journal *journal = open_journal();
    struct pack_record record = record_of(0);
    while (pack_journal_next(journal, &record)) {
    }
    append_from(journal, N_RECORDS, N_RECORDS + 1);
    record = record_of(N_RECORDS + 1);
    assert_int_equal(pack_journal_append(journal, &record, NULL), PS_OK); /* never committed */
    pack_journal_free(journal);
    assert_int_equal(count_records(), N_RECORDS + 1);
}

/* Records that are whole in `bytes` of the file. */
static int whole_records(size_t bytes)
{
    size_t head = HEAD_BYTES + sizeof(body);
    return bytes < head ? -1 : (int)((bytes - head) / RECORD_BYTES);
}

static void a_torn_journal_tells_of_what_is_whole(void **state)
{
    (void)state;
    write_journal();
    size_t bytes;
    uint8_t *file = load_file(scratch_path("j"), &bytes);
    assert_int_equal(bytes, HEAD_BYTES + sizeof(body) + N_RECORDS * RECORD_BYTES);
    for (size_t length = 0; length < bytes; length++) {
        write_file("j", file, length);
        assert_int_equal(count_records(), whole_records(length));
    }
    free(file);
}

static void a_flipped_bit_ends_what_it_tells(void **state)
{
    (void)state;
    write_journal();
    size_t bytes;
    uint8_t *file = load_file(scratch_path("j"), &bytes);
    for (size_t at = 0; at < bytes; at++) {
        file[at] ^= (uint8_t)(1 << at % 8);
        write_file("j", file, bytes);
        bool unused = at >= 12 && at < 16;
        assert_int_equal(count_records(), unused ? N_RECORDS : whole_records(at));
        file[at] ^= (uint8_t)(1 << at % 8);
    }
    free(file);
}

static void records_out_of_sequence_do_not_count(void **state)
{
    (void)state;
    write_journal();
    size_t bytes;
    uint8_t *file = load_file(scratch_path("j"), &bytes);
    uint8_t *records = file + HEAD_BYTES + sizeof(body);
    memmove(records + RECORD_BYTES, records + 2 * RECORD_BYTES, (N_RECORDS - 2) * RECORD_BYTES);
    write_file("j", file, bytes - RECORD_BYTES);
    assert_int_equal(count_records(), 1);
    free(file);
}

static void what_is_taken_back_is_gone_with_all_after_it(void **state)
{
    (void)state;
    write_journal();
    struct pack_journal *journal = open_journal();
    struct pack_record record;
    for (int i = 0; i < 3; i++)
        assert_true(pack_journal_next(journal, &record));
    assert_true(pack_journal_back(journal));
    append_from(journal, 2, 3);
    pack_journal_free(journal);
    assert_int_equal(count_records(), 3);
}

static void beginning_empties_it(void **state)
{
    (void)state;
    write_journal();
    struct pack_journal *journal = open_journal();
    assert_int_equal(pack_journal_begin(journal, key, (const uint8_t *)body, sizeof(body), NULL), PS_OK);
    pack_journal_free(journal);
    assert_int_equal(count_records(), 0);
    journal = open_journal();
    pack_journal_remove(journal);
    pack_journal_free(journal);
    assert_int_equal(scratch_count(), 0);
}

static void one_pack_at_a_time(void **state)
{
    (void)state;
    struct pack_journal *first = open_journal(), *second;
    struct ps_error err = {0};
    assert_int_equal(pack_journal_open(&second, scratch_path("j"), &err), PS_ERR_ARGUMENT);
    assert_non_null(strstr(err.message, "another penstock"));
    assert_null(second);
    pack_journal_free(first);
    pack_journal_free(open_journal());
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_was_committed_comes_back),
        TEST(a_torn_journal_tells_of_what_is_whole),
        TEST(a_flipped_bit_ends_what_it_tells),
        TEST(records_out_of_sequence_do_not_count),
        TEST(what_is_taken_back_is_gone_with_all_after_it),
        TEST(beginning_empties_it),
        TEST(one_pack_at_a_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
