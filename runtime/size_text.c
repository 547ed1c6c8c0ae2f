/* Sizes as text. Parsing is exact integer arithmetic, so that "0.1G" means the same bytes on every machine.
 */
#include "runtime/size_text.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

static const char units[] = "KMGT";

/* Bits by which a unit shifts; -1 when text is not a unit. */
static int unit_shift(const char *text)
{
    if (!*text)
        return 0;
    if (*text == ' ')
        text++;
    if (strcasecmp(text, "b") == 0)
        return 0;
    const char *unit = *text ? strchr(units, *text & ~0x20) : NULL; /* upper case */
    if (!unit || !*unit || (text[1] && strcasecmp(text + 1, "b") != 0 && strcasecmp(text + 1, "ib") != 0))
        return -1;
    return 10 * (int)(unit - units + 1);
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

bool size_parse(const char *text, uint64_t *bytes)
{
    uint64_t whole = 0, fraction = 0, divisor = 1;
    const char *at = text;
    bool digits = is_digit(*at);
    for (; is_digit(*at); at++) {
        if (__builtin_mul_overflow(whole, 10, &whole) ||
            __builtin_add_overflow(whole, (uint64_t)(*at - '0'), &whole))
            return false;
    }
    if (*at == '.') {
        at++;
        digits = digits || is_digit(*at);
        for (; is_digit(*at); at++) {
            if (divisor > UINT64_MAX / 20) /* digits this far down are below one byte of any unit */
                continue;
            fraction = fraction * 10 + (uint64_t)(*at - '0');
            divisor *= 10;
        }
    }
    int shift = digits ? unit_shift(at) : -1;
    if (shift < 0 || whole > UINT64_MAX >> shift)
        return false;
    uint64_t part = (uint64_t)(((unsigned __int128)fraction << shift) / divisor);
    return !__builtin_add_overflow(whole << shift, part, bytes);
}

const char *size_format(uint64_t bytes, char out[SIZE_TEXT_SIZE])
{
    int unit = -1;
    double value = (double)bytes;
    while (value >= 1023.5 && units[unit + 1]) {
        value /= 1024.0;
        unit++;
    }
    if (unit < 0)
        snprintf(out, SIZE_TEXT_SIZE, "%u B", (unsigned)bytes);
    else
        snprintf(out, SIZE_TEXT_SIZE, "%.*f %ciB",
                 value < 9.995   ? 2
                 : value < 99.95 ? 1
                                 : 0,
                 value, units[unit]);
    return out;
}
