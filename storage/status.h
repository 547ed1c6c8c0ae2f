/* Status codes and the error object: the one way in which storage and runtime report failure.
 *
 * Functions return a status; the message, with the value at fault, is in the error object. Nothing in the
 * library prints, exits or aborts (DESIGN.md, invariant 6). */
#ifndef PENSTOCK_STORAGE_STATUS_H
#define PENSTOCK_STORAGE_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

enum ps_status {
    PS_OK = 0,
    PS_ERR_ARGUMENT,    /* a parameter is out of its range */
    PS_ERR_NOMEM,       /* an allocation failed */
    PS_ERR_IO,          /* open, read or write failed; the message names file and offset */
    PS_ERR_FORMAT,      /* the file is malformed or truncated */
    PS_ERR_UNSUPPORTED, /* well-formed, but an architecture, block format or option that is not handled */
    PS_ERR_BUDGET,      /* the memory budget is too small; the message names the smallest that works */
    PS_ERR_CONTEXT,     /* more tokens than the context holds */
    PS_ERR_CANCELLED,   /* the caller asked to stop */
};

enum { PS_ERROR_MESSAGE_SIZE = 1024 };

struct ps_error {
    enum ps_status status;
    char message[PS_ERROR_MESSAGE_SIZE]; /* one line without a newline: "what: why: what to do" */
};

/* Fills err (may be NULL) and returns status, so that `return ps_error_set(err, PS_ERR_IO, ...)` reads well.
 * Control characters that come from a file are replaced by '?', so the message stays one line. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
enum ps_status
ps_error_set(struct ps_error *err, enum ps_status status, const char *format, ...);

#ifdef __cplusplus
}
#endif
#endif
