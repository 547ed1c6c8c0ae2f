/* FNV-1a, 64 bits (Fowler, Noll, Vo), in steps: for tables, and to tell files apart. It withstands accidents, not intent. */
#ifndef PENSTOCK_STORAGE_FNV1A_H
#define PENSTOCK_STORAGE_FNV1A_H

#include <stdint.h>

#define FNV1A_START 0xcbf29ce484222325u

static inline uint64_t fnv1a_add(uint64_t hash, const void *bytes, uint64_t n)
{
    const unsigned char *at = bytes;
    for (uint64_t i = 0; i < n; i++)
        hash = (hash ^ at[i]) * 0x100000001b3u;
    return hash;
}

#endif
