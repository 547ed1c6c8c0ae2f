/* Expert cache, ahead of the walk: experts read before their router asked for them, because they were predicted or
 * because an earlier run used them, and what becomes of them.
 *
 * A slot read ahead is held until its layer begins. Then it is claimed, or it was in vain: a read not yet issued is
 * taken back at no cost, one under way is cut short, one that has landed stays as an ordinary, evictable resident.
 * At most a quarter of a pool's slots are held, so that the current token always finds room. */
#include "storage/expert_cache_internal.h"

enum { NONE = UINT32_MAX };

static void unhold(struct expert_cache *cache, uint32_t at)
{
    struct expert_slot *slot = &cache->slots[cache->held[at]];
    cache->pools[cache->layers[slot->layer].pool].n_held--;
    cache->held[at] = cache->held[--cache->n_held];
}

static void add_wasted(struct expert_cache *cache, uint64_t bytes)
{
    pthread_mutex_lock(&cache->lock);
    cache->stats.bytes_wasted += bytes;
    pthread_mutex_unlock(&cache->lock);
}

/* Takes back a read of which nothing was issued, and empties its slot. */
static bool take_back(struct expert_cache *cache, struct expert_slot *slot)
{
    if (slot->state != SLOT_LOADING || !io_reader_withdraw(cache->reader, &slot->job))
        return false;
    pthread_mutex_lock(&cache->lock);
    cache->n_ahead--;
    cache->stats.withdrawn++;
    pthread_mutex_unlock(&cache->lock);
    expert_cache_leave_slot(cache, slot);
    return true;
}

/* While the lock is held the job cannot be done and forgotten by the reader. */
static void cut_short(struct expert_cache *cache, struct expert_slot *slot)
{
    pthread_mutex_lock(&cache->lock);
    if (slot->state == SLOT_LOADING) {
        io_reader_cancel(cache->reader, &slot->job);
        slot->cancelled = true;
    }
    pthread_mutex_unlock(&cache->lock);
}

void expert_cache_collect(struct expert_cache *cache)
{
    for (uint32_t i = 0; i < cache->n_held;) {
        struct expert_slot *slot = &cache->slots[cache->held[i]];
        if (slot->state == SLOT_LOADING || slot->ahead == AHEAD_HELD) {
            i++;
            continue;
        }
        add_wasted(cache, slot->job.bytes);
        unhold(cache, i);
        if (slot->state == SLOT_FAILED)
            expert_cache_leave_slot(cache, slot);
    }
    while (cache->n_warm >
           0) { /* preloads that have landed need no watching; failed ones give their slot back */
        struct expert_slot *slot = &cache->slots[cache->warm[cache->n_warm - 1]];
        if (slot->ahead == AHEAD_WARM && slot->state == SLOT_LOADING)
            break;
        cache->n_warm--;
        if (slot->ahead == AHEAD_WARM && slot->state == SLOT_FAILED)
            expert_cache_leave_slot(cache, slot);
    }
}

bool expert_cache_yield_warm(struct expert_cache *cache, uint32_t pool_index)
{
    for (uint32_t i = cache->n_warm; i-- > 0;) {
        struct expert_slot *slot = &cache->slots[cache->warm[i]];
        if (slot->ahead != AHEAD_WARM || cache->layers[slot->layer].pool != pool_index)
            continue;
        if (!take_back(cache, slot))
            return false; /* reads start in order: what was submitted earlier has begun as well */
        for (cache->n_warm--; i < cache->n_warm; i++)
            cache->warm[i] = cache->warm[i + 1];
        return true;
    }
    return false;
}

static void wait_until_landed(struct expert_cache *cache, struct expert_slot *slot)
{
    pthread_mutex_lock(&cache->lock);
    if (slot->state == SLOT_LOADING)
        expert_cache_unpack_promote(cache, slot);
    while (slot->state == SLOT_LOADING)
        pthread_cond_wait(&cache->landed, &cache->lock);
    pthread_mutex_unlock(&cache->lock);
}

static bool drop_from_held(struct expert_cache *cache, uint32_t slot_index)
{
    for (uint32_t i = 0; i < cache->n_held; i++)
        if (cache->held[i] == slot_index) {
            unhold(cache, i);
            return true;
        }
    return false;
}

/* A read under way becomes the set's own. False: it has landed meanwhile. */
static bool want(struct expert_cache *cache, struct expert_slot *slot)
{
    pthread_mutex_lock(&cache->lock);
    bool loading = slot->state == SLOT_LOADING;
    if (loading) {
        slot->wanted = true;
        slot->ahead = AHEAD_NONE;
        cache->n_ahead--;
        cache->n_loading++;
        io_reader_promote(cache->reader, &slot->job);
        expert_cache_unpack_promote(cache, slot);
    }
    pthread_mutex_unlock(&cache->lock);
    return loading;
}

static uint64_t slot_read_bytes(const struct expert_slot *slot)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < slot->job.n_ranges; i++)
        bytes += io_range_span(slot->ranges[i].offset, slot->ranges[i].length);
    return bytes;
}

enum expert_found expert_cache_claim(struct expert_cache *cache, uint32_t layer, uint32_t expert,
                                     struct expert_cache_stats *found)
{
    uint32_t index = expert_cache_slot_of(cache, layer, expert);
    if (index == NONE) {
        found->misses++;
        return EXPERT_ABSENT;
    }
    struct expert_slot *slot = &cache->slots[index];
    if (slot->cancelled)
        wait_until_landed(cache, slot);         /* cut short a token ago; some reads of it were under way */
    bool counted = slot->ahead == AHEAD_PASSED; /* as wasted */
    if (slot->ahead != AHEAD_NONE && drop_from_held(cache, index))
        counted = false;
    if (slot->state == SLOT_LOADING && want(cache, slot)) {
        slot->pinned = true;
        found->late++;
        found->bytes_late += slot_read_bytes(slot);
        return EXPERT_LANDING;
    }
    if (slot->state == SLOT_FAILED) {
        if (!counted)
            add_wasted(cache, slot->job.bytes);
        expert_cache_leave_slot(cache, slot);
        found->misses++;
        return EXPERT_ABSENT;
    }
    slot->pinned = true;
    found->hits++;
    if (slot->ahead != AHEAD_NONE)
        found->bytes_useful += slot->job.bytes;
    if (counted)
        found->bytes_wasted += slot->job.bytes;
    slot->ahead = AHEAD_NONE;
    return EXPERT_READY;
}

void expert_cache_pass_layer(struct expert_cache *cache, uint32_t layer)
{
    for (uint32_t i = 0; i < cache->n_held;) {
        struct expert_slot *slot = &cache->slots[cache->held[i]];
        if (slot->layer != layer || slot->ahead != AHEAD_HELD) {
            i++;
            continue;
        }
        if (take_back(cache, slot)) {
            unhold(cache, i);
            continue;
        }
        cut_short(cache, slot);
        slot->ahead = AHEAD_PASSED;
        i++;
    }
    expert_cache_collect(cache);
}

enum expert_prefetch expert_cache_prefetch(struct expert_cache *cache, uint32_t layer, uint32_t expert)
{
    const struct expert_cache_layer *place = &cache->layers[layer];
    if (expert_cache_slot_of(cache, layer, expert) != NONE)
        return EXPERT_PREFETCH_PRESENT;
    struct expert_pool *pool = &cache->pools[place->pool];
    uint32_t n_slots = cache->plan.pools[place->pool].n_slots;
    if (cache->n_held == EXPERT_CACHE_MAX_HELD || (pool->n_held + 1) * EXPERT_CACHE_HELD_SHARE > n_slots)
        return EXPERT_PREFETCH_NO_SLOT;
    struct expert_slot *slot = expert_cache_take_slot(cache, place->pool);
    if (!slot)
        return EXPERT_PREFETCH_NO_SLOT;
    pool->n_held++;
    cache->held[cache->n_held++] = expert_cache_slot_index(cache, slot);
    expert_cache_start_read(cache, slot, layer, expert, IO_SPECULATIVE);
    return EXPERT_PREFETCH_STARTED;
}

void expert_cache_prime(struct expert_cache *cache, uint32_t layer, uint32_t expert, double score)
{
    const struct expert_cache_layer *place = &cache->layers[layer];
    struct expert_pool *pool = &cache->pools[place->pool];
    cache->plan.policy->prime(pool->policy_state, place->first_shard + expert - pool->first_shard, score);
}

bool expert_cache_preload(struct expert_cache *cache, uint32_t layer, uint32_t expert)
{
    const struct expert_cache_layer *place = &cache->layers[layer];
    struct expert_pool *pool = &cache->pools[place->pool];
    if (expert_cache_slot_of(cache, layer, expert) != NONE)
        return true;
    if (cache->n_warm == cache->size.slots)
        expert_cache_collect(cache);
    if (pool->free_slot == NONE || cache->n_warm == cache->size.slots)
        return false;
    struct expert_slot *slot = &cache->slots[pool->free_slot];
    pool->free_slot = slot->next_free;
    cache->warm[cache->n_warm++] = expert_cache_slot_index(cache, slot);
    expert_cache_start_read(cache, slot, layer, expert, IO_BACKGROUND);
    return true;
}

void expert_cache_stop_ahead(struct expert_cache *cache)
{
    for (uint32_t s = 0; cache->slots && s < cache->size.slots; s++) {
        struct expert_slot *slot = &cache->slots[s];
        if (slot->state == SLOT_LOADING && !slot->wanted && !take_back(cache, slot))
            cut_short(cache, slot);
    }
    pthread_mutex_lock(&cache->lock);
    while (cache->n_ahead > 0)
        pthread_cond_wait(&cache->landed, &cache->lock);
    pthread_mutex_unlock(&cache->lock);
}

enum expert_presence expert_cache_presence(struct expert_cache *cache, uint32_t layer, uint32_t expert)
{
    uint32_t index = expert_cache_slot_of(cache, layer, expert);
    if (index == NONE)
        return EXPERT_MISSING;
    return cache->slots[index].ahead == AHEAD_HELD ? EXPERT_HELD : EXPERT_KEPT;
}

bool expert_cache_is_resident(struct expert_cache *cache, uint32_t layer, uint32_t expert)
{
    uint32_t index = expert_cache_slot_of(cache, layer, expert);
    return index != NONE && cache->slots[index].state == SLOT_READY;
}

double expert_cache_score(const struct expert_cache *cache, uint32_t layer, uint32_t expert)
{
    const struct expert_cache_layer *place = &cache->layers[layer];
    const struct expert_pool *pool = &cache->pools[place->pool];
    return cache->plan.policy->score(pool->policy_state, place->first_shard + expert - pool->first_shard);
}
