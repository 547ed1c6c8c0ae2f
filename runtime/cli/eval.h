/* What the eval commands share: logits of a stretch of tokens, row by row. */
#ifndef PENSTOCK_RUNTIME_CLI_EVAL_H
#define PENSTOCK_RUNTIME_CLI_EVAL_H

#include <stdint.h>

#include "runtime/cli/model_flags.h"

/* Tokens per window of a text, where --ctx does not say. */
enum { EVAL_CTX = 512 };

/* Tokens that are computed from an empty context on, and which of their logits are wanted. */
struct eval_window {
    const int32_t *tokens; /* [n]; n <= the loaded context */
    uint32_t n;
    uint32_t first, end; /* positions [first, end) */
};

/* logits: [n_vocab], after the token at `position`. */
typedef enum ps_status eval_row_fn(void *ctx, uint32_t position, const float *logits, struct ps_error *err);

/* Calls fn for every wanted position, in order, until it fails. */
enum ps_status eval_window(struct loaded_model *m, const struct eval_window *window, eval_row_fn *fn,
                           void *ctx, struct ps_error *err);

int eval_kl(int argc, char **argv);

#endif
