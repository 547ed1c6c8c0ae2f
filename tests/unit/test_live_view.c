/* The live view without a terminal: what the panel says at every size, and the sequences that place it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The program's own parts are not in a library. */
#include "runtime/cli/live_panel.c"
#include "runtime/cli/live_terminal.c"

enum { N_LAYERS = 48, N_EXPERTS = 128, MAX_LINES = 256 };

static struct ps_expert_state experts[N_LAYERS * N_EXPERTS];

static struct live_state make_state(uint32_t n_layers, uint32_t n_experts)
{
    for (uint32_t i = 0; i < n_layers * n_experts; i++)
        experts[i] = (struct ps_expert_state){.resident = i % 3 == 0, .score = (float)(i % 101) / 200.0f};
    return (struct live_state){
        .phase = "token",
        .done = 37,
        .wanted = 128,
        .now = {.tokens_s = 12.345,
                .hit_rate = 0.781,
                .stall_share = 0.123,
                .demand_bytes_s = 1.234e9,
                .ahead_bytes_s = 0.25e9},
        .average = {.tokens_s = 11.9, .hit_rate = 0.75, .stall_share = 0.1},
        .bytes_read = 1000u << 20,
        .bytes_wasted = 12u << 20,
        .prefetch_threshold = 0.35,
        .prefetch_width = 6,
        .memory = 3ull << 30,
        .budget = 5153960755,
        .n_layers = n_layers,
        .n_experts = n_experts,
        .experts = experts,
    };
}

struct panel {
    char *text;
    char *lines[MAX_LINES];
    uint32_t n;
};

static struct panel draw(const struct live_screen *screen, const struct live_state *state)
{
    struct panel panel = {0};
    size_t length;
    FILE *out = open_memstream(&panel.text, &length);
    assert_non_null(out);
    live_panel_draw(out, screen, state);
    assert_int_equal(fclose(out), 0);
    assert_true(length == 0 || panel.text[length - 1] == '\n');
    for (char *at = panel.text; *at; panel.n++) {
        assert_true(panel.n < MAX_LINES);
        panel.lines[panel.n] = at;
        at = strchr(at, '\n');
        *at++ = 0;
    }
    return panel;
}

static bool says(const struct panel *panel, const char *text)
{
    for (uint32_t i = 0; i < panel->n; i++) {
        if (strstr(panel->lines[i], text))
            return true;
    }
    return false;
}

/* Columns of a line: characters, without colours. */
static uint32_t width_of(const char *line)
{
    uint32_t width = 0;
    while (*line) {
        if (*line == '\033') {
            line += strcspn(line, "m") + 1;
            continue;
        }
        width += (*line++ & 0xc0) != 0x80;
    }
    return width;
}

static void panel_fits_every_screen(void **unused)
{
    (void)unused;
    static const uint32_t shapes[][2] = {{0, 0}, {1, 8}, {6, 32}, {48, 128}, {3, 1}};
    for (uint32_t shape = 0; shape < 5; shape++) {
        struct live_state state = make_state(shapes[shape][0], shapes[shape][1]);
        for (uint32_t size = 0; size < 70 * 60; size++) {
            uint32_t rows = 1 + size % 70, cols = 1 + size / 70 * 5;
            for (enum live_glyphs glyphs = LIVE_ASCII; glyphs <= LIVE_COLOURS; glyphs++) {
                struct live_screen screen = {rows, cols, glyphs};
                struct panel panel = draw(&screen, &state);
                assert_int_equal(panel.n, live_panel_rows(&screen, state.n_layers));
                assert_true(rows < 10 || cols < 40 ? panel.n <= 1 : panel.n >= 2 && panel.n <= rows / 2);
                for (uint32_t i = 0; i < panel.n; i++)
                    assert_true(width_of(panel.lines[i]) < cols);
                free(panel.text);
            }
        }
    }
}

static void panel_says_every_figure(void **unused)
{
    (void)unused;
    struct live_state state = make_state(6, 32);
    struct live_screen screen = {40, 80, LIVE_ASCII};
    struct panel panel = draw(&screen, &state);
    static const char *const figures_of_state[] = {
        "- penstock: token 37 of 128 ---", "tokens/s  12.35 avg 11.90", "hits      78.1% avg 75.0%",
        "stalled   12.3% avg 10.0%",       "GB/s      1.23 ahead 0.25", "memory 3.00 GiB/4.80 GiB",
        "wasted   12.0 MiB    1.2%",       "prefetch p 0.35  6.0 wide", "experts      64 of    192",
    };
    for (size_t i = 0; i < sizeof(figures_of_state) / sizeof(figures_of_state[0]); i++) {
        if (!says(&panel, figures_of_state[i]))
            fail_msg("the panel lacks \"%s\"", figures_of_state[i]);
    }
    free(panel.text);
    state.prefetch_threshold = 1.0;
    panel = draw(&screen, &state);
    assert_true(says(&panel, "prefetch    off"));
    free(panel.text);
}

static void small_screen_gets_one_line_and_a_tiny_one_none(void **unused)
{
    (void)unused;
    struct live_state state = make_state(6, 32);
    static const char start[] = "12.35 tok/s, hits 78%, 1.48 GB/s";
    static const struct live_screen small[] = {
        {9, 80, LIVE_ASCII}, {24, 39, LIVE_COLOURS}, {3, 2, LIVE_SHADES}};
    for (uint32_t i = 0; i < 3; i++) {
        struct panel panel = draw(&small[i], &state);
        assert_int_equal(panel.n, 1);
        uint32_t shown = width_of(panel.lines[0]);
        assert_true(shown < small[i].cols && (shown == small[i].cols - 1 || shown > sizeof(start)));
        assert_memory_equal(panel.lines[0], start, min_u32(shown, sizeof(start) - 1));
        free(panel.text);
    }
    struct live_screen tiny = {2, 80, LIVE_ASCII};
    assert_int_equal(live_panel_rows(&tiny, 6), 0);
}

static void map_shows_use_and_residency_of_each_expert(void **unused)
{
    (void)unused;
    struct live_state state = make_state(2, 8);
    memset(experts, 0, sizeof(experts));
    experts[1] = (struct ps_expert_state){true, 0.0f};
    experts[2] = (struct ps_expert_state){false, 0.9f};
    experts[3] = (struct ps_expert_state){true, 0.9f};
    experts[8] = (struct ps_expert_state){true, 0.9f * 0.4f};   /* root of the share: 0.63 */
    experts[15] = (struct ps_expert_state){false, 0.9f * 0.1f}; /* 0.32 */
    struct live_screen screen = {24, 40, LIVE_ASCII};
    struct panel panel = draw(&screen, &state); /* eight figures one below the other, then the map */
    assert_string_equal(panel.lines[9], "  0     ----;;;;@@@@                ");
    assert_string_equal(panel.lines[10], "  1 ####                        ....");
    free(panel.text);
    screen.glyphs = LIVE_SHADES;
    panel = draw(&screen, &state);
    assert_string_equal(panel.lines[9], "  0     ░░░░;;;;████                ");
    free(panel.text);
    screen.glyphs = LIVE_COLOURS;
    panel = draw(&screen, &state);
    assert_ptr_equal(strstr(panel.lines[9], "  0 \033[38;5;233m\033[48;5;166m▀▀▀▀"), panel.lines[9]);
    assert_non_null(strstr(panel.lines[9], "\033[38;5;52m\033[48;5;233m▀▀▀▀"));
    assert_non_null(strstr(panel.lines[9], "\033[38;5;250m▀▀▀▀\033[38;5;220m▀▀▀▀"));
    free(panel.text);
}

static void map_groups_what_does_not_fit(void **unused)
{
    (void)unused;
    struct live_state state = make_state(4, 128);
    memset(experts, 0, sizeof(experts));
    for (uint32_t i = 0; i < 4 * 128; i++) /* half of the columns are in memory, the last quarter is in use */
        experts[i] = (struct ps_expert_state){i % 128 < 64, i % 128 < 96 ? 0.0f : 0.5f};
    struct live_screen screen = {24, 69, LIVE_ASCII}; /* 64 columns for the map: two experts each */
    struct panel panel = draw(&screen, &state);
    char expected[69] = "  0 ";
    memset(expected + 4, '-', 32);
    memset(expected + 36, ' ', 16);
    memset(expected + 52, ';', 16);
    assert_memory_equal(panel.lines[5], expected, 68);
    free(panel.text);
    experts[0].resident = false; /* a group in part */
    screen.glyphs = LIVE_COLOURS;
    panel = draw(&screen, &state);
    assert_non_null(strstr(panel.lines[5], "  0 \033[38;5;17m\033[48;5;52m▀"));
    free(panel.text);
}

static void plain_text_is_ascii_where_nothing_else_is_known(void **unused)
{
    (void)unused;
    struct live_state state = make_state(N_LAYERS, N_EXPERTS);
    struct live_screen screen = {50, 100, LIVE_ASCII};
    struct panel panel = draw(&screen, &state);
    for (uint32_t i = 0; i < panel.n; i++) {
        for (const char *at = panel.lines[i]; *at; at++)
            assert_true(*at >= 32 && *at < 127);
    }
    free(panel.text);
    assert_int_equal(live_glyphs_for("xterm-256color", "truecolor", NULL, "C"), LIVE_ASCII);
    assert_int_equal(live_glyphs_for("xterm-256color", NULL, NULL, NULL), LIVE_ASCII);
    assert_int_equal(live_glyphs_for("xterm-256color", NULL, NULL, "de_DE.UTF-8"), LIVE_COLOURS);
    assert_int_equal(live_glyphs_for("xterm-256color", NULL, "", "C.utf8"), LIVE_COLOURS);
    assert_int_equal(live_glyphs_for("xterm-256color", NULL, "1", "C.utf8"), LIVE_SHADES);
    assert_int_equal(live_glyphs_for("xterm", "truecolor", NULL, "C.utf8"), LIVE_COLOURS);
    assert_int_equal(live_glyphs_for("vt220", NULL, NULL, "C.utf8"), LIVE_SHADES);
}

static char *composed;
static size_t composed_length;

static FILE *compose(void)
{
    free(composed);
    composed = NULL;
    FILE *out = open_memstream(&composed, &composed_length);
    assert_non_null(out);
    return out;
}

static void region_is_set_and_reset_around_the_saved_cursor(void **unused)
{
    (void)unused;
    struct live_screen screen = {24, 80, LIVE_ASCII};
    FILE *out = compose();
    live_compose_place(out, &screen, 3);
    fclose(out);
    assert_string_equal(composed, "\0337\033[r\0338\033[J\033D\033D\033D\033[3A\0337\033[1;21r\0338");
    out = compose();
    live_compose_place(out, &screen, 0); /* the window is too low now: only what was is taken away */
    fclose(out);
    assert_string_equal(composed, "\0337\033[r\0338\033[J");
    out = compose();
    live_compose_lines(out, &screen, "one\ntwo\n", 2);
    fclose(out);
    assert_string_equal(composed,
                        "\033[?25l\0337\033[0m\033[23;1Hone\033[K\033[24;1Htwo\033[K\0338\033[?25h");
    out = compose();
    live_compose_leave(out, 24, 2);
    fclose(out);
    assert_string_equal(composed, "\0337\033[0m\033[23;1H\033[J\033[r\0338\033[?25h");
    free(composed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(panel_fits_every_screen),
        cmocka_unit_test(panel_says_every_figure),
        cmocka_unit_test(small_screen_gets_one_line_and_a_tiny_one_none),
        cmocka_unit_test(map_shows_use_and_residency_of_each_expert),
        cmocka_unit_test(map_groups_what_does_not_fit),
        cmocka_unit_test(plain_text_is_ascii_where_nothing_else_is_known),
        cmocka_unit_test(region_is_set_and_reset_around_the_saved_cursor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
