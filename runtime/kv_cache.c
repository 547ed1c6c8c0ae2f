#include "runtime/kv_cache.h"

#include <errno.h>

#include "storage/mapping.h"

uint64_t kv_token_bytes(const struct hparams *hp, enum kv_type type)
{
    return (uint64_t)hp->n_layers * hp->n_kv_head *
           (kv_row_bytes(type, hp->head_dim_k) + kv_row_bytes(type, hp->head_dim_v));
}

uint64_t kv_cache_bytes(const struct hparams *hp, enum kv_type type, uint32_t ctx)
{
    return kv_token_bytes(hp, type) * ctx;
}

int kv_cache_init(struct kv_cache *kv, const struct hparams *hp, enum kv_type type, uint32_t ctx)
{
    *kv = (struct kv_cache){.type = type,
                            .ctx = ctx,
                            .n_kv_head = hp->n_kv_head,
                            .k_row = kv_row_bytes(type, hp->head_dim_k),
                            .v_row = kv_row_bytes(type, hp->head_dim_v)};
    kv->layer_bytes = (uint64_t)ctx * hp->n_kv_head * (kv->k_row + kv->v_row);
    kv->bytes = kv->layer_bytes * hp->n_layers;
    kv->memory = mapping_new(kv->bytes);
    return kv->memory ? 0 : -ENOMEM;
}

void kv_cache_deinit(struct kv_cache *kv)
{
    mapping_free(kv->memory, kv->bytes);
}

uint8_t *kv_cache_k(const struct kv_cache *kv, uint32_t layer, uint32_t head)
{
    return kv->memory + layer * kv->layer_bytes + (uint64_t)head * kv->ctx * kv->k_row;
}

uint8_t *kv_cache_v(const struct kv_cache *kv, uint32_t layer, uint32_t head)
{
    return kv_cache_k(kv, layer, kv->n_kv_head) + (uint64_t)head * kv->ctx * kv->v_row;
}
