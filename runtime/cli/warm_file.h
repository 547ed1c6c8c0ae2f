/* The file of the working set, as --warm says: on, off, or its path. */
#ifndef PENSTOCK_RUNTIME_CLI_WARM_FILE_H
#define PENSTOCK_RUNTIME_CLI_WARM_FILE_H

#include <stdbool.h>

#include "runtime/penstock.h"

struct warm_file {
    char *path;      /* owned; NULL: no working set is kept */
    bool own_folder; /* it is in the program's own cache folder, which is made when it is missing */
};

/* on: $XDG_CACHE_HOME/penstock or ~/.cache/penstock, under the model's fingerprint, so that a moved model keeps its set; no
 * file when neither place is known. False when memory runs out. */
bool warm_file_choose(struct warm_file *file, const char *flag, const struct ps_model *model);
void warm_file_free(struct warm_file *file);

/* One line on stderr where the file could not be used. */
void warm_file_report_load(const struct ps_model *model);
/* Saves the working set of a run that made some tokens; where that fails, one line on stderr. */
void warm_file_save(const struct warm_file *file, struct ps_model *model);

#endif
