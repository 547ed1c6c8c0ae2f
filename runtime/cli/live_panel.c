/* What the live panel says, line by line: a title, figures in columns, the heat map and its legend. The map comes last to
 * its space: on a low screen figures are worth more. */
#include "runtime/cli/live_panel.h"

#include <math.h>
#include <stdbool.h>

#include "runtime/size_text.h"

enum {
    LEAST_PANEL_ROWS = 10, /* screens below this get a status line */
    LEAST_PANEL_COLS = 40,
    LEAST_SCREEN_ROWS = 3, /* a scroll region takes two lines */
    FIGURE_WIDTH = 25,
    FIGURE_GAP = 2,
    LABEL_WIDTH = 4,     /* layer number before a row of the map */
    MOST_CELL_WIDTH = 4, /* columns of one expert */
    MOST_LEVELS = 6,
    TEXT_SIZE = 160,
};

/* ---- layout ---- */

struct layout {
    uint32_t per_row;     /* figures in one line */
    uint32_t figure_rows; /* */
    uint32_t map_rows;    /* lines, of one or two layers (or groups of layers) */
};

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static bool is_small(const struct live_screen *screen)
{
    return screen->rows < LEAST_PANEL_ROWS || screen->cols < LEAST_PANEL_COLS;
}

/* Layers that share one line of the map at the least. */
static uint32_t layers_per_line(const struct live_screen *screen)
{
    return screen->glyphs == LIVE_COLOURS ? 2 : 1;
}

/* ---- figures ---- */

/* Decimals that leave a positive number five characters, until it has six digits. */
static int decimals(double value)
{
    return value < 99.995 ? 2 : value < 999.95 ? 1 : 0;
}

static void shares(char *out, const char *label, double now, double average)
{
    snprintf(out, TEXT_SIZE, "%-8s%6.1f%% avg%5.1f%%", label, 100.0 * now, 100.0 * average);
}

static void speed_figure(char *out, const struct live_state *s)
{
    double now = s->now.tokens_s, average = s->average.tokens_s;
    snprintf(out, TEXT_SIZE, "%-8s%7.*f avg%6.*f", "tokens/s", decimals(now), now, decimals(average),
             average);
}

static void hit_figure(char *out, const struct live_state *s)
{
    shares(out, "hits", s->now.hit_rate, s->average.hit_rate);
}

static void stall_figure(char *out, const struct live_state *s)
{
    shares(out, "stalled", s->now.stall_share, s->average.stall_share);
}

static void read_figure(char *out, const struct live_state *s)
{
    snprintf(out, TEXT_SIZE, "%-8s%6.2f ahead%5.2f", "GB/s", s->now.demand_bytes_s / 1e9,
             s->now.ahead_bytes_s / 1e9);
}

static void memory_figure(char *out, const struct live_state *s)
{
    char text[2][SIZE_TEXT_SIZE];
    snprintf(out, TEXT_SIZE, "%-7s%8s/%s", "memory", size_format(s->memory, text[0]),
             size_format(s->budget, text[1]));
}

static void wasted_figure(char *out, const struct live_state *s)
{
    char text[SIZE_TEXT_SIZE];
    double share = s->bytes_read > 0 ? (double)s->bytes_wasted / (double)s->bytes_read : 0.0;
    snprintf(out, TEXT_SIZE, "%-8s%9s%7.1f%%", "wasted", size_format(s->bytes_wasted, text), 100.0 * share);
}

static void prefetch_figure(char *out, const struct live_state *s)
{
    if (s->prefetch_threshold >= 1.0 || s->prefetch_width <= 0.0)
        snprintf(out, TEXT_SIZE, "%-8s%7s", "prefetch", "off");
    else
        snprintf(out, TEXT_SIZE, "%-8s p%5.2f%5.1f wide", "prefetch", s->prefetch_threshold,
                 s->prefetch_width);
}

static void cache_figure(char *out, const struct live_state *s)
{
    uint32_t resident = 0;
    for (uint32_t i = 0; i < s->n_layers * s->n_experts; i++)
        resident += s->experts[i].resident;
    snprintf(out, TEXT_SIZE, "%-8s%7u of%7u", "experts", resident, s->n_layers * s->n_experts);
}

/* In the order of their worth: a low screen shows the first ones. */
static void (*const figures[])(char *out, const struct live_state *s) = {
    speed_figure,  hit_figure,    stall_figure,    read_figure,
    memory_figure, wasted_figure, prefetch_figure, cache_figure,
};
enum { N_FIGURES = sizeof(figures) / sizeof(figures[0]) };

static struct layout lay_out(const struct live_screen *screen, uint32_t n_layers)
{
    struct layout l = {.per_row = (screen->cols - 1 + FIGURE_GAP) / (FIGURE_WIDTH + FIGURE_GAP)};
    uint32_t most = screen->rows / 2 - 1; /* without the title */
    l.figure_rows = min_u32((N_FIGURES + l.per_row - 1) / l.per_row, most);
    uint32_t left = most - l.figure_rows;
    uint32_t wanted = (n_layers + layers_per_line(screen) - 1) / layers_per_line(screen);
    l.map_rows = left > 1 ? min_u32(wanted, left - 1) : 0; /* the legend takes a line */
    return l;
}

uint32_t live_panel_rows(const struct live_screen *screen, uint32_t n_layers)
{
    if (screen->rows < LEAST_SCREEN_ROWS || screen->cols < 2)
        return 0;
    if (is_small(screen))
        return 1;
    struct layout l = lay_out(screen, n_layers);
    return 1 + l.figure_rows + l.map_rows + (l.map_rows > 0);
}

static void draw_figures(FILE *out, const struct layout *l, const struct live_state *state)
{
    char text[TEXT_SIZE];
    for (uint32_t row = 0; row < l->figure_rows; row++) {
        for (uint32_t i = row * l->per_row; i < (row + 1) * l->per_row && i < N_FIGURES; i++) {
            figures[i](text, state);
            fprintf(out, "%*s%-*.*s", i > row * l->per_row ? FIGURE_GAP : 0, "", FIGURE_WIDTH, FIGURE_WIDTH,
                    text);
        }
        fputc('\n', out);
    }
}

/* ---- title, and what is left of the panel on a small screen ---- */

static void draw_title(FILE *out, const struct live_screen *screen, const struct live_state *s)
{
    char text[TEXT_SIZE];
    const char *dash = screen->glyphs == LIVE_ASCII ? "-" : "─";
    uint32_t width = (uint32_t)snprintf(text, sizeof(text), " penstock: %s %llu of %llu ", s->phase,
                                        (unsigned long long)s->done, (unsigned long long)s->wanted);
    width = min_u32(width, screen->cols - 2);
    fprintf(out, "%s%.*s", dash, (int)width, text);
    for (uint32_t i = 1 + width; i + 1 < screen->cols; i++)
        fputs(dash, out);
    fputc('\n', out);
}

static void draw_status(FILE *out, const struct live_screen *screen, const struct live_state *s)
{
    char text[TEXT_SIZE], size[2][SIZE_TEXT_SIZE];
    snprintf(text, sizeof(text), "%.2f tok/s, hits %.0f%%, %.2f GB/s, stalled %.0f%%, %s of %s, %s %llu/%llu",
             s->now.tokens_s, 100.0 * s->now.hit_rate, (s->now.demand_bytes_s + s->now.ahead_bytes_s) / 1e9,
             100.0 * s->now.stall_share, size_format(s->memory, size[0]), size_format(s->budget, size[1]),
             s->phase, (unsigned long long)s->done, (unsigned long long)s->wanted);
    fprintf(out, "%.*s\n", (int)screen->cols - 1, text);
}

/* ---- heat map ---- */

enum residency { ABSENT, PARTLY, RESIDENT, N_RESIDENCIES };

/* Seldom to often chosen. Without colours a group counts as what most of it is. */
static const char *const ascii_glyphs[N_RESIDENCIES][MOST_LEVELS] = {
    [ABSENT] = {" ", ".", ":", ";"}, [RESIDENT] = {"-", "+", "#", "@"}};
static const char *const shade_glyphs[N_RESIDENCIES][MOST_LEVELS] = {
    [ABSENT] = {" ", ".", ":", ";"}, [RESIDENT] = {"░", "▒", "▓", "█"}};
/* Entries of the 256-colour palette: greys, blues, embers. */
static const uint8_t colours[N_RESIDENCIES][MOST_LEVELS] = {[ABSENT] = {233, 235, 238, 241, 245, 250},
                                                            [PARTLY] = {17, 18, 19, 26, 33, 81},
                                                            [RESIDENT] = {52, 88, 124, 166, 208, 220}};

static uint32_t n_levels(enum live_glyphs glyphs)
{
    return glyphs == LIVE_COLOURS ? MOST_LEVELS : 4;
}

/* A cell of the map stands for experts of one or more layers. */
struct cell {
    uint32_t level;
    enum residency residency;
};

struct map {
    const struct live_state *state;
    enum live_glyphs glyphs;
    uint32_t rows, cols; /* cells */
    uint32_t cell_width; /* columns of the screen */
    double best;         /* greatest mean score of a cell */
};

/* Bounds of part i of n things divided into parts. */
static uint32_t part_start(uint32_t i, uint32_t parts, uint32_t n)
{
    return (uint32_t)((uint64_t)i * n / parts);
}

struct cell_sum {
    double score;    /* mean */
    double resident; /* share */
};

static struct cell_sum sum_cell(const struct map *m, uint32_t row, uint32_t col)
{
    const struct live_state *s = m->state;
    uint32_t last_layer = part_start(row + 1, m->rows, s->n_layers);
    uint32_t first = part_start(col, m->cols, s->n_experts),
             last = part_start(col + 1, m->cols, s->n_experts);
    struct cell_sum sum = {0};
    uint32_t n = 0;
    for (uint32_t layer = part_start(row, m->rows, s->n_layers); layer < last_layer; layer++) {
        for (uint32_t i = first; i < last; i++, n++) {
            const struct ps_expert_state *expert = &s->experts[(size_t)layer * s->n_experts + i];
            sum.score += (double)expert->score;
            sum.resident += expert->resident;
        }
    }
    return (struct cell_sum){sum.score / n, sum.resident / n};
}

static struct map make_map(const struct live_screen *screen, const struct live_state *state, uint32_t lines)
{
    uint32_t width = screen->cols - 1 - LABEL_WIDTH;
    struct map m = {.state = state, .glyphs = screen->glyphs};
    m.rows = min_u32(lines * layers_per_line(screen), state->n_layers);
    m.cols = min_u32(width, state->n_experts);
    m.cell_width = min_u32(width / m.cols, MOST_CELL_WIDTH);
    for (uint32_t row = 0; row < m.rows; row++) {
        for (uint32_t col = 0; col < m.cols; col++)
            m.best = fmax(m.best, sum_cell(&m, row, col).score);
    }
    return m;
}

static struct cell make_cell(const struct map *m, uint32_t row, uint32_t col)
{
    struct cell_sum sum = sum_cell(m, row, col);
    uint32_t levels = n_levels(m->glyphs);
    /* The root spreads the many small scores; the best one alone would reach the end. */
    double level = m->best > 0.0 && sum.score > 0.0 ? sqrt(sum.score / m->best) * levels : 0.0;
    struct cell cell = {.level = level < levels ? (uint32_t)level : levels - 1};
    if (m->glyphs == LIVE_COLOURS && sum.resident > 0.0 && sum.resident < 1.0)
        cell.residency = PARTLY;
    else
        cell.residency = sum.resident >= 0.5 ? RESIDENT : ABSENT;
    return cell;
}

static const char *glyph(enum live_glyphs glyphs, struct cell cell)
{
    return (glyphs == LIVE_SHADES ? shade_glyphs : ascii_glyphs)[cell.residency][cell.level];
}

static void draw_plain_row(FILE *out, const struct map *m, uint32_t row)
{
    for (uint32_t col = 0; col < m->cols; col++) {
        const char *text = glyph(m->glyphs, make_cell(m, row, col));
        for (uint32_t i = 0; i < m->cell_width; i++)
            fputs(text, out);
    }
}

/* Two rows in one line: the upper half of a character in the one's colour on a ground of the other's. */
static void draw_coloured_rows(FILE *out, const struct map *m, uint32_t row)
{
    int upper = -1, lower = -1;
    bool has_lower = row + 1 < m->rows;
    for (uint32_t col = 0; col < m->cols; col++) {
        struct cell cell = make_cell(m, row, col);
        int colour = colours[cell.residency][cell.level];
        if (colour != upper)
            fprintf(out, "\033[38;5;%dm", upper = colour);
        if (has_lower) {
            cell = make_cell(m, row + 1, col);
            colour = colours[cell.residency][cell.level];
            if (colour != lower)
                fprintf(out, "\033[48;5;%dm", lower = colour);
        }
        for (uint32_t i = 0; i < m->cell_width; i++)
            fputs("▀", out);
    }
    fputs("\033[0m", out);
}

static void draw_map(FILE *out, const struct map *m)
{
    uint32_t step = m->glyphs == LIVE_COLOURS ? 2 : 1;
    for (uint32_t row = 0; row < m->rows; row += step) {
        fprintf(out, "%*u ", LABEL_WIDTH - 1, part_start(row, m->rows, m->state->n_layers));
        if (m->glyphs == LIVE_COLOURS)
            draw_coloured_rows(out, m, row);
        else
            draw_plain_row(out, m, row);
        fputc('\n', out);
    }
}

static void draw_legend(FILE *out, const struct live_screen *screen)
{
    static const char title[] = "seldom to often chosen:";
    static const char *const names[N_RESIDENCIES] = {
        [RESIDENT] = " in memory ", [PARTLY] = " partly ", [ABSENT] = " not "};
    static const enum residency order[] = {RESIDENT, PARTLY, ABSENT};
    uint32_t levels = n_levels(screen->glyphs);
    bool coloured = screen->glyphs == LIVE_COLOURS;
    /* All of it takes 65 columns; the samples alone 42. */
    fprintf(out, "%*s%s", LABEL_WIDTH - 1, "", screen->cols >= 70 ? title : "");
    uint32_t left = screen->cols - LABEL_WIDTH - (screen->cols >= 70 ? (uint32_t)sizeof(title) - 1 : 0);
    for (uint32_t i = 0; i < N_RESIDENCIES; i++) {
        int name_width = snprintf(NULL, 0, "%s", names[order[i]]);
        uint32_t width = (uint32_t)name_width + levels;
        if ((order[i] == PARTLY && !coloured) || width > left)
            continue;
        left -= width;
        fputs(names[order[i]], out);
        for (uint32_t level = 0; level < levels; level++) {
            if (coloured)
                fprintf(out, "\033[38;5;%dm█", colours[order[i]][level]);
            else
                fputs(glyph(screen->glyphs, (struct cell){level, order[i]}), out);
        }
        fputs(coloured ? "\033[0m" : "", out);
    }
    fputc('\n', out);
}

void live_panel_draw(FILE *out, const struct live_screen *screen, const struct live_state *state)
{
    uint32_t n_layers = state->n_experts > 0 ? state->n_layers : 0;
    uint32_t rows = live_panel_rows(screen, n_layers);
    if (rows == 1)
        draw_status(out, screen, state);
    if (rows <= 1)
        return;
    struct layout l = lay_out(screen, n_layers);
    draw_title(out, screen, state);
    draw_figures(out, &l, state);
    if (l.map_rows > 0) {
        struct map m = make_map(screen, state, l.map_rows);
        draw_map(out, &m);
        draw_legend(out, screen);
    }
}
