#include "runtime/cli/child_process.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/cli/cli.h"

enum { LOOK_MS = 100 }; /* between two looks at the interrupt flag */

void *child_process_memory(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

void child_process_memory_free(void *memory, size_t size)
{
    if (memory)
        munmap(memory, size);
}

_Noreturn static void run_child(int (*fn)(void *ctx), void *ctx, int messages, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) /* it ended before that */
        _exit(CLI_FAILED);
    dup2(messages, STDERR_FILENO);
    int exit_code = fn(ctx);
    fflush(NULL);
    _exit(exit_code);
}

/* The pipe's other end is held by the child alone: it closes when that ends. */
static int wait_for(pid_t child, int end_of_pipe)
{
    struct pollfd pipe_end = {.fd = end_of_pipe, .events = POLLIN};
    bool told = false;
    while (poll(&pipe_end, 1, LOOK_MS) <= 0) {
        if (cli_interrupted() && !told) {
            kill(child, SIGTERM);
            told = true;
        }
    }
    int status;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return status;
}

/* The last message, among all that was printed. */
static void read_messages(int fd, char said[PS_ERROR_MESSAGE_SIZE])
{
    static const char prefix[] = "penstock: ";
    char line[PS_ERROR_MESSAGE_SIZE + sizeof(prefix) - 1];
    FILE *file = fdopen(fd, "r");
    if (!file) {
        close(fd);
        return;
    }
    rewind(file);
    while (fgets(line, sizeof(line), file)) {
        if (strncmp(line, prefix, sizeof(prefix) - 1) != 0)
            continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(said, PS_ERROR_MESSAGE_SIZE, "%s", line + sizeof(prefix) - 1);
    }
    fclose(file);
}

int child_process_run(int (*fn)(void *ctx), void *ctx, char said[PS_ERROR_MESSAGE_SIZE])
{
    int ends[2];
    int messages = memfd_create("messages", MFD_CLOEXEC);
    said[0] = 0;
    if (messages < 0 || pipe(ends) != 0) {
        snprintf(said, PS_ERROR_MESSAGE_SIZE, "cannot start a process: %s", strerror(errno));
        if (messages >= 0)
            close(messages);
        return CLI_FAILED;
    }
    fflush(NULL); /* or both would print it */
    pid_t parent = getpid();
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        run_child(fn, ctx, messages, parent);
    }
    int error = errno, status = 0;
    close(ends[1]);
    if (child > 0)
        status = wait_for(child, ends[0]);
    close(ends[0]);
    read_messages(messages, said);
    if (child < 0)
        snprintf(said, PS_ERROR_MESSAGE_SIZE, "cannot start a process: %s", strerror(error));
    else if (WIFSIGNALED(status))
        snprintf(said, PS_ERROR_MESSAGE_SIZE, "its process was killed by signal %d%s", WTERMSIG(status),
                 WTERMSIG(status) == SIGKILL ? ": is a memory limit too tight?" : "");
    return child > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : CLI_FAILED;
}
