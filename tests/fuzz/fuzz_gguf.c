/* Fuzz target: any bytes as a GGUF file or a packed container, through the directory, the shard map and the trunk
 * layout. Containers are signed before use: no change to one would get past its checksums.
 *
 * With clang: -fsanitize=fuzzer,address,undefined. With FUZZ_REPLAY it has a main of its own, for any compiler:
 *     fuzz_gguf [-n COUNT] FILE...      each file as it is, then COUNT damaged copies of it (default 1000)
 * Seeds: headers of real models; data beyond 64 KiB adds nothing. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <xxhash.h>

#include "storage/packed_internal.h"
#include "storage/shard_map.h"

enum {
    SPARSE_TAIL = 1 << 20
}; /* zeros behind the input, so that tensors of a useful size lie inside the file */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* A promise that was broken; the fuzzer reports the input. */
static void require(int holds)
{
    if (!holds)
        abort();
}

static void use_values(const struct gguf *gguf)
{
    uint64_t number;
    double real;
    for (uint64_t i = 0; i < gguf_n_kv(gguf); i++) {
        const struct gguf_kv *kv = gguf_kv_at(gguf, i);
        char *key = strndup(kv->key.data, kv->key.length);
        require(key != NULL);
        if (strlen(key) == kv->key.length)
            require(gguf_find(gguf, key) == &kv->value);
        gguf_get_u64(gguf, key, &number);
        gguf_get_f64(gguf, key, &real);
        free(key);
        const struct gguf_array *array = &kv->value.a;
        if (kv->value.type != GGUF_ARRAY || array->count == 0)
            continue;
        if (array->type != GGUF_STRING) {
            gguf_array_u64(array, array->count - 1);
            gguf_array_f64(array, array->count - 1);
            continue;
        }
        struct gguf_string *strings = calloc(array->count, sizeof(*strings));
        require(strings != NULL);
        gguf_array_strings(array, strings);
        volatile char sum = 0;
        for (uint64_t s = 0; s < array->count; s++)
            sum = (char)(sum ^ (strings[s].length ? strings[s].data[strings[s].length - 1] : 0));
        free(strings);
    }
}

static void check_ranges(const struct gguf *gguf, const struct io_range *ranges, uint32_t n, uint64_t bytes)
{
    uint64_t end = 0;
    for (uint32_t i = 0; i < n; i++) {
        require(ranges[i].at % IO_ALIGN == 0 && ranges[i].at >= end && ranges[i].length > 0);
        require(ranges[i].offset + ranges[i].length <= gguf_file_size(gguf, ranges[i].file));
        end = ranges[i].at + io_range_span(ranges[i].offset, ranges[i].length);
    }
    require(end <= bytes);
}

static void use_map(const struct gguf *gguf, const struct shard_map *map)
{
    for (uint32_t layer = 0; layer < shard_map_n_layers(map); layer++) {
        const struct shard_layer *shape = shard_map_layer(map, layer);
        for (uint32_t expert = 0; expert < shape->n_experts; expert++) {
            struct shard_location where;
            shard_map_locate(map, layer, expert, &where);
            check_ranges(gguf, where.ranges, where.n_ranges, shape->slot_bytes);
            for (uint32_t part = 0; part < SHARD_N_PARTS; part++) {
                if (shape->slice[part].present)
                    require(where.part_offset[part] + shape->slice[part].bytes <= shape->slot_bytes);
            }
            require(shard_map_shard_layer(map, shape->first_shard + expert) == layer);
        }
    }
}

static void use_tensors(const struct gguf *gguf, const struct shard_map *map)
{
    uint32_t n_tensors = gguf_n_tensors(gguf), n = 0;
    uint32_t *trunk = calloc(n_tensors + 1ul, sizeof(*trunk));
    require(trunk != NULL);
    for (uint32_t i = 0; i < n_tensors; i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, i);
        require(gguf_tensor_find(gguf, tensor->name) == tensor);
        bool placed = tensor->file != GGUF_NO_FILE;
        require(placed || (gguf_packed(gguf) && shard_map_owns_tensor(map, i)));
        require(tensor->offset + tensor->bytes <=
                (placed ? gguf_file_size(gguf, tensor->file) : gguf_unpacked_bytes(gguf)));
        if (!shard_map_owns_tensor(map, i))
            trunk[n++] = i;
    }
    struct tensor_layout layout;
    if (tensor_layout_init(&layout, gguf, trunk, n, NULL) == PS_OK) {
        check_ranges(gguf, layout.ranges, layout.n_ranges, layout.bytes);
        tensor_layout_deinit(&layout);
    }
    free(trunk);
}

static void use_file(const char *path)
{
    struct gguf *gguf;
    struct shard_map *map;
    struct ps_error err = {0};
    if (gguf_open(&gguf, path, &err) != PS_OK) {
        require(gguf == NULL && err.message[0] != 0);
        return;
    }
    use_values(gguf);
    const struct packed *packed = gguf_packed(gguf);
    if (shard_map_new(&map, gguf, packed ? packed_n_layers(packed) : 64, &err) == PS_OK) {
        use_map(gguf, map);
        use_tensors(gguf, map);
        shard_map_free(map);
    }
    gguf_free(gguf);
}

/* Sets the sizes and checksums of a container that is followed by zeros up to file_bytes, as far as places in it are
 * in `data`. */
static void sign(uint8_t *data, size_t bytes, uint64_t file_bytes)
{
    if (bytes < IO_ALIGN || memcmp(data, PACKED_MAIN_MAGIC, PACKED_MAGIC_BYTES) != 0)
        return;
    memcpy(data + PACKED_AT_FILE_BYTES, &file_bytes, sizeof(file_bytes));
    static const uint32_t places[] = {PACKED_AT_INDEX, PACKED_AT_HEADER};
    for (uint32_t i = 0; i < 2; i++) {
        uint64_t place[2];
        memcpy(place, data + places[i], sizeof(place));
        if (place[0] > bytes || place[1] > bytes - place[0])
            continue;
        if (i == 0 && place[1] >= PACKED_INDEX_COUNTS + sizeof(file_bytes))
            memcpy(data + place[0] + PACKED_INDEX_COUNTS, &file_bytes, sizeof(file_bytes));
        uint64_t hash = XXH3_64bits(data + place[0], place[1]);
        memcpy(data + places[i] + sizeof(place), &hash, sizeof(hash));
    }
    uint64_t hash = XXH3_64bits(data, PACKED_AT_MAIN_HASH);
    memcpy(data + PACKED_AT_MAIN_HASH, &hash, sizeof(hash));
}

static void use_bytes(int fd, const char *path, const uint8_t *data, size_t bytes, uint64_t file_bytes)
{
    uint8_t *copy = malloc(bytes + 1);
    require(copy != NULL);
    memcpy(copy, data, bytes);
    sign(copy, bytes, file_bytes);
    require(ftruncate(fd, 0) == 0 && pwrite(fd, copy, bytes, 0) == (ssize_t)bytes);
    require(ftruncate(fd, (off_t)file_bytes) == 0);
    free(copy);
    use_file(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static int fd = -1; /* one file for all inputs: they are many */
    if (fd < 0)
        fd = memfd_create("fuzz_gguf", MFD_CLOEXEC);
    require(fd >= 0);
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    use_bytes(fd, path, data, bytes, bytes);
    use_bytes(fd, path, data, bytes, bytes + SPARSE_TAIL);
    return 0;
}

#ifdef FUZZ_REPLAY

/* xorshift64 (Marsaglia 2003) */
static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Overwrites one to four places of the copy with a byte, an extreme number or another part of the file. */
static void damage(uint8_t *data, size_t bytes, uint64_t *seed)
{
    static const uint64_t extremes[] = {0,          1,          31,        255,       1ull << 31,
                                        UINT32_MAX, 1ull << 60, INT64_MAX, UINT64_MAX};
    for (uint64_t n = 1 + next_random(seed) % 4; n > 0 && bytes > 16; n--) {
        size_t at = next_random(seed) % (bytes - 16);
        switch (next_random(seed) % 3) {
        case 0:
            data[at] = (uint8_t)next_random(seed);
            break;
        case 1:
            memcpy(data + at, &extremes[next_random(seed) % (sizeof(extremes) / sizeof(extremes[0]))], 8);
            break;
        default:
            memmove(data + at, data + next_random(seed) % (bytes - 16), 1 + next_random(seed) % 16);
        }
    }
}

static int replay(const char *path, long count)
{
    enum { LARGEST = 64 << 10 };
    uint8_t *data = malloc(LARGEST), *copy = malloc(LARGEST);
    FILE *file = fopen(path, "rb");
    if (!data || !copy || !file) {
        fprintf(stderr, "fuzz_gguf: %s: cannot be read\n", path);
        return 1;
    }
    size_t bytes = fread(data, 1, LARGEST, file);
    fclose(file);
    LLVMFuzzerTestOneInput(data, bytes);
    uint64_t seed = 88172645463325252ull;
    for (long i = 0; i < count; i++) {
        memcpy(copy, data, bytes);
        size_t kept = next_random(&seed) % 8 == 0 ? next_random(&seed) % (bytes + 1) : bytes;
        damage(copy, kept, &seed);
        LLVMFuzzerTestOneInput(copy, kept);
    }
    free(data);
    free(copy);
    return 0;
}

int main(int argc, char **argv)
{
    long count = 1000;
    int first = 1;
    if (argc > 2 && strcmp(argv[1], "-n") == 0) {
        count = atol(argv[2]);
        first = 3;
    }
    int failed = argc <= first;
    if (failed)
        fprintf(stderr, "usage: fuzz_gguf [-n COUNT] FILE...\n");
    for (int i = first; i < argc; i++)
        failed |= replay(argv[i], count);
    return failed;
}

#endif
