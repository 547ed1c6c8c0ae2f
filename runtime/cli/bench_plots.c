#include "runtime/cli/bench_plots.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/bench_thin.h"
#include "runtime/size_text.h"

static const double GB = 1e9, MB = 1e6, LEAST_GB = 0.9995e9; /* three digits of less round to 999 MB */

/* Told apart by colour-blind readers (Okabe and Ito), and by their marks. */
static const char *const colours[] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                      "#E69F00", "#56B4E9", "#000000", "#882255"};
static const int marks[] = {7, 5, 9, 11, 13, 6, 4, 8};
enum {
    N_STYLES = sizeof(marks) / sizeof(marks[0]),
    LABEL_SIZE = 64,
    SUBTITLE_SIZE = 1024,
    SUBTITLE_LENGTH = 112
};
/* Bars and the gaps between budgets that a panel has room for, with a label below each; from how many on it is small. */
enum { MAX_BARS = 54, MANY_BARS = 40 };

/* What a script consists of, while it is made. */
struct drawing {
    const struct result_group *group; /* what there is room for */
    const struct result_group *all;
    FILE *data, *body, *caption; /* data blocks; commands, once per image */
};

/* One curve for each value of some of the key. */
struct lines {
    struct result_curve *curves; /* [n] owned */
    uint32_t n;
    uint32_t most_points; /* of any curve */
};

static double median(const struct result_cell *cell, enum result_figure figure)
{
    return cell->of[figure].median;
}

/* What a rate is told in. */
static double rate_unit(double rate)
{
    return rate < LEAST_GB ? MB : GB;
}

static const char *rate_unit_name(double rate)
{
    return rate < LEAST_GB ? "MB/s" : "GB/s";
}

const char *bench_limit_text(double limit, char out[RATE_TEXT_SIZE])
{
    if (isfinite(limit))
        snprintf(out, RATE_TEXT_SIZE, "%.3g %s", limit / rate_unit(limit), rate_unit_name(limit));
    else
        snprintf(out, RATE_TEXT_SIZE, "no limit");
    return out;
}

/* "4.8 GiB", "64 KiB": fewer digits than size_format's, for axes and legends. */
static const char *bytes_text(double bytes, char out[SIZE_TEXT_SIZE])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    for (; bytes >= 999.5 && unit < 4; unit++)
        bytes /= 1024.0;
    snprintf(out, SIZE_TEXT_SIZE, "%.3g %s", bytes, units[unit]);
    return out;
}

/* A limit, and where there is none what the drive gives by itself. */
static const char *drive_text(const struct result_cell *cell, char out[LABEL_SIZE])
{
    char limit[RATE_TEXT_SIZE], rate[RATE_TEXT_SIZE];
    double gives = median(cell, FIGURE_DRIVE);
    bench_limit_text(median(cell, FIGURE_LIMIT), limit);
    if (isfinite(median(cell, FIGURE_LIMIT)) || isnan(gives))
        snprintf(out, LABEL_SIZE, "SSD %s", limit);
    else
        snprintf(out, LABEL_SIZE, "%s: %s", limit, bench_limit_text(gives, rate));
    return out;
}

static bool has_several(const struct result_group *group, enum result_figure figure)
{
    for (uint32_t i = 1; i < group->n_cells; i++) {
        if (median(&group->cells[i], figure) != median(&group->cells[0], figure))
            return true;
    }
    return false;
}

/* ---- curves ---- */

static void lines_deinit(struct lines *lines)
{
    for (uint32_t i = 0; i < lines->n; i++)
        result_curve_deinit(&lines->curves[i]);
    free(lines->curves);
}

static bool begins_line(const struct result_group *group, const struct result_cell *cell,
                        const enum result_figure *same, uint32_t n_same)
{
    for (const struct result_cell *before = group->cells; before < cell; before++) {
        uint32_t equal = 0;
        while (equal < n_same && median(before, same[equal]) == median(cell, same[equal]))
            equal++;
        if (equal == n_same)
            return false;
    }
    return true;
}

/* Curves without a point are left out. */
static bool lines_init(struct lines *lines, const struct result_group *group, enum result_figure x,
                       const enum result_figure *same, uint32_t n_same)
{
    *lines = (struct lines){.curves = calloc(group->n_cells, sizeof(*lines->curves))};
    if (!lines->curves)
        return false;
    for (const struct result_cell *cell = group->cells; cell < group->cells + group->n_cells; cell++) {
        if (!begins_line(group, cell, same, n_same))
            continue;
        struct result_curve *curve = &lines->curves[lines->n];
        if (!result_curve_init(curve, group, cell, x, same, n_same)) {
            lines_deinit(lines);
            return false;
        }
        if (curve->n == 0) {
            result_curve_deinit(curve);
            continue;
        }
        lines->n++;
        lines->most_points = curve->n > lines->most_points ? curve->n : lines->most_points;
    }
    return true;
}

/* A data block of x, median, least, most. */
static void put_points(const struct drawing *d, const char *block, uint32_t number,
                       const struct result_curve *curve, double x_unit, enum result_figure y, double y_unit)
{
    fprintf(d->data, "$%s%u << EOD\n", block, number);
    for (uint32_t i = 0; i < curve->n; i++) {
        const struct result_spread *spread = &curve->cells[i]->of[y];
        if (!isnan(spread->median))
            fprintf(d->data, "%.9g %.9g %.9g %.9g\n", median(curve->cells[i], curve->x) / x_unit,
                    spread->median / y_unit, spread->least / y_unit, spread->most / y_unit);
    }
    fputs("EOD\n", d->data);
}

/* title: "": none. */
static void put_curve(const struct drawing *d, const char *block, uint32_t number, const char *title)
{
    uint32_t style = number % N_STYLES;
    fprintf(d->body, "$%s%u using 1:2:3:4 with yerrorlines lw 2 lc rgb '%s' pt %d ps mark title '%s', ",
            block, number, colours[style], marks[style], title);
}

static double highest(const struct lines *lines, enum result_figure figure)
{
    double most = 0.0;
    for (uint32_t i = 0; i < lines->n; i++) {
        for (uint32_t k = 0; k < lines->curves[i].n; k++)
            most = fmax(most, lines->curves[i].cells[k]->of[figure].most);
    }
    return most;
}

/* An axis from 0 with about n marks, for panels that are too low for gnuplot's own choice. */
static void put_axis(const struct drawing *d, double most, uint32_t n)
{
    double step = pow(10.0, floor(log10(most / n)));
    step *= most / n > 5.0 * step ? 10.0 : most / n > 2.0 * step ? 5.0 : most / n > step ? 2.0 : 1.0;
    fprintf(d->body, "set yrange [0:%.9g]\nset ytics %.9g\n", most, step);
}

/* An empty panel as high as the image, for a legend longer than a panel; titles follow. */
static void put_legend(const struct drawing *d)
{
    fputs("unset tics\nunset xlabel\nunset ylabel\nunset border\nunset grid\nset tmargin at screen 0.85\n"
          "set bmargin at screen 0.02\nset yrange [0:1]\nplot ",
          d->body);
}

/* ---- tokens/s over the drive ---- */

/* Bytes per token with a budget: they hardly depend on the drive. */
static double mean_token_bytes(const struct result_curve *curve)
{
    double sum = 0.0;
    for (uint32_t i = 0; i < curve->n; i++)
        sum += median(curve->cells[i], FIGURE_TOKEN_BYTES);
    return sum / curve->n;
}

static void put_drive_curves(const struct drawing *d, const struct lines *lines)
{
    char size[SIZE_TEXT_SIZE], label[LABEL_SIZE];
    double computing = result_computing_alone(d->all);
    double fastest = 0.0;
    for (uint32_t i = 0; i < lines->n; i++)
        fastest = fmax(fastest, median(lines->curves[i].cells[lines->curves[i].n - 1], FIGURE_DRIVE));
    double top = fmax(highest(lines, FIGURE_RATE), isnan(computing) ? 0.0 : computing);
    double unit = rate_unit(fastest);
    fprintf(d->body,
            "set xlabel 'SSD throughput, %s'\nset ylabel 'tokens/s'\n"
            "set xrange [0:%.9g]\nset yrange [0:%.9g]\nplot ",
            rate_unit_name(fastest), 1.08 * fastest / unit, 1.12 * top);
    for (uint32_t i = 0; i < lines->n; i++) {
        const struct result_curve *curve = &lines->curves[i];
        put_points(d, "speed", i, curve, unit, FIGURE_RATE, 1.0);
        snprintf(label, sizeof(label), "RAM %s", bytes_text(median(curve->cells[0], FIGURE_RAM), size));
        put_curve(d, "speed", i, label);
        double bytes = mean_token_bytes(curve);
        if (bytes > 0.0)
            fprintf(d->body, "%.9g*x with lines dt 2 lw 1.5 lc rgb '%s' notitle, ", unit / bytes,
                    colours[i % N_STYLES]);
    }
    if (!isnan(computing))
        fprintf(d->body, "%.9g with lines dt 4 lw 2 lc rgb '#666666' title 'computing alone', ", computing);
    fputs("NaN with lines dt 2 lw 1.5 lc rgb '#666666' title 'reading alone'\n", d->body);
}

static const char *draw_drive(const struct drawing *d, bool *no_memory)
{
    static const enum result_figure same[] = {FIGURE_RAM};
    struct lines lines;
    *no_memory = !lines_init(&lines, d->group, FIGURE_DRIVE, same, 1);
    if (*no_memory)
        return NULL;
    bool enough = lines.most_points > 1;
    if (enough) {
        put_drive_curves(d, &lines);
        fputs("Points are medians, bars go from the least to the most of the repeats. SSD throughput is what "
              "the reader got from the drive in probes, the median over all of a limit. No point can be "
              "above the dashed line of its colour (reading alone: that throughput over the bytes that a "
              "token reads with this budget) or the grey one (computing alone: the fastest measured token "
              "without its stalls) by more than noise.",
              d->caption);
    }
    lines_deinit(&lines);
    return enough ? NULL : "it takes records with two drive speeds or more (bench sweep --io-limit)";
}

/* ---- over the cache ---- */

/* Rings at the knees, and what they are for the caption. */
static void put_knees(const struct drawing *d, const struct lines *lines, const char *block,
                      enum result_figure y, double y_unit)
{
    char size[SIZE_TEXT_SIZE], drive[LABEL_SIZE];
    fprintf(d->data, "$%s << EOD\nNaN NaN\n", block);
    for (uint32_t i = 0; i < lines->n; i++) {
        const struct result_curve *curve = &lines->curves[i];
        uint32_t at = result_curve_knee(curve, y);
        if (at == 0)
            continue;
        const struct result_cell *cell = curve->cells[at];
        fprintf(d->data, "%.9g %.9g\n", median(cell, FIGURE_CYCLES), median(cell, y) / y_unit);
        if (y == FIGURE_RATE)
            fprintf(d->caption, " Knee of tokens/s (%s): %.3g cycles, RAM %s.", drive_text(cell, drive),
                    median(cell, FIGURE_CYCLES), bytes_text(median(cell, FIGURE_RAM), size));
    }
    fputs("EOD\n", d->data);
    fprintf(d->body,
            "$%s using 1:2 with impulses dt 3 lw 1.5 lc rgb '#444444' notitle, $%s using 1:2 with points pt "
            "6 ps 3.2*mark lw 2 lc rgb '#444444' notitle\n",
            block, block);
}

static const struct result_curve *longest(const struct lines *lines)
{
    uint32_t i = 0;
    while (lines->curves[i].n < lines->most_points)
        i++;
    return &lines->curves[i];
}

/* width: of the axis. Sizes that would stand upon each other keep their mark alone. */
static void put_ram_scale(const struct drawing *d, const struct result_curve *curve, double width)
{
    char size[SIZE_TEXT_SIZE];
    double last = -width;
    fputs("set x2label 'RAM (--ram)' offset 0,-0.5\nset x2tics out nomirror (", d->body);
    for (uint32_t i = 0; i < curve->n; i++) {
        double x = median(curve->cells[i], FIGURE_CYCLES);
        bool fits = x - last > 0.15 * width;
        fprintf(d->body, "%s'%s' %.9g", i ? ", " : "",
                fits ? bytes_text(median(curve->cells[i], FIGURE_RAM), size) : "", x);
        last = fits ? x : last;
    }
    fputs(")\n", d->body);
}

static void put_cache_curves(const struct drawing *d, const struct lines *lines)
{
    char label[LABEL_SIZE];
    double width = 1.05 * highest(lines, FIGURE_CYCLES);
    fprintf(d->body,
            "set multiplot\nset lmargin at screen 0.13\n"
            "set xrange [0:%.9g]\nset x2range [0:%.9g]\n"
            "set tmargin at screen 0.74\nset bmargin at screen 0.44\nset format x ''\nset xtics nomirror\n"
            "set ylabel 'tokens/s'\n",
            width, width);
    put_axis(d, 1.15 * highest(lines, FIGURE_RATE), 5);
    put_ram_scale(d, longest(lines), width);
    fputs("plot ", d->body);
    for (uint32_t i = 0; i < lines->n; i++) {
        put_points(d, "speed", i, &lines->curves[i], 1.0, FIGURE_RATE, 1.0);
        put_curve(d, "speed", i, "");
    }
    put_knees(d, lines, "knees", FIGURE_RATE, 1.0);
    fputs("unset label 1\nunset label 2\nunset label 3\nunset x2tics\nunset x2label\nset tmargin at screen "
          "0.40\n"
          "set bmargin at screen 0.12\nset format x '%g'\nset xlabel 'cache size, token cycles'\n"
          "set ylabel 'hit rate, %'\nset yrange [0:105]\nset ytics 25\nplot ",
          d->body);
    for (uint32_t i = 0; i < lines->n; i++) {
        put_points(d, "hits", i, &lines->curves[i], 1.0, FIGURE_HIT_RATE, 0.01);
        put_curve(d, "hits", i, "");
    }
    put_knees(d, lines, "hit_knees", FIGURE_HIT_RATE, 0.01);
    put_legend(d);
    for (uint32_t i = 0; i < lines->n; i++)
        fprintf(d->body, "NaN with linespoints lw 2 lc rgb '%s' pt %d ps mark title '%s', ",
                colours[i % N_STYLES], marks[i % N_STYLES], drive_text(lines->curves[i].cells[0], label));
    fputs("NaN with points pt 6 ps 3.2*mark lw 2 lc rgb '#444444' title 'knee'\nunset multiplot\n", d->body);
}

static const char *draw_cache(const struct drawing *d, bool *no_memory)
{
    static const enum result_figure same[] = {FIGURE_LIMIT};
    struct lines lines;
    *no_memory = !lines_init(&lines, d->group, FIGURE_CYCLES, same, 1);
    if (*no_memory)
        return NULL;
    bool enough = lines.most_points > 1;
    if (enough) {
        fputs("A token cycle is what one token reads with no cache at all. Colours are the drive's limits. "
              "The knee (ring) is the measured point farthest above the straight line from a curve's first "
              "point to its last, both axes scaled to 1 (Kneedle); a curve of two points, or one that bends "
              "the other way, has none.",
              d->caption);
        put_cache_curves(d, &lines);
    }
    lines_deinit(&lines);
    return enough ? NULL : "it takes records with two budgets or more (bench sweep --ram)";
}

/* ---- the step's parts ---- */

static const struct step_segment {
    enum result_figure figure;
    const char *title, *colour;
} segments[] = {
    {FIGURE_PARTS_S + PS_PART_EXPERTS, "experts", "#0072B2"},
    {FIGURE_PARTS_S + PS_PART_TRUNK, "trunk", "#56B4E9"},
    {FIGURE_PARTS_S + PS_PART_ATTENTION, "attention", "#009E73"},
    {FIGURE_PARTS_S + PS_PART_ROUTER, "router", "#F0E442"},
    {FIGURE_PARTS_S + PS_PART_NORMS, "norms", "#CC79A7"},
    {FIGURE_PARTS_S + PS_PART_SYNC, "threads wait", "#999999"},
    {FIGURE_PARTS_S + PS_PART_OTHER, "computing", "#0072B2"},
    {FIGURE_BOOKKEEPING_S, "bookkeeping", "#E69F00"},
    {FIGURE_STALL_S, "stalls (SSD)", "#D55E00"},
};
enum { N_SEGMENTS = sizeof(segments) / sizeof(segments[0]) };

static bool segment_occurs(const struct result_group *group, enum result_figure figure)
{
    for (uint32_t i = 0; i < group->n_cells; i++) {
        if (median(&group->cells[i], figure) > 0.0)
            return true;
    }
    return false;
}

static bool divided(const struct result_cell *cell)
{
    return !isnan(median(cell, FIGURE_WORK_S));
}

/* The bars of one budget, from `cell` on. Returns their number. */
static uint32_t bars_of(const struct result_group *group, const struct result_cell *cell)
{
    const struct result_cell *first = cell, *end = group->cells + group->n_cells;
    while (cell < end && divided(cell) && median(cell, FIGURE_RAM) == median(first, FIGURE_RAM))
        cell++;
    return (uint32_t)(cell - first);
}

/* What differs between the bars of a budget; milliseconds of each segment; their sum. */
static void put_bar(const struct drawing *d, const struct result_cell *cell)
{
    char limit[RATE_TEXT_SIZE];
    bool prefill = d->group->kind == RESULT_PREFILL;
    double sum = 0.0;
    fputc('"', d->data);
    if (prefill)
        fprintf(d->data, "%.0f", median(cell, FIGURE_CHUNK));
    if (!prefill || has_several(d->group, FIGURE_LIMIT))
        fprintf(d->data, "%s%s", prefill ? "; " : "", bench_limit_text(median(cell, FIGURE_LIMIT), limit));
    fputc('"', d->data);
    for (int i = 0; i < N_SEGMENTS; i++) {
        fprintf(d->data, " %.9g", 1e3 * median(cell, segments[i].figure));
        sum += 1e3 * median(cell, segments[i].figure);
    }
    fprintf(d->data, " %.9g\n", sum);
}

/* Bars and gaps. */
static uint32_t width_of(const struct result_group *group)
{
    uint32_t width = 0, bars;
    for (uint32_t i = 0; i < group->n_cells; i += bars ? bars : 1) {
        bars = bars_of(group, &group->cells[i]);
        width += bars + (bars > 0);
    }
    return width;
}

/* Blocks $bars0, $bars1, ... of a budget each, with its name below where it does not reach into the last one; the number
 * of blocks. */
static uint32_t put_bars(const struct drawing *d)
{
    const struct result_group *group = d->group;
    char size[SIZE_TEXT_SIZE];
    uint32_t blocks = 0, bars, at = 0;
    double room = 0.125 * width_of(group), last = -room;
    for (uint32_t i = 0; i < group->n_cells; i += bars ? bars : 1) {
        const struct result_cell *cell = &group->cells[i];
        if ((bars = bars_of(group, cell)) == 0)
            continue;
        fprintf(d->data, "$bars%u << EOD\n", blocks);
        for (uint32_t k = 0; k < bars; k++)
            put_bar(d, cell + k);
        fputs("EOD\n", d->data);
        double middle = at + (bars - 1) / 2.0;
        if (middle - last >= room) {
            fprintf(d->body, "set label %u '%s' at first %.1f, screen 0.035 center font ',12'\n", 10 + blocks,
                    bytes_text(median(cell, FIGURE_RAM), size), middle);
            last = middle;
        }
        fprintf(d->data, "at%u = %u\n", blocks++, at);
        at += bars + 1;
    }
    fprintf(d->body,
            "set label 8 '%s' at screen 0.02,0.225 left font ',11'\n"
            "set label 9 'RAM' at screen 0.02,0.035 left font ',12'\nset xrange [-1:%u]\n",
            group->kind == RESULT_DECODE       ? "limit"
            : has_several(group, FIGURE_LIMIT) ? "chunk; limit"
                                               : "chunk",
            at - (at > 0));
    return blocks;
}

static void put_panel(const struct drawing *d, uint32_t blocks, bool shares)
{
    for (uint32_t block = 0; block < blocks; block++) {
        fprintf(d->body, "%s newhistogram '' at at%u", block ? "," : "plot", block);
        for (int i = 0; i < N_SEGMENTS; i++) {
            if (!segment_occurs(d->group, segments[i].figure))
                continue;
            fprintf(d->body, ", $bars%u using ", block);
            if (shares)
                fprintf(d->body, "(100*$%d/$%d)", i + 2, N_SEGMENTS + 2);
            else
                fprintf(d->body, "($%d/unit)", i + 2);
            fprintf(d->body, "%s notitle lc rgb '%s'", shares ? ":xtic(1)" : "", segments[i].colour);
        }
    }
    fputc('\n', d->body);
}

static double longest_step_ms(const struct result_group *group)
{
    double most = 0.0;
    for (uint32_t i = 0; i < group->n_cells; i++)
        most = fmax(
            most, 1e3 * (median(&group->cells[i], FIGURE_WORK_S) + median(&group->cells[i], FIGURE_STALL_S)));
    return most;
}

static void put_panels(const struct drawing *d)
{
    fputs("set style data histogram\nset style histogram rowstacked\nset style fill solid 1.0 noborder\n"
          "set boxwidth 0.8\nset key invert\nunset grid\nset grid y lc rgb '#dddddd' lt 1\nset multiplot\n"
          "set lmargin at screen 0.13\nset bmargin at screen 0.58\nunset xtics\nset ytics nomirror\n",
          d->body);
    double longest = longest_step_ms(d->group), unit = longest < 10000.0 ? 1.0 : 1000.0;
    fprintf(d->body, "unit = %g\nset ylabel '%s per token'\n", unit, unit > 1.0 ? "s" : "ms");
    put_axis(d, 1.05 * longest / unit, 5);
    uint32_t blocks = put_bars(d);
    bool long_labels = d->group->kind == RESULT_PREFILL && has_several(d->group, FIGURE_LIMIT);
    put_panel(d, blocks, false);
    fprintf(d->body,
            "unset label\nset tmargin at screen 0.54\nset bmargin at screen 0.26\n"
            "set xtics rotate by 90 right out nomirror font ',%d'\nset yrange [0:100]\nset ytics 25\n"
            "set ylabel 'of the time, %%'\n",
            long_labels || width_of(d->group) > MANY_BARS ? 8 : 10);
    put_panel(d, blocks, true);
    put_legend(d);
    for (int i = 0; i < N_SEGMENTS; i++) {
        if (segment_occurs(d->group, segments[i].figure))
            fprintf(d->body, "NaN with boxes lc rgb '%s' title '%s', ", segments[i].colour,
                    segments[i].title);
    }
    fputs("NaN notitle\nunset multiplot\n", d->body);
}

static const char *draw_parts(const struct drawing *d, bool *no_memory)
{
    *no_memory = false;
    if (!segment_occurs(d->group, FIGURE_WORK_S))
        return "the records do not say where the time went";
    put_panels(d);
    fputs("Above in milliseconds or seconds, below in shares; medians over the repeats. Stalls are waits for "
          "the drive: "
          "a faster drive or more RAM takes from them alone.",
          d->caption);
    return NULL;
}

/* ---- prefill over the chunk, reads over their size ---- */

static void put_powers_of_2(const struct drawing *d, const struct lines *lines)
{
    const struct result_curve *curve = longest(lines);
    char size[SIZE_TEXT_SIZE];
    double label = curve->x == FIGURE_BLOCK ? 0.14 : 0.07; /* of the axis */
    double room =
        label * log2(median(curve->cells[curve->n - 1], curve->x) / median(curve->cells[0], curve->x));
    double last = -HUGE_VAL, most = highest(lines, FIGURE_RATE);
    fputs("set logscale x 2\nset xtics nomirror (", d->body);
    for (uint32_t i = 0; i < curve->n; i++) {
        double x = median(curve->cells[i], curve->x);
        bool fits = log2(x) - last >= room;
        if (curve->x == FIGURE_CHUNK)
            snprintf(size, sizeof(size), "%.0f", x);
        else
            bytes_text(x, size);
        fprintf(d->body, "%s'%s' %.9g", i ? ", " : "", fits ? size : "", x);
        last = fits ? log2(x) : last;
    }
    fprintf(d->body, ")\nset offsets graph 0.03, graph 0.03, 0, 0\nset yrange [0:%.9g]\n",
            1.12 * most / (curve->x == FIGURE_BLOCK ? rate_unit(most) : 1.0));
}

static const char *draw_chunks(const struct drawing *d, bool *no_memory)
{
    static const enum result_figure same[] = {FIGURE_RAM, FIGURE_LIMIT};
    char size[SIZE_TEXT_SIZE], limit[RATE_TEXT_SIZE], label[LABEL_SIZE];
    bool several = has_several(d->group, FIGURE_LIMIT);
    struct lines lines;
    *no_memory = !lines_init(&lines, d->group, FIGURE_CHUNK, same, 2);
    if (*no_memory)
        return NULL;
    bool enough = lines.most_points > 1;
    if (enough) {
        put_powers_of_2(d, &lines);
        fputs("set key samplen 1.5 font ',11'\nset xlabel 'chunk, tokens'\nset ylabel 'tokens/s of the "
              "prompt'\nplot ",
              d->body);
        for (uint32_t i = 0; i < lines.n; i++) {
            const struct result_cell *cell = lines.curves[i].cells[0];
            put_points(d, "speed", i, &lines.curves[i], 1.0, FIGURE_RATE, 1.0);
            snprintf(label, sizeof(label), "%s%s%s%s", several ? "" : "RAM ",
                     bytes_text(median(cell, FIGURE_RAM), size), several ? "; " : "",
                     several ? bench_limit_text(median(cell, FIGURE_LIMIT), limit) : "");
            put_curve(d, "speed", i, label);
        }
        fputs("NaN notitle\n", d->body);
        fputs("A chunk's tokens share the experts that are read for it: the larger, the fewer reads, and the "
              "more memory. Colours are RAM and the drive's limit; medians, bars from the least to the most.",
              d->caption);
    }
    lines_deinit(&lines);
    return enough ? NULL : "it takes records with two chunk sizes or more (bench prefill --chunk)";
}

/* The least depth, and with it the smallest reads, that come near the most. */
static void put_saturation(const struct drawing *d)
{
    const struct result_cell *best = &d->all->cells[0], *end = best + d->all->n_cells;
    char size[SIZE_TEXT_SIZE], rate[RATE_TEXT_SIZE];
    for (const struct result_cell *cell = best; cell < end; cell++) {
        if (median(cell, FIGURE_RATE) > median(best, FIGURE_RATE))
            best = cell;
    }
    const struct result_cell *least = d->all->cells; /* by depth, then size */
    while (median(least, FIGURE_RATE) < 0.95 * median(best, FIGURE_RATE))
        least++;
    fprintf(d->caption, " 95 %% of the most (%s) come from a depth of %.0f with reads of %s on.",
            bench_limit_text(median(best, FIGURE_RATE), rate), median(least, FIGURE_DEPTH),
            bytes_text(median(least, FIGURE_BLOCK), size));
}

static const char *draw_reads(const struct drawing *d, bool *no_memory)
{
    static const enum result_figure same[] = {FIGURE_DEPTH};
    char label[LABEL_SIZE];
    struct lines lines;
    *no_memory = !lines_init(&lines, d->group, FIGURE_BLOCK, same, 1);
    if (*no_memory)
        return NULL;
    bool enough = lines.most_points > 1 || lines.n > 1;
    if (enough) {
        put_powers_of_2(d, &lines);
        double most = highest(&lines, FIGURE_RATE);
        fprintf(d->body, "set xlabel 'read size'\nset ylabel 'throughput, %s'\nplot ", rate_unit_name(most));
        for (uint32_t i = 0; i < lines.n; i++) {
            put_points(d, "reads", i, &lines.curves[i], 1.0, FIGURE_RATE, rate_unit(most));
            snprintf(label, sizeof(label), "queue depth %.0f",
                     median(lines.curves[i].cells[0], FIGURE_DEPTH));
            put_curve(d, "reads", i, label);
        }
        fputs("NaN notitle\n", d->body);
        fputs("Where curves meet the drive is saturated: more depth or larger reads bring nothing more. "
              "Medians, bars from the least to the most.",
              d->caption);
        put_saturation(d);
    }
    lines_deinit(&lines);
    return enough ? NULL : "it takes records with two read sizes or queue depths or more (bench io)";
}

/* ---- scripts ---- */

/* Draws one plot; the reason why it is left out, or NULL. */
typedef const char *draw_fn(const struct drawing *d, bool *no_memory);

static const struct plot_kind {
    enum result_kind kind;
    const char *name, *title;
    draw_fn *draw;
    struct bench_thin_rule thin; /* curves: as many as have colours of their own */
} plot_kinds[] = {
    {RESULT_DECODE,
     "drive",
     "What the drive is worth: tokens/s against SSD throughput",
     draw_drive,
     {{FIGURE_RAM}, 1, N_STYLES, false}},
    {RESULT_DECODE,
     "cache",
     "What RAM is worth: tokens/s and hit rate against cache size",
     draw_cache,
     {{FIGURE_LIMIT}, 1, N_STYLES, false}},
    {RESULT_DECODE,
     "parts",
     "Where the time of a token goes",
     draw_parts,
     {{FIGURE_RAM, FIGURE_LIMIT}, 2, MAX_BARS, true}},
    {RESULT_PREFILL,
     "chunk",
     "Prompt tokens/s against chunk size",
     draw_chunks,
     {{FIGURE_RAM, FIGURE_LIMIT}, 2, N_STYLES, false}},
    {RESULT_PREFILL,
     "parts",
     "Where the time of a prompt goes",
     draw_parts,
     {{FIGURE_RAM, FIGURE_LIMIT, FIGURE_CHUNK}, 3, MAX_BARS, true}},
    {RESULT_IO,
     "reads",
     "What the drive gives: throughput against read size and queue depth",
     draw_reads,
     {{FIGURE_DEPTH}, 1, N_STYLES, false}},
};
enum { N_PLOT_KINDS = sizeof(plot_kinds) / sizeof(plot_kinds[0]) };

/* Within single quotes gnuplot takes all but the quote as it is. Names come from files: printable. */
static void put_label(FILE *out, int number, const char *text, size_t length, double height)
{
    fprintf(out, "set label %d '", number);
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '\'')
            fputs("''", out);
        else
            fputc(c < ' ' || c == 0x7F || c == '`' ? '?' : c, out);
    }
    fprintf(out, "' at screen 0.02,%g left font ',11' textcolor rgb '#555555'\n", height);
}

/* Bytes of the text that a line has room for, cut between words, or at least between characters. */
static size_t line_length(const char *text)
{
    size_t n = 0, end = 0, space = 0;
    for (; text[end] && n < SUBTITLE_LENGTH; n++) {
        space = text[end] == ' ' ? end : space;
        end++;
        while (((unsigned char)text[end] & 0xC0) == 0x80)
            end++;
    }
    return text[end] == 0 || text[end] == ' ' || space == 0 ? end : space;
}

/* Two lines; what does not fit stands on the page. */
static void put_subtitle(FILE *out, const struct result_group *group)
{
    char text[SUBTITLE_SIZE];
    snprintf(text, sizeof(text), "%s%s%s%s%s", group->model, *group->model ? ": " : "", group->setting,
             group->tell_machine ? "; " : "", group->tell_machine ? group->machine : "");
    size_t first = line_length(text);
    const char *rest = text + first + (text[first] == ' ');
    put_label(out, 2, text, first, 0.912);
    put_label(out, 3, rest, line_length(rest), 0.88);
}

static const struct terminal {
    const char *setup, *suffix;
    double mark; /* size of points: terminals differ */
} terminals[] = {
    {"svg size 960,560 dynamic font 'sans,14' background '#ffffff'", "svg", 0.55},
    {"pngcairo size 1920,1120 font 'sans,14' fontscale 2 linewidth 2 pointscale 2", "png", 0.8},
};

static void put_image(FILE *out, const struct terminal *terminal, const char *name, const char *title,
                      const struct result_group *group, const char *body)
{
    fprintf(out,
            "reset\nset terminal %s\nset output '%s.%s'\nset termoption noenhanced\nset encoding utf8\n"
            "set label 1 '%s' at screen 0.02,0.96 left font ',17'\nset tmargin at screen 0.85\n"
            "set rmargin at screen 0.76\n"
            "set key at screen 0.775,0.84 left top Left reverse samplen 2 spacing 1.3 font ',12'\n"
            "mark = %g\nset grid lc rgb '#dddddd' lt 1\nset border lc rgb '#444444'\nset errorbars 0.8\n",
            terminal->setup, name, terminal->suffix, title, terminal->mark);
    put_subtitle(out, group);
    fputs(body, out);
    fputs("unset output\n", out);
}

static char *make_script(const struct bench_plot *plot, const struct result_group *group, const char *data,
                         const char *body)
{
    char *script = NULL;
    size_t size;
    FILE *out = open_memstream(&script, &size);
    if (!out)
        return NULL;
    fputs(data, out);
    for (size_t i = 0; i < sizeof(terminals) / sizeof(terminals[0]); i++)
        put_image(out, &terminals[i], plot->name, plot->title, group, body);
    if (fclose(out) != 0) {
        free(script);
        return NULL;
    }
    return script;
}

static bool draw(struct bench_plot *plot, const struct plot_kind *kind, const struct result_group *group,
                 uint32_t number)
{
    char *data = NULL, *body = NULL;
    size_t sizes[3];
    struct bench_thinned thinned;
    bool no_memory = !bench_thin(&thinned, group, &kind->thin);
    *plot = (struct bench_plot){.title = kind->title};
    snprintf(plot->name, sizeof(plot->name), "%s-%u-%s", result_kind_name(group->kind), number, kind->name);
    struct drawing d = {.group = &thinned.group,
                        .all = group,
                        .data = open_memstream(&data, &sizes[0]),
                        .body = open_memstream(&body, &sizes[1]),
                        .caption = open_memstream(&plot->caption, &sizes[2])};
    if (!no_memory && d.data && d.body && d.caption) {
        plot->missing = kind->draw(&d, &no_memory);
        bench_thin_tell(d.caption, &thinned, &kind->thin);
    }
    FILE *const streams[] = {d.data, d.body, d.caption};
    for (int i = 0; i < 3; i++)
        no_memory |= !streams[i] || fclose(streams[i]) != 0;
    if (!no_memory && !plot->missing)
        no_memory = (plot->script = make_script(plot, group, data, body)) == NULL;
    free(data);
    free(body);
    bench_thin_deinit(&thinned);
    if (no_memory)
        bench_plot_deinit(plot);
    return !no_memory;
}

enum ps_status bench_plots_draw(struct bench_plot plots[BENCH_PLOTS_MAX], uint32_t *n_plots,
                                const struct result_group *group, uint32_t number, struct ps_error *err)
{
    *n_plots = 0;
    for (int i = 0; i < N_PLOT_KINDS; i++) {
        if (plot_kinds[i].kind != group->kind)
            continue;
        if (draw(&plots[*n_plots], &plot_kinds[i], group, number)) {
            (*n_plots)++;
            continue;
        }
        while (*n_plots > 0)
            bench_plot_deinit(&plots[--*n_plots]);
        return ps_error_set(err, PS_ERR_NOMEM, "bench report: out of memory");
    }
    return PS_OK;
}

void bench_plot_deinit(struct bench_plot *plot)
{
    free(plot->caption);
    free(plot->script);
}
