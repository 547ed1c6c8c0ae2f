/* GGUF writer: what is on disk after success, and that nothing is after failure. Values and directories are
 * read back in test_gguf.c. */
#include "gguf_fixture.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { F32 = 0, Q4_0 = 2 };

static void begin_fails(struct gguf_writer *w, enum ps_status status, const char *text)
{
    struct ps_error err = {0};
    enum ps_status got = gguf_writer_begin_data(w, &err);
    if (got != status || !strstr(err.message, text))
        fail_msg("status %d, message \"%s\"; expected status %d, \"%s\"", got, err.message, status, text);
    gguf_writer_free(w);
    assert_int_equal(scratch_count(), 0);
}

static void data_lands_in_its_tensors_whatever_the_pieces(void **state)
{
    (void)state;
    static const size_t pieces[] = {1, 7, 64, 1000, 1 << 20};
    for (size_t p = 0; p < sizeof(pieces) / sizeof(pieces[0]); p++) {
        struct gguf_writer *w = writer_new(scratch_path("m.gguf"));
        gguf_writer_add_tensor(w, "a", F32, 1, (uint64_t[]){3});
        gguf_writer_add_tensor(w, "b", Q4_0, 2, (uint64_t[]){32, 77});
        gguf_writer_add_tensor(w, "c", F32, 4, (uint64_t[]){1, 2, 3, 4});
        uint8_t data[12 + 77 * 18 + 96];
        for (size_t i = 0; i < sizeof(data); i++)
            data[i] = (uint8_t)(i * 7 + 1);
        assert_int_equal(gguf_writer_begin_data(w, NULL), PS_OK);
        for (size_t at = 0; at < sizeof(data); at += pieces[p]) {
            size_t n = sizeof(data) - at < pieces[p] ? sizeof(data) - at : pieces[p];
            assert_int_equal(gguf_writer_write(w, data + at, n, NULL), PS_OK);
        }
        uint64_t promised = gguf_writer_file_bytes(w);
        assert_int_equal(gguf_writer_finish(w, NULL), PS_OK);
        gguf_writer_free(w);

        struct gguf *gguf = open_ok(scratch_path("m.gguf"));
        size_t bytes;
        uint8_t *file = load_file(scratch_path("m.gguf"), &bytes);
        assert_int_equal(bytes, promised);
        const uint8_t *expected = data;
        for (uint32_t i = 0; i < 3; i++) {
            const struct gguf_tensor *tensor = gguf_tensor_at(gguf, i);
            assert_int_equal(tensor->offset % 32, 0);
            assert_memory_equal(file + tensor->offset, expected, tensor->bytes);
            expected += tensor->bytes;
            for (uint64_t pad = tensor->offset + tensor->bytes; pad % 32 != 0; pad++)
                assert_int_equal(file[pad], 0);
        }
        free(file);
        gguf_free(gguf);
        assert_int_equal(scratch_count(), 1);
    }
}

static void target_appears_only_at_finish(void **state)
{
    (void)state;
    write_file("m.gguf", "old", 3);
    struct gguf_writer *w = writer_new(scratch_path("m.gguf"));
    gguf_writer_add_tensor(w, "a", F32, 1, (uint64_t[]){8});
    assert_int_equal(gguf_writer_begin_data(w, NULL), PS_OK);
    assert_int_equal(gguf_writer_write(w, (uint8_t[31]){0}, 31, NULL), PS_OK);
    struct ps_error err;
    assert_int_equal(gguf_writer_finish(w, &err), PS_ERR_ARGUMENT);
    assert_non_null(strstr(err.message, "a: 1 of 32 bytes of data are missing"));
    assert_int_equal(gguf_writer_write(w, (uint8_t[2]){0}, 2, &err), PS_ERR_ARGUMENT); /* one too many */
    gguf_writer_free(w);
    assert_int_equal(scratch_count(), 1);
    size_t bytes;
    uint8_t *file = load_file(scratch_path("m.gguf"), &bytes);
    assert_int_equal(bytes, 3);
    free(file);
}

static void mistakes_are_named_and_leave_nothing(void **state)
{
    (void)state;
    struct gguf_writer *w = writer_new(scratch_path("m.gguf"));
    gguf_writer_set_u32(w, "k", 1);
    gguf_writer_set_string(w, "k", "again");
    begin_fails(w, PS_ERR_ARGUMENT, "k: occurs twice");

    w = writer_new(scratch_path("m.gguf"));
    gguf_writer_add_tensor(w, "t", F32, 1, (uint64_t[]){8});
    gguf_writer_add_tensor(w, "t", F32, 1, (uint64_t[]){8});
    begin_fails(w, PS_ERR_ARGUMENT, "t: occurs twice");

    static const struct {
        uint32_t type, n_dims;
        uint64_t dims[2];
    } shapes[] = {
        {31, 1, {32, 1}},
        {Q4_0, 1, {33, 1}},
        {F32, 0, {1, 1}},
        {F32, 5, {1, 1}},
        {F32, 2, {1ull << 40, 1ull << 40}},
        {F32, 2, {8, 0}},
    };
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        w = writer_new(scratch_path("m.gguf"));
        gguf_writer_add_tensor(w, "shape", shapes[i].type, shapes[i].n_dims, shapes[i].dims);
        gguf_writer_set_u32(w, "later", 1); /* the first failure is the one that is reported */
        begin_fails(w, PS_ERR_ARGUMENT, "shape");
    }
    w = writer_new(scratch_path("m.gguf"));
    gguf_writer_set_array(w, "words", GGUF_STRING, NULL, 0);
    begin_fails(w, PS_ERR_ARGUMENT, "words: not an array of numbers");

    struct ps_error err;
    assert_int_equal(gguf_writer_new(&w, scratch_path("m.gguf"), 24, &err), PS_ERR_ARGUMENT);
    assert_int_equal(gguf_writer_new(&w, scratch_path("absent/m.gguf"), 0, &err), PS_ERR_IO);
    assert_non_null(strstr(err.message, "absent/m.gguf"));
    assert_null(w);
}

/* In a child: files may not grow past the limit, from begin_data on or from after it. Returns the exit
 * status. */
static int write_under_limit(bool limit_before)
{
    const struct rlimit limit = {1 << 20, 1 << 20};
    signal(SIGXFSZ, SIG_IGN);
    struct gguf_writer *w;
    struct ps_error err = {0};
    if (gguf_writer_new(&w, scratch_path("m.gguf"), 0, &err) != PS_OK)
        return 1;
    gguf_writer_add_tensor(w, "a", F32, 1, (uint64_t[]){1 << 19});
    if (limit_before && setrlimit(RLIMIT_FSIZE, &limit) != 0)
        return 2;
    enum ps_status status = gguf_writer_begin_data(w, &err);
    if (!limit_before) {
        if (status != PS_OK || setrlimit(RLIMIT_FSIZE, &limit) != 0)
            return 3;
        uint8_t *data = calloc(1, 2 << 20);
        status = gguf_writer_write(w, data, 2 << 20, &err);
        free(data);
    }
    gguf_writer_free(w);
    const char *expected = limit_before ? "no room for" : "write failed at offset 1048576";
    return status == PS_ERR_IO && strstr(err.message, expected) && strstr(err.message, "m.gguf") ? 0 : 4;
}

static void a_full_disk_is_reported_with_path_and_offset(void **state)
{
    (void)state;
    for (int before = 0; before < 2; before++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            _exit(write_under_limit(before != 0));
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
        assert_int_equal(scratch_count(), 0);
    }
}

static bool same_array(const struct gguf_array *x, const struct gguf_array *y)
{
    if (x->type != y->type || x->count != y->count)
        return false;
    for (uint64_t i = 0; x->type != GGUF_STRING && i < x->count; i++) {
        if (gguf_array_u64(x, i) != gguf_array_u64(y, i) || gguf_array_f64(x, i) != gguf_array_f64(y, i))
            return false;
    }
    if (x->type != GGUF_STRING)
        return true;
    struct gguf_string *a = calloc(x->count + 1, sizeof(*a)), *b = calloc(x->count + 1, sizeof(*b));
    gguf_array_strings(x, a);
    gguf_array_strings(y, b);
    bool same = true;
    for (uint64_t i = 0; i < x->count; i++)
        same = same && a[i].length == b[i].length && memcmp(a[i].data, b[i].data, a[i].length) == 0;
    free(a);
    free(b);
    return same;
}

static void metadata_of_another_file_is_copied_verbatim(void **state)
{
    (void)state;
    const char *model = TEST_SHARED_DIR "/models/fable-moe-q8_0.gguf";
    if (access(model, R_OK) != 0) {
        print_message("no %s\n", model);
        skip();
    }
    struct gguf *from = open_ok(model);
    struct gguf_writer *w = writer_new(scratch_path("m.gguf"));
    for (uint64_t i = 0; i < gguf_n_kv(from); i++)
        gguf_writer_set_value(w, gguf_kv_at(from, i)->key, &gguf_kv_at(from, i)->value);
    writer_complete(w, 0);
    struct gguf *copy = open_ok(scratch_path("m.gguf"));
    assert_int_equal(gguf_n_kv(copy), gguf_n_kv(from));
    uint32_t arrays = 0;
    for (uint64_t i = 0; i < gguf_n_kv(from); i++) {
        const struct gguf_kv *x = gguf_kv_at(from, i), *y = gguf_kv_at(copy, i);
        assert_true(x->key.length == y->key.length && memcmp(x->key.data, y->key.data, x->key.length) == 0);
        assert_int_equal(x->value.type, y->value.type);
        if (x->value.type == GGUF_ARRAY) {
            assert_true(same_array(&x->value.a, &y->value.a));
            arrays++;
        } else if (x->value.type == GGUF_STRING) {
            assert_true(x->value.s.length == y->value.s.length);
            assert_memory_equal(x->value.s.data, y->value.s.data, x->value.s.length);
        } else {
            assert_true(x->value.u == y->value.u);
        }
    }
    assert_true(arrays > 0);
    gguf_free(copy);
    gguf_free(from);
}

static void nested_arrays_are_not_copied_silently(void **state)
{
    (void)state;
    const struct gguf_value nested = {.type = GGUF_ARRAY, .a = {GGUF_ARRAY, 0, NULL}};
    struct gguf_writer *w = writer_new(scratch_path("m.gguf"));
    gguf_writer_set_value(w, (struct gguf_string){"nested", 6}, &nested);
    begin_fails(w, PS_ERR_UNSUPPORTED, "nested");
}

/* Past the write-behind window, so that pages are handed to the drive and dropped along the way. */
static void large_files_keep_their_bytes(void **state)
{
    (void)state;
    enum { PIECE = 3 << 20, N_PIECES = 30 };
    struct gguf_writer *w = writer_new(scratch_path("m.gguf"));
    gguf_writer_add_tensor(w, "a", F32, 2, (uint64_t[]){PIECE / 4, N_PIECES});
    assert_int_equal(gguf_writer_begin_data(w, NULL), PS_OK);
    uint8_t *piece = malloc(PIECE);
    assert_non_null(piece);
    for (int i = 0; i < N_PIECES; i++) {
        memset(piece, i + 1, PIECE);
        assert_int_equal(gguf_writer_write(w, piece, PIECE, NULL), PS_OK);
    }
    assert_int_equal(gguf_writer_finish(w, NULL), PS_OK);
    gguf_writer_free(w);
    struct gguf *gguf = open_ok(scratch_path("m.gguf"));
    int fd = open(scratch_path("m.gguf"), O_RDONLY);
    assert_true(fd >= 0);
    for (int i = 0; i < N_PIECES; i++) {
        off_t at = (off_t)gguf_tensor_at(gguf, 0)->offset + (off_t)i * PIECE;
        assert_int_equal(pread(fd, piece, PIECE, at), PIECE);
        assert_int_equal(piece[0], i + 1);
        assert_memory_equal(piece, piece + 1, PIECE - 1);
    }
    close(fd);
    free(piece);
    gguf_free(gguf);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(data_lands_in_its_tensors_whatever_the_pieces),
        TEST(target_appears_only_at_finish),
        TEST(mistakes_are_named_and_leave_nothing),
        TEST(a_full_disk_is_reported_with_path_and_offset),
        TEST(metadata_of_another_file_is_copied_verbatim),
        TEST(nested_arrays_are_not_copied_silently),
        TEST(large_files_keep_their_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
