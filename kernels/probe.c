/* Probes in plain C, and which ones go with a level. */
#include "kernels/probe.h"

#include <string.h>

#include "kernels/matmul_internal.h"
#include "kernels/probe_levels.h"

enum { STREAMS = 4, ACCUMULATORS = 8 };

/* The compiler must neither drop a value nor know that it has not changed. */
#define OPAQUE(v) __asm__ volatile("" : "+r"(v))

static uint64_t read_all(const void *data, size_t bytes)
{
    const uint8_t *p = data;
    size_t stride = bytes / STREAMS;
    uint64_t sum[STREAMS] = {0};
    for (size_t i = 0; i < stride; i += sizeof(uint64_t)) {
        for (int s = 0; s < STREAMS; s++) {
            uint64_t word;
            memcpy(&word, p + (size_t)s * stride + i, sizeof(word));
            sum[s] += word;
        }
    }
    return sum[0] + sum[1] + sum[2] + sum[3];
}

static uint64_t multiply_int8(uint64_t rounds)
{
    int32_t acc[ACCUMULATORS] = {0};
    int32_t u = 3;
    for (uint64_t r = 0; r < rounds; r++) {
        for (int i = 0; i < ACCUMULATORS; i++) {
            OPAQUE(u);
            acc[i] += (int8_t)u * (i + 1);
        }
    }
    for (int i = 0; i < ACCUMULATORS; i++) {
        OPAQUE(acc[i]);
    }
    return rounds * ACCUMULATORS * 2;
}

static uint64_t multiply_f32(uint64_t rounds)
{
    volatile float start = 0.5f;
    float acc[ACCUMULATORS];
    float b = start;
    for (int i = 0; i < ACCUMULATORS; i++) {
        acc[i] = b;
    }
    for (uint64_t r = 0; r < rounds; r++) {
        for (int i = 0; i < ACCUMULATORS; i++) {
            acc[i] = acc[i] * b + b;
        }
    }
    for (int i = 0; i < ACCUMULATORS; i++) {
        __asm__ volatile("" : : "m"(acc[i]));
    }
    return rounds * ACCUMULATORS * 2;
}

static const struct probe_kernels plain = {read_all, multiply_int8, multiply_f32};

/* By the product that the level has come to use here; one without probes of its own gets the plain ones. */
static const struct {
    matmul_fn *matmul;
    const struct probe_kernels *probes;
} levels[] = {
    {matmul_scalar, &plain},
#if defined(__x86_64__)
    {matmul_avx2, &probe_avx2},     {matmul_avxvnni, &probe_avxvnni},
    {matmul_avx512, &probe_avx512}, {matmul_avx512vnni, &probe_avx512vnni},
#elif defined(__aarch64__)
    {matmul_neon, &probe_neon},
    {matmul_neondot, &probe_neondot},
    {matmul_neoni8mm, &probe_neoni8mm},
#endif
};

const struct probe_kernels *probe_kernels_get(enum cpu_level level)
{
    const struct matmul_kernels *kernels = matmul_kernels_get(level);
    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        if (levels[i].matmul == kernels->matmul) {
            return levels[i].probes;
        }
    }
    return &plain;
}
