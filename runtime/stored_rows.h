/* Rows of a matrix that stays in the file because it is large and a token needs few of its rows. */
#ifndef PENSTOCK_RUNTIME_STORED_ROWS_H
#define PENSTOCK_RUNTIME_STORED_ROWS_H

#include "runtime/model.h"

enum { STORED_ROWS_AT_ONCE = 128 };

/* Bytes of the buffer that stored_rows_read wants, at any alignment. */
uint64_t stored_rows_buffer(const struct stored_rows *stored);
/* Reads and dequantizes row ids[i] to out[i], waiting for the drive. n <= STORED_ROWS_AT_ONCE, ids below n_rows. */
enum ps_status stored_rows_read(struct io_reader *reader, const struct stored_rows *stored,
                                const uint64_t *ids, uint32_t n, uint8_t *buffer, float *const *out,
                                struct ps_error *err);

#endif
