/* Measures decoding or prefill of one model with one set of parameters: warm-up, passes, and then the drive.
 * Nothing is printed but what every command that loads a model says. */
#ifndef PENSTOCK_RUNTIME_CLI_BENCH_RUN_H
#define PENSTOCK_RUNTIME_CLI_BENCH_RUN_H

#include "runtime/cli/bench_record.h"
#include "runtime/cli/bench_replay.h"
#include "runtime/cli/live_view.h"
#include "runtime/cli/model_flags.h"
#include "runtime/cli/token_input.h"

enum bench_kind { BENCH_DECODE, BENCH_PREFILL };

struct bench_options {
    enum bench_kind kind;
    const char *tokens;
    const char *replay; /* a recording whose routing takes the place of the model's; NULL: none */
    uint32_t n;
    uint32_t warm_up, repeat;
    float probe;                    /* seconds of reading that say what the drive gives; 0: none */
    const char *stats, *json_lines; /* where the command's own reports go; NULL: nowhere */
};

struct bench_run {
    const struct bench_options *options;
    const struct model_options *model_options;
    struct loaded_model m;
    struct token_source source;
    struct bench_replay replay;
    char flags[BENCH_FLAGS_SIZE]; /* as bench_record */
    struct ps_sampler *greedy;
    struct live_view *live;
    float *logits;
    double start;  /* of the first pass that counts; the command's if that is the first of all */
    double *rates; /* [repeat] tokens/s, ascending */
    struct run_times times;
    struct bench_record *records; /* [repeat] in order of time */
};

/* Opens the model and its tokens; model_options get the context and the feed that the measurement needs. Both options are
 * borrowed until deinit. *exit_code is set; false: the message is printed; deinit all the same. */
bool bench_run_open(struct bench_run *run, const struct bench_options *options,
                    struct model_options *model_options, int *exit_code);
/* Loads the model and runs the passes. */
bool bench_run_measure(struct bench_run *run, int *exit_code);
/* Measures the drive and completes the records. Closes the session and gives up the cache, so that all stays within the budget: to
 * be done when their statistics are no longer needed. */
bool bench_run_probe(struct bench_run *run, int *exit_code);
/* exit_code: what the command came to; a working set is saved where that was not a failure. */
void bench_run_deinit(struct bench_run *run, int exit_code);

/* What the measurement needs of a model's parameters, where they leave it open. */
void bench_fit_params(const struct bench_options *options, struct ps_model_params *params);

/* Sets what a record says of an opened model. */
void bench_describe_model(const struct bench_run *run, struct bench_record *record);

#endif
