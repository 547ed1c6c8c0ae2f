/* Name table: finds an item of an array by its name. Open addressing over item numbers; the items and their
 * names stay the caller's. Sized once, at init. */
#ifndef PENSTOCK_STORAGE_NAME_TABLE_H
#define PENSTOCK_STORAGE_NAME_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/gguf.h"

#define NAME_TABLE_NONE UINT32_MAX

struct name_table {
    struct gguf_string (*name_at)(const void *items, uint32_t index);
    const void *items; /* borrowed */
    uint32_t *slots;   /* item number, or NAME_TABLE_NONE; owned */
    uint64_t n_slots;  /* a power of two, at least twice the items */
};

/* Room for n items. False: out of memory. */
bool name_table_init(struct name_table *table, struct gguf_string (*name_at)(const void *, uint32_t),
                     const void *items, uint32_t n);
void name_table_deinit(struct name_table *table);
/* NAME_TABLE_NONE when added; otherwise the item that already has this name. */
uint32_t name_table_add(struct name_table *table, uint32_t index);
uint32_t name_table_find(const struct name_table *table, struct gguf_string name);
uint64_t name_table_memory(const struct name_table *table); /* bytes */

#endif
