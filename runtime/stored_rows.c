#include "runtime/stored_rows.h"

/* The most that a row takes in memory, as it may begin anywhere in a unit of reading. */
static uint64_t slot_bytes(const struct stored_rows *stored)
{
    return io_range_span(IO_ALIGN - 1, stored->rows.row_bytes);
}

uint64_t stored_rows_buffer(const struct stored_rows *stored)
{
    return stored->rows.format ? STORED_ROWS_AT_ONCE * slot_bytes(stored) + IO_ALIGN : 0;
}

enum ps_status stored_rows_read(struct io_reader *reader, const struct stored_rows *stored,
                                const uint64_t *ids, uint32_t n, uint8_t *buffer, float *const *out,
                                struct ps_error *err)
{
    const struct weight *rows = &stored->rows;
    struct io_range ranges[STORED_ROWS_AT_ONCE] = {0};
    uint8_t *aligned = buffer + (IO_ALIGN - (uintptr_t)buffer % IO_ALIGN) % IO_ALIGN;
    for (uint32_t i = 0; i < n; i++)
        ranges[i] = (struct io_range){.file = stored->file,
                                      .offset = stored->offset + ids[i] * rows->row_bytes,
                                      .length = rows->row_bytes,
                                      .at = i * slot_bytes(stored)};
    enum ps_status status = io_reader_read(reader, ranges, n, aligned, err);
    for (uint32_t i = 0; status == PS_OK && i < n; i++)
        rows->format->dequantize(aligned + ranges[i].at + ranges[i].offset % IO_ALIGN, out[i], rows->n_cols);
    return status;
}
