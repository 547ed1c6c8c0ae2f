/* Measures llama.cpp v0.5.0 through its C library: given tokens, given threads, no sampling; or has it compute logits.
 *
 * Usage: llama-cpp LIBRARY_FOLDER MODEL TOKENS_FILE PREFILL DECODE THREADS REPEAT on|off > JSON   (contract: ../README.md)
 *        llama-cpp LIBRARY_FOLDER MODEL TOKENS_FILE N > FLOATS
 * on, its default: weights are repacked at load. FLOATS: logits [N][vocabulary] of the first N tokens as one batch, with K, V
 * and recurrent state in F32, without flash attention and repacking: the arithmetic to compare with.
 * The library is opened at run time, so this needs nothing of llama.cpp to be compiled. The declarations below are what is
 * used of include/llama.h and ggml/include/ggml-backend.h of v0.5.0; structs go by value, so they must have its sizes. */
#include <dlfcn.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct llama_model_params {
    void *devices;
    const void *tensor_buft_overrides;
    int32_t n_gpu_layers;
    int32_t split_mode;
    int32_t load_mode;
    int32_t lazy_mode;
    int32_t main_gpu;
    const float *tensor_split;
    void *progress_callback;
    void *progress_callback_user_data;
    const void *kv_overrides;
    bool vocab_only;
    bool check_tensors;
    bool use_extra_bufts; /* repacking */
    bool no_host;
    bool no_alloc;
    bool load_mtp;
};

struct llama_context_params {
    uint32_t n_ctx, n_batch, n_ubatch, n_seq_max, n_rs_seq, n_outputs_max, n_outputs_max_per_seq;
    int32_t n_threads, n_threads_batch;
    int32_t ctx_type, rope_scaling_type, pooling_type, attention_type, flash_attn_type;
    float rope_freq_base, rope_freq_scale, yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow;
    uint32_t yarn_orig_ctx;
    float defrag_thold;
    void *cb_eval, *cb_eval_user_data;
    int32_t type_k, type_v;
    void *abort_callback, *abort_callback_data;
    bool embeddings, offload_kqv, no_perf, op_offload, swa_full, kv_unified;
    void *samplers;
    size_t n_samplers;
    void *ctx_other;
};

struct llama_batch {
    int32_t n_tokens;
    int32_t *token;
    float *embd;
    int32_t *pos;
    int32_t *n_seq_id;
    int32_t **seq_id;
    int8_t *logits;
};

static struct {
    void (*ggml_backend_load_all_from_path)(const char *folder);
    void (*llama_log_set)(void (*log)(int level, const char *text, void *ctx), void *ctx);
    void (*llama_backend_init)(void);
    struct llama_model_params (*llama_model_default_params)(void);
    void *(*llama_model_load_from_file)(const char *path, struct llama_model_params params);
    struct llama_context_params (*llama_context_default_params)(void);
    void *(*llama_init_from_model)(void *model, struct llama_context_params params);
    struct llama_batch (*llama_batch_get_one)(int32_t *tokens, int32_t n);
    int32_t (*llama_decode)(void *context, struct llama_batch batch);
    float *(*llama_get_logits_ith)(void *context, int32_t i);
    void *(*llama_get_memory)(const void *context);
    void (*llama_memory_clear)(void *memory, bool data);
    const void *(*llama_model_get_vocab)(const void *model);
    int32_t (*llama_vocab_n_tokens)(const void *vocab);
    void (*llama_free)(void *context);
    void (*llama_model_free)(void *model);
} api;

static const struct {
    const char *name;
    void *target; /* a function pointer */
} symbols[] = {
    {"ggml_backend_load_all_from_path", &api.ggml_backend_load_all_from_path},
    {"llama_log_set", &api.llama_log_set},
    {"llama_backend_init", &api.llama_backend_init},
    {"llama_model_default_params", &api.llama_model_default_params},
    {"llama_model_load_from_file", &api.llama_model_load_from_file},
    {"llama_context_default_params", &api.llama_context_default_params},
    {"llama_init_from_model", &api.llama_init_from_model},
    {"llama_batch_get_one", &api.llama_batch_get_one},
    {"llama_decode", &api.llama_decode},
    {"llama_get_logits_ith", &api.llama_get_logits_ith},
    {"llama_get_memory", &api.llama_get_memory},
    {"llama_memory_clear", &api.llama_memory_clear},
    {"llama_model_get_vocab", &api.llama_model_get_vocab},
    {"llama_vocab_n_tokens", &api.llama_vocab_n_tokens},
    {"llama_free", &api.llama_free},
    {"llama_model_free", &api.llama_model_free},
};

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "llama-cpp: %s: %s\n", what, why);
    exit(1);
}

static void open_library(const char *folder)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/libllama.v0.5.0.so", folder);
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!library)
        die("dlopen", dlerror());
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        void *symbol = dlsym(library, symbols[i].name); /* those of its dependencies, too */
        if (!symbol)
            die(symbols[i].name, "not in the library");
        memcpy(symbols[i].target, &symbol, sizeof(symbol));
    }
}

/* What the log says of the CPU backend and of the buffers that weights stand in: are they repacked? */
static struct {
    char cpu[64];       /* variant of the CPU backend that it chose */
    double repacked_mb; /* of CPU_REPACK buffers */
} seen;

static void on_log(int level, const char *text, void *ctx)
{
    static bool shown;
    const char *at = strstr(text, "CPU_REPACK model buffer size =");
    (void)ctx;
    if (at)
        seen.repacked_mb += strtod(strchr(at, '=') + 1, NULL);
    if ((at = strstr(text, "libggml-cpu-")) != NULL && !seen.cpu[0])
        snprintf(seen.cpu, sizeof(seen.cpu), "%.*s", (int)strcspn(at + 12, "."), at + 12);
    enum { WARN = 3, ERROR = 4, CONTINUES = 5 };
    shown = level == CONTINUES ? shown : level == WARN || level == ERROR;
    if (shown || getenv("PEER_VERBOSE"))
        fputs(text, stderr);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int32_t *read_tokens(const char *path, int32_t n)
{
    FILE *file = fopen(path, "r");
    int32_t *tokens = calloc((size_t)n, sizeof(*tokens));
    if (!file || !tokens)
        die(path, "cannot read");
    for (int32_t i = 0; i < n; i++) {
        if (fscanf(file, " %d%*[, ]", &tokens[i]) < 1)
            die(path, "too few token ids");
    }
    fclose(file);
    return tokens;
}

/* Tokens/s of n tokens from an empty context, `step` at a time; logits are made for the last of each step. */
static double measure(void *context, int32_t *tokens, int32_t n, int32_t step)
{
    api.llama_memory_clear(api.llama_get_memory(context), true);
    double start = now();
    for (int32_t i = 0; i < n; i += step) {
        int32_t count = n - i < step ? n - i : step;
        if (api.llama_decode(context, api.llama_batch_get_one(tokens + i, count)) != 0)
            die("llama_decode", "failed");
        if (!api.llama_get_logits_ith(context, -1)) /* waits for them */
            die("llama_get_logits_ith", "no logits");
    }
    return n / (now() - start);
}

static void print_runs(const char *key, const double *runs, int n)
{
    printf("\"%s\": [", key);
    for (int i = 0; i < n; i++)
        printf("%s%.4f", i ? ", " : "", runs[i]);
    printf("]");
}

static void *load_model(const char *library, const char *path, bool repack)
{
    open_library(library);
    api.llama_log_set(on_log, NULL);
    api.ggml_backend_load_all_from_path(library);
    api.llama_backend_init();
    struct llama_model_params params = api.llama_model_default_params();
    params.use_extra_bufts = repack;
    void *model = api.llama_model_load_from_file(path, params);
    if (!model)
        die(path, "llama.cpp cannot load it");
    return model;
}

static struct llama_context_params context_params(int32_t n_ctx, int32_t threads)
{
    struct llama_context_params params = api.llama_context_default_params();
    if (params.n_batch != 2048 || params.n_ubatch != 512 || params.type_k != 1 || params.ctx_other != NULL)
        die("llama_context_default_params", "not the defaults of v0.5.0: is it another version?");
    params.n_ctx = (uint32_t)n_ctx;
    params.n_threads = params.n_threads_batch = threads;
    return params;
}

static void *new_context(void *model, struct llama_context_params params)
{
    void *context = api.llama_init_from_model(model, params);
    if (!context)
        die("context", "llama.cpp cannot make one");
    return context;
}

/* All tokens of one sequence in one batch, with logits for each. */
static struct llama_batch whole_batch(int32_t *tokens, int32_t n)
{
    static int32_t first_sequence = 0;
    struct llama_batch batch = {.n_tokens = n, .token = tokens};
    batch.pos = calloc((size_t)n, sizeof(*batch.pos));
    batch.n_seq_id = calloc((size_t)n, sizeof(*batch.n_seq_id));
    batch.seq_id = calloc((size_t)n, sizeof(*batch.seq_id));
    batch.logits = calloc((size_t)n, sizeof(*batch.logits));
    if (!batch.pos || !batch.n_seq_id || !batch.seq_id || !batch.logits)
        die("batch", "out of memory");
    for (int32_t i = 0; i < n; i++) {
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i] = &first_sequence;
        batch.logits[i] = 1;
    }
    return batch;
}

static int print_logits(const char *library, const char *path, const char *tokens_file, int32_t n)
{
    enum { F32 = 0, FLASH_ATTENTION_OFF = 0, THREADS = 2, LEAST_CONTEXT = 256 };
    if (n < 1)
        die("usage", "N is from 1");
    int32_t *tokens = read_tokens(tokens_file, n);
    void *model = load_model(library, path, false);
    struct llama_context_params params = context_params(n < LEAST_CONTEXT ? LEAST_CONTEXT : n, THREADS);
    params.type_k = params.type_v = F32;
    params.flash_attn_type = FLASH_ATTENTION_OFF;
    params.n_batch = params.n_ubatch = params.n_ctx;
    void *context = new_context(model, params);
    if (api.llama_decode(context, whole_batch(tokens, n)) != 0)
        die("llama_decode", "failed");
    size_t width = (size_t)api.llama_vocab_n_tokens(api.llama_model_get_vocab(model));
    for (int32_t i = 0; i < n; i++) {
        const float *row = api.llama_get_logits_ith(context, i);
        if (!row || fwrite(row, sizeof(*row), width, stdout) != width)
            die("logits", "cannot write them");
    }
    return 0;
}

int main(int argc, char **argv)
{
    enum { MAX_REPEAT = 64 };
    if (argc == 5)
        return print_logits(argv[1], argv[2], argv[3], atoi(argv[4]));
    if (argc != 9)
        die("usage", "LIBRARY_FOLDER MODEL TOKENS_FILE (PREFILL DECODE THREADS REPEAT on|off | N)");
    int32_t n_prefill = atoi(argv[4]), n_decode = atoi(argv[5]), threads = atoi(argv[6]),
            repeat = atoi(argv[7]);
    int32_t most = n_prefill > n_decode ? n_prefill : n_decode;
    if (most < 1 || threads < 1 || repeat < 1 || repeat > MAX_REPEAT)
        die("usage", "numbers are from 1");
    int32_t *tokens = read_tokens(argv[3], most);
    void *model = load_model(argv[1], argv[2], strcmp(argv[8], "off") != 0);
    struct llama_context_params params = context_params(most, threads);
    void *context = new_context(model, params);
    double prefill[MAX_REPEAT], decode[MAX_REPEAT];
    measure(context, tokens, n_prefill, n_prefill); /* touches every weight */
    measure(context, tokens, n_decode < 8 ? n_decode : 8, 1);
    for (int32_t i = 0; i < repeat; i++) {
        prefill[i] = measure(context, tokens, n_prefill, (int32_t)params.n_ubatch);
        decode[i] = measure(context, tokens, n_decode, 1);
    }
    printf("{\"engine\": \"llama.cpp v0.5.0\", \"cpu\": \"%s\", \"repacked_mib\": %.1f, ", seen.cpu,
           seen.repacked_mb);
    print_runs("prefill_tok_s", prefill, repeat);
    printf(", ");
    print_runs("decode_tok_s", decode, repeat);
    printf("}\n");
    api.llama_free(context);
    api.llama_model_free(model);
    return 0;
}
