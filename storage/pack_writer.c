#include "storage/pack_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>

#include "storage/io_reader.h"
#include "storage/pack_writer_internal.h"
#include "storage/packed_internal.h"

enum {
    TRUNK_ALIGN = 64,
    COMMIT_BYTES = 64 << 20, /* what a kill costs at most, */
    COMMIT_MS = 250,         /* or that much time */
};

static uint64_t round_up(uint64_t n, uint64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

static enum ps_status no_memory(const struct pack_writer *w, struct ps_error *err)
{
    return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory to write it", w->plan->path);
}

/* ---- names ---- */

/* The directory's real path, with a / at its end; NULL with err. */
static char *real_directory(const char *path, struct ps_error *err)
{
    char real[PATH_MAX], *out;
    struct stat st;
    if (!realpath(path, real) || stat(real, &st) != 0) {
        ps_error_set(err, PS_ERR_IO, "%s: %s: files are to be written there", path, strerror(errno));
        return NULL;
    }
    if (!S_ISDIR(st.st_mode)) {
        ps_error_set(err, PS_ERR_IO, "%s: is not a directory", path);
        return NULL;
    }
    if (asprintf(&out, "%s%s", real, strcmp(real, "/") == 0 ? "" : "/") >= 0)
        return out;
    ps_error_set(err, PS_ERR_NOMEM, "%s: no memory", path);
    return NULL;
}

/* main_directory: real, with a / at its end. A data file below it is named relative to it, so that all can move together. */
static enum ps_status name_file(struct pack_writer *w, uint32_t i, const char *main_directory,
                                const char *directory, const char *base, struct ps_error *err)
{
    struct pack_file *file = &w->files[i];
    char suffix[16] = "";
    if (i > 0)
        snprintf(suffix, sizeof(suffix), ".%" PRIu32, i);
    size_t length = strlen(main_directory);
    if (asprintf(&file->path, "%s%s%s", directory, base, suffix) < 0)
        file->path = NULL;
    if (!file->path || asprintf(&file->temporary, "%s.partial", file->path) < 0)
        file->temporary = NULL;
    if (file->path)
        file->named = i == 0
                          ? strdup("")
                          : strdup(file->path + (strncmp(file->path, main_directory, length) ? 0 : length));
    if (!file->path || !file->temporary || !file->named)
        return no_memory(w, err);
    file->out.path = file->temporary;
    for (uint32_t k = 0; k < i; k++) {
        if (strncmp(w->files[k].path, file->path, strlen(directory)) == 0 && k > 0 &&
            strchr(w->files[k].path + strlen(directory), '/') == NULL)
            return ps_error_set(err, PS_ERR_ARGUMENT, "%s: is given twice", directory);
    }
    return PS_OK;
}

static enum ps_status name_files(struct pack_writer *w, struct ps_error *err)
{
    const struct pack_plan *plan = w->plan;
    const char *slash = strrchr(plan->path, '/');
    const char *base = slash ? slash + 1 : plan->path;
    if (!*base || strcmp(base, ".") == 0 || strcmp(base, "..") == 0)
        return ps_error_set(err, PS_ERR_ARGUMENT, "%s: is not a file's name", plan->path);
    char *given = file_output_directory(plan->path);
    char *main_directory = given ? real_directory(given, err) : NULL;
    enum ps_status status = !given            ? no_memory(w, err)
                            : !main_directory ? PS_ERR_IO
                                              : name_file(w, 0, main_directory, main_directory, base, err);
    for (uint32_t i = 0; status == PS_OK && i < plan->n_stripes; i++) {
        char *directory = real_directory(plan->stripes[i], err);
        status = directory ? name_file(w, i + 1, main_directory, directory, base, err) : PS_ERR_IO;
        free(directory);
    }
    free(given);
    free(main_directory);
    return status;
}

static enum ps_status check_targets(const struct pack_writer *w, struct ps_error *err)
{
    for (uint32_t i = 0; i < w->n_files; i++) {
        const char *path = w->files[i].path;
        for (uint32_t s = 0; s < w->plan->n_sources; s++) {
            if (file_output_is_same(path, w->plan->sources[s]) ||
                file_output_is_same(w->files[i].temporary, w->plan->sources[s]))
                return ps_error_set(err, PS_ERR_ARGUMENT, "%s: is what is to be packed: choose another name",
                                    w->plan->sources[s]);
        }
        enum ps_status status = w->is_sealed ? PS_OK : file_output_check_target(path, w->plan->replace, err);
        if (status != PS_OK)
            return status;
    }
    return PS_OK;
}

/* ---- places ---- */

static void add_u32s(XXH3_state_t *hash, const uint32_t *values, uint32_t n)
{
    XXH3_128bits_update(hash, &n, sizeof(n));
    XXH3_128bits_update(hash, values, n * sizeof(*values));
}

static void digest(XXH3_state_t *hash, uint8_t out[PACKED_ID_BYTES])
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(hash));
    memcpy(out, canonical.digest, PACKED_ID_BYTES);
}

/* Two plans with the same key give the same files once the same is decided. */
static void make_key(struct pack_writer *w)
{
    const struct pack_plan *plan = w->plan;
    XXH3_128bits_reset(w->hash);
    add_u32s(w->hash, (const uint32_t[]){PACKED_VERSION, w->n_files, plan->n_tensors, plan->n_layers}, 4);
    XXH3_128bits_update(w->hash, &plan->identity_bytes, sizeof(plan->identity_bytes));
    XXH3_128bits_update(w->hash, plan->identity, plan->identity_bytes);
    XXH3_128bits_update(w->hash, &plan->header_bytes, sizeof(plan->header_bytes));
    XXH3_128bits_update(w->hash, plan->header, plan->header_bytes);
    XXH3_128bits_update(w->hash, plan->trunk_bytes, plan->n_tensors * sizeof(*plan->trunk_bytes));
    add_u32s(w->hash, plan->order, plan->n_shards);
    for (uint32_t i = 0; i < w->n_files; i++)
        XXH3_128bits_update(w->hash, w->files[i].named, strlen(w->files[i].named) + 1);
    digest(w->hash, w->key);
}

static void make_id(struct pack_writer *w)
{
    const struct pack_decisions *d = &w->decisions;
    XXH3_128bits_reset(w->hash);
    XXH3_128bits_update(w->hash, w->key, sizeof(w->key));
    XXH3_128bits_update(w->hash, d->codecs, (size_t)w->plan->n_layers * PACKED_LAYER_CODECS);
    XXH3_128bits_update(w->hash, d->note, d->note_bytes);
    digest(w->hash, w->id);
}

static uint64_t count_blocks(const struct pack_plan *plan)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < plan->n_tensors; i++)
        n += packed_blocks(plan->trunk_bytes[i]);
    return n;
}

static uint64_t count_index_bytes(const struct pack_writer *w)
{
    const struct pack_plan *plan = w->plan;
    uint64_t files = 0;
    for (uint32_t i = 0; i < w->n_files; i++)
        files += 12 + strlen(w->files[i].named);
    return PACKED_INDEX_COUNTS + round_up(files, 8) + plan->n_tensors * UINT64_C(16) +
           count_blocks(plan) * sizeof(*w->block_hash) + plan->n_layers * (uint64_t)PACKED_LAYER_CODECS +
           plan->n_shards * UINT64_C(32) + 8 + w->decisions.note_bytes;
}

enum ps_status pack_writer_lay_out(struct pack_writer *w, struct ps_error *err)
{
    const struct pack_plan *plan = w->plan;
    make_id(w);
    w->index_bytes = count_index_bytes(w);
    w->index_at = round_up(IO_ALIGN + plan->header_bytes, IO_ALIGN);
    uint64_t at = round_up(w->index_at + w->index_bytes, IO_ALIGN);
    for (uint32_t i = 0; i < plan->n_tensors; i++) {
        w->trunk_offset[i] = 0;
        if (plan->trunk_bytes[i] == 0)
            continue;
        w->trunk_offset[i] = at;
        if (__builtin_add_overflow(at, plan->trunk_bytes[i], &at) || at > INT64_MAX - IO_ALIGN)
            return ps_error_set(err, PS_ERR_FORMAT, "%s: larger than a file can be", plan->path);
        at = round_up(at, TRUNK_ALIGN);
    }
    w->extents_at = round_up(at, IO_ALIGN);
    for (uint32_t i = 0; i < w->n_files; i++)
        w->files[i].end = i == 0 ? w->extents_at : IO_ALIGN;
    return PS_OK;
}

/* ---- free space ---- */

static uint64_t expected_bytes(const struct pack_writer *w, uint32_t file)
{
    uint64_t extents = w->decisions.expected_extent_bytes;
    if (w->n_files == 1)
        return w->extents_at + extents;
    return file == 0 ? w->extents_at : IO_ALIGN + extents / (w->n_files - 1);
}

/* What a file needs beyond what it has. */
static uint64_t missing_bytes(const struct pack_writer *w, uint32_t file)
{
    struct stat st;
    uint64_t has = fstat(w->files[file].out.fd, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
    uint64_t wants = expected_bytes(w, file);
    return wants > has ? wants - has : 0;
}

/* Files on one filesystem share its room. */
static enum ps_status check_space(const struct pack_writer *w, struct ps_error *err)
{
    for (uint32_t i = 0; i < w->n_files; i++) {
        struct stat st, other;
        struct statvfs room;
        if (fstat(w->files[i].out.fd, &st) != 0 || fstatvfs(w->files[i].out.fd, &room) != 0)
            continue;
        uint64_t wants = 0, has = (uint64_t)room.f_bavail * room.f_frsize;
        for (uint32_t k = 0; k < w->n_files; k++) {
            if (fstat(w->files[k].out.fd, &other) == 0 && other.st_dev == st.st_dev)
                wants += missing_bytes(w, k);
        }
        if (wants > has)
            return ps_error_set(err, PS_ERR_IO,
                                "%s: no room: %" PRIu64 " MiB are needed, %" PRIu64 " MiB are free: %" PRIu64
                                " MiB are missing",
                                w->files[i].path, (wants >> 20) + 1, has >> 20, ((wants - has) >> 20) + 1);
    }
    return PS_OK;
}

/* ---- beginning ---- */

/* Whether something of the file's counts. */
static bool is_begun(const struct pack_writer *w, uint32_t i)
{
    if (i > 0)
        return w->files[i].end > IO_ALIGN;
    for (uint32_t tensor = 0; tensor < w->n_trunk; tensor++) {
        if (w->plan->trunk_bytes[tensor] > 0)
            return true;
    }
    return w->n_extents > 0;
}

/* Another pack may be at it: containers in different directories can have data files of one name. */
static enum ps_status open_file(struct pack_writer *w, uint32_t i, struct ps_error *err)
{
    struct pack_file *file = &w->files[i];
    uint8_t head[PACK_ID_AT + PACKED_ID_BYTES] = {0};
    bool is_empty = !is_begun(w, i);
    enum ps_status status = file_output_open(&file->out, err);
    if (status != PS_OK)
        return status;
    if (!is_empty && pack_writer_bytes_of_ours(w, file->temporary) < file->end)
        return ps_error_set(err, PS_ERR_IO, "%s: another pack has just changed it: pack again",
                            file->temporary);
    if ((is_empty && ftruncate(file->out.fd, 0) != 0) || ftruncate(file->out.fd, (off_t)file->end) != 0)
        return ps_error_set(err, PS_ERR_IO, "%s: cannot be cut to %" PRIu64 " bytes: %s", file->temporary,
                            file->end, strerror(errno));
    file->is_dirty = true;
    file_output_sync_directory(file->temporary);
    memcpy(head + PACK_ID_AT, w->id, sizeof(w->id));
    return file_output_write(&file->out, head, sizeof(head), 0, err);
}

enum ps_status pack_writer_open_files(struct pack_writer *w, struct ps_error *err)
{
    for (uint32_t i = 0; i < w->n_files; i++) {
        enum ps_status status = open_file(w, i, err);
        if (status != PS_OK)
            return status;
    }
    clock_gettime(CLOCK_MONOTONIC, &w->committed);
    enum ps_status status = check_space(w, err);
    if (status == PS_OK)
        status = file_output_write(&w->files[0].out, w->plan->header, w->plan->header_bytes, IO_ALIGN, err);
    return status;
}

static enum ps_status allocate(struct pack_writer *w, struct ps_error *err)
{
    const struct pack_plan *plan = w->plan;
    w->n_files = 1 + plan->n_stripes;
    w->files = calloc(w->n_files, sizeof(*w->files));
    for (uint32_t i = 0; w->files && i < w->n_files; i++)
        w->files[i].out.fd = -1;
    w->trunk_offset = calloc(plan->n_tensors + 1ul, sizeof(*w->trunk_offset));
    w->block_hash = calloc(count_blocks(plan) + 1, sizeof(*w->block_hash));
    w->extents = calloc(plan->n_shards + 1ul, sizeof(*w->extents));
    w->hash = XXH3_createState();
    return w->files && w->trunk_offset && w->block_hash && w->extents && w->hash ? PS_OK : no_memory(w, err);
}

static enum ps_status open_journal(struct pack_writer *w, struct ps_error *err)
{
    char *path;
    if (asprintf(&path, "%s-journal", w->files[0].temporary) < 0)
        return no_memory(w, err);
    enum ps_status status = pack_journal_open(&w->journal, path, err);
    free(path);
    return status;
}

/* Whether the journal tells of a pack, and of one with the same plan. */
static bool find_begun(const struct pack_writer *w, bool *is_same)
{
    const uint8_t *key;
    uint64_t bytes;
    bool is_begun = pack_journal_body(w->journal, &key, &bytes) != NULL;
    *is_same = is_begun && memcmp(key, w->key, sizeof(w->key)) == 0;
    return is_begun;
}

enum ps_status pack_writer_new(struct pack_writer **out, const struct pack_plan *plan, enum pack_start *start,
                               struct ps_error *err)
{
    *out = NULL;
    *start = PACK_FRESH;
    struct pack_writer *w = calloc(1, sizeof(*w));
    if (!w)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory to write it", plan->path);
    w->plan = plan;
    enum ps_status status = allocate(w, err);
    if (status == PS_OK)
        status = name_files(w, err);
    if (status == PS_OK)
        status = open_journal(w, err);
    bool is_begun = false, is_same = false;
    if (status == PS_OK) {
        make_key(w);
        is_begun = find_begun(w, &is_same);
        /* Before what another plan left is removed. Of this one's files some may have their names already. */
        status = is_same ? PS_OK : check_targets(w, err);
    }
    if (status == PS_OK)
        status = pack_writer_resume(w, start, err);
    if (status == PS_OK && *start == PACK_RESUMED)
        status = check_targets(w, err);
    if (status == PS_OK && w->is_sealed) {
        *start = PACK_COMPLETED;
        status = pack_writer_put_in_place(w, err);
    } else if (status == PS_OK && *start == PACK_RESUMED) {
        status = pack_writer_open_files(w, err);
    }
    if (status != PS_OK) {
        pack_writer_free(w, is_begun);
        return status;
    }
    *out = w;
    return PS_OK;
}

void pack_writer_free(struct pack_writer *w, bool keep)
{
    if (!w)
        return;
    /* A sealed one is whole: only names are missing. */
    keep = keep || w->is_sealed;
    for (uint32_t i = 0; w->files && i < w->n_files; i++) {
        struct pack_file *file = &w->files[i];
        if (file->out.fd >= 0) {
            if (!w->is_finished && !keep)
                unlink(file->temporary); /* while it is locked */
            close(file->out.fd);
        }
        free(file->path);
        free(file->temporary);
        free(file->named);
    }
    if (w->journal && !w->is_finished && !keep)
        pack_journal_remove(w->journal);
    pack_journal_free(w->journal);
    XXH3_freeState(w->hash);
    free((void *)w->decisions.codecs);
    free((void *)w->decisions.note);
    free(w->files);
    free(w->trunk_offset);
    free(w->block_hash);
    free(w->extents);
    free(w);
}

enum ps_status pack_writer_decide(struct pack_writer *w, const struct pack_decisions *decisions,
                                  struct ps_error *err)
{
    uint64_t codec_bytes = (uint64_t)w->plan->n_layers * PACKED_LAYER_CODECS;
    uint8_t *codecs = malloc(codec_bytes + 1);
    char *note = malloc(decisions->note_bytes + 1);
    w->decisions =
        (struct pack_decisions){codecs, note, decisions->note_bytes, decisions->expected_extent_bytes};
    if (!codecs || !note)
        return no_memory(w, err);
    memcpy(codecs, decisions->codecs, codec_bytes);
    memcpy(note, decisions->note, decisions->note_bytes);
    enum ps_status status = pack_writer_lay_out(w, err);
    pack_writer_skip_experts(w);
    if (status == PS_OK)
        status = pack_writer_begin_journal(w, err);
    return status == PS_OK ? pack_writer_open_files(w, err) : status;
}

struct pack_decisions pack_writer_decisions(const struct pack_writer *w)
{
    return w->decisions;
}

/* ---- data ---- */

void pack_writer_skip_experts(struct pack_writer *w)
{
    while (w->n_trunk < w->plan->n_tensors && w->plan->trunk_bytes[w->n_trunk] == 0)
        w->n_trunk++;
}

uint32_t pack_writer_n_trunk(const struct pack_writer *w)
{
    return w->n_trunk;
}

uint64_t pack_writer_trunk_filled(const struct pack_writer *w)
{
    return w->filled;
}

uint32_t pack_writer_n_extents(const struct pack_writer *w)
{
    return w->n_extents;
}

uint64_t pack_writer_bytes(const struct pack_writer *w)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < w->n_files; i++)
        bytes += w->files[i].end;
    return bytes;
}

uint64_t pack_writer_extent_bytes(const struct pack_writer *w)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < w->plan->n_shards; i++)
        bytes += w->extents[i].bytes;
    return bytes;
}

enum ps_status pack_writer_commit(struct pack_writer *w, struct ps_error *err)
{
    for (uint32_t i = 0; i < w->n_files; i++) {
        struct pack_file *file = &w->files[i];
        enum ps_status status = file->is_dirty ? file_output_sync(&file->out, err) : PS_OK;
        if (status != PS_OK)
            return status;
        file->is_dirty = false;
    }
    w->uncommitted = 0;
    clock_gettime(CLOCK_MONOTONIC, &w->committed);
    return pack_journal_commit(w->journal, err);
}

static enum ps_status commit_when_due(struct pack_writer *w, uint64_t bytes, struct ps_error *err)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t ms = (now.tv_sec - w->committed.tv_sec) * 1000 + (now.tv_nsec - w->committed.tv_nsec) / 1000000;
    w->uncommitted += bytes;
    return w->uncommitted >= COMMIT_BYTES || ms >= COMMIT_MS ? pack_writer_commit(w, err) : PS_OK;
}

static enum ps_status write_data(struct pack_writer *w, uint32_t i, const uint8_t *data, uint64_t bytes,
                                 uint64_t offset, struct ps_error *err)
{
    struct pack_file *file = &w->files[i];
    file->is_dirty = true;
    enum ps_status status = file_output_write(&file->out, data, bytes, offset, err);
    if (status == PS_OK)
        file_output_push(&file->out, offset + bytes);
    return status;
}

uint64_t pack_writer_block_bytes(const struct pack_writer *w)
{
    uint64_t left = w->plan->trunk_bytes[w->n_trunk] - w->filled / PACKED_BLOCK_BYTES * PACKED_BLOCK_BYTES;
    return left < PACKED_BLOCK_BYTES ? left : PACKED_BLOCK_BYTES;
}

void pack_writer_fill(struct pack_writer *w, uint64_t bytes, uint64_t hash)
{
    w->block_hash[w->n_blocks] = hash;
    w->filled += bytes;
    bool is_whole = w->filled == w->plan->trunk_bytes[w->n_trunk];
    w->n_blocks += is_whole || w->filled % PACKED_BLOCK_BYTES == 0;
    if (!is_whole)
        return;
    w->filled = 0;
    w->n_trunk++;
    pack_writer_skip_experts(w);
}

/* Hashes bytes that were written, at most up to the end of their block. */
static enum ps_status note_block(struct pack_writer *w, const uint8_t *data, uint64_t bytes,
                                 struct ps_error *err)
{
    uint64_t start = w->filled / PACKED_BLOCK_BYTES * PACKED_BLOCK_BYTES;
    struct pack_record record = {.kind = PACK_TRUNK,
                                 .item = w->n_trunk,
                                 .offset = w->trunk_offset[w->n_trunk] + start,
                                 .bytes = pack_writer_block_bytes(w)};
    if (w->filled == start)
        XXH3_64bits_reset(w->hash);
    XXH3_64bits_update(w->hash, data, bytes);
    record.hash = XXH3_64bits_digest(w->hash);
    bool is_whole = w->filled + bytes == start + record.bytes;
    pack_writer_fill(w, bytes, record.hash);
    return is_whole ? pack_journal_append(w->journal, &record, err) : PS_OK;
}

/* Of one tensor. */
static enum ps_status write_tensor(struct pack_writer *w, const uint8_t *data, uint64_t bytes,
                                   struct ps_error *err)
{
    enum ps_status status = write_data(w, 0, data, bytes, w->trunk_offset[w->n_trunk] + w->filled, err);
    for (uint64_t done = 0; status == PS_OK && done < bytes;) {
        uint64_t left = pack_writer_block_bytes(w) - w->filled % PACKED_BLOCK_BYTES;
        uint64_t n = bytes - done < left ? bytes - done : left;
        status = note_block(w, data + done, n, err);
        done += n;
    }
    return status == PS_OK ? commit_when_due(w, bytes, err) : status;
}

enum ps_status pack_writer_trunk(struct pack_writer *w, const uint8_t *data, uint64_t bytes,
                                 struct ps_error *err)
{
    while (bytes > 0) {
        if (w->n_trunk == w->plan->n_tensors)
            return ps_error_set(err, PS_ERR_ARGUMENT, "%s: more data than its trunk has", w->plan->path);
        uint64_t left = w->plan->trunk_bytes[w->n_trunk] - w->filled;
        uint64_t n = bytes < left ? bytes : left;
        enum ps_status status = write_tensor(w, data, n, err);
        if (status != PS_OK)
            return status;
        data += n;
        bytes -= n;
    }
    return PS_OK;
}

enum ps_status pack_writer_extent(struct pack_writer *w, const uint8_t *data, uint64_t bytes, uint64_t hash,
                                  struct ps_error *err)
{
    if (w->n_trunk < w->plan->n_tensors || w->n_extents == w->plan->n_shards || bytes == 0 ||
        bytes % IO_ALIGN != 0)
        return ps_error_set(err, PS_ERR_ARGUMENT, "%s: an extent out of turn, or of %" PRIu64 " bytes",
                            w->plan->path, bytes);
    uint32_t shard = w->plan->order[w->n_extents];
    uint32_t i = pack_file_of(w, w->n_extents);
    struct pack_file *file = &w->files[i];
    struct pack_record record = {PACK_EXTENT, shard, i, 0, file->end, bytes, hash};
    enum ps_status status = write_data(w, i, data, bytes, file->end, err);
    if (status == PS_OK)
        status = pack_journal_append(w->journal, &record, err);
    if (status != PS_OK)
        return status;
    w->extents[shard] = (struct packed_extent){i, file->end, bytes, hash};
    w->n_extents++;
    file->end += bytes;
    return commit_when_due(w, bytes, err);
}

/* ---- the end ---- */

static uint8_t *put(uint8_t *at, const void *data, uint64_t bytes)
{
    memcpy(at, data, bytes);
    return at + bytes;
}

static uint8_t *put_u32(uint8_t *at, uint32_t value)
{
    return put(at, &value, sizeof(value));
}

static uint8_t *put_u64(uint8_t *at, uint64_t value)
{
    return put(at, &value, sizeof(value));
}

/* index: index_bytes zeros. */
static void build_index(const struct pack_writer *w, uint8_t *index)
{
    const struct pack_plan *plan = w->plan;
    uint8_t *at = index;
    at = put_u32(at, w->n_files);
    at = put_u32(at, plan->n_tensors);
    at = put_u32(at, plan->n_layers);
    at = put_u32(at, plan->n_shards);
    at = put_u64(at, count_blocks(plan));
    for (uint32_t i = 0; i < w->n_files; i++) {
        const struct pack_file *file = &w->files[i];
        at = put_u64(at, file->end);
        at = put_u32(at, (uint32_t)strlen(file->named));
        at = put(at, file->named, strlen(file->named));
    }
    at = index + round_up((uint64_t)(at - index), 8);
    uint64_t block = 0;
    for (uint32_t i = 0; i < plan->n_tensors; i++) {
        at = put_u64(at, w->trunk_offset[i]);
        at = put_u64(at, plan->trunk_bytes[i] > 0 ? block : 0);
        block += packed_blocks(plan->trunk_bytes[i]);
    }
    at = put(at, w->block_hash, block * sizeof(*w->block_hash));
    at = put(at, w->decisions.codecs, (uint64_t)plan->n_layers * PACKED_LAYER_CODECS);
    for (uint32_t i = 0; i < plan->n_shards; i++) {
        const struct packed_extent *extent = &w->extents[i];
        at = put_u32(at, extent->file);
        at = put_u32(at, 0);
        at = put_u64(at, extent->offset);
        at = put_u64(at, extent->bytes);
        at = put_u64(at, extent->hash);
    }
    at = put_u64(at, w->decisions.note_bytes);
    put(at, w->decisions.note, w->decisions.note_bytes);
}

static enum ps_status write_index(struct pack_writer *w, uint64_t *hash, struct ps_error *err)
{
    uint8_t *index = calloc(1, w->index_bytes);
    if (!index)
        return no_memory(w, err);
    build_index(w, index);
    *hash = XXH3_64bits(index, w->index_bytes);
    enum ps_status status = file_output_write(&w->files[0].out, index, w->index_bytes, w->index_at, err);
    free(index);
    return status;
}

static enum ps_status write_superblock(struct pack_writer *w, uint64_t index_hash, struct ps_error *err)
{
    uint8_t block[IO_ALIGN] = "penstock";
    uint8_t *at = block + 8;
    at = put_u32(at, PACKED_VERSION);
    at = put_u32(at, w->n_files);
    at = put(at, w->id, sizeof(w->id));
    at = put_u64(at, w->files[0].end);
    at = put_u64(at, IO_ALIGN);
    at = put_u64(at, w->plan->header_bytes);
    at = put_u64(at, XXH3_64bits(w->plan->header, w->plan->header_bytes));
    at = put_u64(at, w->index_at);
    at = put_u64(at, w->index_bytes);
    at = put_u64(at, index_hash);
    put_u64(at, XXH3_64bits(block, (size_t)(at - block)));
    return file_output_write(&w->files[0].out, block, sizeof(block), 0, err);
}

static enum ps_status write_data_head(struct pack_writer *w, uint32_t i, struct ps_error *err)
{
    uint8_t block[IO_ALIGN] = "penstrip";
    uint8_t *at = block + 8;
    at = put_u32(at, PACKED_VERSION);
    at = put_u32(at, i);
    at = put(at, w->id, sizeof(w->id));
    at = put_u64(at, w->files[i].end);
    put_u64(at, XXH3_64bits(block, (size_t)(at - block)));
    return file_output_write(&w->files[i].out, block, sizeof(block), 0, err);
}

static bool is_ours(const struct pack_writer *w, const char *path)
{
    for (uint32_t i = 0; i < w->n_files; i++) {
        if (file_output_is_same(path, w->files[i].path))
            return true;
    }
    return false;
}

/* Data files of a container that was replaced: nothing can read them any more. */
static void remove_stale(const struct pack_writer *w, const struct packed *replaced)
{
    for (uint32_t i = 1; replaced && i < packed_n_files(replaced); i++) {
        if (!is_ours(w, packed_file_path(replaced, i)))
            unlink(packed_file_path(replaced, i));
    }
}

/* Whether each file has its name, since before a kill, or may be given it: hours may have passed since that was asked. */
static enum ps_status check_names(const struct pack_writer *w, struct ps_error *err)
{
    enum ps_status status = PS_OK;
    for (uint32_t i = 0; status == PS_OK && i < w->n_files; i++) {
        const struct pack_file *file = &w->files[i];
        if (access(file->temporary, F_OK) == 0)
            status = file_output_check_target(file->path, w->plan->replace, err);
        else if (pack_writer_bytes_of_ours(w, file->path) == 0)
            status = ps_error_set(err, PS_ERR_IO, "%s: is gone: pack again", file->temporary);
    }
    return status;
}

enum ps_status pack_writer_put_in_place(struct pack_writer *w, struct ps_error *err)
{
    struct packed *replaced = NULL;
    if (packed_is_container(w->files[0].path))
        packed_open(&replaced, w->files[0].path, NULL);
    enum ps_status status = check_names(w, err);
    for (uint32_t i = w->n_files; status == PS_OK && i-- > 0;) {
        const struct pack_file *file = &w->files[i];
        if (access(file->temporary, F_OK) == 0)
            status = file_output_rename(file->temporary, file->path, err);
    }
    if (status == PS_OK) {
        remove_stale(w, replaced);
        w->is_finished = true;
        pack_journal_remove(w->journal);
    }
    packed_free(replaced);
    return status;
}

enum ps_status pack_writer_finish(struct pack_writer *w, struct ps_error *err)
{
    if (w->n_trunk < w->plan->n_tensors || w->n_extents < w->plan->n_shards)
        return ps_error_set(err, PS_ERR_ARGUMENT, "%s: not all of it was written", w->plan->path);
    uint64_t hash = 0;
    struct pack_record sealed = {.kind = PACK_SEALED};
    enum ps_status status = write_index(w, &hash, err);
    if (status == PS_OK)
        status = write_superblock(w, hash, err);
    for (uint32_t i = 0; status == PS_OK && i < w->n_files; i++) {
        if (i > 0)
            status = write_data_head(w, i, err);
        /* The trunk's last tensor may end within an aligned unit. */
        if (status == PS_OK && ftruncate(w->files[i].out.fd, (off_t)w->files[i].end) != 0)
            status = ps_error_set(err, PS_ERR_IO, "%s: cannot be extended to %" PRIu64 " bytes: %s",
                                  w->files[i].temporary, w->files[i].end, strerror(errno));
        w->files[i].is_dirty = true;
    }
    if (status == PS_OK)
        status = pack_writer_commit(w, err);
    if (status == PS_OK)
        status = pack_journal_append(w->journal, &sealed, err);
    if (status == PS_OK)
        status = pack_journal_commit(w->journal, err);
    w->is_sealed = status == PS_OK;
    return status == PS_OK ? pack_writer_put_in_place(w, err) : status;
}
