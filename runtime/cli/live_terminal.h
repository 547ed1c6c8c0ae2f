/* A panel at the bottom of a terminal: the lines above it are a scroll region, in which everything else that the program
 * prints goes on as usual. One at a time, as it owns the terminal and some signals: an interrupt that kills takes the
 * panel away first, a stop (Ctrl-Z) too, and the next frame puts it back. The cursor is where the text left it. */
#ifndef PENSTOCK_RUNTIME_CLI_LIVE_TERMINAL_H
#define PENSTOCK_RUNTIME_CLI_LIVE_TERMINAL_H

#include <stdbool.h>

#include "runtime/cli/live_panel.h"

struct live_terminal {
    int fd;
    bool addressable;    /* the cursor can be moved; else (TERM=dumb) nothing is drawn */
    bool broken;         /* it took no more bytes */
    uint32_t rows, cols; /* for which the panel is placed */
    uint32_t panel_rows; /* 0: there is none */
};

/* fd: a terminal. What it can show is read from the environment. */
void live_terminal_open(struct live_terminal *t, int fd, struct live_screen *screen);
/* The size of now: it changes when the window does. */
void live_terminal_size(const struct live_terminal *t, struct live_screen *screen);
/* Shows n lines as the panel, placed anew where the size has changed. One write. */
void live_terminal_show(struct live_terminal *t, const struct live_screen *screen, const char *lines,
                        uint32_t n);
/* Takes the panel away; signals are as before. */
void live_terminal_close(struct live_terminal *t);

/* What show writes, for tests: room below the cursor and the region; the lines, each at its place; all of it away. */
void live_compose_place(FILE *out, const struct live_screen *screen, uint32_t panel_rows);
void live_compose_lines(FILE *out, const struct live_screen *screen, const char *lines, uint32_t n);
void live_compose_leave(FILE *out, uint32_t rows, uint32_t panel_rows);
/* What a terminal shows, by the values of these variables (NULL: unset). locale: the first of LC_ALL, LC_CTYPE, LANG
 * that is set. */
enum live_glyphs live_glyphs_for(const char *term, const char *colorterm, const char *no_color,
                                 const char *locale);

#endif
