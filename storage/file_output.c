#include "storage/file_output.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum {
    WRITE_BEHIND = 32 << 20, /* bytes handed to the drive at a time; dirty pages stay below twice that */
    LARGEST_WRITE = 1 << 30, /* below what one pwrite takes */
};

enum ps_status file_output_open(struct file_output *file, struct ps_error *err)
{
    struct stat ours, named;
    int fd = open(file->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        return ps_error_set(err, PS_ERR_IO, "%s: cannot be created: %s", file->path, strerror(errno));
    /* Where a file system has no locks, there are none. Under another name: the writer that held the lock has ended in between. */
    if ((flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) || fstat(fd, &ours) != 0 ||
        stat(file->path, &named) != 0 || ours.st_ino != named.st_ino || ours.st_dev != named.st_dev) {
        close(fd);
        return ps_error_set(err, PS_ERR_ARGUMENT,
                            "%s: another penstock is writing it: wait for it, or choose another name",
                            file->path);
    }
    file->fd = fd;
    return PS_OK;
}

enum ps_status file_output_write(struct file_output *file, const void *data, size_t bytes, uint64_t offset,
                                 struct ps_error *err)
{
    const uint8_t *at = data;
    while (bytes > 0) {
        ssize_t n = pwrite(file->fd, at, bytes < LARGEST_WRITE ? bytes : LARGEST_WRITE, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return ps_error_set(err, PS_ERR_IO, "%s: write failed at offset %" PRIu64 ": %s", file->path,
                                offset, strerror(n < 0 ? errno : ENOSPC));
        at += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return PS_OK;
}

enum ps_status file_output_reserve(struct file_output *file, uint64_t bytes, struct ps_error *err)
{
    struct statvfs room;
    int failed;
    do {
        failed = fallocate(file->fd, 0, 0, (off_t)bytes);
    } while (failed != 0 && errno == EINTR);
    int reason = errno;
    if (failed != 0 && (reason == ENOSPC || reason == EFBIG || reason == EDQUOT)) {
        uint64_t has = reason == ENOSPC && fstatvfs(file->fd, &room) == 0
                           ? (uint64_t)room.f_bavail * room.f_frsize
                           : bytes;
        if (has < bytes)
            return ps_error_set(err, PS_ERR_IO,
                                "%s: no room for %" PRIu64 " bytes: %" PRIu64 " are missing: %s", file->path,
                                bytes, bytes - has, strerror(reason));
        return ps_error_set(err, PS_ERR_IO, "%s: no room for %" PRIu64 " bytes: %s", file->path, bytes,
                            strerror(reason));
    }
    if (failed != 0 && ftruncate(file->fd, (off_t)bytes) != 0)
        return ps_error_set(err, PS_ERR_IO, "%s: cannot be extended to %" PRIu64 " bytes: %s", file->path,
                            bytes, strerror(errno));
    return PS_OK;
}

void file_output_push(struct file_output *file, uint64_t end)
{
    if (end < file->pushed + WRITE_BEHIND)
        return;
    sync_file_range(file->fd, (off_t)file->pushed, (off_t)(end - file->pushed), SYNC_FILE_RANGE_WRITE);
    if (file->pushed > 0) {
        sync_file_range(file->fd, 0, (off_t)file->pushed,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
        posix_fadvise(file->fd, 0, (off_t)file->pushed, POSIX_FADV_DONTNEED);
    }
    file->pushed = end;
}

void file_output_push_all(struct file_output *file)
{
    sync_file_range(file->fd, 0, 0,
                    SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    posix_fadvise(file->fd, 0, 0, POSIX_FADV_DONTNEED);
}

enum ps_status file_output_sync(struct file_output *file, struct ps_error *err)
{
    if (fsync(file->fd) != 0)
        return ps_error_set(err, PS_ERR_IO, "%s: write-back failed: %s", file->path, strerror(errno));
    posix_fadvise(file->fd, 0, 0, POSIX_FADV_DONTNEED);
    return PS_OK;
}

char *file_output_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
}

void file_output_sync_directory(const char *path)
{
    char *directory = file_output_directory(path);
    int fd = directory ? open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(directory);
}

enum ps_status file_output_rename(const char *from, const char *to, struct ps_error *err)
{
    if (rename(from, to) != 0)
        return ps_error_set(err, PS_ERR_IO, "%s: cannot be renamed to %s: %s", from, to, strerror(errno));
    file_output_sync_directory(to);
    return PS_OK;
}

enum ps_status file_output_check_target(const char *path, bool replace, struct ps_error *err)
{
    struct stat st;
    if (stat(path, &st) != 0) {
        if (errno == ENOENT)
            return PS_OK;
        return ps_error_set(err, PS_ERR_IO, "%s: %s", path, strerror(errno));
    }
    if (!S_ISREG(st.st_mode))
        return ps_error_set(err, PS_ERR_ARGUMENT, "%s: is not a regular file: choose another name", path);
    if (!replace)
        return ps_error_set(err, PS_ERR_ARGUMENT,
                            "%s: exists: choose another name, or overwrite it with --force", path);
    return PS_OK;
}

bool file_output_is_same(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}
