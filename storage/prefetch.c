#include "storage/prefetch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The least probability starts where others found the first ranks of a stale gate, and follows the waste: wasted bytes
 * are held at a share of all bytes read. */
static const double THRESHOLD_FIRST = 0.85;
static const double THRESHOLD_LEAST = 0.3;
static const double THRESHOLD_MOST = 0.99;
static const double WASTE_TARGET = 0.042;
static const double THRESHOLD_GAIN = 0.5;  /* change per token over what the waste is off its target */
static const double THRESHOLD_STEP = 0.03; /* most of it */
static const double RECENT = 0.97;         /* per token: a half-life of 23 */

/* Nearer predictions are better: the farther ones are for reads that take longer than the window of the nearer, on a
 * drive that has time. */
static const double FAR_LATE = 0.67; /* late bytes over all in use */
static const double FAR_BUSY = 0.7;  /* bytes/s of a token over the most seen */
static const double PEAK_MEMORY = 0.995;
enum { FAR_EVERY = 8 }; /* tokens */

static const double WIDTH_FIRST = 2.0;
static const double WIDTH_MOST = 16.0;
static const double WIDTH_ROOM = 1.25; /* over what was begun in time */

/* Trials are frequent until there is a first verdict, then rare: one token in 32 the slower way costs little. */
enum { TRIAL_EVERY_FIRST = 6, TRIAL_EVERY = 31, QUIET_TOKENS = 4, MAX_LISTS = 4 };
static const double FASTER_MEDIAN =
    0.985; /* a trial's time over its neighbours', below which the mode changes */

void prefetch_init(struct prefetch *p, struct expert_cache *cache, struct io_reader *reader)
{
    *p = (struct prefetch){.cache = cache,
                           .reader = reader,
                           .threshold = THRESHOLD_FIRST,
                           .width = WIDTH_FIRST,
                           .on = true,
                           .until_trial = TRIAL_EVERY_FIRST};
    struct io_reader_stats io;
    io_reader_get_stats(reader, &io);
    p->seen_bytes = io.bytes_demand + io.bytes_speculative;
    expert_cache_get_stats(cache, &p->seen);
}

bool prefetch_wants(const struct prefetch *p)
{
    return p->on != p->trial && !p->quiet;
}

bool prefetch_wants_far(const struct prefetch *p)
{
    bool late = p->recent_late > FAR_LATE * (p->recent_late + p->recent_useful);
    return p->n_tokens % FAR_EVERY == 0 || (late && p->rate < FAR_BUSY * p->peak_rate);
}

void prefetch_offer(struct prefetch *p, const struct prefetch_candidates *lists, uint32_t n)
{
    if (!prefetch_wants(p))
        return;
    uint32_t at[MAX_LISTS] = {0};
    uint32_t left = (uint32_t)(p->width + 0.5);
    p->offers++;
    for (;;) {
        uint32_t best = MAX_LISTS;
        double best_worth = 0.0;
        for (uint32_t i = 0; i < n; i++) {
            if (at[i] == lists[i].n || (double)lists[i].probabilities[at[i]] < p->threshold)
                continue;
            double worth = (double)lists[i].probabilities[at[i]] / (double)lists[i].bytes;
            if (worth > best_worth) {
                best = i;
                best_worth = worth;
            }
        }
        if (best == MAX_LISTS)
            return;
        uint32_t expert = lists[best].experts[at[best]++];
        if (left == 0) {
            p->limited++;
            return;
        }
        enum expert_prefetch outcome = expert_cache_prefetch(p->cache, lists[best].layer, expert);
        if (outcome == EXPERT_PREFETCH_NO_SLOT)
            return;
        left -= outcome == EXPERT_PREFETCH_STARTED;
        p->started += outcome == EXPERT_PREFETCH_STARTED;
    }
}

/* What was begun in time is the window that there was: somewhat more is asked for the next time. */
static void adapt_width(struct prefetch *p, uint64_t withdrawn)
{
    if (p->offers > 0 && withdrawn > 0) {
        double begun = p->started > withdrawn ? (double)(p->started - withdrawn) / p->offers : 0.0;
        double fits = begun * WIDTH_ROOM + 1.0;
        if (fits < p->width)
            p->width += (fits - p->width) * 0.25;
    } else if (p->limited > 0) {
        p->width = p->width + 0.5 < WIDTH_MOST ? p->width + 0.5 : WIDTH_MOST;
    }
    p->started = p->offers = p->limited = 0;
}

static void adapt_threshold(struct prefetch *p, uint64_t wasted, uint64_t bytes)
{
    p->recent_wasted = p->recent_wasted * RECENT + (double)wasted;
    p->recent_bytes = p->recent_bytes * RECENT + (double)bytes;
    double share = p->recent_bytes > 0.0 ? p->recent_wasted / p->recent_bytes : 0.0;
    p->threshold += fmin((share - WASTE_TARGET) * THRESHOLD_GAIN, THRESHOLD_STEP);
    if (p->threshold < THRESHOLD_LEAST)
        p->threshold = THRESHOLD_LEAST;
    if (p->threshold > THRESHOLD_MOST)
        p->threshold = THRESHOLD_MOST;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Changes the mode when the trials were clearly faster than the tokens around them: at the median, and nearly all. */
static void judge(struct prefetch *p)
{
    double sorted[PREFETCH_TRIALS];
    if (p->n_ratios < PREFETCH_TRIALS)
        return;
    memcpy(sorted, p->ratios, sizeof(sorted));
    qsort(sorted, PREFETCH_TRIALS, sizeof(sorted[0]), compare);
    if (sorted[PREFETCH_TRIALS / 2] < FASTER_MEDIAN && sorted[PREFETCH_TRIALS - 2] < 1.0) {
        p->on = !p->on;
        p->n_ratios = 0;
        p->n_main = 0;
        return;
    }
    memmove(p->ratios, p->ratios + 1, (PREFETCH_TRIALS - 1) * sizeof(p->ratios[0]));
    p->n_ratios--;
}

static void time_token(struct prefetch *p, double seconds)
{
    if (p->trial) {
        p->trial = false;
        p->until_trial =
            p->n_tokens < (PREFETCH_TRIALS + 1) * TRIAL_EVERY_FIRST ? TRIAL_EVERY_FIRST : TRIAL_EVERY;
        p->trial_s = seconds;
        p->around_s = 0.0;
        for (uint32_t i = 0; i < PREFETCH_AROUND; i++)
            p->around_s += p->main_s[i];
        p->n_after = 0;
        return;
    }
    p->main_s[p->n_main++ % PREFETCH_AROUND] = seconds;
    if (p->trial_s > 0.0) {
        p->around_s += seconds;
        if (++p->n_after == PREFETCH_AROUND) {
            p->ratios[p->n_ratios++] = p->trial_s * (2 * PREFETCH_AROUND) / p->around_s;
            p->trial_s = 0.0;
            judge(p);
        }
    }
    if (--p->until_trial == 0)
        p->trial = p->n_main >= PREFETCH_AROUND;
    if (p->until_trial == 0 && !p->trial)
        p->until_trial = PREFETCH_AROUND;
}

void prefetch_chunk_done(struct prefetch *p, uint32_t n_tokens, double seconds)
{
    struct expert_cache_stats now;
    struct io_reader_stats io;
    expert_cache_get_stats(p->cache, &now);
    io_reader_get_stats(p->reader, &io);
    uint64_t bytes = io.bytes_demand + io.bytes_speculative;
    /* A late use turns wasted bytes into useful ones, so the count may fall. */
    uint64_t wasted = now.bytes_wasted > p->seen.bytes_wasted ? now.bytes_wasted - p->seen.bytes_wasted : 0;
    uint64_t missed =
        now.misses + now.late + now.bytes_useful - p->seen.misses - p->seen.late - p->seen.bytes_useful;
    adapt_width(p, now.withdrawn - p->seen.withdrawn);
    adapt_threshold(p, wasted, bytes - p->seen_bytes);
    p->recent_useful = p->recent_useful * RECENT + (double)(now.bytes_useful - p->seen.bytes_useful);
    p->recent_late = p->recent_late * RECENT + (double)(now.bytes_late - p->seen.bytes_late);
    p->n_quiet = missed > 0 ? 0 : p->n_quiet + 1;
    p->quiet = p->n_quiet >= QUIET_TOKENS;
    if (n_tokens == 1 && !p->quiet) {
        p->n_tokens++;
        if (seconds > 0.0)
            p->rate = (double)(bytes - p->seen_bytes) / seconds;
        p->peak_rate = fmax(p->peak_rate * PEAK_MEMORY, p->rate);
        time_token(p, seconds);
    }
    p->seen = now;
    p->seen_bytes = bytes;
}
