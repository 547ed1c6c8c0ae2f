/* Test shim, loaded with LD_PRELOAD: makes pread misbehave as a failing or a busy drive would.
 *
 *   FAULT_PREAD_KIND   eio: the read fails; eof: it returns 0; short: it reads half of what was asked;
 *                      eintr: it is interrupted; flip: a bit of a byte is wrong, once; none: it works, and is only counted
 *   FAULT_PREAD_AFTER  calls that pass first
 *   FAULT_PREAD_EVERY  of the calls after those, every one (1), every second (2), ... misbehaves
 *   FAULT_PREAD_PLACE  flip: where the byte is in the file, whichever file that is
 *   FAULT_PREAD_COUNT  file to which the number of calls is written at exit
 *
 * Built without _FILE_OFFSET_BITS, under which the two functions below would be one. */
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PAGE = 4096 };

typedef ssize_t pread_fn(int fd, void *buffer, size_t count, off_t offset);

static pread_fn *next_pread;
static const char *kind = "none";
static unsigned long after, every = 1, place;
static atomic_bool has_flipped;
static atomic_ulong calls;

static unsigned long number_from(const char *name, unsigned long otherwise)
{
    const char *text = getenv(name);
    return text ? strtoul(text, NULL, 10) : otherwise;
}

__attribute__((constructor)) static void read_settings(void)
{
    /* The way POSIX gives to turn dlsym's result into a function pointer. */
    *(void **)&next_pread = dlsym(RTLD_NEXT, "pread64");
    if (getenv("FAULT_PREAD_KIND"))
        kind = getenv("FAULT_PREAD_KIND");
    after = number_from("FAULT_PREAD_AFTER", 0);
    every = number_from("FAULT_PREAD_EVERY", 1);
    place = number_from("FAULT_PREAD_PLACE", 0);
}

__attribute__((destructor)) static void write_count(void)
{
    const char *path = getenv("FAULT_PREAD_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file)
        return;
    fprintf(file, "%lu\n", atomic_load(&calls));
    fclose(file);
}

static ssize_t flipping_pread(int fd, void *buffer, size_t count, off_t offset)
{
    ssize_t n = next_pread(fd, buffer, count, offset);
    unsigned long at = place - (unsigned long)offset;
    if (place >= (unsigned long)offset && n > 0 && at < (unsigned long)n &&
        !atomic_exchange(&has_flipped, true))
        ((unsigned char *)buffer)[at] ^= 4;
    return n;
}

static ssize_t faulty_pread(int fd, void *buffer, size_t count, off_t offset)
{
    unsigned long call = atomic_fetch_add(&calls, 1);
    if (call < after || (call - after) % every != 0)
        return next_pread(fd, buffer, count, offset);
    if (strcmp(kind, "eof") == 0)
        return 0;
    if (strcmp(kind, "flip") == 0)
        return flipping_pread(fd, buffer, count, offset);
    if (strcmp(kind, "eio") == 0 || strcmp(kind, "eintr") == 0) {
        errno = strcmp(kind, "eio") == 0 ? EIO : EINTR;
        return -1;
    }
    if (strcmp(kind, "short") == 0 && count >= 2 * PAGE)
        count = count / 2 / PAGE * PAGE;
    return next_pread(fd, buffer, count, offset);
}

ssize_t pread(int fd, void *buffer, size_t count, off_t offset)
{
    return faulty_pread(fd, buffer, count, offset);
}

/* What pread is called where off_t has 64 bits by _FILE_OFFSET_BITS. */
ssize_t pread64(int fd, void *buffer, size_t count, off_t offset)
{
    return faulty_pread(fd, buffer, count, offset);
}
