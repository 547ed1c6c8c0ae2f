/* penstock plan: predicted speed against RAM. A probe of some seconds measures the drive and the kernels and records
 * routing; for each budget the memory plan says how many experts are kept, a replay of the routing through the cache
 * policy how many are read, and the speed model what that takes. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/plan_probe.h"
#include "runtime/cli/plan_report.h"
#include "runtime/route_replay.h"
#include "runtime/routing_profile.h"
#include "runtime/size_text.h"
#include "storage/cache_policy.h"

enum {
    MAX_BUDGETS = 32,
    DEFAULT_BUDGETS = 8,
    GROWTH_BETWEEN_PLANS = 1 << 20, /* from one plan to the next: the smallest budget still works then */
    SETTLE_TOKENS = 192,            /* fill the cache before the steady state is counted, */
    STEADY_TOKENS = 192,            /* over as many */
    MAX_FIRST = 4096,
    MAX_MODEL_FLAGS = 48,
};

static const double NEAR_BEST = 0.95;

struct plan_options {
    const char *ram, *drives, *profile;
    uint32_t n;
    bool json;
};

#define OPTION(field) offsetof(struct plan_options, field)

static const struct flag plan_rows[] = {
    {"ram", 0, FLAG_STRING, OPTION(ram), "LIST",
     .help = "budgets to predict for: \"4G,8G,auto\"; without it: some from the\n"
             "smallest that works to what holds everything or is available"},
    {"drives", 0, FLAG_STRING, OPTION(drives), "LIST",
     .help = "other drives to predict for, by the bytes per second that they\n"
             "read with a full queue"},
    {"profile", 0, FLAG_STRING, OPTION(profile), "measured|text|FILE",
     .help = "routing: as recorded in the probe, of random tokens (the hard\n"
             "case, which bench decode measures); as of real models with prose;\n"
             "or a recording of penstock trace"},
    {"n", 'n', FLAG_U32, OPTION(n), "TOKENS",
     .help = "length of the run from an empty cache that is predicted", .min = 1, .max = MAX_FIRST},
    {"json", 0, FLAG_BOOL, OPTION(json), .help = "print one JSON object"},
    {0},
};

/* Routing that is replayed. */
struct routing {
    struct routing_sample sample;
    struct route_trace *file;
    uint32_t *file_ids;
    struct route_replay *first;  /* begins at an empty cache */
    struct route_replay *steady; /* counts from SETTLE_TOKENS on */
    char name[160];
};

struct plan {
    struct plan_options options;
    struct model_options model_options;
    struct ps_model *model;
    uint64_t available;
    struct plan_row rows[MAX_BUDGETS];
    uint32_t n_rows;
    uint64_t drives[PLAN_MAX_DRIVES];
    uint32_t n_drives;
    struct plan_probe probe;
    struct speed_correction corrections[PLAN_MAX_RUNS]; /* of the probe's runs */
    struct routing routing;
    const struct cache_policy *policy;
    int knee, recommended;
};

/* ---- budgets ---- */

static int by_ram(const void *a, const void *b)
{
    uint64_t left = ((const struct plan_row *)a)->ram, right = ((const struct plan_row *)b)->ram;
    return (left > right) - (left < right);
}

static void add_budget(struct plan *p, uint64_t ram)
{
    for (uint32_t i = 0; i < p->n_rows; i++) {
        if (p->rows[i].ram == ram)
            return;
    }
    p->rows[p->n_rows++].ram = ram;
}

/* The next size of a list; false at its end, or with a message printed and *exit_code set. */
static bool next_size(const char **list, const char *flag, const char *example, uint64_t automatic,
                      uint64_t *size, int *exit_code)
{
    char item[32];
    if (!*list || *exit_code != CLI_OK)
        return false;
    size_t length = strcspn(*list, ",");
    snprintf(item, sizeof(item), "%.*s", length < sizeof(item) ? (int)length : (int)sizeof(item), *list);
    *list = (*list)[length] ? *list + length + 1 : NULL;
    if (automatic > 0 && strcmp(item, "auto") == 0) {
        *size = automatic;
        return true;
    }
    if (!size_parse(item, size) || *size == 0)
        *exit_code =
            cli_error(CLI_USAGE, "--%s: \"%s\" is not a size: use a list as \"%s\"", flag, item, example);
    return *exit_code == CLI_OK;
}

static int parse_lists(struct plan *p)
{
    int exit_code = CLI_OK;
    uint64_t size;
    for (const char *at = p->options.ram;
         next_size(&at, "ram", "4G,8G,auto", p->available, &size, &exit_code);) {
        if (p->n_rows == MAX_BUDGETS)
            return cli_error(CLI_USAGE, "--ram: more than %d budgets", MAX_BUDGETS);
        add_budget(p, size);
    }
    for (const char *at = p->options.drives; next_size(&at, "drives", "1G,3G,7G", 0, &size, &exit_code);) {
        if (p->n_drives == PLAN_MAX_DRIVES)
            return cli_error(CLI_USAGE, "--drives: more than %d drives", PLAN_MAX_DRIVES);
        p->drives[p->n_drives++] = size;
    }
    return exit_code;
}

/* As size_format shows it with three digits, so that a row can be asked for again; rounded up. */
static uint64_t round_budget(uint64_t ram)
{
    uint64_t unit = 1;
    while (ram / unit >= 1024)
        unit *= 1024;
    uint64_t step = ram / unit >= 100 ? unit : ram / unit >= 10 ? unit / 10 : unit / 100;
    return step > 0 ? (ram + step - 1) / step * step : ram;
}

/* The same factor from one to the next, from the smallest that works to all experts in memory. */
static enum ps_status default_budgets(struct plan *p, struct ps_error *err)
{
    struct ps_plan plan;
    struct ps_model_params params = p->model_options.params;
    params.ram = 1;
    enum ps_status status = ps_model_plan(p->model, &params, &plan, err);
    if (status != PS_ERR_BUDGET)
        return status;
    double least = (double)plan.minimum + fmax((double)plan.minimum / 32, GROWTH_BETWEEN_PLANS);
    params.ram = 2 * ps_model_info(p->model)->unpacked_bytes + 2 * plan.minimum;
    if ((status = ps_model_plan(p->model, &params, &plan, err)) != PS_OK)
        return status;
    double most = fmin((double)(plan.budget - plan.unused) * 1.01, (double)p->available);
    most = fmax(most, least);
    for (uint32_t i = 0; i < DEFAULT_BUDGETS; i++)
        add_budget(p, round_budget((uint64_t)(least * pow(most / least, i / (DEFAULT_BUDGETS - 1.0)))));
    return PS_OK;
}

static enum ps_status plan_budgets(struct plan *p, struct ps_error *err)
{
    bool any = false;
    qsort(p->rows, p->n_rows, sizeof(p->rows[0]), by_ram);
    struct ps_error refusal = {0};
    for (uint32_t i = 0; i < p->n_rows; i++) {
        struct plan_row *row = &p->rows[i];
        struct ps_model_params params = p->model_options.params;
        params.ram = row->ram;
        enum ps_status status = ps_model_plan(p->model, &params, &row->memory, &refusal);
        row->fits = status == PS_OK;
        row->within = row->ram <= p->available;
        any = any || row->fits;
        if (status != PS_OK && status != PS_ERR_BUDGET) {
            *err = refusal;
            return status;
        }
    }
    if (any)
        return PS_OK;
    *err = refusal; /* the largest budget's */
    return PS_ERR_BUDGET;
}

/* Of the budgets that work and are available (else all that work): the largest and the smallest. Returns how many. */
static uint32_t probe_rows(const struct plan *p, const struct plan_row *rows[PLAN_MAX_RUNS])
{
    uint32_t n = 0;
    for (int within = 1; within >= 0 && n == 0; within--) {
        for (const struct plan_row *row = p->rows + p->n_rows; row-- > p->rows;) {
            if (!row->fits || (within && !row->within))
                continue;
            rows[n < PLAN_MAX_RUNS ? n++ : n - 1] = row;
        }
    }
    return n;
}

/* A model is loaded once. */
static enum ps_status reopen(struct plan *p, struct ps_error *err)
{
    ps_model_free(p->model);
    p->model = NULL;
    return ps_model_open(&p->model, p->model_options.path, err);
}

/* Decodes with a row's budget, and what this process has grown by since the row was planned, so that slots are as many. */
static bool probe_one(struct plan *p, const struct plan_row *row, int *exit_code)
{
    struct ps_error err;
    struct ps_plan now;
    struct ps_model_params params = p->model_options.params;
    params.ram = row->ram;
    enum ps_status status = ps_model_plan(p->model, &params, &now, &err);
    if (status != PS_OK && status != PS_ERR_BUDGET) {
        *exit_code = cli_status(&err);
        return false;
    }
    if (now.process > row->memory.process)
        params.ram += now.process - row->memory.process;
    return plan_probe_run(&p->probe, p->model, row->ram, &params, p->options.n, exit_code);
}

static bool run_probe(struct plan *p, int *exit_code)
{
    struct ps_error err;
    const struct plan_row *rows[PLAN_MAX_RUNS];
    uint32_t n = probe_rows(p, rows);
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0 && reopen(p, &err) != PS_OK) {
            *exit_code = cli_status(&err);
            return false;
        }
        if (!probe_one(p, rows[i], exit_code))
            return false;
    }
    plan_probe_finish(&p->probe);
    return true;
}

/* ---- routing ---- */

static uint64_t count_tokens(const struct replay_trace *trace)
{
    return trace->n_visits > 0 ? trace->visits[trace->n_visits - 1].token + 1 : 0;
}

static struct replay_trace trace_head(const struct replay_trace *trace, uint64_t n)
{
    struct replay_trace head = *trace;
    while (head.n_visits > 0 && head.visits[head.n_visits - 1].token >= n)
        head.n_visits--;
    return head;
}

static enum ps_status replay_of(const struct plan *p, const struct replay_trace *trace,
                                struct route_replay **out, struct ps_error *err)
{
    uint32_t *pools = calloc(trace->n_layers + UINT64_C(1), sizeof(*pools));
    if (!pools)
        return ps_error_set(err, PS_ERR_NOMEM, "plan: out of memory");
    for (uint32_t l = 0; l < trace->n_layers; l++) {
        struct ps_expert_layer layer;
        if (ps_model_expert_layer(p->model, l, &layer))
            pools[l] = layer.pool;
    }
    enum ps_status status = route_replay_of_visits(out, trace, pools, count_tokens(trace), err);
    free(pools);
    return status;
}

static enum ps_status set_routing(struct plan *p, const struct replay_trace *first,
                                  const struct replay_trace *steady, struct ps_error *err)
{
    struct replay_trace head = trace_head(first, p->options.n);
    enum ps_status status = replay_of(p, &head, &p->routing.first, err);
    return status == PS_OK ? replay_of(p, steady, &p->routing.steady, err) : status;
}

static bool same_shape(const struct replay_trace *a, const struct replay_trace *b)
{
    bool same = a->n_layers == b->n_layers;
    for (uint32_t l = 0; same && l < a->n_layers; l++)
        same = a->n_experts[l] == b->n_experts[l];
    return same;
}

static enum ps_status draw_routing(struct plan *p, const struct routing_profile *profile,
                                   struct ps_error *err)
{
    uint32_t n = SETTLE_TOKENS + STEADY_TOKENS;
    n = p->options.n > n ? p->options.n : n;
    return routing_profile_sample(&p->routing.sample, profile, p->probe.recorded.n_layers,
                                  p->probe.recorded.n_experts, p->probe.parts.top_k, n, 1, err);
}

/* What is recorded is replayed as it is, as far as it goes; for more, its like is drawn. */
static enum ps_status use_recording(struct plan *p, const struct replay_trace *recorded, const char *source,
                                    struct ps_error *err)
{
    struct routing *r = &p->routing;
    uint64_t n = count_tokens(recorded);
    bool fits = same_shape(recorded, &p->probe.recorded);
    bool first = fits && n >= p->options.n, steady = fits && n >= SETTLE_TOKENS + STEADY_TOKENS;
    if (!first || !steady) {
        struct routing_profile profile;
        enum ps_status status = routing_profile_fit(&profile, recorded, err);
        if (status != PS_OK || (status = draw_routing(p, &profile, err)) != PS_OK)
            return status;
    }
    snprintf(r->name, sizeof(r->name), "%llu tokens of %s%s", (unsigned long long)n, source,
             steady  ? ""
             : first ? ", the steady state drawn after their statistics"
                     : ", drawn after their statistics");
    return set_routing(p, first ? recorded : &r->sample.trace, steady ? recorded : &r->sample.trace, err);
}

static enum ps_status use_file(struct plan *p, const char *path, struct ps_error *err)
{
    struct replay_trace recorded;
    enum ps_status status = route_trace_read(&p->routing.file, path, err);
    if (status == PS_OK)
        status = route_trace_replay(p->routing.file, &recorded, &p->routing.file_ids, err);
    return status == PS_OK ? use_recording(p, &recorded, path, err) : status;
}

static enum ps_status choose_routing(struct plan *p, struct ps_error *err)
{
    struct routing *r = &p->routing;
    if (p->probe.recorded.n_layers == 0) {
        snprintf(r->name, sizeof(r->name), "none: the model has no experts");
        return PS_OK;
    }
    if (strcmp(p->options.profile, "measured") == 0)
        return use_recording(p, &p->probe.recorded, "the probe", err);
    if (strcmp(p->options.profile, "text") != 0)
        return use_file(p, p->options.profile, err);
    snprintf(r->name, sizeof(r->name), "drawn after the statistics of real models with prose");
    enum ps_status status = draw_routing(p, &ROUTING_TEXT, err);
    return status == PS_OK ? set_routing(p, &r->sample.trace, &r->sample.trace, err) : status;
}

/* ---- prediction ---- */

struct counted {
    double asked, hits, fresh;
};

/* Experts over the tokens from `skip` on. */
static enum ps_status replay_from(const struct plan *p, const struct route_replay *replay, uint32_t n_slots,
                                  uint64_t skip, struct counted *out, struct ps_error *err)
{
    struct replay_result result;
    *out = (struct counted){0};
    if (!replay)
        return PS_OK;
    uint32_t least = route_replay_least_slots(replay); /* fewer slots serve, too, but hit nothing */
    enum ps_status status =
        route_replay_run(replay, p->policy, n_slots > least ? n_slots : least, skip, &result, err);
    if (status != PS_OK)
        return status;
    *out = (struct counted){.asked = (double)result.accesses,
                            .hits = n_slots >= least ? (double)result.hits : 0,
                            .fresh = (double)(result.accesses - result.hits - result.evictions)};
    return PS_OK;
}

static struct speed_load load_of(const struct plan_row *row, const struct counted *c)
{
    struct speed_load load = {.trunk_bytes = (double)row->memory.trunk_streamed_bytes};
    if (c->asked > 0) {
        load.miss_rate = 1 - c->hits / c->asked;
        load.fresh_rate = c->fresh / c->asked;
    }
    return load;
}

static double bytes_read(const struct speed_parts *parts, const struct speed_load *load)
{
    return parts->n_layers * parts->top_k * load->miss_rate * parts->shard_bytes + load->trunk_bytes;
}

/* Of n tokens from an empty cache. In parts, as misses are many at first and few later on. */
static enum ps_status first_seconds(const struct plan *p, const struct route_replay *replay,
                                    const struct plan_row *row, uint32_t n, double *seconds,
                                    struct speed_load *load, struct ps_error *err)
{
    const uint32_t begins[] = {0, n / 16, n / 4, n};
    struct counted from[4] = {{0}};
    for (uint32_t i = 0; i < 4; i++) {
        enum ps_status status = replay_from(p, replay, row->memory.slots, begins[i], &from[i], err);
        if (status != PS_OK)
            return status;
    }
    *seconds = p->probe.fits[0].parts.start_s;
    struct counted all = {from[0].asked - from[3].asked, from[0].hits - from[3].hits,
                          from[0].fresh - from[3].fresh};
    *load = load_of(row, &all);
    for (uint32_t i = 0; i < 3; i++) {
        struct counted c = {from[i].asked - from[i + 1].asked, from[i].hits - from[i + 1].hits,
                            from[i].fresh - from[i + 1].fresh};
        struct speed_load part = load_of(row, &c);
        *seconds +=
            (begins[i + 1] - begins[i]) * speed_between(p->probe.fits, p->probe.n_runs, &part).token_s;
    }
    return PS_OK;
}

/* The probe's own first tokens, predicted in the same way, say by how much such predictions are off. */
static enum ps_status find_corrections(struct plan *p, struct ps_error *err)
{
    struct route_replay *replay = NULL;
    enum ps_status status = PS_OK;
    if (p->probe.recorded.n_layers > 0)
        status = replay_of(p, &p->probe.recorded, &replay, err);
    for (uint32_t i = 0; i < p->probe.n_runs && status == PS_OK; i++) {
        const struct plan_run *run = &p->probe.runs[i];
        uint32_t n = run->n_tokens < p->options.n ? run->n_tokens : p->options.n;
        const struct plan_row *row = p->rows;
        while (row->ram != run->ram)
            row++;
        struct speed_load load;
        double predicted, measured = 0;
        status = first_seconds(p, replay, row, n, &predicted, &load, err);
        for (uint32_t t = 0; t < n; t++)
            measured += run->samples[t].seconds;
        if (status == PS_OK && predicted > 0)
            p->corrections[i] = (struct speed_correction){measured / predicted, load.miss_rate};
    }
    route_replay_free(replay);
    return status;
}

static enum ps_status predict_first(const struct plan *p, struct plan_row *row, struct ps_error *err)
{
    double seconds;
    struct speed_load load;
    enum ps_status status = first_seconds(p, p->routing.first, row, p->options.n, &seconds, &load, err);
    if (status != PS_OK)
        return status;
    seconds *= speed_correct(p->corrections, p->probe.n_runs, load.miss_rate);
    row->first =
        (struct plan_outcome){1 - load.miss_rate, bytes_read(&p->probe.parts, &load), p->options.n / seconds};
    return PS_OK;
}

static enum ps_status predict_steady(const struct plan *p, struct plan_row *row, struct ps_error *err)
{
    const struct speed_parts *parts = &p->probe.parts;
    struct counted c = {0};
    if (row->memory.slots < row->memory.n_shards) { /* else nothing is read any more */
        enum ps_status status = replay_from(p, p->routing.steady, row->memory.slots, SETTLE_TOKENS, &c, err);
        if (status != PS_OK)
            return status;
    }
    c.fresh = 0;
    struct speed_load load = load_of(row, &c);
    struct speed_estimate e = speed_between(p->probe.fits, p->probe.n_runs, &load);
    row->steady = (struct plan_outcome){1 - load.miss_rate, bytes_read(parts, &load), 1 / e.token_s};
    row->drive_bound = e.drive_s > parts->compute_s;
    for (uint32_t d = 0; d < p->n_drives; d++) {
        struct speed_fit fits[PLAN_MAX_RUNS];
        for (uint32_t i = 0; i < p->probe.n_runs; i++) {
            fits[i] = p->probe.fits[i];
            fits[i].parts = speed_with_drive(&fits[i].parts, (double)p->drives[d]);
        }
        row->drive_tok_s[d] = 1 / speed_between(fits, p->probe.n_runs, &load).token_s;
    }
    return PS_OK;
}

/* Among the budgets that work and are available. */
static void choose_budget(struct plan *p)
{
    double ram[MAX_BUDGETS], tok_s[MAX_BUDGETS];
    int row_of[MAX_BUDGETS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_rows; i++) {
        if (!p->rows[i].fits || !p->rows[i].within)
            continue;
        ram[n] = (double)p->rows[i].ram;
        tok_s[n] = p->rows[i].steady.tok_s;
        row_of[n++] = (int)i;
    }
    uint32_t knee = n > 2 ? speed_knee(ram, tok_s, n) : 0;
    p->knee = knee > 0 ? row_of[knee] : -1;
    p->recommended = n > 0 ? row_of[speed_first_near_best(tok_s, n, NEAR_BEST)] : -1;
}

static enum ps_status predict(struct plan *p, struct ps_error *err)
{
    enum ps_status status = choose_routing(p, err);
    if (status == PS_OK)
        status = find_corrections(p, err);
    for (uint32_t i = 0; i < p->n_rows && status == PS_OK; i++) {
        if (!p->rows[i].fits)
            continue;
        if (cli_interrupted())
            return ps_error_set(err, PS_ERR_CANCELLED, "cancelled");
        if ((status = predict_first(p, &p->rows[i], err)) == PS_OK)
            status = predict_steady(p, &p->rows[i], err);
    }
    if (status == PS_OK)
        choose_budget(p);
    return status;
}

/* ---- the command ---- */

static int report(const struct plan *p)
{
    const struct plan_report r = {.model = p->model_options.path,
                                  .profile = p->routing.name,
                                  .n = p->options.n,
                                  .available = p->available,
                                  .probe = &p->probe,
                                  .rows = p->rows,
                                  .n_rows = p->n_rows,
                                  .drives = p->drives,
                                  .n_drives = p->n_drives,
                                  .knee = p->knee,
                                  .recommended = p->recommended};
    if (p->options.json)
        return plan_report_json(&r);
    plan_report_print(&r);
    return CLI_OK;
}

static int run_plan(struct plan *p)
{
    struct ps_error err;
    struct ps_model_params *params = &p->model_options.params;
    p->available = ps_ram_auto();
    p->policy = cache_policy_find(params->cache_policy);
    if (p->options.n > params->ctx && params->ctx > 0)
        return cli_error(CLI_USAGE, "-n: %u tokens do not fit a context of %u", p->options.n, params->ctx);
    params->ctx = params->ctx > 0 ? params->ctx : p->options.n; /* as bench decode has them */
    params->feed = 1;
    int exit_code = parse_lists(p);
    if (exit_code != CLI_OK)
        return exit_code;
    if (ps_model_open(&p->model, p->model_options.path, &err) != PS_OK)
        return cli_status(&err);
    if ((p->n_rows == 0 && default_budgets(p, &err) != PS_OK) || plan_budgets(p, &err) != PS_OK)
        return cli_status(&err);
    if (!run_probe(p, &exit_code))
        return exit_code;
    return predict(p, &err) == PS_OK ? report(p) : cli_status(&err);
}

/* The flags that every command with a model has, but for those that mean nothing here or something else. */
static void shared_flags(struct flag rows[MAX_MODEL_FLAGS])
{
    uint32_t n = 0;
    for (const struct flag *row = MODEL_FLAGS; row->name && n + 1 < MAX_MODEL_FLAGS; row++) {
        if (strcmp(row->name, "ram") != 0 && strcmp(row->name, "warm") != 0)
            rows[n++] = *row;
    }
    rows[n] = (struct flag){0};
}

int cmd_plan(int argc, char **argv)
{
    struct plan *p = calloc(1, sizeof(*p));
    if (!p)
        return cli_error(CLI_FAILED, "plan: out of memory");
    struct flag model_rows[MAX_MODEL_FLAGS];
    shared_flags(model_rows);
    p->options = (struct plan_options){.drives = "500M,1G,2G,3.5G,7G,14G", .profile = "measured", .n = 64};
    model_options_default(&p->model_options);
    const struct flag_group groups[] = {
        {"Prediction", plan_rows, &p->options}, {"Model and memory", model_rows, &p->model_options}, {0}};
    const struct flag_spec spec = {
        .command = "plan",
        .summary = "Predicts tokens per second against RAM and SSD speed. Measures this drive and these "
                   "kernels for some\n"
                   "ten seconds, and replays routing through the expert cache for each budget.\n"
                   "Recommended is the smallest budget within 5% of the best that is within available\n"
                   "memory; the knee is where the curve turns from steep to flat.",
        .examples = "  penstock plan -m model.gguf\n"
                    "  penstock plan -m model.gguf --ram 3G,4.8G,8G --threads 2 --json\n"
                    "  penstock plan -m model.gguf --profile text",
        .groups = groups};
    int exit_code;
    if (cli_parse(&spec, argc, argv, &exit_code))
        exit_code = run_plan(p);
    route_replay_free(p->routing.first);
    route_replay_free(p->routing.steady);
    routing_sample_free(&p->routing.sample);
    route_trace_free(p->routing.file);
    free(p->routing.file_ids);
    plan_probe_deinit(&p->probe);
    ps_model_free(p->model);
    free(p);
    return exit_code;
}
