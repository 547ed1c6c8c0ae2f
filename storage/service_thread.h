/* Threads that serve the program in the background: a small stack, and none of the process's signals. */
#ifndef PENSTOCK_STORAGE_SERVICE_THREAD_H
#define PENSTOCK_STORAGE_SERVICE_THREAD_H

#include <pthread.h>
#include <stdbool.h>

enum { SERVICE_THREAD_MEMORY = 24 << 10 }; /* bytes of its stack that are touched, and its bookkeeping */

/* False when there can be none. */
bool service_thread_start(pthread_t *thread, void *(*body)(void *), void *context);

#endif
