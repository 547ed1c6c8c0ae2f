/* What all commands share: exit codes, messages, stdout that may break, interruption, and the command table's
 * entries. Errors are one line on stderr, `penstock: what: why: what to do`. */
#ifndef PENSTOCK_RUNTIME_CLI_CLI_H
#define PENSTOCK_RUNTIME_CLI_CLI_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "runtime/cli/flags.h"
#include "storage/status.h"

enum cli_exit {
    CLI_OK = 0,
    CLI_FAILED = 1,
    CLI_USAGE = 2,
    CLI_INTERRUPTED = 130, /* 128 + SIGINT, as shells report it */
};

/* Commands: argv[0] is the command's name; the result is the exit code. */
int cmd_run(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_bench_io(int argc, char **argv);
int cmd_bench_kernels(int argc, char **argv);
int cmd_bench_report(int argc, char **argv);
int cmd_bench_sweep(int argc, char **argv);
int cmd_trace(int argc, char **argv);
int cmd_simulate(int argc, char **argv);
int cmd_synth(int argc, char **argv);
int cmd_pack(int argc, char **argv);
int cmd_unpack(int argc, char **argv);

/* A command, or a sub-command in a table of its own. */
struct cli_command {
    const char *name; /* NULL ends a table */
    const char *summary;
    int (*main)(int argc, char **argv);
};

/* Runs the command that argv[1] names. parent: "penstock", "penstock bench". Handles --help, -h, help [NAME],
 * no name, and an unknown one. about: the paragraph above the list in the help. */
int cli_dispatch(const char *parent, const char *about, const struct cli_command *commands, int argc,
                 char **argv);

/* Fills the targets of spec. False: the command is over (help was printed, or the error), *exit_code says
 * how. */
bool cli_parse(const struct flag_spec *spec, int argc, char **argv, int *exit_code);

/* Prints `penstock: ...` as one line and returns exit_code. */
__attribute__((format(printf, 2, 3))) int cli_error(int exit_code, const char *format, ...);
/* Prints err's message and returns the exit code that fits its status. */
int cli_status(const struct ps_error *err);

/* Standard output. False once it failed (closed pipe, full disk): stop producing. The failure is reported
 * once, by cli_finish; nothing is raised, as SIGPIPE is ignored. */
bool cli_write(const void *bytes, size_t n);
__attribute__((format(printf, 1, 2))) bool cli_printf(const char *format, ...);
bool cli_flush(void);
/* Flushes; returns exit_code, or CLI_FAILED after one line when stdout failed. cli_dispatch's caller ends
 * with it. */
int cli_finish(int exit_code);

/* From here on the first SIGINT or SIGTERM only sets the flag that cli_interrupted reads; a second one kills.
 * Blocked system calls return EINTR. */
void cli_catch_interrupt(void);
bool cli_interrupted(void);
/* The flag itself, for loops below the CLI that take a pointer to watch. */
const volatile sig_atomic_t *cli_interrupt_flag(void);

/* Ignores SIGPIPE and makes sure that descriptors 0-2 are open, so that no file of ours becomes stdout. */
void cli_init(void);

#endif
