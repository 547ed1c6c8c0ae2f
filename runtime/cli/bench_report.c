#include "runtime/cli/bench_report.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/size_text.h"

static int by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

double bench_median(double *values, uint32_t n)
{
    qsort(values, n, sizeof(*values), by_value);
    return (values[(n - 1) / 2] + values[n / 2]) / 2.0;
}

/* ---- rows ---- */

typedef double figure_fn(const struct bench_record *r);

static double first_token(const struct bench_record *r)
{
    return 1e3 * r->first_token_s;
}

static double token_ms(const struct bench_record *r)
{
    return 1e3 * r->seconds / r->tokens;
}

static double compute_ms(const struct bench_record *r)
{
    return 1e3 * r->compute_s / r->tokens;
}

static double stall_ms(const struct bench_record *r)
{
    return 1e3 * r->stall_s / r->tokens;
}

static double bookkeeping_ms(const struct bench_record *r)
{
    return 1e3 * r->bookkeeping_s / r->tokens;
}

static double hit_percent(const struct bench_record *r)
{
    return 100.0 * r->hit_rate;
}

static double token_bytes(const struct bench_record *r)
{
    return 1e-6 * (double)r->bytes_read / r->tokens;
}

static double drive_rate(const struct bench_record *r)
{
    return 1e-6 * bench_record_drive(r);
}

static double drive_limit(const struct bench_record *r)
{
    return 1e-6 * r->drive_limit;
}

static double drive_percent(const struct bench_record *r)
{
    return 1e2 * bench_record_drive(r) / r->drive_limit;
}

static double bound_percent(const struct bench_record *r)
{
    return 1e2 * bench_record_rate(r) / bench_record_bound(r);
}

struct row {
    const char *label;
    figure_fn *figure;
    bool needs_limit; /* of the drive */
};

static const struct row rows[] = {
    {"tokens/s", bench_record_rate, false},
    {"first token, ms", first_token, false},
    {"per token, ms", token_ms, false},
    {"  compute", compute_ms, false},
    {"  stall", stall_ms, false},
    {"  bookkeeping", bookkeeping_ms, false},
    {"hit rate, %", hit_percent, false},
    {"read per token, MB", token_bytes, false},
    {"read, MB/s", drive_rate, false},
    {"  the drive gives", drive_limit, true},
    {"  drive in use, %", drive_percent, true},
    {"bound, tokens/s", bench_record_bound, false},
    {"  reached, %", bound_percent, false},
};

static void print_heading(FILE *out, const struct bench_record *r, uint32_t n)
{
    char size[2][SIZE_TEXT_SIZE];
    fprintf(out, "%s of %s (%s, %s): %u tokens, budget %s, %.2f token cycles of cache, prefetch %s%s, %u %s",
            r->kind, r->model, r->arch, size_format(r->file_bytes, size[0]), r->tokens,
            size_format(r->ram, size[1]), r->cycles, r->prefetch,
            strcmp(r->prefetch, r->prefetch_used) != 0 ? " (off in effect)" : "", r->threads,
            r->threads == 1 ? "thread" : "threads");
    fprintf(out, n > 1 ? "; %u times\n\n%-22s%12s%12s%12s\n" : "\n\n", n, "", "median", "least", "most");
}

static void print_shares(FILE *out, const struct bench_record *records, uint32_t n)
{
    double whole = 0.0, parts_s[PS_N_PARTS] = {0}, stall_s = 0.0;
    uint32_t n_drive_bound = 0;
    for (uint32_t i = 0; i < n; i++) {
        n_drive_bound += bench_record_is_drive_bound(&records[i]);
        whole += records[i].seconds;
        stall_s += records[i].stall_s;
        for (int part = 0; part < PS_N_PARTS; part++)
            parts_s[part] += records[i].parts_s[part];
    }
    fprintf(out, "\nthe bound is set by %s; time in", 2 * n_drive_bound > n ? "reading" : "computing");
    for (int part = 0; part < PS_N_PARTS; part++)
        fprintf(out, " %s %.1f%%,", ps_part_name((enum ps_part)part), 100.0 * parts_s[part] / whole);
    fprintf(out, " stalls %.1f%%\n", 100.0 * stall_s / whole);
}

bool bench_report_print(FILE *out, const struct bench_record *records, uint32_t n)
{
    double *values = malloc(n * sizeof(*values));
    if (!values)
        return false;
    print_heading(out, records, n);
    for (const struct row *row = rows; row < rows + sizeof(rows) / sizeof(rows[0]); row++) {
        if (row->needs_limit && records[0].drive_limit <= 0.0)
            continue;
        for (uint32_t i = 0; i < n; i++)
            values[i] = row->figure(&records[i]);
        double median = bench_median(values, n);
        fprintf(out, "%-22s%12.2f", row->label, median);
        if (n > 1)
            fprintf(out, "%12.2f%12.2f", values[0], values[n - 1]);
        fputc('\n', out);
    }
    print_shares(out, records, n);
    free(values);
    return true;
}
