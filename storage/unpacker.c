#include "storage/unpacker.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "storage/io_reader.h"
#include "storage/service_thread.h"

enum {
    HASH_STATE_BYTES = 704, /* of XXH3_createState(): 576, aligned to 64, and malloc's own */
    PIECE_BYTES = 1 << 20,  /* of a job that is not urgent, before it looks for one that is */
};

/* How far a job is. It has one from when a thread first works at it until done(). */
struct unpack_state {
    XXH3_state_t *hash;
    uint64_t hashed;           /* bytes of the extent */
    uint64_t at;               /* bytes of the extent that the chunks so far took */
    struct packed_chunk chunk; /* the next one; bytes 0: there is none */
    bool damaged;
    struct unpack_state *next; /* of the free ones */
};

struct worker {
    struct unpacker *unpacker;
    struct chunk_decoder *decoder; /* NULL: nothing is compressed */
    pthread_t thread;
    bool started;
};

/* What one thread did at a job since the last time it had the lock. */
struct work_done {
    uint64_t bytes, check_ns, unpack_ns;
};

struct job_queue {
    struct unpack_job *head, *tail;
};

struct unpacker {
    struct unpacker_config config;
    struct worker *workers;      /* [n_threads] */
    struct unpack_state *states; /* [n_jobs] */

    pthread_mutex_t lock; /* for the rest, and the state of jobs but for struct unpack_state */
    pthread_cond_t work;
    struct job_queue urgent, others; /* jobs of which more has landed, and which no thread works at */
    struct unpack_state *free_states;
    uint64_t check_ns, unpack_ns;
    struct unpacker_stats stats;
    bool stop;
};

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* ---- working at a job: one thread, without the lock ---- */

static void state_init(struct unpack_state *state, const struct packed_layout *layout)
{
    XXH3_64bits_reset(state->hash);
    state->hashed = state->at = 0;
    state->damaged = false;
    state->chunk = (struct packed_chunk){0};
    if (layout->compressed && !packed_chunk_next(layout, &state->chunk))
        state->chunk.bytes = 0;
}

static void hash_up_to(const struct unpack_job *job, uint64_t end, struct work_done *did)
{
    struct unpack_state *state = job->state;
    if (!job->check || end == state->hashed)
        return;
    uint64_t start = now_ns();
    XXH3_64bits_update(state->hash, job->slot + job->stored_at + state->hashed, end - state->hashed);
    state->hashed = end;
    did->check_ns += now_ns() - start;
}

static bool unpack_chunk(struct chunk_decoder *decoder, const struct unpack_job *job, uint32_t size,
                         const uint8_t *src, struct work_done *did)
{
    const struct packed_chunk *chunk = &job->state->chunk;
    uint8_t *dst = job->slot + chunk->at;
    uint32_t stored = size & ~CHUNK_AS_IS;
    if (dst + chunk->bytes > src + stored)
        return false; /* it would overwrite what follows; only damaged sizes lead here */
    uint64_t start = now_ns();
    bool ok = true;
    if (size & CHUNK_AS_IS)
        memmove(dst, src, chunk->bytes);
    else
        ok = chunk_decode(decoder, (enum chunk_codec)job->layout->codec[chunk->part],
                          job->layout->stride[chunk->part], src, stored, dst, chunk->bytes);
    did->unpack_ns += now_ns() - start;
    did->bytes += chunk->bytes;
    return ok;
}

/* The sizes that a chunk can have in a sound extent. */
static bool size_is_sound(const struct unpack_job *job, uint32_t size)
{
    const struct packed_chunk *chunk = &job->state->chunk;
    uint32_t stored = size & ~CHUNK_AS_IS;
    if (stored > job->stored_bytes - job->state->at - sizeof(size))
        return false;
    if (size & CHUNK_AS_IS)
        return stored == chunk->bytes;
    return stored > 0 && stored < chunk->bytes && job->layout->codec[chunk->part] != CHUNK_RAW;
}

/* Unpacks the chunks that have landed wholly. Each is hashed before it, or one after it, is overwritten. */
static void unpack_chunks(struct chunk_decoder *decoder, const struct unpack_job *job, uint64_t landed,
                          struct work_done *did)
{
    struct unpack_state *state = job->state;
    uint32_t size;
    while (state->chunk.bytes > 0 && !state->damaged) {
        const uint8_t *at = job->slot + job->stored_at + state->at;
        if (job->stored_bytes - state->at < sizeof(size)) {
            state->damaged = true;
            return;
        }
        if (landed - state->at < sizeof(size))
            return;
        size = (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
        if (!size_is_sound(job, size)) {
            state->damaged = true;
            return;
        }
        uint64_t end = state->at + sizeof(size) + (size & ~CHUNK_AS_IS);
        if (landed < end)
            return;
        hash_up_to(job, end, did);
        state->damaged = !unpack_chunk(decoder, job, size, at + sizeof(size), did);
        state->at = end;
        if (!packed_chunk_next(job->layout, &state->chunk))
            state->chunk.bytes = 0;
    }
}

static void work_at(struct chunk_decoder *decoder, const struct unpack_job *job, uint64_t landed,
                    struct work_done *did)
{
    struct unpack_state *state = job->state;
    if (job->layout->compressed)
        unpack_chunks(decoder, job, landed, did);
    if (state->chunk.bytes == 0 && !state->damaged)
        hash_up_to(job, landed, did);
}

/* Of a job that was read to its end. */
static enum unpack_outcome judge(const struct unpack_job *job)
{
    const struct unpack_state *state = job->state;
    if (state->damaged || state->chunk.bytes > 0)
        return UNPACK_CORRUPT;
    if (job->layout->compressed && job->stored_bytes - state->at >= IO_ALIGN)
        return UNPACK_CORRUPT;
    return job->check && XXH3_64bits_digest(state->hash) != job->hash ? UNPACK_CORRUPT : UNPACK_OK;
}

/* ---- threads ---- */

static struct job_queue *queue_of(struct unpacker *unpacker, const struct unpack_job *job)
{
    return job->urgent ? &unpacker->urgent : &unpacker->others;
}

static void append(struct job_queue *queue, struct unpack_job *job)
{
    job->queued = true;
    job->next = NULL;
    job->prev = queue->tail;
    *(queue->tail ? &queue->tail->next : &queue->head) = job;
    queue->tail = job;
}

static void prepend(struct job_queue *queue, struct unpack_job *job)
{
    job->queued = true;
    job->prev = NULL;
    job->next = queue->head;
    *(queue->head ? &queue->head->prev : &queue->tail) = job;
    queue->head = job;
}

static void unlink_job(struct job_queue *queue, struct unpack_job *job)
{
    *(job->prev ? &job->prev->next : &queue->head) = job->next;
    *(job->next ? &job->next->prev : &queue->tail) = job->prev;
    job->queued = false;
}

static void enqueue(struct unpacker *unpacker, struct unpack_job *job)
{
    if (job->queued || job->busy) /* whoever works at it looks again before leaving it */
        return;
    append(queue_of(unpacker, job), job);
    pthread_cond_signal(&unpacker->work);
}

/* NULL: there is nothing to do. */
static struct unpack_job *dequeue(struct unpacker *unpacker)
{
    struct job_queue *queue = unpacker->urgent.head ? &unpacker->urgent : &unpacker->others;
    struct unpack_job *job = queue->head;
    if (!job)
        return NULL;
    unlink_job(queue, job);
    job->busy = true;
    if (!job->state) { /* there is one: no more than n_jobs are at work */
        job->state = unpacker->free_states;
        unpacker->free_states = job->state->next;
        state_init(job->state, job->layout);
    }
    return job;
}

static bool has_failed(const struct unpack_job *job)
{
    return job->ended && !job->read_ok;
}

/* Works at the next piece of a job; under the lock, which it drops meanwhile. */
static void work_piece(struct worker *worker, struct unpack_job *job)
{
    struct unpacker *unpacker = worker->unpacker;
    struct work_done did = {0};
    uint64_t upto = job->landed;
    if (!job->urgent && upto - job->worked > PIECE_BYTES)
        upto = job->worked + PIECE_BYTES;
    pthread_mutex_unlock(&unpacker->lock);
    work_at(worker->decoder, job, upto, &did);
    pthread_mutex_lock(&unpacker->lock);
    job->worked = upto;
    unpacker->check_ns += did.check_ns;
    unpacker->unpack_ns += did.unpack_ns;
    unpacker->stats.bytes_unpacked += did.bytes;
}

/* As new but for its outcome, so that it can begin again in done(). */
static void end_job(struct unpacker *unpacker, struct unpack_job *job)
{
    job->outcome = job->read_ok ? judge(job) : UNPACK_READ_FAILED;
    unpacker->stats.checked += job->check && job->read_ok;
    job->state->next = unpacker->free_states;
    unpacker->free_states = job->state;
    job->state = NULL;
    job->landed = job->worked = 0;
    job->ended = job->read_ok = false;
    pthread_mutex_unlock(&unpacker->lock);
    job->done(job);
    pthread_mutex_lock(&unpacker->lock);
}

/* Works at all of a job that has landed, or until an urgent one is there; under the lock, which it drops meanwhile. */
static void serve(struct worker *worker, struct unpack_job *job)
{
    struct unpacker *unpacker = worker->unpacker;
    bool yields = false;
    while (job->worked < job->landed && !has_failed(job) && !yields) {
        work_piece(worker, job);
        yields = !job->urgent && unpacker->urgent.head;
    }
    job->busy = false;
    if (has_failed(job) || (job->ended && job->worked == job->landed))
        end_job(unpacker, job);
    else if (job->worked < job->landed)
        prepend(queue_of(unpacker, job), job); /* it keeps its turn */
}

static void *worker_main(void *context)
{
    struct worker *worker = context;
    struct unpacker *unpacker = worker->unpacker;
    pthread_mutex_lock(&unpacker->lock);
    while (!unpacker->stop) {
        struct unpack_job *job = dequeue(unpacker);
        if (job)
            serve(worker, job);
        else
            pthread_cond_wait(&unpacker->work, &unpacker->lock);
    }
    pthread_mutex_unlock(&unpacker->lock);
    return NULL;
}

/* ---- construction ---- */

static bool states_init(struct unpacker *unpacker)
{
    uint32_t n = unpacker->config.n_jobs;
    unpacker->states = calloc(n, sizeof(*unpacker->states));
    for (uint32_t i = 0; unpacker->states && i < n; i++) {
        struct unpack_state *state = &unpacker->states[i];
        state->hash = XXH3_createState();
        if (!state->hash)
            return false;
        state->next = unpacker->free_states;
        unpacker->free_states = state;
    }
    return unpacker->states != NULL;
}

static bool workers_start(struct unpacker *unpacker)
{
    uint32_t n = unpacker->config.n_threads;
    unpacker->workers = calloc(n, sizeof(*unpacker->workers));
    for (uint32_t i = 0; unpacker->workers && i < n; i++) {
        struct worker *worker = &unpacker->workers[i];
        worker->unpacker = unpacker;
        if (unpacker->config.decodes && !(worker->decoder = chunk_decoder_new()))
            return false;
        worker->started = service_thread_start(&worker->thread, worker_main, worker);
        if (!worker->started)
            return false;
    }
    return unpacker->workers != NULL;
}

enum ps_status unpacker_new(struct unpacker **out, const struct unpacker_config *config, struct ps_error *err)
{
    *out = NULL;
    struct unpacker *unpacker = calloc(1, sizeof(*unpacker));
    if (!unpacker)
        return ps_error_set(err, PS_ERR_NOMEM, "unpacker: out of memory");
    unpacker->config = *config;
    pthread_mutex_init(&unpacker->lock, NULL);
    pthread_cond_init(&unpacker->work, NULL);
    if (!states_init(unpacker) || !workers_start(unpacker)) {
        unpacker_free(unpacker);
        return ps_error_set(err, PS_ERR_NOMEM, "unpacker: no memory for %u threads", config->n_threads);
    }
    *out = unpacker;
    return PS_OK;
}

void unpacker_free(struct unpacker *unpacker)
{
    if (!unpacker)
        return;
    pthread_mutex_lock(&unpacker->lock);
    unpacker->stop = true;
    pthread_cond_broadcast(&unpacker->work);
    pthread_mutex_unlock(&unpacker->lock);
    for (uint32_t i = 0; unpacker->workers && i < unpacker->config.n_threads; i++) {
        if (unpacker->workers[i].started)
            pthread_join(unpacker->workers[i].thread, NULL);
        chunk_decoder_free(unpacker->workers[i].decoder);
    }
    for (uint32_t i = 0; unpacker->states && i < unpacker->config.n_jobs; i++)
        XXH3_freeState(unpacker->states[i].hash);
    free(unpacker->workers);
    free(unpacker->states);
    pthread_cond_destroy(&unpacker->work);
    pthread_mutex_destroy(&unpacker->lock);
    free(unpacker);
}

uint64_t unpacker_memory(const struct unpacker_config *config)
{
    uint64_t thread =
        sizeof(struct worker) + SERVICE_THREAD_MEMORY + (config->decodes ? chunk_decoder_memory() : 0);
    return sizeof(struct unpacker) + config->n_threads * thread +
           config->n_jobs * (sizeof(struct unpack_state) + HASH_STATE_BYTES);
}

/* ---- what the reader says ---- */

void unpacker_landed(struct unpacker *unpacker, struct unpack_job *job, uint64_t bytes)
{
    pthread_mutex_lock(&unpacker->lock);
    job->landed = bytes < job->stored_bytes ? bytes : job->stored_bytes;
    enqueue(unpacker, job);
    pthread_mutex_unlock(&unpacker->lock);
}

void unpacker_ended(struct unpacker *unpacker, struct unpack_job *job, bool ok)
{
    pthread_mutex_lock(&unpacker->lock);
    job->ended = true;
    job->read_ok = ok;
    if (ok)
        job->landed = job->stored_bytes;
    enqueue(unpacker, job);
    pthread_mutex_unlock(&unpacker->lock);
}

void unpacker_promote(struct unpacker *unpacker, struct unpack_job *job)
{
    pthread_mutex_lock(&unpacker->lock);
    if (job->queued && !job->urgent) {
        unlink_job(&unpacker->others, job);
        append(&unpacker->urgent, job);
    }
    job->urgent = true;
    pthread_mutex_unlock(&unpacker->lock);
}

void unpacker_get_stats(struct unpacker *unpacker, struct unpacker_stats *stats)
{
    pthread_mutex_lock(&unpacker->lock);
    *stats = unpacker->stats;
    stats->check_s = (double)unpacker->check_ns * 1e-9;
    stats->unpack_s = (double)unpacker->unpack_ns * 1e-9;
    pthread_mutex_unlock(&unpacker->lock);
}
