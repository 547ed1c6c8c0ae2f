/* Trunk: the weights every token needs, in anonymous memory. What fits is read once and stays; where the budget is
 * smaller than the trunk, the last layers are streamed in order through two buffers, the next one being read while
 * one is computed. */
#ifndef PENSTOCK_RUNTIME_TRUNK_H
#define PENSTOCK_RUNTIME_TRUNK_H

#include <stdint.h>

#include "runtime/model.h"

struct trunk;

/* Bytes of memory with the first `resident` layers kept, staging buffers included. */
uint64_t trunk_memory(const struct ps_model *model, uint32_t resident);
/* Bytes that each pass then reads: of the layers that are not kept, none where the staging buffers hold them all. */
uint64_t trunk_streamed(const struct ps_model *model, uint32_t resident);

/* Reads the globals and the first `resident` layers; progress as in ps_model_params. The model's reader must exist. */
enum ps_status trunk_new(struct trunk **out, struct ps_model *model, uint32_t resident, struct ps_error *err);
void trunk_free(struct trunk *trunk); /* waits for reads in flight; NULL is fine */

/* Makes a layer's weights valid until the matching end; waits for its read if it is streamed. */
enum ps_status trunk_begin_layer(struct trunk *trunk, uint32_t layer, struct ps_error *err);
void trunk_end_layer(struct trunk *trunk, uint32_t layer);
double trunk_stall_s(const struct trunk *trunk); /* time begin_layer has waited */

#endif
