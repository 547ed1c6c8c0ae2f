/* The penstock program: a table of commands. */
#include <string.h>

#include "runtime/cli/cli.h"

static const char version[] = "0.1.0";

static const char about[] =
    "Runs mixture-of-experts language models that are larger than RAM: keeps what every\n"
    "token needs in memory and streams the experts from NVMe into a bounded cache.";

static const struct cli_command commands[] = {
    {"run", "generate text from one prompt", cmd_run},
    {"inspect", "what is in a model file, and the memory plan at several budgets", cmd_inspect},
    {"plan", "predicted tokens per second against RAM, on this machine", cmd_plan},
    {"eval", "perplexity, and divergence between two settings", cmd_eval},
    {"bench", "measure the drive, decoding and prefill", cmd_bench},
    {"trace", "record which experts every token is sent to", cmd_trace},
    {"simulate", "replay a recording through cache policies and sizes", cmd_simulate},
    {"pack", "make a container: experts in one piece, checksums, compression, several drives", cmd_pack},
    {"unpack", "give back the GGUF that a container was made from", cmd_unpack},
    {"synth", "write a model of any shape with random weights", cmd_synth},
    {0},
};

int main(int argc, char **argv)
{
    cli_init();
    if (argc >= 2 && (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0)) {
        cli_printf("penstock %s\n", version);
        return cli_finish(CLI_OK);
    }
    return cli_finish(cli_dispatch("penstock", about, commands, argc, argv));
}
