/* The kernels of each level; activations: their sizes, and rounding by the level's blocks. */
#include "kernels/matmul.h"

#include <string.h>

#include "kernels/matmul_internal.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* AVX-VNNI by cpuid, since not every supported compiler has a name for it; asked only where AVX2 is available. */
static bool has_avxvnni(void)
{
    unsigned eax;
    unsigned ebx;
    unsigned ecx;
    unsigned edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 4) != 0;
}

static bool has_avx512vnni(void)
{
    return __builtin_cpu_supports("avx512vnni");
}
#elif defined(__aarch64__)
#include <sys/auxv.h>

static bool has_dotprod(void)
{
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
}

static bool has_i8mm(void)
{
    return has_dotprod() && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
}
#endif

static bool always(void)
{
    return true;
}

/* Within a level the better one later; they give the same bits. `runs` is asked where the level is available. */
static const struct {
    struct matmul_kernels kernels;
    bool (*runs)(void);
} variants[] = {
    {{CPU_SCALAR, act_blocks_scalar, matmul_scalar}, always},
#if defined(__x86_64__)
    {{CPU_AVX2, act_blocks_avx2, matmul_avx2}, always},
    {{CPU_AVX2, act_blocks_avx2, matmul_avxvnni}, has_avxvnni},
    {{CPU_AVX512, act_blocks_avx2, matmul_avx512}, always},
    {{CPU_AVX512, act_blocks_avx2, matmul_avx512vnni}, has_avx512vnni},
#elif defined(__aarch64__)
    {{CPU_NEON, act_blocks_neon, matmul_neon}, always},
    {{CPU_NEON, act_blocks_neon, matmul_neondot}, has_dotprod},
    {{CPU_NEON, act_blocks_neon, matmul_neoni8mm}, has_i8mm},
#endif
};

const struct matmul_kernels *matmul_variant_at(unsigned index)
{
    unsigned n = 0;
    for (size_t i = 0; i < sizeof(variants) / sizeof(variants[0]); i++) {
        if (cpu_level_available(variants[i].kernels.level) && variants[i].runs() && n++ == index) {
            return &variants[i].kernels;
        }
    }
    return NULL;
}

const struct matmul_kernels *matmul_kernels_get(enum cpu_level level)
{
    const struct matmul_kernels *best = NULL;
    const struct matmul_kernels *kernels;
    for (unsigned i = 0; (kernels = matmul_variant_at(i)) != NULL; i++) {
        if (kernels->level == level) {
            best = kernels;
        }
    }
    return best;
}

static const struct {
    uint32_t values;
    uint32_t bytes;
} act_blocks[ACT_N_TYPES] = {
    [ACT_F32] = {1, sizeof(float)},
    [ACT_Q8_0] = {32, sizeof(struct act_q8_0)},
    [ACT_Q8_K] = {256, sizeof(struct act_q8_k)},
};

uint32_t act_block_values(enum act_type type)
{
    return act_blocks[type].values;
}

size_t act_row_bytes(enum act_type type, uint64_t n_cols)
{
    return (size_t)(n_cols / act_blocks[type].values * act_blocks[type].bytes);
}

void act_quantize(const struct matmul_kernels *kernels, enum act_type type, const float *x, void *out,
                  size_t n)
{
    act_block_fn *quantize = kernels->act_blocks[type];
    if (quantize == NULL) {
        memcpy(out, x, n * sizeof(*x));
        return;
    }
    uint8_t *block = out;
    for (size_t i = 0; i < n; i += act_blocks[type].values, block += act_blocks[type].bytes) {
        quantize(x + i, block);
    }
}
