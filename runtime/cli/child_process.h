/* A function run in a process of its own, so that the memory it takes and the threads it starts leave no trace in this
 * one. To be called while this process has one thread. */
#ifndef PENSTOCK_RUNTIME_CLI_CHILD_PROCESS_H
#define PENSTOCK_RUNTIME_CLI_CHILD_PROCESS_H

#include <stddef.h>

#include "storage/status.h"

/* Returns what fn did, an exit code. What it prints to stderr is kept back; `said` gets the last line of it that is a
 * message, without `penstock: `, or why there was no process or it was killed. Its results go through shared memory. An
 * interrupt of this process is passed on once. fn's process ends with this one. */
int child_process_run(int (*fn)(void *ctx), void *ctx, char said[PS_ERROR_MESSAGE_SIZE]);

/* Zeroed memory that child processes share; NULL when there is none. */
void *child_process_memory(size_t size);
void child_process_memory_free(void *memory, size_t size); /* NULL is fine */

#endif
