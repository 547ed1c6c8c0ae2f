/* The expert cache: slots, the reads that fill them, and the walk over one layer's set of experts.
 *
 * All decisions are made on the caller's thread; threads of reader and unpacker only report that a slot is loaded, so
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
    cache->warm = table(cache->size.slots, sizeof(*cache->warm));
    if (!cache->layers || !cache->slot_of || !cache->slots || !cache->ranges || !cache->set_state ||
        !cache->warm)
        return false;
    memset(cache->slot_of, 0xff, plan->n_shards * sizeof(*cache->slot_of)); /* NONE */
    return true;
}

enum ps_status expert_cache_new(struct expert_cache **out, const struct shard_map *map,
                                struct io_reader *reader, const struct expert_cache_config *config,
                                uint64_t bytes, struct ps_error *err)
{
    *out = NULL;
    struct expert_cache_plan plan;
    struct expert_cache_size size;
    bool fits = expert_cache_plan_make(&plan, map, config, bytes);
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
    if ((size.arena_bytes > 0 && !cache->arena) || !tables_init(cache) || !pools_init(cache) ||
        !expert_cache_unpack_init(cache)) {
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
    expert_cache_stop_ahead(cache);
    wait_for_reads(cache);
    expert_cache_unpack_deinit(cache);
    for (uint32_t p = 0; p < cache->plan.n_pools; p++)
        if (cache->pools[p].policy_state)
            cache->plan.policy->destroy(cache->pools[p].policy_state);
    mapping_free(cache->arena, cache->size.arena_bytes);
    free(cache->layers);
    free(cache->slot_of);
    free(cache->slots);
    free(cache->ranges);
    free(cache->set_state);
    free(cache->warm);
    pthread_cond_destroy(&cache->landed);
    pthread_mutex_destroy(&cache->lock);
    free(cache);
}

/* ---- slots ---- */

uint32_t expert_cache_slot_index(const struct expert_cache *cache, const struct expert_slot *slot)
{
    return (uint32_t)(slot - cache->slots);
}

uint32_t expert_cache_slot_of(const struct expert_cache *cache, uint32_t layer, uint32_t expert)
{
    return cache->slot_of[cache->layers[layer].first_shard + expert];
}

void expert_cache_leave_slot(struct expert_cache *cache, struct expert_slot *slot)
{
    struct expert_pool *pool = &cache->pools[cache->layers[slot->layer].pool];
    cache->plan.policy->removed(pool->policy_state, slot->shard - pool->first_shard);
    cache->slot_of[slot->shard] = NONE;
    slot->state = SLOT_EMPTY;
    slot->pinned = false;
    slot->next_free = pool->free_slot;
    pool->free_slot = expert_cache_slot_index(cache, slot);
}

struct victim_search {
    const struct expert_cache *cache;
    uint32_t first_shard; /* of the pool */
};

static bool may_evict(void *ctx, uint32_t shard)
{
    const struct victim_search *search = ctx;
    const struct expert_slot *slot =
        &search->cache->slots[search->cache->slot_of[search->first_shard + shard]];
    return !slot->pinned && slot->ahead != AHEAD_HELD && slot->state == SLOT_READY;
}

static bool evict_one(struct expert_cache *cache, struct expert_pool *pool)
{
    struct victim_search search = {cache, pool->first_shard};
    uint32_t victim = cache->plan.policy->victim(pool->policy_state, may_evict, &search);
    if (victim == UINT32_MAX)
        return false;
    struct expert_slot *slot = &cache->slots[cache->slot_of[pool->first_shard + victim]];
    pthread_mutex_lock(&cache->lock);
    cache->stats.evictions++;
    if (slot->ahead == AHEAD_WARM)
        cache->stats.bytes_wasted += slot->job.bytes;
    pthread_mutex_unlock(&cache->lock);
    expert_cache_leave_slot(cache, slot);
    return true;
}

struct expert_slot *expert_cache_take_slot(struct expert_cache *cache, uint32_t pool_index)
{
    struct expert_pool *pool = &cache->pools[pool_index];
    if (pool->free_slot == NONE)
        expert_cache_collect(cache);
    if (pool->free_slot == NONE && !expert_cache_yield_warm(cache, pool_index) && !evict_one(cache, pool))
        return NULL;
    struct expert_slot *slot = &cache->slots[pool->free_slot];
    pool->free_slot = slot->next_free;
    return slot;
}

void expert_cache_end_loading(struct expert_cache *cache, struct expert_slot *slot, bool ok)
{
    if (slot->wanted && !ok && slot->job.status != PS_ERR_CANCELLED && cache->failed_slot == NONE)
        cache->failed_slot = expert_cache_slot_index(cache, slot);
    if (slot->ahead == AHEAD_WARM)
        cache->stats.bytes_warm += slot->job.bytes;
    slot->state = ok ? SLOT_READY : SLOT_FAILED;
    uint32_t *count = slot->wanted ? &cache->n_loading : &cache->n_ahead;
    --*count;
    slot->wanted = false;
    pthread_cond_signal(&cache->landed);
}

/* On the reader's thread, where nothing is left to do but to read. */
static void read_landed(struct io_job *job)
{
    struct expert_cache *cache = job->owner;
    struct expert_slot *slot = (struct expert_slot *)((char *)job - offsetof(struct expert_slot, job));
    pthread_mutex_lock(&cache->lock);
    expert_cache_end_loading(cache, slot, job->status == PS_OK);
    pthread_mutex_unlock(&cache->lock);
}

void expert_cache_start_read(struct expert_cache *cache, struct expert_slot *slot, uint32_t layer,
                             uint32_t expert, enum io_priority priority)
{
    const struct expert_cache_layer *place = &cache->layers[layer];
    slot->shard = place->first_shard + expert;
    slot->layer = layer;
    slot->pinned = priority == IO_DEMAND;
    slot->ahead = AHEAD_NONE;
    if (priority != IO_DEMAND)
        slot->ahead = priority == IO_SPECULATIVE ? AHEAD_HELD : AHEAD_WARM;
    slot->cancelled = slot->reread = slot->damaged = false;
    cache->slot_of[slot->shard] = expert_cache_slot_index(cache, slot);
    struct expert_pool *pool = &cache->pools[place->pool];
    cache->plan.policy->inserted(pool->policy_state, slot->shard - pool->first_shard);

    struct shard_location location;
    shard_map_locate(cache->map, layer, expert, &location);
    memcpy(slot->ranges, location.ranges, location.n_ranges * sizeof(*slot->ranges));
    slot->job = (struct io_job){
        .ranges = slot->ranges,
        .n_ranges = location.n_ranges,
        .priority = priority,
        .buffer = slot->job.buffer,
        .done = read_landed,
        .owner = cache,
    };
    pthread_mutex_lock(&cache->lock);
    if (location.packed && cache->unpacker)
        expert_cache_unpack_begin(cache, slot, &location);
    slot->state = SLOT_LOADING;
    slot->wanted = priority == IO_DEMAND;
    if (slot->wanted)
        cache->n_loading++;
    else
        cache->n_ahead++;
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
        struct expert_slot *slot = expert_cache_take_slot(cache, cache->layers[set->layer].pool);
        if (!slot)
            return;
        expert_cache_start_read(cache, slot, set->layer, set->ids[set->next_read], IO_DEMAND);
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
    struct expert_cache_stats found = {0};
    for (uint32_t i = 0; i < n; i++) {
        cache->plan.policy->access(pool->policy_state, place->first_shard + ids[i] - pool->first_shard,
                                   token);
        static const enum set_state states[] = {
            [EXPERT_ABSENT] = SET_WAITING, [EXPERT_READY] = SET_HIT, [EXPERT_LANDING] = SET_READING};
        cache->set_state[i] = (uint8_t)states[expert_cache_claim(cache, layer, ids[i], &found)];
    }
    pthread_mutex_lock(&cache->lock);
    cache->stats.hits += found.hits;
    cache->stats.late += found.late;
    cache->stats.misses += found.misses;
    cache->stats.bytes_useful += found.bytes_useful;
    cache->stats.bytes_late += found.bytes_late;
    cache->stats.bytes_wasted -= found.bytes_wasted; /* were counted as such when their layer passed */
    pthread_mutex_unlock(&cache->lock);
    expert_cache_pass_layer(cache, layer);
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

/* Waits until a read lands; under the lock. The set may still get a slot from a read ahead that lands. */
static bool wait_for_landing(struct expert_cache *cache, struct expert_set *set)
{
    bool slot_to_come = set->next_read < set->n && cache->n_ahead > 0;
    if (cache->failed_slot != NONE || (cache->n_loading == 0 && !slot_to_come))
        return false;
    pthread_cond_wait(&cache->landed, &cache->lock);
    if (set->next_read < set->n && cache->failed_slot == NONE) {
        pthread_mutex_unlock(&cache->lock);
        start_waiting(cache, set);
        pthread_mutex_lock(&cache->lock);
    }
    return true;
}

uint32_t expert_set_next(struct expert_cache *cache, struct expert_set *set, struct expert_view *views,
                         uint32_t max)
{
    if (set->n_delivered == set->n)
        return 0;
    pthread_mutex_lock(&cache->lock);
    uint32_t n_views = deliver_ready(cache, set, views, max);
    if (n_views == 0) {
        double start = seconds_now();
        while (n_views == 0 && wait_for_landing(cache, set))
            n_views = deliver_ready(cache, set, views, max);
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
        enum ps_status status = slot->damaged ? expert_cache_damage(cache, slot, &cause)
                                              : io_reader_job_error(cache->reader, &slot->job, &cause);
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
            expert_cache_leave_slot(cache, slot);
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
    expert_cache_unpack_stats(cache, stats);
    pthread_mutex_unlock(&cache->lock);
}

void expert_cache_reset_stats(struct expert_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    cache->stats = (struct expert_cache_stats){0};
    if (cache->unpacker)
        unpacker_get_stats(cache->unpacker, &cache->unpacker_base);
    pthread_mutex_unlock(&cache->lock);
}

void expert_cache_get_size(const struct expert_cache *cache, struct expert_cache_size *size)
{
    *size = cache->size;
}
