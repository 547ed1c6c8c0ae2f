#include "runtime/cli/bench_io_report.h"

#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <time.h>

#include "runtime/cli/bench_record.h"
#include "runtime/cli/cli.h"
#include "runtime/size_text.h"

static const double SATURATED = 0.97; /* of the best rate: within what a drive drifts by */

static const char *pattern_name(const struct io_cell *cell)
{
    return cell->pattern == IO_RANDOM ? "random" : "sequential";
}

static const char *backend_name(const struct io_cell *cell)
{
    return cell->backend == IO_BACKEND_URING ? "uring" : "threads";
}

double io_result_rate(const struct io_result *result)
{
    return result->n_rates > 0 ? result->rates[result->n_rates / 2] : 0.0;
}

static double reads_per_second(const struct io_result *result)
{
    return result->sum.bytes > 0
               ? io_result_rate(result) * (double)result->sum.reads / (double)result->sum.bytes
               : 0.0;
}

static uint64_t extent_bytes(const struct io_report *report, const struct io_cell *cell)
{
    return cell->extent_bytes > 0 ? cell->extent_bytes : report->shard_bytes;
}

/* ---- the sentence ---- */

/* Whether a takes less to ask for than b. */
static bool is_smaller(const struct io_report *report, const struct io_result *a, const struct io_result *b)
{
    uint64_t a_extent = extent_bytes(report, &a->cell), b_extent = extent_bytes(report, &b->cell);
    if (a_extent != b_extent)
        return a_extent < b_extent;
    if (a->cell.queue_depth != b->cell.queue_depth)
        return a->cell.queue_depth < b->cell.queue_depth;
    if (a->cell.block_bytes != b->cell.block_bytes)
        return a->cell.block_bytes < b->cell.block_bytes;
    return io_result_rate(a) > io_result_rate(b);
}

const struct io_result *io_report_saturating(const struct io_report *report, double *best_rate)
{
    enum io_pattern pattern = IO_SEQUENTIAL;
    for (uint32_t i = 0; i < report->n_results; i++) {
        if (report->results[i].n_rates > 0 && report->results[i].cell.pattern == IO_RANDOM)
            pattern = IO_RANDOM;
    }
    *best_rate = 0.0;
    for (uint32_t i = 0; i < report->n_results; i++) {
        const struct io_result *result = &report->results[i];
        if (result->cell.pattern == pattern && io_result_rate(result) > *best_rate)
            *best_rate = io_result_rate(result);
    }
    const struct io_result *found = NULL;
    for (uint32_t i = 0; i < report->n_results; i++) {
        const struct io_result *result = &report->results[i];
        if (result->n_rates > 0 && result->cell.pattern == pattern &&
            io_result_rate(result) >= SATURATED * *best_rate && (!found || is_smaller(report, result, found)))
            found = result;
    }
    return found;
}

static void print_sentence(const struct io_report *report)
{
    double best;
    const struct io_result *found = io_report_saturating(report, &best);
    if (!found)
        return;
    const struct io_cell *cell = &found->cell;
    char extent[SIZE_TEXT_SIZE], block[SIZE_TEXT_SIZE];
    cli_printf("\nThe least that saturates %s: %s extents of %s%s, in reads of %s, %u in flight (%s, %s), "
               "%.2f GB/s of %.2f at best.\n",
               report->io_limit ? "the drive under --io-limit" : "the drive", pattern_name(cell),
               size_format(extent_bytes(report, cell), extent),
               cell->extent_bytes == 0 ? " (the model's experts)" : "", size_format(cell->block_bytes, block),
               cell->queue_depth, backend_name(cell), cell->direct ? "direct" : "buffered",
               io_result_rate(found) / 1e9, best / 1e9);
}

/* ---- the table ---- */

static void print_row(const struct io_report *report, const struct io_result *result)
{
    const struct io_cell *cell = &result->cell;
    char extent[SIZE_TEXT_SIZE], block[SIZE_TEXT_SIZE], drive[16] = "-";
    if (result->sum.drive_known && result->sum.drive_seconds > 0)
        snprintf(drive, sizeof(drive), "%.3f",
                 (double)result->sum.drive_bytes / result->sum.drive_seconds / 1e9);
    cli_printf("%-10s %-7s %-8s %9s %9s %6u %8.3f %9.0f %9.0f %9.0f %8s\n", pattern_name(cell),
               backend_name(cell), cell->direct ? "direct" : "buffered",
               size_format(extent_bytes(report, cell), extent), size_format(cell->block_bytes, block),
               cell->queue_depth, io_result_rate(result) / 1e9, reads_per_second(result),
               latency_histogram_quantile(&result->latency, 0.5) / 1e3,
               latency_histogram_quantile(&result->latency, 0.99) / 1e3, drive);
}

void io_report_print(const struct io_report *report)
{
    char size[SIZE_TEXT_SIZE], limit[SIZE_TEXT_SIZE];
    cli_printf("%s: %s to read from", report->place, size_format(report->file_bytes, size));
    if (report->io_limit)
        cli_printf(", at most %s/s (%.3f GB/s)", size_format(report->io_limit, limit),
                   (double)report->io_limit / 1e9);
    cli_printf("; latency: of an extent, from submit to the last byte; drive: its own counters, everybody's "
               "reads\n\n%-10s %-7s %-8s %9s %9s %6s %8s %9s %9s %9s %8s\n",
               "pattern", "backend", "cache", "extent", "read", "depth", "GB/s", "reads/s", "p50 us",
               "p99 us", "drive");
    for (uint32_t i = 0; i < report->n_results; i++) {
        if (report->results[i].n_rates > 0)
            print_row(report, &report->results[i]);
    }
    print_sentence(report);
}

/* ---- JSON ---- */

static json_t *cell_object(const struct io_report *report, const struct io_result *result, const char *kind)
{
    const struct io_cell *cell = &result->cell;
    return json_pack(
        "{s:s, s:s, s:I, s:I, s:s, s:s, s:b, s:I, s:b, s:I, s:I, s:I, s:f}", "kind", kind, "place",
        report->place, "file_bytes", (json_int_t)report->file_bytes, "io_limit", (json_int_t)report->io_limit,
        "pattern", pattern_name(cell), "backend", backend_name(cell), "direct", (int)cell->direct,
        "extent_bytes", (json_int_t)extent_bytes(report, cell), "shards", (int)(cell->extent_bytes == 0),
        "block_bytes", (json_int_t)cell->block_bytes, "queue_depth", (json_int_t)cell->queue_depth,
        "memory_bytes", (json_int_t)cell->memory_bytes, "bytes_per_s", io_result_rate(result));
}

static json_t *result_object(const struct io_report *report, const struct io_result *result,
                             const struct machine_description *machine)
{
    const struct io_sample *sum = &result->sum;
    json_t *object = cell_object(report, result, "io");
    json_t *rates = json_array();
    for (uint32_t i = 0; i < result->n_rates; i++)
        json_array_append_new(rates, json_real(result->rates[i]));
    json_t *rest = json_pack(
        "{s:f, s:f, s:f, s:o, s:I, s:I, s:I, s:f, s:o, s:o, s:I}", "iops", reads_per_second(result), "p50_us",
        latency_histogram_quantile(&result->latency, 0.5) / 1e3, "p99_us",
        latency_histogram_quantile(&result->latency, 0.99) / 1e3, "repeats", rates, "bytes_read",
        (json_int_t)sum->bytes, "reads", (json_int_t)sum->reads, "extents", (json_int_t)sum->extents,
        "seconds", sum->seconds, "drive_bytes_per_s",
        sum->drive_known && sum->drive_seconds > 0 ? json_real((double)sum->drive_bytes / sum->drive_seconds)
                                                   : json_null(),
        "machine", bench_machine_json(machine), "time", (json_int_t)time(NULL));
    if (!object || !rest || json_object_update(object, rest) < 0) {
        json_decref(object);
        object = NULL;
    }
    json_decref(rest);
    return object;
}

/* Takes the object. */
static bool print_object(json_t *object)
{
    char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    if (text)
        cli_printf("%s\n", text);
    free(text);
    return text;
}

int io_report_json(const struct io_report *given)
{
    bool ok = true;
    char place[PATH_MAX]; /* records are read elsewhere than they were made */
    if (!realpath(given->place, place))
        snprintf(place, sizeof(place), "%s", given->place);
    struct machine_description machine;
    machine_describe(&machine, place);
    bench_text_clean(place);
    struct io_report told = *given;
    told.place = place;
    const struct io_report *report = &told;
    for (uint32_t i = 0; ok && i < report->n_results; i++) {
        if (report->results[i].n_rates > 0)
            ok = print_object(result_object(report, &report->results[i], &machine));
    }
    double best;
    const struct io_result *found = io_report_saturating(report, &best);
    if (ok && found) {
        json_t *object = cell_object(report, found, "io_saturation");
        if (object)
            json_object_set_new(object, "best_bytes_per_s", json_real(best));
        ok = print_object(object);
    }
    return ok ? CLI_OK : cli_error(CLI_FAILED, "--json: out of memory");
}
