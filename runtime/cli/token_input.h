/* Where token ids come from: a prompt as text, file or ids; or what benchmarks feed. */
#ifndef PENSTOCK_RUNTIME_CLI_TOKEN_INPUT_H
#define PENSTOCK_RUNTIME_CLI_TOKEN_INPUT_H

#include "runtime/cli/flags.h"
#include "runtime/penstock.h"

struct prompt_options {
    const char *text, *file, *ids;
};

extern const struct flag PROMPT_FLAGS[]; /* rows over struct prompt_options */

/* The prompt as a malloc'ed array of at least one token. command: whose flags they are. False: the message is printed,
 * *exit_code set. */
bool prompt_read(const struct prompt_options *options, const char *command, struct ps_model *model,
                 int32_t **tokens, size_t *n, int *exit_code);

/* Memory is for what a command needs: the prompt and n tokens after it, within the model's context. False: the prompt
 * alone is too long; the message is printed, *exit_code set. */
bool prompt_fit_context(struct ps_model_params *params, const struct ps_model_info *info, size_t n_prompt,
                        uint32_t n, int *exit_code);

/* Tokens to feed one at a time: a list, or (ids NULL) the arg max of the last logits. */
struct token_source {
    int32_t *ids; /* malloc'ed */
    size_t n;
};

/* Help of --tokens. */
#define TOKEN_SOURCE_HELP                                                                                    \
    "what is fed: the model's own choice (random weights\nthen fall into a loop, which flatters every "      \
    "cache),\n"                                                                                              \
    "random ids (the fair, hard case), or ids from a file. Each\npass is fed the next N, as far as there "   \
    "are as many"

/* text: "greedy"; "random:SEED", n ids for each of the passes; or a file of at least n ids, all of them. False: the message is
 * printed, *exit_code set. */
bool token_source_open(struct token_source *source, const char *text, uint32_t n, uint32_t n_passes,
                       uint32_t n_vocab, int *exit_code);

#endif
