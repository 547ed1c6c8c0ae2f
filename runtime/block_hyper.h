/* Hyper-connections with Sinkhorn mixing (DeepSeek-V4; arXiv:2512.24880): hp.n_streams residual streams. Before a branch
 * they are summed into its input, after it they are mixed with each other and with its output, by coefficients made of the
 * streams themselves. */
#ifndef PENSTOCK_RUNTIME_BLOCK_HYPER_H
#define PENSTOCK_RUNTIME_BLOCK_HYPER_H

#include "runtime/forward_internal.h"

enum { MAX_STREAMS = 8 };

/* Of streams to coefficients: rows of hc_*_fn, and floats at the start of a token's scratch.mixer. */
dim_fn dim_streams, dim_all_streams, dim_hyper_mixes;

/* scratch.normed = the branch's input, normed. scratch.mixer's first dim_hyper_mixes floats per token must stay until
 * hyper_end. */
void hyper_begin(struct forward *f, uint32_t layer, enum layer_tensor fn, enum layer_tensor norm);
/* scratch.x = the streams mixed, with the branch's output [n_tokens][n_embd]. */
void hyper_end(struct forward *f, const float *branch);
/* scratch.hidden = the streams summed, normed. For arch->end. */
void hyper_output(struct forward *f);

#endif
