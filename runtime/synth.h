/* Synthetic models: GGUF files of any shape with random weights, to measure a machine before a download.
 *
 * Weights are random, yet the model behaves like one: activations keep their scale through the layers, logits have a
 * standard deviation of about 2, and routing varies with token and layer. A file depends on its parameters and
 * seed alone, not on threads or machine. Architectures, shapes and types are rows of tables.
 *
 *     synth_preset_shape("qwen3-30b-a3b", &params.shape);
 *     synth_new(&model, &params, &err);         the whole layout, nothing written yet
 *     synth_write(model, &write_params, &err);
 *     synth_free(model); */
#ifndef PENSTOCK_RUNTIME_SYNTH_H
#define PENSTOCK_RUNTIME_SYNTH_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/gguf.h"
#include "storage/status.h"

/* Zero means: derived, or absent. */
struct synth_shape {
    const char *arch; /* GGUF architecture name */
    uint32_t n_layers, n_embd, n_vocab, n_ctx;
    uint32_t n_heads, n_kv_heads;
    uint32_t head_dim;    /* 0: n_embd / n_heads */
    uint32_t n_ff;        /* dense FFN width; metadata only where every layer is routed */
    uint32_t n_experts;   /* 0: dense, where the architecture has a dense form */
    uint32_t n_top_k;     /* experts per token */
    uint32_t n_ff_expert; /* width of a routed expert */
    uint32_t n_ff_shared; /* width of the shared expert */
    float rope_base, norm_eps;
};

/* Names for listings; NULL past the end. */
const char *synth_arch_at(uint32_t index);
const char *synth_preset_at(uint32_t index);
const char *synth_type_at(uint32_t index);

/* The shape of a public model / of the one that stands for an architecture. False: no such name. */
bool synth_preset_shape(const char *preset, struct synth_shape *shape);
bool synth_arch_shape(const char *arch, struct synth_shape *shape);

struct synth_params {
    struct synth_shape shape;
    const char *name; /* general.name; borrowed; NULL: the architecture's */
    const char *type; /* of the matrices: one that synth_type_at lists; norms, biases and routers are F32 */
    uint64_t seed;
    const struct gguf *vocab; /* its tokenizer.* and vocabulary size are copied; borrowed; NULL: ids only */
};

struct synth_model;

/* Checks the shape and lays out the file. PS_ERR_ARGUMENT names the value that does not fit. What
 * params points to is borrowed until synth_free. */
enum ps_status synth_new(struct synth_model **out, const struct synth_params *params, struct ps_error *err);
void synth_free(struct synth_model *model); /* NULL is fine */

const struct synth_shape *synth_model_shape(const struct synth_model *model); /* nothing left to derive */
uint32_t synth_model_n_tensors(const struct synth_model *model);
uint64_t synth_model_n_weights(const struct synth_model *model);
uint64_t synth_model_data_bytes(const struct synth_model *model); /* all of the file but its header */
/* Matrices whose rows do not divide into blocks of the type asked for, and what they are instead; "" for none. */
const char *synth_model_note(const struct synth_model *model);

struct synth_write_params {
    const char *path;
    bool overwrite;   /* replace a file that exists; else PS_ERR_ARGUMENT */
    uint32_t threads; /* generating and writing; 0: the default */
    /* Called on the calling thread as chunks land; bytes. False stops with PS_ERR_CANCELLED. May be NULL. */
    bool (*progress)(void *ctx, uint64_t done, uint64_t total);
    void *progress_ctx;
};

/* The file has its name only when it is whole; on failure nothing is left behind. The page cache is left alone.
 * PS_ERR_IO when the space does not suffice or a write fails. */
enum ps_status synth_write(const struct synth_model *model, const struct synth_write_params *params,
                           struct ps_error *err);

#endif
