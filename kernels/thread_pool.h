/* Thread pool: runs a function over numbered chunks of work. The caller works too, so a pool of 1 has no threads.
 *
 * Each thread begins with a share of neighbouring chunks, in order; those that are done take over the others' from the end,
 * so idle and fast cores do more. What a chunk computes depends only on its number, so results do not depend on the number of
 * threads. Workers that wait for a run spin while runs follow each other faster than a thread wakes up, else sleep on
 * a futex. One run at a time; run() returns when every chunk is done. */
#ifndef PENSTOCK_KERNELS_THREAD_POOL_H
#define PENSTOCK_KERNELS_THREAD_POOL_H

#include <stdint.h>

struct thread_pool;

/* n_threads 1..256, the caller included. 0, or -errno. */
int thread_pool_new(struct thread_pool **out, unsigned n_threads);
void thread_pool_free(struct thread_pool *pool); /* NULL is fine */
unsigned thread_pool_size(const struct thread_pool *pool);
/* For processes that may use less CPU time than the pool has threads. It finds out by itself that there are fewer CPUs. */
void thread_pool_never_spin(struct thread_pool *pool);

/* worker: 0..size-1, for per-thread scratch; the caller is 0. */
typedef void thread_pool_fn(void *arg, uint32_t chunk, unsigned worker);
void thread_pool_run(struct thread_pool *pool, thread_pool_fn *fn, void *arg, uint32_t n_chunks);

#endif
