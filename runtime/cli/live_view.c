/* What the live view measures: differences of the session's statistics over the last second and over the phase (prompt,
 * then tokens), sampled where a frame is due. */
#include "runtime/cli/live_view.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/live_terminal.h"
#include "runtime/clock.h"

enum { N_SAMPLES = 16 };
static const double WINDOW_S = 1.0; /* what "now" averages */
static const double FRAME_INTERVAL_S = 0.125;
static const double MOST_INTERVAL_S = 2.0;
static const double MOST_COST = 0.004; /* share of the time that frames may take */

struct sample {
    double time;
    uint64_t tokens;   /* of the phase */
    double token_time; /* when the last one was done */
    struct ps_stats stats;
};

struct live_view {
    const struct loaded_model *m;
    struct live_terminal terminal;
    struct live_screen screen;
    struct live_state state;
    struct ps_expert_state *experts; /* [n_layers][n_experts]; the state's */
    uint64_t n_tokens;
    bool in_prompt;
    double next_frame;
    struct sample latest, start; /* of the phase */
    struct sample samples[N_SAMPLES];
    uint32_t n_samples; /* taken in this phase; the last N_SAMPLES are kept */
};

const char STATS_HELP[] =
    "statistics as JSON to FILE or (-) stdout; live: while it\nruns, speed, reads and which "
    "experts are in memory,\nat the bottom of the terminal";

bool live_view_wanted(const char *stats)
{
    return stats && strcmp(stats, "live") == 0;
}

bool live_view_possible(const char *stats, int *exit_code)
{
    if (!live_view_wanted(stats) || isatty(STDERR_FILENO))
        return true;
    *exit_code = cli_error(CLI_USAGE, "--stats live: standard error is not a terminal: use --stats FILE");
    return false;
}

/* ---- samples ---- */

/* The newest sample that is a window older than the latest, by its time or by its last token's; else the oldest. */
static const struct sample *window_start(const struct live_view *v, bool by_token)
{
    uint32_t kept = v->n_samples < N_SAMPLES ? v->n_samples : N_SAMPLES;
    const struct sample *found = &v->start;
    for (uint32_t back = 0; back < kept; back++) {
        found = &v->samples[(v->n_samples - 1 - back) % N_SAMPLES];
        double age = by_token ? v->latest.token_time - found->token_time : v->latest.time - found->time;
        if (age >= WINDOW_S)
            break;
    }
    return found;
}

static double ratio(double part, double whole)
{
    return whole > 0.0 ? part / whole : 0.0;
}

static double token_rate(const struct sample *from, const struct sample *to)
{
    return ratio((double)(to->tokens - from->tokens), to->token_time - from->token_time);
}

/* All but the token rate. */
static struct live_rates rates_between(const struct sample *from, const struct sample *to)
{
    const struct ps_stats *a = &from->stats, *b = &to->stats;
    double elapsed = to->time - from->time;
    double hits = (double)(b->expert_hits - a->expert_hits);
    double others = (double)(b->expert_late - a->expert_late + b->expert_misses - a->expert_misses);
    return (struct live_rates){
        .hit_rate = ratio(hits, hits + others),
        .stall_share = fmin(ratio(b->stall_s - a->stall_s, elapsed), 1.0),
        .demand_bytes_s = ratio((double)(b->bytes_demand - a->bytes_demand), elapsed),
        .ahead_bytes_s = ratio((double)(b->bytes_speculative - a->bytes_speculative), elapsed),
    };
}

static void count_tokens(struct live_view *v, uint64_t tokens)
{
    if (tokens == v->latest.tokens)
        return;
    v->latest.tokens = tokens;
    v->latest.token_time = clock_seconds();
}

static void take_sample(struct live_view *v, double now)
{
    struct live_state *s = &v->state;
    uint64_t tokens_before =
        v->n_samples > 0 ? v->samples[(v->n_samples - 1) % N_SAMPLES].tokens : v->start.tokens;
    v->latest.time = now;
    ps_session_stats(v->m->session, &v->latest.stats);
    double tokens_s = s->now.tokens_s;
    if (v->latest.tokens != tokens_before)
        tokens_s = token_rate(window_start(v, true), &v->latest);
    s->now = rates_between(window_start(v, false), &v->latest);
    s->now.tokens_s = tokens_s;
    s->average = rates_between(&v->start, &v->latest);
    s->average.tokens_s = token_rate(&v->start, &v->latest);
    v->samples[v->n_samples++ % N_SAMPLES] = v->latest;
}

static void start_phase(struct live_view *v, bool in_prompt, uint64_t wanted, uint64_t tokens)
{
    double now = clock_seconds();
    v->in_prompt = in_prompt;
    v->n_samples = 0;
    v->latest = (struct sample){.time = now, .tokens = tokens, .token_time = now};
    ps_session_stats(v->m->session, &v->latest.stats);
    v->start = v->latest;
    v->state.phase = in_prompt ? "prompt" : "token";
    v->state.wanted = wanted;
    v->state.now.tokens_s = 0.0;
}

/* ---- frames ---- */

static void fill_state(struct live_view *v)
{
    struct live_state *s = &v->state;
    const struct ps_stats *stats = &v->latest.stats;
    s->done = v->latest.tokens;
    s->bytes_read = stats->bytes_demand + stats->bytes_speculative;
    s->bytes_wasted = stats->bytes_wasted;
    s->prefetch_threshold = stats->prefetch_threshold;
    s->prefetch_width = stats->prefetch_width;
    s->memory = stats->peak_rss_bytes;
    bool known = true;
    for (uint32_t layer = 0; layer < s->n_layers && known; layer++)
        known = ps_session_experts(v->m->session, layer, v->experts + (size_t)layer * s->n_experts);
    if (!known)
        s->n_layers = s->n_experts = 0;
}

/* The panel's lines, malloc'ed; *n of them. NULL: none. */
static char *compose(const struct live_view *v, uint32_t *n)
{
    char *lines = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&lines, &length);
    if (!out)
        return NULL;
    *n = live_panel_rows(&v->screen, v->state.n_layers);
    live_panel_draw(out, &v->screen, &v->state);
    if (fclose(out) == 0)
        return lines;
    free(lines);
    return NULL;
}

static void draw(struct live_view *v)
{
    double begin = clock_seconds();
    live_terminal_size(&v->terminal, &v->screen);
    take_sample(v, begin);
    fill_state(v);
    uint32_t n;
    char *lines = compose(v, &n);
    if (lines)
        live_terminal_show(&v->terminal, &v->screen, lines, n);
    free(lines);
    double end = clock_seconds();
    v->next_frame = end + fmin(fmax(FRAME_INTERVAL_S, (end - begin) / MOST_COST), MOST_INTERVAL_S);
}

/* Where a panel cannot stand, its last state is printed as text. */
static void print_plain(struct live_view *v)
{
    take_sample(v, clock_seconds());
    fill_state(v);
    live_panel_draw(stderr, &v->screen, &v->state);
}

static void on_router(void *ctx, uint32_t moe_layer, uint32_t position, uint32_t n_tokens, uint32_t k,
                      const uint32_t *ids, const float *weights)
{
    struct live_view *v = ctx;
    (void)moe_layer, (void)n_tokens, (void)k, (void)ids, (void)weights;
    if (clock_seconds() < v->next_frame)
        return;
    if (v->in_prompt)
        count_tokens(v, position);
    draw(v);
}

enum ps_status live_view_open(struct live_view **out, const char *stats, const struct loaded_model *m,
                              uint64_t n_prompt, uint64_t n_tokens, struct ps_error *err)
{
    *out = NULL;
    if (!live_view_wanted(stats))
        return PS_OK;
    const struct ps_model_info *info = ps_model_info(m->model);
    struct live_view *v = calloc(1, sizeof(*v));
    struct ps_expert_state *experts =
        calloc((size_t)info->n_moe_layers * info->n_expert + 1, sizeof(*experts));
    if (!v || !experts) {
        free(v);
        free(experts);
        return ps_error_set(err, PS_ERR_NOMEM, "--stats live: out of memory");
    }
    v->m = m;
    v->experts = experts;
    v->n_tokens = n_tokens;
    v->state.experts = experts;
    v->state.n_layers = info->n_expert > 0 ? info->n_moe_layers : 0;
    v->state.n_experts = info->n_expert;
    v->state.budget = ps_model_loaded_plan(m->model)->budget;
    live_terminal_open(&v->terminal, STDERR_FILENO, &v->screen);
    start_phase(v, n_prompt > 0, n_prompt > 0 ? n_prompt : n_tokens, 0);
    draw(v);
    ps_session_on_router(m->session, on_router, v);
    *out = v;
    return PS_OK;
}

void live_view_token(struct live_view *v)
{
    if (!v)
        return;
    if (v->in_prompt)
        start_phase(v, false, v->n_tokens, 1);
    else
        count_tokens(v, v->latest.tokens + 1);
    if (clock_seconds() >= v->next_frame)
        draw(v);
}

void live_view_close(struct live_view *v)
{
    if (!v)
        return;
    ps_session_on_router(v->m->session, NULL, NULL);
    if (!v->terminal.addressable)
        print_plain(v);
    live_terminal_close(&v->terminal);
    free(v->experts);
    free(v);
}
