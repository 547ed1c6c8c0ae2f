/* Expert cache, of a packed container: what is read is checked and unpacked in its slot, and read once more if it is damaged,
 * before the slot is ready. */
#include "storage/expert_cache_internal.h"

#include <stddef.h>
#include <stdlib.h>

bool expert_cache_unpack_init(struct expert_cache *cache)
{
    const struct expert_cache_plan *plan = &cache->plan;
    if (!plan->unpacks)
        return true;
    struct unpacker_config config = plan->unpacker;
    config.n_jobs = cache->size.slots;
    cache->unpack = calloc(cache->size.slots, sizeof(*cache->unpack));
    if (plan->verify == EXPERT_VERIFY_FIRST)
        cache->verified = calloc(expert_cache_verified_bytes(plan), 1);
    if (!cache->unpack || (plan->verify == EXPERT_VERIFY_FIRST && !cache->verified))
        return false;
    return unpacker_new(&cache->unpacker, &config, NULL) == PS_OK;
}

void expert_cache_unpack_deinit(struct expert_cache *cache)
{
    unpacker_free(cache->unpacker);
    free(cache->unpack);
    free(cache->verified);
}

/* ---- on threads of the reader ---- */

static struct unpack_job *unpack_of(const struct io_job *job)
{
    const struct expert_cache *cache = job->owner;
    const struct expert_slot *slot =
        (const struct expert_slot *)((const char *)job - offsetof(struct expert_slot, job));
    return &cache->unpack[expert_cache_slot_index(cache, slot)];
}

static void on_progress(struct io_job *job, uint64_t bytes)
{
    unpacker_landed(((struct expert_cache *)job->owner)->unpacker, unpack_of(job), bytes);
}

static void on_read(struct io_job *job)
{
    unpacker_ended(((struct expert_cache *)job->owner)->unpacker, unpack_of(job), job->status == PS_OK);
}

/* ---- on threads of the unpacker ---- */

/* The lock keeps others from cancelling or promoting a job that is between its two reads. */
static void read_again(struct expert_cache *cache, struct expert_slot *slot)
{
    slot->reread = true;
    if (slot->wanted)
        slot->job.priority = IO_DEMAND;
    io_reader_submit(cache->reader, &slot->job);
}

static void on_unpacked(struct unpack_job *unpack)
{
    struct expert_slot *slot = unpack->owner;
    struct expert_cache *cache = slot->job.owner;
    pthread_mutex_lock(&cache->lock);
    if (unpack->outcome == UNPACK_CORRUPT && !slot->reread && !slot->cancelled) {
        read_again(cache, slot);
    } else {
        slot->damaged = unpack->outcome == UNPACK_CORRUPT;
        if (unpack->outcome == UNPACK_OK) {
            cache->stats.reread_sound += slot->reread;
            if (unpack->check && cache->verified)
                cache->verified[slot->shard / 8] |= (uint8_t)(1u << slot->shard % 8);
        }
        expert_cache_end_loading(cache, slot, unpack->outcome == UNPACK_OK);
    }
    pthread_mutex_unlock(&cache->lock);
}

/* ---- on the caller's ---- */

static bool must_check(const struct expert_cache *cache, uint32_t shard)
{
    if (cache->plan.verify != EXPERT_VERIFY_FIRST)
        return cache->plan.verify == EXPERT_VERIFY_ALWAYS;
    return !(cache->verified[shard / 8] >> shard % 8 & 1);
}

void expert_cache_unpack_begin(struct expert_cache *cache, struct expert_slot *slot,
                               const struct shard_location *location)
{
    bool check = must_check(cache, slot->shard);
    if (!check && !location->packed->compressed)
        return;
    slot->job.landed = on_progress;
    slot->job.done = on_read;
    cache->unpack[expert_cache_slot_index(cache, slot)] = (struct unpack_job){
        .layout = location->packed,
        .slot = slot->job.buffer,
        .stored_at = location->ranges[0].at,
        .stored_bytes = location->ranges[0].length,
        .hash = location->hash,
        .check = check,
        .urgent = slot->job.priority == IO_DEMAND,
        .done = on_unpacked,
        .owner = slot,
    };
}

void expert_cache_unpack_promote(struct expert_cache *cache, struct expert_slot *slot)
{
    if (slot->job.landed) /* it reports to the unpacker */
        unpacker_promote(cache->unpacker, &cache->unpack[expert_cache_slot_index(cache, slot)]);
}

enum ps_status expert_cache_damage(const struct expert_cache *cache, const struct expert_slot *slot,
                                   struct ps_error *err)
{
    const struct io_range *range = &slot->ranges[0];
    bool checked = cache->unpack[expert_cache_slot_index(cache, slot)].check;
    return ps_error_set(err, PS_ERR_FORMAT,
                        "%s: extent at offset %llu: %s: copy the file again, or pack the model again",
                        io_reader_file_path(cache->reader, range->file), (unsigned long long)range->offset,
                        checked ? "checksum differs" : "cannot be unpacked");
}

void expert_cache_unpack_stats(struct expert_cache *cache, struct expert_cache_stats *stats)
{
    if (!cache->unpacker)
        return;
    struct unpacker_stats now;
    unpacker_get_stats(cache->unpacker, &now);
    stats->checked = now.checked - cache->unpacker_base.checked;
    stats->bytes_unpacked = now.bytes_unpacked - cache->unpacker_base.bytes_unpacked;
    stats->check_s = now.check_s - cache->unpacker_base.check_s;
    stats->unpack_s = now.unpack_s - cache->unpacker_base.unpack_s;
}
