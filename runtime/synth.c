/* Lays out a synthetic model: types, distributions and offsets of its tensors, and the header. */
#include "runtime/synth.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/block_format.h"
#include "runtime/synth_model.h"

/* ---- types ---- */

/* A choice of --type: one block type, or a mix of them. */
struct type_choice {
    const char *name;
    uint32_t type;
    uint32_t file_type; /* general.file_type, llama.h's llama_ftype */
    bool mix;           /* some tensors get more bits, as llama-quantize's _M mixes do */
};

static const struct type_choice choices[] = {
    {"q4_K_M", BLOCK_Q4_K, 15, true},      {"q4_K", BLOCK_Q4_K, 14, false},
    {"q5_K", BLOCK_Q5_K, 16, false},       {"q6_K", BLOCK_Q6_K, 18, false},
    {"q8_0", BLOCK_Q8_0, 7, false},        {"q4_0", BLOCK_Q4_0, 2, false},
    {"mxfp4", BLOCK_MXFP4, 38, false},     {"f16", BLOCK_F16, 1, false},
    {"bf16", BLOCK_BF16, 32, false},       {"f32", BLOCK_F32, 0, false},
    {"q2_K", BLOCK_Q2_K, 10, false},       {"q3_K", BLOCK_Q3_K, 12, false},
    {"q4_1", BLOCK_Q4_1, 3, false},        {"q5_0", BLOCK_Q5_0, 8, false},
    {"q5_1", BLOCK_Q5_1, 9, false},        {"iq4_nl", BLOCK_IQ4_NL, 25, false},
    {"iq4_xs", BLOCK_IQ4_XS, 30, false},   {"nvfp4", BLOCK_NVFP4, 39, false},
    {"q1_0", BLOCK_Q1_0, 40, false},       {"q2_0", BLOCK_Q2_0, 41, false},
    {"iq3_s", BLOCK_IQ3_S, 26, false},     {"iq3_xxs", BLOCK_IQ3_XXS, 23, false},
    {"iq2_s", BLOCK_IQ2_S, 28, false},     {"iq2_xs", BLOCK_IQ2_XS, 20, false},
    {"iq2_xxs", BLOCK_IQ2_XXS, 19, false}, {"iq1_m", BLOCK_IQ1_M, 31, false},
    {"iq1_s", BLOCK_IQ1_S, 24, false},     {"tq2_0", BLOCK_TQ2_0, 37, false},
    {"tq1_0", BLOCK_TQ1_0, 36, false},
};

enum { N_CHOICES = sizeof(choices) / sizeof(choices[0]) };

const char *synth_type_at(uint32_t index)
{
    return index < N_CHOICES ? choices[index].name : NULL;
}

static const struct type_choice *find_choice(const char *name)
{
    for (size_t i = 0; name && i < N_CHOICES; i++) {
        if (strcmp(choices[i].name, name) == 0)
            return &choices[i];
    }
    return NULL;
}

/* The layers that llama-quantize gives more bits in its _M mixes: the first and last eighth, and every third. */
static bool gets_more_bits(uint32_t layer, uint32_t n_layers)
{
    uint32_t eighth = n_layers / 8;
    return layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2;
}

/* llama-quantize's Q4_K_M; the attention of a model with 8 experts is small beside them and gets more. */
static uint32_t mixed_type(const struct synth_tensor *tensor, const struct synth_shape *shape, uint32_t type)
{
    bool eight = shape->n_experts == 8;
    bool more = gets_more_bits(tensor->layer, shape->n_layers);
    switch (tensor->role) {
    case SYNTH_OUTPUT:
        return BLOCK_Q6_K;
    case SYNTH_K:
        return eight ? BLOCK_Q8_0 : type;
    case SYNTH_V:
        return eight ? BLOCK_Q8_0 : more ? BLOCK_Q6_K : type;
    case SYNTH_ATTN_OUT:
        return eight ? BLOCK_Q5_K : type;
    case SYNTH_DENSE_DOWN:
    case SYNTH_EXPERT_DOWN:
    case SYNTH_SHARED_DOWN:
        return more ? BLOCK_Q6_K : type;
    default:
        return type;
    }
}

static bool stays_f32(const struct synth_tensor *tensor)
{
    return tensor->n_dims == 1 || tensor->role == SYNTH_ROUTER;
}

/* Rows that do not divide into blocks get a type with smaller ones, as llama-quantize does it. */
static uint32_t fitting_type(struct synth_model *model, const struct synth_tensor *tensor, uint32_t type)
{
    const struct gguf_type_info *info = gguf_type_find(type);
    if (tensor->dims[0] % info->values == 0)
        return type;
    uint32_t fallback = tensor->dims[0] % 32 == 0 ? BLOCK_Q8_0 : BLOCK_F16;
    if (!model->note[0]) {
        const char *name = strncmp(tensor->name, "blk.0.", 6) == 0 ? tensor->name + 6 : tensor->name;
        snprintf(model->note, sizeof(model->note),
                 "%s: rows of %llu do not divide into %s blocks of %u: %s instead", name,
                 (unsigned long long)tensor->dims[0], info->name, info->values,
                 gguf_type_find(fallback)->name);
    }
    return fallback;
}

/* ---- distributions ---- */

/* With unit-variance inputs (every projection reads a normed residual), a standard deviation of gain / sqrt(inputs)
 * gives outputs of standard deviation `gain`. */
static const float EMBED_STD = 1.0f;
static const float LOGIT_STD = 2.0f;
static const float ROUTER_STD = 1.5f;
static const float NORM_STD = 0.1f; /* around 1 */
static const float BIAS_STD = 0.1f;
/* What all branches together add to the residual, in variances of the embedding: enough for routing to follow the
 * context, little enough for neighbouring layers to see much the same, as in trained models. */
static const float BRANCHES_VARIANCE = 3.0f;
static const float SWIGLU_RMS = 0.596f;  /* of silu(x) y, x and y standard normal */
static const float SIGMOID_RMS = 0.541f; /* of sigmoid(x) */

/* Root of the sum of the squared weights of the chosen experts: their independent outputs add up to so much of one
 * output's standard deviation. Router logits are taken at the quantiles of their distribution. */
static float routed_rms(const struct synth_shape *shape, const float gauss[SYNTH_GAUSS_SIZE])
{
    double all = 0, chosen = 0, square = 0;
    for (uint32_t i = 0; i < shape->n_experts; i++) {
        uint32_t at = (uint32_t)((i + 0.5) * SYNTH_GAUSS_SIZE / shape->n_experts);
        double weight = exp(ROUTER_STD * gauss[at]);
        all += weight;
        if (i >= shape->n_experts - shape->n_top_k) {
            chosen += weight;
            square += weight * weight;
        }
    }
    return (float)(sqrt(square) / (synth_arch_renormalizes(shape) ? chosen : all));
}

struct distribution {
    float mean, std;
};

static struct distribution role_distribution(const struct synth_tensor *tensor,
                                             const struct synth_shape *shape,
                                             const float gauss[SYNTH_GAUSS_SIZE])
{
    float per_input = 1.0f / sqrtf((float)tensor->dims[0]);
    float branch = sqrtf(BRANCHES_VARIANCE / (2.0f * (float)shape->n_layers));
    float ffn = branch / SWIGLU_RMS * per_input;
    if (shape->n_ff_shared)
        ffn *= (float)M_SQRT1_2; /* routed and shared experts split the branch */
    switch (tensor->role) {
    case SYNTH_EMBED:
        return (struct distribution){0, EMBED_STD};
    case SYNTH_OUTPUT:
        return (struct distribution){0, LOGIT_STD * per_input};
    case SYNTH_NORM:
        return (struct distribution){1, NORM_STD};
    case SYNTH_BIAS:
        return (struct distribution){0, BIAS_STD};
    case SYNTH_ROUTER:
        return (struct distribution){0, ROUTER_STD * per_input};
    case SYNTH_ATTN_OUT:
        return (struct distribution){0, branch * per_input};
    case SYNTH_DENSE_DOWN:
        return (struct distribution){0, ffn};
    case SYNTH_EXPERT_DOWN:
        return (struct distribution){0, ffn / routed_rms(shape, gauss)};
    case SYNTH_SHARED_DOWN:
        return (struct distribution){0, ffn / SIGMOID_RMS};
    case SYNTH_INPUT:
    case SYNTH_K:
    case SYNTH_V:
    case SYNTH_SHARED_ROUTER:
        break;
    }
    return (struct distribution){0, per_input};
}

/* Index of the fill with this type and distribution, made where there is none. UINT32_MAX: no memory. */
static uint32_t find_fill(struct synth_model *model, uint32_t type, struct distribution d,
                          const float gauss[SYNTH_GAUSS_SIZE])
{
    const struct synth_recipe *recipe = synth_recipe_find(type);
    for (uint32_t i = 0; i < model->n_fills; i++) {
        const struct synth_fill *fill = &model->fills[i];
        if (fill->recipe == recipe && fill->mean == d.mean && fill->std == d.std)
            return i;
    }
    struct synth_fill *grown = realloc(model->fills, (model->n_fills + 1) * sizeof(*grown));
    if (!grown)
        return UINT32_MAX;
    model->fills = grown;
    if (!synth_fill_init(&grown[model->n_fills], type, d.mean, d.std, gauss))
        return UINT32_MAX;
    return model->n_fills++;
}

/* ---- layout ---- */

static enum ps_status lay_out(struct synth_model *model, const struct type_choice *choice,
                              struct ps_error *err)
{
    const struct synth_shape *shape = &model->params.shape;
    float gauss[SYNTH_GAUSS_SIZE];
    synth_gauss_table(gauss);
    for (uint32_t i = 0; i < model->n_tensors; i++) {
        struct synth_tensor *tensor = &model->tensors[i];
        uint32_t type = choice->mix ? mixed_type(tensor, shape, choice->type) : choice->type;
        tensor->type = stays_f32(tensor) ? BLOCK_F32 : fitting_type(model, tensor, type);
        tensor->fill = find_fill(model, tensor->type, role_distribution(tensor, shape, gauss), gauss);
        if (tensor->fill == UINT32_MAX)
            return ps_error_set(err, PS_ERR_NOMEM, "out of memory for the distributions of %u tensors",
                                model->n_tensors);
        if (!gguf_type_bytes(gguf_type_find(tensor->type), tensor->dims, &tensor->bytes) ||
            __builtin_add_overflow(model->data_bytes, tensor->bytes, &model->data_bytes))
            return ps_error_set(err, PS_ERR_ARGUMENT, "%s: the model is too large for a file", tensor->name);
    }
    return PS_OK;
}

static enum ps_status take_vocabulary(struct synth_shape *shape, const struct gguf *vocab,
                                      struct ps_error *err)
{
    const struct gguf_array *tokens = gguf_get_array(vocab, "tokenizer.ggml.tokens", GGUF_STRING);
    if (!tokens || tokens->count > UINT32_MAX)
        return ps_error_set(err, PS_ERR_ARGUMENT, "%s: has no vocabulary to copy", gguf_file_path(vocab, 0));
    shape->n_vocab = (uint32_t)tokens->count;
    return PS_OK;
}

static enum ps_status init_model(struct synth_model *model, const struct synth_params *params,
                                 struct ps_error *err)
{
    const struct type_choice *choice = find_choice(params->type);
    enum ps_status status;
    if (!choice)
        return ps_error_set(err, PS_ERR_ARGUMENT, "type '%s' is not one that can be synthesized",
                            params->type ? params->type : "");
    model->params = *params;
    model->file_type = choice->file_type;
    struct synth_shape *shape = &model->params.shape;
    if ((params->vocab && (status = take_vocabulary(shape, params->vocab, err)) != PS_OK) ||
        (status = synth_shape_resolve(shape, err)) != PS_OK)
        return status;
    if (!params->name)
        model->params.name = shape->arch;
    model->n_tensors = synth_list_tensors(shape, NULL);
    model->tensors = calloc(model->n_tensors, sizeof(*model->tensors));
    if (!model->tensors)
        return ps_error_set(err, PS_ERR_NOMEM, "out of memory for %u tensors", model->n_tensors);
    synth_list_tensors(shape, model->tensors);
    return lay_out(model, choice, err);
}

enum ps_status synth_new(struct synth_model **out, const struct synth_params *params, struct ps_error *err)
{
    *out = NULL;
    struct synth_model *model = calloc(1, sizeof(*model));
    if (!model)
        return ps_error_set(err, PS_ERR_NOMEM, "out of memory");
    enum ps_status status = init_model(model, params, err);
    if (status != PS_OK) {
        synth_free(model);
        return status;
    }
    *out = model;
    return PS_OK;
}

void synth_free(struct synth_model *model)
{
    if (!model)
        return;
    for (uint32_t i = 0; i < model->n_fills; i++)
        synth_fill_deinit(&model->fills[i]);
    free(model->fills);
    free(model->tensors);
    free(model);
}

const struct synth_shape *synth_model_shape(const struct synth_model *model)
{
    return &model->params.shape;
}

uint32_t synth_model_n_tensors(const struct synth_model *model)
{
    return model->n_tensors;
}

uint64_t synth_model_n_weights(const struct synth_model *model)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < model->n_tensors; i++) {
        const struct synth_tensor *tensor = &model->tensors[i];
        n += tensor->dims[0] * tensor->dims[1] * tensor->dims[2];
    }
    return n;
}

uint64_t synth_model_data_bytes(const struct synth_model *model)
{
    return model->data_bytes;
}

const char *synth_model_note(const struct synth_model *model)
{
    return model->note;
}
