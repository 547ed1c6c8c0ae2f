/* The probe of `penstock plan`: loads the model, measures the drive, and decodes for a few seconds what `bench decode`
 * would, recording how long each token takes, what it reads, and which experts it is sent to. */
#ifndef PENSTOCK_RUNTIME_CLI_PLAN_PROBE_H
#define PENSTOCK_RUNTIME_CLI_PLAN_PROBE_H

#include "runtime/cli/model_flags.h"
#include "runtime/speed_model.h"
#include "storage/cache_replay.h"

enum { PLAN_MAX_RUNS = 2 };

/* Decoding with one budget. */
struct plan_run {
    uint64_t ram;
    double decode_s;
    uint32_t n_tokens;
    double hit_rate;              /* over all tokens */
    struct speed_sample *samples; /* [n_tokens] owned */
};

struct plan_probe {
    struct speed_parts parts; /* before the fits */
    struct plan_run runs[PLAN_MAX_RUNS];
    struct speed_fit fits[PLAN_MAX_RUNS]; /* to each run's samples */
    uint32_t n_runs;
    struct ps_stats stats; /* of the last run */

    /* Routing of the tokens of the longest run; arrays are owned. */
    struct replay_trace recorded;
    uint32_t *n_experts;
    struct replay_visit *visits;
    uint32_t *ids;
};

/* Loads `model` (its owner stays the caller, and its memory in use until it is freed) and decodes; the first run measures
 * the drive and computing as well. Once per budget, from the largest down: it holds what computing alone needs, and fills
 * the most memory for the first time, which a process that has had some finds slower. n: tokens that count, as bench
 * decode's -n; more are decoded where they are fast. ram: what the run is to stand for. False: the message is printed, *exit_code set. */
bool plan_probe_run(struct plan_probe *probe, struct ps_model *model, uint64_t ram,
                    const struct ps_model_params *params, uint32_t n, int *exit_code);
/* Fits the runs. */
void plan_probe_finish(struct plan_probe *probe);
void plan_probe_deinit(struct plan_probe *probe);

#endif
