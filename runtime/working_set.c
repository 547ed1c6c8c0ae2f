/* Working set: see the header. The file's format is described at encode(). */
#include "runtime/working_set.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fnv1a.h"

enum {
    MAGIC_SIZE = 8,
    VERSION = 1,
    /* Offsets of the header's fields, bytes. */
    AT_VERSION = 8,
    AT_COUNT = 12,
    AT_MODEL = 16,
    AT_POLICY = 24,
    HEADER_SIZE = AT_POLICY + WORKING_SET_POLICY_SIZE,
    ENTRY_SIZE = 6,
    CHECKSUM_SIZE = 8,
};

static const char MAGIC[MAGIC_SIZE + 1] = "PSEXPSET";

void working_set_deinit(struct working_set *set)
{
    free(set->entries);
    *set = (struct working_set){0};
}

/* ---- little-endian numbers ---- */

static void put_number(uint8_t *out, uint64_t value, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes; i++)
        out[i] = (uint8_t)(value >> 8 * i);
}

static uint64_t get_number(const uint8_t *in, uint32_t bytes)
{
    uint64_t value = 0;
    for (uint32_t i = 0; i < bytes; i++)
        value |= (uint64_t)in[i] << 8 * i;
    return value;
}

/* ---- the model's identity ---- */

static uint64_t hash_number(uint64_t hash, uint64_t value)
{
    uint8_t bytes[8];
    put_number(bytes, value, sizeof(bytes));
    return fnv1a_add(hash, bytes, sizeof(bytes));
}

/* The length goes first, so that neighbours cannot trade characters. */
static uint64_t hash_text(uint64_t hash, const char *text, uint64_t length)
{
    return fnv1a_add(hash_number(hash, length), text, length);
}

static uint64_t hash_value(uint64_t hash, const struct gguf_value *value)
{
    hash = hash_number(hash, value->type);
    if (value->type == GGUF_STRING)
        return hash_text(hash, value->s.data, value->s.length);
    if (value->type == GGUF_ARRAY)
        return hash_number(hash_number(hash, value->a.type), value->a.count);
    return hash_number(hash, value->u); /* of floats the bits */
}

static uint64_t hash_tensor(uint64_t hash, const struct gguf_tensor *tensor)
{
    hash = hash_text(hash, tensor->name, strlen(tensor->name));
    hash = hash_number(hash, tensor->type);
    for (uint32_t d = 0; d < 4; d++)
        hash = hash_number(hash, tensor->dims[d]);
    return hash_number(hash_number(hash, tensor->file), tensor->offset);
}

uint64_t working_set_model_id(const struct gguf *gguf)
{
    uint64_t hash = hash_number(FNV1A_START, gguf_n_files(gguf));
    for (uint32_t f = 0; f < gguf_n_files(gguf); f++)
        hash = hash_number(hash, gguf_file_size(gguf, f));
    for (uint64_t i = 0; i < gguf_n_kv(gguf); i++) {
        const struct gguf_kv *kv = gguf_kv_at(gguf, i);
        hash = hash_value(hash_text(hash, kv->key.data, kv->key.length), &kv->value);
    }
    for (uint32_t t = 0; t < gguf_n_tensors(gguf); t++)
        hash = hash_tensor(hash, gguf_tensor_at(gguf, t));
    return hash;
}

/* ---- to and from the cache ---- */

static void set_policy(char out[WORKING_SET_POLICY_SIZE], const char *policy)
{
    memset(out, 0, WORKING_SET_POLICY_SIZE);
    memcpy(out, policy, strnlen(policy, WORKING_SET_POLICY_SIZE));
}

/* Best first; what is in memory before what is not; then in the order of the layers. */
static int compare_entries(const void *a, const void *b)
{
    const struct working_set_entry *left = a;
    const struct working_set_entry *right = b;
    if (left->score != right->score)
        return left->score > right->score ? -1 : 1;
    if (left->resident != right->resident)
        return left->resident ? -1 : 1;
    return left->shard < right->shard ? -1 : left->shard > right->shard;
}

enum ps_status working_set_take(struct working_set *set, uint64_t model, struct expert_cache *cache,
                                const struct shard_map *map, const char *policy, struct ps_error *err)
{
    *set = (struct working_set){.model = model};
    set_policy(set->policy, policy);
    set->entries = calloc(shard_map_n_shards(map) + (size_t)1, sizeof(*set->entries));
    if (!set->entries)
        return ps_error_set(err, PS_ERR_NOMEM, "working set: out of memory");
    for (uint32_t l = 0; l < shard_map_n_layers(map); l++) {
        const struct shard_layer *layer = shard_map_layer(map, l);
        for (uint32_t e = 0; e < layer->n_experts; e++) {
            double score = fmin(fmax(expert_cache_score(cache, l, e), 0), 1);
            struct working_set_entry entry = {.shard = layer->first_shard + e,
                                              .score = (uint16_t)(score * WORKING_SET_SCORE_MAX + 0.5),
                                              .resident = expert_cache_is_resident(cache, l, e)};
            if (entry.resident || entry.score > 0)
                set->entries[set->n++] = entry;
        }
    }
    qsort(set->entries, set->n, sizeof(*set->entries), compare_entries);
    struct expert_cache_size size;
    expert_cache_get_size(cache, &size);
    if (set->n > size.slots)
        set->n = size.slots;
    return PS_OK;
}

/* Where the expert is in its layer. */
static uint32_t expert_of(const struct shard_map *map, uint32_t shard, uint32_t *layer)
{
    *layer = shard_map_shard_layer(map, shard);
    return shard - shard_map_layer(map, *layer)->first_shard;
}

void working_set_prime(const struct working_set *set, struct expert_cache *cache, const struct shard_map *map,
                       const char *policy)
{
    char own[WORKING_SET_POLICY_SIZE];
    set_policy(own, policy);
    if (memcmp(own, set->policy, sizeof(own)) != 0)
        return;
    for (uint32_t i = 0; i < set->n; i++) {
        uint32_t layer;
        uint32_t expert = expert_of(map, set->entries[i].shard, &layer);
        expert_cache_prime(cache, layer, expert, (double)set->entries[i].score / WORKING_SET_SCORE_MAX);
    }
}

void working_set_preload(const struct working_set *set, struct expert_cache *cache,
                         const struct shard_map *map)
{
    for (uint32_t i = 0; i < set->n; i++) {
        uint32_t layer;
        uint32_t expert = expert_of(map, set->entries[i].shard, &layer);
        /* Slots differ in size: where one kind is taken, others may still be empty. */
        expert_cache_preload(cache, layer, expert);
    }
}

/* ---- reading ---- */

/* No such file: PS_OK and *bytes NULL. */
static enum ps_status read_file(const char *path, uint64_t max, uint8_t **bytes, uint64_t *n,
                                struct ps_error *err)
{
    *bytes = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not hold us up */
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return PS_OK;
    if (fd < 0)
        return ps_error_set(err, PS_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    struct stat file;
    enum ps_status status = PS_OK;
    if (fstat(fd, &file) < 0)
        status = ps_error_set(err, PS_ERR_IO, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(file.st_mode))
        status = ps_error_set(err, PS_ERR_FORMAT, "%s: is not a regular file", path);
    if (status == PS_OK) {
        *n = (uint64_t)file.st_size < max ? (uint64_t)file.st_size : max;
        *bytes = malloc(*n + 1);
        ssize_t got = *bytes ? read(fd, *bytes, *n) : 0;
        if (!*bytes)
            status = ps_error_set(err, PS_ERR_NOMEM, "%s: out of memory", path);
        else if (got < 0)
            status = ps_error_set(err, PS_ERR_IO, "%s: cannot read: %s", path, strerror(errno));
        else
            *n = (uint64_t)got; /* less is a shorter file, and then damaged */
    }
    close(fd);
    return status;
}

static enum ps_status check_file(const uint8_t *bytes, uint64_t n, const char *path, uint64_t model,
                                 struct ps_error *err)
{
    if (n < MAGIC_SIZE || memcmp(bytes, MAGIC, MAGIC_SIZE) != 0)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: is not a working set", path);
    if (n >= AT_COUNT && get_number(bytes + AT_VERSION, 4) != VERSION)
        return ps_error_set(err, PS_ERR_UNSUPPORTED, "%s: is a working set of version %u, not %d", path,
                            (unsigned)get_number(bytes + AT_VERSION, 4), VERSION);
    if (n < HEADER_SIZE + CHECKSUM_SIZE)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: is cut off after %llu bytes", path,
                            (unsigned long long)n);
    if (get_number(bytes + AT_MODEL, 8) != model)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: is the working set of another model", path);
    uint64_t count = get_number(bytes + AT_COUNT, 4);
    if (n != HEADER_SIZE + count * ENTRY_SIZE + CHECKSUM_SIZE)
        return ps_error_set(err, PS_ERR_FORMAT, "%s: its %llu bytes do not hold %llu experts", path,
                            (unsigned long long)n, (unsigned long long)count);
    if (fnv1a_add(FNV1A_START, bytes, n - CHECKSUM_SIZE) != get_number(bytes + n - CHECKSUM_SIZE, 8))
        return ps_error_set(err, PS_ERR_FORMAT, "%s: is damaged: its checksum is wrong", path);
    return PS_OK;
}

/* In range, each once, best first. seen: a zeroed bit per shard. */
static bool get_entries(struct working_set_entry *entries, uint32_t n, const uint8_t *bytes, uint8_t *seen,
                        uint32_t n_shards)
{
    for (uint32_t i = 0; i < n; i++, bytes += ENTRY_SIZE) {
        uint32_t shard = (uint32_t)get_number(bytes, 4);
        uint16_t score = (uint16_t)get_number(bytes + 4, 2);
        if (shard >= n_shards || (seen[shard / 8] >> shard % 8 & 1) ||
            (i > 0 && score > entries[i - 1].score))
            return false;
        seen[shard / 8] |= (uint8_t)(1u << shard % 8);
        entries[i] = (struct working_set_entry){.shard = shard, .score = score};
    }
    return true;
}

enum ps_status working_set_read(struct working_set *set, const char *path, uint64_t model, uint32_t n_shards,
                                struct ps_error *err)
{
    *set = (struct working_set){.model = model};
    uint8_t *bytes;
    uint8_t *seen = NULL;
    uint64_t n = 0;
    uint64_t max = HEADER_SIZE + (uint64_t)n_shards * ENTRY_SIZE + CHECKSUM_SIZE;
    enum ps_status status =
        read_file(path, max + 1, &bytes, &n, err); /* one more shows that it is too long */
    if (status != PS_OK || !bytes)
        goto done;
    if ((status = check_file(bytes, n, path, model, err)) != PS_OK)
        goto done;
    memcpy(set->policy, bytes + AT_POLICY, sizeof(set->policy));
    set->n = (uint32_t)get_number(bytes + AT_COUNT, 4);
    set->entries = malloc((set->n + (size_t)1) * sizeof(*set->entries));
    seen = calloc(n_shards / 8 + (size_t)1, 1);
    if (!set->entries || !seen)
        status = ps_error_set(err, PS_ERR_NOMEM, "%s: out of memory", path);
    else if (!get_entries(set->entries, set->n, bytes + HEADER_SIZE, seen, n_shards))
        status = ps_error_set(err, PS_ERR_FORMAT, "%s: is damaged: its list of experts is not one", path);
done:
    free(bytes);
    free(seen);
    if (status != PS_OK)
        working_set_deinit(set);
    return status;
}

/* ---- writing ---- */

/* All numbers are little-endian:
 *
 *     8 bytes   magic "PSEXPSET"
 *     uint32    version, 1
 *     uint32    number of entries
 *     uint64    model: working_set_model_id
 *     16 bytes  name of the cache policy, padded with zeros
 *     entries   {uint32 shard, uint16 score} each: the shard map's id, and 65535 for a score of 1; best first
 *     uint64    FNV-1a of all before it
 */
static uint8_t *encode(const struct working_set *set, uint64_t *n)
{
    *n = HEADER_SIZE + (uint64_t)set->n * ENTRY_SIZE + CHECKSUM_SIZE;
    uint8_t *bytes = malloc(*n);
    if (!bytes)
        return NULL;
    memcpy(bytes, MAGIC, MAGIC_SIZE);
    put_number(bytes + AT_VERSION, VERSION, 4);
    put_number(bytes + AT_COUNT, set->n, 4);
    put_number(bytes + AT_MODEL, set->model, 8);
    memcpy(bytes + AT_POLICY, set->policy, sizeof(set->policy));
    uint8_t *at = bytes + HEADER_SIZE;
    for (uint32_t i = 0; i < set->n; i++, at += ENTRY_SIZE) {
        put_number(at, set->entries[i].shard, 4);
        put_number(at + 4, set->entries[i].score, 2);
    }
    put_number(at, fnv1a_add(FNV1A_START, bytes, *n - CHECKSUM_SIZE), CHECKSUM_SIZE);
    return bytes;
}

/* A path given by mistake (the model's own, a device) must survive. A file cut off within its magic is ours. */
static enum ps_status check_replaceable(const char *path, struct ps_error *err)
{
    uint8_t start[MAGIC_SIZE];
    uint8_t *bytes;
    uint64_t n = 0;
    enum ps_status status = read_file(path, sizeof(start), &bytes, &n, err);
    if (status == PS_OK && bytes && memcmp(bytes, MAGIC, n) != 0)
        status = ps_error_set(err, PS_ERR_IO, "%s: is not a working set: it is not replaced", path);
    free(bytes);
    return status;
}

static bool write_all(int fd, const uint8_t *bytes, uint64_t n)
{
    while (n > 0) {
        errno = 0;
        ssize_t written = write(fd, bytes, n);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0) {
            errno = errno ? errno : ENOSPC;
            return false;
        }
        bytes += written;
        n -= (uint64_t)written;
    }
    return true;
}

/* 0 or what went wrong, an errno. aside: a template for mkostemp. */
static int write_aside_and_rename(const char *path, char *aside, const uint8_t *bytes, uint64_t n)
{
    int fd = mkostemp(aside, O_CLOEXEC);
    if (fd < 0)
        return errno;
    int error = write_all(fd, bytes, n) ? 0 : errno;
    if (close(fd) < 0 && !error)
        error = errno;
    if (!error && rename(aside, path) < 0)
        error = errno;
    if (error)
        unlink(aside);
    return error;
}

enum ps_status working_set_write(const struct working_set *set, const char *path, struct ps_error *err)
{
    static const char suffix[] = ".XXXXXX";
    enum ps_status status = check_replaceable(path, err);
    if (status != PS_OK)
        return status;
    uint64_t n;
    uint8_t *bytes = encode(set, &n);
    char *aside = malloc(strlen(path) + sizeof(suffix));
    if (!bytes || !aside) {
        status = ps_error_set(err, PS_ERR_NOMEM, "%s: out of memory", path);
    } else {
        stpcpy(stpcpy(aside, path), suffix);
        int error = write_aside_and_rename(path, aside, bytes, n);
        if (error)
            status = ps_error_set(err, PS_ERR_IO, "%s: cannot write: %s", path, strerror(error));
    }
    free(bytes);
    free(aside);
    return status;
}
