/* Routing traces: which experts every token was sent to, layer by layer, and what the predictor had expected.
 *
 * The format is text, one record a line, words separated by one space, every line ended:
 *
 *     # penstock routing trace v1
 *     # model=NAME                           to the end of the line; this and the next are for people
 *     # arch=ARCH top_k=K
 *     # layer=0 experts=32 expert_bytes=104448 pool=0
 *                                            one line per MoE layer, from 0 up; layers of one pool share the cache's
 *                                            slots; unknown bytes and pools are left out
 *     token POSITION ID PHASE                in the context, from 0; "-" for an unknown id; prefill or decode
 *     ahead LAYER DISTANCE TOKENS E:P ...    what was predicted for a layer, most likely first: the experts and the
 *                                            probability that this token or one of the TOKENS - 1 after it chooses
 *                                            them; made when DISTANCE MoE blocks before it were not computed yet
 *     experts LAYER E:W E:W ...              what its router chose, best first, with weights; E alone: not known
 *
 * A token's `experts` lines follow its `token` line in the order of the layers; a layer may be missing. `ahead` lines
 * stand anywhere among them: where tokens shared a forward pass, under the first of them. Other `#` lines and words are
 * skipped. So the share of each expert is `awk '$1 == "experts" { for (i = 3; i <= NF; i++) n[$2, int($i)]++ }'`.
 *
 * Two formats of others are read, too: the CSV that opens with `# route_trace v1` (BigMoeOnEdge; rows in any order)
 * and JSON lines {"tok": 1, "layers": [[ids of layer 0], ...]} (WARP; neither ranks nor weights). Their layers without
 * experts are left out, so that MoE layers count from 0 here as well. */
#ifndef PENSTOCK_RUNTIME_ROUTE_TRACE_H
#define PENSTOCK_RUNTIME_ROUTE_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/penstock.h"
#include "storage/cache_replay.h"
#include "storage/status.h"

/* ---- reading ---- */

struct route_token {
    uint32_t position;
    int32_t id; /* -1: not known */
    bool decode;
};

/* Of what tokens [token, token + n_tokens) will choose. */
struct route_prediction {
    uint64_t token; /* index in tokens */
    uint32_t n_tokens;
    uint32_t layer;
    uint32_t distance;
    uint32_t n;
    uint64_t first; /* in predicted[] and probabilities[] */
};

struct route_trace {
    char model[128];        /* "": not known */
    uint32_t n_layers;      /* MoE layers */
    uint32_t *n_experts;    /* [n_layers] */
    uint64_t *expert_bytes; /* [n_layers] of one expert; 0: not known */
    uint32_t *pool;         /* [n_layers] layers of one pool share slots; 0: not known, or the first */
    bool n_experts_known;   /* false: the highest id of all layers, plus one */
    bool ranked;            /* ids of a visit are best first */
    uint32_t top_k;         /* most experts of a visit */
    uint64_t n_tokens, n_visits, n_ids, n_predictions, n_predicted;
    struct route_token *tokens;
    struct replay_visit *visits; /* visit.token: index in tokens; of a token, by layer */
    uint32_t *ids;               /* [n_ids] */
    float *weights;              /* [n_ids] NaN: not known */
    struct route_prediction *predictions;
    uint32_t *predicted;  /* [n_predicted] experts */
    float *probabilities; /* [n_predicted] */
};

/* Tells the format by the first line. PS_ERR_FORMAT names file and line; PS_ERR_IO, PS_ERR_NOMEM. */
enum ps_status route_trace_read(struct route_trace **out, const char *path, struct ps_error *err);
void route_trace_free(struct route_trace *trace); /* NULL is fine */

/* What a token chose in a layer; NULL: not recorded. */
const struct replay_visit *route_trace_visit(const struct route_trace *trace, uint64_t token, uint32_t layer);

/* The trace as a cache sees it when every token is computed by itself: ids of a visit ascend, as in a forward pass.
 * *out borrows from trace and from *ids, which the caller frees. PS_ERR_NOMEM. */
enum ps_status route_trace_replay(const struct route_trace *trace, struct replay_trace *out, uint32_t **ids,
                                  struct ps_error *err);

/* ---- writing ---- */

struct route_trace_header {
    const char *model, *arch;
    uint32_t n_layers, top_k;
    const struct ps_expert_layer *layers; /* [n_layers] */
};

struct route_trace_writer;

/* Writes aside, so that path appears complete or not at all. A path that is there and no regular file is refused. */
enum ps_status route_trace_writer_new(struct route_trace_writer **out, const char *path,
                                      const struct route_trace_header *header, struct ps_error *err);
/* Before each feed: the tokens that a session at `position` is about to compute; borrowed until they are computed.
 * Returns the first failure of what was written so far. */
enum ps_status route_trace_writer_begin(struct route_trace_writer *writer, uint32_t position,
                                        const int32_t *tokens, size_t n_tokens, bool decode,
                                        struct ps_error *err);
/* A ps_router_fn and a ps_prediction_fn; ctx is the writer. Failures are kept for begin and finish. */
void route_trace_on_router(void *ctx, uint32_t moe_layer, uint32_t position, uint32_t n_tokens, uint32_t k,
                           const uint32_t *ids, const float *weights);
void route_trace_on_prediction(void *ctx, uint32_t moe_layer, uint32_t distance, uint32_t position,
                               uint32_t n_tokens, uint32_t n, const uint32_t *experts,
                               const float *probabilities);
enum ps_status route_trace_writer_finish(struct route_trace_writer *writer, struct ps_error *err);
void route_trace_writer_free(
    struct route_trace_writer *writer); /* unfinished: leaves no file; NULL is fine */

#endif
