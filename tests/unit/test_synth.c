/* Synthetic models: the file is well-formed and reproducible, weights have the statistics asked for, and a forward
 * pass through them behaves like one through a trained model. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/block_format.h"
#include "kernels/vector_ops.h"
#include "runtime/synth.h"
#include "runtime/synth_blocks.h"
#include "storage/gguf_writer.h"
#include "thinned.h"

static char directory[64];
static char path[128]; /* the file that tests write */

static int make_directory(void **state)
{
    (void)state;
    snprintf(directory, sizeof(directory), "/tmp/penstock-synth-XXXXXX");
    if (!mkdtemp(directory))
        return -1;
    snprintf(path, sizeof(path), "%s/model.gguf", directory);
    return 0;
}

static int remove_file(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

/* Fails when a test left a file behind. */
static int remove_directory(void **state)
{
    (void)state;
    return rmdir(directory);
}

static struct synth_shape small_shape(const char *arch)
{
    struct synth_shape shape;
    assert_true(synth_arch_shape(arch, &shape));
    shape.n_layers = 3;
    shape.n_embd = 128;
    shape.n_vocab = 192;
    shape.n_ctx = 4096;
    shape.n_heads = 4;
    shape.n_kv_heads = 2;
    shape.head_dim = 0;
    shape.n_ff = 0;
    shape.n_experts = 8;
    shape.n_top_k = 2;
    shape.n_ff_expert = 32;
    shape.n_ff_shared = shape.n_ff_shared ? 64 : 0;
    return shape;
}

static void write_or_fail(const struct synth_params *params, uint32_t threads)
{
    struct ps_error err;
    struct synth_model *model;
    struct synth_write_params write = {.path = path, .overwrite = true, .threads = threads};
    if (synth_new(&model, params, &err) != PS_OK || synth_write(model, &write, &err) != PS_OK)
        fail_msg("%s", err.message);
    synth_free(model);
}

static uint8_t *read_file(const char *name, size_t *size)
{
    FILE *file = fopen(name, "rb");
    assert_non_null(file);
    struct stat st;
    assert_int_equal(fstat(fileno(file), &st), 0);
    *size = (size_t)st.st_size;
    uint8_t *data = malloc(*size);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *size, file), *size);
    fclose(file);
    return data;
}

/* ---- the file ---- */

static void same_seed_gives_the_same_file_for_any_thread_count(void **state)
{
    (void)state;
    struct synth_params params = {.type = "q4_K_M", .seed = 7};
    assert_true(synth_preset_shape("tiny", &params.shape));
    size_t size[3];
    uint8_t *file[3];
    static const uint32_t threads[] = {1, 5, 2};
    for (unsigned i = 0; i < 3; i++) {
        params.seed = i == 2 ? 8 : 7;
        write_or_fail(&params, threads[i]);
        file[i] = read_file(path, &size[i]);
    }
    assert_int_equal(size[0], size[1]);
    assert_memory_equal(file[0], file[1], size[0]);
    assert_int_equal(size[0], size[2]);
    assert_memory_not_equal(file[0], file[2], size[0]);
    for (unsigned i = 0; i < 3; i++)
        free(file[i]);
}

/* Sum over the tensors of a file; every one must lie in it. */
static uint64_t count_weights(const struct gguf *gguf)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < gguf_n_tensors(gguf); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, i);
        n += tensor->dims[0] * tensor->dims[1] * tensor->dims[2] * tensor->dims[3];
    }
    return n;
}

static void every_arch_in_every_type_reads_back(void **state)
{
    (void)state;
    const char *arch, *type;
    for (uint32_t a = 0; (arch = synth_arch_at(a)); a++) {
        for (uint32_t t = 0; (type = synth_type_at(t)); t++) {
            struct synth_params params = {.shape = small_shape(arch), .type = type, .name = "a name"};
            struct ps_error err;
            struct synth_model *model;
            struct gguf *gguf;
            write_or_fail(&params, 2);
            assert_int_equal(synth_new(&model, &params, &err), PS_OK);
            if (gguf_open(&gguf, path, &err) != PS_OK)
                fail_msg("%s %s: %s", arch, type, err.message);
            struct gguf_string text;
            assert_true(gguf_get_string(gguf, "general.architecture", &text));
            assert_int_equal(text.length, strlen(arch));
            assert_memory_equal(text.data, arch, text.length);
            assert_int_equal(gguf_n_tensors(gguf), synth_model_n_tensors(model));
            assert_true(count_weights(gguf) == synth_model_n_weights(model));
            gguf_free(gguf);
            synth_free(model);
        }
    }
}

static bool is_computed_key(const struct gguf_kv *kv)
{
    static const char general[] = "general.";
    return strncmp(kv->key.data, general, sizeof(general) - 1) != 0;
}

/* keys of a, but general.*, stand in b with the same type and number */
static void assert_keys_in(const struct gguf *a, const struct gguf *b)
{
    for (uint64_t i = 0; i < gguf_n_kv(a); i++) {
        const struct gguf_kv *kv = gguf_kv_at(a, i);
        char key[128];
        if (!is_computed_key(kv))
            continue;
        snprintf(key, sizeof(key), "%.*s", (int)kv->key.length, kv->key.data);
        const struct gguf_value *other = gguf_find(b, key);
        if (!other || other->type != kv->value.type)
            fail_msg("%s is missing or of another type", key);
        if (kv->value.type == GGUF_UINT32 && kv->value.u != other->u)
            fail_msg("%s: %llu, not %llu", key, (unsigned long long)kv->value.u,
                     (unsigned long long)other->u);
        if (kv->value.type == GGUF_FLOAT32 && kv->value.f != other->f)
            fail_msg("%s: %g, not %g", key, kv->value.f, other->f);
    }
}

/* The golden models load in llama.cpp, so the same names, shapes, order and keys do. */
static void files_have_the_structure_of_golden_models(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t n_kv_heads, head_dim, n_ff, n_experts, n_top_k;
        float norm_eps, rope_base;
    } cases[] = {
        {"llama", 2, 32, 0, 8, 2, 1e-5f, 1e6f},
        {"olmoe", 4, 32, 0, 12, 4, 1e-5f, 1e4f},
        {"qwen2moe", 2, 32, 128, 8, 3, 1e-6f, 1e6f},
        {"qwen3moe", 2, 48, 128, 8, 2, 1e-6f, 1e6f},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct ps_error err;
        struct gguf *golden, *ours;
        char name[512];
        snprintf(name, sizeof(name), "%s/golden/base/%s.gguf", TEST_SHARED_DIR, cases[i].name);
        if (access(name, R_OK) != 0) {
            print_message("skipped: %s is not there\n", name);
            skip();
        }
        assert_int_equal(gguf_open(&golden, name, &err), PS_OK);
        struct synth_params params = {.shape = small_shape(cases[i].name), .type = "f16"};
        params.shape.n_kv_heads = cases[i].n_kv_heads;
        params.shape.head_dim = cases[i].head_dim;
        params.shape.n_ff = cases[i].n_ff;
        params.shape.n_experts = cases[i].n_experts;
        params.shape.n_top_k = cases[i].n_top_k;
        params.shape.norm_eps = cases[i].norm_eps;
        params.shape.rope_base = cases[i].rope_base;
        write_or_fail(&params, 0);
        assert_int_equal(gguf_open(&ours, path, &err), PS_OK);
        assert_int_equal(gguf_n_tensors(ours), gguf_n_tensors(golden));
        for (uint32_t t = 0; t < gguf_n_tensors(golden); t++) {
            const struct gguf_tensor *a = gguf_tensor_at(golden, t), *b = gguf_tensor_at(ours, t);
            assert_string_equal(b->name, a->name);
            assert_memory_equal(b->dims, a->dims, sizeof(a->dims));
            assert_int_equal(b->type, a->type);
        }
        assert_keys_in(golden, ours);
        assert_keys_in(ours, golden);
        gguf_free(golden);
        gguf_free(ours);
    }
}

static void presets_have_the_public_parameter_counts(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double billions; /* as their authors give them */
    } cases[] = {{"qwen3-30b-a3b", 30.5},  {"qwen3-235b-a22b", 235}, {"mixtral-8x7b", 46.7},
                 {"mixtral-8x22b", 140.6}, {"olmoe-1b-7b", 6.92},    {"qwen1.5-moe-a2.7b", 14.3},
                 {"qwen2-57b-a14b", 57.4}, {"llama-3.1-8b", 8.03}};
    uint32_t n_presets = 0;
    while (synth_preset_at(n_presets))
        n_presets++;
    assert_int_equal(n_presets, sizeof(cases) / sizeof(cases[0]) + 1); /* and "tiny" */
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct synth_params params = {.type = "q4_K"};
        struct synth_model *model;
        struct ps_error err;
        assert_true(synth_preset_shape(cases[i].name, &params.shape));
        if (synth_new(&model, &params, &err) != PS_OK)
            fail_msg("%s: %s", cases[i].name, err.message);
        double billions = (double)synth_model_n_weights(model) / 1e9;
        if (fabs(billions / cases[i].billions - 1) > 0.005)
            fail_msg("%s: %.2f billion weights", cases[i].name, billions);
        synth_free(model);
    }
}

static void llama_without_experts_is_dense(void **state)
{
    (void)state;
    struct synth_params params = {.shape = small_shape("llama"), .type = "q8_0"};
    struct ps_error err;
    struct gguf *gguf;
    params.shape.n_experts = 0;
    write_or_fail(&params, 0);
    assert_int_equal(gguf_open(&gguf, path, &err), PS_OK);
    assert_null(gguf_find(gguf, "llama.expert_count"));
    assert_null(gguf_tensor_find(gguf, "blk.0.ffn_gate_inp.weight"));
    assert_int_equal(gguf_tensor_find(gguf, "blk.2.ffn_down.weight")->dims[0], 32);
    gguf_free(gguf);
}

static void rows_that_do_not_divide_get_smaller_blocks_and_a_note(void **state)
{
    (void)state;
    struct synth_params params = {.type = "q4_K"};
    struct ps_error err;
    struct synth_model *model;
    struct gguf *gguf;
    assert_true(synth_preset_shape("tiny", &params.shape));
    assert_int_equal(synth_new(&model, &params, &err), PS_OK);
    assert_string_equal(synth_model_note(model), "");
    synth_free(model);
    params.shape.n_ff_expert = 160;
    assert_int_equal(synth_new(&model, &params, &err), PS_OK);
    assert_string_equal(synth_model_note(model),
                        "ffn_down_exps.weight: rows of 160 do not divide into q4_K blocks of 256: "
                        "q8_0 instead");
    synth_free(model);
    write_or_fail(&params, 0);
    assert_int_equal(gguf_open(&gguf, path, &err), PS_OK);
    assert_int_equal(gguf_tensor_find(gguf, "blk.1.ffn_down_exps.weight")->type, BLOCK_Q8_0);
    assert_int_equal(gguf_tensor_find(gguf, "blk.1.ffn_up_exps.weight")->type, BLOCK_Q4_K);
    gguf_free(gguf);
}

static void mix_spends_bits_as_llama_quantize_does(void **state)
{
    (void)state;
    struct synth_params params = {.type = "q4_K_M"};
    struct ps_error err;
    struct gguf *gguf;
    assert_true(synth_preset_shape("tiny", &params.shape));
    params.shape.n_layers = 16;
    params.shape.n_experts = 4;
    write_or_fail(&params, 0);
    assert_int_equal(gguf_open(&gguf, path, &err), PS_OK);
    uint32_t n_more = 0;
    for (uint32_t layer = 0; layer < 16; layer++) {
        char v[64], down[64];
        snprintf(v, sizeof(v), "blk.%u.attn_v.weight", layer);
        snprintf(down, sizeof(down), "blk.%u.ffn_down_exps.weight", layer);
        uint32_t type = gguf_tensor_find(gguf, v)->type;
        assert_true(type == BLOCK_Q6_K || type == BLOCK_Q4_K);
        assert_int_equal(gguf_tensor_find(gguf, down)->type, type);
        n_more += type == BLOCK_Q6_K;
    }
    assert_int_equal(n_more, 8); /* layers 0, 1, 14, 15 and 4, 7, 10, 13 */
    assert_int_equal(gguf_tensor_find(gguf, "output.weight")->type, BLOCK_Q6_K);
    assert_int_equal(gguf_tensor_find(gguf, "token_embd.weight")->type, BLOCK_Q4_K);
    gguf_free(gguf);
}

static void vocabulary_is_copied_with_its_size(void **state)
{
    (void)state;
    static const char *const tokens[] = {"<s>", "a", "", "\n"};
    static const int32_t types[] = {3, 1, 1, 1};
    char vocab_path[128];
    struct ps_error err;
    struct gguf_writer *writer;
    struct gguf *vocab, *gguf;
    snprintf(vocab_path, sizeof(vocab_path), "%s/vocab.gguf", directory);
    assert_int_equal(gguf_writer_new(&writer, vocab_path, 0, &err), PS_OK);
    gguf_writer_set_string(writer, "general.architecture", "other");
    gguf_writer_set_string(writer, "tokenizer.ggml.model", "gpt2");
    gguf_writer_set_strings(writer, "tokenizer.ggml.tokens", tokens, 4);
    gguf_writer_set_array(writer, "tokenizer.ggml.token_type", GGUF_INT32, types, 4);
    gguf_writer_set_u32(writer, "tokenizer.ggml.bos_token_id", 0);
    assert_int_equal(gguf_writer_begin_data(writer, &err), PS_OK);
    assert_int_equal(gguf_writer_finish(writer, &err), PS_OK);
    gguf_writer_free(writer);

    assert_int_equal(gguf_open(&vocab, vocab_path, &err), PS_OK);
    struct synth_params params = {.shape = small_shape("qwen3moe"), .type = "f16", .vocab = vocab};
    write_or_fail(&params, 0);
    assert_int_equal(gguf_open(&gguf, path, &err), PS_OK);
    const struct gguf_array *copy = gguf_get_array(gguf, "tokenizer.ggml.tokens", GGUF_STRING);
    assert_non_null(copy);
    struct gguf_string strings[4];
    assert_int_equal(copy->count, 4);
    gguf_array_strings(copy, strings);
    assert_int_equal(strings[3].length, 1);
    assert_memory_equal(strings[3].data, "\n", 1);
    assert_non_null(gguf_get_array(gguf, "tokenizer.ggml.token_type", GGUF_INT32));
    uint64_t n_vocab, bos;
    assert_true(gguf_get_u64(gguf, "qwen3moe.vocab_size", &n_vocab));
    assert_true(gguf_get_u64(gguf, "tokenizer.ggml.bos_token_id", &bos));
    assert_int_equal(n_vocab, 4);
    assert_int_equal(bos, 0);
    assert_int_equal(gguf_tensor_find(gguf, "token_embd.weight")->dims[1], 4);
    gguf_free(gguf);
    gguf_free(vocab);

    /* A file without tokens is no vocabulary. */
    params.vocab = NULL;
    write_or_fail(&params, 0);
    assert_int_equal(gguf_open(&vocab, path, &err), PS_OK);
    params.vocab = vocab;
    struct synth_model *model;
    assert_int_equal(synth_new(&model, &params, &err), PS_ERR_ARGUMENT);
    assert_null(model);
    gguf_free(vocab);
    unlink(vocab_path);
}

static void shapes_that_cannot_be_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *arch;
        size_t offset;
        uint32_t value;
        const char *message;
    } cases[] = {
        {"qwen3moe", offsetof(struct synth_shape, n_layers), 0, "layers: 0 is out of range: use 1 to 512"},
        {"qwen3moe", offsetof(struct synth_shape, n_layers), 9999,
         "layers: 9999 is out of range: use 1 to 512"},
        {"qwen3moe", offsetof(struct synth_shape, n_kv_heads), 3, "kv-heads: 3 does not divide 4 heads"},
        {"qwen3moe", offsetof(struct synth_shape, n_kv_heads), 0,
         "kv-heads: 0 is out of range: use 1 to 1024"},
        {"qwen3moe", offsetof(struct synth_shape, n_heads), 0, "heads: 0 is out of range: use 1 to 1024"},
        {"qwen3moe", offsetof(struct synth_shape, head_dim), 33,
         "head-dim: 33 is odd, which rotary embedding cannot be"},
        {"qwen3moe", offsetof(struct synth_shape, n_top_k), 9, "top-k: 9 is more than 8 experts"},
        {"qwen3moe", offsetof(struct synth_shape, n_experts), 0,
         "experts: 0, but qwen3moe has no dense form: use llama"},
        {"qwen3moe", offsetof(struct synth_shape, n_ff_shared), 64,
         "shared-ff: 64, but this qwen3moe model has none"},
        {"qwen2moe", offsetof(struct synth_shape, n_ff_shared), 0,
         "shared-ff: 0 is out of range: use 32 to 1048576"},
        {"olmoe", offsetof(struct synth_shape, head_dim), 64,
         "heads: 4 of 64 are not the 128 that embd is, as olmoe requires"},
        {"llama", offsetof(struct synth_shape, n_ff), 64,
         "ff: 64 is not expert-ff 32, and llama has one width for both"},
    };
    struct ps_error err;
    struct synth_model *model;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct synth_params params = {.shape = small_shape(cases[i].arch), .type = "f16"};
        memcpy((char *)&params.shape + cases[i].offset, &cases[i].value, sizeof(uint32_t));
        assert_int_equal(synth_new(&model, &params, &err), PS_ERR_ARGUMENT);
        assert_null(model);
        assert_string_equal(err.message, cases[i].message);
    }
    struct synth_params params = {.shape = small_shape("llama"), .type = "q9_Z"};
    assert_int_equal(synth_new(&model, &params, &err), PS_ERR_ARGUMENT);
    params.type = "f16";
    params.shape.arch = "gpt17";
    assert_int_equal(synth_new(&model, &params, &err), PS_ERR_UNSUPPORTED);
}

/* ---- failures ---- */

static void existing_file_is_kept_unless_asked(void **state)
{
    (void)state;
    struct synth_params params = {.shape = small_shape("llama"), .type = "f16"};
    struct synth_write_params write = {.path = path};
    struct ps_error err;
    struct synth_model *model;
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("precious", file);
    fclose(file);
    assert_int_equal(synth_new(&model, &params, &err), PS_OK);
    assert_int_equal(synth_write(model, &write, &err), PS_ERR_ARGUMENT);
    size_t size;
    uint8_t *data = read_file(path, &size);
    assert_int_equal(size, 8);
    free(data);
    write.path = directory;
    write.overwrite = true;
    assert_int_equal(synth_write(model, &write, &err), PS_ERR_ARGUMENT);
    write.path = "/nonexistent/model.gguf";
    assert_int_equal(synth_write(model, &write, &err), PS_ERR_IO);
    synth_free(model);
}

static bool stop_half_way(void *ctx, uint64_t done, uint64_t total)
{
    (void)ctx;
    return done < total / 2;
}

static void interrupted_write_leaves_nothing(void **state)
{
    (void)state;
    struct synth_params params = {.type = "f32"};
    struct synth_write_params write = {.path = path, .progress = stop_half_way};
    struct ps_error err;
    struct synth_model *model;
    assert_true(synth_preset_shape("tiny", &params.shape));
    assert_int_equal(synth_new(&model, &params, &err), PS_OK);
    for (uint32_t threads = 1; threads <= 4; threads += 3) {
        write.threads = threads;
        assert_int_equal(synth_write(model, &write, &err), PS_ERR_CANCELLED);
        assert_int_not_equal(access(path, F_OK), 0); /* and the directory can be removed at the end */
    }
    synth_free(model);
}

static void file_that_does_not_fit_is_an_error(void **state)
{
    (void)state;
    struct synth_params params = {.type = "f32"};
    struct synth_write_params write = {.path = path};
    struct ps_error err;
    struct synth_model *model;
    struct rlimit old, small = {1 << 20, 1 << 20};
    assert_true(synth_preset_shape("tiny", &params.shape));
    assert_int_equal(synth_new(&model, &params, &err), PS_OK);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small.rlim_max = old.rlim_max;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    enum ps_status status = synth_write(model, &write, &err);
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, handler);
    assert_int_equal(status, PS_ERR_IO);
    assert_int_not_equal(access(path, F_OK), 0);
    synth_free(model);
}

/* ---- weights ---- */

struct moments {
    double mean, std;
};

static struct moments moments_of(const float *x, size_t n)
{
    double sum = 0, square = 0;
    for (size_t i = 0; i < n; i++) {
        sum += x[i];
        square += (double)x[i] * x[i];
    }
    double mean = sum / (double)n;
    return (struct moments){mean, sqrt(square / (double)n - mean * mean)};
}

/* Many units of one type and distribution, as floats. */
static float *draw(uint32_t type, float mean, float std, uint32_t n_units, size_t *n)
{
    static float gauss[SYNTH_GAUSS_SIZE];
    struct synth_fill fill;
    const struct block_format *format = block_format_find(type);
    synth_gauss_table(gauss);
    assert_true(synth_fill_init(&fill, type, mean, std, gauss));
    size_t bytes = synth_unit_bytes(fill.recipe);
    size_t values = bytes / format->bytes * format->values;
    uint8_t *blocks = malloc(bytes);
    float *out = malloc(n_units * values * sizeof(*out));
    assert_non_null(blocks);
    assert_non_null(out);
    for (uint32_t unit = 0; unit < n_units; unit++) {
        synth_fill_unit(&fill, 3, 5, unit, blocks, bytes);
        format->dequantize(blocks, out + unit * values, values);
    }
    *n = n_units * values;
    synth_fill_deinit(&fill);
    free(blocks);
    return out;
}

static void dequantized_weights_have_the_statistics_asked_for(void **state)
{
    (void)state;
    static const float stds[] = {0.002f, 0.0221f, 0.3f, 1.0f};
    uint32_t type;
    for (uint32_t i = 0; (type = synth_recipe_at(i)) != UINT32_MAX; i++) {
        assert_non_null(block_format_find(type));
        for (size_t s = 0; s < THINNED(sizeof(stds) / sizeof(stds[0]), 1); s++) {
            size_t n;
            float *values = draw(type, 0, stds[s], 16, &n);
            struct moments m = moments_of(values, n);
            free(values);
            if (fabs(m.mean) > 0.02 * stds[s] || fabs(m.std / stds[s] - 1) > 0.02)
                fail_msg("%s: mean %g, std %g for %g", gguf_type_find(type)->name, m.mean, m.std,
                         (double)stds[s]);
        }
    }
    size_t n;
    float *values = draw(BLOCK_F32, 1, 0.1f, 4, &n);
    struct moments m = moments_of(values, n);
    assert_true(fabs(m.mean - 1) < 0.002 && fabs(m.std - 0.1) < 0.002);
    free(values);
}

static void units_are_distinct_and_begin_alike_when_cut(void **state)
{
    (void)state;
    float gauss[SYNTH_GAUSS_SIZE];
    struct synth_fill fill;
    synth_gauss_table(gauss);
    assert_true(synth_fill_init(&fill, BLOCK_Q4_K, 0, 1, gauss));
    size_t bytes = synth_unit_bytes(fill.recipe), cut = 144 * 7;
    uint8_t *a = malloc(bytes), *b = malloc(bytes);
    assert_non_null(a);
    assert_non_null(b);
    synth_fill_unit(&fill, 1, 2, 3, a, bytes);
    synth_fill_unit(&fill, 1, 2, 3, b, cut);
    assert_memory_equal(a, b, cut);
    static const struct {
        uint64_t seed;
        uint32_t tensor;
        uint64_t unit;
    } others[] = {{2, 2, 3}, {1, 3, 3}, {1, 2, 4}, {1, 3, 2}, {2, 1, 3}, {3, 2, 1}};
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        synth_fill_unit(&fill, others[i].seed, others[i].tensor, others[i].unit, b, bytes);
        assert_memory_not_equal(a, b, 64);
    }
    free(a);
    free(b);
}

/* ---- behaviour ---- */

enum {
    EMBD = 128,
    HEAD = 32,
    HEADS = 4,
    FF = 64,
    EXPERTS = 32,
    TOP = 4,
    VOCAB = 256,
    LAYERS = 12,
    TOKENS = 32
};

struct loaded {
    uint8_t *file;
    struct gguf *gguf;
};

static const float *weights(const struct loaded *loaded, int layer, const char *name)
{
    char full[64];
    if (layer < 0)
        snprintf(full, sizeof(full), "%s", name);
    else
        snprintf(full, sizeof(full), "blk.%d.%s", layer, name);
    const struct gguf_tensor *tensor = gguf_tensor_find(loaded->gguf, full);
    assert_non_null(tensor);
    return (const float *)(const void *)(loaded->file + tensor->offset);
}

static void product(float *out, const float *w, const float *x, int rows, int cols)
{
    for (int r = 0; r < rows; r++) {
        out[r] = 0;
        for (int c = 0; c < cols; c++)
            out[r] += w[r * cols + c] * x[c];
    }
}

static void norm(float *out, const float *x, const float *w)
{
    vector_ops_get(CPU_SCALAR)->rms_norm(out, x, w, EMBD, 1e-5f);
}

/* Attention without positions, which do not change the scale of anything. */
static void attend(const struct loaded *l, int layer, float (*h)[EMBD])
{
    static float q[TOKENS][EMBD], k[TOKENS][EMBD], v[TOKENS][EMBD];
    for (int t = 0; t < TOKENS; t++) {
        float x[EMBD], mixed[EMBD] = {0}, out[EMBD];
        norm(x, h[t], weights(l, layer, "attn_norm.weight"));
        product(q[t], weights(l, layer, "attn_q.weight"), x, EMBD, EMBD);
        product(k[t], weights(l, layer, "attn_k.weight"), x, EMBD, EMBD);
        product(v[t], weights(l, layer, "attn_v.weight"), x, EMBD, EMBD);
        for (int head = 0; head < HEADS; head++) {
            float score[TOKENS];
            for (int s = 0; s <= t; s++) {
                product(&score[s], &k[s][head * HEAD], &q[t][head * HEAD], 1, HEAD);
                score[s] /= sqrtf(HEAD);
            }
            vector_ops_get(CPU_SCALAR)->softmax(score, score, (size_t)t + 1);
            for (int s = 0; s <= t; s++)
                for (int i = 0; i < HEAD; i++)
                    mixed[head * HEAD + i] += score[s] * v[s][head * HEAD + i];
        }
        product(out, weights(l, layer, "attn_output.weight"), mixed, EMBD, EMBD);
        for (int i = 0; i < EMBD; i++)
            h[t][i] += out[i];
    }
}

/* Fills ids with the experts chosen; returns the standard deviation of the router's logits. */
static double route(const struct loaded *l, int layer, float *h, uint32_t ids[TOP])
{
    float x[EMBD], logits[EXPERTS], chosen[TOP], branch[EMBD] = {0};
    norm(x, h, weights(l, layer, "ffn_norm.weight"));
    product(logits, weights(l, layer, "ffn_gate_inp.weight"), x, EXPERTS, EMBD);
    top_k(ids, TOP, logits, EXPERTS);
    for (int i = 0; i < TOP; i++)
        chosen[i] = logits[ids[i]];
    vector_ops_get(CPU_SCALAR)->softmax(chosen, chosen, TOP);
    for (int i = 0; i < TOP; i++) {
        size_t at = (size_t)ids[i] * EMBD * FF;
        float gate[FF], up[FF], down[EMBD];
        product(gate, weights(l, layer, "ffn_gate_exps.weight") + at, x, FF, EMBD);
        product(up, weights(l, layer, "ffn_up_exps.weight") + at, x, FF, EMBD);
        vector_ops_get(CPU_SCALAR)->swiglu(gate, gate, up, FF);
        product(down, weights(l, layer, "ffn_down_exps.weight") + at, gate, EMBD, FF);
        for (int j = 0; j < EMBD; j++)
            branch[j] += chosen[i] * down[j];
    }
    for (int j = 0; j < EMBD; j++)
        h[j] += branch[j];
    return moments_of(logits, EXPERTS).std;
}

static void forward_pass_keeps_its_scale_and_routing_varies(void **state)
{
    (void)state;
    struct synth_params params = {.shape = small_shape("llama"), .type = "f32", .seed = 11};
    params.shape.n_layers = LAYERS;
    params.shape.n_kv_heads = HEADS;
    params.shape.n_experts = EXPERTS;
    params.shape.n_top_k = TOP;
    params.shape.n_ff_expert = FF;
    params.shape.n_vocab = VOCAB;
    struct loaded l;
    struct ps_error err;
    size_t size;
    static float h[TOKENS][EMBD];
    write_or_fail(&params, 0);
    l.file = read_file(path, &size);
    assert_int_equal(gguf_open(&l.gguf, path, &err), PS_OK);
    for (int t = 0; t < TOKENS; t++)
        memcpy(h[t], weights(&l, -1, "token_embd.weight") + (t * 7 % VOCAB) * EMBD, sizeof(h[t]));
    double router_std = 0, used = 0, kept = 0;
    uint32_t last[TOKENS][TOP] = {{0}};
    for (int layer = 0; layer < LAYERS; layer++) {
        bool hit[EXPERTS] = {false};
        attend(&l, layer, h);
        for (int t = 0; t < TOKENS; t++) {
            uint32_t ids[TOP];
            router_std += route(&l, layer, h[t], ids) / (LAYERS * TOKENS);
            for (int i = 0; i < TOP; i++) {
                hit[ids[i]] = true;
                for (int j = 0; layer > 0 && j < TOP; j++)
                    kept += ids[i] == last[t][j];
            }
            memcpy(last[t], ids, sizeof(ids));
        }
        for (int e = 0; e < EXPERTS; e++)
            used += (double)hit[e] / (EXPERTS * LAYERS);
    }
    double residual = moments_of(h[0], TOKENS * EMBD).std;
    static float logits[TOKENS][VOCAB];
    for (int t = 0; t < TOKENS; t++) {
        float x[EMBD];
        norm(x, h[t], weights(&l, -1, "output_norm.weight"));
        product(logits[t], weights(&l, -1, "output.weight"), x, VOCAB, EMBD);
    }
    double logit_std = moments_of(logits[0], TOKENS * VOCAB).std;
    kept /= (LAYERS - 1) * TOKENS * TOP;
    print_message(
        "residual %.2f, logits %.2f, router logits %.2f, experts used by %d tokens %.2f, same as the layer "
        "before %.2f\n",
        residual, logit_std, router_std, TOKENS, used, kept);
    assert_true(residual > 1.3 && residual < 2.5);
    assert_true(logit_std > 1.7 && logit_std < 2.3);
    assert_true(router_std > 1.2 && router_std < 1.8);
    assert_true(used > 0.9);                 /* tokens differ: one set of experts would be 0.125 */
    assert_true(kept < 2.0 * TOP / EXPERTS); /* layers differ: chance is 0.125 */
    gguf_free(l.gguf);
    free(l.file);
}

int main(void)
{
#define FILE_TEST(test) cmocka_unit_test_teardown(test, remove_file)
    const struct CMUnitTest tests[] = {
        FILE_TEST(same_seed_gives_the_same_file_for_any_thread_count),
        FILE_TEST(every_arch_in_every_type_reads_back),
        FILE_TEST(files_have_the_structure_of_golden_models),
        cmocka_unit_test(presets_have_the_public_parameter_counts),
        FILE_TEST(llama_without_experts_is_dense),
        FILE_TEST(rows_that_do_not_divide_get_smaller_blocks_and_a_note),
        FILE_TEST(mix_spends_bits_as_llama_quantize_does),
        FILE_TEST(vocabulary_is_copied_with_its_size),
        cmocka_unit_test(shapes_that_cannot_be_are_refused_by_name),
        FILE_TEST(existing_file_is_kept_unless_asked),
        FILE_TEST(interrupted_write_leaves_nothing),
        FILE_TEST(file_that_does_not_fit_is_an_error),
        cmocka_unit_test(dequantized_weights_have_the_statistics_asked_for),
        cmocka_unit_test(units_are_distinct_and_begin_alike_when_cut),
        FILE_TEST(forward_pass_keeps_its_scale_and_routing_varies),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
