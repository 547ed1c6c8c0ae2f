/* Drive probe: how fast a loaded model's own reader brings its experts (of a model without them: its layers) from
 * random places of its files, a few at once and with a full queue. For minutes-long benchmarks there are better tools;
 * this one takes a second or two, and a slow drive takes no longer. */
#ifndef PENSTOCK_RUNTIME_DRIVE_PROBE_H
#define PENSTOCK_RUNTIME_DRIVE_PROBE_H

#include <signal.h>

#include "runtime/penstock.h"
#include "runtime/speed_model.h"

/* Fills drive_rate, shard_bytes, n_layers, top_k and sets of parts. Nothing else may use the model meanwhile;
 * memory for a few shards is taken on top of its budget; drive_probe_last takes it from the model's cache instead, whose session must
 * be closed, and after which the model can only be freed. Takes about `seconds`, or one read where that is longer.
 * *cancel is watched. PS_ERR_IO, PS_ERR_NOMEM, PS_ERR_CANCELLED. */
enum ps_status drive_probe(struct ps_model *model, double seconds, const volatile sig_atomic_t *cancel,
                           struct speed_parts *parts, struct ps_error *err);
enum ps_status drive_probe_last(struct ps_model *model, double seconds, const volatile sig_atomic_t *cancel,
                                struct speed_parts *parts, struct ps_error *err);

#endif
