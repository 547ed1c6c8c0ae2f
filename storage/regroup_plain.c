/* Regrouping as it is defined, a byte or bit at a time. */
#include "storage/regroup.h"

#include <string.h>

bool regroup_takes(enum regrouping how, uint32_t stride)
{
    switch (how) {
    case REGROUP_BYTES:
        return stride > 1;
    case REGROUP_FLOATS:
        return stride == 2 || stride == 4;
    case REGROUP_BITS:
        return stride > 0 && stride % 2 == 0;
    }
    return false;
}

uint32_t regroup_row_bytes(enum regrouping how, uint32_t stride, uint32_t bytes)
{
    uint32_t n = bytes / stride, row = how == REGROUP_BITS ? n / 8 : n;
    return row > 0 ? row : 1;
}

static uint16_t load_word(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static void store_word(uint8_t *p, uint32_t word)
{
    p[0] = (uint8_t)word;
    p[1] = (uint8_t)(word >> 8);
}

static uint32_t turned_left(uint32_t word)
{
    return (word << 1 | word >> 15) & 0xffff;
}

static uint32_t turned_right(uint32_t word)
{
    return (word >> 1 | word << 15) & 0xffff;
}

static void to_planes(uint32_t stride, const uint8_t *src, uint32_t n, uint8_t *dst)
{
    uint32_t plane_bytes = n / 8, in_planes = plane_bytes * 8 * stride;
    memset(dst, 0, in_planes);
    for (uint32_t i = 0; i < plane_bytes * 8; i++) {
        for (uint32_t bit = 0; bit < stride * 8; bit++) {
            int set = src[i * stride + bit / 8] >> bit % 8 & 1;
            dst[bit * plane_bytes + i / 8] |= (uint8_t)(set << i % 8);
        }
    }
    memcpy(dst + in_planes, src + in_planes, n % 8 * stride);
}

static void from_planes(uint32_t stride, const uint8_t *src, uint32_t n, uint8_t *dst)
{
    uint32_t plane_bytes = n / 8, in_planes = plane_bytes * 8 * stride;
    memset(dst, 0, in_planes);
    for (uint32_t i = 0; i < plane_bytes * 8; i++) {
        for (uint32_t bit = 0; bit < stride * 8; bit++) {
            int set = src[bit * plane_bytes + i / 8] >> i % 8 & 1;
            dst[i * stride + bit / 8] |= (uint8_t)(set << bit % 8);
        }
    }
    memcpy(dst + in_planes, src + in_planes, n % 8 * stride);
}

void regroup_plain(enum regrouping how, uint32_t stride, const uint8_t *restrict src, uint32_t bytes,
                   uint8_t *restrict dst)
{
    uint32_t n = bytes / stride;
    switch (how) {
    case REGROUP_BYTES:
        for (uint32_t i = 0; i < bytes; i++)
            dst[i % stride * n + i / stride] = src[i];
        break;
    case REGROUP_FLOATS:
        for (uint32_t i = 0; i < bytes; i += 2) {
            uint32_t word = turned_left(load_word(src + i));
            dst[i % stride * n + i / stride] = (uint8_t)word;
            dst[(i % stride + 1) * n + i / stride] = (uint8_t)(word >> 8);
        }
        break;
    case REGROUP_BITS:
        to_planes(stride, src, n, dst);
        break;
    }
}

void regroup_undo_plain(enum regrouping how, uint32_t stride, const uint8_t *restrict src, uint32_t bytes,
                        uint8_t *restrict dst)
{
    uint32_t n = bytes / stride;
    switch (how) {
    case REGROUP_BYTES:
        for (uint32_t i = 0; i < bytes; i++)
            dst[i] = src[i % stride * n + i / stride];
        break;
    case REGROUP_FLOATS:
        for (uint32_t i = 0; i < bytes; i += 2) {
            uint32_t low = src[i % stride * n + i / stride];
            uint32_t high = src[(i % stride + 1) * n + i / stride];
            store_word(dst + i, turned_right(low | high << 8));
        }
        break;
    case REGROUP_BITS:
        from_planes(stride, src, n, dst);
        break;
    }
}
