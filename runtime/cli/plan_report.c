#include "runtime/cli/plan_report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "runtime/cli/cli.h"
#include "runtime/size_text.h"

static const double MB = 1e6;

/* ---- table ---- */

static const char *limit_name(const struct plan_row *row)
{
    return row->drive_bound ? "drive" : "compute";
}

static void print_outcome(const struct plan_outcome *o)
{
    cli_printf("  %5.1f %8.4g %8.4g", 100 * o->hit_rate, o->bytes / MB, o->tok_s);
}

static void print_row(const struct plan_report *r, const struct plan_row *row)
{
    char text[SIZE_TEXT_SIZE], kept[40];
    cli_printf("%10s", size_format(row->ram, text));
    if (!row->fits) {
        cli_printf("  too small: the smallest that works is %s\n", size_format(row->memory.minimum, text));
        return;
    }
    snprintf(kept, sizeof(kept), "%u/%u", row->memory.slots, row->memory.n_shards);
    cli_printf(" %13s %4.0f%% %7.2f", kept,
               row->memory.n_shards > 0 ? 100.0 * row->memory.slots / row->memory.n_shards : 100.0,
               row->memory.cycles);
    print_outcome(&row->first);
    print_outcome(&row->steady);
    cli_printf("  %-7s", limit_name(row));
    if (row == r->rows + r->recommended)
        cli_printf(" <- recommended");
    else if (!row->within)
        cli_printf(" more than is available");
    if (row == r->rows + r->knee)
        cli_printf(" (knee)");
    cli_printf("\n");
}

static void print_table(const struct plan_report *r)
{
    cli_printf("%36s  first %-5u from empty    %s\n", "", r->n, "steady state");
    cli_printf("%10s %13s %5s %7s  %5s %8s %8s  %5s %8s %8s  %s\n", "--ram", "experts kept", "", "cycles",
               "hit %", "MB/token", "tok/s", "hit %", "MB/token", "tok/s", "limit");
    for (uint32_t i = 0; i < r->n_rows; i++)
        print_row(r, &r->rows[i]);
}

static void print_drives(const struct plan_report *r)
{
    char text[SIZE_TEXT_SIZE], rate[SIZE_TEXT_SIZE + 2];
    if (r->n_drives == 0)
        return;
    cli_printf("\n  tok/s in the steady state with another drive, everything else as here\n%10s", "--ram");
    for (uint32_t d = 0; d < r->n_drives; d++) {
        snprintf(rate, sizeof(rate), "%s/s", size_format(r->drives[d], text));
        cli_printf(" %11s", rate);
    }
    cli_printf("   this one\n");
    for (const struct plan_row *row = r->rows; row < r->rows + r->n_rows; row++) {
        if (!row->fits)
            continue;
        cli_printf("%10s", size_format(row->ram, text));
        for (uint32_t d = 0; d < r->n_drives; d++)
            cli_printf(" %11.4g", row->drive_tok_s[d]);
        cli_printf(" %10.4g\n", row->steady.tok_s);
    }
}

/* ---- curve ---- */

enum { CURVE_WIDTH = 64, CURVE_HEIGHT = 12 };

struct curve {
    char cell[CURVE_HEIGHT][CURVE_WIDTH + 1];
    double first_ram, last_ram; /* logarithms */
    double top;                 /* tokens/s */
};

static int curve_column(const struct curve *c, double log_ram)
{
    double width = c->last_ram - c->first_ram;
    return width > 0 ? (int)lround((log_ram - c->first_ram) / width * (CURVE_WIDTH - 1)) : 0;
}

static void curve_put(struct curve *c, int column, double tok_s, char mark)
{
    int line = (int)lround(tok_s / c->top * (CURVE_HEIGHT - 1));
    c->cell[CURVE_HEIGHT - 1 - line][column] = mark;
}

static void curve_line(struct curve *c, const struct plan_row *a, const struct plan_row *b)
{
    int from = curve_column(c, log((double)a->ram)), to = curve_column(c, log((double)b->ram));
    for (int column = from + 1; column < to; column++) {
        double share = (double)(column - from) / (to - from);
        curve_put(c, column, a->steady.tok_s + share * (b->steady.tok_s - a->steady.tok_s), '.');
    }
}

static void print_curve(const struct plan_report *r)
{
    struct curve c = {.top = 0};
    const struct plan_row *first = NULL, *last = NULL;
    for (const struct plan_row *row = r->rows; row < r->rows + r->n_rows; row++) {
        if (!row->fits)
            continue;
        first = first ? first : row;
        last = row;
        c.top = fmax(c.top, row->steady.tok_s);
    }
    if (!first || first == last || c.top <= 0)
        return;
    c.first_ram = log((double)first->ram);
    c.last_ram = log((double)last->ram);
    for (int line = 0; line < CURVE_HEIGHT; line++)
        snprintf(c.cell[line], sizeof(c.cell[line]), "%*s", CURVE_WIDTH, "");
    const struct plan_row *before = NULL;
    for (const struct plan_row *row = first; row <= last; row++) {
        if (!row->fits)
            continue;
        if (before)
            curve_line(&c, before, row);
        before = row;
    }
    for (const struct plan_row *row = first; row <= last; row++) {
        if (row->fits)
            curve_put(&c, curve_column(&c, log((double)row->ram)), row->steady.tok_s,
                      row == r->rows + r->knee          ? 'K'
                      : row == r->rows + r->recommended ? 'R'
                                                        : 'o');
    }
    char text[2][SIZE_TEXT_SIZE];
    cli_printf("\n  tok/s in the steady state against --ram (K: the knee, R: recommended)\n");
    for (int line = 0; line < CURVE_HEIGHT; line++) {
        if (line == 0 || line == CURVE_HEIGHT - 1)
            cli_printf("%8.4g |%s\n", line == 0 ? c.top : 0.0, c.cell[line]);
        else
            cli_printf("%8s |%s\n", "", c.cell[line]);
    }
    cli_printf("%8s +", "");
    for (int i = 0; i < CURVE_WIDTH; i++)
        cli_printf("-");
    cli_printf("\n%8s  %-*s%s\n", "", CURVE_WIDTH - 8, size_format(first->ram, text[0]),
               size_format(last->ram, text[1]));
}

/* ---- in words ---- */

static void print_measured(const struct plan_report *r)
{
    const struct plan_probe *p = r->probe;
    char text[SIZE_TEXT_SIZE];
    cli_printf("measured: drive %.2f GB/s", p->parts.drive_rate * 1e-9);
    if (p->parts.n_sets > 0)
        cli_printf(", %.2f ms for one expert of %s", p->parts.sets[0].seconds * 1e3,
                   size_format((uint64_t)p->parts.shard_bytes, text));
    cli_printf("; computing %.3g ms per token (%u threads: %s; %s)\n", p->parts.compute_s * 1e3,
               p->stats.threads, p->stats.threads_reason, p->stats.cpu);
    for (uint32_t i = 0; i < p->n_runs; i++) {
        const struct speed_parts *fitted = &p->fits[i].parts;
        cli_printf("          %u random tokens in %.1f s with --ram %s: ", p->runs[i].n_tokens,
                   p->runs[i].decode_s, size_format(p->runs[i].ram, text));
        if (fitted->drag > 1.005 || fitted->drag < 0.995)
            cli_printf("reads take %.2f of what they take alone\n", fitted->drag);
        else
            cli_printf("%.0f%% of what can overlap does\n", 100 * fitted->overlap);
    }
    cli_printf("routing:  %s\n\n", r->profile);
}

static void print_advice(const struct plan_report *r)
{
    char text[2][SIZE_TEXT_SIZE];
    cli_printf("\n");
    if (r->recommended >= 0) {
        const struct plan_row *row = &r->rows[r->recommended];
        cli_printf("recommended: --ram %.4gM: %.3g tok/s, the smallest here within 5%% of the best that fits "
                   "the %s available\n",
                   floor((double)row->ram / 1048576.0 * 10 + 0.5) / 10, row->steady.tok_s,
                   size_format(r->available, text[0]));
    } else {
        cli_printf("none of these budgets is within the %s that are available\n",
                   size_format(r->available, text[0]));
    }
    const struct plan_row *last = &r->rows[r->n_rows - 1];
    if (last->fits && last->memory.n_shards == 0)
        cli_printf("the model has no experts: %s\n",
                   last->memory.trunk_streamed_bytes > 0
                       ? "memory that does not hold all of it makes every token read the rest"
                       : "all of it is kept in memory");
    else if (last->fits && last->memory.slots == last->memory.n_shards)
        cli_printf("with %s every expert stays in memory: more buys nothing\n",
                   size_format(last->ram - last->memory.unused, text[0]));
    cli_printf("A first run after a pause can be slower: memory that a virtual machine gave back, or that "
               "others use, has "
               "to be had first.\n");
}

void plan_report_print(const struct plan_report *r)
{
    print_measured(r);
    print_table(r);
    print_curve(r);
    print_drives(r);
    print_advice(r);
}

/* ---- JSON ---- */

static json_t *drives_json(const struct plan_report *r, const struct plan_row *row)
{
    json_t *drives = json_array();
    for (uint32_t d = 0; d < r->n_drives; d++)
        json_array_append_new(drives, json_pack("{s:I, s:f}", "drive_bytes_s", (json_int_t)r->drives[d],
                                                "tok_s_steady", row->drive_tok_s[d]));
    return drives;
}

static json_t *row_json(const struct plan_report *r, const struct plan_row *row)
{
    if (!row->fits)
        return json_pack("{s:I, s:b, s:I}", "ram_bytes", (json_int_t)row->ram, "fits", 0, "minimum_bytes",
                         (json_int_t)row->memory.minimum);
    return json_pack("{s:I, s:b, s:b, s:i, s:i, s:f, s:i, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:s, s:o}",
                     "ram_bytes", (json_int_t)row->ram, "fits", 1, "within_machine", (int)row->within,
                     "slots", (int)row->memory.slots, "shards", (int)row->memory.n_shards, "cycles",
                     row->memory.cycles, "trunk_layers_resident", (int)row->memory.trunk_layers_resident,
                     "trunk_bytes_per_token", (json_int_t)row->memory.trunk_streamed_bytes, "hit_rate",
                     row->first.hit_rate, "bytes_per_token", row->first.bytes, "tok_s", row->first.tok_s,
                     "hit_rate_steady", row->steady.hit_rate, "bytes_per_token_steady", row->steady.bytes,
                     "tok_s_steady", row->steady.tok_s, "limit", limit_name(row), "drives",
                     drives_json(r, row));
}

static json_t *probe_json(const struct plan_probe *p)
{
    json_t *sets = json_array();
    for (uint32_t i = 0; i < p->parts.n_sets; i++)
        json_array_append_new(sets, json_pack("{s:i, s:f}", "experts", (int)p->parts.sets[i].n, "seconds",
                                              p->parts.sets[i].seconds));
    json_t *runs = json_array();
    for (uint32_t i = 0; i < p->n_runs; i++) {
        const struct plan_run *run = &p->runs[i];
        const struct speed_parts *fitted = &p->fits[i].parts;
        json_array_append_new(runs, json_pack("{s:I, s:i, s:f, s:f, s:f, s:f, s:f, s:f}", "ram_bytes",
                                              (json_int_t)run->ram, "tokens", (int)run->n_tokens, "decode_s",
                                              run->decode_s, "hit_rate", run->hit_rate, "overlap",
                                              fitted->overlap, "drag", fitted->drag, "touch_s",
                                              fitted->touch_s, "start_s", fitted->start_s));
    }
    return json_pack("{s:f, s:f, s:f, s:o, s:o, s:i, s:s, s:s, s:b}", "drive_bytes_s", p->parts.drive_rate,
                     "expert_bytes", p->parts.shard_bytes, "compute_s", p->parts.compute_s, "reads", sets,
                     "runs", runs, "threads", (int)p->stats.threads, "cpu", p->stats.cpu, "io_backend",
                     p->stats.io_backend, "direct", (int)p->stats.direct);
}

static json_t *row_ram_json(const struct plan_report *r, int row)
{
    return row >= 0 ? json_integer((json_int_t)r->rows[row].ram) : json_null();
}

int plan_report_json(const struct plan_report *r)
{
    json_t *rows = json_array();
    for (uint32_t i = 0; i < r->n_rows; i++)
        json_array_append_new(rows, row_json(r, &r->rows[i]));
    json_t *root =
        json_pack("{s:s, s:s, s:i, s:I, s:o, s:o, s:o, s:o}", "model", r->model, "routing", r->profile,
                  "tokens", (int)r->n, "available_bytes", (json_int_t)r->available, "probe",
                  probe_json(r->probe), "budgets", rows, "knee_ram_bytes", row_ram_json(r, r->knee),
                  "recommended_ram_bytes", row_ram_json(r, r->recommended));
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    if (!text)
        return cli_error(CLI_FAILED, "plan: out of memory, or a file name that is not UTF-8");
    cli_printf("%s\n", text);
    free(text);
    return CLI_OK;
}
