/* Routing profile: a model's routing in a few numbers, enough for a cache simulation where a recording is too short or
 * there is none.
 *
 * The model of routing: each expert of a layer has a score per token, standard normal, and the k best are chosen. A score
 * is a sum of independent parts that change at different speeds: one that never does (popular experts), some that drift
 * over so many tokens (the topic, the sentence), and one that is new for every token. A profile is the share of the
 * variance that each part has. Such scores d tokens apart are correlated by r(d), the sum of share * exp(-d / tokens),
 * and r(d) follows from how many experts two tokens d apart have in common, so a profile can be fitted to a recording of
 * a few tokens and then be used for any number of experts. */
#ifndef PENSTOCK_RUNTIME_ROUTING_PROFILE_H
#define PENSTOCK_RUNTIME_ROUTING_PROFILE_H

#include <stdint.h>

#include "storage/cache_replay.h"
#include "storage/status.h"

enum { ROUTING_PARTS = 4 };

struct routing_profile {
    double share[ROUTING_PARTS]; /* of the variance; the rest, up to 1, is new for every token */
};

/* Over how many tokens each part decays; the first one never does. */
extern const double ROUTING_TOKENS[ROUTING_PARTS];
/* Prose and chat, as real models route it. */
extern const struct routing_profile ROUTING_TEXT;

/* Least-squares fit to a recording in which every token visits each layer at most once. Needs two tokens or more.
 * PS_ERR_ARGUMENT, PS_ERR_NOMEM. */
enum ps_status routing_profile_fit(struct routing_profile *out, const struct replay_trace *recorded,
                                   struct ps_error *err);

/* A trace that owns its arrays. */
struct routing_sample {
    struct replay_trace trace;
    uint32_t *n_experts;
    struct replay_visit *visits;
    uint32_t *ids;
};

/* n_tokens tokens over layers of n_experts[n_layers], top_k chosen in each (fewer where there are fewer). A seed gives
 * one sample. PS_ERR_NOMEM. */
enum ps_status routing_profile_sample(struct routing_sample *out, const struct routing_profile *profile,
                                      uint32_t n_layers, const uint32_t *n_experts, uint32_t top_k,
                                      uint32_t n_tokens, uint64_t seed, struct ps_error *err);
void routing_sample_free(struct routing_sample *sample);

#endif
