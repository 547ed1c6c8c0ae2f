/* Measures products of the kernels, and what the machine gives at most. No printing. */
#ifndef PENSTOCK_RUNTIME_CLI_KERNEL_BENCH_H
#define PENSTOCK_RUNTIME_CLI_KERNEL_BENCH_H

#include "kernels/matmul.h"
#include "kernels/thread_pool.h"
#include "storage/status.h"

enum { KERNEL_BENCH_MAX_TOKENS = 512 };

struct kernel_bench_params {
    enum cpu_level level;
    uint32_t threads;
    uint32_t rows, cols; /* of a matrix; cols a multiple of 256 */
    uint64_t
        memory_bytes; /* as many matrices as fill it are gone through in turn: far more than the caches hold */
    double seconds;   /* per figure, at least one pass */
};

struct kernel_bench;

/* Everything that is needed is allocated here. PS_ERR_NOMEM; *out wants freeing all the same. */
enum ps_status kernel_bench_new(struct kernel_bench **out, const struct kernel_bench_params *params,
                                struct ps_error *err);
void kernel_bench_free(struct kernel_bench *bench); /* NULL is fine */

/* All per second, of all threads together, the best of several passes. */
struct machine_peak {
    double read_bytes;
    double int8_ops, f32_ops; /* a multiplication and an addition are two */
};
void kernel_bench_peak(struct kernel_bench *bench, struct machine_peak *peak);

/* Fills the memory with random blocks of a format. PS_ERR_NOMEM. */
enum ps_status kernel_bench_fill(struct kernel_bench *bench, const struct block_format *format,
                                 struct ps_error *err);

struct kernel_rate {
    double weight_bytes, ops; /* per second */
};
/* Products of the matrices of the last fill with n_tokens (at most KERNEL_BENCH_MAX_TOKENS) tokens. */
void kernel_bench_matmul(struct kernel_bench *bench, uint32_t n_tokens, struct kernel_rate *rate);

#endif
