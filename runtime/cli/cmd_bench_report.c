/* penstock bench report: plots of a folder of measurements (gnuplot draws them), and a page that holds them. */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/cli/bench_page.h"
#include "runtime/cli/cli.h"

struct report_options {
    const char *dir;
    bool plots_only;
};

#define OPTION(field) offsetof(struct report_options, field)

static const struct flag report_rows[] = {
    {"plots-only", 0, FLAG_BOOL, OPTION(plots_only), .help = "no page, only DIR/plots"},
    {0},
};

struct report {
    const struct report_options *options;
    char *records, *plots_dir, *page; /* paths */
    struct results results;
    struct bench_section *sections; /* [results.n_groups] */
};

/* ---- gnuplot ---- */

/* argument: after -d, which makes it ignore the user's own settings. quiet: without what it prints. exit_code: 127 where there
 * is no gnuplot. */
static enum ps_status run_gnuplot(const char *dir, char *argument, bool quiet, int *exit_code,
                                  struct ps_error *err)
{
    char program[] = "gnuplot", defaults[] = "-d";
    char *argv[] = {program, defaults, argument, NULL};
    posix_spawn_file_actions_t actions;
    pid_t pid;
    int wait_status = 0;
    int error = posix_spawn_file_actions_init(&actions);
    if (error)
        return ps_error_set(err, PS_ERR_NOMEM, "gnuplot: %s", strerror(error));
    error = posix_spawn_file_actions_addchdir_np(&actions, dir);
    for (int fd = 1; fd <= 2 && quiet && !error; fd++)
        error = posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_WRONLY, 0);
    if (!error)
        error = posix_spawnp(&pid, program, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    *exit_code = error == ENOENT ? 127 : 1;
    if (error == ENOENT)
        return PS_OK;
    if (error)
        return ps_error_set(err, PS_ERR_IO, "gnuplot: %s", strerror(error));
    while (waitpid(pid, &wait_status, 0) < 0) {
        if (errno != EINTR)
            return ps_error_set(err, PS_ERR_IO, "gnuplot: %s", strerror(errno));
    }
    *exit_code = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
    return PS_OK;
}

static enum ps_status need_gnuplot(struct ps_error *err)
{
    char version[] = "--version";
    int exit_code;
    enum ps_status status = run_gnuplot("/", version, true, &exit_code, err);
    if (status == PS_OK && exit_code != 0)
        status = ps_error_set(
            err, PS_ERR_UNSUPPORTED,
            "gnuplot: not found: install it to draw plots (Debian, Ubuntu: apt-get install gnuplot-nox)");
    return status;
}

static enum ps_status write_script(const char *path, const char *script, struct ps_error *err)
{
    FILE *file = fopen(path, "w");
    bool failed = !file || fputs(script, file) < 0;
    if (file)
        failed |= fclose(file) != 0;
    return failed ? ps_error_set(err, PS_ERR_IO, "%s: %s", path, strerror(errno)) : PS_OK;
}

/* malloc'ed; NULL when memory runs out. */
static char *path_in(const char *dir, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

/* gnuplot says nothing of a drive that is full. */
static enum ps_status check_image(const struct report *r, const struct bench_plot *plot, const char *suffix,
                                  const char *ending, struct ps_error *err)
{
    char name[BENCH_PLOT_NAME_SIZE + 4], last[16];
    snprintf(name, sizeof(name), "%s.%s", plot->name, suffix);
    char *path = path_in(r->plots_dir, name);
    FILE *file = path ? fopen(path, "re") : NULL;
    bool whole = file && fseek(file, -(long)sizeof(last), SEEK_END) == 0 &&
                 fread(last, 1, sizeof(last), file) == sizeof(last) &&
                 memmem(last, sizeof(last), ending, strlen(ending));
    if (file)
        fclose(file);
    if (!whole)
        ps_error_set(err, PS_ERR_IO, "%s/%s: gnuplot did not write it whole: is there space?", r->plots_dir,
                     name);
    free(path);
    return whole ? PS_OK : PS_ERR_IO;
}

/* The script stays beside its images, for a plot of one's own. */
static enum ps_status make_images(const struct report *r, const struct bench_plot *plot, struct ps_error *err)
{
    char name[BENCH_PLOT_NAME_SIZE + 4];
    int exit_code = 0;
    snprintf(name, sizeof(name), "%s.gp", plot->name);
    char *path = path_in(r->plots_dir, name);
    if (!path)
        return ps_error_set(err, PS_ERR_NOMEM, "bench report: out of memory");
    enum ps_status status = write_script(path, plot->script, err);
    if (status == PS_OK)
        status = run_gnuplot(r->plots_dir, name, false, &exit_code, err);
    if (status == PS_OK && exit_code != 0)
        status = ps_error_set(err, PS_ERR_IO, "%s: gnuplot ends with exit code %d: see what it says above",
                              path, exit_code);
    free(path);
    if (status == PS_OK)
        status = check_image(r, plot, "svg", "</svg>", err);
    return status == PS_OK ? check_image(r, plot, "png", "IEND\xAE", err) : status;
}

/* ---- report ---- */

static enum ps_status make_plots(struct report *r, uint32_t *n_plots, struct ps_error *err)
{
    uint32_t number[RESULT_N_KINDS] = {0};
    if (mkdir(r->plots_dir, 0777) != 0 && errno != EEXIST)
        return ps_error_set(err, PS_ERR_IO, "%s: %s", r->plots_dir, strerror(errno));
    for (uint32_t i = 0; i < r->results.n_groups; i++) {
        const struct result_group *group = &r->results.groups[i];
        struct bench_section *section = &r->sections[i];
        enum ps_status status =
            bench_plots_draw(section->plots, &section->n_plots, group, ++number[group->kind], err);
        for (uint32_t k = 0; k < section->n_plots && status == PS_OK; k++) {
            const struct bench_plot *plot = &section->plots[k];
            if (cli_interrupted())
                return ps_error_set(err, PS_ERR_CANCELLED, "bench report: interrupted");
            if (plot->missing) {
                fprintf(stderr, "%s left out: %s\n", plot->name, plot->missing);
                continue;
            }
            status = make_images(r, plot, err);
            (*n_plots)++;
        }
        if (status != PS_OK)
            return status;
    }
    return PS_OK;
}

static enum ps_status report_make(struct report *r, struct ps_error *err)
{
    const char *dir = r->options->dir;
    uint32_t n_plots = 0;
    r->records = path_in(dir, "records.jsonl");
    r->plots_dir = path_in(dir, "plots");
    r->page = path_in(dir, "report.html");
    if (!r->records || !r->plots_dir || !r->page)
        return ps_error_set(err, PS_ERR_NOMEM, "bench report: out of memory");
    enum ps_status status;
    if ((status = results_read(&r->results, r->records, err)) != PS_OK ||
        (status = need_gnuplot(err)) != PS_OK)
        return status;
    r->sections = calloc(r->results.n_groups, sizeof(*r->sections));
    if (!r->sections)
        return ps_error_set(err, PS_ERR_NOMEM, "bench report: out of memory");
    if ((status = make_plots(r, &n_plots, err)) != PS_OK)
        return status;
    cli_printf("%s: %u plots as SVG and PNG, from %u records\n", r->plots_dir, n_plots, r->results.n_records);
    if (r->options->plots_only)
        return PS_OK;
    status = bench_page_write(r->page, r->plots_dir, r->records, &r->results, r->sections, err);
    if (status == PS_OK)
        cli_printf("%s\n", r->page);
    return status;
}

static void report_deinit(struct report *r)
{
    for (uint32_t i = 0; r->sections && i < r->results.n_groups; i++) {
        for (uint32_t k = 0; k < r->sections[i].n_plots; k++)
            bench_plot_deinit(&r->sections[i].plots[k]);
    }
    free(r->sections);
    results_deinit(&r->results);
    free(r->records);
    free(r->plots_dir);
    free(r->page);
}

int cmd_bench_report(int argc, char **argv)
{
    struct report_options options = {0};
    const struct flag_group groups[] = {{NULL, report_rows, &options}, {0}};
    const struct flag_positional positionals[] = {
        {"DIR", &options.dir, "holds records.jsonl, as `bench sweep` writes it", true}, {0}};
    const struct flag_spec spec = {
        .command = "bench report",
        .summary =
            "Draws what a folder of measurements says, and writes DIR/report.html: one page with the plots, "
            "the\n"
            "machine, and what twice the drive or twice the RAM would bring. The plots are also in "
            "DIR/plots, as\n"
            "SVG, PNG and the gnuplot script of each. Needs gnuplot. Lines of records.jsonl are records of\n"
            "`bench decode`, `bench prefill` (--json-lines) and `bench io` (--json).",
        .examples =
            "  penstock bench sweep -m model.gguf --ram 4G,8G,16G --io-limit 500M,1G,2G,none -o results\n"
            "  penstock bench report results",
        .positionals = positionals,
        .groups = groups};
    int exit_code;
    if (!cli_parse(&spec, argc, argv, &exit_code))
        return exit_code;
    struct report report = {.options = &options};
    struct ps_error err;
    cli_catch_interrupt();
    enum ps_status status = report_make(&report, &err);
    report_deinit(&report);
    return status == PS_OK ? CLI_OK : cli_status(&err);
}
