/* The files of a sweep: DIR/records.jsonl, which grows by a line per measurement and is what a sweep goes on from, and
 * DIR/records.csv, made of it. One process at a time. */
#ifndef PENSTOCK_RUNTIME_CLI_SWEEP_RECORDS_H
#define PENSTOCK_RUNTIME_CLI_SWEEP_RECORDS_H

#include <jansson.h>

#include "storage/status.h"

struct sweep_records {
    int fd; /* -1: not open */
    char *path, *csv_path;
};

/* Makes what is missing of directory (but not of the path to it). A last line that was not written whole is dropped.
 * PS_ERR_IO, also when another process has it open; PS_ERR_NOMEM. Wants closing in any case. */
enum ps_status sweep_records_open(struct sweep_records *records, const char *directory, struct ps_error *err);
void sweep_records_close(struct sweep_records *records);

/* The cell's key, which makes a record a sweep's; NULL: it is another command's. */
const char *sweep_record_cell(const json_t *record);

typedef enum ps_status sweep_record_fn(void *ctx, const json_t *record, struct ps_error *err);
/* Calls fn for each record, in the order of writing, until it fails. PS_ERR_FORMAT names the line that is no record. */
enum ps_status sweep_records_each(const struct sweep_records *records, sweep_record_fn *fn, void *ctx,
                                  struct ps_error *err);
/* On the drive when it returns. */
enum ps_status sweep_records_add(struct sweep_records *records, const json_t *record, struct ps_error *err);
/* Rows are the records of cells; columns the first one's fields, those of inner objects as OUTER.INNER. */
enum ps_status sweep_records_write_csv(const struct sweep_records *records, struct ps_error *err);

#endif
