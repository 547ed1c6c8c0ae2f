#include "runtime/cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

/* ---- messages ---- */

int cli_error(int exit_code, const char *format, ...)
{
    struct ps_error line; /* ps_error_set's rules keep a message to one line */
    char text[PS_ERROR_MESSAGE_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    ps_error_set(&line, PS_ERR_ARGUMENT, "%s", text);
    fprintf(stderr, "penstock: %s\n", line.message);
    return exit_code;
}

int cli_status(const struct ps_error *err)
{
    int code = err->status == PS_ERR_ARGUMENT    ? CLI_USAGE
               : err->status == PS_ERR_CANCELLED ? CLI_INTERRUPTED
                                                 : CLI_FAILED;
    return cli_error(code, "%s", err->message);
}

/* ---- standard output ---- */

static int stdout_error; /* errno of the first failure; only the main thread writes to stdout */

static bool stdout_result(bool ok)
{
    if (!ok && !stdout_error)
        stdout_error = errno ? errno : EIO;
    return !stdout_error;
}

bool cli_write(const void *bytes, size_t n)
{
    errno = 0;
    return stdout_result(stdout_error == 0 && fwrite(bytes, 1, n, stdout) == n);
}

bool cli_printf(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    errno = 0;
    bool ok = stdout_error == 0 && vfprintf(stdout, format, args) >= 0;
    va_end(args);
    return stdout_result(ok);
}

bool cli_flush(void)
{
    errno = 0;
    return stdout_result(stdout_error == 0 && fflush(stdout) == 0 && !ferror(stdout));
}

int cli_finish(int exit_code)
{
    if (cli_flush())
        return exit_code;
    if (cli_interrupted())
        return CLI_INTERRUPTED;
    return cli_error(exit_code ? exit_code : CLI_FAILED, "standard output: %s", strerror(stdout_error));
}

/* ---- signals and descriptors ---- */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

void cli_catch_interrupt(void)
{
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool cli_interrupted(void)
{
    return interrupted;
}

const volatile sig_atomic_t *cli_interrupt_flag(void)
{
    return &interrupted;
}

void cli_init(void)
{
    signal(SIGPIPE, SIG_IGN);
    for (int fd = 0; fd <= 2; fd++) {
        /* The wrong direction on purpose: using a stream that the caller closed must still fail. */
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) < 0)
            return;
    }
}

/* ---- commands ---- */

static const char *command_name_at(const void *ctx, uint32_t index)
{
    return ((const struct cli_command *)ctx)[index].name;
}

static const struct cli_command *find_command(const struct cli_command *commands, const char *name)
{
    for (; commands->name; commands++) {
        if (strcmp(commands->name, name) == 0)
            return commands;
    }
    return NULL;
}

static void print_commands(const char *parent, const char *about, const struct cli_command *commands,
                           FILE *out)
{
    fprintf(out, "usage: %s <command> [flags]\n\n%s\n\nCommands:\n", parent, about);
    for (; commands->name; commands++)
        fprintf(out, "  %-10s %s\n", commands->name, commands->summary);
    fprintf(out, "\n`%s <command> --help` lists a command's flags.\n", parent);
}

static bool is_help(const char *argument)
{
    return strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0 || strcmp(argument, "help") == 0;
}

int cli_dispatch(const char *parent, const char *about, const struct cli_command *commands, int argc,
                 char **argv)
{
    if (argc < 2) {
        print_commands(parent, about, commands, stderr);
        return CLI_USAGE;
    }
    bool help = is_help(argv[1]);
    if (help && argc < 3) {
        print_commands(parent, about, commands, stdout);
        return CLI_OK;
    }
    const char *name = argv[help ? 2 : 1];
    const struct cli_command *command = find_command(commands, name);
    if (!command) {
        const char *near = flags_nearest(name, command_name_at, commands);
        if (near)
            return cli_error(CLI_USAGE, "%s: unknown command: did you mean %s?", name, near);
        return cli_error(CLI_USAGE, "%s: unknown command: see `%s --help`", name, parent);
    }
    if (!help)
        return command->main(argc - 1, argv + 1);
    char flag[] = "--help";
    char *help_argv[] = {argv[2], flag, NULL};
    return command->main(2, help_argv);
}

bool cli_parse(const struct flag_spec *spec, int argc, char **argv, int *exit_code)
{
    struct ps_error err;
    switch (flags_parse(spec, argc, argv, &err)) {
    case FLAGS_OK:
        return true;
    case FLAGS_HELP:
        flags_print_help(spec, stdout);
        *exit_code = CLI_OK;
        return false;
    case FLAGS_BAD:
        break;
    }
    *exit_code = cli_status(&err);
    return false;
}
