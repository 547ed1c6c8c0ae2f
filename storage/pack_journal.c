#include "storage/pack_journal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "storage/file_output.h"

enum {
    VERSION = 1,
    LARGEST_BODY = 1 << 30, /* bytes; far above any */
};

struct head {
    char magic[8];
    uint32_t version, zero;
    uint8_t key[PACKED_ID_BYTES];
    uint64_t body_bytes;
    uint64_t hash;
};

struct stored_record {
    struct pack_record record;
    uint64_t hash;
};

struct pack_journal {
    char *path;
    struct file_output file;
    struct head head;
    uint8_t *body;      /* NULL: nothing usable is there */
    uint64_t n_records; /* read or appended */
    struct stored_record *pending;
    uint32_t n_pending, capacity;
};

static const char magic[8] = {'p', 'e', 'n', 's', 'p', 'a', 'c', 'k'};

static uint64_t head_hash(const struct head *head, const uint8_t *body)
{
    return XXH3_64bits_withSeed(body, head->body_bytes, XXH3_64bits(head->key, sizeof(head->key)));
}

static uint64_t record_hash(const struct pack_record *record, uint64_t number)
{
    return XXH3_64bits_withSeed(record, sizeof(*record), number);
}

static uint64_t records_at(const struct pack_journal *journal)
{
    return sizeof(journal->head) + journal->head.body_bytes;
}

static bool read_whole(int fd, void *data, uint64_t bytes, uint64_t offset)
{
    uint8_t *at = data;
    while (bytes > 0) {
        ssize_t n = pread(fd, at, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        bytes -= (uint64_t)n;
        offset += (uint64_t)n;
    }
    return true;
}

/* Leaves body NULL where there is no whole head. */
static void read_head(struct pack_journal *journal, uint64_t file_bytes)
{
    struct head *head = &journal->head;
    if (!read_whole(journal->file.fd, head, sizeof(*head), 0) || memcmp(head->magic, magic, sizeof(magic)) ||
        head->version != VERSION || head->body_bytes > LARGEST_BODY ||
        head->body_bytes > file_bytes - sizeof(*head))
        return;
    uint8_t *body = malloc(head->body_bytes + 1);
    if (body && read_whole(journal->file.fd, body, head->body_bytes, sizeof(*head)) &&
        head_hash(head, body) == head->hash)
        journal->body = body;
    else
        free(body);
}

enum ps_status pack_journal_open(struct pack_journal **out, const char *path, struct ps_error *err)
{
    *out = NULL;
    enum ps_status status;
    struct stat st;
    struct pack_journal *journal = calloc(1, sizeof(*journal));
    if (!journal || !(journal->path = strdup(path))) {
        free(journal);
        return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory", path);
    }
    journal->file.path = journal->path;
    journal->file.fd = -1;
    status = file_output_open(&journal->file, err);
    if (status == PS_OK && fstat(journal->file.fd, &st) != 0)
        status = ps_error_set(err, PS_ERR_IO, "%s: cannot be read: %s", path, strerror(errno));
    if (status != PS_OK) {
        pack_journal_free(journal);
        return status;
    }
    read_head(journal, (uint64_t)st.st_size);
    *out = journal;
    return PS_OK;
}

void pack_journal_free(struct pack_journal *journal)
{
    if (!journal)
        return;
    if (journal->file.fd >= 0)
        close(journal->file.fd);
    free(journal->body);
    free(journal->pending);
    free(journal->path);
    free(journal);
}

void pack_journal_remove(struct pack_journal *journal)
{
    unlink(journal->path);
    file_output_sync_directory(journal->path);
}

const uint8_t *pack_journal_body(const struct pack_journal *journal, const uint8_t **key, uint64_t *bytes)
{
    *key = journal->head.key;
    *bytes = journal->head.body_bytes;
    return journal->body;
}

bool pack_journal_next(struct pack_journal *journal, struct pack_record *record)
{
    struct stored_record stored;
    uint64_t at = records_at(journal) + journal->n_records * sizeof(stored);
    if (!journal->body || !read_whole(journal->file.fd, &stored, sizeof(stored), at) ||
        record_hash(&stored.record, journal->n_records) != stored.hash)
        return false;
    *record = stored.record;
    journal->n_records++;
    return true;
}

bool pack_journal_back(struct pack_journal *journal)
{
    journal->n_records--;
    /* Else those after it could follow later ones that take its place. */
    return ftruncate(journal->file.fd,
                     (off_t)(records_at(journal) + journal->n_records * sizeof(struct stored_record))) == 0;
}

enum ps_status pack_journal_begin(struct pack_journal *journal, const uint8_t key[PACKED_ID_BYTES],
                                  const uint8_t *body, uint64_t bytes, struct ps_error *err)
{
    free(journal->body);
    journal->body = NULL;
    journal->n_records = journal->n_pending = 0;
    struct head *head = &journal->head;
    *head = (struct head){.version = VERSION, .body_bytes = bytes};
    memcpy(head->magic, magic, sizeof(magic));
    memcpy(head->key, key, sizeof(head->key));
    head->hash = head_hash(head, body);
    if (ftruncate(journal->file.fd, 0) != 0)
        return ps_error_set(err, PS_ERR_IO, "%s: cannot be emptied: %s", journal->path, strerror(errno));
    enum ps_status status = file_output_write(&journal->file, body, bytes, sizeof(*head), err);
    if (status == PS_OK)
        status = file_output_write(&journal->file, head, sizeof(*head), 0, err);
    if (status == PS_OK)
        status = file_output_sync(&journal->file, err);
    file_output_sync_directory(journal->path);
    return status;
}

enum ps_status pack_journal_append(struct pack_journal *journal, const struct pack_record *record,
                                   struct ps_error *err)
{
    if (journal->n_pending == journal->capacity) {
        uint32_t capacity = journal->capacity ? journal->capacity * 2 : 64;
        struct stored_record *grown = realloc(journal->pending, capacity * sizeof(*grown));
        if (!grown)
            return ps_error_set(err, PS_ERR_NOMEM, "%s: no memory for %" PRIu32 " records", journal->path,
                                capacity);
        journal->pending = grown;
        journal->capacity = capacity;
    }
    uint64_t number = journal->n_records + journal->n_pending;
    journal->pending[journal->n_pending++] = (struct stored_record){*record, record_hash(record, number)};
    return PS_OK;
}

enum ps_status pack_journal_commit(struct pack_journal *journal, struct ps_error *err)
{
    if (journal->n_pending == 0)
        return PS_OK;
    uint64_t at = records_at(journal) + journal->n_records * sizeof(*journal->pending);
    enum ps_status status = file_output_write(&journal->file, journal->pending,
                                              journal->n_pending * sizeof(*journal->pending), at, err);
    if (status == PS_OK)
        status = file_output_sync(&journal->file, err);
    if (status != PS_OK)
        return status;
    journal->n_records += journal->n_pending;
    journal->n_pending = 0;
    return PS_OK;
}
