#include "runtime/arch.h"

#include <string.h>

uint64_t dim_one(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)hp, (void)l;
    return 1;
}

uint64_t dim_embd(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->n_embd;
}

uint64_t dim_vocab(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->n_vocab;
}

uint64_t dim_head_k(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)hp;
    return l->head_dim_k;
}

uint64_t dim_head_v(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)hp;
    return l->head_dim_v;
}

uint64_t dim_n_head(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)hp;
    return l->n_head;
}

uint64_t dim_q(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)hp;
    return (uint64_t)l->n_head * l->head_dim_k;
}

uint64_t dim_k(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)hp;
    return (uint64_t)l->n_kv_head * l->head_dim_k;
}

uint64_t dim_v(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)hp;
    return (uint64_t)l->n_kv_head * l->head_dim_v;
}

uint64_t dim_qkv(const struct hparams *hp, const struct layer_hparams *l)
{
    return dim_q(hp, l) + dim_k(hp, l) + dim_v(hp, l);
}

uint64_t dim_attn_out(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)hp;
    return (uint64_t)l->n_head * l->head_dim_v;
}

uint64_t dim_q_gated(const struct hparams *hp, const struct layer_hparams *l)
{
    return 2 * dim_q(hp, l);
}

uint64_t dim_ff(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)hp;
    return l->n_ff;
}

uint64_t dim_shared_ff(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->n_ff_shared;
}

uint64_t dim_experts(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->n_expert;
}

uint64_t dim_expert_embd(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->n_embd_expert;
}

uint64_t dim_index(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->index.head_dim;
}

uint64_t dim_index_heads(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->index.n_head;
}

uint64_t dim_index_q(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return (uint64_t)hp->index.n_head * hp->index.head_dim;
}

uint64_t dim_half_rot(const struct hparams *hp, const struct layer_hparams *l)
{
    (void)l;
    return hp->rope[0].n_rot / 2;
}

const struct tensor_rule GLOBAL_RULES[] = {
    {GT_TOKEN_EMBD, "token_embd.weight", dim_vocab, dim_embd, NEED_ALWAYS, NULL},
    {GT_OUTPUT_NORM, "output_norm.weight", dim_one, dim_embd, NEED_ALWAYS, NULL},
    {GT_OUTPUT, "output.weight", dim_vocab, dim_embd, NEED_OPTIONAL, NULL},
    {GT_ROPE_FREQS, "rope_freqs.weight", dim_one, dim_half_rot, NEED_OPTIONAL, NULL},
};
const uint32_t N_GLOBAL_RULES = sizeof(GLOBAL_RULES) / sizeof(GLOBAL_RULES[0]);

/* clang-format off */
static const struct arch *const ARCHS[] = {
    &ARCH_AFMOE,
    &ARCH_BAILINGMOE2,
    &ARCH_COHERE2MOE,
    &ARCH_DEEPSEEK2,
    &ARCH_DEEPSEEK4,
    &ARCH_DOTS1,
    &ARCH_ERNIE4_5_MOE,
    &ARCH_EXAONE_MOE,
    &ARCH_GEMMA4,
    &ARCH_GLM_DSA,
    &ARCH_GLM4MOE,
    &ARCH_GPT_OSS,
    &ARCH_GRANITEMOE,
    &ARCH_HUNYUAN_MOE,
    &ARCH_KIMI_LINEAR,
    &ARCH_LFM2MOE,
    &ARCH_LLAMA,
    &ARCH_LLAMA4,
    &ARCH_MIMO2,
    &ARCH_MINIMAX_M2,
    &ARCH_MINIMAX_M3,
    &ARCH_MISTRAL4,
    &ARCH_NEMOTRON_H_MOE,
    &ARCH_OLMOE,
    &ARCH_PHIMOE,
    &ARCH_QWEN2MOE,
    &ARCH_QWEN35MOE,
    &ARCH_QWEN3MOE,
    &ARCH_QWEN3NEXT,
    &ARCH_QWEN4EXP,
    &ARCH_STEP35,
};
/* clang-format on */

const struct arch *arch_at(uint32_t index)
{
    return index < sizeof(ARCHS) / sizeof(ARCHS[0]) ? ARCHS[index] : NULL;
}

const struct arch *arch_find(struct gguf_string name)
{
    for (uint32_t i = 0; arch_at(i); i++) {
        const char *candidate = arch_at(i)->name;
        if (strlen(candidate) == name.length && memcmp(candidate, name.data, name.length) == 0)
            return arch_at(i);
    }
    return NULL;
}
