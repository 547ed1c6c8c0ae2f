/* The pool of compute threads: as many as were asked for, else the fastest of the numbers that the machine's topology
 * suggests, measured over weights in memory. */
#ifndef PENSTOCK_RUNTIME_THREAD_CHOICE_H
#define PENSTOCK_RUNTIME_THREAD_CHOICE_H

#include "runtime/model.h"
#include "runtime/topology.h"

/* The most threads that choosing can end with; at most `most`. */
uint32_t thread_choice_most(uint32_t most);

/* Sets model->pool, model->params.threads and model->threads_reason. asked: 0 chooses, which needs the trunk's globals in
 * memory and takes some tens of milliseconds where there is more than one number to choose from. */
enum ps_status thread_choice_make(struct ps_model *model, uint32_t asked, struct ps_error *err);
/* The same with n >= 1 candidates; quota as in struct topology. */
enum ps_status thread_choice_among(struct ps_model *model, const struct thread_candidate *candidates,
                                   uint32_t n, double quota, struct ps_error *err);

#endif
