/* Memory plan: how a budget is divided between trunk, KV cache, activations, reader and expert cache. */
#ifndef PENSTOCK_RUNTIME_PLAN_H
#define PENSTOCK_RUNTIME_PLAN_H

#include "runtime/model.h"

/* Fewest slots per pool: one expert computes while the next one is read. */
enum { PLAN_MIN_SLOTS = 2 };

/* params with every 0 and NULL replaced by what it stands for. PS_ERR_ARGUMENT on values out of range. */
enum ps_status plan_resolve_params(const struct ps_model *model, const struct ps_model_params *params,
                                   struct ps_model_params *resolved, struct ps_error *err);
struct expert_cache_config plan_cache_config(const struct ps_model_params *resolved);
/* resolved: from plan_resolve_params. */
enum ps_status plan_divide(const struct ps_model *model, const struct ps_model_params *resolved,
                           struct ps_plan *plan, struct ps_error *err);

#endif
