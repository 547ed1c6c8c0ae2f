/* `--stats live`: a panel at the bottom of the terminal (standard error) while a model runs. Drawn by the calling thread,
 * between tokens and, through the router's callback, within long ones; a few times a second at most. */
#ifndef PENSTOCK_RUNTIME_CLI_LIVE_VIEW_H
#define PENSTOCK_RUNTIME_CLI_LIVE_VIEW_H

#include "runtime/cli/model_flags.h"

struct live_view;

extern const char STATS_HELP[]; /* of --stats, where it can be live */

/* Whether --stats asks for the live view. NULL is fine. */
bool live_view_wanted(const char *stats);
/* False after printing, *exit_code set: the view is wanted and there is no terminal for it. */
bool live_view_possible(const char *stats, int *exit_code);

/* Shows the panel; *out is NULL where stats does not ask for it. m is borrowed until close; its session's router
 * callback is taken. n_prompt: tokens that will be fed first, 0: none; n_tokens: to be made at most. PS_ERR_NOMEM. */
enum ps_status live_view_open(struct live_view **out, const char *stats, const struct loaded_model *m,
                              uint64_t n_prompt, uint64_t n_tokens, struct ps_error *err);
/* A token was made, and what was to be printed is flushed. NULL is fine, here and below. */
void live_view_token(struct live_view *view);
/* Takes the panel away. */
void live_view_close(struct live_view *view);

#endif
