/* GGUF directory: what it reads, what it refuses, and that no damage makes it misbehave. */
#include "gguf_fixture.h"

#include <sys/mman.h>
#include <sys/statfs.h>

enum { F32 = 0, Q4_0 = 2, Q4_K = 12 };

static bool equals(struct gguf_string string, const char *text)
{
    return string.length == strlen(text) && memcmp(string.data, text, string.length) == 0;
}

/* Uses all of a directory, so that a sanitizer sees every byte it answers with. */
static uint64_t touch_all(const struct gguf *gguf)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < gguf_n_kv(gguf); i++) {
        const struct gguf_kv *kv = gguf_kv_at(gguf, i);
        for (uint64_t c = 0; c < kv->key.length; c++)
            sum += (unsigned char)kv->key.data[c];
        if (kv->value.type == GGUF_STRING && kv->value.s.length > 0)
            sum += (unsigned char)kv->value.s.data[kv->value.s.length - 1];
        if (kv->value.type != GGUF_ARRAY || kv->value.a.count == 0)
            continue;
        const struct gguf_array *array = &kv->value.a;
        if (array->type != GGUF_STRING) {
            sum += gguf_array_u64(array, array->count - 1) + (gguf_array_f64(array, 0) > 0);
            continue;
        }
        struct gguf_string *strings = calloc(array->count, sizeof(*strings));
        assert_non_null(strings);
        gguf_array_strings(array, strings);
        for (uint64_t s = 0; s < array->count; s++)
            sum += strings[s].length ? (unsigned char)strings[s].data[strings[s].length - 1] : 0;
        free(strings);
    }
    for (uint32_t i = 0; i < gguf_n_tensors(gguf); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, i);
        assert_ptr_equal(gguf_tensor_find(gguf, tensor->name), tensor);
        assert_non_null(gguf_type_find(tensor->type));
        assert_true(tensor->offset + tensor->bytes <= gguf_file_size(gguf, tensor->file));
    }
    return sum;
}

static void every_value_type_is_read_back(void **state)
{
    (void)state;
    const char *path = scratch_path("types.gguf");
    struct gguf_writer *w = writer_new(path);
    static const struct gguf_value scalars[] = {
        {.type = GGUF_UINT8, .u = 200},          {.type = GGUF_INT8, .i = -100},
        {.type = GGUF_UINT16, .u = 60000},       {.type = GGUF_INT16, .i = -30000},
        {.type = GGUF_UINT32, .u = 4000000000},  {.type = GGUF_INT32, .i = -2000000000},
        {.type = GGUF_FLOAT32, .f = 0.25},       {.type = GGUF_BOOL, .u = 1},
        {.type = GGUF_STRING, .s = {"a\0b", 3}}, {.type = GGUF_UINT64, .u = UINT64_MAX},
        {.type = GGUF_INT64, .i = INT64_MIN},    {.type = GGUF_FLOAT64, .f = 1e300},
    };
    enum { N = sizeof(scalars) / sizeof(scalars[0]) };
    char key[32];
    for (uint32_t i = 0; i < N; i++) {
        snprintf(key, sizeof(key), "key.%u", scalars[i].type);
        gguf_writer_set_value(w, (struct gguf_string){key, strlen(key)}, &scalars[i]);
    }
    static const int16_t numbers[] = {1, -2, 3};
    static const double doubles[] = {1.5, -2.5};
    static const char *const words[] = {"alpha", "", "gamma"};
    gguf_writer_set_array(w, "array.i16", GGUF_INT16, numbers, 3);
    gguf_writer_set_array(w, "array.f64", GGUF_FLOAT64, doubles, 2);
    gguf_writer_set_strings(w, "array.words", words, 3);
    gguf_writer_set_array(w, "array.empty", GGUF_UINT8, NULL, 0);
    writer_complete(w, 0);

    struct gguf *gguf = open_ok(path);
    assert_int_equal(gguf_n_kv(gguf), N + 4);
    for (uint32_t i = 0; i < N; i++) {
        snprintf(key, sizeof(key), "key.%u", scalars[i].type);
        const struct gguf_value *value = gguf_find(gguf, key);
        assert_non_null(value);
        assert_int_equal(value->type, scalars[i].type);
        if (value->type == GGUF_STRING)
            assert_memory_equal(value->s.data, "a\0b", 3);
        else
            assert_true(value->u == scalars[i].u); /* same bits, floats too */
    }
    const struct gguf_array *array = gguf_get_array(gguf, "array.i16", GGUF_INT16);
    assert_non_null(array);
    assert_int_equal(array->count, 3);
    assert_true(gguf_array_f64(array, 1) == -2.0);
    assert_true(gguf_array_u64(array, 1) == (uint64_t)-2);
    assert_true(gguf_array_f64(gguf_get_array(gguf, "array.f64", GGUF_FLOAT64), 1) == -2.5);
    assert_null(gguf_get_array(gguf, "array.i16", GGUF_UINT16));
    assert_int_equal(gguf_get_array(gguf, "array.empty", GGUF_UINT8)->count, 0);
    struct gguf_string strings[3];
    gguf_array_strings(gguf_get_array(gguf, "array.words", GGUF_STRING), strings);
    assert_true(equals(strings[0], "alpha") && equals(strings[1], "") && equals(strings[2], "gamma"));
    gguf_free(gguf);
}

static void look_ups_convert_only_without_loss(void **state)
{
    (void)state;
    const char *path = scratch_path("convert.gguf");
    struct gguf_writer *w = writer_new(path);
    gguf_writer_set_u32(w, "u", 7);
    gguf_writer_set_i32(w, "negative", -7);
    gguf_writer_set_f32(w, "f", 2.0f);
    gguf_writer_set_bool(w, "b", true);
    gguf_writer_set_u64(w, "odd", (1ull << 53) + 1);
    gguf_writer_set_u64(w, "max", UINT64_MAX);
    gguf_writer_set_string(w, "s", "text");
    writer_complete(w, 0);
    struct gguf *gguf = open_ok(path);
    uint64_t u = 99;
    double f = 99;
    bool b = false;
    struct gguf_string s;
    assert_true(gguf_get_u64(gguf, "u", &u) && u == 7);
    u = 99;
    assert_false(gguf_get_u64(gguf, "negative", &u) || gguf_get_u64(gguf, "f", &u) ||
                 gguf_get_u64(gguf, "s", &u) || gguf_get_u64(gguf, "absent", &u));
    assert_int_equal(u, 99);
    assert_true(gguf_get_u64(gguf, "b", &u) && u == 1);
    assert_true(gguf_get_f64(gguf, "negative", &f) && f == -7);
    assert_true(gguf_get_f64(gguf, "f", &f) && f == 2);
    f = 99;
    assert_false(gguf_get_f64(gguf, "odd", &f) || gguf_get_f64(gguf, "max", &f) ||
                 gguf_get_f64(gguf, "s", &f));
    assert_true(f == 99);
    assert_true(gguf_get_bool(gguf, "b", &b) && b);
    assert_false(gguf_get_bool(gguf, "u", &b));
    assert_true(gguf_get_string(gguf, "s", &s) && equals(s, "text"));
    assert_false(gguf_get_string(gguf, "u", &s));
    gguf_free(gguf);
}

static void version_2_is_read(void **state)
{
    (void)state;
    struct raw raw = raw_preamble(2, 1, 1);
    put_string(&raw, "general.architecture");
    put_u32(&raw, GGUF_STRING);
    put_string(&raw, "llama");
    put_tensor(&raw, "t", Q4_0, 64, 3, 0);
    put_data(&raw, 108);
    struct gguf *gguf = open_ok(write_file("v2.gguf", raw.data, raw.bytes));
    assert_int_equal(gguf_version(gguf), 2);
    const struct gguf_tensor *tensor = gguf_tensor_find(gguf, "t");
    assert_non_null(tensor);
    assert_int_equal(tensor->bytes, 108);
    assert_int_equal(tensor->offset, raw.bytes - 108);
    assert_int_equal(tensor->dims[1], 3);
    assert_int_equal(tensor->dims[3], 1);
    gguf_free(gguf);
}

static void what_is_no_model_is_named(void **state)
{
    (void)state;
    struct raw raw = raw_preamble(1, 0, 0);
    open_fails(write_file("v1", raw.data, raw.bytes), PS_ERR_UNSUPPORTED, "GGUF version 1");
    raw = raw_preamble(0x03000000, 0, 0);
    open_fails(write_file("big", raw.data, raw.bytes), PS_ERR_UNSUPPORTED, "big-endian");
    raw = raw_preamble(4, 0, 0);
    open_fails(write_file("v4", raw.data, raw.bytes), PS_ERR_UNSUPPORTED, "GGUF version 4");
    open_fails(write_file("text", "# read me\n", 10), PS_ERR_FORMAT, "not a GGUF file");
    open_fails(write_file("short", "GG", 2), PS_ERR_FORMAT, "not a GGUF file");
    open_fails(write_file("empty", "", 0), PS_ERR_FORMAT, "is empty");
    open_fails(scratch, PS_ERR_IO, "is a directory");
    open_fails(scratch_path("absent"), PS_ERR_IO, "No such file");
    assert_int_equal(mkfifo(scratch_path("fifo"), 0600), 0);
    open_fails(scratch_path("fifo"), PS_ERR_IO, "not a regular file");
    if (geteuid() != 0) {
        assert_int_equal(chmod(scratch_path("v1"), 0), 0);
        open_fails(scratch_path("v1"), PS_ERR_IO, "Permission denied");
    }
}

/* One tensor, 128 bytes of data. */
static void tensor_fails(uint32_t type, uint64_t cols, uint64_t rows, uint64_t offset, enum ps_status status,
                         const char *text)
{
    struct raw raw = raw_preamble(3, 1, 0);
    put_tensor(&raw, "blk.0.attn_q.weight", type, cols, rows, offset);
    put_data(&raw, 128);
    open_fails(write_file("tensor.gguf", raw.data, raw.bytes), status, text);
}

static void impossible_tensors_are_refused(void **state)
{
    (void)state;
    tensor_fails(F32, 32, 2, 0, PS_ERR_FORMAT,
                 "blk.0.attn_q.weight: 256 bytes at offset 96 go past the end of the file (224");
    tensor_fails(F32, 8, 1, 128, PS_ERR_FORMAT, "go past the end");
    tensor_fails(F32, 8, 1, UINT64_MAX - 31, PS_ERR_FORMAT, "go past the end");
    tensor_fails(F32, 8, 1, 4, PS_ERR_FORMAT, "offset 4 is no multiple of 32");
    tensor_fails(Q4_K, 128, 1, 0, PS_ERR_FORMAT, "no multiple of 256 (q4_K)");
    tensor_fails(F32, 1ull << 33, 1ull << 33, 0, PS_ERR_FORMAT, "too large");
    tensor_fails(F32, 1ull << 62, 1, 0, PS_ERR_FORMAT, "too large");
    tensor_fails(F32, 0, 1, 0, PS_ERR_FORMAT, "is empty");
    tensor_fails(31, 32, 1, 0, PS_ERR_UNSUPPORTED, "block type 31 is unknown");
    tensor_fails(UINT32_MAX, 32, 1, 0, PS_ERR_UNSUPPORTED, "is unknown");

    struct raw raw = raw_preamble(3, 1, 0);
    put_string(&raw, "five");
    put_u32(&raw, 5);
    put_data(&raw, 128);
    open_fails(write_file("dims.gguf", raw.data, raw.bytes), PS_ERR_FORMAT, "five: 5 dimensions");
}

static void tensors_that_share_bytes_or_names_are_refused(void **state)
{
    (void)state;
    struct raw raw = raw_preamble(3, 2, 0);
    put_tensor(&raw, "second", F32, 16, 1, 32);
    put_tensor(&raw, "first", F32, 16, 1, 0);
    put_data(&raw, 128);
    open_fails(write_file("overlap.gguf", raw.data, raw.bytes), PS_ERR_FORMAT, "first overlaps second");

    raw = raw_preamble(3, 2, 0);
    put_tensor(&raw, "same", F32, 8, 1, 0);
    put_tensor(&raw, "same", F32, 8, 1, 32);
    put_data(&raw, 128);
    open_fails(write_file("same.gguf", raw.data, raw.bytes), PS_ERR_FORMAT, "same: tensor name occurs twice");

    raw = raw_preamble(3, 1, 0);
    put_u64(&raw, 3);
    put(&raw, "a\0b", 3);
    put_data(&raw, 128);
    open_fails(write_file("zero.gguf", raw.data, raw.bytes), PS_ERR_FORMAT, "zero byte");
}

static void tensors_out_of_order_come_in_file_order(void **state)
{
    (void)state;
    struct raw raw = raw_preamble(3, 3, 0);
    put_tensor(&raw, "c", F32, 8, 1, 64);
    put_tensor(&raw, "a", F32, 8, 1, 0);
    put_tensor(&raw, "b", F32, 8, 1, 32);
    put_data(&raw, 96);
    struct gguf *gguf = open_ok(write_file("order.gguf", raw.data, raw.bytes));
    assert_string_equal(gguf_tensor_at(gguf, 0)->name, "a");
    assert_string_equal(gguf_tensor_at(gguf, 2)->name, "c");
    touch_all(gguf);
    gguf_free(gguf);
}

static void bad_metadata_is_refused(void **state)
{
    (void)state;
    struct raw raw = raw_preamble(3, 0, 2);
    for (int i = 0; i < 2; i++) {
        put_string(&raw, "twice");
        put_u32(&raw, GGUF_UINT32);
        put_u32(&raw, 1);
    }
    open_fails(write_file("key.gguf", raw.data, raw.bytes), PS_ERR_FORMAT,
               "twice: metadata key occurs twice");

    raw = raw_preamble(3, 0, 1);
    put_string(&raw, "odd");
    put_u32(&raw, 13);
    put_u64(&raw, 0);
    open_fails(write_file("type.gguf", raw.data, raw.bytes), PS_ERR_FORMAT, "metadata type 13");

    static const uint32_t alignments[] = {0, 24};
    for (int i = 0; i < 2; i++) {
        raw = raw_preamble(3, 0, 1);
        put_string(&raw, "general.alignment");
        put_u32(&raw, GGUF_UINT32);
        put_u32(&raw, alignments[i]);
        open_fails(write_file("align.gguf", raw.data, raw.bytes), PS_ERR_FORMAT, "general.alignment");
    }
    raw = raw_preamble(3, 0, 1);
    put_string(&raw, "general.alignment");
    put_u32(&raw, GGUF_UINT64);
    put_u64(&raw, 32);
    open_fails(write_file("align.gguf", raw.data, raw.bytes), PS_ERR_FORMAT, "general.alignment");
}

static void alignment_of_the_file_is_used(void **state)
{
    (void)state;
    struct gguf_writer *w;
    const char *path = scratch_path("aligned.gguf");
    assert_int_equal(gguf_writer_new(&w, path, 4096, NULL), PS_OK);
    gguf_writer_add_tensor(w, "a", F32, 1, (uint64_t[]){3});
    gguf_writer_add_tensor(w, "b", F32, 1, (uint64_t[]){5});
    writer_complete(w, 32);
    struct gguf *gguf = open_ok(path);
    assert_int_equal(gguf_tensor_find(gguf, "a")->offset, 4096);
    assert_int_equal(gguf_tensor_find(gguf, "b")->offset, 8192);
    gguf_free(gguf);
}

static void absurd_counts_fail_at_once(void **state)
{
    (void)state;
    static const uint64_t counts[] = {1ull << 60, UINT64_MAX, 1ull << 32, 1000};
    for (int i = 0; i < 4; i++) {
        uint64_t n = counts[i];
        struct raw raw = raw_preamble(3, n, 0);
        open_fails(write_file("n.gguf", raw.data, raw.bytes), PS_ERR_FORMAT, "tensors at offset");
        raw = raw_preamble(3, 0, n);
        open_fails(write_file("n.gguf", raw.data, raw.bytes), PS_ERR_FORMAT, "metadata entries at offset");
        static const uint32_t elements[] = {GGUF_UINT8, GGUF_FLOAT64, GGUF_STRING, GGUF_ARRAY};
        for (int e = 0; e < 4; e++) {
            raw = raw_preamble(3, 0, 1);
            put_string(&raw, "k");
            put_u32(&raw, GGUF_ARRAY);
            put_u32(&raw, elements[e]);
            put_u64(&raw, n);
            open_fails(write_file("n.gguf", raw.data, raw.bytes), PS_ERR_FORMAT, "array elements");
        }
        raw = raw_preamble(3, 0, 1);
        put_string(&raw, "k");
        put_u32(&raw, GGUF_STRING);
        put_u64(&raw, n);
        open_fails(write_file("n.gguf", raw.data, raw.bytes), PS_ERR_FORMAT, "header goes past the end");
        raw = raw_preamble(3, 0, 1);
        put_u64(&raw, n);
        put_u64(&raw, 0);
        open_fails(write_file("n.gguf", raw.data, raw.bytes), PS_ERR_FORMAT, "header goes past the end");
    }
}

/* A key whose value is arrays in arrays, depth of them, the innermost with two bytes. */
static struct raw nested_array(int depth)
{
    struct raw raw = raw_preamble(3, 0, 2);
    put_string(&raw, "nested");
    put_u32(&raw, GGUF_ARRAY);
    for (int i = 1; i < depth; i++) {
        put_u32(&raw, GGUF_ARRAY);
        put_u64(&raw, 1);
    }
    put_u32(&raw, GGUF_UINT8);
    put_u64(&raw, 2);
    put(&raw, "\1\2", 2);
    put_string(&raw, "after");
    put_u32(&raw, GGUF_UINT32);
    put_u32(&raw, 5);
    return raw;
}

static void nested_arrays_are_skipped_and_bounded(void **state)
{
    (void)state;
    struct raw raw = nested_array(4);
    struct gguf *gguf = open_ok(write_file("nested.gguf", raw.data, raw.bytes));
    const struct gguf_array *array = gguf_get_array(gguf, "nested", GGUF_ARRAY);
    assert_non_null(array);
    assert_int_equal(array->count, 0);
    assert_null(array->data);
    uint64_t after;
    assert_true(gguf_get_u64(gguf, "after", &after) && after == 5);
    gguf_free(gguf);
    raw = nested_array(5);
    open_fails(write_file("deep.gguf", raw.data, raw.bytes), PS_ERR_UNSUPPORTED, "nested more than 4 deep");
    raw = nested_array(300);
    open_fails(write_file("deep.gguf", raw.data, raw.bytes), PS_ERR_UNSUPPORTED, "nested more than 4 deep");
}

/* A small model with everything in it; the data of its last tensor ends the file. */
static const char *make_model(const char *name, uint32_t n_words)
{
    const char *path = scratch_path(name);
    struct gguf_writer *w = writer_new(path);
    gguf_writer_set_string(w, "general.architecture", "qwen3moe");
    gguf_writer_set_u32(w, "qwen3moe.block_count", 2);
    gguf_writer_set_f32(w, "qwen3moe.rope.freq_base", 1e6f);
    gguf_writer_set_bool(w, "tokenizer.ggml.add_bos_token", false);
    const char **words = calloc(n_words, sizeof(*words));
    float *scores = calloc(n_words, sizeof(*scores));
    assert_non_null(words);
    assert_non_null(scores);
    static const char *const stems[] = {"the", "", "reservoir", "\xc4\xa0turbine"};
    for (uint32_t i = 0; i < n_words; i++)
        words[i] = stems[i % 4];
    gguf_writer_set_strings(w, "tokenizer.ggml.tokens", words, n_words);
    gguf_writer_set_array(w, "tokenizer.ggml.scores", GGUF_FLOAT32, scores, n_words);
    free(words);
    free(scores);
    gguf_writer_add_tensor(w, "token_embd.weight", Q4_0, 2, (uint64_t[]){64, 100});
    gguf_writer_add_tensor(w, "output_norm.weight", F32, 1, (uint64_t[]){64});
    gguf_writer_add_tensor(w, "blk.0.ffn_up_exps.weight", Q4_0, 3, (uint64_t[]){64, 32, 8});
    writer_complete(w, 3600 + 256 + 9216);
    return path;
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    size_t bytes;
    uint8_t *data = load_file(make_model("whole.gguf", 3000), &bytes);
    uint64_t seed = 88172645463325252ull;
    for (size_t i = 0; i < 600; i++) {
        size_t length = i * 4096 < bytes ? i * 4096 : next_random(&seed) % bytes;
        struct gguf *gguf = NULL;
        struct ps_error err;
        enum ps_status status = gguf_open(&gguf, write_file("cut.gguf", data, length), &err);
        if (status != PS_ERR_FORMAT)
            fail_msg("cut to %zu of %zu bytes: status %d", length, bytes, status);
    }
    free(data);
    gguf_free(open_ok(scratch_path("whole.gguf")));
}

static void no_changed_header_byte_does_harm(void **state)
{
    (void)state;
    size_t bytes;
    uint8_t *data = load_file(make_model("whole.gguf", 12), &bytes);
    size_t header = bytes - (3600 + 256 + 9216);
    static const uint8_t flips[] = {0x01, 0x80, 0xff};
    uint32_t opened = 0, refused = 0;
    for (size_t i = 0; i < header; i++) {
        for (size_t f = 0; f < sizeof(flips); f++) {
            data[i] ^= flips[f];
            struct gguf *gguf;
            struct ps_error err = {0};
            if (gguf_open(&gguf, write_file("changed.gguf", data, bytes), &err) == PS_OK) {
                touch_all(gguf);
                gguf_free(gguf);
                opened++;
            } else {
                assert_null(gguf);
                assert_true(err.message[0] != 0 && strchr(err.message, '\n') == NULL);
                refused++;
            }
            data[i] ^= flips[f];
        }
    }
    assert_true(opened > 0 && refused > 0);
    free(data);
}

static void large_directories_are_found_by_name(void **state)
{
    (void)state;
    enum { N = 20000 };
    const char *path = scratch_path("large.gguf");
    struct gguf_writer *w = writer_new(path);
    gguf_writer_set_string(w, "general.architecture", "large");
    char name[64];
    for (uint32_t i = 0; i < N; i++) {
        snprintf(name, sizeof(name), "blk.%u.weight", i);
        gguf_writer_add_tensor(w, name, F32, 1, (uint64_t[]){8});
    }
    writer_complete(w, N * 32);
    struct gguf *gguf = open_ok(path);
    assert_int_equal(gguf_n_tensors(gguf), N);
    touch_all(gguf);
    assert_null(gguf_tensor_find(gguf, "blk.20000.weight"));
    assert_true(gguf_memory(gguf) < 4u << 20);
    gguf_free(gguf);
}

static void page_cache_is_left_alone(void **state)
{
    (void)state;
    const char *path = make_model("cache.gguf", 3000); /* the writer leaves no pages either */
    struct statfs fs;
    assert_int_equal(statfs(path, &fs), 0);
    if (fs.f_type == 0x01021994) { /* tmpfs lives in the page cache */
        print_message("the scratch folder is a tmpfs\n");
        skip();
    }
    struct gguf *gguf = open_ok(path);
    size_t bytes = gguf_file_size(gguf, 0);
    gguf_free(gguf);
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(map, MAP_FAILED);
    size_t n_pages = (bytes + 4095) / 4096;
    unsigned char *resident = malloc(n_pages);
    assert_non_null(resident);
    assert_int_equal(mincore(map, bytes, resident), 0);
    for (size_t i = 0; i < n_pages; i++)
        assert_int_equal(resident[i] & 1, 0);
    free(resident);
    munmap(map, bytes);
    close(fd);
}

/* One part of a split model with one tensor, or none. */
static void make_part(const char *name, uint32_t number, uint32_t count, int32_t n_tensors,
                      const char *tensor)
{
    struct gguf_writer *w = writer_new(scratch_path(name));
    const uint16_t no = (uint16_t)number, of = (uint16_t)count;
    const struct gguf_value no_value = {.type = GGUF_UINT16, .u = no},
                            of_value = {.type = GGUF_UINT16, .u = of};
    gguf_writer_set_value(w, (struct gguf_string){"split.no", 8}, &no_value);
    gguf_writer_set_value(w, (struct gguf_string){"split.count", 11}, &of_value);
    gguf_writer_set_i32(w, "split.tensors.count", n_tensors);
    if (number == 0)
        gguf_writer_set_string(w, "general.architecture", "split");
    if (tensor)
        gguf_writer_add_tensor(w, tensor, F32, 1, (uint64_t[]){8});
    writer_complete(w, tensor ? 32 : 0);
}

static void any_part_opens_the_split_model(void **state)
{
    (void)state;
    make_part("m-00001-of-00003.gguf", 0, 3, 2, NULL); /* metadata only */
    make_part("m-00002-of-00003.gguf", 1, 3, 2, "a");
    make_part("m-00003-of-00003.gguf", 2, 3, 2, "b");
    static const char *const names[] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf",
                                        "m-00003-of-00003.gguf"};
    for (int i = 0; i < 3; i++) {
        struct gguf *gguf = open_ok(scratch_path(names[i]));
        assert_int_equal(gguf_n_files(gguf), 3);
        assert_string_equal(gguf_file_path(gguf, 1), scratch_path(names[1]));
        assert_int_equal(gguf_tensor_find(gguf, "a")->file, 1);
        assert_int_equal(gguf_tensor_find(gguf, "b")->file, 2);
        assert_non_null(gguf_find(gguf, "general.architecture"));
        gguf_free(gguf);
    }
}

static void damaged_splits_are_refused(void **state)
{
    (void)state;
    make_part("m-00001-of-00003.gguf", 0, 3, 3, "a");
    make_part("m-00003-of-00003.gguf", 2, 3, 3, "c");
    open_fails(scratch_path("m-00001-of-00003.gguf"), PS_ERR_IO, "m-00002-of-00003.gguf: part 2 of 3");
    open_fails(scratch_path("m-00003-of-00003.gguf"), PS_ERR_IO, "m-00002-of-00003.gguf: part 2 of 3");
    make_part("m-00002-of-00003.gguf", 2, 3, 3, "b");
    open_fails(scratch_path("m-00001-of-00003.gguf"), PS_ERR_FORMAT, "says part 3 of 3");
    make_part("m-00002-of-00003.gguf", 1, 4, 3, "b");
    open_fails(scratch_path("m-00001-of-00003.gguf"), PS_ERR_FORMAT, "says part 2 of 4");
    make_part("m-00002-of-00003.gguf", 1, 3, 3, "c");
    open_fails(scratch_path("m-00001-of-00003.gguf"), PS_ERR_FORMAT, "c: tensor name occurs twice");
    make_part("m-00002-of-00003.gguf", 1, 3, 3, NULL);
    open_fails(scratch_path("m-00001-of-00003.gguf"), PS_ERR_FORMAT,
               "split.tensors.count: 3, but the parts hold 2");
    make_part("renamed.gguf", 0, 3, 3, "a");
    open_fails(scratch_path("renamed.gguf"), PS_ERR_FORMAT, "does not end in -00001-of-00003.gguf");
    make_part("r-00001-of-00003.gguf", 7, 3, 3, "a");
    open_fails(scratch_path("r-00001-of-00003.gguf"), PS_ERR_FORMAT, "split.no");
}

/* Opens every model of a folder; 0 when the folder is absent. */
static uint32_t open_folder(const char *folder)
{
    char path[1024];
    uint32_t n = 0;
    snprintf(path, sizeof(path), "%s/%s", TEST_SHARED_DIR, folder);
    DIR *dir = opendir(path);
    for (const struct dirent *entry; dir && (entry = readdir(dir));) {
        size_t length = strlen(entry->d_name);
        if (length < 5 || strcmp(entry->d_name + length - 5, ".gguf") != 0)
            continue;
        snprintf(path, sizeof(path), "%s/%s/%s", TEST_SHARED_DIR, folder, entry->d_name);
        struct gguf *gguf = open_ok(path);
        assert_true(gguf_n_tensors(gguf) > 0);
        touch_all(gguf);
        gguf_free(gguf);
        n++;
    }
    if (dir)
        closedir(dir);
    return n;
}

static void golden_models_open(void **state)
{
    (void)state;
    uint32_t n = open_folder("golden/base") + open_folder("golden/quant") + open_folder("golden/split") +
                 open_folder("models");
    if (n == 0) {
        print_message("no golden models in %s\n", TEST_SHARED_DIR);
        skip();
    }
    print_message("%u golden models\n", n);
}

static void compare_models(const struct gguf *x, const struct gguf *y)
{
    assert_int_equal(gguf_n_tensors(x), gguf_n_tensors(y));
    for (uint32_t i = 0; i < gguf_n_tensors(x); i++) {
        const struct gguf_tensor *a = gguf_tensor_at(x, i), *b = gguf_tensor_find(y, a->name);
        assert_non_null(b);
        assert_int_equal(a->type, b->type);
        assert_memory_equal(a->dims, b->dims, sizeof(a->dims));
        size_t bytes[2];
        uint8_t *file_a = load_file(gguf_file_path(x, a->file), &bytes[0]);
        uint8_t *file_b = load_file(gguf_file_path(y, b->file), &bytes[1]);
        assert_int_equal(a->bytes, b->bytes);
        assert_memory_equal(file_a + a->offset, file_b + b->offset, a->bytes);
        free(file_a);
        free(file_b);
    }
    for (uint64_t i = 0; i < gguf_n_kv(x); i++) {
        char key[256];
        const struct gguf_kv *kv = gguf_kv_at(x, i);
        snprintf(key, sizeof(key), "%.*s", (int)kv->key.length, kv->key.data);
        const struct gguf_value *other = gguf_find(y, key);
        assert_non_null(other);
        assert_int_equal(kv->value.type, other->type);
        if (kv->value.type == GGUF_STRING)
            assert_true(kv->value.s.length == other->s.length &&
                        memcmp(kv->value.s.data, other->s.data, other->s.length) == 0);
        else if (kv->value.type != GGUF_ARRAY)
            assert_true(kv->value.u == other->u);
    }
}

static void golden_splits_equal_the_single_file(void **state)
{
    (void)state;
    static const char *const splits[] = {"qwen3moe-IQ1_S-00002-of-00003.gguf",
                                         "qwen3moe-IQ1_S-meta-00001-of-00004.gguf"};
    const char *single = TEST_SHARED_DIR "/golden/quant/qwen3moe-IQ1_S.gguf";
    if (access(single, R_OK) != 0) {
        print_message("no golden models in %s\n", TEST_SHARED_DIR);
        skip();
    }
    struct gguf *whole = open_ok(single);
    for (int i = 0; i < 2; i++) {
        char path[1024];
        snprintf(path, sizeof(path), "%s/golden/split/%s", TEST_SHARED_DIR, splits[i]);
        struct gguf *parts = open_ok(path);
        assert_int_equal(gguf_n_files(parts), 3 + i);
        compare_models(whole, parts);
        gguf_free(parts);
    }
    gguf_free(whole);
}

static void types_are_found_by_id_and_name(void **state)
{
    (void)state;
    const struct gguf_type_info *type = gguf_type_find_name("Q4_k");
    assert_non_null(type);
    assert_int_equal(type->id, Q4_K);
    assert_int_equal(type->bytes, 144);
    assert_null(gguf_type_find_name("q4_k_m"));
    uint32_t n = 0;
    for (uint32_t id = 0; id < 64; id++) {
        type = gguf_type_find(id);
        if (type) {
            assert_ptr_equal(gguf_type_find_name(type->name), type);
            n++;
        }
    }
    assert_int_equal(n, 35);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_value_type_is_read_back),
        TEST(look_ups_convert_only_without_loss),
        TEST(version_2_is_read),
        TEST(what_is_no_model_is_named),
        TEST(impossible_tensors_are_refused),
        TEST(tensors_that_share_bytes_or_names_are_refused),
        TEST(tensors_out_of_order_come_in_file_order),
        TEST(bad_metadata_is_refused),
        TEST(alignment_of_the_file_is_used),
        TEST(absurd_counts_fail_at_once),
        TEST(nested_arrays_are_skipped_and_bounded),
        TEST(every_truncation_is_refused),
        TEST(no_changed_header_byte_does_harm),
        TEST(large_directories_are_found_by_name),
        TEST(page_cache_is_left_alone),
        TEST(any_part_opens_the_split_model),
        TEST(damaged_splits_are_refused),
        TEST(golden_models_open),
        TEST(golden_splits_equal_the_single_file),
        TEST(types_are_found_by_id_and_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
