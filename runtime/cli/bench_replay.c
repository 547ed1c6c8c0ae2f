#include "runtime/cli/bench_replay.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/cli.h"
#include "runtime/size_text.h"

bool bench_replay_open(struct bench_replay *replay, const char *path, bool one_by_one, struct ps_model *model,
                       struct ps_model_params *params, int *exit_code)
{
    struct ps_error err;
    const char *slash = strrchr(path, '/');
    *replay = (struct bench_replay){.name = slash ? slash + 1 : path};
    if (params->drop_below > 0.0f || params->substitute) {
        *exit_code = cli_error(
            CLI_USAGE, "--replay: --drop-below and --substitute go by the model's own router, which a "
                       "replay sets aside: leave them out");
        return false;
    }
    if (recorded_routing_new(&replay->routing, path, model, params->top_k, &err) != PS_OK) {
        *exit_code = cli_status(&err);
        return false;
    }
    recorded_routing_get_facts(replay->routing, &replay->facts);
    replay->predictions =
        params->prefetch != PS_PREFETCH_OFF && one_by_one && replay->facts.n_tokens_predicted > 0;
    if (!replay->predictions && params->prefetch != PS_PREFETCH_OFF) {
        replay->prefetch_turned_off = true;
        params->prefetch = PS_PREFETCH_OFF;
    }
    return true;
}

void bench_replay_close(struct bench_replay *replay)
{
    recorded_routing_free(replay->routing);
}

enum ps_status bench_replay_attach(struct bench_replay *replay, const struct ps_model *model,
                                   struct ps_session *session, struct ps_error *err)
{
    /* Some models have no predictor, and then nothing to read ahead. */
    replay->predictions = replay->predictions && ps_model_loaded_plan(model)->predictor > 0;
    return recorded_routing_attach(replay->routing, session, replay->predictions, err);
}

/* ---- what is replayed ---- */

static bool weighs(const struct bench_replay *replay)
{
    return replay->facts.n_weighed > 0;
}

static double mean_expert_bytes(const struct ps_model *model)
{
    const struct ps_model_info *info = ps_model_info(model);
    return info->n_shards > 0 ? (double)info->expert_bytes / info->n_shards : 0.0;
}

/* Sizes count: they are what is read. */
static void print_sizes(const struct bench_replay *replay, const struct ps_model *model)
{
    char text[2][SIZE_TEXT_SIZE];
    double own = mean_expert_bytes(model), recorded = replay->facts.expert_bytes;
    if (recorded > 0.0 && own > 0.0 && (own > 1.001 * recorded || recorded > 1.001 * own))
        fprintf(stderr, " of %s on average (recorded: %s)", size_format((uint64_t)own, text[0]),
                size_format((uint64_t)recorded, text[1]));
}

void bench_replay_print(const struct bench_replay *replay, struct ps_model *model)
{
    const struct recorded_routing_facts *facts = &replay->facts;
    fprintf(stderr, "replay of %s%s%s%s: replayed: experts%s", replay->name, facts->model[0] ? " (" : "",
            facts->model, facts->model[0] ? ")" : "", weighs(replay) ? ", weights" : "");
    if (replay->predictions)
        fprintf(stderr, ", predictions of %" PRIu64, facts->n_tokens_predicted);
    fprintf(stderr, " of %" PRIu64 " tokens", facts->n_tokens);
    if (facts->n_unrecorded > 0)
        fprintf(stderr, " (%" PRIu64 " of %" PRIu64 " layer visits were not recorded: no experts there)",
                facts->n_unrecorded, facts->n_choices);
    fputs("; real: attention, router products, expert reads and computing", stderr);
    print_sizes(replay, model);
    fputs(replay->predictions ? ", the predictor's time" : "", stderr);
    fprintf(stderr, "; %slogits mean nothing\n",
            replay->prefetch_turned_off ? "prefetch is off: no predictions to replay; " : "");
}

void bench_replay_write(FILE *out, const struct bench_replay *replay)
{
    if (!replay) {
        fputs("\"replay\": null, ", out);
        return;
    }
    json_t *name = json_string(replay->name); /* NULL where it is not UTF-8 */
    char *text = name ? json_dumps(name, JSON_ENCODE_ANY) : NULL;
    fprintf(out, "\"replay\": %s, \"replayed\": [\"experts\"%s%s], ", text ? text : "\"?\"",
            weighs(replay) ? ", \"weights\"" : "", replay->predictions ? ", \"predictions\"" : "");
    free(text);
    json_decref(name);
}
