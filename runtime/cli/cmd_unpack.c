/* penstock unpack: gives back the GGUF that a container was made from. */
#include "runtime/cli/cli.h"
#include "runtime/cli/transfer_progress.h"
#include "runtime/clock.h"
#include "runtime/size_text.h"
#include "runtime/unpack.h"

struct unpack_options {
    const char *input, *output;
    uint32_t threads;
    bool force;
};

#define OPTION(field) offsetof(struct unpack_options, field)

static const struct flag unpack_rows[] = {
    {"threads", 0, FLAG_U32, OPTION(threads), .help = "that read and unpack; 0: one per CPU", .min = 0,
     .max = 64},
    {"force", 0, FLAG_BOOL, OPTION(force), .help = "replace OUT.gguf if it exists"},
    {0},
};

static const char summary[] =
    "Gives back the GGUF that a container was made from: its header and all tensors to the byte (of a\n"
    "split model: as one file). Every checksum is verified.";

static const char examples[] = "  penstock unpack model.pack model.gguf";

static void on_progress(void *ctx, uint64_t done, uint64_t total)
{
    transfer_progress_update(ctx, done, total);
}

int cmd_unpack(int argc, char **argv)
{
    struct unpack_options options = {0};
    const struct flag_positional positionals[] = {
        {"IN", &options.input, "the container, its main file", true},
        {"OUT.gguf", &options.output, "the GGUF file to write", true},
        {0},
    };
    const struct flag_group groups[] = {{NULL, unpack_rows, &options}, {0}};
    const struct flag_spec spec = {.command = "unpack",
                                   .summary = summary,
                                   .examples = examples,
                                   .positionals = positionals,
                                   .groups = groups};
    int exit_code;
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    struct transfer_progress progress;
    const struct unpack_params params = {.input = options.input,
                                         .path = options.output,
                                         .replace = options.force,
                                         .threads = options.threads,
                                         .cancel = cli_interrupt_flag(),
                                         .progress = on_progress,
                                         .ctx = &progress};
    struct ps_error err;
    uint64_t bytes;
    char size[SIZE_TEXT_SIZE], rate[SIZE_TEXT_SIZE];
    cli_catch_interrupt();
    double begin = clock_seconds();
    transfer_progress_begin(&progress, options.output);
    enum ps_status status = unpack_model(&params, &bytes, &err);
    transfer_progress_end(&progress);
    if (status != PS_OK)
        return cli_status(&err);
    double seconds = clock_seconds() - begin;
    cli_printf("%s: %s, every checksum was right; %.1f s, %s/s\n", options.output, size_format(bytes, size),
               seconds, size_format((uint64_t)((double)bytes / seconds), rate));
    return CLI_OK;
}
