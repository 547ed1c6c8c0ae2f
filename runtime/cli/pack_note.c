#include "runtime/cli/pack_note.h"

#include <stdio.h>
#include <string.h>

#include "runtime/cli/cli.h"

enum { WORD_SIZE = 32 };

/* out[WORD_SIZE] */
static const char *clean(const char *text, char *out)
{
    snprintf(out, WORD_SIZE, "%s", text);
    for (char *c = out; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    }
    return out;
}

/* "?": it is not there. */
static const char *word_of(const json_t *object, const char *key, char *out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_integer(value))
        return clean(json_is_string(value) ? json_string_value(value) : "?", out);
    snprintf(out, WORD_SIZE, "%lld", (long long)json_integer_value(value));
    return out;
}

static double number_of(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

/* figures: of a codec that was measured, or the kind itself where nothing but the ratio is known. */
static void print_row(const json_t *kind, const char *codec, const json_t *figures, bool used)
{
    char part[WORD_SIZE], type[WORD_SIZE], name[WORD_SIZE];
    cli_printf("%c %-14s %-8s %-14s %7.4f", used ? '*' : ' ', word_of(kind, "part", part),
               word_of(kind, "type", type), clean(codec, name), number_of(figures, "ratio"));
    if (json_object_get(figures, "predicted_gain"))
        cli_printf(" %12.0f %6.3f", number_of(figures, "decode_mb_s"), number_of(figures, "predicted_gain"));
    cli_printf("\n");
}

/* A line per part, type and codec that was measured; * marks those that are used. */
static void print_kinds(const json_t *kinds, bool is_measured)
{
    json_t *kind, *figures;
    size_t i;
    const char *codec;
    char used[WORD_SIZE];
    cli_printf("  %-14s %-8s %-14s %7s%s\n", "part", "type", "codec", "ratio",
               is_measured ? "  unpack MB/s   gain" : "");
    json_array_foreach(kinds, i, kind)
    {
        word_of(kind, "codec", used);
        if (!is_measured)
            print_row(kind, used, kind, false);
        json_object_foreach(json_object_get(kind, "codecs"), codec, figures)
            print_row(kind, codec, figures, strcmp(codec, used) == 0);
    }
}

void pack_note_print(const json_t *note)
{
    char zstd[WORD_SIZE], level[WORD_SIZE], order[WORD_SIZE];
    const json_t *kinds = json_object_get(note, "kinds");
    bool is_measured = json_object_get(note, "predicted_gain") != NULL;
    cli_printf("zstd %s", word_of(note, "zstd", zstd));
    if (json_object_get(note, "level"))
        cli_printf(", level %s", word_of(note, "level", level));
    cli_printf(", experts in order of %s",
               strcmp(word_of(note, "order", order), "trace") == 0 ? "use" : "number");
    if (is_measured)
        cli_printf("; %.0f MB/s from the drive, %.0f cores; * what is used",
                   number_of(note, "read_rate") / 1e6, number_of(note, "cores"));
    cli_printf("\n");
    if (json_array_size(kinds) == 0)
        return;
    print_kinds(kinds, is_measured);
    if (is_measured)
        cli_printf("reading and unpacking is predicted to be %.3f times as fast as reading alone\n",
                   number_of(note, "predicted_gain"));
}
