/* The rows of the policy table, one file each. */
#ifndef PENSTOCK_STORAGE_CACHE_POLICY_INTERNAL_H
#define PENSTOCK_STORAGE_CACHE_POLICY_INTERNAL_H

#include "storage/cache_policy.h"

extern const struct cache_policy cache_policy_context;
extern const struct cache_policy cache_policy_decay;
extern const struct cache_policy cache_policy_lru;

#endif
