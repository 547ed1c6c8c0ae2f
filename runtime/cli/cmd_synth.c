/* penstock synth: writes a model of any shape with random weights. */
#include <inttypes.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "runtime/cli/cli.h"
#include "runtime/size_text.h"
#include "runtime/synth.h"

struct synth_options {
    const char *like, *arch;
    const char *output;
    const char *type;
    const char *vocab_from;
    uint64_t seed;
    uint32_t threads;
    bool force, dry_run;
};

#define OPTION(field) offsetof(struct synth_options, field)
#define SHAPE(field)  offsetof(struct synth_shape, field)

static const struct flag model_rows[] = {
    {"like", 0, FLAG_NAME, OPTION(like), "MODEL",
     .help = "the shape of a public model:", .name_at = synth_preset_at},
    {"arch", 0, FLAG_NAME, OPTION(arch), "ARCH",
     .help = "architecture; without --like, its best-known model:", .name_at = synth_arch_at},
    {"output", 'o', FLAG_STRING, OPTION(output), "FILE", .help = "the GGUF file to write", .required = true},
    {"type", 0, FLAG_NAME, OPTION(type), "TYPE",
     .help = "of the matrices (norms, biases, routers: f32):", .name_at = synth_type_at},
    {"seed", 0, FLAG_U64, OPTION(seed), .help = "same seed, same file"},
    {"vocab-from", 0, FLAG_STRING, OPTION(vocab_from), "GGUF",
     .help = "copy the tokenizer from this model, and its\nvocabulary's size; without it: token ids only"},
    {"threads", 0, FLAG_U32, OPTION(threads), .help = "generating and writing; 0: choose", .min = 0,
     .max = 64},
    {"force", 0, FLAG_BOOL, OPTION(force), .help = "replace FILE if it exists"},
    {"dry-run", 0, FLAG_BOOL, OPTION(dry_run), .help = "print what would be written"},
    {0},
};

/* Ranges are the library's to check: they hang together. */
static const struct flag shape_rows[] = {
    {"layers", 0, FLAG_U32, SHAPE(n_layers), .help = "layers"},
    {"embd", 0, FLAG_U32, SHAPE(n_embd), .help = "width of the residual stream"},
    {"heads", 0, FLAG_U32, SHAPE(n_heads), .help = "attention heads"},
    {"kv-heads", 0, FLAG_U32, SHAPE(n_kv_heads), .help = "heads of keys and values"},
    {"head-dim", 0, FLAG_U32, SHAPE(head_dim), .help = "values per head; 0: embd / heads"},
    {"ff", 0, FLAG_U32, SHAPE(n_ff), .help = "width of a dense FFN"},
    {"experts", 0, FLAG_U32, SHAPE(n_experts), .help = "experts per layer; 0: dense"},
    {"top-k", 0, FLAG_U32, SHAPE(n_top_k), .help = "experts per token"},
    {"expert-ff", 0, FLAG_U32, SHAPE(n_ff_expert), .help = "width of an expert"},
    {"shared-ff", 0, FLAG_U32, SHAPE(n_ff_shared), .help = "width of the shared expert"},
    {"vocab", 0, FLAG_U32, SHAPE(n_vocab), .help = "tokens in the vocabulary"},
    {"ctx", 0, FLAG_U32, SHAPE(n_ctx), .help = "context length"},
    {"rope-base", 0, FLAG_FLOAT, SHAPE(rope_base), .help = "base of the rotary frequencies"},
    {0},
};

static const char summary[] =
    "Writes a valid GGUF model of any shape with random weights, to measure a machine before a\n"
    "download of 100 GB. It says nothing sensible, but it computes, routes and streams as the\n"
    "real one would. The shape is that of --like or --arch; the shape flags change it.";

static const char examples[] =
    "  penstock synth --like qwen3-30b-a3b -o qwen3-shape.gguf\n"
    "  penstock synth --like qwen3-30b-a3b --layers 12 --vocab 32000 -o small.gguf\n"
    "  penstock synth --arch llama --experts 0 --type q8_0 -o dense.gguf\n"
    "  penstock synth --like qwen3-235b-a22b -o big.gguf --dry-run";

/* The preset has to be known before the shape flags are stored over it: the first pass finds it, the second starts
 * from it. */
static bool parse(struct synth_options *options, struct synth_shape *shape, int argc, char **argv,
                  int *exit_code)
{
    const struct flag_group groups[] = {
        {"Model", model_rows, options},
        {"Shape (unless given, that of --like)", shape_rows, shape},
        {0},
    };
    const struct flag_spec spec = {
        .command = "synth", .summary = summary, .examples = examples, .groups = groups};
    if (!cli_parse(&spec, argc, argv, exit_code))
        return false;
    if (!options->like && !options->arch) {
        *exit_code = cli_error(CLI_USAGE, "--like or --arch is missing: see `penstock synth --help`");
        return false;
    }
    if (options->like)
        synth_preset_shape(options->like, shape);
    else
        synth_arch_shape(options->arch, shape);
    if (options->arch && strcmp(options->arch, shape->arch) != 0) {
        *exit_code = cli_error(CLI_USAGE, "--arch: %s, but %s is %s: give one of the two", options->arch,
                               options->like, shape->arch);
        return false;
    }
    return cli_parse(&spec, argc, argv, exit_code);
}

struct progress {
    const char *path;
    bool shown; /* on a terminal */
    struct timespec start, last;
};

static double seconds_between(const struct timespec *from, const struct timespec *to)
{
    return (double)(to->tv_sec - from->tv_sec) + 1e-9 * (double)(to->tv_nsec - from->tv_nsec);
}

static bool on_progress(void *ctx, uint64_t done, uint64_t total)
{
    struct progress *progress = ctx;
    struct timespec now;
    char done_text[SIZE_TEXT_SIZE], total_text[SIZE_TEXT_SIZE], rate_text[SIZE_TEXT_SIZE];
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (progress->shown && seconds_between(&progress->last, &now) >= 0.2) {
        double rate = (double)done / seconds_between(&progress->start, &now);
        fprintf(stderr, "\r%s: %s of %s, %s/s \033[K", progress->path, size_format(done, done_text),
                size_format(total, total_text), size_format((uint64_t)rate, rate_text));
        progress->last = now;
    }
    return !cli_interrupted();
}

static void describe(const struct synth_model *model, const struct synth_options *options)
{
    const struct synth_shape *shape = synth_model_shape(model);
    char size[SIZE_TEXT_SIZE];
    cli_printf("%s: %s, %" PRIu32 " layers, %" PRIu32 " embd", options->output, shape->arch, shape->n_layers,
               shape->n_embd);
    if (shape->n_experts)
        cli_printf(", %" PRIu32 " experts of width %" PRIu32 ", top %" PRIu32, shape->n_experts,
                   shape->n_ff_expert, shape->n_top_k);
    cli_printf(", vocabulary %" PRIu32 "\n", shape->n_vocab);
    cli_printf("%.2f billion weights as %s in %" PRIu32 " tensors, %s\n",
               (double)synth_model_n_weights(model) / 1e9, options->type, synth_model_n_tensors(model),
               size_format(synth_model_data_bytes(model), size));
}

static int write_model(const struct synth_model *model, const struct synth_options *options)
{
    struct progress progress = {.path = options->output, .shown = isatty(STDERR_FILENO)};
    struct synth_write_params params = {.path = options->output,
                                        .overwrite = options->force,
                                        .threads = options->threads,
                                        .progress = on_progress,
                                        .progress_ctx = &progress};
    struct ps_error err;
    struct timespec end;
    cli_catch_interrupt();
    clock_gettime(CLOCK_MONOTONIC, &progress.start);
    enum ps_status status = synth_write(model, &params, &err);
    clock_gettime(CLOCK_MONOTONIC, &end);
    if (progress.shown)
        fputs("\r\033[K", stderr);
    if (status != PS_OK)
        return cli_status(&err);
    char rate[SIZE_TEXT_SIZE];
    double seconds = seconds_between(&progress.start, &end);
    cli_printf("written in %.1f s, %s/s\n", seconds,
               size_format((uint64_t)((double)synth_model_data_bytes(model) / seconds), rate));
    return CLI_OK;
}

static int run(const struct synth_options *options, const struct synth_shape *shape)
{
    struct ps_error err;
    struct gguf *vocab = NULL;
    struct synth_model *model = NULL;
    int exit_code = CLI_OK;
    struct synth_params params = {.shape = *shape,
                                  .name = options->like ? options->like : options->arch,
                                  .type = options->type,
                                  .seed = options->seed};
    if (options->vocab_from && gguf_open(&vocab, options->vocab_from, &err) != PS_OK)
        return cli_status(&err);
    params.vocab = vocab;
    if (synth_new(&model, &params, &err) != PS_OK) {
        exit_code = cli_status(&err);
    } else {
        describe(model, options);
        if (synth_model_note(model)[0])
            cli_printf("%s\n", synth_model_note(model));
        if (!options->dry_run)
            exit_code = write_model(model, options);
    }
    synth_free(model);
    gguf_free(vocab);
    return exit_code;
}

int cmd_synth(int argc, char **argv)
{
    struct synth_options options = {.type = "q4_K", .seed = 1};
    struct synth_shape shape = {0};
    int exit_code;
    if (!parse(&options, &shape, argc, argv, &exit_code))
        return exit_code;
    return run(&options, &shape);
}
