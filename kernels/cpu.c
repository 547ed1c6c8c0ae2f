/* Which instruction-set levels this CPU and operating system allow. */
#include "kernels/cpu.h"

#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static const char *const level_names[CPU_N_LEVELS] = {"scalar", "avx2", "avx512", "neon"};

#if defined(__x86_64__)
/* F16C by cpuid, since not every supported compiler has a name for it; AVX2 tells that the OS keeps its registers. */
static bool has_avx2(void)
{
    unsigned eax;
    unsigned ebx;
    unsigned ecx;
    unsigned edx;
    bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
    return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
static bool has_avx2(void)
{
    return false;
}

static bool has_avx512(void)
{
    return false;
}
#endif

static bool has_neon(void)
{
#if defined(__aarch64__)
    return true;
#else
    return false;
#endif
}

bool cpu_level_available(enum cpu_level level)
{
    switch (level) {
    case CPU_SCALAR:
        return true;
    case CPU_AVX2:
        return has_avx2();
    case CPU_AVX512:
        return has_avx512();
    case CPU_NEON:
        return has_neon();
    default:
        return false;
    }
}

enum cpu_level cpu_level_best(void)
{
    enum cpu_level best = CPU_SCALAR;
    for (int level = CPU_SCALAR; level < CPU_N_LEVELS; level++) {
        if (cpu_level_available((enum cpu_level)level)) {
            best = (enum cpu_level)level;
        }
    }
    return best;
}

const char *cpu_level_name(enum cpu_level level)
{
    return (unsigned)level < CPU_N_LEVELS ? level_names[level] : "unknown";
}

bool cpu_level_parse(const char *name, enum cpu_level *level)
{
    for (int i = 0; i < CPU_N_LEVELS; i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *level = (enum cpu_level)i;
            return true;
        }
    }
    return false;
}
