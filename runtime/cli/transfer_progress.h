/* One line on the terminal while a large file is made: how much, how fast, how long yet. */
#ifndef PENSTOCK_RUNTIME_CLI_TRANSFER_PROGRESS_H
#define PENSTOCK_RUNTIME_CLI_TRANSFER_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct transfer_progress {
    const char *path;
    bool shown; /* on a terminal */
    double start, last;
    uint64_t first; /* bytes that were done before; set by the first update */
    bool begun;
};

void transfer_progress_begin(struct transfer_progress *progress, const char *path);
/* What goes on before there is anything to count. */
void transfer_progress_say(const struct transfer_progress *progress, const char *what);
void transfer_progress_update(struct transfer_progress *progress, uint64_t done, uint64_t total);
void transfer_progress_end(struct transfer_progress *progress);

#endif
