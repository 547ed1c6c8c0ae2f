#include "runtime/cli/sweep_records.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/cli/bench_record.h"

static enum ps_status failed(const char *path, const char *what, struct ps_error *err)
{
    return ps_error_set(err, PS_ERR_IO, "%s: cannot %s: %s", path, what, strerror(errno));
}

/* ---- opening ---- */

/* Where the last line begins that has no end; the file's end: there is none. -1: errno. */
static off_t torn_line(int fd, off_t end)
{
    enum { STEP = 4096 };
    char bytes[STEP];
    for (off_t at = end, from; at > 0; at = from) {
        from = at > STEP ? at - STEP : 0;
        ssize_t n = pread(fd, bytes, (size_t)(at - from), from);
        if (n != at - from)
            return -1;
        const char *newline = memrchr(bytes, '\n', (size_t)n);
        if (newline)
            return from + (newline - bytes) + 1;
    }
    return 0;
}

/* An editor may have left out the newline: no part of an object is one itself. */
static bool is_whole(int fd, off_t from, off_t end)
{
    size_t size = (size_t)(end - from);
    char *line = malloc(size);
    json_t *record =
        line && pread(fd, line, size, from) == (ssize_t)size ? json_loadb(line, size, 0, NULL) : NULL;
    bool whole = json_is_object(record);
    json_decref(record);
    free(line);
    return whole;
}

static enum ps_status mend_last_line(const struct sweep_records *r, struct ps_error *err)
{
    off_t end = lseek(r->fd, 0, SEEK_END);
    off_t from = end < 0 ? -1 : torn_line(r->fd, end);
    if (from < 0)
        return failed(r->path, "read", err);
    if (from == end)
        return PS_OK;
    bool done = is_whole(r->fd, from, end) ? write(r->fd, "\n", 1) == 1 : ftruncate(r->fd, from) == 0;
    return done ? PS_OK : failed(r->path, "write", err);
}

enum ps_status sweep_records_open(struct sweep_records *r, const char *directory, struct ps_error *err)
{
    *r = (struct sweep_records){.fd = -1};
    if (asprintf(&r->path, "%s/records.jsonl", directory) < 0) {
        r->path = NULL;
        return ps_error_set(err, PS_ERR_NOMEM, "-o: out of memory");
    }
    if (asprintf(&r->csv_path, "%s/records.csv", directory) < 0) {
        r->csv_path = NULL;
        return ps_error_set(err, PS_ERR_NOMEM, "-o: out of memory");
    }
    if (mkdir(directory, 0777) != 0 && errno != EEXIST)
        return ps_error_set(err, PS_ERR_IO, "-o: \"%s\": cannot make the directory: %s", directory,
                            strerror(errno));
    r->fd = open(r->path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (r->fd < 0)
        return failed(r->path, "open", err);
    if (flock(r->fd, LOCK_EX | LOCK_NB) != 0)
        return ps_error_set(err, PS_ERR_IO,
                            "%s: another sweep is writing it: wait for its end, or use another -o", r->path);
    return mend_last_line(r, err);
}

void sweep_records_close(struct sweep_records *r)
{
    if (r->fd >= 0)
        close(r->fd);
    free(r->path);
    free(r->csv_path);
    *r = (struct sweep_records){.fd = -1};
}

/* ---- records ---- */

const char *sweep_record_cell(const json_t *record)
{
    return json_string_value(json_object_get(record, "cell"));
}

enum ps_status sweep_records_each(const struct sweep_records *r, sweep_record_fn *fn, void *ctx,
                                  struct ps_error *err)
{
    FILE *file = fopen(r->path, "re");
    if (!file)
        return failed(r->path, "open", err);
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    enum ps_status status = PS_OK;
    for (unsigned number = 1; status == PS_OK && (length = getline(&line, &capacity, file)) > 0; number++) {
        json_t *record = json_loadb(line, (size_t)length, 0, NULL);
        if (json_is_object(record))
            status = fn(ctx, record, err);
        else
            status =
                ps_error_set(err, PS_ERR_FORMAT,
                             "%s: line %u is not a record: take it out, or use another -o", r->path, number);
        json_decref(record);
    }
    if (status == PS_OK && ferror(file))
        status = failed(r->path, "read", err);
    free(line);
    fclose(file);
    return status;
}

enum ps_status sweep_records_add(struct sweep_records *r, const json_t *record, struct ps_error *err)
{
    char *line = bench_record_line(record);
    if (!line)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: out of memory", r->path);
    size_t length = strlen(line);
    ssize_t n = write(r->fd, line, length);
    free(line);
    if (n >= 0 && (size_t)n < length)
        errno = ENOSPC;
    if (n < 0 || (size_t)n < length || fdatasync(r->fd) != 0)
        return failed(r->path, "write", err);
    return PS_OK;
}

/* ---- CSV ---- */

struct csv {
    FILE *out;
    json_t *columns; /* the first record; NULL until then */
};

/* Numbers as in the JSON; text in quotes where it needs them (RFC 4180); null is empty. */
static bool print_value(FILE *out, const json_t *value)
{
    if (!value || json_is_null(value))
        return true;
    if (!json_is_string(value)) {
        char *text = json_dumps(value, BENCH_RECORD_FORMAT | JSON_ENCODE_ANY);
        bool ok = text && fputs(text, out) >= 0;
        free(text);
        return ok;
    }
    const char *text = json_string_value(value);
    if (!strpbrk(text, ",\"\r\n"))
        return fputs(text, out) >= 0;
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"')
            fputc('"', out);
        fputc(*text, out);
    }
    return fputc('"', out) >= 0;
}

/* What the columns are called; of an inner object's with its name and a point in front. */
static bool print_names(FILE *out, json_t *columns, const char *outer, const char *separator)
{
    const char *name;
    json_t *column;
    bool ok = true;
    json_object_foreach(columns, name, column)
    {
        if (json_is_object(column))
            ok = ok && print_names(out, column, name, separator);
        else
            ok = ok && fprintf(out, "%s%s%s%s", separator, outer, outer[0] ? "." : "", name) > 0;
        separator = ",";
    }
    return ok;
}

/* What they are in a record. */
static bool print_values(FILE *out, json_t *columns, const json_t *record, const char *separator)
{
    const char *name;
    json_t *column;
    bool ok = true;
    json_object_foreach(columns, name, column)
    {
        const json_t *value = json_object_get(record, name);
        if (json_is_object(column))
            ok = ok && print_values(out, column, value, separator);
        else
            ok = ok && fputs(separator, out) >= 0 && print_value(out, value);
        separator = ",";
    }
    return ok;
}

static enum ps_status add_row(void *ctx, const json_t *record, struct ps_error *err)
{
    struct csv *csv = ctx;
    bool ok = true;
    if (!sweep_record_cell(record))
        return PS_OK;
    if (!csv->columns) {
        csv->columns = json_deep_copy(record);
        ok = csv->columns && print_names(csv->out, csv->columns, "", "") && fputc('\n', csv->out) >= 0;
    }
    ok = ok && print_values(csv->out, csv->columns, record, "") && fputc('\n', csv->out) >= 0;
    return ok ? PS_OK : ps_error_set(err, PS_ERR_IO, "cannot write: %s", strerror(errno));
}

enum ps_status sweep_records_write_csv(const struct sweep_records *r, struct ps_error *err)
{
    char *aside = NULL;
    if (asprintf(&aside, "%s.new", r->csv_path) < 0)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: out of memory", r->csv_path);
    struct csv csv = {.out = fopen(aside, "we")};
    enum ps_status status = csv.out ? sweep_records_each(r, add_row, &csv, err) : failed(aside, "open", err);
    if (csv.out && fclose(csv.out) != 0 && status == PS_OK)
        status = failed(aside, "write", err);
    if (status == PS_OK && rename(aside, r->csv_path) != 0)
        status = failed(r->csv_path, "write", err);
    if (status != PS_OK && csv.out)
        unlink(aside);
    json_decref(csv.columns);
    free(aside);
    return status;
}
