/* The expert cache: slots, the reads that fill them, and the walk over one layer's set of experts.
 *
 * All decisions are made on the caller's thread; the reader's thread only reports that a slot's read has landed, so
 * the lock is held for a few instructions and never while the policy runs or a read is submitted. */
#include "storage/expert_cache.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "storage/expert_cache_internal.h"
#include "storage/mapping.h"

enum { NONE = UINT32_MAX };

enum set_state {
    SET_WAITING,   /* not in memory, no slot yet */
    SET_HIT,       /* was in memory when the set began */
    SET_READING,   /* its read was started; the slot tells how far it is */
    SET_DELIVERED, /* borrowed by the caller */
    SET_RELEASED,
};

/* ---- construction ---- */

static void slots_init(struct expert_cache *cache)
{
    struct expert_slot *slot = cache->slots;
    struct io_range *ranges = cache->ranges;
    uint8_t *buffer = cache->arena;
    for (uint32_t p = 0; p < cache->plan.n_pools; p++) {
        const struct expert_pool_plan *plan = &cache->plan.pools[p];
        cache->pools[p].free_slot = (uint32_t)(slot - cache->slots);
        for (uint32_t i = 0; i < plan->n_slots; i++, slot++) {
            slot->job.buffer = buffer;
            slot->ranges = ranges;
            slot->next_free = i + 1 < plan->n_slots ? (uint32_t)(slot - cache->slots) + 1 : NONE;
            buffer += plan->slot_bytes;
            ranges += plan->max_ranges;
        }
    }
}

/* Numbers the shards in pool order and creates the pools' policies. */
static bool pools_init(struct expert_cache *cache)
{
    uint32_t n_layers = cache->plan.n_layers;
    uint32_t *layer_first = malloc((n_layers + (size_t)1) * sizeof(*layer_first));
    if (!layer_first)
        return false;
    uint32_t n_numbered = 0;
    bool ok = true;
    for (uint32_t p = 0; ok && p < cache->plan.n_pools; p++) {
        struct expert_pool *pool = &cache->pools[p];
        pool->first_shard = n_numbered;
        for (uint32_t l = 0; l < n_layers; l++) {
            const struct shard_layer *layer = shard_map_layer(cache->map, l);
            layer_first[l] = n_numbered - pool->first_shard;
            if (layer->n_experts == 0 || expert_cache_plan_pool(&cache->plan, layer->slot_bytes) != p)
                continue;
            cache->layers[l] = (struct expert_cache_layer){p, n_numbered};
            n_numbered += layer->n_experts;
        }
        layer_first[n_layers] = n_numbered - pool->first_shard;
        struct cache_policy_shape shape = expert_cache_plan_shape(&cache->plan, p, layer_first);
        pool->policy_state = cache->plan.policy->create(&shape);
        ok = pool->policy_state != NULL;
    }
    free(layer_first);
    return ok;
}

/* calloc that takes n = 0. */
static void *table(uint64_t n, size_t size)
{
    return calloc(n > 0 ? n : 1, size);
}

static bool tables_init(struct expert_cache *cache)
{
    const struct expert_cache_plan *plan = &cache->plan;
    uint64_t n_ranges = 0;
    for (uint32_t p = 0; p < plan->n_pools; p++)
        n_ranges += (uint64_t)plan->pools[p].n_slots * plan->pools[p].max_ranges;
    cache->layers = table(plan->n_layers, sizeof(*cache->layers));
    cache->slot_of = table(plan->n_shards, sizeof(*cache->slot_of));
    cache->slots = table(cache->size.slots, sizeof(*cache->slots));
    cache->ranges = table(n_ranges, sizeof(*cache->ranges));
    cache->set_state = table(plan->max_experts, sizeof(*cache->set_state));
    if (!cache->layers || !cache->slot_of || !cache->slots || !cache->ranges || !cache->set_state)
        return false;
    memset(cache->slot_of, 0xff, plan->n_shards * sizeof(*cache->slot_of)); /* NONE */
    return true;
}

enum ps_status expert_cache_new(struct expert_cache **out, const struct shard_map *map,
                                struct io_reader *reader, const struct cache_policy *policy,
                                uint32_t min_slots, uint64_t bytes, struct ps_error *err)
{
    *out = NULL;
    struct expert_cache_plan plan;
    struct expert_cache_size size;
    bool fits = expert_cache_plan_make(&plan, map, policy, min_slots, bytes);
    expert_cache_plan_size(&plan, &size);
    if (!fits)
        return ps_error_set(
            err, PS_ERR_BUDGET, "expert cache: %llu bytes hold too few experts: give it %llu or more",
            (unsigned long long)bytes, (unsigned long long)(size.arena_bytes + size.overhead_bytes));
    struct expert_cache *cache = calloc(1, sizeof(*cache));
    if (!cache)
        return ps_error_set(err, PS_ERR_NOMEM, "expert cache: out of memory");
    cache->map = map;
    cache->reader = reader;
    cache->plan = plan;
    cache->size = size;
    cache->failed_slot = NONE;
    pthread_mutex_init(&cache->lock, NULL);
    pthread_cond_init(&cache->landed, NULL);
    if (size.arena_bytes > 0)
        cache->arena = mapping_new(size.arena_bytes);
    if ((size.arena_bytes > 0 && !cache->arena) || !tables_init(cache) || !pools_init(cache)) {
        expert_cache_free(cache);
        return ps_error_set(err, PS_ERR_NOMEM, "expert cache: out of memory: %llu bytes asked",
                            (unsigned long long)(size.arena_bytes + size.overhead_bytes));
    }
    slots_init(cache);
    *out = cache;
    return PS_OK;
}

static void wait_for_reads(struct expert_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    while (cache->n_loading > 0)
        pthread_cond_wait(&cache->landed, &cache->lock);
    pthread_mutex_unlock(&cache->lock);
}

void expert_cache_free(struct expert_cache *cache)
{
    if (!cache)
        return;
    wait_for_reads(cache);
    for (uint32_t p = 0; p < cache->plan.n_pools; p++)
        if (cache->pools[p].policy_state)
            cache->plan.policy->destroy(cache->pools[p].policy_state);
    mapping_free(cache->arena, cache->size.arena_bytes);
    free(cache->layers);
    free(cache->slot_of);
    free(cache->slots);
    free(cache->ranges);
    free(cache->set_state);
    pthread_cond_destroy(&cache->landed);
    pthread_mutex_destroy(&cache->lock);
    free(cache);
}

/* ---- slots ---- */

static void leave_slot(struct expert_cache *cache, uint32_t pool, struct expert_slot *slot)
{
    cache->plan.policy->removed(cache->pools[pool].policy_state,
                                slot->shard - cache->pools[pool].first_shard);
    cache->slot_of[slot->shard] = NONE;
    slot->state = SLOT_EMPTY;
    slot->pinned = false;
    slot->next_free = cache->pools[pool].free_slot;
    cache->pools[pool].free_slot = (uint32_t)(slot - cache->slots);
}

struct victim_search {
    const struct expert_cache *cache;
    uint32_t first_shard; /* of the pool */
};

static bool may_evict(void *ctx, uint32_t shard)
{
    const struct victim_search *search = ctx;
    return !search->cache->slots[search->cache->slot_of[search->first_shard + shard]].pinned;
}

/* An empty slot of the pool, made by eviction if need be; NULL when all are pinned. */
static struct expert_slot *take_slot(struct expert_cache *cache, uint32_t pool_index)
{
    struct expert_pool *pool = &cache->pools[pool_index];
    if (pool->free_slot == NONE) {
        struct victim_search search = {cache, pool->first_shard};
        uint32_t victim = cache->plan.policy->victim(pool->policy_state, may_evict, &search);
        if (victim == UINT32_MAX)
            return NULL;
        leave_slot(cache, pool_index, &cache->slots[cache->slot_of[pool->first_shard + victim]]);
        pthread_mutex_lock(&cache->lock);
        cache->stats.evictions++;
        pthread_mutex_unlock(&cache->lock);
    }
    struct expert_slot *slot = &cache->slots[pool->free_slot];
    pool->free_slot = slot->next_free;
    return slot;
}

/* On the reader's thread. */
static void read_landed(struct io_job *job)
{
    struct expert_cache *cache = job->owner;
    struct expert_slot *slot = (struct expert_slot *)((char *)job - offsetof(struct expert_slot, job));
    pthread_mutex_lock(&cache->lock);
    slot->state = job->status == PS_OK ? SLOT_READY : SLOT_FAILED;
    if (job->status != PS_OK && job->status != PS_ERR_CANCELLED && cache->failed_slot == NONE)
        cache->failed_slot = (uint32_t)(slot - cache->slots);
    cache->n_loading--;
    pthread_cond_signal(&cache->landed);
    pthread_mutex_unlock(&cache->lock);
}

static void start_read(struct expert_cache *cache, struct expert_slot *slot, uint32_t layer, uint32_t expert)
{
    const struct expert_cache_layer *place = &cache->layers[layer];
    slot->shard = place->first_shard + expert;
    slot->pinned = true;
    cache->slot_of[slot->shard] = (uint32_t)(slot - cache->slots);
    struct expert_pool *pool = &cache->pools[place->pool];
    cache->plan.policy->inserted(pool->policy_state, slot->shard - pool->first_shard);

    struct shard_location location;
    shard_map_locate(cache->map, layer, expert, &location);
    memcpy(slot->ranges, location.ranges, location.n_ranges * sizeof(*slot->ranges));
    slot->job = (struct io_job){
        .ranges = slot->ranges,
        .n_ranges = location.n_ranges,
        .priority = IO_DEMAND,
        .buffer = slot->job.buffer,
        .done = read_landed,
        .owner = cache,
    };
    pthread_mutex_lock(&cache->lock);
    slot->state = SLOT_LOADING;
    cache->n_loading++;
    pthread_mutex_unlock(&cache->lock);
    io_reader_submit(cache->reader, &slot->job);
}

/* ---- the walk over a set ---- */

static struct expert_slot *set_slot(const struct expert_cache *cache, const struct expert_set *set,
                                    uint32_t index)
{
    return &cache->slots[cache->slot_of[cache->layers[set->layer].first_shard + set->ids[index]]];
}

/* Starts reads, in the order of the ids, for as many waiting experts as there are slots. */
static void start_waiting(struct expert_cache *cache, struct expert_set *set)
{
    for (; set->next_read < set->n; set->next_read++) {
        if (cache->set_state[set->next_read] != SET_WAITING)
            continue;
        struct expert_slot *slot = take_slot(cache, cache->layers[set->layer].pool);
        if (!slot)
            return;
        start_read(cache, slot, set->layer, set->ids[set->next_read]);
        cache->set_state[set->next_read] = SET_READING;
    }
}

void expert_set_begin(struct expert_cache *cache, struct expert_set *set, uint32_t layer, const uint32_t *ids,
                      uint32_t n, uint64_t token)
{
    *set = (struct expert_set){.layer = layer, .ids = ids, .n = n};
    if (n == 0)
        return;
    const struct expert_cache_layer *place = &cache->layers[layer];
    struct expert_pool *pool = &cache->pools[place->pool];
    uint32_t hits = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t shard = place->first_shard + ids[i];
        cache->plan.policy->access(pool->policy_state, shard - pool->first_shard, token);
        bool hit = cache->slot_of[shard] != NONE;
        if (hit)
            cache->slots[cache->slot_of[shard]].pinned = true;
        cache->set_state[i] = hit ? SET_HIT : SET_WAITING;
        hits += hit;
    }
    pthread_mutex_lock(&cache->lock);
    cache->stats.hits += hits;
    cache->stats.misses += n - hits;
    pthread_mutex_unlock(&cache->lock);
    start_waiting(cache, set);
}

/* Hands out experts in a given state whose slots are ready; returns the new number of views. */
static uint32_t deliver(struct expert_cache *cache, struct expert_set *set, enum set_state from,
                        struct expert_view *views, uint32_t n_views, uint32_t max)
{
    for (uint32_t i = 0; i < set->n && n_views < max; i++) {
        if (cache->set_state[i] != from || set_slot(cache, set, i)->state != SLOT_READY)
            continue;
        cache->set_state[i] = SET_DELIVERED;
        views[n_views++].index = i;
    }
    return n_views;
}

/* Under the lock. */
static uint32_t deliver_ready(struct expert_cache *cache, struct expert_set *set, struct expert_view *views,
                              uint32_t max)
{
    if (cache->failed_slot != NONE)
        return 0;
    uint32_t n_views = deliver(cache, set, SET_HIT, views, 0, max);
    return deliver(cache, set, SET_READING, views, n_views, max);
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void view_slot(const struct expert_cache *cache, const struct expert_set *set,
                      struct expert_view *view)
{
    struct shard_location location;
    view->expert = set->ids[view->index];
    view->shard = shard_map_layer(cache->map, set->layer)->first_shard + view->expert;
    shard_map_locate(cache->map, set->layer, view->expert, &location);
    const uint8_t *buffer = set_slot(cache, set, view->index)->job.buffer;
    for (uint32_t part = 0; part < SHARD_N_PARTS; part++)
        view->part[part] =
            location.part_offset[part] == UINT64_MAX ? NULL : buffer + location.part_offset[part];
}

uint32_t expert_set_next(struct expert_cache *cache, struct expert_set *set, struct expert_view *views,
                         uint32_t max)
{
    if (set->n_delivered == set->n)
        return 0;
    pthread_mutex_lock(&cache->lock);
    uint32_t n_views = deliver_ready(cache, set, views, max);
    if (n_views == 0 && cache->n_loading > 0) {
        double start = seconds_now();
        do {
            pthread_cond_wait(&cache->landed, &cache->lock);
            n_views = deliver_ready(cache, set, views, max);
        } while (n_views == 0 && cache->n_loading > 0);
        cache->stats.stall_s += seconds_now() - start;
    }
    set->starved = n_views == 0 && cache->failed_slot == NONE;
    pthread_mutex_unlock(&cache->lock);
    for (uint32_t i = 0; i < n_views; i++)
        view_slot(cache, set, &views[i]);
    set->n_delivered += n_views;
    return n_views;
}

static bool set_has_failed(struct expert_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    bool failed = cache->failed_slot != NONE;
    pthread_mutex_unlock(&cache->lock);
    return failed;
}

void expert_set_release(struct expert_cache *cache, struct expert_set *set, const struct expert_view *views,
                        uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        set_slot(cache, set, views[i].index)->pinned = false;
        cache->set_state[views[i].index] = SET_RELEASED;
    }
    if (set->next_read < set->n && !set_has_failed(cache))
        start_waiting(cache, set);
}

static void cancel_reads(struct expert_cache *cache, const struct expert_set *set)
{
    for (uint32_t i = 0; i < set->n; i++) {
        if (cache->set_state[i] != SET_READING)
            continue;
        struct expert_slot *slot = set_slot(cache, set, i);
        pthread_mutex_lock(
            &cache->lock); /* while it is held, the job cannot be done and forgotten by the reader */
        if (slot->state == SLOT_LOADING)
            io_reader_cancel(cache->reader, &slot->job);
        pthread_mutex_unlock(&cache->lock);
    }
    wait_for_reads(cache);
}

static enum ps_status set_error(const struct expert_cache *cache, const struct expert_set *set,
                                struct ps_error *err)
{
    if (cache->failed_slot != NONE) {
        const struct expert_slot *slot = &cache->slots[cache->failed_slot];
        struct ps_error cause;
        enum ps_status status = io_reader_job_error(cache->reader, &slot->job, &cause);
        return ps_error_set(err, status, "layer %u, expert %u: %s", set->layer,
                            slot->shard - cache->layers[set->layer].first_shard, cause.message);
    }
    if (set->starved)
        return ps_error_set(
            err, PS_ERR_ARGUMENT,
            "layer %u: all slots of the expert cache are borrowed: release views before the next",
            set->layer);
    return PS_OK;
}

enum ps_status expert_set_end(struct expert_cache *cache, struct expert_set *set, struct ps_error *err)
{
    if (set->n == 0)
        return PS_OK;
    cancel_reads(cache, set);
    enum ps_status status = set_error(cache, set, err);
    for (uint32_t i = 0; i < set->n; i++) {
        if (cache->set_state[i] == SET_WAITING || cache->set_state[i] == SET_RELEASED)
            continue;
        struct expert_slot *slot = set_slot(cache, set, i);
        slot->pinned = false;
        if (slot->state == SLOT_FAILED)
            leave_slot(cache, cache->layers[set->layer].pool, slot);
    }
    cache->failed_slot = NONE;
    set->n = 0;
    return status;
}

/* ---- what it did ---- */

void expert_cache_get_stats(struct expert_cache *cache, struct expert_cache_stats *stats)
{
    pthread_mutex_lock(&cache->lock);
    *stats = cache->stats;
    pthread_mutex_unlock(&cache->lock);
}

void expert_cache_reset_stats(struct expert_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    cache->stats = (struct expert_cache_stats){0};
    pthread_mutex_unlock(&cache->lock);
}

void expert_cache_get_size(const struct expert_cache *cache, struct expert_cache_size *size)
{
    *size = cache->size;
}
