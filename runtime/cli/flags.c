#include "runtime/cli/flags.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "runtime/size_text.h"

/* ---- look-up ---- */

struct found {
    const struct flag *flag; /* NULL: none */
    void *target;
};

static bool has_name(const struct flag *flag, const char *name, size_t length)
{
    return strncmp(flag->name, name, length) == 0 && flag->name[length] == 0;
}

/* By long name (length > 0) or by short name. */
static struct found find_flag(const struct flag_spec *spec, const char *name, size_t length, char short_name)
{
    for (const struct flag_group *group = spec->groups; group && group->rows; group++) {
        for (const struct flag *flag = group->rows; flag->name; flag++) {
            if (length ? has_name(flag, name, length) : flag->short_name == short_name)
                return (struct found){flag, (char *)group->target + flag->offset};
        }
    }
    return (struct found){0};
}

static const char *flag_name_at(const void *ctx, uint32_t index)
{
    const struct flag_spec *spec = ctx;
    for (const struct flag_group *group = spec->groups; group && group->rows; group++) {
        for (const struct flag *flag = group->rows; flag->name; flag++) {
            if (index-- == 0)
                return flag->name;
        }
    }
    return NULL;
}

/* Levenshtein distance, one row at a time; names longer than the row are never near. */
static unsigned edit_distance(const char *a, const char *b)
{
    enum { MAX_LENGTH = 63 };
    unsigned row[MAX_LENGTH + 1];
    size_t a_length = strlen(a), b_length = strlen(b);
    if (a_length > MAX_LENGTH || b_length > MAX_LENGTH)
        return MAX_LENGTH;
    for (unsigned j = 0; j <= b_length; j++)
        row[j] = j;
    for (unsigned i = 1; i <= a_length; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= b_length; j++) {
            unsigned cost = diagonal + (a[i - 1] != b[j - 1]);
            unsigned step = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = cost < step ? cost : step;
        }
    }
    return row[b_length];
}

const char *flags_nearest(const char *wrong, const char *(*name_at)(const void *ctx, uint32_t index),
                          const void *ctx)
{
    /* Two slips at most, and fewer than letters: more is another word. */
    unsigned best_distance = strlen(wrong) < 3 ? (unsigned)strlen(wrong) : 3;
    const char *best = NULL, *name;
    for (uint32_t i = 0; (name = name_at(ctx, i)); i++) {
        unsigned distance = edit_distance(wrong, name);
        if (distance < best_distance) {
            best_distance = distance;
            best = name;
        }
    }
    return best;
}

/* ---- values ---- */

static bool is_number_type(enum flag_type type)
{
    return type == FLAG_U32 || type == FLAG_U64 || type == FLAG_SIZE || type == FLAG_FLOAT;
}

static void number_limits(const struct flag *flag, double *min, double *max)
{
    *min = flag->min;
    *max = flag->max;
    if (flag->min == 0 && flag->max == 0) {
        *min = flag->type == FLAG_FLOAT ? -HUGE_VAL : 0;
        *max = flag->type == FLAG_U32 ? UINT32_MAX : HUGE_VAL;
    }
}

/* The words or names that a flag lists; NULL past the end. */
static const char *word_at(const struct flag *flag, uint32_t index)
{
    if (flag->name_at)
        return flag->name_at(index);
    for (const struct flag_word *word = flag->words; word && word->name; word++) {
        if (index-- == 0)
            return word->name;
    }
    return NULL;
}

/* "a, b, c" */
static void list_words(const struct flag *flag, char *out, size_t size)
{
    size_t at = 0;
    const char *name;
    out[0] = 0;
    for (uint32_t i = 0; (name = word_at(flag, i)) && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%s", i ? ", " : "", name);
}

static void print_limit(double value, enum flag_type type, char *out, size_t size)
{
    char text[SIZE_TEXT_SIZE];
    if (type == FLAG_SIZE && value < 0x1p64)
        snprintf(out, size, "%s", size_format((uint64_t)value, text));
    else if (type == FLAG_FLOAT)
        snprintf(out, size, "%g", value);
    else
        snprintf(out, size, "%.0f", value);
}

static enum flags_outcome out_of_range(const struct flag *flag, const char *text, struct ps_error *err)
{
    double min, max;
    char low[40], high[40];
    number_limits(flag, &min, &max);
    print_limit(min, flag->type, low, sizeof(low));
    print_limit(max, flag->type, high, sizeof(high));
    if (max == HUGE_VAL)
        ps_error_set(err, PS_ERR_ARGUMENT, "--%s: %s is out of range: use %s or more", flag->name, text, low);
    else
        ps_error_set(err, PS_ERR_ARGUMENT, "--%s: %s is out of range: use %s to %s", flag->name, text, low,
                     high);
    return FLAGS_BAD;
}

static enum flags_outcome not_a(const struct flag *flag, const char *text, struct ps_error *err)
{
    const char *kind = flag->type == FLAG_SIZE    ? "a size: use a number with K, M or G"
                       : flag->type == FLAG_FLOAT ? "a number"
                                                  : "a whole number";
    char words[128] = "";
    if (flag->words)
        list_words(flag, words, sizeof(words));
    ps_error_set(err, PS_ERR_ARGUMENT, "--%s: \"%s\" is not %s%s%s", flag->name, text, kind,
                 words[0] ? ", or " : "", words);
    return FLAGS_BAD;
}

static bool starts_number(const char *text)
{
    text += *text == '-';
    text += *text == '.';
    return *text >= '0' && *text <= '9';
}

static enum flags_outcome store_integer(const struct flag *flag, void *target, const char *text,
                                        struct ps_error *err)
{
    if (!starts_number(text))
        return not_a(flag, text, err);
    double min, max;
    number_limits(flag, &min, &max);
    bool negative = *text == '-', whole = true, overflow = false;
    uint64_t value = 0;
    if (flag->type == FLAG_SIZE) {
        whole = size_parse(text + negative, &value);
    } else {
        char *end;
        errno = 0;
        value = strtoull(text + negative, &end, 10);
        overflow = errno == ERANGE;
        whole = end != text + negative && *end == 0;
    }
    if (!whole)
        return not_a(flag, text, err);
    if (negative || overflow || (double)value < min || (double)value > max)
        return out_of_range(flag, text, err);
    if (flag->type == FLAG_U32)
        *(uint32_t *)target = (uint32_t)value;
    else
        *(uint64_t *)target = value;
    return FLAGS_OK;
}

static enum flags_outcome store_float(const struct flag *flag, void *target, const char *text,
                                      struct ps_error *err)
{
    double min, max;
    char *end = NULL;
    number_limits(flag, &min, &max);
    double value = starts_number(text) ? strtod(text, &end) : NAN;
    if (!end || *end || strpbrk(text, "xX"))
        return not_a(flag, text, err);
    if (!isfinite((float)value) || value < min || value > max)
        return out_of_range(flag, text, err);
    *(float *)target = (float)value;
    return FLAGS_OK;
}

static void store_number(const struct flag *flag, void *target, int64_t value)
{
    if (flag->type == FLAG_U32)
        *(uint32_t *)target = (uint32_t)value;
    else if (flag->type == FLAG_FLOAT)
        *(float *)target = (float)value;
    else if (flag->type == FLAG_CHOICE)
        *(int *)target = (int)value;
    else
        *(uint64_t *)target = (uint64_t)value;
}

/* Stores the value of a listed word, in either case: formats are written Q4_K and q4_k. False when text is none. */
static bool store_word(const struct flag *flag, void *target, const char *text)
{
    const char *name;
    for (uint32_t i = 0; flag->name_at && (name = flag->name_at(i)); i++) {
        if (strcasecmp(name, text) == 0) {
            *(const char **)target = name;
            return true;
        }
    }
    for (const struct flag_word *word = flag->words; word && word->name; word++) {
        if (strcasecmp(word->name, text) == 0) {
            store_number(flag, target, word->value);
            return true;
        }
    }
    return false;
}

static enum flags_outcome store_value(const struct flag *flag, void *target, const char *text,
                                      struct ps_error *err)
{
    if (flag->type == FLAG_STRING) {
        *(const char **)target = text;
        return FLAGS_OK;
    }
    if (flag->type == FLAG_ON_OFF) {
        bool on = strcmp(text, "on") == 0;
        if (!on && strcmp(text, "off") != 0) {
            ps_error_set(err, PS_ERR_ARGUMENT, "--%s: \"%s\" is not on or off", flag->name, text);
            return FLAGS_BAD;
        }
        *(bool *)target = on;
        return FLAGS_OK;
    }
    if (store_word(flag, target, text))
        return FLAGS_OK;
    if (!is_number_type(flag->type)) {
        char words[320];
        list_words(flag, words, sizeof(words));
        ps_error_set(err, PS_ERR_ARGUMENT, "--%s: unknown value \"%s\": use one of %s", flag->name, text,
                     words);
        return FLAGS_BAD;
    }
    return flag->type == FLAG_FLOAT ? store_float(flag, target, text, err)
                                    : store_integer(flag, target, text, err);
}

/* ---- parsing ---- */

enum { MAX_TARGETS = 128 }; /* flags given, for the check of required ones */

struct parse {
    const struct flag_spec *spec;
    int argc;
    char **argv;
    int at; /* next argument */
    uint32_t n_positionals;
    const struct flag *given[MAX_TARGETS];
    uint32_t n_given;
    struct ps_error *err;
};

static bool asks_help(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return true;
    }
    return false;
}

static bool is_given(const struct parse *parse, const struct flag *flag)
{
    for (uint32_t i = 0; i < parse->n_given; i++) {
        if (parse->given[i] == flag)
            return true;
    }
    return false;
}

static enum flags_outcome unknown_flag(const struct parse *parse, const char *argument, size_t length)
{
    char name[64];
    snprintf(name, sizeof(name), "%.*s", (int)(length < sizeof(name) ? length : sizeof(name) - 1), argument);
    const char *near =
        strncmp(name, "--", 2) == 0 ? flags_nearest(name + 2, flag_name_at, parse->spec) : NULL;
    if (near)
        ps_error_set(parse->err, PS_ERR_ARGUMENT, "%s: unknown flag: did you mean --%s?", name, near);
    else
        ps_error_set(parse->err, PS_ERR_ARGUMENT, "%s: unknown flag: see `penstock %s --help`", name,
                     parse->spec->command);
    return FLAGS_BAD;
}

/* The next argument is a value whatever it begins with, unless it is a flag of this command. */
static const char *take_value(struct parse *parse)
{
    if (parse->at >= parse->argc)
        return NULL;
    const char *value = parse->argv[parse->at];
    if (strncmp(value, "--", 2) == 0 && value[2]) {
        size_t length = strcspn(value + 2, "=");
        if (length && find_flag(parse->spec, value + 2, length, 0).flag)
            return NULL;
    }
    parse->at++;
    return value;
}

static enum flags_outcome parse_flag(struct parse *parse, const char *argument)
{
    bool is_long = argument[1] == '-';
    const char *equals = is_long ? strchr(argument, '=') : NULL;
    size_t length = equals ? (size_t)(equals - argument) : strlen(argument);
    struct found found = {0};
    if (is_long && length > 2)
        found = find_flag(parse->spec, argument + 2, length - 2, 0);
    else if (!is_long && length == 2)
        found = find_flag(parse->spec, NULL, 0, argument[1]);
    const struct flag *flag = found.flag;
    if (!flag)
        return unknown_flag(parse, argument, length);
    if (!is_given(parse, flag) && parse->n_given < MAX_TARGETS)
        parse->given[parse->n_given++] = flag;
    if (flag->type == FLAG_BOOL) {
        if (equals) {
            ps_error_set(parse->err, PS_ERR_ARGUMENT, "--%s: takes no value", flag->name);
            return FLAGS_BAD;
        }
        *(bool *)found.target = true;
        return FLAGS_OK;
    }
    const char *value = equals ? equals + 1 : take_value(parse);
    if (!value) {
        ps_error_set(parse->err, PS_ERR_ARGUMENT, "--%s: value missing: see `penstock %s --help`", flag->name,
                     parse->spec->command);
        return FLAGS_BAD;
    }
    return store_value(flag, found.target, value, parse->err);
}

static enum flags_outcome parse_positional(struct parse *parse, const char *argument)
{
    const struct flag_positional *row = parse->spec->positionals;
    for (uint32_t i = 0; row && row->name && i < parse->n_positionals; i++)
        row++;
    if (!row || !row->name) {
        ps_error_set(parse->err, PS_ERR_ARGUMENT, "unexpected argument \"%s\": see `penstock %s --help`",
                     argument, parse->spec->command);
        return FLAGS_BAD;
    }
    *row->target = argument;
    parse->n_positionals++;
    return FLAGS_OK;
}

static enum flags_outcome check_required(const struct parse *parse)
{
    const struct flag_positional *row = parse->spec->positionals;
    for (uint32_t i = 0; row && row->name; row++, i++) {
        if (row->required && i >= parse->n_positionals) {
            ps_error_set(parse->err, PS_ERR_ARGUMENT, "%s is missing: see `penstock %s --help`", row->name,
                         parse->spec->command);
            return FLAGS_BAD;
        }
    }
    for (const struct flag_group *group = parse->spec->groups; group && group->rows; group++) {
        for (const struct flag *flag = group->rows; flag->name; flag++) {
            if (flag->required && !is_given(parse, flag)) {
                ps_error_set(parse->err, PS_ERR_ARGUMENT, "--%s is missing: see `penstock %s --help`",
                             flag->name, parse->spec->command);
                return FLAGS_BAD;
            }
        }
    }
    return FLAGS_OK;
}

enum flags_outcome flags_parse(const struct flag_spec *spec, int argc, char **argv, struct ps_error *err)
{
    if (asks_help(argc, argv))
        return FLAGS_HELP;
    struct parse parse = {.spec = spec, .argc = argc, .argv = argv, .at = 1, .err = err};
    bool flags_ended = false;
    while (parse.at < argc) {
        const char *argument = argv[parse.at++];
        if (!flags_ended && strcmp(argument, "--") == 0) {
            flags_ended = true;
            continue;
        }
        bool is_flag = !flags_ended && argument[0] == '-' && argument[1];
        enum flags_outcome outcome =
            is_flag ? parse_flag(&parse, argument) : parse_positional(&parse, argument);
        if (outcome != FLAGS_OK)
            return outcome;
    }
    return check_required(&parse);
}

/* ---- help ---- */

static const char *default_metavar(enum flag_type type)
{
    static const char *const names[] = {
        [FLAG_BOOL] = "",       [FLAG_ON_OFF] = "on|off", [FLAG_U32] = "N",
        [FLAG_U64] = "N",       [FLAG_SIZE] = "SIZE",     [FLAG_FLOAT] = "X",
        [FLAG_STRING] = "TEXT", [FLAG_CHOICE] = "",       [FLAG_NAME] = "NAME",
    };
    return names[type];
}

/* What stands after the flag's name: the metavar, and the words that it takes beside or instead of it. */
static void print_metavar(const struct flag *flag, char *out, size_t size)
{
    const char *metavar = flag->metavar ? flag->metavar : default_metavar(flag->type);
    size_t at = (size_t)snprintf(out, size, "%s", metavar);
    if (flag->metavar && flag->type == FLAG_CHOICE)
        return;
    for (const struct flag_word *word = flag->words; word && word->name && at < size; word++)
        at += (size_t)snprintf(out + at, size - at, "%s%s", at ? "|" : "", word->name);
}

static double read_number(const struct flag *flag, const void *target)
{
    if (flag->type == FLAG_U32)
        return *(const uint32_t *)target;
    if (flag->type == FLAG_FLOAT)
        return *(const float *)target;
    if (flag->type == FLAG_CHOICE)
        return *(const int *)target;
    return (double)*(const uint64_t *)target;
}

/* The target's value as the user would write it; empty where there is nothing to say. */
static void print_value(const struct flag *flag, const void *target, char *out, size_t size)
{
    out[0] = 0;
    if (flag->type == FLAG_BOOL || flag->type == FLAG_ON_OFF) {
        snprintf(out, size, "%s", *(const bool *)target ? "on" : "off");
    } else if (flag->type == FLAG_STRING || flag->type == FLAG_NAME) {
        const char *text = *(const char *const *)target;
        snprintf(out, size, "%s", text ? text : "");
    } else {
        double value = read_number(flag, target);
        for (const struct flag_word *word = flag->words; word && word->name; word++) {
            if ((double)word->value == value) {
                snprintf(out, size, "%s", word->name);
                return;
            }
        }
        print_limit(value, flag->type, out, size);
    }
}

enum { HELP_COLUMN = 30 };

/* Text in the right column; its newlines are kept, its first line begins at column `at`. */
static void print_column(FILE *out, size_t at, const char *text)
{
    if (at + 2 > HELP_COLUMN) {
        fputc('\n', out);
        at = 0;
    }
    for (;;) {
        int length = (int)strcspn(text, "\n");
        fprintf(out, "%*s%.*s", HELP_COLUMN - (int)at, "", length, text);
        text += length;
        if (!*text++)
            return;
        fputc('\n', out);
        at = 0;
    }
}

/* The names a flag takes, as lines of the right column. */
static void print_names(const struct flag *flag, FILE *out)
{
    enum { LAST_COLUMN = 90 };
    size_t at = 0;
    const char *name;
    for (uint32_t i = 0; (name = word_at(flag, i)); i++) {
        bool first = at == 0;
        if (first || at + strlen(name) + 2 > LAST_COLUMN) {
            fprintf(out, "%s%*s", first ? "" : ",\n", HELP_COLUMN, "");
            at = HELP_COLUMN;
        } else {
            fputs(", ", out);
        }
        at += strlen(name) + 2;
        fputs(name, out);
    }
    fputc('\n', out);
}

static void print_flag(const struct flag *flag, const void *target, FILE *out)
{
    char metavar[160], left[256], value[80];
    print_metavar(flag, metavar, sizeof(metavar));
    char short_text[8] = "    ";
    if (flag->short_name)
        snprintf(short_text, sizeof(short_text), "-%c, ", flag->short_name);
    snprintf(left, sizeof(left), "  %s--%s%s%s", short_text, flag->name, metavar[0] ? " " : "", metavar);
    fputs(left, out);
    print_column(out, strlen(left), flag->help);
    print_value(flag, target, value, sizeof(value));
    bool not_given =
        strcmp(value, "0") == 0 || strcmp(value, "0 B") == 0; /* that is what 0 without a word means */
    if (!flag->required && flag->type != FLAG_BOOL && !not_given && value[0])
        fprintf(out, " [%s]", value);
    fputc('\n', out);
    if (flag->name_at || (flag->type == FLAG_CHOICE && flag->metavar))
        print_names(flag, out);
}

void flags_print_help(const struct flag_spec *spec, FILE *out)
{
    fprintf(out, "usage: penstock %s", spec->command);
    const struct flag_positional *row = spec->positionals;
    for (; row && row->name; row++)
        fprintf(out, row->required ? " %s" : " [%s]", row->name);
    fprintf(out, "%s\n\n%s\n", spec->groups ? " [flags]" : "", spec->summary);
    for (row = spec->positionals; row && row->name; row++) {
        fprintf(out, "%s  %s", row == spec->positionals ? "\n" : "", row->name);
        print_column(out, 2 + strlen(row->name), row->help);
        fputc('\n', out);
    }
    for (const struct flag_group *group = spec->groups; group && group->rows; group++) {
        fprintf(out, "\n%s:\n", group->title ? group->title : "Flags");
        for (const struct flag *flag = group->rows; flag->name; flag++)
            print_flag(flag, (const char *)group->target + flag->offset, out);
    }
    if (spec->examples)
        fprintf(out, "\nExamples:\n%s\n", spec->examples);
}

static bool is_listed(const char *const *names, const char *name)
{
    while (*names && strcmp(*names, name) != 0)
        names++;
    return *names != NULL;
}

void flags_print_changed(const struct flag *rows, const void *target, const void *defaults,
                         const char *const *except, FILE *out)
{
    char value[2][128];
    for (const struct flag *flag = rows; flag->name; flag++) {
        if (is_listed(except, flag->name))
            continue;
        print_value(flag, (const char *)target + flag->offset, value[0], sizeof(value[0]));
        print_value(flag, (const char *)defaults + flag->offset, value[1], sizeof(value[1]));
        if (strcmp(value[0], value[1]) != 0)
            fprintf(out, flag->type == FLAG_BOOL ? " --%s" : " --%s %s", flag->name, value[0]);
    }
}
