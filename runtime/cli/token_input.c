#include "runtime/cli/token_input.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/cli/cli.h"
#include "runtime/cli/model_flags.h"
#include "runtime/splitmix.h"

#define OPTION(field) offsetof(struct prompt_options, field)

const struct flag PROMPT_FLAGS[] = {
    {"prompt", 'p', FLAG_STRING, OPTION(text), "TEXT", .help = "the prompt"},
    {"file", 'f', FLAG_STRING, OPTION(file), "FILE", .help = "the prompt from a file; -: standard input"},
    {"prompt-tokens", 0, FLAG_STRING, OPTION(ids), "IDS", .help = "the prompt as token ids: \"1,2,3\""},
    {0},
};

static bool read_tokens(const struct prompt_options *o, struct ps_model *model, int32_t **tokens, size_t *n,
                        int *exit_code)
{
    if (o->ids)
        return parse_token_list(o->ids, "--prompt-tokens", tokens, n);
    size_t length = o->text ? strlen(o->text) : 0;
    char *text = o->file ? read_text_file(o->file, &length) : NULL;
    *exit_code = CLI_FAILED;
    if (o->file && !text)
        return false;
    struct ps_error err;
    enum ps_status status = ps_tokenize(model, o->text ? o->text : text, length, true, true, tokens, n, &err);
    free(text);
    if (status != PS_OK)
        *exit_code = cli_status(&err);
    return status == PS_OK;
}

bool prompt_read(const struct prompt_options *o, const char *command, struct ps_model *model,
                 int32_t **tokens, size_t *n, int *exit_code)
{
    *exit_code = CLI_USAGE;
    if ((o->text != NULL) + (o->file != NULL) + (o->ids != NULL) != 1) {
        cli_error(CLI_USAGE, "%s: give one of -p TEXT, -f FILE and --prompt-tokens IDS", command);
        return false;
    }
    if (!read_tokens(o, model, tokens, n, exit_code))
        return false;
    if (*n == 0)
        *exit_code = cli_error(CLI_USAGE, "%s: the prompt is empty", command);
    return *n > 0;
}

bool prompt_fit_context(struct ps_model_params *params, const struct ps_model_info *info, size_t n_prompt,
                        uint32_t n, int *exit_code)
{
    uint64_t wanted = (uint64_t)n_prompt + n;
    if (params->ctx == 0)
        params->ctx = wanted < info->n_ctx_train ? (uint32_t)wanted : info->n_ctx_train;
    params->feed = n_prompt < params->ctx ? (uint32_t)n_prompt : params->ctx;
    if (n_prompt <= params->ctx)
        return true;
    *exit_code = cli_error(
        CLI_FAILED, "prompt: %zu tokens do not fit a context of %u: use a larger --ctx or a shorter prompt",
        n_prompt, params->ctx);
    return false;
}

static bool random_ids(struct token_source *source, uint64_t seed, size_t n, uint32_t n_vocab)
{
    source->ids = malloc(n * sizeof(*source->ids));
    source->n = n;
    for (size_t i = 0; source->ids && i < n; i++)
        source->ids[i] = (int32_t)(splitmix64(&seed) % n_vocab);
    return source->ids != NULL;
}

bool token_source_open(struct token_source *source, const char *text, uint32_t n, uint32_t n_passes,
                       uint32_t n_vocab, int *exit_code)
{
    *exit_code = CLI_FAILED;
    if (strcmp(text, "greedy") == 0)
        return true;
    if (strncmp(text, "random:", 7) == 0) {
        char *end;
        uint64_t seed = strtoull(text + 7, &end, 10);
        if (end == text + 7 || *end) {
            *exit_code = cli_error(CLI_USAGE, "--tokens: \"%s\": a number must follow \"random:\"", text);
            return false;
        }
        if (!random_ids(source, seed, (size_t)n * n_passes, n_vocab))
            cli_error(CLI_FAILED, "--tokens: out of memory");
        return source->ids != NULL;
    }
    size_t length;
    char *list = read_text_file(text, &length);
    bool ok = list && parse_token_list(list, text, &source->ids, &source->n);
    free(list);
    if (ok && source->n < n) {
        *exit_code = cli_error(CLI_USAGE, "--tokens: %s holds %zu ids, -n asks for %u", text, source->n, n);
        return false;
    }
    return ok;
}
