#include "runtime/cli/bench_page.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/size_text.h"

static const char STYLE[] =
    "body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 "
    "1rem;color:#222;background:#fff}"
    "h1,h2{line-height:1.2}h2{margin-top:3rem;border-top:1px solid #ccc;padding-top:1.5rem}"
    "figure{margin:2rem 0}figure "
    "svg{width:100%;height:auto}figcaption,.note{color:#555;font-size:.9rem}.setting{font-weight:600}"
    ".scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{padding:.25rem .75rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}"
    "th{font-weight:600;vertical-align:bottom}td.gain{background:#f2f7fb}td.unknown{color:#777}";

static double median(const struct result_cell *cell, enum result_figure figure)
{
    return cell->of[figure].median;
}

static void put_text(FILE *out, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '&':
            fputs("&amp;", out);
            break;
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        default:
            fputc((unsigned char)*text < ' ' ? '?' : *text, out);
        }
    }
}

static void put_element(FILE *out, const char *open, const char *text, const char *close)
{
    fputs(open, out);
    put_text(out, text);
    fputs(close, out);
}

/* ---- images ---- */

static char *read_file(const char *path, struct ps_error *err)
{
    FILE *file = fopen(path, "r");
    char *text = NULL;
    size_t size = 0;
    if (!file || getdelim(&text, &size, '\0', file) < 0) {
        ps_error_set(err, PS_ERR_IO, "%s: %s", path, file && feof(file) ? "empty" : strerror(errno));
        free(text);
        text = NULL;
    }
    if (file)
        fclose(file);
    return text;
}

/* gnuplot gives the same ids in every image; on one page each image's need a name of their own. */
static void put_svg(FILE *out, const char *svg, const char *name)
{
    static const char *const before_id[] = {" id='", " id=\"", "href='#", "href=\"#", "url(#"};
    enum { N = sizeof(before_id) / sizeof(before_id[0]) };
    while (*svg) {
        size_t length = 0;
        for (int i = 0; i < N && length == 0; i++) {
            if (strncmp(svg, before_id[i], strlen(before_id[i])) == 0)
                length = strlen(before_id[i]);
        }
        if (length > 0)
            fprintf(out, "%.*s%s-", (int)length, svg, name);
        else
            fputc(*svg, out);
        svg += length > 0 ? length : 1;
    }
}

static enum ps_status put_plot(FILE *out, const struct bench_plot *plot, const char *plots_dir,
                               struct ps_error *err)
{
    if (plot->missing) {
        fputs("<p class=\"note\">", out);
        put_text(out, plot->title);
        put_element(out, ": no plot: ", plot->missing, ".</p>\n");
        return PS_OK;
    }
    char *path;
    if (asprintf(&path, "%s/%s.svg", plots_dir, plot->name) < 0)
        return ps_error_set(err, PS_ERR_NOMEM, "bench report: out of memory");
    char *text = read_file(path, err);
    /* Without what stands before the element in a file of its own. */
    const char *svg = text ? strstr(text, "<svg") : NULL;
    if (text && !svg)
        ps_error_set(err, PS_ERR_FORMAT, "%s: not an SVG", path);
    if (svg) {
        fputs("<figure>\n", out);
        put_svg(out, svg, plot->name);
        put_element(out, "<figcaption>", plot->caption, "</figcaption>\n</figure>\n");
    }
    free(text);
    free(path);
    return svg ? PS_OK : err->status;
}

/* ---- the table ---- */

/* Three digits, never with an exponent. */
static const char *rate_text(double rate, char out[RATE_TEXT_SIZE])
{
    snprintf(out, RATE_TEXT_SIZE, rate >= 100.0 ? "%.0f" : "%#.3g", rate);
    return out;
}

static void put_number(FILE *out, const char *format, double value)
{
    fputs("<td>", out);
    if (isfinite(value))
        fprintf(out, format, value);
    else
        fputs("?", out);
    fputs("</td>", out);
}

static void put_gain(FILE *out, const struct result_gain *gain)
{
    if (!isnan(gain->factor))
        fprintf(out, "<td class=\"gain\">&times;%.2f</td>", gain->factor);
    else if (!isnan(gain->at_most))
        fprintf(out, "<td class=\"gain unknown\">not measured (at most &times;%.2f)</td>", gain->at_most);
    else
        fputs("<td class=\"gain unknown\">not measured</td>", out);
}

static enum ps_status put_row(FILE *out, const struct result_group *group, const struct result_cell *cell,
                              struct ps_error *err)
{
    char size[SIZE_TEXT_SIZE], limit[RATE_TEXT_SIZE], text[RATE_TEXT_SIZE];
    const struct result_spread *rate = &cell->of[FIGURE_RATE];
    struct result_gain drive, ram;
    enum ps_status status;
    if ((status = result_gain_drive(&drive, group, cell, err)) != PS_OK ||
        (status = result_gain_ram(&ram, group, cell, err)) != PS_OK)
        return status;
    fprintf(out, "<tr><td>%s</td><td>%s</td>",
            size_format((uint64_t)fmin(median(cell, FIGURE_RAM), 1e18), size),
            bench_limit_text(median(cell, FIGURE_LIMIT), limit));
    fprintf(out, "<td>%s</td>",
            isnan(median(cell, FIGURE_DRIVE)) ? "?" : bench_limit_text(median(cell, FIGURE_DRIVE), limit));
    if (group->kind == RESULT_PREFILL)
        put_number(out, "%.0f", median(cell, FIGURE_CHUNK));
    fprintf(out, "<td>%s</td>", rate_text(rate->median, text));
    fprintf(out, "<td>%s&ndash;", rate_text(rate->least, text));
    fprintf(out, "%s</td>", rate_text(rate->most, text));
    put_number(out, "%.2f", median(cell, FIGURE_CYCLES));
    put_number(out, "%.0f %%", 100.0 * median(cell, FIGURE_HIT_RATE));
    put_number(out, "%.3g MB", median(cell, FIGURE_TOKEN_BYTES) / 1e6);
    put_number(out, "%.2f", median(cell, FIGURE_OF_BOUND));
    put_gain(out, &drive);
    put_gain(out, &ram);
    fputs("</tr>\n", out);
    return PS_OK;
}

static enum ps_status put_table(FILE *out, const struct result_group *group, struct ps_error *err)
{
    fprintf(out,
            "<h3>What twice the drive or twice the RAM would bring</h3>\n<div class=\"scroll\"><table>\n"
            "<thead><tr><th>RAM</th><th>limit</th><th>drive "
            "gives</th>%s<th>tokens/s</th><th>least&ndash;most</th>"
            "<th>cycles</th><th>hits</th><th>read per<br/>token</th><th>of the<br/>bound</th>"
            "<th>twice the drive</th><th>twice the RAM</th></tr></thead>\n<tbody>\n",
            group->kind == RESULT_PREFILL ? "<th>chunk</th>" : "");
    enum ps_status status = PS_OK;
    for (uint32_t i = 0; i < group->n_cells && status == PS_OK; i++)
        status = put_row(out, group, &group->cells[i], err);
    fputs("</tbody></table></div>\n<p class=\"note\">Medians. Factors of tokens/s: from the measurements "
          "with the same RAM "
          "and twice the throughput, or the same limit and twice the RAM, straight between the nearest two "
          "(up to 5 % "
          "short of twice counts as twice). \"At most\": by the bounds alone, which is all that can be said "
          "beyond what was "
          "measured.</p>\n",
          out);
    return status;
}

/* ---- the page ---- */

static const char *const kind_titles[RESULT_N_KINDS] = {"Decoding", "Prompts", "The drive by itself"};

static bool seen_before(const struct results *results, uint32_t at)
{
    for (uint32_t i = 0; i < at; i++) {
        if (strcmp(results->groups[i].machine, results->groups[at].machine) == 0)
            return true;
    }
    return false;
}

static void put_date(FILE *out, double seconds)
{
    time_t when = (time_t)seconds;
    struct tm parts;
    char text[32] = "?";
    if (seconds < 4e11 && gmtime_r(&when, &parts))
        strftime(text, sizeof(text), "%Y-%m-%d %H:%M", &parts);
    fputs(text, out);
}

static void put_head(FILE *out, const char *source, const struct results *r)
{
    fprintf(out,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
            "<meta name=\"viewport\" content=\"width=device-width\"/>\n<title>penstock: what drive and "
            "memory are worth</title>\n"
            "<style>%s</style>\n</head>\n<body>\n<h1>What drive and memory are worth in tokens/s</h1>\n",
            STYLE);
    fprintf(out, "<p>%u measurements", r->n_records);
    put_element(out, " from ", source, "");
    if (r->first_time > 0.0) {
        fputs(", made ", out);
        put_date(out, r->first_time);
        fputs(" to ", out);
        put_date(out, r->last_time);
        fputs(" UTC", out);
    }
    if (r->n_skipped > 0)
        fprintf(out, "; %u lines of it are no records", r->n_skipped);
    fputs(". Made by <code>penstock bench report</code>.</p>\n<h2>Machine</h2>\n<ul class=\"machine\">\n",
          out);
    for (uint32_t i = 0; i < r->n_groups; i++) {
        if (*r->groups[i].machine && !seen_before(r, i))
            put_element(out, "<li>", r->groups[i].machine, "</li>\n");
    }
    fputs("</ul>\n", out);
}

static void put_repeats(FILE *out, const struct result_group *group)
{
    uint32_t least = UINT32_MAX, most = 0;
    for (uint32_t i = 0; i < group->n_cells; i++) {
        least = group->cells[i].repeats < least ? group->cells[i].repeats : least;
        most = group->cells[i].repeats > most ? group->cells[i].repeats : most;
    }
    if (least < most)
        fprintf(out, "; %u to %u repeats", least, most);
    else
        fprintf(out, "; %u %s", most, most == 1 ? "time each" : "repeats");
}

static void put_prefetch(FILE *out, const struct result_group *group)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < group->n_cells; i++)
        n += group->cells[i].prefetch_off;
    if (n > 0)
        fprintf(out, "; prefetch was off in %u of %u cells, for want of predictions or of memory for them", n,
                group->n_cells);
}

static enum ps_status put_section(FILE *out, const struct results *r, uint32_t at,
                                  const struct bench_section *section, const char *plots_dir,
                                  struct ps_error *err)
{
    const struct result_group *group = &r->groups[at];
    enum ps_status status = PS_OK;
    if (at == 0 || group[-1].kind != group->kind || strcmp(group[-1].model, group->model) != 0) {
        put_element(out, "<h2>", kind_titles[group->kind], *group->model ? ": " : "");
        put_element(out, "", group->model, "</h2>\n");
    }
    put_element(out, "<p class=\"setting\">", group->setting, "");
    if (group->kind != RESULT_IO)
        put_repeats(out, group);
    put_prefetch(out, group);
    if (group->tell_machine)
        put_element(out, "; ", group->machine, "");
    fputs("</p>\n", out);
    if (group->kind != RESULT_IO)
        status = put_table(out, group, err);
    for (uint32_t i = 0; i < section->n_plots && status == PS_OK; i++)
        status = put_plot(out, &section->plots[i], plots_dir, err);
    return status;
}

/* A reader must not take a plot that was not measured for one that does not exist. */
static void put_missing_kinds(FILE *out, const struct results *r)
{
    static const char *const commands[RESULT_N_KINDS] = {"bench sweep, bench decode", "bench prefill",
                                                         "bench io"};
    for (int kind = 0; kind < RESULT_N_KINDS; kind++) {
        uint32_t i = 0;
        while (i < r->n_groups && r->groups[i].kind != (enum result_kind)kind)
            i++;
        if (i == r->n_groups)
            fprintf(out,
                    "<h2>%s</h2>\n<p class=\"note\">Not measured: there are no records of kind \"%s\" "
                    "(%s).</p>\n",
                    kind_titles[kind], result_kind_name((enum result_kind)kind), commands[kind]);
    }
}

enum ps_status bench_page_write(const char *path, const char *plots_dir, const char *source,
                                const struct results *results, const struct bench_section *sections,
                                struct ps_error *err)
{
    FILE *out = fopen(path, "w");
    enum ps_status status = PS_OK;
    if (!out)
        return ps_error_set(err, PS_ERR_IO, "%s: %s", path, strerror(errno));
    put_head(out, source, results);
    for (uint32_t i = 0; i < results->n_groups && status == PS_OK; i++)
        status = put_section(out, results, i, &sections[i], plots_dir, err);
    put_missing_kinds(out, results);
    fputs("</body>\n</html>\n", out);
    bool failed = ferror(out) != 0;
    failed |= fclose(out) != 0;
    if (status == PS_OK && failed)
        status = ps_error_set(err, PS_ERR_IO, "%s: %s", path, strerror(errno));
    return status;
}
