#include "runtime/arch.h"

#include <string.h>

const struct tensor_rule GLOBAL_RULES[] = {
    {GT_TOKEN_EMBD, "token_embd.weight", DIM_VOCAB, DIM_EMBD, NEED_ALWAYS},
    {GT_OUTPUT_NORM, "output_norm.weight", DIM_ONE, DIM_EMBD, NEED_ALWAYS},
    {GT_OUTPUT, "output.weight", DIM_VOCAB, DIM_EMBD, NEED_OPTIONAL},
    {GT_ROPE_FREQS, "rope_freqs.weight", DIM_ONE, DIM_HALF_ROT, NEED_OPTIONAL},
};
const uint32_t N_GLOBAL_RULES = sizeof(GLOBAL_RULES) / sizeof(GLOBAL_RULES[0]);

static const struct arch *const ARCHS[] = {&ARCH_LLAMA, &ARCH_OLMOE, &ARCH_QWEN2MOE, &ARCH_QWEN3MOE};

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
