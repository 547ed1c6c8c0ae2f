/* The note that a pack leaves in its container, as text: how it was packed, and the figures that decided it. */
#ifndef PENSTOCK_RUNTIME_CLI_PACK_NOTE_H
#define PENSTOCK_RUNTIME_CLI_PACK_NOTE_H

#include <jansson.h>

/* The note is the file's: what it lacks is left out, and no control characters of it reach the terminal. */
void pack_note_print(const json_t *note);

#endif
