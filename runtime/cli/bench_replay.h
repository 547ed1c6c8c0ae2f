/* --replay of the benchmarks: recorded routing on the weights at hand, and what of a measurement is then real. */
#ifndef PENSTOCK_RUNTIME_CLI_BENCH_REPLAY_H
#define PENSTOCK_RUNTIME_CLI_BENCH_REPLAY_H

#include <stdbool.h>
#include <stdio.h>

#include "runtime/penstock.h"
#include "runtime/recorded_routing.h"

#define REPLAY_HELP                                                                                          \
    "a recording of `penstock trace`, or a CSV or JSON lines of others:\n"                                   \
    "its experts are read and computed in the place of the model's\n"                                        \
    "own choice, one recorded token per token, from the first again\n"                                       \
    "after the last. The model needs the recorded shape, not the\n"                                          \
    "recorded weights: `penstock synth --like` makes one. Logits mean\n"                                     \
    "nothing then"

struct bench_replay {
    const char *name; /* the recording's file, without directories */
    struct recorded_routing *routing;
    struct recorded_routing_facts facts;
    bool predictions;         /* are replayed */
    bool prefetch_turned_off; /* it was asked for, but there are none */
};

/* Before the model is loaded, so that its plan counts the recording. Fits the parameters. False: the message is printed,
 * *exit_code set. */
bool bench_replay_open(struct bench_replay *replay, const char *path, struct ps_model *model,
                       struct ps_model_params *params, int *exit_code);
/* Turns prefetch off where no predictions can be replayed: the model's own are of no use for another's routing. */
void bench_replay_fit(struct bench_replay *replay, struct ps_model_params *params);
void bench_replay_close(struct bench_replay *replay);
/* To a session of the loaded model. */
enum ps_status bench_replay_attach(struct bench_replay *replay, const struct ps_model *model,
                                   struct ps_session *session, struct ps_error *err);
/* What is replayed and what is real, one line. */
void bench_replay_print(FILE *out, const struct bench_replay *replay, struct ps_model *model);
/* "replay": NAME, "replayed": [...] and a comma, for --stats; replay NULL: "replay": null. */
void bench_replay_write(FILE *out, const struct bench_replay *replay);

/* A recording's name, what is not printable ASCII replaced, and a hash of what is in it: the same name may stand for another
 * recording later. PS_ERR_IO. */
enum { REPLAY_IDENTITY_SIZE = 256 + 1 + 16 };
enum ps_status bench_replay_identify(const char *path, char out[REPLAY_IDENTITY_SIZE], struct ps_error *err);

#endif
