/* Files for the GGUF tests: a scratch folder, models made with the writer, and headers made byte by byte. */
#ifndef PENSTOCK_TESTS_GGUF_FIXTURE_H
#define PENSTOCK_TESTS_GGUF_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/gguf.h"
#include "storage/gguf_writer.h"

static char scratch[256]; /* a fresh folder per test */

static inline int scratch_make(void **state)
{
    (void)state;
    const char *parent = getenv("TMPDIR");
    snprintf(scratch, sizeof(scratch), "%s/penstock-test-XXXXXX", parent ? parent : "/tmp");
    return mkdtemp(scratch) ? 0 : -1;
}

static inline uint32_t scratch_count(void)
{
    uint32_t n = 0;
    DIR *dir = opendir(scratch);
    assert_non_null(dir);
    for (const struct dirent *entry; (entry = readdir(dir));)
        n += entry->d_name[0] != '.';
    closedir(dir);
    return n;
}

static inline int scratch_remove(void **state)
{
    (void)state;
    DIR *dir = opendir(scratch);
    for (const struct dirent *entry; dir && (entry = readdir(dir));)
        unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir)
        closedir(dir);
    return rmdir(scratch);
}

/* A path in the scratch folder; valid until the fourth next call. */
static inline const char *scratch_path(const char *name)
{
    static char paths[4][512];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof(paths[0]), "%s/%s", scratch, name);
    return path;
}

static inline const char *write_file(const char *name, const void *data, size_t bytes)
{
    const char *path = scratch_path(name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
    return path;
}

/* The whole file; the caller frees it. */
static inline uint8_t *load_file(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    long size = ftell(file);
    assert_true(size >= 0);
    rewind(file);
    uint8_t *data = malloc((size_t)size + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, (size_t)size, file), (size_t)size);
    fclose(file);
    *bytes = (size_t)size;
    return data;
}

/* xorshift64 (Marsaglia 2003) */
static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static inline struct gguf_writer *writer_new(const char *path)
{
    struct gguf_writer *writer;
    struct ps_error err;
    if (gguf_writer_new(&writer, path, 0, &err) != PS_OK)
        fail_msg("%s", err.message);
    return writer;
}

/* Writes bytes i, i+1, ... as the data of all tensors, and the file. */
static inline void writer_complete(struct gguf_writer *writer, uint64_t data_bytes)
{
    struct ps_error err;
    if (gguf_writer_begin_data(writer, &err) != PS_OK)
        fail_msg("%s", err.message);
    uint8_t *data = malloc(data_bytes + 1);
    assert_non_null(data);
    for (uint64_t i = 0; i < data_bytes; i++)
        data[i] = (uint8_t)(i * 31 >> 3);
    if (gguf_writer_write(writer, data, data_bytes, &err) != PS_OK ||
        gguf_writer_finish(writer, &err) != PS_OK)
        fail_msg("%s", err.message);
    free(data);
    gguf_writer_free(writer);
}

static inline struct gguf *open_ok(const char *path)
{
    struct gguf *gguf;
    struct ps_error err;
    if (gguf_open(&gguf, path, &err) != PS_OK)
        fail_msg("%s", err.message);
    return gguf;
}

/* The file must be refused with this status and a one-line message that holds the text. */
static inline void open_fails(const char *path, enum ps_status status, const char *text)
{
    struct gguf *gguf = (struct gguf *)1;
    struct ps_error err = {0};
    enum ps_status got = gguf_open(&gguf, path, &err);
    if (got == PS_OK)
        fail_msg("%s: opened, should fail with: %s", path, text);
    assert_null(gguf);
    if (got != status || !strstr(err.message, text))
        fail_msg("status %d, message \"%s\"; expected status %d, \"%s\"", got, err.message, status, text);
    assert_null(strchr(err.message, '\n'));
    assert_int_equal(err.status, status);
}

/* A header made byte by byte. */
struct raw {
    uint8_t data[8192];
    size_t bytes;
};

static inline void put(struct raw *raw, const void *data, size_t bytes)
{
    assert_true(raw->bytes + bytes <= sizeof(raw->data));
    memcpy(raw->data + raw->bytes, data, bytes);
    raw->bytes += bytes;
}

static inline void put_u32(struct raw *raw, uint32_t value)
{
    put(raw, &value, sizeof(value));
}

static inline void put_u64(struct raw *raw, uint64_t value)
{
    put(raw, &value, sizeof(value));
}

static inline void put_string(struct raw *raw, const char *text)
{
    put_u64(raw, strlen(text));
    put(raw, text, strlen(text));
}

static inline struct raw raw_preamble(uint32_t version, uint64_t n_tensors, uint64_t n_kv)
{
    struct raw raw = {.bytes = 0};
    put(&raw, "GGUF", 4);
    put_u32(&raw, version);
    put_u64(&raw, n_tensors);
    put_u64(&raw, n_kv);
    return raw;
}

static inline void put_tensor(struct raw *raw, const char *name, uint32_t type, uint64_t cols, uint64_t rows,
                              uint64_t offset)
{
    put_string(raw, name);
    put_u32(raw, 2);
    put_u64(raw, cols);
    put_u64(raw, rows);
    put_u32(raw, type);
    put_u64(raw, offset);
}

/* Pads the header and adds tensor data. */
static inline void put_data(struct raw *raw, size_t bytes)
{
    static const uint8_t zeros[4096];
    put(raw, zeros, -raw->bytes % 32 + bytes);
}

#endif
