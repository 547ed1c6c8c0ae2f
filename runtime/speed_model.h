/* Speed model: tokens per second from measured parts.
 *
 * What a token takes lies between two bounds. At best reading and computing overlap wholly: the larger of the time to
 * compute it with everything in memory and the time that the drive takes for its bytes with a full queue. At worst
 * nothing overlaps: computing, and in each layer the time to read that layer's misses by themselves, which for one or
 * two experts is mostly latency. Where between the two a run is (how much is computed while reads are under way, what
 * prefetch hides) is one coefficient, measured in a short run. Where that run lies outside of the bounds, because the
 * drive does better or worse under it than alone, drive times are scaled. */
#ifndef PENSTOCK_RUNTIME_SPEED_MODEL_H
#define PENSTOCK_RUNTIME_SPEED_MODEL_H

#include <stdbool.h>
#include <stdint.h>

enum { SPEED_SETS = 8 };

/* How long the drive takes for n shards at once, nothing else in flight. */
struct speed_set {
    uint32_t n;
    double seconds;
};

struct speed_parts {
    double compute_s;   /* a token with everything in memory */
    double start_s;     /* what the first token takes on top: code and buffers touched for the first time */
    double drive_rate;  /* bytes/s with a full queue */
    double shard_bytes; /* mean, as read */
    uint32_t n_layers;  /* MoE layers */
    uint32_t top_k;
    struct speed_set sets[SPEED_SETS]; /* by n, from 1 up */
    uint32_t n_sets;                   /* 0: the drive's rate holds for any n */

    double overlap; /* 0..1: from the worst case to the best */
    double drag;    /* drive times in a run over those of the drive alone */
    double touch_s; /* per byte: filling memory for the first time, on top of reading */
};

/* What a token asks of the drive, on average. */
struct speed_load {
    double miss_rate;   /* share of its experts that are read */
    double fresh_rate;  /* share of its experts that are read into a slot never used before */
    double trunk_bytes; /* of streamed trunk layers */
};

/* Seconds per token. best <= token <= worst. */
struct speed_estimate {
    double token_s;
    double drive_s; /* the drive's part with a full queue; more than compute_s: the drive is the limit */
    double best_s, worst_s;
};

/* compute_s >= 0, drive_rate > 0. */
struct speed_estimate speed_predict(const struct speed_parts *parts, const struct speed_load *load);

/* The same machine with a drive of another rate; what a read takes besides the transfer stays as it is. */
struct speed_parts speed_with_drive(const struct speed_parts *parts, double drive_rate);

/* Parts as fitted to a run with this miss rate. */
struct speed_fit {
    struct speed_parts parts;
    double miss_rate;
};

/* Two runs' predictions, weighted by how near the load's miss rate is to that of either. n: 1 or 2. */
struct speed_estimate speed_between(const struct speed_fit *fits, uint32_t n_fits,
                                    const struct speed_load *load);

/* What a run took over what was predicted for it. */
struct speed_correction {
    double factor;
    double miss_rate;
};

/* Between two runs (or of one), by the miss rate. n: 1 or 2. */
double speed_correct(const struct speed_correction *corrections, uint32_t n, double miss_rate);

/* A token that was timed. */
struct speed_sample {
    double seconds;
    struct speed_load load;
};

/* Sets overlap, drag and touch_s (and lowers compute_s where all tokens are faster), so that the predictions for the
 * samples add up to what they took; tokens that took three times what the others say are left out. The first two come
 * from tokens that fill no fresh slot, where there are some. Without samples: half, 1, 0. */
void speed_fit_parts(struct speed_parts *parts, const struct speed_sample *samples, uint32_t n);

/* The knee of a curve: the point farthest above the line from its first to its last one, both axes scaled to 1
 * (Satopaa and others, "Finding a Kneedle in a Haystack", 2011). 0: none is above it. x ascends; n > 0. */
uint32_t speed_knee(const double *x, const double *y, uint32_t n);
/* The first point with at least this share of the highest; n > 0. */
uint32_t speed_first_near_best(const double *y, uint32_t n, double share);

#endif
