/* KV cache: keys and values of one sequence, per layer and head, rows of consecutive positions together. */
#ifndef PENSTOCK_RUNTIME_KV_CACHE_H
#define PENSTOCK_RUNTIME_KV_CACHE_H

#include <stdint.h>

#include "kernels/attention.h"
#include "runtime/hparams.h"

struct kv_cache {
    enum kv_type type;
    uint32_t ctx;    /* cells */
    uint32_t n_used; /* cells that hold a token */
    uint32_t n_kv_head;
    size_t k_row, v_row; /* bytes of one head's row */
    uint64_t layer_bytes;
    uint64_t bytes;
    uint8_t *memory; /* [layer]: k [n_kv_head][ctx][k_row], then v likewise */
};

uint64_t kv_token_bytes(const struct hparams *hp, enum kv_type type);
uint64_t kv_cache_bytes(const struct hparams *hp, enum kv_type type, uint32_t ctx);
/* 0, or -ENOMEM. */
int kv_cache_init(struct kv_cache *kv, const struct hparams *hp, enum kv_type type, uint32_t ctx);
void kv_cache_deinit(struct kv_cache *kv);
uint8_t *kv_cache_k(const struct kv_cache *kv, uint32_t layer, uint32_t head); /* row of cell 0 */
uint8_t *kv_cache_v(const struct kv_cache *kv, uint32_t layer, uint32_t head);

#endif
