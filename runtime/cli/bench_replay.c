#include "runtime/cli/bench_replay.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/cli.h"
#include "runtime/size_text.h"
#include "storage/fnv1a.h"

static const char *name_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

bool bench_replay_open(struct bench_replay *replay, const char *path, struct ps_model *model,
                       struct ps_model_params *params, int *exit_code)
{
    struct ps_error err;
    *replay = (struct bench_replay){.name = name_of(path)};
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
    bench_replay_fit(replay, params);
    return true;
}

void bench_replay_fit(struct bench_replay *replay, struct ps_model_params *params)
{
    bool asked = params->prefetch != PS_PREFETCH_OFF, one_by_one = params->feed == 1 || params->chunk == 1;
    replay->predictions = asked && one_by_one && replay->facts.n_tokens_predicted > 0;
    replay->prefetch_turned_off = asked && !replay->predictions;
    if (replay->prefetch_turned_off)
        params->prefetch = PS_PREFETCH_OFF;
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
static void print_sizes(FILE *out, const struct bench_replay *replay, const struct ps_model *model)
{
    char text[2][SIZE_TEXT_SIZE];
    double own = mean_expert_bytes(model), recorded = replay->facts.expert_bytes;
    if (recorded > 0.0 && own > 0.0 && (own > 1.001 * recorded || recorded > 1.001 * own))
        fprintf(out, " of %s on average (recorded: %s)", size_format((uint64_t)own, text[0]),
                size_format((uint64_t)recorded, text[1]));
}

void bench_replay_print(FILE *out, const struct bench_replay *replay, struct ps_model *model)
{
    const struct recorded_routing_facts *facts = &replay->facts;
    fprintf(out, "replay of %s%s%s%s: replayed: experts%s", replay->name, facts->model[0] ? " (" : "",
            facts->model, facts->model[0] ? ")" : "", weighs(replay) ? ", weights" : "");
    if (replay->predictions)
        fprintf(out, ", predictions of %" PRIu64, facts->n_tokens_predicted);
    fprintf(out, " of %" PRIu64 " tokens", facts->n_tokens);
    if (facts->n_unrecorded > 0)
        fprintf(out, " (%" PRIu64 " of %" PRIu64 " layer visits were not recorded: no experts there)",
                facts->n_unrecorded, facts->n_choices);
    fputs("; real: attention, router products, expert reads and computing", out);
    print_sizes(out, replay, model);
    fputs(replay->predictions ? ", the predictor's time" : "", out);
    fprintf(out, "; %slogits mean nothing\n",
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

enum ps_status bench_replay_identify(const char *path, char out[REPLAY_IDENTITY_SIZE], struct ps_error *err)
{
    char bytes[1 << 14];
    uint64_t hash = FNV1A_START;
    size_t n;
    FILE *file = fopen(path, "re");
    errno = file ? 0 : errno;
    while (file && (n = fread(bytes, 1, sizeof(bytes), file)) > 0)
        hash = fnv1a_add(hash, bytes, n);
    bool failed = !file || ferror(file);
    if (failed)
        ps_error_set(err, PS_ERR_IO, "--replay: %s: %s", path, strerror(errno));
    if (file)
        fclose(file);
    if (failed)
        return PS_ERR_IO;
    snprintf(out, REPLAY_IDENTITY_SIZE, "%.255s:%016" PRIx64, name_of(path), hash);
    for (char *at = out; *at; at++) {
        if (*at < ' ' || *at > '~')
            *at = '?';
    }
    return PS_OK;
}
