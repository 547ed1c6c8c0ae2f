/* File output: what writers of large files share: whole writes, pages that go to the drive and out of the page cache
 * along the way (the page cache is the user's), names that last. */
#ifndef PENSTOCK_STORAGE_FILE_OUTPUT_H
#define PENSTOCK_STORAGE_FILE_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/status.h"

struct file_output {
    int fd;
    const char *path; /* for messages; borrowed */
    uint64_t pushed;  /* bytes of the file handed to the drive */
};

/* Opens file->path, which is created where it is missing, for one writer at a time, until fd is closed. PS_ERR_IO;
 * PS_ERR_ARGUMENT: another is at work. */
enum ps_status file_output_open(struct file_output *file, struct ps_error *err);
/* PS_ERR_IO names path and offset. */
enum ps_status file_output_write(struct file_output *file, const void *data, size_t bytes, uint64_t offset,
                                 struct ps_error *err);
/* Makes the file so long and reserves the room, where the filesystem can, so that a full disk shows now and not after an
 * hour. What is not written reads as zeros. PS_ERR_IO, with what is missing. */
enum ps_status file_output_reserve(struct file_output *file, uint64_t bytes, struct ps_error *err);
/* All before `end` has been written: has the drive write it, and drops what it wrote before. Advice only; failures show
 * when the file is synced. */
void file_output_push(struct file_output *file, uint64_t end);
/* The same for files that are not written in order: all that was written so far. Waits for the drive. */
void file_output_push_all(struct file_output *file);
/* What was written so far is on the drive, also after a power failure, and out of the page cache. PS_ERR_IO. */
enum ps_status file_output_sync(struct file_output *file, struct ps_error *err);
/* Makes a new name last through a power failure, where the filesystem can. */
void file_output_sync_directory(const char *path);
/* Renames a synced file over whatever has the name. PS_ERR_IO. */
enum ps_status file_output_rename(const char *from, const char *to, struct ps_error *err);
/* Whether path can be written to by renaming a file to it: nothing is there, or a regular file and `replace`.
 * PS_ERR_ARGUMENT, PS_ERR_IO. */
enum ps_status file_output_check_target(const char *path, bool replace, struct ps_error *err);
/* Whether two paths lead to the same file. */
bool file_output_is_same(const char *a, const char *b);
/* "." of a name without a slash; owned by the caller; NULL: no memory. */
char *file_output_directory(const char *path);

#endif
