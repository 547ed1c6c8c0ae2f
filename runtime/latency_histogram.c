#include "runtime/latency_histogram.h"

#include <math.h>

/* Below 2^SUB_BITS every value has a bucket; above, the leading one says the octave and the SUB_BITS after it the bucket
 * (as HdrHistogram and fio do). */
static uint32_t bucket_of(uint64_t ns)
{
    if (ns < 1u << LATENCY_SUB_BITS)
        return (uint32_t)ns;
    uint32_t shift = 63u - (uint32_t)__builtin_clzll(ns) - LATENCY_SUB_BITS;
    if (shift >= LATENCY_OCTAVES)
        return LATENCY_BUCKETS - 1;
    return (shift << LATENCY_SUB_BITS) + (uint32_t)(ns >> shift);
}

static double bucket_middle(uint32_t bucket)
{
    if (bucket < 1u << LATENCY_SUB_BITS)
        return bucket;
    uint32_t shift = (bucket >> LATENCY_SUB_BITS) - 1;
    return ldexp((bucket & ((1u << LATENCY_SUB_BITS) - 1)) + (1u << LATENCY_SUB_BITS) + 0.5, (int)shift);
}

void latency_histogram_add(struct latency_histogram *histogram, uint64_t ns)
{
    histogram->counts[bucket_of(ns)]++;
    histogram->n++;
}

double latency_histogram_quantile(const struct latency_histogram *histogram, double share)
{
    uint64_t seen = 0;
    double wanted = share * (double)histogram->n;
    for (uint32_t i = 0; i < LATENCY_BUCKETS; i++) {
        seen += histogram->counts[i];
        if (seen > 0 && (double)seen >= wanted)
            return bucket_middle(i);
    }
    return 0.0;
}
