/* Latencies in buckets that widen with them: percentiles to 1 % of any number of samples, in fixed memory. */
#ifndef PENSTOCK_RUNTIME_LATENCY_HISTOGRAM_H
#define PENSTOCK_RUNTIME_LATENCY_HISTOGRAM_H

#include <stdint.h>

enum {
    LATENCY_SUB_BITS = 6, /* 64 buckets per doubling */
    LATENCY_OCTAVES = 36, /* up to 2^42 ns: 73 minutes */
    LATENCY_BUCKETS = (LATENCY_OCTAVES + 1) << LATENCY_SUB_BITS,
};

struct latency_histogram {
    uint64_t n;
    uint32_t counts[LATENCY_BUCKETS];
};

void latency_histogram_add(struct latency_histogram *histogram, uint64_t ns);
/* The latency, ns, that the share of all samples (0..1) does not exceed; 0 where there is no sample. */
double latency_histogram_quantile(const struct latency_histogram *histogram, double share);

#endif
