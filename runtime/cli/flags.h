/* Command-line flags as rows of a table: one row says how a flag is written, what it takes, where the value
 * goes and what --help prints. A command lists one or more groups of rows, so commands can share them:
 *
 *     static const struct flag run_flags[] = {
 *         {"temp", 't', FLAG_FLOAT, offsetof(struct run_options, temperature), .help = "randomness", .max = 10}, {0}};
 *     struct run_options options = {.model = MODEL_OPTIONS_DEFAULT, .temperature = 0.8f};
 *     const struct flag_group groups[] = {
 *         {"Model and memory", model_flags, &options.model}, {"Sampling", run_flags, &options}, {0}};
 *
 * A row's target is offset bytes into its group's struct. What the structs hold before parsing is the
 * default, and
 * --help prints it. Written: --name value, --name=value, -n value; "--" ends the flags; a flag given twice
 * takes its last value. Nothing here prints to stderr or exits; strings are borrowed from argv. */
#ifndef PENSTOCK_RUNTIME_CLI_FLAGS_H
#define PENSTOCK_RUNTIME_CLI_FLAGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "storage/status.h"

enum flag_type {              /* the target's C type */
                 FLAG_BOOL,   /* bool: set to true; takes no value */
                 FLAG_ON_OFF, /* bool: "on" or "off" */
                 FLAG_U32,    /* uint32_t */
                 FLAG_U64,    /* uint64_t */
                 FLAG_SIZE,   /* uint64_t bytes: "4.8G" */
                 FLAG_FLOAT,  /* float */
                 FLAG_STRING, /* const char *: any text, an empty one too */
                 FLAG_CHOICE, /* int or an enum: one of `words` */
                 FLAG_NAME, /* const char *: one of the names that name_at lists; the listing's own pointer */
};

struct flag_word {
    const char *name; /* NULL ends a list */
    int64_t value;
};

struct flag {
    const char *name; /* without "--"; NULL ends the rows */
    char short_name;  /* 0: none */
    enum flag_type type;
    size_t offset; /* of the target, bytes into the group's struct */
    const char
        *metavar; /* NULL: what fits the type; a FLAG_CHOICE that has one lists its words below the help */
    const char *help; /* may hold newlines; the default is added */
    double min, max;  /* numbers and sizes, both inclusive; 0, 0: whatever the type holds */
    const struct flag_word
        *words; /* FLAG_CHOICE; for numbers and sizes: words that stand for a value ("auto") */
    const char *(*name_at)(uint32_t index); /* FLAG_NAME; NULL past the end */
    bool required;
};

struct flag_group {
    const char *title;       /* heading in --help; NULL: "Flags" */
    const struct flag *rows; /* NULL ends the groups */
    void *target;            /* the struct that the rows' offsets refer to */
};

struct flag_positional {
    const char *name; /* as --help shows it: "FILE"; NULL ends the list */
    const char **target;
    const char *help;
    bool required;
};

struct flag_spec {
    const char *command;                       /* "run", "bench io" */
    const char *summary;                       /* what it does; one or more lines */
    const char *examples;                      /* lines; NULL: none */
    const struct flag_positional *positionals; /* NULL: none are taken */
    const struct flag_group *groups;           /* NULL: none */
};

enum flags_outcome {
    FLAGS_OK,
    FLAGS_HELP, /* --help or -h was given; targets are untouched */
    FLAGS_BAD,  /* err says which flag, what is wrong and what would be right */
};

/* argv[0] is skipped. --help or -h anywhere before "--" wins over everything else, errors included. */
enum flags_outcome flags_parse(const struct flag_spec *spec, int argc, char **argv, struct ps_error *err);

/* Usage line, summary, flags by group and examples. */
void flags_print_help(const struct flag_spec *spec, FILE *out);

/* The flags whose targets hold something else in `target` than in `defaults`, as they would be written: " --kv q8_0 --substitute".
 * except: names that are left out, NULL ends them. */
void flags_print_changed(const struct flag *rows, const void *target, const void *defaults,
                         const char *const *except, FILE *out);

/* The listed name that a misspelt one most likely meant; NULL when none is near. name_at(ctx, i): NULL past
 * the end. */
const char *flags_nearest(const char *wrong, const char *(*name_at)(const void *ctx, uint32_t index),
                          const void *ctx);

#endif
