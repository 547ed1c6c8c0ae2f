/* The panel of `--stats live` as text: figures, and a heat map of layers x experts scaled to the screen. Pure: what is to
 * be shown goes in, lines come out. Placing them on the terminal is live_terminal's. */
#ifndef PENSTOCK_RUNTIME_CLI_LIVE_PANEL_H
#define PENSTOCK_RUNTIME_CLI_LIVE_PANEL_H

#include <stdint.h>
#include <stdio.h>

#include "runtime/penstock.h"

enum live_glyphs {
    LIVE_ASCII,   /* printable ASCII, no escape sequence */
    LIVE_SHADES,  /* UTF-8, no escape sequence */
    LIVE_COLOURS, /* UTF-8 and 256 colours, two rows of the map in one line */
};

struct live_screen {
    uint32_t rows, cols;
    enum live_glyphs glyphs;
};

struct live_rates {
    double tokens_s;
    double hit_rate;                      /* 0..1 */
    double stall_share;                   /* of the time, 0..1 */
    double demand_bytes_s, ahead_bytes_s; /* */
};

struct live_state {
    const char *phase;     /* what `done` counts: "prompt", "token" */
    uint64_t done, wanted; /* tokens of this phase */
    struct live_rates now; /* over the last second or so */
    struct live_rates average;
    uint64_t bytes_read, bytes_wasted;     /* of experts, since load */
    double prefetch_threshold;             /* 1: off */
    double prefetch_width;                 /* experts per layer; 0: off */
    uint64_t memory, budget;               /* bytes; peak */
    uint32_t n_layers, n_experts;          /* of the map; 0: none */
    const struct ps_expert_state *experts; /* [n_layers][n_experts] */
};

/* Lines that the panel takes: at most half of the screen; 1 on a screen of less than 10 rows or 40 columns, 0 on one of
 * less than 3 rows. */
uint32_t live_panel_rows(const struct live_screen *screen, uint32_t n_layers);
/* That many lines, each ended by '\n' and less than cols wide. */
void live_panel_draw(FILE *out, const struct live_screen *screen, const struct live_state *state);

#endif
