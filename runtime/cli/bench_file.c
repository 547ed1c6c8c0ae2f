#include "runtime/cli/bench_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "runtime/clock.h"
#include "runtime/size_text.h"
#include "runtime/splitmix.h"

enum {
    UNIT = 4096,           /* its size is a multiple of it */
    CHUNK_BYTES = 8 << 20, /* written and sent to the drive at once: what an interrupt waits for */
};
#define DEFAULT_BYTES (UINT64_C(4) << 30)

static enum ps_status choose_size(struct bench_file *file, const char *directory, uint64_t bytes,
                                  struct ps_error *err)
{
    struct statvfs info;
    char free_text[SIZE_TEXT_SIZE], size_text[SIZE_TEXT_SIZE];
    if (statvfs(directory, &info) < 0)
        return ps_error_set(err, PS_ERR_IO, "%s: %s: name a directory with --dir", directory,
                            strerror(errno));
    uint64_t available = (uint64_t)info.f_bavail * info.f_frsize;
    file->bytes = bytes > 0 ? bytes : DEFAULT_BYTES < available / 2 ? DEFAULT_BYTES : available / 2;
    file->bytes -= file->bytes % UNIT;
    if (file->bytes >= UNIT && file->bytes <= available)
        return PS_OK;
    return ps_error_set(err, PS_ERR_IO,
                        "%s: no space for a file of %s, %s are free: use a smaller --size, or another --dir",
                        directory, size_format(file->bytes > UNIT ? file->bytes : UNIT, size_text),
                        size_format(available, free_text));
}

static enum ps_status create(struct bench_file *file, const char *directory, struct ps_error *err)
{
    size_t length = strlen(directory) + sizeof("/.penstock-bench-XXXXXX");
    char *name = malloc(length);
    if (!name)
        return ps_error_set(err, PS_ERR_NOMEM, "%s: out of memory", directory);
    snprintf(name, length, "%s/.penstock-bench-XXXXXX", directory);
    file->fd = mkostemp(name, O_CLOEXEC);
    int error = errno;
    if (file->fd >= 0)
        unlink(name);
    free(name);
    if (file->fd < 0)
        return ps_error_set(err, PS_ERR_IO, "%s: cannot make a file: %s: name another directory with --dir",
                            directory, strerror(error));
    snprintf(file->path, sizeof(file->path), "/proc/self/fd/%d", file->fd);
    return PS_OK;
}

static enum ps_status write_error(const char *directory, int error, struct ps_error *err)
{
    return ps_error_set(err, PS_ERR_IO, "%s: cannot write the file to read: %s%s", directory, strerror(error),
                        error == ENOSPC || error == EDQUOT ? ": use a smaller --size, or another --dir" : "");
}

static int write_whole(int fd, const uint64_t *data, uint64_t bytes, uint64_t offset)
{
    for (uint64_t done = 0; done < bytes;) {
        ssize_t n = pwrite(fd, (const char *)data + done, bytes - done, (off_t)(offset + done));
        if (n < 0 && errno != EINTR)
            return errno;
        done += n > 0 ? (uint64_t)n : 0;
    }
    return 0;
}

/* Each chunk goes to the drive before the next is made: neither memory full of pages to write nor a long wait at the end. */
static enum ps_status fill(const struct bench_file *file, const char *directory,
                           const volatile sig_atomic_t *cancel, uint64_t *data, struct ps_error *err)
{
    uint64_t random = 1;
    double shown_at = clock_seconds();
    for (uint64_t at = 0; at < file->bytes; at += CHUNK_BYTES) {
        uint64_t n = file->bytes - at < CHUNK_BYTES ? file->bytes - at : CHUNK_BYTES;
        if (*cancel)
            return ps_error_set(err, PS_ERR_CANCELLED, "bench io: interrupted");
        for (uint64_t i = 0; i < n / sizeof(*data); i++)
            data[i] = splitmix64(&random);
        int error = write_whole(file->fd, data, n, at);
        if (error == 0 && fdatasync(file->fd) < 0 && errno != EINTR)
            error = errno;
        if (error != 0)
            return write_error(directory, error, err);
        posix_fadvise(file->fd, (off_t)at, (off_t)n, POSIX_FADV_DONTNEED);
        double now = clock_seconds();
        if (isatty(STDERR_FILENO) && now - shown_at > 0.2) {
            char done_text[SIZE_TEXT_SIZE], size_text[SIZE_TEXT_SIZE];
            shown_at = now;
            fprintf(stderr, "\rwriting the file to read: %s of %s \033[K", size_format(at + n, done_text),
                    size_format(file->bytes, size_text));
        }
    }
    return PS_OK;
}

enum ps_status bench_file_make(struct bench_file *file, const char *directory, uint64_t bytes,
                               const volatile sig_atomic_t *cancel, struct ps_error *err)
{
    *file = (struct bench_file){.fd = -1};
    enum ps_status status;
    if ((status = choose_size(file, directory, bytes, err)) != PS_OK ||
        (status = create(file, directory, err)) != PS_OK)
        return status;
    /* A drive that fills up meanwhile is noticed now, and the file lies in one piece where it can. */
    int error = posix_fallocate(file->fd, 0, (off_t)file->bytes);
    if (error == ENOSPC || error == EDQUOT || error == EFBIG)
        return write_error(directory, error, err);
    uint64_t *data = malloc(CHUNK_BYTES);
    if (!data)
        return ps_error_set(err, PS_ERR_NOMEM, "bench io: out of memory");
    status = fill(file, directory, cancel, data, err);
    free(data);
    if (isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
    return status;
}

void bench_file_close(struct bench_file *file)
{
    if (file->fd >= 0)
        close(file->fd);
    file->fd = -1;
}
