/* What every command that runs a model shares: its flags, opening, planning and loading, and the statistics. */
#ifndef PENSTOCK_RUNTIME_CLI_MODEL_FLAGS_H
#define PENSTOCK_RUNTIME_CLI_MODEL_FLAGS_H

#include "runtime/cli/bench_replay.h"
#include "runtime/cli/flags.h"
#include "runtime/cli/warm_file.h"
#include "runtime/penstock.h"

struct model_options {
    const char *path;
    const char *warm; /* "on", "off", or a file */
    struct ps_model_params params;
};

extern const struct flag MODEL_FLAGS[]; /* rows over struct model_options */
/* KV cache in F16, as others keep it; no working set, so that what is measured starts from an empty cache. */
void model_options_default(struct model_options *options);

/* A model ready to feed. */
struct loaded_model {
    struct ps_model *model;
    struct ps_session *session;
    double start;                      /* clock when the command began */
    bool lossy;                        /* a flag asks for less than the exact result */
    const struct bench_replay *replay; /* NULL: routing is the model's own */
    struct warm_file warm;
};

/* Loads an opened model (owned by m from here on): plan to stderr, progress on a terminal, a session that
 * Ctrl-C cancels. False: the message is printed, *exit_code set; m needs closing all the same. */
bool loaded_model_start(struct loaded_model *m, struct ps_model *model, const struct model_options *options,
                        int *exit_code);
/* For the next start; nothing is saved of a run that failed, or that fed no token. */
void loaded_model_save_working_set(const struct loaded_model *m, int exit_code);
void loaded_model_close(struct loaded_model *m);

/* Timing that only the command knows. */
struct run_times {
    uint64_t prompt_tokens, generated_tokens;
    double prefill_s, decode_s; /* time for the prompt / for decode_steps tokens after it */
    uint64_t decode_steps;
    double ttft_s; /* from the command's start to the first token */
    /* Of a measurement that was repeated: tokens/s of each time, ascending; NULL: one time, and what the sums say. */
    const double *rates;
    uint32_t n_rates;
};

/* One line on stderr; with lossy modes on, print_lossy's as well. */
void print_summary(const struct loaded_model *m, const struct run_times *times);
/* How often lossy modes changed the computation, one line on stderr; nothing when all are off. */
void print_lossy(const struct loaded_model *m);
/* One JSON object to path ("-": stdout). Returns an exit code; the message is printed. */
int write_stats(const struct loaded_model *m, const struct run_times *times, const char *path);

/* "1,2,3" (commas or white space) to a malloc'ed array; what: the flag to name in the message. False after printing. */
bool parse_token_list(const char *text, const char *what, int32_t **tokens, size_t *n);
/* Whole file, 0-terminated, malloc'ed. NULL after printing. */
char *read_text_file(const char *path, size_t *length);

#endif
