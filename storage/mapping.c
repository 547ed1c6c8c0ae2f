#include "storage/mapping.h"

#include <sys/mman.h>

enum { PAGE_BYTES = 4096, HUGE_BYTES = 2 << 20 };

static uint64_t round_up(uint64_t n, uint64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

void *mapping_new(uint64_t bytes)
{
    bytes = round_up(bytes, PAGE_BYTES);
    uint64_t slack = bytes >= HUGE_BYTES ? HUGE_BYTES - PAGE_BYTES : 0;
    char *base =
        mmap(NULL, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    if (slack == 0)
        return base;
    char *start = (char *)round_up((uintptr_t)base, HUGE_BYTES);
    if (start > base)
        munmap(base, (size_t)(start - base));
    uint64_t tail = (uint64_t)(base + bytes + slack - (start + bytes));
    if (tail > 0)
        munmap(start + bytes, tail);
    /* Whole huge pages only: the remainder must not make the mapping resident beyond its size. */
    madvise(start, bytes / HUGE_BYTES * HUGE_BYTES, MADV_HUGEPAGE);
    return start;
}

void mapping_free(void *address, uint64_t bytes)
{
    if (address)
        munmap(address, round_up(bytes, PAGE_BYTES));
}
