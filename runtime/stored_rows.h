/* Rows of a matrix that stays in the file because it is large and a token needs few of its rows.
 *
 * Of a container, what is to be checked is read in whole blocks, each of which has a checksum; once that was right, --verify first reads
 * rows alone again. */
#ifndef PENSTOCK_RUNTIME_STORED_ROWS_H
#define PENSTOCK_RUNTIME_STORED_ROWS_H

#include "runtime/model.h"

enum { STORED_ROWS_AT_ONCE = 128 };

/* Bytes; 0 where the model has no such matrix: of the buffer that stored_rows_read wants, at any alignment; */
uint64_t stored_rows_buffer(const struct stored_rows *stored, enum ps_verify verify);
/* and of the notes that init() makes. */
uint64_t stored_rows_notes(const struct stored_rows *stored, enum ps_verify verify);

/* The model's params are set. PS_ERR_NOMEM. */
enum ps_status stored_rows_init(struct ps_model *model, struct ps_error *err);
void stored_rows_deinit(struct ps_model *model);

/* Reads and dequantizes row ids[i] to out[i], waiting for the drive. n <= STORED_ROWS_AT_ONCE, ids below n_rows. What is damaged
 * is read once more, then it is PS_ERR_FORMAT, naming tensor, file and offset. Not for several threads at once. */
enum ps_status stored_rows_read(struct ps_model *model, const uint64_t *ids, uint32_t n, uint8_t *buffer,
                                float *const *out, struct ps_error *err);

#endif
