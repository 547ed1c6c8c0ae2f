/* Random weights in any block format. The blocks' bytes are drawn directly: quants uniform, scales set so that the
 * dequantized values have the mean and standard deviation asked for. */
#ifndef PENSTOCK_RUNTIME_SYNTH_BLOCKS_H
#define PENSTOCK_RUNTIME_SYNTH_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SYNTH_GAUSS_SIZE = 4096, SYNTH_SCALES = 16 };

/* Standard normal quantiles, ascending, mean 0, variance 1 to F32 accuracy. */
void synth_gauss_table(float gauss[SYNTH_GAUSS_SIZE]);

struct synth_recipe; /* how the blocks of one type are drawn */

const struct synth_recipe *synth_recipe_find(uint32_t type); /* ggml type id; NULL when there is none */
uint32_t synth_recipe_at(uint32_t index);                    /* type id; UINT32_MAX past the end */

/* A distribution in one block format; immutable once made, may be shared by threads. */
struct synth_fill {
    const struct synth_recipe *recipe;
    float mean, std;
    uint16_t scale[SYNTH_SCALES]; /* F16, one drawn per block */
    uint16_t min[SYNTH_SCALES];   /* F16 that goes with it */
    uint8_t exponent;             /* MXFP4, NVFP4: this scale or the next one */
    uint8_t exponent_threshold;   /* next one when a random byte is below it */
    uint32_t *gauss;              /* float formats: [SYNTH_GAUSS_SIZE] bit patterns; owned */
};

/* mean applies to float formats; the others have 0. False when memory runs out. */
bool synth_fill_init(struct synth_fill *fill, uint32_t type, float mean, float std,
                     const float gauss[SYNTH_GAUSS_SIZE]);
void synth_fill_deinit(struct synth_fill *fill);

/* A tensor is generated in units of whole blocks, each from a random stream of its own. */
uint64_t synth_unit_bytes(const struct synth_recipe *recipe);
/* out[bytes]: whole blocks, at most one unit; a shorter unit is the beginning of a longer one. */
void synth_fill_unit(const struct synth_fill *fill, uint64_t seed, uint32_t tensor, uint64_t unit,
                     uint8_t *out, size_t bytes);

#endif
