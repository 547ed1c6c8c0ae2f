#include "runtime/stored_rows.h"

#include <stdlib.h>

#include "runtime/clock.h"

enum { CHECKED_AT_ONCE = 32 }; /* rows: each may take two blocks of the buffer */

static uint64_t block_start(uint64_t at)
{
    return at / PACKED_BLOCK_BYTES * PACKED_BLOCK_BYTES;
}

static uint64_t table_bytes(const struct stored_rows *stored)
{
    return stored->rows.n_rows * stored->rows.row_bytes;
}

/* The most that a row takes in memory, as it may begin anywhere in a block and in a unit of reading. */
static uint64_t slot_bytes(const struct stored_rows *stored, enum ps_verify verify)
{
    uint64_t bytes = stored->rows.row_bytes;
    if (verify != PS_VERIFY_OFF)
        bytes = block_start(2ull * PACKED_BLOCK_BYTES - 2 + bytes);
    return io_range_span(IO_ALIGN - 1, bytes);
}

static uint32_t rows_at_once(enum ps_verify verify)
{
    return verify == PS_VERIFY_OFF ? STORED_ROWS_AT_ONCE : CHECKED_AT_ONCE;
}

uint64_t stored_rows_buffer(const struct stored_rows *stored, enum ps_verify verify)
{
    return stored->rows.format ? rows_at_once(verify) * slot_bytes(stored, verify) + IO_ALIGN : 0;
}

uint64_t stored_rows_notes(const struct stored_rows *stored, enum ps_verify verify)
{
    bool notes = stored->rows.format && verify == PS_VERIFY_FIRST;
    return notes ? packed_blocks(table_bytes(stored)) / 8 + 1 : 0;
}

enum ps_status stored_rows_init(struct ps_model *model, struct ps_error *err)
{
    uint64_t bytes = stored_rows_notes(&model->stored, model->params.verify);
    if (bytes == 0)
        return PS_OK;
    model->stored.sound = calloc(bytes, 1);
    return model->stored.sound ? PS_OK : ps_error_set(err, PS_ERR_NOMEM, "table of rows: out of memory");
}

void stored_rows_deinit(struct ps_model *model)
{
    free(model->stored.sound);
}

/* ---- what is read of the table ---- */

struct piece {
    uint64_t at, bytes; /* of the table */
    bool checked;       /* whole blocks, to be compared */
};

static bool is_noted(const struct stored_rows *stored, const struct piece *piece)
{
    if (!stored->sound)
        return false;
    for (uint64_t at = block_start(piece->at); at < piece->at + piece->bytes; at += PACKED_BLOCK_BYTES) {
        uint64_t block = at / PACKED_BLOCK_BYTES;
        if (!(stored->sound[block / 8] >> block % 8 & 1))
            return false;
    }
    return true;
}

static void note(const struct stored_rows *stored, const struct piece *piece)
{
    if (!stored->sound)
        return;
    for (uint64_t at = piece->at; at < piece->at + piece->bytes; at += PACKED_BLOCK_BYTES) {
        uint64_t block = at / PACKED_BLOCK_BYTES;
        stored->sound[block / 8] |= (uint8_t)(1u << block % 8);
    }
}

/* A row, or the blocks that hold it. */
static struct piece piece_of(const struct ps_model *model, uint64_t id)
{
    const struct stored_rows *stored = &model->stored;
    struct piece piece = {.at = id * stored->rows.row_bytes, .bytes = stored->rows.row_bytes};
    if (model->params.verify == PS_VERIFY_OFF || is_noted(stored, &piece))
        return piece;
    uint64_t start = block_start(piece.at), total = table_bytes(stored);
    uint64_t end = block_start(piece.at + piece.bytes + PACKED_BLOCK_BYTES - 1);
    return (struct piece){start, (end < total ? end : total) - start, true};
}

static enum ps_status compare(struct ps_model *model, const struct piece *piece, const uint8_t *data,
                              struct ps_error *err)
{
    struct stored_rows *stored = &model->stored;
    double start = clock_seconds();
    enum ps_status status = gguf_check_trunk(model->gguf, stored->tensor, piece->at, data, piece->bytes, err);
    stored->checked++;
    stored->check_s += clock_seconds() - start;
    return status;
}

/* Of a piece that was read: what is damaged is read once more. */
static enum ps_status check(struct ps_model *model, const struct piece *piece, const struct io_range *range,
                            uint8_t *buffer, struct ps_error *err)
{
    const uint8_t *data = buffer + range->at + range->offset % IO_ALIGN;
    enum ps_status status = compare(model, piece, data, NULL);
    if (status != PS_OK) {
        status = io_reader_read(model->reader, range, 1, buffer, err);
        if (status == PS_OK)
            status = compare(model, piece, data, err);
        model->stored.reread_sound += status == PS_OK;
    }
    if (status == PS_OK)
        note(&model->stored, piece);
    return status;
}

/* n <= rows_at_once(); buffer: aligned. */
static enum ps_status read_rows(struct ps_model *model, const uint64_t *ids, uint32_t n, uint8_t *buffer,
                                float *const *out, struct ps_error *err)
{
    const struct stored_rows *stored = &model->stored;
    const struct weight *rows = &stored->rows;
    struct io_range ranges[STORED_ROWS_AT_ONCE] = {0};
    struct piece pieces[STORED_ROWS_AT_ONCE];
    uint64_t slot = slot_bytes(stored, model->params.verify);
    for (uint32_t i = 0; i < n; i++) {
        pieces[i] = piece_of(model, ids[i]);
        ranges[i] = (struct io_range){.file = stored->file,
                                      .offset = stored->offset + pieces[i].at,
                                      .length = pieces[i].bytes,
                                      .at = i * slot};
    }
    enum ps_status status = io_reader_read(model->reader, ranges, n, buffer, err);
    for (uint32_t i = 0; status == PS_OK && i < n; i++) {
        if (pieces[i].checked)
            status = check(model, &pieces[i], &ranges[i], buffer, err);
        uint64_t in_piece = ids[i] * rows->row_bytes - pieces[i].at;
        if (status == PS_OK)
            rows->format->dequantize(buffer + ranges[i].at + ranges[i].offset % IO_ALIGN + in_piece, out[i],
                                     rows->n_cols);
    }
    return status;
}

enum ps_status stored_rows_read(struct ps_model *model, const uint64_t *ids, uint32_t n, uint8_t *buffer,
                                float *const *out, struct ps_error *err)
{
    uint8_t *aligned = buffer + (IO_ALIGN - (uintptr_t)buffer % IO_ALIGN) % IO_ALIGN;
    uint32_t at_once = rows_at_once(model->params.verify);
    enum ps_status status = PS_OK;
    for (uint32_t i = 0; status == PS_OK && i < n; i += at_once)
        status = read_rows(model, ids + i, n - i < at_once ? n - i : at_once, aligned, out + i, err);
    return status;
}
