/* What penstock inspect says of a packed container. */
#ifndef PENSTOCK_CLI_INSPECT_PACKED_H
#define PENSTOCK_CLI_INSPECT_PACKED_H

#include <jansson.h>

#include "runtime/penstock.h"

/* Nothing for a GGUF. */
void inspect_packed_print(const struct ps_model *model);
/* A new object; null for a GGUF; NULL: out of memory. */
json_t *inspect_packed_json(const struct ps_model *model);

#endif
