#include "runtime/cli/transfer_progress.h"

#include <stdio.h>
#include <unistd.h>

#include "runtime/clock.h"
#include "runtime/size_text.h"

void transfer_progress_begin(struct transfer_progress *progress, const char *path)
{
    double now = clock_seconds();
    *progress =
        (struct transfer_progress){.path = path, .shown = isatty(STDERR_FILENO), .start = now, .last = now};
}

void transfer_progress_say(const struct transfer_progress *progress, const char *what)
{
    if (progress->shown)
        fprintf(stderr, "\r%s: %s \033[K", progress->path, what);
}

static void print_left(double seconds)
{
    if (seconds >= 5400.0)
        fprintf(stderr, "%.1f h left", seconds / 3600.0);
    else if (seconds >= 90.0)
        fprintf(stderr, "%.0f min left", seconds / 60.0);
    else
        fprintf(stderr, "%.0f s left", seconds);
}

void transfer_progress_update(struct transfer_progress *progress, uint64_t done, uint64_t total)
{
    double now = clock_seconds();
    if (!progress->begun)
        progress->first = done;
    progress->begun = true;
    if (!progress->shown || now - progress->last < 0.2)
        return;
    char done_text[SIZE_TEXT_SIZE], total_text[SIZE_TEXT_SIZE], rate_text[SIZE_TEXT_SIZE];
    double rate = (double)(done - progress->first) / (now - progress->start);
    fprintf(stderr, "\r%s: %s of %s, %s/s, ", progress->path, size_format(done, done_text),
            size_format(total, total_text), size_format((uint64_t)rate, rate_text));
    if (rate > 0.0)
        print_left((double)(total - done) / rate);
    fputs(" \033[K", stderr);
    progress->last = now;
}

void transfer_progress_end(struct transfer_progress *progress)
{
    if (progress->shown)
        fputs("\r\033[K", stderr);
}
