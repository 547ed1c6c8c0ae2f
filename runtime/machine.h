/* What this machine and this process can have: memory limits, resident size, drive counters. Linux interfaces only. */
#ifndef PENSTOCK_RUNTIME_MACHINE_H
#define PENSTOCK_RUNTIME_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

uint64_t machine_rss_bytes(void);      /* resident now; 0 when /proc is not there */
uint64_t machine_peak_rss_bytes(void); /* since the process started */
/* Memory this process may still take, by MemAvailable and the limits of its cgroups (v1 and v2); bytes. */
uint64_t machine_memory_available(void);
/* What the block device that holds a file has read since boot, by its own counters; bytes, everybody's reads. False where
 * there is not one device behind the file system, or it is not known here. */
bool machine_drive_bytes_read(const char *path, uint64_t *bytes);

#endif
