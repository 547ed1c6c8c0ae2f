/* Working set file: see the header. */
#include "runtime/cli/warm_file.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/cli/cli.h"

/* A relative path in these variables means nothing (XDG Base Directory Specification). */
static const char *folder_of(const char *variable)
{
    const char *folder = getenv(variable);
    return folder && folder[0] == '/' ? folder : NULL;
}

bool warm_file_choose(struct warm_file *file, const char *flag, const struct ps_model *model)
{
    *file = (struct warm_file){0};
    if (strcmp(flag, "off") == 0)
        return true;
    if (strcmp(flag, "on") != 0) {
        file->path = strdup(flag);
        return file->path != NULL;
    }
    const char *cache = folder_of("XDG_CACHE_HOME");
    const char *home = folder_of("HOME");
    if (!cache && !home)
        return true;
    int length = asprintf(&file->path, "%s%s/penstock/%016" PRIx64 ".experts", cache ? cache : home,
                          cache ? "" : "/.cache", ps_model_fingerprint(model));
    if (length < 0)
        file->path = NULL;
    file->own_folder = true;
    return file->path != NULL;
}

void warm_file_free(struct warm_file *file)
{
    free(file->path);
    *file = (struct warm_file){0};
}

void warm_file_report_load(const struct ps_model *model)
{
    struct ps_error err;
    if (ps_model_working_set_status(model, &err) != PS_OK)
        cli_error(CLI_OK, "warning: --warm: %s", err.message);
}

/* The last two folders of the path. What cannot be made shows when the file is written. */
static void make_folder(const struct warm_file *file)
{
    char *folder = strdup(file->path);
    if (!folder)
        return;
    *strrchr(folder, '/') = 0;
    char *last = strrchr(folder, '/');
    *last = 0;
    mkdir(folder, 0700);
    *last = '/';
    mkdir(folder, 0700);
    free(folder);
}

void warm_file_save(const struct warm_file *file, struct ps_model *model)
{
    struct ps_error err;
    if (!file->path)
        return;
    if (file->own_folder)
        make_folder(file);
    if (ps_model_save_working_set(model, &err) != PS_OK)
        cli_error(CLI_OK, "warning: --warm: %s", err.message);
}
