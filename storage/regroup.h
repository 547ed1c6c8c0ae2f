/* Regrouping: the bytes or bits of a chunk in another order, so that those that are alike in each number or block lie together.
 *
 * A chunk is n strides. Regrouped it is, with the strides' bytes as the rows of a matrix,
 *   BYTES   that matrix transposed: first byte of each stride, second byte of each, ...
 *   FLOATS  the same after each 16-bit word was turned left by one bit: the eight bits of a BF16's or F32's exponent are one byte
 *   BITS    of whole eights of strides: bit 0 of each one's first byte, bit 1 of it, ..., bit 0 of the second byte, ...; bit i of
 *           such a plane's byte k is of stride 8k + i. Up to seven strides that are left follow as they are.
 * Words are little-endian. Source and destination do not overlap. */
#ifndef PENSTOCK_STORAGE_REGROUP_H
#define PENSTOCK_STORAGE_REGROUP_H

#include <stdbool.h>
#include <stdint.h>

enum regrouping {
    REGROUP_BYTES,
    REGROUP_FLOATS,
    REGROUP_BITS,
};

bool regroup_takes(enum regrouping how, uint32_t stride);
/* Bytes that are alike: of a row of the matrix, or a bit plane; at least 1. */
uint32_t regroup_row_bytes(enum regrouping how, uint32_t stride, uint32_t bytes);
/* bytes: whole strides, of src and of dst. */
void regroup(enum regrouping how, uint32_t stride, const uint8_t *restrict src, uint32_t bytes,
             uint8_t *restrict dst);
void regroup_undo(enum regrouping how, uint32_t stride, const uint8_t *restrict src, uint32_t bytes,
                  uint8_t *restrict dst);

/* The definition, byte by byte: what the above are tested against. */
void regroup_plain(enum regrouping how, uint32_t stride, const uint8_t *restrict src, uint32_t bytes,
                   uint8_t *restrict dst);
void regroup_undo_plain(enum regrouping how, uint32_t stride, const uint8_t *restrict src, uint32_t bytes,
                        uint8_t *restrict dst);

#endif
