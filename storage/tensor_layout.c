/* Tensor layout: places whole tensors in one buffer so that they can be read with few, large reads. */
#include <inttypes.h>
#include <stdlib.h>

#include "storage/file_extent.h"
#include "storage/shard_map.h"

/* A tensor of the set, while the set is sorted by place in the files. */
struct placed_tensor {
    struct file_extent extent;
    uint32_t input; /* position in the caller's list */
};

static int compare_place(const void *a, const void *b)
{
    const struct placed_tensor *x = a, *y = b;
    return file_extent_compare(&x->extent, &y->extent);
}

/* Whether the buffer's size fits 64 bits, were no tensor to share a range. */
static bool size_fits(const struct placed_tensor *placed, uint32_t n)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (__builtin_add_overflow(total, io_range_span(placed[i].extent.offset, placed[i].extent.length),
                                   &total))
            return false;
    }
    return true;
}

enum ps_status tensor_layout_init(struct tensor_layout *layout, const struct gguf *gguf,
                                  const uint32_t *tensors, uint32_t n_tensors, struct ps_error *err)
{
    *layout = (struct tensor_layout){.n_tensors = n_tensors};
    enum ps_status status = PS_OK;
    struct placed_tensor *placed = calloc(n_tensors + 1ul, sizeof(*placed));
    layout->ranges = calloc(n_tensors + 1ul, sizeof(*layout->ranges));
    layout->offset = calloc(n_tensors + 1ul, sizeof(*layout->offset));
    if (!placed || !layout->ranges || !layout->offset) {
        status =
            ps_error_set(err, PS_ERR_NOMEM, "no memory for the layout of %" PRIu32 " tensors", n_tensors);
        goto done;
    }
    for (uint32_t i = 0; i < n_tensors; i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, tensors[i]);
        placed[i] = (struct placed_tensor){{tensor->file, tensor->offset, tensor->bytes}, i};
    }
    if (!size_fits(placed, n_tensors)) {
        status = ps_error_set(err, PS_ERR_FORMAT, "%" PRIu32 " tensors are together larger than 2^64 bytes",
                              n_tensors);
        goto done;
    }
    qsort(placed, n_tensors, sizeof(*placed), compare_place);
    for (uint32_t i = 0; i < n_tensors; i++) {
        const struct io_range *range = file_extent_add(layout->ranges, &layout->n_ranges, &placed[i].extent);
        layout->offset[placed[i].input] = file_extent_place(range, placed[i].extent.offset);
    }
    layout->bytes = file_extent_buffer_bytes(layout->ranges, layout->n_ranges);
    struct io_range *trimmed = realloc(layout->ranges, (layout->n_ranges + 1ul) * sizeof(*layout->ranges));
    if (trimmed)
        layout->ranges = trimmed;
done:
    free(placed);
    if (status != PS_OK)
        tensor_layout_deinit(layout);
    return status;
}

void tensor_layout_deinit(struct tensor_layout *layout)
{
    free(layout->ranges);
    free(layout->offset);
    *layout = (struct tensor_layout){0};
}
