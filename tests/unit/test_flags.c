/* The flag parser and size texts: every form that is accepted, and one line for every form that is not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The program's own part is not in a library. */
#include "runtime/cli/flags.c"

struct model_options {
    uint64_t ram;
    uint32_t threads;
    int io;
    bool direct;
};

struct options {
    struct model_options model;
    const char *prompt, *policy, *file, *second;
    uint64_t seed;
    float temperature;
    bool stats;
    int mode;
};

#define MODEL(field) offsetof(struct model_options, field)
#define OWN(field)   offsetof(struct options, field)

static const struct flag_word auto_word[] = {{"auto", 0}, {0}};
static const struct flag_word io_words[] = {{"auto", 0}, {"uring", 1}, {"threads", 2}, {0}};

static const char *policy_at(uint32_t index)
{
    static const char *const names[] = {"lru", "lfu"};
    return index < 2 ? names[index] : NULL;
}

static const struct flag model_flags[] = {
    {"ram", 0, FLAG_SIZE, MODEL(ram), .help = "memory", .words = auto_word},
    {"threads", 0, FLAG_U32, MODEL(threads), .help = "threads", .min = 1, .max = 256, .words = auto_word},
    {"io", 0, FLAG_CHOICE, MODEL(io), .help = "reader", .words = io_words},
    {"direct", 0, FLAG_ON_OFF, MODEL(direct), .help = "O_DIRECT"},
    {0},
};

static const struct flag own_flags[] = {
    {"prompt", 'p', FLAG_STRING, OWN(prompt), .help = "text\non two lines"},
    {"policy", 0, FLAG_NAME, OWN(policy), .help = "which", .name_at = policy_at},
    {"seed", 0, FLAG_U64, OWN(seed), .help = "seed"},
    {"temp", 't', FLAG_FLOAT, OWN(temperature), .help = "temperature", .min = 0, .max = 10},
    {"stats", 's', FLAG_BOOL, OWN(stats), .help = "statistics"},
    {"mode", 0, FLAG_CHOICE, OWN(mode), "HOW", .help = "mode:", .words = io_words},
    {0},
};

static struct options options;
static struct ps_error err;

static struct flag_spec make_spec(struct flag_group groups[3], struct flag_positional positionals[3])
{
    groups[0] = (struct flag_group){"Model", model_flags, &options.model};
    groups[1] = (struct flag_group){NULL, own_flags, &options};
    groups[2] = (struct flag_group){0};
    positionals[0] = (struct flag_positional){"FILE", &options.file, "the model", false};
    positionals[1] = (struct flag_positional){"SECOND", &options.second, "another", false};
    positionals[2] = (struct flag_positional){0};
    return (struct flag_spec){.command = "test",
                              .summary = "Tests.",
                              .examples = "  an example",
                              .positionals = positionals,
                              .groups = groups};
}

/* Splits line at spaces; "_" stands for an empty argument. */
static enum flags_outcome parse_line(const char *line)
{
    char text[256];
    char *argv[32] = {(char[]){"test"}};
    int argc = 1;
    struct flag_group groups[3];
    struct flag_positional positionals[3];
    struct flag_spec spec = make_spec(groups, positionals);
    static char *kept; /* options borrow from argv */
    options = (struct options){.model.direct = true, .temperature = 0.5f};
    err = (struct ps_error){0};
    snprintf(text, sizeof(text), "%s", line);
    free(kept);
    kept = strdup(text);
    for (char *word = strtok(kept, " "); word; word = strtok(NULL, " "))
        argv[argc++] = strcmp(word, "_") == 0 ? word + 1 : word;
    return flags_parse(&spec, argc, argv, &err);
}

static void parses_every_form_of_a_value(void **state)
{
    (void)state;
    assert_int_equal(
        parse_line("--ram 4.5G --threads=8 -p hello -t 0.25 --io uring --direct off --policy lfu"), FLAGS_OK);
    assert_true(options.model.ram == 9ull << 29);
    assert_int_equal(options.model.threads, 8);
    assert_string_equal(options.prompt, "hello");
    assert_true(options.temperature == 0.25f);
    assert_int_equal(options.model.io, 1);
    assert_false(options.model.direct);
    assert_string_equal(options.policy, "lfu");
    assert_false(options.stats);
    assert_int_equal(parse_line("--seed 18446744073709551615 -s --prompt= --temp .5"), FLAGS_OK);
    assert_true(options.seed == UINT64_MAX);
    assert_true(options.stats);
    assert_string_equal(options.prompt, "");
    assert_true(options.temperature == 0.5f);
}

static void words_stand_for_numbers(void **state)
{
    (void)state;
    assert_int_equal(parse_line("--ram 1G --ram auto --threads auto"), FLAGS_OK);
    assert_true(options.model.ram == 0);
    assert_int_equal(options.model.threads, 0);
}

static void words_may_be_in_either_case(void **state)
{
    (void)state;
    assert_int_equal(parse_line("--io URing --policy LFU"), FLAGS_OK);
    assert_int_equal(options.model.io, 1);
    assert_string_equal(options.policy, "lfu");
}

static void last_of_a_repeated_flag_wins(void **state)
{
    (void)state;
    assert_int_equal(parse_line("--seed 1 --seed 2"), FLAGS_OK);
    assert_true(options.seed == 2);
}

static void values_may_begin_with_a_dash(void **state)
{
    (void)state;
    assert_int_equal(parse_line("-p --hello --prompt -x"), FLAGS_OK);
    assert_string_equal(options.prompt, "-x");
    assert_int_equal(parse_line("--prompt=--ram"), FLAGS_OK);
    assert_string_equal(options.prompt, "--ram");
}

static void positionals_fill_in_order(void **state)
{
    (void)state;
    assert_int_equal(parse_line("a.gguf --stats -- --odd"), FLAGS_OK);
    assert_string_equal(options.file, "a.gguf");
    assert_string_equal(options.second, "--odd");
    assert_int_equal(parse_line("-"), FLAGS_OK);
    assert_string_equal(options.file, "-");
}

static void bad_lines_say_what_is_wrong(void **state)
{
    (void)state;
    static const struct {
        const char *line, *message;
    } cases[] = {
        {"--ram 5X", "--ram: \"5X\" is not a size: use a number with K, M or G, or auto"},
        {"--ram _", "--ram: \"\" is not a size: use a number with K, M or G, or auto"},
        {"--ram 99999999999T", "--ram: \"99999999999T\" is not a size: use a number with K, M or G, or auto"},
        {"--ram -1G", "--ram: -1G is out of range: use 0 B or more"},
        {"--threads 0", "--threads: 0 is out of range: use 1 to 256"},
        {"--threads -3", "--threads: -3 is out of range: use 1 to 256"},
        {"--threads 257", "--threads: 257 is out of range: use 1 to 256"},
        {"--threads 4x", "--threads: \"4x\" is not a whole number, or auto"},
        {"--threads 0x4", "--threads: \"0x4\" is not a whole number, or auto"},
        {"--threads 1.5", "--threads: \"1.5\" is not a whole number, or auto"},
        {"--seed 18446744073709551616", "--seed: 18446744073709551616 is out of range: use 0 or more"},
        {"--seed +1", "--seed: \"+1\" is not a whole number"},
        {"--temp -1", "--temp: -1 is out of range: use 0 to 10"},
        {"--temp 1e99", "--temp: 1e99 is out of range: use 0 to 10"},
        {"--temp 0.5.5", "--temp: \"0.5.5\" is not a number"},
        {"--temp 0x1p2", "--temp: \"0x1p2\" is not a number"},
        {"--temp nan", "--temp: \"nan\" is not a number"},
        {"--temp inf", "--temp: \"inf\" is not a number"},
        {"--io foo", "--io: unknown value \"foo\": use one of auto, uring, threads"},
        {"--policy arc", "--policy: unknown value \"arc\": use one of lru, lfu"},
        {"--direct maybe", "--direct: \"maybe\" is not on or off"},
        {"--stats=1", "--stats: takes no value"},
        {"--prompt", "--prompt: value missing: see `penstock test --help`"},
        {"-p --ram 4G", "--prompt: value missing: see `penstock test --help`"},
        {"--promt x", "--promt: unknown flag: did you mean --prompt?"},
        {"--elephant x", "--elephant: unknown flag: see `penstock test --help`"},
        {"-x", "-x: unknown flag: see `penstock test --help`"},
        {"-st", "-st: unknown flag: see `penstock test --help`"},
        {"--=3", "--: unknown flag: see `penstock test --help`"},
        {"a b c", "unexpected argument \"c\": see `penstock test --help`"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(parse_line(cases[i].line), FLAGS_BAD);
        assert_int_equal(err.status, PS_ERR_ARGUMENT);
        assert_string_equal(err.message, cases[i].message);
    }
}

static void required_ones_must_be_given(void **state)
{
    (void)state;
    const char *target = NULL, *file = NULL;
    const struct flag rows[] = {{"model", 'm', FLAG_STRING, 0, .help = "model", .required = true}, {0}};
    const struct flag_group groups[] = {{NULL, rows, &target}, {0}};
    const struct flag_positional positionals[] = {{"FILE", &file, "file", true}, {0}};
    const struct flag_spec spec = {
        .command = "test", .summary = "", .positionals = positionals, .groups = groups};
    char *argv[] = {(char[]){"test"}, (char[]){"-m"}, (char[]){"a"}, (char[]){"f"}};
    assert_int_equal(flags_parse(&spec, 4, argv, &err), FLAGS_OK);
    assert_int_equal(flags_parse(&spec, 3, argv, &err), FLAGS_BAD);
    assert_string_equal(err.message, "FILE is missing: see `penstock test --help`");
    argv[1] = argv[3];
    assert_int_equal(flags_parse(&spec, 2, argv, &err), FLAGS_BAD);
    assert_string_equal(err.message, "--model is missing: see `penstock test --help`");
}

static void help_wins_and_touches_nothing(void **state)
{
    (void)state;
    assert_int_equal(parse_line("--seed 7 --nonsense --help"), FLAGS_HELP);
    assert_true(options.seed == 0);
    assert_int_equal(parse_line("-h"), FLAGS_HELP);
    assert_int_equal(parse_line("-- --help"), FLAGS_OK);
}

static void help_shows_every_flag_with_its_default(void **state)
{
    (void)state;
    struct flag_group groups[3];
    struct flag_positional positionals[3];
    struct flag_spec spec = make_spec(groups, positionals);
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    assert_non_null(out);
    options =
        (struct options){.model = {.ram = 0, .threads = 3, .io = 2, .direct = true}, .temperature = 0.5f};
    flags_print_help(&spec, out);
    fclose(out);
    static const char *const parts[] = {
        "usage: penstock test [FILE] [SECOND] [flags]\n",
        "Model:\n",
        "Flags:\n",
        "Examples:\n  an example\n",
        "--ram SIZE|auto         memory [auto]\n",
        "--threads N|auto        threads [3]\n",
        "--io auto|uring|threads\n",
        "reader [threads]\n",
        "--direct on|off         O_DIRECT [on]\n",
        "  -p, --prompt TEXT           text\n                              on two lines\n",
        "  -t, --temp X                temperature [0.5]\n",
        "  -s, --stats                 statistics\n",
        "--policy NAME           which\n                              lru, lfu\n",
        "  FILE                        the model\n",
        "--mode HOW              mode: [auto]\n                              auto, uring, threads\n",
    };
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        if (!strstr(text, parts[i]))
            fail_msg("help lacks \"%s\":\n%s", parts[i], text);
    }
    free(text);
}

static void sizes_are_powers_of_1024(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        {"0", 0},
        {"1", 1},
        {"18446744073709551615", UINT64_MAX},
        {"1K", 1024},
        {"2k", 2048},
        {"3M", 3 << 20},
        {"4.8G", 5153960755}, /* 5153960755.2 */
        {"1T", 1ull << 40},
        {"17 B", 17},
        {"1.5 GiB", 3ull << 29},
        {"7MB", 7 << 20},
        {".5G", 1 << 29},
        {"2.G", 2ull << 30},
        {"0.1K", 102},
        {"0.00000000000000000000000000001G", 0},
    };
    static const char *const bad[] = {"",    ".",   "G",    " 1",  "1 ",        "1KK",
                                      "1X",  "-1",  "+1",   "1e3", "0x10",      "1.2.3",
                                      "1,5", "1G ", "1 Gi", "1bb", "16777216T", "18446744073709551616",
                                      "1BiB"};
    uint64_t bytes;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        if (!size_parse(good[i].text, &bytes) || bytes != good[i].bytes)
            fail_msg("\"%s\" is not %llu bytes", good[i].text, (unsigned long long)good[i].bytes);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (size_parse(bad[i], &bytes))
            fail_msg("\"%s\" was taken for a size", bad[i]);
    }
}

static void sizes_print_with_three_digits_and_read_back(void **state)
{
    (void)state;
    char text[SIZE_TEXT_SIZE];
    assert_string_equal(size_format(0, text), "0 B");
    assert_string_equal(size_format(1023, text), "1023 B");
    assert_string_equal(size_format(1024, text), "1.00 KiB");
    assert_string_equal(size_format(640 << 20, text), "640 MiB");
    assert_string_equal(size_format(5153960755, text), "4.80 GiB");
    assert_string_equal(size_format((1ull << 30) - 1, text), "1.00 GiB");
    assert_string_equal(size_format(UINT64_MAX, text), "16777216 TiB");
    for (uint64_t bytes = 1; bytes < 1ull << 50; bytes = bytes * 5 / 3 + 1) {
        uint64_t back;
        assert_true(size_parse(size_format(bytes, text), &back));
        assert_true((double)back > 0.994 * (double)bytes && (double)back < 1.006 * (double)bytes);
    }
}

static const char *changed(const char *line, const char *const *except)
{
    static char text[256];
    const struct options defaults = {.model.direct = true, .temperature = 0.5f};
    assert_int_equal(parse_line(line), FLAGS_OK);
    FILE *out = fmemopen(text, sizeof(text), "w");
    flags_print_changed(model_flags, &options.model, &defaults.model, except, out);
    flags_print_changed(own_flags, &options, &defaults, except, out);
    fclose(out);
    return text;
}

static void what_differs_from_the_defaults_is_printed_as_it_is_written(void **state)
{
    (void)state;
    const char *const none[] = {NULL}, *const two[] = {"threads", "stats", NULL};
    assert_string_equal(changed("--direct on --temp 0.5 --io auto", none), "");
    assert_string_equal(
        changed("--threads 8 --io uring --direct off -p hello --policy lfu -t 0.25 -s", none),
        " --threads 8 --io uring --direct off --prompt hello --policy lfu --temp 0.25 --stats");
    assert_string_equal(changed("--threads 8 --temp 0 -s", two), " --temp 0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parses_every_form_of_a_value),
        cmocka_unit_test(words_stand_for_numbers),
        cmocka_unit_test(words_may_be_in_either_case),
        cmocka_unit_test(last_of_a_repeated_flag_wins),
        cmocka_unit_test(values_may_begin_with_a_dash),
        cmocka_unit_test(positionals_fill_in_order),
        cmocka_unit_test(bad_lines_say_what_is_wrong),
        cmocka_unit_test(required_ones_must_be_given),
        cmocka_unit_test(help_wins_and_touches_nothing),
        cmocka_unit_test(help_shows_every_flag_with_its_default),
        cmocka_unit_test(what_differs_from_the_defaults_is_printed_as_it_is_written),
        cmocka_unit_test(sizes_are_powers_of_1024),
        cmocka_unit_test(sizes_print_with_three_digits_and_read_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
