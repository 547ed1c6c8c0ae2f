/* File extent: bytes of one of the model's files, and how neighbouring extents become one read range. */
#ifndef PENSTOCK_STORAGE_FILE_EXTENT_H
#define PENSTOCK_STORAGE_FILE_EXTENT_H

#include <stddef.h>
#include <stdint.h>

#include "storage/io_reader.h"

struct file_extent {
    uint32_t file;
    uint64_t offset; /* bytes */
    uint64_t length; /* bytes, > 0 */
};

/* By file, then offset. */
static inline int file_extent_compare(const struct file_extent *x, const struct file_extent *y)
{
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Bytes of buffer that the ranges take, the last of them being the one that ends last. */
static inline uint64_t file_extent_buffer_bytes(const struct io_range *ranges, uint32_t n_ranges)
{
    if (n_ranges == 0)
        return 0;
    const struct io_range *last = &ranges[n_ranges - 1];
    return last->at + io_range_span(last->offset, last->length);
}

/* Adds an extent, which lies behind all those added before, and returns the range that holds it. It joins the
 * last range if their aligned spans touch or overlap: then the bytes between them cost no further read. */
static inline const struct io_range *file_extent_add(struct io_range *ranges, uint32_t *n_ranges,
                                                     const struct file_extent *extent)
{
    struct io_range *last = *n_ranges > 0 ? &ranges[*n_ranges - 1] : NULL;
    if (last && last->file == extent->file) {
        uint64_t span_end =
            last->offset - last->offset % IO_ALIGN + io_range_span(last->offset, last->length);
        if (extent->offset - extent->offset % IO_ALIGN <= span_end) {
            last->length = extent->offset + extent->length - last->offset;
            return last;
        }
    }
    uint64_t at = file_extent_buffer_bytes(ranges, *n_ranges);
    last = &ranges[(*n_ranges)++];
    *last = (struct io_range){extent->file, extent->offset, extent->length, at};
    return last;
}

/* Where a byte of the file, inside the range, lies in the buffer. */
static inline uint64_t file_extent_place(const struct io_range *range, uint64_t offset)
{
    return range->at + range->offset % IO_ALIGN + (offset - range->offset);
}

#endif
