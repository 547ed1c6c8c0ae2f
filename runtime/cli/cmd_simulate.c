/* penstock simulate: replays a recording of routing through the cache policies that run live, at several sizes, next to
 * Belady's optimum. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "runtime/cli/cli.h"
#include "runtime/penstock.h"
#include "runtime/route_replay.h"
#include "runtime/size_text.h"

enum { MAX_BUDGETS = 64, MAX_POLICIES = 64 };

struct simulate_options {
    const char *trace, *ram, *policies, *model;
    uint64_t io_rate, expert_bytes;
    uint32_t skip, experts, ctx, threads;
    float compute_ms;
    bool json;
};

#define OPTION(field) offsetof(struct simulate_options, field)

static const struct flag cache_rows[] = {
    {"ram", 0, FLAG_STRING, OPTION(ram), "LIST",
     .help = "sizes of the cache, or shares of all experts: \"2G,10%\";\nwith --model sizes are budgets of "
             "the whole "
             "process"},
    {"policy", 0, FLAG_STRING, OPTION(policies), "all|LIST",
     .help = "names as of --cache-policy; Belady's optimum is always added"},
    {"skip", 0, FLAG_U32, OPTION(skip), "TOKENS",
     .help = "tokens that fill the cache before counting begins"},
    {0},
};
static const struct flag cost_rows[] = {
    {"io-rate", 0, FLAG_SIZE, OPTION(io_rate), "SIZE",
     .help = "what the drive reads per second; 0: not known"},
    {"compute-ms", 0, FLAG_FLOAT, OPTION(compute_ms), "X",
     .help = "time that computing a token takes, without reading", .min = 0, .max = 1e9},
    {"expert-bytes", 0, FLAG_SIZE, OPTION(expert_bytes), "SIZE",
     .help = "size of an expert; 0: as the recording says"},
    {"experts", 0, FLAG_U32, OPTION(experts), "N",
     .help = "experts per layer; 0: as the recording says, or as many\nas the highest that was chosen",
     .max = 65536, .min = 0},
    {"json", 0, FLAG_BOOL, OPTION(json), .help = "print one JSON object"},
    {0},
};
static const struct flag model_rows[] = {
    {"model", 'm', FLAG_STRING, OPTION(model), "FILE",
     .help = "divide each --ram as a run of this model would"},
    {"ctx", 0, FLAG_U32, OPTION(ctx), "TOKENS", .help = "its context; 0: the model's, at most 4096"},
    {"threads", 0, FLAG_U32, OPTION(threads),
     .help = "its compute threads; 0: the fastest number for this machine", .max = 256, .min = 0},
    {0},
};

struct budget {
    uint64_t bytes;  /* 0: a share */
    double share;    /* of all experts */
    bool is_default; /* of our own list: left out where it is too small */
};

/* One line of the table. */
struct outcome {
    uint64_t ram; /* bytes; 0: not known */
    uint32_t slots;
    const struct cache_policy *policy; /* NULL: Belady */
    struct replay_result result;
    double hit_rate;
    double gap_closed; /* of the way from LRU to Belady; NaN: no LRU, or no gap */
    double read;       /* bytes per token; NaN: not known */
    double tok_s;      /* NaN: not known */
};

struct simulation {
    const struct simulate_options *options;
    struct route_trace *trace;
    struct route_replay *replay;
    struct ps_model *model; /* NULL: none given */
    uint32_t n_shards;
    uint32_t least_slots;
    uint32_t cycle;      /* experts that one token asks for: most of the trace */
    uint64_t counted;    /* tokens */
    double expert_bytes; /* mean; 0: not known */
    double read_bytes;   /* to read one, mean; less where a container holds them compressed */
    bool equal_sizes;
    struct budget budgets[MAX_BUDGETS];
    uint32_t n_budgets;
    const struct cache_policy *policies[MAX_POLICIES + 1]; /* the last one is Belady */
    uint32_t n_policies;
    uint32_t *planned; /* [n_budgets][n_policies] slots by the model's plan; NULL without a model */
    struct outcome *outcomes;
    uint32_t n_outcomes;
};

static const char *policy_name(const struct cache_policy *policy)
{
    return policy ? policy->name : "belady";
}

/* ---- lists on the command line ---- */

/* The next item of a list with commas between; false at its end. An item that does not fit is cut, and then
 * unknown. */
static bool next_item(const char **list, char *item, size_t size)
{
    if (!*list)
        return false;
    size_t n = strcspn(*list, ",");
    snprintf(item, size, "%.*s", n < size ? (int)n : (int)size, *list);
    *list = (*list)[n] ? *list + n + 1 : NULL;
    return true;
}

static bool parse_budget(const char *text, struct budget *budget)
{
    size_t n = strlen(text);
    *budget = (struct budget){0};
    if (n == 0 || text[n - 1] != '%')
        return size_parse(text, &budget->bytes) && budget->bytes > 0;
    char *end;
    double percent = strtod(text, &end);
    budget->share = percent / 100.0;
    return end == text + n - 1 && percent > 0.0 && percent <= 100.0;
}

static int parse_budgets(struct simulation *s)
{
    static const char defaults[] = "3%,5%,10%,20%,35%,50%,70%";
    const char *list = s->options->ram ? s->options->ram : defaults;
    char item[40];
    while (next_item(&list, item, sizeof(item))) {
        struct budget budget;
        if (!parse_budget(item, &budget))
            return cli_error(CLI_USAGE,
                             "--ram: \"%s\" is not a size nor a percent: use a list as \"2G,10%%\"", item);
        if (s->n_budgets == MAX_BUDGETS)
            return cli_error(CLI_USAGE, "--ram: more than %d sizes", MAX_BUDGETS);
        budget.is_default = !s->options->ram;
        s->budgets[s->n_budgets++] = budget;
    }
    return CLI_OK;
}

static bool has_policy(const struct simulation *s, const struct cache_policy *policy)
{
    for (uint32_t i = 0; i < s->n_policies; i++) {
        if (s->policies[i] == policy)
            return true;
    }
    return false;
}

static int unknown_policy(const char *name)
{
    char names[256] = "";
    for (uint32_t i = 0; cache_policy_at(i); i++) {
        size_t used = strlen(names);
        snprintf(names + used, sizeof(names) - used, ", %s", cache_policy_at(i)->name);
    }
    return cli_error(CLI_USAGE, "--policy: \"%s\" is unknown: use all%s", name, names);
}

static int parse_policies(struct simulation *s)
{
    const char *list = s->options->policies;
    char item[40];
    bool all = strcmp(list, "all") == 0;
    for (uint32_t i = 0; all && s->n_policies < MAX_POLICIES && cache_policy_at(i); i++)
        s->policies[s->n_policies++] = cache_policy_at(i);
    while (!all && next_item(&list, item, sizeof(item))) {
        const struct cache_policy *policy = cache_policy_find(item);
        if (!policy && strcmp(item, "belady") != 0)
            return unknown_policy(item);
        if (policy && s->n_policies < MAX_POLICIES && !has_policy(s, policy))
            s->policies[s->n_policies++] = policy;
    }
    s->policies[s->n_policies++] = NULL;
    return CLI_OK;
}

/* ---- whole budgets ---- */

/* Slots of each budget that is a size, under each policy. Before the recording is read: a plan counts the memory that its
 * process has. */
static int plan_slots(struct simulation *s)
{
    struct ps_error err;
    struct ps_model_params params;
    struct ps_plan plan;
    if (!s->options->model)
        return CLI_OK;
    s->planned = calloc((size_t)s->n_budgets * s->n_policies, sizeof(*s->planned));
    if (!s->planned)
        return cli_error(CLI_FAILED, "simulate: out of memory");
    if (ps_model_open(&s->model, s->options->model, &err) != PS_OK)
        return cli_status(&err);
    ps_model_params_default(&params);
    params.kv = PS_KV_F16; /* as a run has it */
    params.ctx = s->options->ctx;
    params.threads = s->options->threads;
    for (uint32_t i = 0; i < s->n_budgets * s->n_policies; i++) {
        const struct cache_policy *policy = s->policies[i % s->n_policies];
        params.ram = s->budgets[i / s->n_policies].bytes;
        params.cache_policy = policy ? policy->name : NULL;
        if (params.ram == 0)
            continue;
        if (ps_model_plan(s->model, &params, &plan, &err) != PS_OK)
            return cli_status(&err);
        s->planned[i] = plan.slots;
    }
    return CLI_OK;
}

/* ---- the recording ---- */

/* Numbers of experts as the flag or the model has them. */
static int set_experts(struct simulation *s, uint32_t n, const char *source)
{
    struct route_trace *t = s->trace;
    for (uint32_t l = 0; l < t->n_layers; l++) {
        if (n < t->n_experts[l] || (t->n_experts_known && n != t->n_experts[l]))
            return cli_error(CLI_USAGE, "%s: has %u experts in layer %u, %s says %u", s->options->trace,
                             t->n_experts[l], l, source, n);
        t->n_experts[l] = n;
    }
    return CLI_OK;
}

/* The recording is of the model: what the file does not say, the model does. */
static int match_model(struct simulation *s)
{
    const struct ps_model_info *info = ps_model_info(s->model);
    if (info->n_moe_layers != s->trace->n_layers)
        return cli_error(CLI_USAGE, "%s: is of %u MoE layers, %s has %u: give the model that was recorded",
                         s->options->trace, s->trace->n_layers, s->options->model, info->n_moe_layers);
    for (uint32_t l = 0; l < s->trace->n_layers; l++) {
        struct ps_expert_layer layer;
        ps_model_expert_layer(s->model, l, &layer);
        s->trace->expert_bytes[l] = layer.bytes;
        s->trace->pool[l] = layer.pool;
        s->read_bytes += (double)layer.n_experts * (double)layer.read_bytes; /* divided in measure_sizes() */
    }
    return set_experts(s, info->n_expert, "--model");
}

static void measure_sizes(struct simulation *s)
{
    const struct route_trace *t = s->trace;
    double bytes = 0.0;
    bool known = true;
    s->equal_sizes = true;
    for (uint32_t l = 0; l < t->n_layers; l++) {
        bytes += (double)t->n_experts[l] * (double)t->expert_bytes[l];
        known = known && t->expert_bytes[l] > 0;
        s->equal_sizes = s->equal_sizes && t->expert_bytes[l] == t->expert_bytes[0];
    }
    s->expert_bytes = known ? bytes / s->n_shards : 0.0;
    if (s->options->expert_bytes > 0) {
        s->expert_bytes = (double)s->options->expert_bytes;
        s->equal_sizes = true;
    }
    bool as_the_model = s->model && s->options->expert_bytes == 0;
    s->read_bytes = as_the_model ? s->read_bytes / s->n_shards : s->expert_bytes;
    uint32_t asked = 0;
    for (uint64_t v = 0; v < t->n_visits; v++) {
        asked =
            v > 0 && t->visits[v].token == t->visits[v - 1].token ? asked + t->visits[v].n : t->visits[v].n;
        s->cycle = asked > s->cycle ? asked : s->cycle;
    }
    s->counted = t->n_tokens - s->options->skip;
}

static int open_trace(struct simulation *s)
{
    struct ps_error err;
    const struct simulate_options *o = s->options;
    if (route_trace_read(&s->trace, o->trace, &err) != PS_OK)
        return cli_status(&err);
    if (o->skip >= s->trace->n_tokens)
        return cli_error(CLI_USAGE, "--skip: %u leaves none of the %" PRIu64 " tokens of %s", o->skip,
                         s->trace->n_tokens, o->trace);
    int exit_code = o->experts > 0 ? set_experts(s, o->experts, "--experts") : CLI_OK;
    if (exit_code == CLI_OK && s->model)
        exit_code = match_model(s);
    if (exit_code != CLI_OK)
        return exit_code;
    if (route_replay_new(&s->replay, s->trace, &err) != PS_OK)
        return cli_status(&err);
    s->n_shards = route_replay_n_shards(s->replay);
    s->least_slots = route_replay_least_slots(s->replay);
    measure_sizes(s);
    return CLI_OK;
}

/* ---- the replay ---- */

static enum ps_status count_slots(const struct simulation *s, uint32_t b, uint32_t p, struct outcome *out,
                                  struct ps_error *err)
{
    const struct budget *budget = &s->budgets[b];
    double slots = floor(budget->share * s->n_shards + 1e-6);
    out->ram = budget->bytes;
    if (budget->bytes > 0 && s->planned) {
        slots = s->planned[b * s->n_policies + p];
    } else if (budget->bytes > 0) {
        if (s->expert_bytes <= 0.0)
            return ps_error_set(
                err, PS_ERR_ARGUMENT,
                "--ram: %s does not say how large an expert is: add --expert-bytes SIZE, or give "
                "percents",
                s->options->trace);
        slots = floor((double)budget->bytes / s->expert_bytes);
    } else {
        out->ram = (uint64_t)(slots * s->expert_bytes);
    }
    out->slots = slots < s->n_shards ? (uint32_t)slots : s->n_shards;
    if (out->slots >= s->least_slots || budget->is_default)
        return PS_OK;
    return ps_error_set(err, PS_ERR_ARGUMENT,
                        "--ram: %u of %u experts is too small: a token asks for %u in one layer of each "
                        "pool: give at least %.2g%%",
                        out->slots, s->n_shards, s->least_slots,
                        ceil(1000.0 * s->least_slots / s->n_shards) / 10.0);
}

static void rate_outcome(const struct simulation *s, struct outcome *out)
{
    const struct replay_result *result = &out->result;
    double misses = (double)(result->accesses - result->hits) / (double)result->tokens;
    out->hit_rate = (double)result->hits / (double)result->accesses;
    out->gap_closed = NAN;
    out->read = s->read_bytes > 0.0 ? misses * s->read_bytes : NAN;
    double reading = s->options->io_rate > 0 ? out->read / (double)s->options->io_rate : NAN;
    double computing = (double)s->options->compute_ms / 1e3;
    double seconds = isnan(reading) || reading > computing ? reading : computing;
    out->tok_s = seconds > 0.0 ? 1.0 / seconds : NAN;
}

/* Of the last n outcomes, all for one budget and Belady the last of them. */
static void rate_gaps(struct simulation *s, uint32_t n)
{
    struct outcome *first = s->outcomes + s->n_outcomes - n;
    double lru = NAN;
    double belady = first[n - 1].hit_rate;
    for (uint32_t i = 0; i < n; i++) {
        if (strcmp(policy_name(first[i].policy), "lru") == 0)
            lru = first[i].hit_rate;
    }
    for (uint32_t i = 0; i < n && belady > lru; i++)
        first[i].gap_closed = (first[i].hit_rate - lru) / (belady - lru);
}

static enum ps_status simulate(struct simulation *s, struct ps_error *err)
{
    s->outcomes = calloc((size_t)s->n_budgets * s->n_policies, sizeof(*s->outcomes));
    if (!s->outcomes)
        return ps_error_set(err, PS_ERR_NOMEM, "simulate: out of memory");
    for (uint32_t b = 0; b < s->n_budgets; b++) {
        uint32_t n = 0;
        for (uint32_t p = 0; p < s->n_policies; p++) {
            struct outcome *out = &s->outcomes[s->n_outcomes];
            out->policy = s->policies[p];
            enum ps_status status = count_slots(s, b, p, out, err);
            if (status == PS_OK && out->slots < s->least_slots)
                continue;
            if (status == PS_OK)
                status =
                    route_replay_run(s->replay, out->policy, out->slots, s->options->skip, &out->result, err);
            if (status != PS_OK)
                return status;
            rate_outcome(s, out);
            s->n_outcomes++;
            n++;
        }
        if (n > 0)
            rate_gaps(s, n);
    }
    return PS_OK;
}

/* ---- what the predictor was worth ---- */

/* Share of the experts chosen that were among as many first guesses, for predictions of one token; NaN: there are
 * none. */
static double prediction_recall(const struct route_trace *t, uint32_t distance)
{
    uint64_t right = 0, chosen = 0;
    for (uint64_t i = 0; i < t->n_predictions; i++) {
        const struct route_prediction *p = &t->predictions[i];
        const struct replay_visit *visit =
            p->distance == distance && p->n_tokens == 1 ? route_trace_visit(t, p->token, p->layer) : NULL;
        for (uint32_t j = 0; visit && j < visit->n; j++) {
            for (uint32_t g = 0; g < p->n && g < visit->n; g++)
                right += t->predicted[p->first + g] == t->ids[visit->first + j];
            chosen++;
        }
    }
    return chosen > 0 ? (double)right / (double)chosen : NAN;
}

/* ---- table ---- */

static const char *size_or_dash(double bytes, char text[SIZE_TEXT_SIZE])
{
    return bytes >= 0.0 ? size_format((uint64_t)(bytes + 0.5), text) : "-"; /* NaN compares false */
}

static void number_or_dash(double value, const char *format, char text[SIZE_TEXT_SIZE])
{
    if (isnan(value))
        snprintf(text, SIZE_TEXT_SIZE, "-");
    else
        snprintf(text, SIZE_TEXT_SIZE, format, value);
}

static void print_facts(const struct simulation *s)
{
    const struct route_trace *t = s->trace;
    char size[SIZE_TEXT_SIZE], text[SIZE_TEXT_SIZE], read[SIZE_TEXT_SIZE + 16] = "";
    double mean = s->expert_bytes > 0.0 ? s->expert_bytes : NAN;
    if (s->read_bytes != s->expert_bytes)
        snprintf(read, sizeof(read), " (%s to read)", size_or_dash(s->read_bytes, text));
    cli_printf("%s%s%" PRIu64 " tokens, %" PRIu64
               " counted; %u experts in %u layers%s, top-%u, %s each%s%s; a token asks "
               "for %u\n",
               t->model, t->model[0] ? ": " : "", t->n_tokens, s->counted, s->n_shards, t->n_layers,
               t->n_experts_known || s->options->experts > 0 || s->model ? "" : " (as far as chosen)",
               t->top_k, size_or_dash(mean, size), read,
               s->equal_sizes ? "" : " on average, by which slots and reads are counted", s->cycle);
    for (uint32_t d = 0; d < PS_PREDICTION_DISTANCES; d++) {
        double recall = prediction_recall(t, d);
        if (!isnan(recall))
            cli_printf(
                "predicted with %u MoE block%s still to compute: %.1f%% of the experts chosen were among as "
                "many first guesses\n",
                d, d == 1 ? "" : "s", 100.0 * recall);
    }
}

static void print_table(const struct simulation *s)
{
    cli_printf("\n%10s %7s %8s %7s  %-12s %8s %6s %8s %10s %8s\n", "RAM", "slots", "experts", "cycles",
               "policy", "hit rate", "gap", "cold", "read/token", "tok/s");
    for (uint32_t i = 0; i < s->n_outcomes; i++) {
        const struct outcome *o = &s->outcomes[i];
        char ram[SIZE_TEXT_SIZE], read[SIZE_TEXT_SIZE], gap[SIZE_TEXT_SIZE], tok_s[SIZE_TEXT_SIZE];
        number_or_dash(o->gap_closed, "%.2f", gap);
        number_or_dash(o->tok_s, "%.2f", tok_s);
        cli_printf("%10s %7u %7.1f%% %7.2f  %-12s %8.4f %6s %8" PRIu64 " %10s %8s\n",
                   o->ram > 0 ? size_format(o->ram, ram) : "-", o->slots, 100.0 * o->slots / s->n_shards,
                   (double)o->slots / s->cycle, policy_name(o->policy), o->hit_rate, gap, o->result.cold,
                   size_or_dash(o->read, read), tok_s);
    }
}

/* ---- JSON ---- */

static json_t *number_or_null(double value)
{
    return isnan(value) ? json_null() : json_real(value);
}

static json_t *count_or_null(uint64_t value)
{
    return value > 0 ? json_integer((json_int_t)value) : json_null();
}

static json_t *outcome_json(const struct simulation *s, const struct outcome *o)
{
    return json_pack("{s:o, s:I, s:f, s:f, s:s, s:f, s:I, s:I, s:I, s:I, s:o, s:o, s:o}", "ram_bytes",
                     count_or_null(o->ram), "slots", (json_int_t)o->slots, "share",
                     (double)o->slots / s->n_shards, "cycles", (double)o->slots / s->cycle, "policy",
                     policy_name(o->policy), "hit_rate", o->hit_rate, "accesses",
                     (json_int_t)o->result.accesses, "hits", (json_int_t)o->result.hits, "cold_misses",
                     (json_int_t)o->result.cold, "evictions", (json_int_t)o->result.evictions,
                     "bytes_per_token", number_or_null(o->read), "tok_s", number_or_null(o->tok_s),
                     "gap_closed", number_or_null(o->gap_closed));
}

static int print_json(const struct simulation *s)
{
    const struct route_trace *t = s->trace;
    json_t *results = json_array();
    json_t *recalls = json_array();
    json_t *model = json_string(t->model); /* NULL where it is not UTF-8 */
    for (uint32_t i = 0; i < s->n_outcomes; i++)
        json_array_append_new(results, outcome_json(s, &s->outcomes[i]));
    for (uint32_t d = 0; d < PS_PREDICTION_DISTANCES; d++)
        json_array_append_new(recalls, number_or_null(prediction_recall(t, d)));
    json_t *root = json_pack(
        "{s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:b, s:o, s:o, s:o, s:o}", "model",
        model ? model : json_null(), "tokens", (json_int_t)t->n_tokens, "counted", (json_int_t)s->counted,
        "layers", (json_int_t)t->n_layers, "experts", (json_int_t)s->n_shards, "top_k", (json_int_t)t->top_k,
        "token_cycle", (json_int_t)s->cycle, "expert_bytes",
        number_or_null(s->expert_bytes > 0.0 ? s->expert_bytes : NAN), "read_bytes",
        number_or_null(s->read_bytes > 0.0 ? s->read_bytes : NAN), "equal_sizes", s->equal_sizes, "io_rate",
        count_or_null(s->options->io_rate), "compute_ms", json_real((double)s->options->compute_ms),
        "prediction_recall", recalls, "results", results);
    char *text = root ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(root);
    if (!text)
        return cli_error(CLI_FAILED, "simulate: out of memory");
    cli_printf("%s\n", text);
    free(text);
    return CLI_OK;
}

/* ---- command ---- */

static int run_simulation(struct simulation *s)
{
    struct ps_error err;
    int exit_code = parse_budgets(s);
    if (exit_code == CLI_OK)
        exit_code = parse_policies(s);
    if (exit_code == CLI_OK)
        exit_code = plan_slots(s);
    if (exit_code == CLI_OK)
        exit_code = open_trace(s);
    if (exit_code != CLI_OK)
        return exit_code;
    if (simulate(s, &err) != PS_OK)
        return cli_status(&err);
    if (s->n_outcomes == 0)
        return cli_error(CLI_USAGE,
                         "--ram: %u experts in all are too few for the usual shares: give your own",
                         s->n_shards);
    if (s->options->json)
        return print_json(s);
    print_facts(s);
    print_table(s);
    return CLI_OK;
}

int cmd_simulate(int argc, char **argv)
{
    struct simulate_options options = {.policies = "all"};
    const struct flag_group groups[] = {{"Cache", cache_rows, &options},
                                        {"Cost and output", cost_rows, &options},
                                        {"Whole budgets", model_rows, &options},
                                        {0}};
    const struct flag_positional positionals[] = {
        {"TRACE", &options.trace, "a recording: of `penstock trace`, or a CSV or JSON lines of others", true},
        {0}};
    const struct flag_spec spec = {
        .command = "simulate",
        .summary =
            "Replays recorded routing through the cache policies that run live, each token by itself and\n"
            "without prefetch, next to Belady's optimum, which knows the future. Per size and policy:\n"
            "  experts     share of all experts that the slots hold\n"
            "  cycles      slots in experts that one token asks for\n"
            "  hit rate    experts found in the cache, of all that were asked for\n"
            "  gap         share of the way from LRU to Belady\n"
            "  cold        misses that no policy avoids: first uses\n"
            "  read/token  misses per token x bytes of an expert (the mean, where sizes differ)\n"
            "  tok/s       1 / max(--compute-ms, read/token / --io-rate): reading and computing overlap "
            "fully",
        .examples =
            "  penstock simulate story.trace --ram 3%,10%,35% --policy lru,decay\n"
            "  penstock simulate story.trace -m model.gguf --ram 4G,8G,16G --io-rate 3G --compute-ms 90",
        .positionals = positionals,
        .groups = groups};
    int exit_code;
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    struct simulation s = {.options = &options};
    exit_code = run_simulation(&s);
    free(s.outcomes);
    free(s.planned);
    route_replay_free(s.replay);
    route_trace_free(s.trace);
    ps_model_free(s.model);
    return exit_code;
}
