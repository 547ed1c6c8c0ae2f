/* What a measurement was made on, for records of it. */
#ifndef PENSTOCK_RUNTIME_MACHINE_DESCRIPTION_H
#define PENSTOCK_RUNTIME_MACHINE_DESCRIPTION_H

#include <stdint.h>

enum { MACHINE_TEXT_SIZE = 128 };

/* Texts are "" where the system does not say. */
struct machine_description {
    char cpu[MACHINE_TEXT_SIZE];
    uint32_t cores;                /* that this process may use */
    uint64_t memory;               /* bytes, all of the machine's */
    char drive[MACHINE_TEXT_SIZE]; /* device and model behind a file; without one its filesystem */
    char kernel[MACHINE_TEXT_SIZE];
};

/* path: a file on the drive. */
void machine_describe(struct machine_description *description, const char *path);

#endif
