/* What `bench decode` and `bench prefill` found, as a table. */
#ifndef PENSTOCK_RUNTIME_CLI_BENCH_REPORT_H
#define PENSTOCK_RUNTIME_CLI_BENCH_REPORT_H

#include <stdio.h>

#include "runtime/cli/bench_record.h"

/* Of values, which come back ascending; n > 0. */
double bench_median(double *values, uint32_t n);

/* Median, least and most over the records; n > 0. False when memory runs out. */
bool bench_report_print(FILE *out, const struct bench_record *records, uint32_t n);

#endif
