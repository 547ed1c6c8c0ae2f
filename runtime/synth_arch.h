/* What synthetic models can look like: architectures, public shapes, and the tensors and metadata keys that follow
 * from a shape. All of it is tables; a new architecture is a row and perhaps a tensor or two. */
#ifndef PENSTOCK_RUNTIME_SYNTH_ARCH_H
#define PENSTOCK_RUNTIME_SYNTH_ARCH_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/synth.h"

/* What a tensor does in the graph: decides its distribution and its type in a mix. */
enum synth_role {
    SYNTH_EMBED,
    SYNTH_OUTPUT,
    SYNTH_NORM,
    SYNTH_BIAS,
    SYNTH_INPUT, /* projects a normed residual: q, gate, up */
    SYNTH_K,
    SYNTH_V,
    SYNTH_ATTN_OUT,
    SYNTH_ROUTER,
    SYNTH_SHARED_ROUTER,
    SYNTH_DENSE_DOWN,
    SYNTH_EXPERT_DOWN,
    SYNTH_SHARED_DOWN,
};

struct synth_tensor {
    char name[48];
    enum synth_role role;
    uint32_t layer; /* 0 outside of layers */
    uint32_t n_dims;
    uint64_t dims[4]; /* dims[0] is the row length; unused ones are 1 */
    uint32_t type;    /* from here on set by synth.c */
    uint32_t fill;    /* index into the model's distributions */
    uint64_t bytes;
};

struct synth_key {
    const char *suffix; /* after "<arch>." */
    bool is_float;
    uint32_t u;
    float f;
};

enum { SYNTH_MAX_KEYS = 24 };

/* Derives what is 0 and checks the rest. PS_ERR_ARGUMENT, PS_ERR_UNSUPPORTED. */
enum ps_status synth_shape_resolve(struct synth_shape *shape, struct ps_error *err);
/* Whether the architecture divides the chosen experts' weights by their sum. */
bool synth_arch_renormalizes(const struct synth_shape *shape);

/* Both take a resolved shape. Fills out unless it is NULL; returns the count. */
uint32_t synth_list_tensors(const struct synth_shape *shape, struct synth_tensor *out);
uint32_t synth_list_keys(const struct synth_shape *shape, struct synth_key out[SYNTH_MAX_KEYS]);

#endif
