/* Escape sequences of the live panel, all of the VT100 but for the colours: save and restore the cursor (ESC 7, ESC 8),
 * scroll region (CSI r), index (ESC D: down a line, scrolling at the end of the region). */
#include "runtime/cli/live_terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* ---- what is written ---- */

void live_compose_place(FILE *out, const struct live_screen *screen, uint32_t panel_rows)
{
    /* Setting a region moves the cursor, so it is saved around that; what stood below is an older panel. */
    fputs("\0337\033[r\0338\033[J", out);
    if (panel_rows == 0)
        return;
    for (uint32_t i = 0; i < panel_rows; i++)
        fputs("\033D", out);
    fprintf(out, "\033[%uA\0337\033[1;%ur\0338", panel_rows, screen->rows - panel_rows);
}

void live_compose_lines(FILE *out, const struct live_screen *screen, const char *lines, uint32_t n)
{
    fputs("\033[?25l\0337\033[0m", out);
    for (uint32_t i = 0; i < n; i++) {
        size_t length = strcspn(lines, "\n");
        fprintf(out, "\033[%u;1H%.*s\033[K", screen->rows - n + i + 1, (int)length, lines);
        lines += length + (lines[length] == '\n');
    }
    fputs("\0338\033[?25h", out);
}

void live_compose_leave(FILE *out, uint32_t rows, uint32_t panel_rows)
{
    fprintf(out, "\0337\033[0m\033[%u;1H\033[J\033[r\0338\033[?25h", rows - panel_rows + 1);
}

static bool mentions(const char *text, const char *const *words)
{
    for (; text && *words; words++) {
        if (strcasestr(text, *words))
            return true;
    }
    return false;
}

enum live_glyphs live_glyphs_for(const char *term, const char *colorterm, const char *no_color,
                                 const char *locale)
{
    static const char *const utf8[] = {"utf-8", "utf8", NULL};
    static const char *const coloured[] = {"256color", "direct",  "kitty", "alacritty",
                                           "foot",     "ghostty", NULL};
    static const char *const deep[] = {"truecolor", "24bit", NULL};
    if (!mentions(locale, utf8))
        return LIVE_ASCII;
    bool wanted = !no_color || !*no_color;
    return wanted && (mentions(term, coloured) || mentions(colorterm, deep)) ? LIVE_COLOURS : LIVE_SHADES;
}

/* ---- signals ---- */

enum { SEQUENCE_SIZE = 64 };

/* What the handlers need; a process has one terminal. */
static struct {
    char leave[SEQUENCE_SIZE];
    volatile sig_atomic_t leave_length; /* 0: no panel stands */
    volatile sig_atomic_t drawing;      /* the cursor may be in the panel */
    volatile sig_atomic_t interrupts;   /* */
    volatile sig_atomic_t stopped;      /* the panel was taken away by a stop */
    int fd;
} placed;

enum { SIGNAL_INTERRUPT, SIGNAL_TERMINATE, SIGNAL_STOP, N_SIGNALS };
static const int signals[N_SIGNALS] = {SIGINT, SIGTERM, SIGTSTP};
static struct sigaction before[N_SIGNALS];

/* Async-signal-safe. */
static void write_leave(void)
{
    static const char out_of_the_panel[] = "\0338";
    bool written =
        placed.leave_length == 0 || ((!placed.drawing || write(placed.fd, out_of_the_panel, 2) == 2) &&
                                     write(placed.fd, placed.leave, (size_t)placed.leave_length) > 0);
    (void)written;
}

/* The first one is the program's, which ends by itself; the second one kills, and a third one if that should block. */
static void on_interrupt(int number)
{
    int error = errno;
    const struct sigaction *program = &before[number == SIGINT ? SIGNAL_INTERRUPT : SIGNAL_TERMINATE];
    if (placed.interrupts++ == 0 && program->sa_handler != SIG_DFL) {
        if (program->sa_handler != SIG_IGN)
            program->sa_handler(number);
    } else {
        signal(number, SIG_DFL);
        write_leave();
        raise(number);
    }
    errno = error;
}

static void on_stop(int number)
{
    int error = errno;
    (void)number;
    write_leave();
    placed.leave_length = 0;
    placed.stopped = 1;
    raise(SIGSTOP);
    errno = error;
}

static void catch_signals(void)
{
    for (int i = 0; i < N_SIGNALS; i++) {
        sigaction(signals[i], NULL, &before[i]);
        if (before[i].sa_handler == SIG_IGN)
            continue;
        struct sigaction action = {.sa_handler = i == SIGNAL_STOP ? on_stop : on_interrupt,
                                   .sa_flags = i == SIGNAL_STOP ? SA_RESTART : SA_NODEFER};
        sigemptyset(&action.sa_mask);
        sigaction(signals[i], &action, NULL);
    }
}

static void release_signals(void)
{
    for (int i = 0; i < N_SIGNALS; i++) {
        /* As the program's own handler would have left it: it goes with its first signal. */
        if (i != SIGNAL_STOP && placed.interrupts > 0)
            signal(signals[i], SIG_DFL);
        else
            sigaction(signals[i], &before[i], NULL);
    }
}

/* ---- the terminal ---- */

static const char *locale_name(void)
{
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const char *value = getenv(names[i]);
        if (value && *value)
            return value;
    }
    return NULL;
}

void live_terminal_open(struct live_terminal *t, int fd, struct live_screen *screen)
{
    const char *term = getenv("TERM");
    *t = (struct live_terminal){.fd = fd, .addressable = term && *term && strcmp(term, "dumb") != 0};
    screen->glyphs = t->addressable
                         ? live_glyphs_for(term, getenv("COLORTERM"), getenv("NO_COLOR"), locale_name())
                         : LIVE_ASCII;
    live_terminal_size(t, screen);
    memset(&placed, 0, sizeof(placed));
    placed.fd = fd;
    if (t->addressable)
        catch_signals();
}

void live_terminal_size(const struct live_terminal *t, struct live_screen *screen)
{
    struct winsize size = {0};
    bool known = ioctl(t->fd, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0;
    screen->rows = known ? size.ws_row : 24;
    screen->cols = known ? size.ws_col : 80;
}

static void write_all(struct live_terminal *t, const char *text, size_t length)
{
    while (length > 0 && !t->broken) {
        ssize_t n = write(t->fd, text, length);
        if (n < 0 && errno != EINTR)
            t->broken = true;
        if (n > 0) {
            text += n;
            length -= (size_t)n;
        }
    }
}

/* What a handler would write from now on. */
static void remember_leave(const struct live_terminal *t)
{
    placed.leave_length = 0;
    FILE *out = t->panel_rows > 0 ? fmemopen(placed.leave, sizeof(placed.leave), "w") : NULL;
    if (!out)
        return;
    live_compose_leave(out, t->rows, t->panel_rows);
    long length = ftell(out);
    if (fclose(out) == 0 && length > 0)
        placed.leave_length = (sig_atomic_t)length;
}

void live_terminal_show(struct live_terminal *t, const struct live_screen *screen, const char *lines,
                        uint32_t n)
{
    if (t->broken || !t->addressable || (n == 0 && t->panel_rows == 0))
        return;
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    if (!out)
        return;
    bool moved = placed.stopped || t->rows != screen->rows || t->cols != screen->cols || t->panel_rows != n;
    placed.stopped = 0;
    if (moved)
        live_compose_place(out, screen, n);
    live_compose_lines(out, screen, lines, n);
    bool ok = fclose(out) == 0;
    if (ok && moved) {
        t->rows = screen->rows;
        t->cols = screen->cols;
        t->panel_rows = n;
        remember_leave(t);
    }
    placed.drawing = 1;
    if (ok)
        write_all(t, text, length);
    placed.drawing = 0;
    free(text);
}

void live_terminal_close(struct live_terminal *t)
{
    if (!t->addressable)
        return;
    t->broken = false; /* what refused a frame may take this */
    write_all(t, placed.leave, (size_t)placed.leave_length);
    placed.leave_length = 0;
    release_signals();
    t->panel_rows = 0;
}
