#include "runtime/plan.h"

#include "runtime/kv_cache.h"
#include "runtime/machine.h"
#include "runtime/predictor.h"
#include "runtime/scratch.h"
#include "runtime/size_text.h"
#include "runtime/stored_rows.h"
#include "runtime/thread_choice.h"
#include "runtime/trunk.h"

enum {
    KIB = 1024,
    MIB = 1024 * KIB,
    DEFAULT_CTX = 4096,
    DEFAULT_CHUNK = 512,
    MAX_THREADS = 256,
    /* Measured growth between planning and the end of a run: code touched for the first time, stdio, statistics. */
    PROCESS_GROWTH = 384 * KIB,
    THREAD_STACK = 16 * KIB, /* touched part, per compute or reader thread */
    TILE_STACK =
        96 * KIB, /* beside it, per compute thread: unpacked rows of products for more than one token */
    READER_BYTES = 96 * KIB,
    /* Named minima: this is added, as resident size differs from start to start, and they are rounded up. */
    MINIMUM_MARGIN = 160 * KIB,
    MINIMUM_STEP = 64 * KIB,
};

enum ps_status plan_resolve_params(const struct ps_model *model, const struct ps_model_params *params,
                                   struct ps_model_params *r, struct ps_error *err)
{
    *r = *params;
    const struct hparams *hp = &model->hp;
    if (r->ram == 0)
        r->ram = ps_ram_auto();
    if (r->threads == 0)
        r->threads = thread_choice_most(MAX_THREADS);
    if (r->threads > MAX_THREADS)
        return ps_error_set(err, PS_ERR_ARGUMENT, "threads: %u is more than %d", r->threads, MAX_THREADS);
    if (r->ctx == 0)
        r->ctx = hp->n_ctx_train < DEFAULT_CTX ? hp->n_ctx_train : DEFAULT_CTX;
    if (r->ctx > INT32_MAX / 2)
        return ps_error_set(err, PS_ERR_ARGUMENT, "ctx: %u tokens is out of range", r->ctx);
    if (r->feed == 0 || r->feed > r->ctx)
        r->feed = r->ctx;
    if (r->chunk > r->feed)
        r->chunk = r->feed;
    if (r->top_k > hp->n_expert_used)
        return ps_error_set(
            err, PS_ERR_ARGUMENT,
            "--top-k: %u is more than the %u experts that the model uses per token: give at most "
            "that (the sampler's choice of tokens is --sample-top-k)",
            r->top_k, hp->n_expert_used);
    if (r->top_k == 0)
        r->top_k = hp->n_expert_used;
    if (!(r->drop_below >= 0.0f && r->drop_below <= 1.0f))
        return ps_error_set(err, PS_ERR_ARGUMENT, "--drop-below: %g is not a share: use 0 to 1",
                            (double)r->drop_below);
    if (!r->cache_policy)
        r->cache_policy = cache_policy_at(0)->name;
    if (!cache_policy_find(r->cache_policy))
        return ps_error_set(err, PS_ERR_ARGUMENT, "cache policy: '%s' is unknown", r->cache_policy);
    if (!r->cpu)
        r->cpu = cpu_level_name(cpu_level_best());
    bool checks = r->verify == PS_VERIFY_FIRST || r->verify == PS_VERIFY_ALWAYS;
    if (checks && !gguf_packed(model->gguf))
        return ps_error_set(
            err, PS_ERR_ARGUMENT,
            "--verify: %s is a GGUF, which has no checksums: leave the flag out, or `penstock "
            "pack` it first",
            gguf_file_path(model->gguf, 0));
    if (r->verify == PS_VERIFY_AUTO)
        r->verify = gguf_packed(model->gguf) ? PS_VERIFY_FIRST : PS_VERIFY_OFF;
    enum cpu_level level;
    if (!cpu_level_parse(r->cpu, &level) || !cpu_level_available(level))
        return ps_error_set(err, PS_ERR_ARGUMENT,
                            "--cpu: this machine has no %s: leave the flag out for %s, the best that it has",
                            r->cpu, cpu_level_name(cpu_level_best()));
    return PS_OK;
}

struct expert_cache_config plan_cache_config(const struct ps_model_params *r)
{
    enum { MOST_UNPACK_THREADS = 4 }; /* each has buffers of some hundred KiB */
    static const enum expert_verify verify[] = {[PS_VERIFY_OFF] = EXPERT_VERIFY_OFF,
                                                [PS_VERIFY_FIRST] = EXPERT_VERIFY_FIRST,
                                                [PS_VERIFY_ALWAYS] = EXPERT_VERIFY_ALWAYS};
    return (struct expert_cache_config){.policy = cache_policy_find(r->cache_policy),
                                        .min_slots = PLAN_MIN_SLOTS,
                                        .verify = verify[r->verify],
                                        .unpack_threads = thread_choice_most(MOST_UNPACK_THREADS)};
}

/* What does not depend on how the rest is divided, for one chunk size. plan->process and io are set. */
static uint64_t fixed_bytes(const struct ps_model *model, const struct ps_model_params *r, uint32_t chunk,
                            struct ps_plan *plan)
{
    struct scratch scratch;
    /* The caller's logits and the sampler's candidates: a few rows of the vocabulary. */
    enum { VOCAB_ROWS = 4 };
    plan->chunk = chunk;
    plan->kv = kv_cache_bytes(&model->hp, (enum kv_type)r->kv, r->ctx, chunk);
    plan->activations = scratch_layout(&scratch, NULL, model, r, chunk, r->threads) +
                        (uint64_t)VOCAB_ROWS * model->hp.n_vocab * sizeof(float) +
                        stored_rows_notes(&model->stored, r->verify) +
                        (chunk > 1 ? (uint64_t)r->threads * TILE_STACK : 0);
    return plan->process + plan->activations + plan->io + plan->kv;
}

/* Page tables: 8 bytes per 4 KiB page in the worst case. */
static uint64_t page_tables(uint64_t bytes)
{
    return bytes / 512;
}

static uint64_t smallest_trunk(const struct ps_model *model)
{
    uint64_t all = trunk_memory(model, model->hp.n_layers);
    uint64_t streamed = trunk_memory(model, 0);
    return streamed < all ? streamed : all;
}

/* Most leading layers that fit; the trunk comes before the cache because every token needs all of it. */
static uint32_t resident_layers(const struct ps_model *model, uint64_t bytes)
{
    uint32_t n = model->hp.n_layers;
    while (n > 0 && trunk_memory(model, n) > bytes)
        n--;
    return n;
}

/* Halves the chunk until its activations take at most an eighth of what is left for them and the cache: each chunk
 * streams the model once, but slots serve every token. least: what the smallest trunk and cache need beside it. */
static uint64_t choose_chunk(const struct ps_model *model, const struct ps_model_params *r, uint64_t least,
                             struct ps_plan *plan)
{
    enum { ACTIVATION_SHARE = 8 };
    uint32_t chunk = r->chunk > 0 ? r->chunk : (r->feed < DEFAULT_CHUNK ? r->feed : DEFAULT_CHUNK);
    uint64_t fixed = fixed_bytes(model, r, chunk, plan);
    uint64_t trunk = trunk_memory(model, model->hp.n_layers);
    while (r->chunk == 0 && chunk > 1) {
        uint64_t others = fixed - plan->activations + trunk;
        uint64_t room = r->ram > others ? r->ram - others : 0;
        if (plan->activations <= room / ACTIVATION_SHARE && fixed + page_tables(r->ram) + least <= r->ram)
            break;
        chunk /= 2;
        fixed = fixed_bytes(model, r, chunk, plan);
    }
    return fixed;
}

/* The pread pool has up to one thread per read in flight, io_uring one that reaps. */
static uint32_t reader_threads(const struct ps_model_params *r)
{
    return r->io == PS_IO_URING ? 1 : 16;
}

static uint64_t minimum_budget(const struct ps_model *model, const struct ps_model_params *r,
                               struct ps_plan plan, uint64_t smallest_cache)
{
    uint64_t bytes =
        fixed_bytes(model, r, r->chunk > 0 ? r->chunk : 1, &plan) + smallest_trunk(model) + smallest_cache;
    bytes += page_tables(bytes) + MINIMUM_MARGIN;
    return (bytes + MINIMUM_STEP - 1) / MINIMUM_STEP * MINIMUM_STEP;
}

/* Prediction is worth a small part of the slots, no more; traces ask for it at any price that leaves the cache alive. */
static uint64_t predictor_share(const struct ps_model *model, const struct ps_model_params *r, uint64_t left,
                                uint64_t smallest_cache)
{
    enum { CACHE_SHARE = 16 };
    uint64_t bytes = predictor_memory(model);
    if (r->predict)
        return bytes <= left - smallest_cache ? bytes : 0;
    return r->prefetch == PS_PREFETCH_AUTO && bytes <= left / CACHE_SHARE && bytes <= left - smallest_cache
               ? bytes
               : 0;
}

enum ps_status plan_divide(const struct ps_model *model, const struct ps_model_params *r,
                           struct ps_plan *plan, struct ps_error *err)
{
    const struct expert_cache_config cache = plan_cache_config(r);
    struct expert_cache_size smallest;
    expert_cache_min_size(model->shards, &cache, &smallest);
    *plan = (struct ps_plan){.budget = r->ram, .ctx = r->ctx, .n_shards = shard_map_n_shards(model->shards)};
    plan->process =
        machine_rss_bytes() + PROCESS_GROWTH + (uint64_t)(r->threads + reader_threads(r)) * THREAD_STACK;
    plan->io = READER_BYTES;
    uint64_t smallest_cache = smallest.arena_bytes + smallest.overhead_bytes;
    plan->minimum = minimum_budget(model, r, *plan, smallest_cache);
    uint64_t least = smallest_trunk(model) + smallest_cache;
    uint64_t fixed = choose_chunk(model, r, least, plan);
    plan->process += page_tables(r->ram);
    fixed += page_tables(r->ram);
    if (fixed + least > r->ram) {
        char budget[SIZE_TEXT_SIZE], works[SIZE_TEXT_SIZE];
        return ps_error_set(
            err, PS_ERR_BUDGET,
            "--ram: a budget of %s is too small for this model and context: the smallest that works is "
            "%lluK (%s)",
            size_format(r->ram, budget), (unsigned long long)(plan->minimum / KIB),
            size_format(plan->minimum, works));
    }
    plan->trunk_layers_resident = resident_layers(model, r->ram - fixed - smallest_cache);
    plan->trunk = trunk_memory(model, plan->trunk_layers_resident);
    plan->trunk_streamed_bytes = trunk_streamed(model, plan->trunk_layers_resident);
    struct expert_cache_size size = {0};
    uint64_t left = r->ram - fixed - plan->trunk;
    plan->predictor = predictor_share(model, r, left, smallest_cache);
    left -= plan->predictor;
    expert_cache_fit(model->shards, &cache, left, &size);
    plan->cache = size.arena_bytes + size.overhead_bytes;
    plan->slots = size.slots;
    plan->unused = left - plan->cache;
    if (model->info.token_cycle_bytes > 0) {
        plan->token_cycle_bytes = model->info.token_cycle_bytes / model->hp.n_expert_used * r->top_k;
        uint64_t held = model->info.token_cycle_unpacked_bytes / model->hp.n_expert_used * r->top_k;
        plan->cycles = (double)size.arena_bytes / (double)held;
    }
    return PS_OK;
}

uint64_t ps_ram_auto(void)
{
    uint64_t available = machine_memory_available();
    if (available == UINT64_MAX)
        return 1ull << 30;
    /* Leave a tenth, at least 512 MiB where there is that much, so that the machine stays usable. */
    uint64_t reserve = available / 10;
    uint64_t floor = 512ull * MIB;
    if (reserve < floor && available > 4 * floor)
        reserve = floor;
    return available - reserve + machine_rss_bytes();
}
