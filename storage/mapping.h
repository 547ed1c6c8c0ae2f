/* Anonymous memory for the big parts of the plan (trunk, KV cache, activations, slots): mapped, zeroed, huge pages
 * advised where they fit, nothing resident before it is touched. */
#ifndef PENSTOCK_STORAGE_MAPPING_H
#define PENSTOCK_STORAGE_MAPPING_H

#include <stddef.h>
#include <stdint.h>

/* NULL when memory runs out. Page-aligned; 2 MiB-aligned when bytes >= 2 MiB. bytes > 0. */
void *mapping_new(uint64_t bytes);
void mapping_free(void *address, uint64_t bytes); /* the same bytes; NULL is fine */

#endif
