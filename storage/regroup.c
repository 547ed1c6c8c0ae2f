/* Regrouping, fast. */
#include "storage/regroup.h"

void regroup(enum regrouping how, uint32_t stride, const uint8_t *restrict src, uint32_t bytes,
             uint8_t *restrict dst)
{
    regroup_plain(how, stride, src, bytes, dst);
}

void regroup_undo(enum regrouping how, uint32_t stride, const uint8_t *restrict src, uint32_t bytes,
                  uint8_t *restrict dst)
{
    regroup_undo_plain(how, stride, src, bytes, dst);
}
