/* The table of cache policies. */
#include "storage/cache_policy.h"

#include <stddef.h>
#include <string.h>

#include "storage/cache_policy_internal.h"

static const struct cache_policy *const policies[] = {
    &cache_policy_context, /* the default */
    &cache_policy_decay,
    &cache_policy_lru,
};

const struct cache_policy *cache_policy_at(uint32_t index)
{
    return index < sizeof(policies) / sizeof(policies[0]) ? policies[index] : NULL;
}

const struct cache_policy *cache_policy_find(const char *name)
{
    const struct cache_policy *policy;
    for (uint32_t i = 0; (policy = cache_policy_at(i)) != NULL; i++)
        if (strcmp(policy->name, name) == 0)
            return policy;
    return NULL;
}
