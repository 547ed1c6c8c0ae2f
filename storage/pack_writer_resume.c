/* What an earlier pack left: its decisions, and how far it came. Data counts only as far as the journal tells of it and the
 * files still hold it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/io_reader.h"
#include "storage/pack_writer_internal.h"

/* The journal's body: this, then codecs, note, and the temporary names of all files, each with its 0. */
struct body_head {
    uint32_t n_files, n_layers;
    uint64_t note_bytes, expected_extent_bytes, names_bytes;
};

enum ps_status pack_writer_begin_journal(struct pack_writer *w, struct ps_error *err)
{
    const struct pack_decisions *d = &w->decisions;
    struct body_head head = {w->n_files, w->plan->n_layers, d->note_bytes, d->expected_extent_bytes, 0};
    for (uint32_t i = 0; i < w->n_files; i++)
        head.names_bytes += strlen(w->files[i].temporary) + 1;
    uint64_t codec_bytes = (uint64_t)head.n_layers * PACKED_LAYER_CODECS;
    uint64_t bytes = sizeof(head) + codec_bytes + head.note_bytes + head.names_bytes;
    uint8_t *body = malloc(bytes);
    if (!body)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory for its journal", w->plan->path);
    uint8_t *at = body;
    memcpy(at, &head, sizeof(head));
    memcpy(at += sizeof(head), d->codecs, codec_bytes);
    memcpy(at += codec_bytes, d->note, d->note_bytes);
    at += d->note_bytes;
    for (uint32_t i = 0; i < w->n_files; i++)
        at = (uint8_t *)stpcpy((char *)at, w->files[i].temporary) + 1;
    enum ps_status status = pack_journal_begin(w->journal, w->key, body, bytes, err);
    free(body);
    return status;
}

/* False: the body is none of ours. */
static bool read_body_head(const uint8_t *body, uint64_t bytes, struct body_head *head)
{
    if (bytes < sizeof(*head))
        return false;
    memcpy(head, body, sizeof(*head));
    bytes -= sizeof(*head);
    uint64_t codec_bytes = (uint64_t)head->n_layers * PACKED_LAYER_CODECS;
    return codec_bytes <= bytes && head->note_bytes <= bytes - codec_bytes &&
           head->names_bytes == bytes - codec_bytes - head->note_bytes &&
           (head->names_bytes == 0 || body[sizeof(*head) + bytes - 1] == 0);
}

/* Unless another pack is writing it. */
static void remove_left(const char *name)
{
    int fd = open(name, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        unlink(name);
    close(fd);
}

/* Removes the temporary files that a pack with another plan left. */
static void remove_files(const uint8_t *body, uint64_t bytes, const struct body_head *head)
{
    static const char suffix[] = ".partial";
    const char *end = (const char *)body + bytes;
    for (const char *name = end - head->names_bytes; name < end; name += strlen(name) + 1) {
        size_t length = strlen(name);
        if (length >= sizeof(suffix) && strcmp(name + length - (sizeof(suffix) - 1), suffix) == 0)
            remove_left(name);
    }
}

static bool take_decisions(struct pack_writer *w, const uint8_t *body, const struct body_head *head)
{
    uint64_t codec_bytes = (uint64_t)head->n_layers * PACKED_LAYER_CODECS;
    uint8_t *codecs = malloc(codec_bytes + 1);
    char *note = malloc(head->note_bytes + 1);
    w->decisions = (struct pack_decisions){codecs, note, head->note_bytes, head->expected_extent_bytes};
    if (!codecs || !note)
        return false;
    memcpy(codecs, body + sizeof(*head), codec_bytes);
    memcpy(note, body + sizeof(*head) + codec_bytes, head->note_bytes);
    return true;
}

/* Whether a record is the next in sequence and its bytes are still in the file; then it counts. */
static bool take_record(struct pack_writer *w, const struct pack_record *r, const uint64_t *file_bytes)
{
    const struct pack_plan *plan = w->plan;
    uint64_t end;
    if (r->file >= w->n_files || __builtin_add_overflow(r->offset, r->bytes, &end) ||
        end > file_bytes[r->file])
        return false;
    if (r->kind == PACK_TRUNK) {
        if (w->n_trunk == plan->n_tensors || r->item != w->n_trunk || r->file != 0 ||
            r->offset != w->trunk_offset[r->item] + w->filled || r->bytes != pack_writer_block_bytes(w))
            return false;
        pack_writer_fill(w, r->bytes, r->hash);
    } else if (r->kind == PACK_EXTENT) {
        if (w->n_trunk < plan->n_tensors || w->n_extents == plan->n_shards ||
            r->item != plan->order[w->n_extents] || r->file != pack_file_of(w, w->n_extents) ||
            r->offset != w->files[r->file].end || r->bytes == 0 || r->bytes % IO_ALIGN != 0)
            return false;
        w->extents[r->item] = (struct packed_extent){r->file, r->offset, r->bytes, r->hash};
        w->n_extents++;
    } else if (r->kind == PACK_SEALED) {
        w->is_sealed = w->n_trunk == plan->n_tensors && w->n_extents == plan->n_shards;
        return w->is_sealed;
    } else {
        return false;
    }
    if (end > w->files[r->file].end)
        w->files[r->file].end = end;
    return true;
}

uint64_t pack_writer_bytes_of_ours(const struct pack_writer *w, const char *path)
{
    uint8_t head[PACK_ID_AT + PACKED_ID_BYTES];
    struct stat st;
    FILE *file = fopen(path, "rb");
    bool is_ours = file && fstat(fileno(file), &st) == 0 && S_ISREG(st.st_mode) &&
                   fread(head, 1, sizeof(head), file) == sizeof(head) &&
                   memcmp(head + PACK_ID_AT, w->id, PACKED_ID_BYTES) == 0;
    if (file)
        fclose(file);
    return is_ours ? (uint64_t)st.st_size : 0;
}

/* Sizes as they are. Once sealed, a file may have its final name already: *any_renamed. */
static void measure_files(const struct pack_writer *w, uint64_t *bytes, bool *any_renamed)
{
    for (uint32_t i = 0; i < w->n_files; i++) {
        bytes[i] = pack_writer_bytes_of_ours(w, w->files[i].temporary);
        if (bytes[i] > 0 || access(w->files[i].temporary, F_OK) == 0)
            continue;
        bytes[i] = pack_writer_bytes_of_ours(w, w->files[i].path);
        *any_renamed = *any_renamed || bytes[i] > 0;
    }
}

static enum ps_status take_records(struct pack_writer *w, struct ps_error *err)
{
    uint64_t *bytes = calloc(w->n_files, sizeof(*bytes));
    if (!bytes)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory to go on", w->plan->path);
    bool any_renamed = false;
    measure_files(w, bytes, &any_renamed);
    struct pack_record record;
    enum ps_status status = PS_OK;
    pack_writer_skip_experts(w);
    while (!w->is_sealed && pack_journal_next(w->journal, &record)) {
        if (take_record(w, &record, bytes))
            continue;
        if (!pack_journal_back(w->journal))
            status = ps_error_set(err, PS_ERR_IO, "%s: its journal cannot be cut: %s", w->plan->path,
                                  strerror(errno));
        break;
    }
    free(bytes);
    if (status != PS_OK || w->is_sealed || !any_renamed)
        return status;
    /* What has a final name is of an earlier pack that was finished: it stays until this one is. */
    w->n_trunk = w->n_extents = 0;
    w->n_blocks = w->filled = 0;
    for (uint32_t i = 0; i < w->n_files; i++)
        w->files[i].end = 0;
    pack_writer_skip_experts(w);
    return pack_writer_begin_journal(w, err);
}

enum ps_status pack_writer_resume(struct pack_writer *w, enum pack_start *start, struct ps_error *err)
{
    const uint8_t *key;
    uint64_t bytes;
    struct body_head head;
    const uint8_t *body = pack_journal_body(w->journal, &key, &bytes);
    *start = PACK_FRESH;
    if (!body || !read_body_head(body, bytes, &head))
        return PS_OK;
    if (memcmp(key, w->key, sizeof(w->key)) != 0 || head.n_layers != w->plan->n_layers) {
        remove_files(body, bytes, &head);
        *start = PACK_STARTED_OVER;
        return PS_OK;
    }
    if (!take_decisions(w, body, &head))
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory to go on", w->plan->path);
    enum ps_status status = pack_writer_lay_out(w, err);
    if (status == PS_OK)
        status = take_records(w, err);
    *start = PACK_RESUMED;
    return status;
}
