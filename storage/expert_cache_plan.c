/* How large an expert cache is: size classes of a model's shards, and the division of a byte budget among them.
 * The memory plan asks before anything is allocated, and expert_cache_new builds what was answered. */
#include "storage/expert_cache_internal.h"

/* Slots are added in one fixed order, until the next would not fit. So a larger budget never gives any pool fewer
 * slots, and less than one slot of the budget is left over. */

enum {
    MERGE_PERCENT = 5
}; /* classes closer than this share a pool: less is lost to padding than to two pools */

/* Divides the layers' slot sizes into classes of at most percent difference. False: into too many. */
static bool find_classes(struct expert_cache_plan *plan, const struct shard_map *map, uint64_t percent)
{
    uint64_t below = UINT64_MAX;
    for (plan->n_pools = 0;; plan->n_pools++) {
        uint64_t largest = 0;
        for (uint32_t l = 0; l < plan->n_layers; l++) {
            const struct shard_layer *layer = shard_map_layer(map, l);
            if (layer->n_experts > 0 && layer->slot_bytes <= below && layer->slot_bytes > largest)
                largest = layer->slot_bytes;
        }
        if (largest == 0)
            return true;
        if (plan->n_pools == EXPERT_CACHE_MAX_POOLS)
            return false;
        below = largest - largest / 100 * percent - 1;
        plan->pools[plan->n_pools] = (struct expert_pool_plan){.slot_bytes = largest, .floor_bytes = below};
    }
}

uint32_t expert_cache_plan_pool(const struct expert_cache_plan *plan, uint64_t slot_bytes)
{
    uint32_t pool = 0;
    while (slot_bytes <= plan->pools[pool].floor_bytes)
        pool++;
    return pool;
}

static void find_pools(struct expert_cache_plan *plan, const struct shard_map *map)
{
    for (uint64_t percent = MERGE_PERCENT; !find_classes(plan, map, percent); percent *= 2)
        ;
}

uint32_t expert_cache_layer_pool(const struct shard_map *map, uint32_t layer)
{
    struct expert_cache_plan plan = {.n_layers = shard_map_n_layers(map)};
    find_pools(&plan, map);
    return expert_cache_plan_pool(&plan, shard_map_layer(map, layer)->slot_bytes);
}

static void count_shards(struct expert_cache_plan *plan, const struct shard_map *map)
{
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        const struct shard_layer *layer = shard_map_layer(map, l);
        if (layer->n_experts == 0)
            continue;
        struct expert_pool_plan *pool = &plan->pools[expert_cache_plan_pool(plan, layer->slot_bytes)];
        struct shard_location location;
        shard_map_locate(map, l, 0, &location);
        uint32_t n_ranges = location.packed ? 1 : 0;
        for (uint32_t part = 0; !location.packed && part < SHARD_N_PARTS; part++)
            n_ranges += layer->slice[part].present;
        if (location.packed) {
            plan->unpacks = plan->unpacks || location.packed->compressed || plan->verify != EXPERT_VERIFY_OFF;
            plan->unpacker.decodes = plan->unpacker.decodes || location.packed->compressed;
        }
        if (n_ranges > pool->max_ranges)
            pool->max_ranges = n_ranges;
        if (layer->n_experts > plan->max_experts)
            plan->max_experts = layer->n_experts;
        pool->n_shards += layer->n_experts;
    }
}

/* One thread hashes faster than most drives read. */
static void choose_threads(struct expert_cache_plan *plan, const struct expert_cache_config *config)
{
    enum { ENOUGH_TO_CHECK = 2 };
    uint32_t n = config->unpack_threads > 0 ? config->unpack_threads : 1;
    if (!plan->unpacker.decodes && n > ENOUGH_TO_CHECK)
        n = ENOUGH_TO_CHECK;
    plan->unpacker.n_threads = n;
}

uint64_t expert_cache_verified_bytes(const struct expert_cache_plan *plan)
{
    return plan->n_shards / 8 + UINT64_C(1);
}

struct cache_policy_shape expert_cache_plan_shape(const struct expert_cache_plan *plan, uint32_t pool,
                                                  const uint32_t *layer_first)
{
    return (struct cache_policy_shape){plan->pools[pool].n_shards, plan->pools[pool].n_slots, plan->n_layers,
                                       layer_first};
}

/* No sum overflows: a cache is never much larger than the model's files. */
void expert_cache_plan_size(const struct expert_cache_plan *plan, struct expert_cache_size *out)
{
    *out = (struct expert_cache_size){0};
    out->overhead_bytes = sizeof(struct expert_cache) + plan->n_layers * sizeof(struct expert_cache_layer) +
                          plan->n_shards * sizeof(uint32_t) + plan->max_experts;
    for (uint32_t p = 0; p < plan->n_pools; p++) {
        const struct expert_pool_plan *pool = &plan->pools[p];
        struct cache_policy_shape shape = expert_cache_plan_shape(plan, p, NULL);
        uint64_t slot_overhead =
            sizeof(struct expert_slot) + sizeof(uint32_t) + pool->max_ranges * sizeof(struct io_range);
        out->slots += pool->n_slots;
        out->arena_bytes += pool->n_slots * pool->slot_bytes;
        out->overhead_bytes += pool->n_slots * slot_overhead + plan->policy->memory(&shape);
    }
    if (plan->unpacks) {
        struct unpacker_config config = plan->unpacker;
        config.n_jobs = out->slots;
        out->overhead_bytes += unpacker_memory(&config) + out->slots * sizeof(struct unpack_job);
        if (plan->verify == EXPERT_VERIFY_FIRST)
            out->overhead_bytes += expert_cache_verified_bytes(plan);
    }
}

static bool plan_fits(const struct expert_cache_plan *plan, uint64_t bytes)
{
    struct expert_cache_size size;
    expert_cache_plan_size(plan, &size);
    return size.arena_bytes <= bytes && size.overhead_bytes <= bytes - size.arena_bytes;
}

/* The pool that would hold the smallest share of its shards after one more slot; NULL when all are full. Shards of a
 * pool are of about equal size, so equal shares of shards are equal shares of bytes. */
static struct expert_pool_plan *pool_to_grow(struct expert_cache_plan *plan)
{
    struct expert_pool_plan *best = NULL;
    for (uint32_t p = 0; p < plan->n_pools; p++) {
        struct expert_pool_plan *pool = &plan->pools[p];
        if (pool->n_slots == pool->n_shards)
            continue;
        if (!best ||
            (pool->n_slots + UINT64_C(1)) * best->n_shards < (best->n_slots + UINT64_C(1)) * pool->n_shards)
            best = pool;
    }
    return best;
}

bool expert_cache_plan_make(struct expert_cache_plan *plan, const struct shard_map *map,
                            const struct expert_cache_config *config, uint64_t bytes)
{
    *plan = (struct expert_cache_plan){.policy = config->policy,
                                       .n_layers = shard_map_n_layers(map),
                                       .n_shards = shard_map_n_shards(map),
                                       .verify = config->verify};
    find_pools(plan, map);
    count_shards(plan, map);
    choose_threads(plan, config);
    for (uint32_t p = 0; p < plan->n_pools; p++) {
        struct expert_pool_plan *pool = &plan->pools[p];
        uint32_t least = config->min_slots > 0 ? config->min_slots : 1;
        pool->n_slots = least < pool->n_shards ? least : pool->n_shards;
    }
    if (!plan_fits(plan, bytes))
        return false;
    struct expert_pool_plan *pool;
    while ((pool = pool_to_grow(plan)) != NULL) {
        pool->n_slots++;
        if (!plan_fits(plan, bytes)) {
            pool->n_slots--;
            break;
        }
    }
    return true;
}

void expert_cache_min_size(const struct shard_map *map, const struct expert_cache_config *config,
                           struct expert_cache_size *out)
{
    struct expert_cache_plan plan;
    expert_cache_plan_make(&plan, map, config, 0);
    expert_cache_plan_size(&plan, out);
}

bool expert_cache_fit(const struct shard_map *map, const struct expert_cache_config *config, uint64_t bytes,
                      struct expert_cache_size *out)
{
    struct expert_cache_plan plan;
    bool fits = expert_cache_plan_make(&plan, map, config, bytes);
    expert_cache_plan_size(&plan, out);
    return fits;
}
