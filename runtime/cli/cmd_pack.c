/* penstock pack: makes a container of a GGUF model. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/pack_note.h"
#include "runtime/cli/transfer_progress.h"
#include "runtime/pack.h"
#include "runtime/size_text.h"
#include "storage/packed.h"

enum { MAX_STRIPES = 64 };

struct pack_options {
    const char *input, *output;
    uint32_t zstd;
    const char *stripe, *trace;
    uint64_t io_limit;
    uint32_t threads;
    bool force, json;
};

#define OPTION(field) offsetof(struct pack_options, field)

static const struct flag_word zstd_words[] = {{"auto", PACK_ZSTD_AUTO}, {"off", PACK_ZSTD_OFF}, {0}};
static const struct flag_word drive_words[] = {{"auto", 0}, {0}};

static const struct flag pack_rows[] = {
    {"zstd", 0, FLAG_U32, OPTION(zstd), "LEVEL",
     .help = "compress experts: \"off\", a level of zstd, 1 to 22 (wherever\nthat saves space), or \"auto\": "
             "where a "
             "sample says "
             "that reading and\nunpacking takes less time here than reading alone",
     .min = 1, .max = PACK_ZSTD_MAX, .words = zstd_words},
    {"stripe", 0, FLAG_STRING, OPTION(stripe), "DIR,DIR",
     .help = "spread experts over these directories, a file in each, to\nread from several drives at once"},
    {"order", 0, FLAG_STRING, OPTION(trace), "TRACE",
     .help = "lay out each layer's experts by how often a recording of\n`penstock trace` used them"},
    {"io-limit", 0, FLAG_SIZE, OPTION(io_limit), "RATE",
     .help = "bytes per second of the drive that OUT will be read from,\nfor --zstd auto; \"auto\": that of "
             "the drive "
             "that IN is on",
     .words = drive_words},
    {"threads", 0, FLAG_U32, OPTION(threads), .help = "that read and compress; 0: one per CPU", .min = 0,
     .max = 64},
    {"force", 0, FLAG_BOOL, OPTION(force), .help = "replace OUT if it exists"},
    {"json", 0, FLAG_BOOL, OPTION(json), .help = "print the summary as one JSON object"},
    {0},
};

static const char summary[] =
    "Makes a container of a GGUF model: each expert in one piece, at aligned places, with a\n"
    "checksum, compressed where that pays. Every command takes either; results are the same to the\n"
    "bit, and `penstock unpack` gives the GGUF back. A pack that was interrupted goes on with the same\n"
    "command; OUT appears when it is whole.";

static const char examples[] =
    "  penstock pack model.gguf model.pack\n"
    "  penstock pack model.gguf /fast/model.pack --zstd auto --io-limit 1G\n"
    "  penstock pack model.gguf model.pack --stripe /drive1/experts,/drive2/experts\n"
    "  penstock trace -m model.gguf -f prompt.txt -o routing.trace\n"
    "  penstock pack model.gguf model.pack --order routing.trace";

struct command {
    struct pack_options options;
    char *stripe_list; /* cut at its commas */
    const char *stripes[MAX_STRIPES];
    uint32_t n_stripes;
    struct transfer_progress progress;
    json_t *note; /* what was decided, and why */
};

/* False, with *exit_code: an empty name, or too many. */
static bool split_stripes(struct command *c, int *exit_code)
{
    if (!c->options.stripe)
        return true;
    c->stripe_list = strdup(c->options.stripe);
    if (!c->stripe_list) {
        *exit_code = cli_error(CLI_FAILED, "--stripe: out of memory");
        return false;
    }
    for (char *rest = c->stripe_list, *name; (name = strsep(&rest, ",")) != NULL;) {
        if (!*name || c->n_stripes == MAX_STRIPES) {
            *exit_code = cli_error(CLI_USAGE, "--stripe: '%.200s': 1 to %d directories, separated by commas",
                                   c->options.stripe, MAX_STRIPES);
            return false;
        }
        c->stripes[c->n_stripes++] = name;
    }
    return true;
}

static void on_started(void *ctx, enum pack_start start, const struct pack_decisions *decisions)
{
    struct command *c = ctx;
    transfer_progress_end(&c->progress);
    c->note = json_loadb(decisions->note, decisions->note_bytes, 0, NULL);
    if (start == PACK_RESUMED)
        fprintf(stderr, "%s: going on where an earlier pack was interrupted\n", c->options.output);
    if (start == PACK_STARTED_OVER)
        fprintf(stderr,
                "%s: starting over: what an interrupted pack left was of other options or another source\n",
                c->options.output);
    if (!c->options.json && json_object_get(c->note, "predicted_gain")) {
        pack_note_print(c->note);
        cli_flush();
    }
    transfer_progress_begin(&c->progress, c->options.output);
}

static void on_progress(void *ctx, uint64_t done, uint64_t total)
{
    transfer_progress_update(&((struct command *)ctx)->progress, done, total);
}

static const char *start_name(enum pack_start start)
{
    return start == PACK_FRESH ? "fresh" : start == PACK_STARTED_OVER ? "started over" : "resumed";
}

static void print_json(const struct command *c, const struct pack_result *r)
{
    json_t *object = json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "input", c->options.input, "output",
        c->options.output, "start", start_name(r->start), "source_bytes", (json_int_t)r->source_bytes,
        "packed_bytes", (json_int_t)r->packed_bytes, "trunk_bytes", (json_int_t)r->trunk_bytes,
        "expert_bytes", (json_int_t)r->expert_bytes, "extent_bytes", (json_int_t)r->extent_bytes, "experts",
        (json_int_t)r->n_experts, "files", (json_int_t)r->n_files, "seconds", r->seconds);
    if (c->note)
        json_object_set(object, "note", c->note);
    char *text = object ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;
    if (text)
        cli_printf("%s\n", text);
    free(text);
    json_decref(object);
}

static void print_summary(const struct command *c, const struct pack_result *r)
{
    char source[SIZE_TEXT_SIZE], packed[SIZE_TEXT_SIZE], experts[SIZE_TEXT_SIZE], extents[SIZE_TEXT_SIZE],
        rate[SIZE_TEXT_SIZE];
    cli_printf("%s: %s from %s (%.3f)", c->options.output, size_format(r->packed_bytes, packed),
               size_format(r->source_bytes, source), (double)r->packed_bytes / (double)r->source_bytes);
    if (r->expert_bytes > 0)
        cli_printf("; %" PRIu32 " experts: %s from %s (%.3f)", r->n_experts,
                   size_format(r->extent_bytes, extents), size_format(r->expert_bytes, experts),
                   (double)r->extent_bytes / (double)r->expert_bytes);
    if (r->n_files > 1)
        cli_printf(", in %" PRIu32 " data file%s", r->n_files - 1, r->n_files == 2 ? "" : "s");
    cli_printf("; %.1f s, %s/s\n", r->seconds,
               size_format((uint64_t)((double)r->source_bytes / r->seconds), rate));
}

static int pack(struct command *c)
{
    const struct pack_options *o = &c->options;
    struct ps_model *model;
    struct ps_error err;
    struct pack_result result;
    if (ps_model_open(&model, o->input, &err) != PS_OK)
        return cli_status(&err);
    if (packed_is_container(o->input)) {
        ps_model_free(model);
        return cli_error(CLI_FAILED, "%s: is a container already: unpack it first (`penstock unpack`)",
                         o->input);
    }
    const struct pack_params params = {.path = o->output,
                                       .replace = o->force,
                                       .zstd = o->zstd,
                                       .n_stripes = c->n_stripes,
                                       .stripes = c->stripes,
                                       .trace = o->trace,
                                       .drive_rate = o->io_limit,
                                       .threads = o->threads,
                                       .cancel = cli_interrupt_flag(),
                                       .started = on_started,
                                       .progress = on_progress,
                                       .ctx = c};
    cli_catch_interrupt();
    transfer_progress_begin(&c->progress, o->output);
    transfer_progress_say(&c->progress, o->zstd == PACK_ZSTD_OFF ? "opening" : "compressing samples");
    enum ps_status status = pack_model(model, &params, &result, &err);
    transfer_progress_end(&c->progress);
    ps_model_free(model);
    if (status != PS_OK)
        return cli_status(&err);
    if (o->json)
        print_json(c, &result);
    else
        print_summary(c, &result);
    return CLI_OK;
}

int cmd_pack(int argc, char **argv)
{
    struct command c = {.options = {.zstd = PACK_ZSTD_AUTO}};
    const struct flag_positional positionals[] = {
        {"IN", &c.options.input, "the model, a GGUF file (of a split one: any part)", true},
        {"OUT", &c.options.output, "the container to write", true},
        {0},
    };
    const struct flag_group groups[] = {{NULL, pack_rows, &c.options}, {0}};
    const struct flag_spec spec = {.command = "pack",
                                   .summary = summary,
                                   .examples = examples,
                                   .positionals = positionals,
                                   .groups = groups};
    int exit_code;
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    exit_code = CLI_OK;
    if (split_stripes(&c, &exit_code))
        exit_code = pack(&c);
    free(c.stripe_list);
    json_decref(c.note);
    return exit_code;
}
