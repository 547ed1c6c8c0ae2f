#include "storage/status.h"

#include <stdarg.h>
#include <stdio.h>

enum ps_status ps_error_set(struct ps_error *err, enum ps_status status, const char *format, ...)
{
    if (!err)
        return status;
    err->status = status;
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof(err->message), format, args);
    va_end(args);
    for (unsigned char *c = (unsigned char *)err->message; *c; c++) {
        if (*c < 0x20 || *c == 0x7f)
            *c = '?';
    }
    return status;
}
