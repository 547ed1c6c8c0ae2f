/* Hyper-connections with gates of a low rank (Qwen4-Exp): hp.n_streams residual streams. A branch's input is the mean of the
 * normed streams, gated value by value; its output is added to each stream with a weight. There are no other norms. */
#ifndef PENSTOCK_RUNTIME_BLOCK_GATED_STREAMS_H
#define PENSTOCK_RUNTIME_BLOCK_GATED_STREAMS_H

#include "runtime/forward_internal.h"

dim_fn dim_low_rank;
/* Floats per token of scratch.mixer: from its start for gated_streams_begin alone, and at its end until gated_streams_end. */
uint64_t gated_streams_mixer(const struct hparams *hp);
uint64_t gated_streams_kept(const struct hparams *hp);

enum branch { BRANCH_ATTENTION, BRANCH_FFN };
/* scratch.normed = the branch's input. */
void gated_streams_begin(struct forward *f, uint32_t layer, enum branch branch);
/* Adds the branch's output [n_tokens][n_embd] to the streams. */
void gated_streams_end(struct forward *f, const float *output);
/* scratch.hidden from the streams. For arch->end. */
void gated_streams_output(struct forward *f);

#endif
