/* Name table: see the header. */
#include "storage/name_table.h"

#include <stdlib.h>
#include <string.h>

#include "storage/fnv1a.h"

static uint64_t name_hash(struct gguf_string name)
{
    uint64_t hash = fnv1a_add(FNV1A_START, name.data, name.length);
    return hash ^ (hash >> 32);
}

/* The slot that holds the name, or the free one where it belongs. */
static uint64_t find_slot(const struct name_table *table, struct gguf_string name)
{
    uint64_t mask = table->n_slots - 1;
    uint64_t slot = name_hash(name) & mask;
    for (; table->slots[slot] != NAME_TABLE_NONE; slot = (slot + 1) & mask) {
        struct gguf_string other = table->name_at(table->items, table->slots[slot]);
        if (other.length == name.length && memcmp(other.data, name.data, name.length) == 0)
            break;
    }
    return slot;
}

bool name_table_init(struct name_table *table, struct gguf_string (*name_at)(const void *, uint32_t),
                     const void *items, uint32_t n)
{
    uint64_t n_slots = 8;
    while (n_slots / 2 < n)
        n_slots *= 2;
    *table = (struct name_table){.name_at = name_at, .items = items, .n_slots = n_slots};
    table->slots = malloc(n_slots * sizeof(*table->slots));
    if (!table->slots)
        return false;
    memset(table->slots, 0xff, n_slots * sizeof(*table->slots));
    return true;
}

void name_table_deinit(struct name_table *table)
{
    free(table->slots);
    *table = (struct name_table){0};
}

uint32_t name_table_add(struct name_table *table, uint32_t index)
{
    uint64_t slot = find_slot(table, table->name_at(table->items, index));
    uint32_t holder = table->slots[slot];
    if (holder == NAME_TABLE_NONE)
        table->slots[slot] = index;
    return holder;
}

uint32_t name_table_find(const struct name_table *table, struct gguf_string name)
{
    return table->slots[find_slot(table, name)];
}

uint64_t name_table_memory(const struct name_table *table)
{
    return table->n_slots * sizeof(*table->slots);
}
