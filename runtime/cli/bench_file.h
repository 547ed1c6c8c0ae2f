/* A file of random bytes to measure a drive with. It has no name from the start, so that nothing is left of it however the
 * program ends. */
#ifndef PENSTOCK_RUNTIME_CLI_BENCH_FILE_H
#define PENSTOCK_RUNTIME_CLI_BENCH_FILE_H

#include <signal.h>
#include <stdint.h>

#include "storage/status.h"

struct bench_file {
    int fd;
    char path[32]; /* by which it can be opened while fd is open */
    uint64_t bytes;
};

/* Makes it in directory and on the drive, with a line of progress on a terminal. bytes 0: 4 GiB, or half of the free space
 * where that is less. *cancel is watched. PS_ERR_IO: no such directory, not writable, no space; PS_ERR_CANCELLED. Close it
 * in any case. */
enum ps_status bench_file_make(struct bench_file *file, const char *directory, uint64_t bytes,
                               const volatile sig_atomic_t *cancel, struct ps_error *err);
void bench_file_close(struct bench_file *file);

#endif
