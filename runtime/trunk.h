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

/* Reads the globals and the first `resident` layers; progress as in ps_model_params. The model's reader must exist. Of a
 * container, checksums are compared as params.verify says; what is damaged twice is PS_ERR_FORMAT, naming tensor, file and
 * offset. */
enum ps_status trunk_new(struct trunk **out, struct ps_model *model, uint32_t resident, struct ps_error *err);
void trunk_free(struct trunk *trunk); /* waits for reads in flight; NULL is fine */

/* Makes a layer's weights valid until the matching end; waits for its read if it is streamed. */
enum ps_status trunk_begin_layer(struct trunk *trunk, uint32_t layer, struct ps_error *err);
void trunk_end_layer(struct trunk *trunk, uint32_t layer);

struct trunk_stats {
    double stall_s;        /* time begin_layer has waited */
    uint64_t checked;      /* tensors of a container, and parts of tables, whose checksums were compared */
    uint64_t reread_sound; /* times that something was damaged when read first, and not when read again */
    double check_s;
};
struct trunk_stats trunk_get_stats(const struct trunk *trunk); /* since new(), with those of model->stored */

#endif
