/* Hyperparameters: the numbers of a model's metadata that its graph needs, checked. */
#ifndef PENSTOCK_RUNTIME_HPARAMS_H
#define PENSTOCK_RUNTIME_HPARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/gguf.h"
#include "storage/status.h"

struct hparams {
    uint32_t n_layers;
    uint32_t n_embd;
    uint32_t n_vocab; /* rows of token_embd */
    uint32_t n_ctx_train;
    uint32_t n_head, n_kv_head;
    uint32_t head_dim_k, head_dim_v;
    uint32_t n_ff; /* dense FFN width, 0: none */
    uint32_t n_expert, n_expert_used;
    uint32_t n_ff_expert, n_ff_shared; /* 0: none */
    float norm_eps;
    float attention_scale;      /* of q.k */
    float expert_weights_scale; /* 0: none */

    uint32_t n_rot;
    float rope_freq_base, rope_freq_scale, rope_ext_factor, rope_attn_factor;
    uint32_t rope_ctx_orig;
};

/* Looks up "<arch>.<suffix>". Required ones give PS_ERR_FORMAT naming the key; the others keep *out. */
enum ps_status hparam_u32(const struct gguf *gguf, const char *arch, const char *suffix, bool required,
                          uint32_t *out, struct ps_error *err);
enum ps_status hparam_f32(const struct gguf *gguf, const char *arch, const char *suffix, bool required,
                          float *out, struct ps_error *err);

/* Reads what all transformer families share. Every "<arch>.*" key of the file must be one that is read here, one of
 * `known` (a NULL-terminated list of suffixes the architecture reads itself or that do not change the
 * computation), else PS_ERR_UNSUPPORTED names it: a key that changes the result is never ignored. */
enum ps_status hparams_read(struct hparams *hp, const struct gguf *gguf, const char *arch,
                            const char *const *known, struct ps_error *err);

#endif
