/* The probe of `penstock plan`: loads the model, measures the drive, and decodes for a few seconds what `bench decode`
 * would, recording how long each token takes, what it reads, and which experts it is sent to. */
#ifndef PENSTOCK_RUNTIME_CLI_PLAN_PROBE_H
#define PENSTOCK_RUNTIME_CLI_PLAN_PROBE_H

#include "runtime/cli/model_flags.h"
#include "runtime/speed_model.h"
#include "storage/cache_replay.h"

struct plan_probe {
    uint64_t ram; /* budget that it ran with */
    struct speed_parts parts;
    double load_s, decode_s;
    uint32_t n_tokens;  /* decoded */
    uint32_t n_samples; /* of them timed for the fit: all but the first */
    double hit_rate;    /* over all tokens decoded */
    struct ps_stats stats;

    /* Routing of the tokens decoded; arrays are owned. */
    struct replay_trace recorded;
    uint32_t *n_experts;
    struct replay_visit *visits;
    uint32_t *ids;
};

/* Loads `model` (its owner stays the caller, and its memory in use until it is freed) and measures. n: tokens that
 * count, as bench decode's -n; more are decoded where they are fast. False: the message is printed, *exit_code set. */
bool plan_probe_run(struct plan_probe *probe, struct ps_model *model, const struct ps_model_params *params,
                    uint32_t n, int *exit_code);
void plan_probe_deinit(struct plan_probe *probe);

#endif
