/* Products of weight matrices with activations: matvec (one token) and matmul (many).
 *
 * Batch invariance: out[t][r] is computed by the same sequence of operations whatever the row range, the number of
 * tokens in the call and the position of the token among them. Tiling may share loads and unpacking, never
 * change the order of a reduction: over a row in blocks of fixed size, lanes combined in a fixed way.
 *
 * Functions here are single-threaded and allocate nothing; callers split rows over threads. */
#ifndef PENSTOCK_KERNELS_MATMUL_H
#define PENSTOCK_KERNELS_MATMUL_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/block_format.h"
#include "kernels/cpu.h"

/* n_rows x n_cols, row-major whole blocks, rows row_bytes apart; data needs no alignment; borrowed. */
struct weight {
    const struct block_format *format;
    const void *data;
    uint64_t n_rows;
    uint64_t n_cols; /* a multiple of format->values */
    size_t row_bytes;
};

/* Bytes of one token's activations; a multiple of 4. n_cols must be a multiple of 32 (Q8_0), 256 (Q8_K). */
size_t act_row_bytes(enum act_type type, uint64_t n_cols);
/* Values per activation block: 1, 32, 256. A row may be quantized piecewise in multiples of it. */
uint32_t act_block_values(enum act_type type);

/* x[act_block_values(type)] -> one block of activations. */
typedef void act_block_fn(const float *x, void *block);

struct matmul_kernels {
    enum cpu_level level;
    act_block_fn *const *act_blocks; /* [ACT_N_TYPES], for act_quantize */
    /* out[t * out_stride + (r - row_begin)] = sum over k of w[r][k] * x[t][k], for r in [row_begin, row_end) and
     * t in [0, n_tokens). acts: n_tokens rows, act_stride bytes apart, of type `act`, which is w->format->act or
     * ACT_F32. out_stride counts floats. out does not overlap the inputs. */
    void (*matmul)(const struct weight *w, uint64_t row_begin, uint64_t row_end, enum act_type act,
                   const void *acts, size_t act_stride, uint32_t n_tokens, float *out, size_t out_stride);
};

/* level must be available. */
const struct matmul_kernels *matmul_kernels_get(enum cpu_level level);

/* x[n] -> activations; n a multiple of act_block_values. ACT_F32 copies. Each block depends on its own values alone.
 * Rounding as ggml does it on x86 (nearest even). The same bits at every level. */
void act_quantize(const struct matmul_kernels *kernels, enum act_type type, const float *x, void *out,
                  size_t n);

#endif
