/* Regrouping with vectors of 16 bytes, which every 64-bit x86 and Arm has: regroup_plain.c says what is computed.
 *
 * A matrix of 16 x 16 bytes is transposed by four rounds of interleaving its rows i and i + 8. Where a side is no multiple
 * of 16, the last tile overlaps the one before it. */
#include "storage/regroup.h"

#include <stddef.h>
#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { TILE = 16, TILE_WORDS = TILE / 2 };

typedef uint8_t bytes16 __attribute__((vector_size(TILE)));
typedef uint16_t words8 __attribute__((vector_size(TILE)));
typedef uint64_t longs2 __attribute__((vector_size(TILE)));

#if defined(__SSE2__)
static inline bytes16 zip_low(bytes16 a, bytes16 b)
{
    return (bytes16)_mm_unpacklo_epi8((__m128i)a, (__m128i)b);
}
static inline bytes16 zip_high(bytes16 a, bytes16 b)
{
    return (bytes16)_mm_unpackhi_epi8((__m128i)a, (__m128i)b);
}
static inline words8 zip_words_low(words8 a, words8 b)
{
    return (words8)_mm_unpacklo_epi16((__m128i)a, (__m128i)b);
}
static inline words8 zip_words_high(words8 a, words8 b)
{
    return (words8)_mm_unpackhi_epi16((__m128i)a, (__m128i)b);
}
#elif defined(__aarch64__)
static inline bytes16 zip_low(bytes16 a, bytes16 b)
{
    return (bytes16)vzip1q_u8((uint8x16_t)a, (uint8x16_t)b);
}
static inline bytes16 zip_high(bytes16 a, bytes16 b)
{
    return (bytes16)vzip2q_u8((uint8x16_t)a, (uint8x16_t)b);
}
static inline words8 zip_words_low(words8 a, words8 b)
{
    return (words8)vzip1q_u16((uint16x8_t)a, (uint16x8_t)b);
}
static inline words8 zip_words_high(words8 a, words8 b)
{
    return (words8)vzip2q_u16((uint16x8_t)a, (uint16x8_t)b);
}
#else
static inline bytes16 zip_from(bytes16 a, bytes16 b, int first)
{
    bytes16 out;
    for (int i = 0; i < TILE; i++)
        out[i] = i % 2 ? b[first + i / 2] : a[first + i / 2];
    return out;
}
static inline words8 zip_words_from(words8 a, words8 b, int first)
{
    words8 out;
    for (int i = 0; i < TILE_WORDS; i++)
        out[i] = i % 2 ? b[first + i / 2] : a[first + i / 2];
    return out;
}
static inline bytes16 zip_low(bytes16 a, bytes16 b)
{
    return zip_from(a, b, 0);
}
static inline bytes16 zip_high(bytes16 a, bytes16 b)
{
    return zip_from(a, b, TILE / 2);
}
static inline words8 zip_words_low(words8 a, words8 b)
{
    return zip_words_from(a, b, 0);
}
static inline words8 zip_words_high(words8 a, words8 b)
{
    return zip_words_from(a, b, TILE_WORDS / 2);
}
#endif

/* ---- bytes ---- */

/* out[i]: byte i of each of 16 rows */
static inline void load_transposed(const uint8_t *src, size_t pitch, bytes16 out[TILE])
{
    bytes16 other[TILE];
    for (int i = 0; i < TILE; i++)
        memcpy(&out[i], src + i * pitch, TILE);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < TILE / 2; i++) {
            other[2 * i] = zip_low(out[i], out[i + TILE / 2]);
            other[2 * i + 1] = zip_high(out[i], out[i + TILE / 2]);
        }
        for (int i = 0; i < TILE / 2; i++) {
            out[2 * i] = zip_low(other[i], other[i + TILE / 2]);
            out[2 * i + 1] = zip_high(other[i], other[i + TILE / 2]);
        }
    }
}

/* First index of the tile after the one at `at` of `side`, which the last tile ends with; side: none. */
static inline size_t next_tile(size_t at, size_t tile, size_t side)
{
    if (at + tile >= side)
        return side;
    return at + 2 * tile <= side ? at + tile : side - tile;
}

/* src[rows][columns] to dst[columns][rows] */
static void transpose(const uint8_t *restrict src, size_t rows, size_t columns, uint8_t *restrict dst)
{
    if (rows < TILE || columns < TILE) {
        for (size_t row = 0; row < rows; row++) {
            for (size_t column = 0; column < columns; column++)
                dst[column * rows + row] = src[row * columns + column];
        }
        return;
    }
    for (size_t column = 0; column < columns; column = next_tile(column, TILE, columns)) {
        for (size_t row = 0; row < rows; row = next_tile(row, TILE, rows)) {
            bytes16 tile[TILE];
            load_transposed(src + row * columns + column, columns, tile);
            for (int i = 0; i < TILE; i++)
                memcpy(dst + (column + i) * rows + row, &tile[i], TILE);
        }
    }
}

/* ---- strides of 2 and 4 bytes; turn: of each 16-bit word, to the left when split and to the right when joined. These loops
 * are left to the compiler's vectors. ---- */

static inline void split2(const uint8_t *restrict src, size_t n, int turn, uint8_t *restrict dst)
{
    uint8_t *restrict high = dst + n;
    for (size_t i = 0; i < n; i++) {
        uint16_t word;
        memcpy(&word, src + 2 * i, sizeof(word));
        word = (uint16_t)(word << turn | word >> (16 - turn));
        dst[i] = (uint8_t)word;
        high[i] = (uint8_t)(word >> 8);
    }
}

static inline void join2(const uint8_t *restrict src, size_t n, int turn, uint8_t *restrict dst)
{
    const uint8_t *restrict high = src + n;
    for (size_t i = 0; i < n; i++) {
        uint16_t word = (uint16_t)(src[i] | high[i] << 8);
        word = (uint16_t)(word >> turn | (uint32_t)word << (16 - turn));
        memcpy(dst + 2 * i, &word, sizeof(word));
    }
}

static inline void split4(const uint8_t *restrict src, size_t n, int turn, uint8_t *restrict dst)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t words;
        memcpy(&words, src + 4 * i, sizeof(words));
        if (turn)
            words = (words << 1 & 0xfffefffe) | (words >> 15 & 0x00010001);
        for (int byte = 0; byte < 4; byte++)
            dst[byte * n + i] = (uint8_t)(words >> 8 * byte);
    }
}

static inline void join4(const uint8_t *restrict src, size_t n, int turn, uint8_t *restrict dst)
{
    const uint8_t *restrict row1 = src + n, *restrict row2 = src + 2 * n, *restrict row3 = src + 3 * n;
    for (size_t i = 0; i < n; i++) {
        uint32_t words = src[i] | (uint32_t)row1[i] << 8 | (uint32_t)row2[i] << 16 | (uint32_t)row3[i] << 24;
        if (turn)
            words = (words >> 1 & 0x7fff7fff) | (words << 15 & 0x80008000);
        memcpy(dst + 4 * i, &words, sizeof(words));
    }
}

/* ---- bit planes ---- */

/* Of a matrix of 8 x 8 bits, a row in each byte; Warren, Hacker's Delight, 7-3. */
#define TRANSPOSE_BITS(x, t)                                                                                 \
    (t = (x ^ x >> 7) & 0x00aa00aa00aa00aaull, x ^= t ^ t << 7, t = (x ^ x >> 14) & 0x0000cccc0000ccccull,   \
     x ^= t ^ t << 14, t = (x ^ x >> 28) & 0x00000000f0f0f0f0ull, x ^= t ^ t << 28)

static void split_planes(const uint8_t *restrict src, size_t stride, size_t plane_bytes,
                         uint8_t *restrict dst)
{
    for (size_t byte = 0; byte < stride; byte++) {
        for (size_t k = 0; k < plane_bytes; k++) {
            uint64_t x = 0, t;
            for (size_t i = 0; i < 8; i++)
                x |= (uint64_t)src[(8 * k + i) * stride + byte] << 8 * i;
            TRANSPOSE_BITS(x, t);
            for (size_t bit = 0; bit < 8; bit++)
                dst[(8 * byte + bit) * plane_bytes + k] = (uint8_t)(x >> 8 * bit);
        }
    }
}

/* From the 16 planes of a word, 16 bytes of each: out[k] is the word of the eight strides that byte k is of. */
static inline void join_word(const uint8_t *planes, size_t plane_bytes, words8 out[TILE])
{
    bytes16 tile[TILE];
    load_transposed(planes, plane_bytes, tile);
    for (int k = 0; k < TILE; k++) {
        longs2 x = (longs2)tile[k], t;
        TRANSPOSE_BITS(x, t);
        out[k] = (words8)zip_low((bytes16)x, (bytes16)(longs2){x[1], x[1]});
    }
}

/* Bytes k .. k+15 of all planes; strides of less than eight words. */
static void join_narrow(const uint8_t *restrict src, size_t stride, size_t plane_bytes, size_t k,
                        uint8_t *restrict dst)
{
    for (size_t word = 0; word < stride / 2; word++) {
        words8 out[TILE];
        join_word(src + 16 * word * plane_bytes + k, plane_bytes, out);
        uint8_t *to = dst + 8 * k * stride + 2 * word;
        if (stride == 2) {
            memcpy(to, out, sizeof(out));
            continue;
        }
        for (int i = 0; i < 8 * TILE; i++)
            memcpy(to + i * stride, (uint16_t *)out + i, sizeof(uint16_t));
    }
}

static void join_wide(const uint8_t *restrict src, size_t stride, size_t plane_bytes, size_t k,
                      uint8_t *restrict dst)
{
    size_t n_words = stride / 2;
    for (size_t word = 0; word < n_words; word = next_tile(word, TILE_WORDS, n_words)) {
        words8 out[TILE_WORDS][TILE];
        for (size_t i = 0; i < TILE_WORDS; i++)
            join_word(src + 16 * (word + i) * plane_bytes + k, plane_bytes, out[i]);
        for (int j = 0; j < TILE; j++) {
            words8 from[TILE_WORDS], to[TILE_WORDS];
            for (int i = 0; i < TILE_WORDS; i++)
                from[i] = out[i][j];
            for (int round = 0; round < 3; round++) {
                for (int i = 0; i < TILE_WORDS / 2; i++) {
                    to[2 * i] = zip_words_low(from[i], from[i + TILE_WORDS / 2]);
                    to[2 * i + 1] = zip_words_high(from[i], from[i + TILE_WORDS / 2]);
                }
                memcpy(from, to, sizeof(from));
            }
            for (int i = 0; i < TILE_WORDS; i++)
                memcpy(dst + (8 * (k + j) + i) * stride + 2 * word, &from[i], TILE);
        }
    }
}

static void join_planes(const uint8_t *restrict src, size_t stride, size_t plane_bytes, uint8_t *restrict dst)
{
    for (size_t k = 0; k < plane_bytes; k = next_tile(k, TILE, plane_bytes)) {
        if (stride < TILE)
            join_narrow(src, stride, plane_bytes, k, dst);
        else
            join_wide(src, stride, plane_bytes, k, dst);
    }
}

/* ---- all of them ---- */

void regroup(enum regrouping how, uint32_t stride, const uint8_t *restrict src, uint32_t bytes,
             uint8_t *restrict dst)
{
    size_t n = bytes / stride, in_planes = n / 8 * 8 * stride;
    if (how == REGROUP_BITS) {
        split_planes(src, stride, n / 8, dst);
        memcpy(dst + in_planes, src + in_planes, bytes - in_planes);
    } else if (stride == 2) {
        split2(src, n, how == REGROUP_FLOATS, dst);
    } else if (stride == 4) {
        split4(src, n, how == REGROUP_FLOATS, dst);
    } else {
        transpose(src, n, stride, dst);
    }
}

void regroup_undo(enum regrouping how, uint32_t stride, const uint8_t *restrict src, uint32_t bytes,
                  uint8_t *restrict dst)
{
    size_t n = bytes / stride, in_planes = n / 8 * 8 * stride;
    if (how == REGROUP_BITS && n / 8 < TILE) {
        regroup_undo_plain(how, stride, src, bytes, dst);
    } else if (how == REGROUP_BITS) {
        join_planes(src, stride, n / 8, dst);
        memcpy(dst + in_planes, src + in_planes, bytes - in_planes);
    } else if (stride == 2) {
        join2(src, n, how == REGROUP_FLOATS, dst);
    } else if (stride == 4) {
        join4(src, n, how == REGROUP_FLOATS, dst);
    } else {
        transpose(src, stride, n, dst);
    }
}
