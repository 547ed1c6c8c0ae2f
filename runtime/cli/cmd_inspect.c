/* penstock inspect: what is in a model file, what a token reads, and how budgets would be divided. */
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/inspect_packed.h"
#include "runtime/cli/model_flags.h"
#include "runtime/size_text.h"

struct inspect_options {
    const char *file;
    bool json;
    struct model_options model;
};

#define OPTION(field) offsetof(struct inspect_options, field)

static const struct flag_word auto_size[] = {{"auto", 0}, {0}};

static const struct flag inspect_rows[] = {
    {"json", 0, FLAG_BOOL, OPTION(json), .help = "print one JSON object"},
    {"ram", 0, FLAG_SIZE, OPTION(model.params.ram), "SIZE",
     .help = "plan for this budget; without it: for several", .words = auto_size},
    {"ctx", 0, FLAG_U32, OPTION(model.params.ctx), "TOKENS",
     .help = "context length; 0: the model's, at most 4096"},
    {"threads", 0, FLAG_U32, OPTION(model.params.threads),
     .help = "compute threads; 0: the fastest number for this machine", .max = 256, .min = 0},
    {0},
};

enum { MAX_PLANS = 8 };

struct plans {
    struct ps_plan plan[MAX_PLANS];
    uint32_t n;
    uint64_t minimum;
};

/* The budget asked for, or the minimum, shares of the file, and all of it. */
static enum ps_status make_plans(struct ps_model *model, const struct inspect_options *o, bool one,
                                 struct plans *plans, struct ps_error *err)
{
    struct ps_model_params params = o->model.params;
    uint64_t file = ps_model_info(model)->unpacked_bytes;
    struct ps_plan probe;
    enum ps_status status = PS_OK;
    if (one) {
        status = ps_model_plan(model, &params, &plans->plan[0], err);
        plans->n = status == PS_OK;
        plans->minimum = plans->plan[0].minimum;
        return status;
    }
    params.ram = 1;
    status = ps_model_plan(model, &params, &probe, err); /* refused, but it tells the minimum */
    if (status != PS_ERR_BUDGET)
        return status;
    plans->minimum = probe.minimum;
    const uint64_t budgets[] = {probe.minimum, file / 8,     file / 4,
                                file / 2,      file / 4 * 3, file + file / 16 + probe.minimum};
    for (uint32_t i = 0; i < sizeof(budgets) / sizeof(budgets[0]); i++) {
        params.ram = budgets[i];
        if (i > 0 && budgets[i] <= budgets[i - 1])
            continue;
        status = ps_model_plan(model, &params, &plans->plan[plans->n], err);
        if (status == PS_OK)
            plans->n++;
        else if (status != PS_ERR_BUDGET)
            return status;
    }
    return PS_OK;
}

static json_t *plan_json(const struct ps_plan *p)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:i, s:i, s:i, s:f}", "budget_bytes",
                     (json_int_t)p->budget, "process_bytes", (json_int_t)p->process, "trunk_bytes",
                     (json_int_t)p->trunk, "kv_bytes", (json_int_t)p->kv, "activation_bytes",
                     (json_int_t)p->activations, "io_bytes", (json_int_t)p->io, "cache_bytes",
                     (json_int_t)p->cache, "unused_bytes", (json_int_t)p->unused, "slots", (int)p->slots,
                     "shards", (int)p->n_shards, "ctx", (int)p->ctx, "chunk", (int)p->chunk,
                     "trunk_layers_resident", (int)p->trunk_layers_resident, "cycles", p->cycles);
}

static int print_json(const struct ps_model *model, const struct plans *plans)
{
    const struct ps_model_info *info = ps_model_info(model);
    json_t *list = json_array();
    for (uint32_t i = 0; i < plans->n; i++)
        json_array_append_new(list, plan_json(&plans->plan[i]));
    json_t *root =
        json_pack("{s:s, s:s?, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i}",
                  "architecture", info->arch, "name", info->name, "formats", info->formats, "layers",
                  (int)info->n_layers, "moe_layers", (int)info->n_moe_layers, "embedding_length",
                  (int)info->n_embd, "vocab_size", (int)info->n_vocab, "context_length",
                  (int)info->n_ctx_train, "heads", (int)info->n_head, "kv_heads", (int)info->n_kv_head,
                  "head_dim", (int)info->head_dim, "feed_forward_length", (int)info->n_ff, "experts",
                  (int)info->n_expert, "experts_used", (int)info->n_expert_used, "expert_feed_forward_length",
                  (int)info->n_ff_expert, "shared_feed_forward_length", (int)info->n_ff_shared);
    const struct {
        const char *key;
        uint64_t value;
    } counts[] = {
        {"parameters", info->n_params},
        {"active_parameters", info->n_params_active},
        {"file_bytes", info->file_bytes},
        {"files", info->n_files},
        {"trunk_bytes", info->trunk_bytes},
        {"expert_bytes", info->expert_bytes},
        {"shards", info->n_shards},
        {"shard_bytes", info->shard_bytes_max},
        {"shard_bytes_min", info->shard_bytes_min},
        {"token_cycle_bytes", info->token_cycle_bytes},
        {"kv_bytes_per_token_f32", info->kv_token_bytes_f32},
        {"kv_bytes_per_token_f16", info->kv_token_bytes_f16},
        {"kv_bytes_per_token_q8_0", info->kv_token_bytes_q8_0},
        {"kv_fixed_bytes_f32", info->kv_fixed_bytes_f32},
        {"kv_fixed_bytes_f16", info->kv_fixed_bytes_f16},
        {"kv_fixed_bytes_q8_0", info->kv_fixed_bytes_q8_0},
        {"windowed_layers", info->n_windowed_layers},
        {"window", info->window},
        {"recurrent_layers", info->n_recurrent_layers},
        {"minimum_budget_bytes", plans->minimum},
    };
    for (size_t i = 0; root && i < sizeof(counts) / sizeof(counts[0]); i++)
        json_object_set_new(root, counts[i].key, json_integer((json_int_t)counts[i].value));
    if (root)
        json_object_set_new(root, "has_tokenizer", json_boolean(info->has_text));
    if (root)
        json_object_set_new(root, "packed", inspect_packed_json(model));
    char *text =
        root && json_object_set_new(root, "plans", list) == 0 ? json_dumps(root, JSON_INDENT(1)) : NULL;
    if (!root)
        json_decref(list);
    json_decref(root);
    if (!text)
        return cli_error(CLI_FAILED, "inspect: out of memory, or text in the file that is not UTF-8");
    cli_printf("%s\n", text);
    free(text);
    return CLI_OK;
}

static void print_info(const struct ps_model_info *i)
{
    char a[SIZE_TEXT_SIZE], b[SIZE_TEXT_SIZE], c[SIZE_TEXT_SIZE];
    cli_printf("%s%s%s: %u layers, width %u, %u heads of %u (%u KV), vocabulary %u, trained for %u tokens\n",
               i->arch, i->name[0] ? " " : "", i->name, i->n_layers, i->n_embd, i->n_head, i->head_dim,
               i->n_kv_head, i->n_vocab, i->n_ctx_train);
    cli_printf("parameters   %.2fB, %.2fB active per token\n", (double)i->n_params * 1e-9,
               (double)i->n_params_active * 1e-9);
    cli_printf("file         %s in %u part%s: %s\n", size_format(i->file_bytes, a), i->n_files,
               i->n_files == 1 ? "" : "s", i->formats);
    cli_printf("trunk        %s that every token needs\n", size_format(i->trunk_bytes, a));
    if (i->n_expert > 0) {
        cli_printf("experts      %u x %u layers, top-%u, width %u: %s in all, %s each\n", i->n_expert,
                   i->n_moe_layers, i->n_expert_used, i->n_ff_expert, size_format(i->expert_bytes, a),
                   size_format(i->shard_bytes_max, b));
        cli_printf("token cycle  %s: what one token reads with no cache\n",
                   size_format(i->token_cycle_bytes, a));
    }
    if (i->n_ff_shared > 0)
        cli_printf("shared       expert of width %u\n", i->n_ff_shared);
    if (i->n_ff > 0)
        cli_printf("dense FFN    width %u\n", i->n_ff);
    cli_printf("KV cache     %s per token in f32, %s in f16, %s in q8_0\n",
               size_format(i->kv_token_bytes_f32, a), size_format(i->kv_token_bytes_f16, b),
               size_format(i->kv_token_bytes_q8_0, c));
    if (i->n_windowed_layers > 0)
        cli_printf("windows      %u layers see the last %u tokens\n", i->n_windowed_layers, i->window);
    if (i->n_recurrent_layers > 0)
        cli_printf("recurrent    %u layers keep a state\n", i->n_recurrent_layers);
    if (i->kv_fixed_bytes_f16 > 0)
        cli_printf("fixed state  %s in f32, %s in f16, %s in q8_0, beside what grows with each token\n",
                   size_format(i->kv_fixed_bytes_f32, a), size_format(i->kv_fixed_bytes_f16, b),
                   size_format(i->kv_fixed_bytes_q8_0, c));
    cli_printf("tokenizer    %s\n", i->has_text ? "yes" : "none: token ids only");
}

static void print_plans(const struct plans *plans, const struct ps_model_info *info)
{
    char text[8][SIZE_TEXT_SIZE];
    cli_printf("\nmemory plan (context %u)\n%10s %10s %10s %10s %10s %10s %16s %7s\n",
               plans->n ? plans->plan[0].ctx : 0, "--ram", "process", "trunk", "KV", "activat.", "cache",
               "experts kept", "cycles");
    for (uint32_t i = 0; i < plans->n; i++) {
        const struct ps_plan *p = &plans->plan[i];
        char kept[32];
        snprintf(kept, sizeof(kept), "%u/%u", p->slots, p->n_shards);
        cli_printf("%10s %10s %10s %10s %10s %10s %16s %7.2f", size_format(p->budget, text[0]),
                   size_format(p->process, text[1]), size_format(p->trunk, text[2]),
                   size_format(p->kv, text[3]), size_format(p->activations, text[4]),
                   size_format(p->cache, text[5]), kept, p->cycles);
        if (p->trunk_layers_resident < info->n_layers)
            cli_printf("  %u of %u trunk layers stay", p->trunk_layers_resident, info->n_layers);
        cli_printf("%s\n", i == 0 && p->budget == plans->minimum ? "  (smallest that works)" : "");
    }
}

int cmd_inspect(int argc, char **argv)
{
    struct inspect_options options = {0};
    model_options_default(&options.model);
    options.model.params.ram = UINT64_MAX; /* not given */
    const struct flag_group groups[] = {{NULL, inspect_rows, &options}, {0}};
    const struct flag_positional positionals[] = {
        {"FILE", &options.file, "the model, a GGUF file or a packed one", true}, {0}};
    const struct flag_spec spec = {
        .command = "inspect",
        .summary = "Says what is in a model file, from its header alone, and how memory would be used.",
        .examples = "  penstock inspect model.gguf\n  penstock inspect model.gguf --json --ram 8G",
        .positionals = positionals,
        .groups = groups};
    int exit_code;
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    struct ps_model *model;
    struct ps_error err;
    struct plans plans = {0};
    if (ps_model_open(&model, options.file, &err) != PS_OK)
        return cli_status(&err);
    if (make_plans(model, &options, options.model.params.ram != UINT64_MAX, &plans, &err) != PS_OK) {
        exit_code = cli_status(&err);
    } else if (options.json) {
        exit_code = print_json(model, &plans);
    } else {
        print_info(ps_model_info(model));
        inspect_packed_print(model);
        print_plans(&plans, ps_model_info(model));
        exit_code = CLI_OK;
    }
    ps_model_free(model);
    return exit_code;
}
