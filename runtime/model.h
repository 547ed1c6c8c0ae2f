/* Model internals shared by the runtime's files: what was read from the header, and what load() built on it. */
#ifndef PENSTOCK_RUNTIME_MODEL_H
#define PENSTOCK_RUNTIME_MODEL_H

#include "kernels/attention.h"
#include "kernels/matmul.h"
#include "kernels/recurrence.h"
#include "kernels/thread_pool.h"
#include "kernels/vector_ops.h"
#include "runtime/arch.h"
#include "runtime/hparams.h"
#include "runtime/penstock.h"
#include "runtime/vocab.h"
#include "runtime/working_set.h"
#include "storage/expert_cache.h"
#include "storage/gguf.h"
#include "storage/io_reader.h"
#include "storage/prefetch.h"
#include "storage/shard_map.h"

enum { GROUP_TENSORS = LT_COUNT > (int)GT_COUNT ? LT_COUNT : (int)GT_COUNT };

/* Some trunk tensors of one group (the globals, or a layer) and where they lie in its buffer. */
struct tensor_group {
    struct tensor_layout layout;
    uint32_t n;
    uint32_t id[GROUP_TENSORS];     /* enum of layout.offset[i] */
    uint32_t tensor[GROUP_TENSORS]; /* its index in the directory */
};

struct layer {
    bool moe;
    struct weight w[LT_COUNT]; /* format NULL: absent; data bound while the layer is in memory */
    struct tensor_group group;
};

struct trunk;
struct predictor;
struct ps_session;

/* A matrix that stays in the file. */
struct stored_rows {
    uint32_t tensor; /* in the directory */
    uint32_t file;
    uint64_t offset;
    struct weight rows; /* data NULL; format NULL: the model has none */
    uint8_t *sound;     /* a bit per block of a container whose checksum was right; NULL: not noted */
    /* Counters, as in struct trunk_stats. */
    uint64_t checked, reread_sound;
    double check_s;
};

struct ps_model {
    struct gguf *gguf;
    const struct arch *arch;
    struct hparams hp;
    struct shard_map *shards;
    struct vocab *vocab;
    struct weight global[GT_COUNT];
    struct tensor_group global_group;
    struct stored_rows stored; /* GT_LAYER_EMBD where it is not in memory */
    struct layer *layers;      /* [hp.n_layers] */
    uint64_t widest_input;     /* values in a row that some trunk matrix multiplies, FFN hidden rows aside */
    uint32_t act_mask;         /* bit per enum act_type that some weight of the model wants */
    uint32_t n_moe_layers;
    struct ps_model_info info;
    char *name;

    /* From load() on. */
    bool loaded;
    struct ps_plan plan;
    struct ps_model_params params;
    const struct matmul_kernels *matmul;
    const struct vector_ops *ops;
    const struct attention_kernels *attention;
    const struct recurrence_kernels *recurrence;
    struct thread_pool *pool;
    char threads_reason[80]; /* why it has so many threads */
    struct io_reader *reader;
    struct expert_cache *cache;
    struct predictor *predictor; /* NULL: no prefetch, and no predictions */
    struct prefetch prefetch;    /* in use where there is a predictor and it is not switched off */
    struct trunk *trunk;
    struct working_set working_set;   /* of an earlier run, until it is being read */
    struct ps_error warm_error;       /* why params.warm was of no use; PS_OK: it was */
    bool has_session;                 /* the plan holds the KV cache and activations of one */
    struct io_reader_stats loaded_io; /* counters when load() was done */
};

/* The activations that products with w take under the model's settings. */
static inline enum act_type model_act_type(const struct ps_model *model, const struct weight *w)
{
    return model->params.activations == PS_ACTIVATIONS_F32 ? ACT_F32 : w->format->act;
}

/* Starts reading the working set of an earlier run, once. When the first token is out: the reads for a prompt leave the drive
 * no idle time, only gaps that are shorter than a read. */
void model_preload_working_set(struct ps_model *model);

/* Fills global[], layers[], groups and act_mask; every tensor of the file must be claimed. */
enum ps_status model_bind_tensors(struct ps_model *model, struct ps_error *err);
void model_unbind_tensors(struct ps_model *model);
/* Whether a tensor belongs to the layers past the last, heads for predicting further tokens: nothing reads it. */
bool model_skips_tensor(const struct ps_model *model, const char *name);
void model_fill_info(struct ps_model *model);

/* One part of a routed expert as a weight; data is set by the caller. */
struct weight model_expert_weight(const struct ps_model *model, uint32_t layer, enum shard_part part);

#endif
