/* Sizes as text: "4.8G" to bytes and back. Units are powers of 1024. */
#ifndef PENSTOCK_RUNTIME_SIZE_TEXT_H
#define PENSTOCK_RUNTIME_SIZE_TEXT_H

#include <stdbool.h>
#include <stdint.h>

/* Decimal digits, at most one point, then nothing or one of K M G T in either case, alone or as KB or KiB, or B for
 * bytes; a space may precede it. Rounded down to whole bytes. False: anything else, or more than UINT64_MAX. */
bool size_parse(const char *text, uint64_t *bytes);

enum { SIZE_TEXT_SIZE = 16 };

/* Three significant digits and a unit: "640 MiB", "4.80 GiB", "17 B". size_parse reads it. Returns out. */
const char *size_format(uint64_t bytes, char out[SIZE_TEXT_SIZE]);

#endif
