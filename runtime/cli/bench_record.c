#include "runtime/cli/bench_record.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/speed_model.h"

static double share(double part, double whole)
{
    return whole > 0.0 ? part / whole : 0.0;
}

double bench_record_rate(const struct bench_record *r)
{
    return share(r->tokens, r->seconds);
}

double bench_record_drive(const struct bench_record *r)
{
    return share((double)r->bytes_read, r->seconds);
}

/* All that a token reads counts as one stretch with a full queue: this is the bound, not the prediction. */
static struct speed_estimate best_case(const struct bench_record *r)
{
    const struct speed_parts parts = {.compute_s = (r->seconds - r->stall_s) / r->tokens,
                                      .drive_rate = r->drive_limit > 0.0 ? r->drive_limit : HUGE_VAL,
                                      .drag = 1};
    const struct speed_load load = {.trunk_bytes = r->useful_bytes / r->tokens};
    return speed_predict(&parts, &load);
}

double bench_record_bound(const struct bench_record *r)
{
    return share(1.0, best_case(r).best_s);
}

bool bench_record_is_drive_bound(const struct bench_record *r)
{
    return best_case(r).drive_s > (r->seconds - r->stall_s) / r->tokens;
}

static json_t *number_or_null(double value, bool known)
{
    return known && isfinite(value) ? json_real(value) : json_null();
}

static json_t *parts_json(const struct bench_record *r)
{
    json_t *parts = json_object();
    for (int part = 0; part < PS_N_PARTS; part++)
        json_object_set_new(parts, ps_part_name((enum ps_part)part), json_real(r->parts_s[part]));
    return parts;
}

json_t *bench_machine_json(const struct machine_description *m)
{
    return json_pack("{s:s, s:I, s:I, s:s, s:s}", "cpu", m->cpu, "cores", (json_int_t)m->cores, "memory",
                     (json_int_t)m->memory, "drive", m->drive, "kernel", m->kernel);
}

void bench_text_clean(char *text)
{
    json_t *string = json_string(text);
    for (char *at = text; !string && *at; at++)
        *at = (unsigned char)*at < 0x80 ? *at : '?';
    json_decref(string);
}

/* A name that may be of any bytes. */
static json_t *name_json(const char *name)
{
    json_t *string = name ? json_string(name) : json_null();
    return string ? string : json_string("?");
}

json_t *bench_record_json(const struct bench_record *r)
{
    double rate = bench_record_rate(r), bound = bench_record_bound(r), drive = bench_record_drive(r);
    bool limit_known = r->drive_limit > 0.0;
    json_t *object =
        json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:s, s:s, s:I, s:I, s:I, s:s, s:s, s:I, s:o}", "kind",
                  r->kind, "model", r->model, "arch", r->arch, "file_bytes", (json_int_t)r->file_bytes, "ram",
                  (json_int_t)r->ram, "io_limit", (json_int_t)r->io_limit, "prefetch", r->prefetch,
                  "prefetch_used", r->prefetch_used, "queue_depth", (json_int_t)r->queue_depth, "threads",
                  (json_int_t)r->threads, "chunk", (json_int_t)r->chunk, "policy", r->policy, "flags",
                  r->flags, "repeat", (json_int_t)r->repeat, "replay", name_json(r->replay));
    json_t *figures = json_pack(
        "{s:I, s:f, s:f, s:f, s:f, s:f, s:o, s:f, s:f, s:I, s:f, s:o, s:o, s:f, s:f, s:f, s:I, s:o, s:I}",
        "tokens", (json_int_t)r->tokens, "tokens_per_s", rate, "first_token_s", r->first_token_s, "compute_s",
        r->compute_s, "stall_s", r->stall_s, "bookkeeping_s", r->bookkeeping_s, "parts_s", parts_json(r),
        "hit_rate", r->hit_rate, "bytes_per_token", share((double)r->bytes_read, r->tokens), "bytes_read",
        (json_int_t)r->bytes_read, "drive_bytes_per_s", drive, "drive_limit_bytes_per_s",
        number_or_null(r->drive_limit, limit_known), "drive_utilisation",
        number_or_null(share(drive, r->drive_limit), limit_known), "bound_tokens_per_s", bound, "of_bound",
        share(rate, bound), "cycles", r->cycles, "peak_rss", (json_int_t)r->peak_rss, "machine",
        bench_machine_json(&r->machine), "time", (json_int_t)r->time);
    if (!object || !figures || json_object_update(object, figures) != 0) {
        json_decref(object);
        object = NULL;
    }
    json_decref(figures);
    return object;
}

char *bench_record_line(const json_t *object)
{
    char *text = json_dumps(object, BENCH_RECORD_FORMAT);
    size_t length = text ? strlen(text) : 0;
    char *line = text ? realloc(text, length + 2) : NULL;
    if (!line) {
        free(text);
        return NULL;
    }
    memcpy(line + length, "\n", 2);
    return line;
}
