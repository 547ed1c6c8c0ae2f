/* What recurrent layers share: hyperparameters, causal convolutions, and the recurrence over a chunk (kernels/recurrence.h).
 *
 * Their state in kv_layer.state: the convolution's last taps - 1 rows of input, then a matrix per head. It moves on as the layer is
 * computed; a chunk that fails leaves states that do not fit together, so the session then forgets the sequence. */
#ifndef PENSTOCK_RUNTIME_RECURRENT_H
#define PENSTOCK_RUNTIME_RECURRENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/matmul.h"
#include "kernels/recurrence.h"
#include "runtime/hparams.h"

struct acts;
struct forward;
struct matmul_job;

enum { MAX_CONV_TAPS = 16, MAX_CONVS = 3, MAX_STATE_DIM = 4096, MAX_SSM_INNER = 1 << 20 };

/* Reads and checks ssm.conv_kernel, .inner_size, .state_size, .group_count and .time_step_rank: heads (the rank) divide the inner
 * size, groups the heads. */
enum ps_status hparams_ssm(struct hparams *hp, const struct gguf *gguf, const char *arch,
                           struct ps_error *err);
/* The number of taps under a key of its own. */
enum ps_status hparams_taps(struct hparams *hp, const struct gguf *gguf, const char *arch, const char *suffix,
                            struct ps_error *err);
/* Makes a layer recurrent, without attention. */
void layer_make_recurrent(struct layer_hparams *layer, uint64_t state_floats);
/* Room in scratch.mixer for at least so many floats per token. */
enum ps_status hparams_want_mixer(struct hparams *hp, const char *arch, uint64_t floats,
                                  struct ps_error *err);
#define HPARAMS_SSM_KEYS                                                                                     \
    "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank"

/* Gated delta nets: the keys above, full_attention_interval and attention.recurrent_layers. */
enum ps_status hparams_delta_net(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                 struct ps_error *err);
#define HPARAMS_DELTA_NET_KEYS HPARAMS_SSM_KEYS, "full_attention_interval", "attention.recurrent_layers"
dim_fn dim_delta_qkvz, dim_delta_beta_alpha;

/* Short convolutions, in layers without key heads: shortconv.l_cache. */
enum ps_status hparams_short_conv(struct hparams *hp, const struct gguf *gguf, const char *arch,
                                  struct ps_error *err);
dim_fn dim_short_conv; /* b, c and x */

/* Mamba-2: the ssm keys. */
enum ps_status hparams_mamba2(struct hparams *hp, const struct gguf *gguf, const char *arch,
                              struct ps_error *err);
uint64_t mamba2_state_floats(const struct hparams *hp);
dim_fn dim_mamba2_in, dim_ssm_groups, dim_ssm_group; /* values per group */

/* Kimi delta attention, in layers without key heads: ssm.conv_kernel and kda.head_dim; as many heads as attention has. */
enum ps_status hparams_kda(struct hparams *hp, const struct gguf *gguf, const char *arch,
                           struct ps_error *err);
dim_fn dim_kda_head;

dim_fn dim_taps, dim_ssm_inner, dim_ssm_heads, dim_ssm_head;
dim_fn dim_ssm_conv; /* channels of the convolution: inner, and a key and a query per group */

/* Rows of x become their convolution. */
struct conv_job {
    float *x; /* [n_tokens][channels], stride floats apart */
    size_t stride;
    float *window; /* [taps - 1][channels], window_stride floats apart: the input before x, oldest first */
    size_t window_stride;
    const float *weights; /* [channels][taps] */
    const float *bias;    /* [channels] or NULL */
    uint32_t channels, taps;
    bool silu; /* of the sum */
};
/* n <= MAX_CONVS. */
void run_convs(struct forward *f, const struct conv_job *jobs, uint32_t n);

/* The recurrence of all heads. */
struct recurrence_job {
    struct recurrence_args args; /* of head 0; what columns and tokens there are is filled in */
    uint32_t n_heads,
        n_values;         /* a state per head: [n_keys][n_values], columns in groups of RECURRENCE_COLUMNS */
    uint32_t n_key_heads; /* heads of q and k, n_keys apart; they divide n_heads */
    bool tiled;           /* head h has key head h % n_key_heads; else h / (n_heads / n_key_heads) */
};
void run_recurrence(struct forward *f, const struct recurrence_job *job);

/* Rows of n_heads heads to length 1, times scale. */
void normalize_heads(const struct forward *f, float *row, uint32_t n_heads, uint32_t head_dim, float scale);
/* scratch.branch = w times the rows at `at` of scratch.mixer. */
void mixer_product(struct forward *f, const struct weight *w, size_t at);
/* The job for all rows of acts, whose product goes to the rows at `at` of scratch.mixer. */
struct matmul_job mixer_job(struct forward *f, struct acts *acts, const struct weight *w, size_t at);
/* x += w times the rows at `at` of scratch.mixer. */
void mixer_output(struct forward *f, uint32_t layer, const struct weight *w, size_t at);

#endif
