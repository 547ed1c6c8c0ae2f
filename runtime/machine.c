#include "runtime/machine.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* Value in KiB of a "Name:   123 kB" line, as bytes. */
static bool read_kib_field(const char *path, const char *field, uint64_t *bytes)
{
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    char line[256];
    size_t length = strlen(field);
    bool found = false;
    while (!found && fgets(line, sizeof(line), file)) {
        uint64_t kib;
        if (strncmp(line, field, length) == 0 && sscanf(line + length, ": %" SCNu64, &kib) == 1) {
            *bytes = kib * 1024;
            found = true;
        }
    }
    fclose(file);
    return found;
}

uint64_t machine_rss_bytes(void)
{
    uint64_t bytes = 0;
    /* The roll-up is exact; the counters behind VmRSS lag by up to some hundred KiB per CPU. */
    if (!read_kib_field("/proc/self/smaps_rollup", "Rss", &bytes))
        read_kib_field("/proc/self/status", "VmRSS", &bytes);
    return bytes;
}

uint64_t machine_peak_rss_bytes(void)
{
    uint64_t bytes = 0;
    read_kib_field("/proc/self/status", "VmHWM", &bytes);
    return bytes;
}

static bool read_u64_file(const char *path, uint64_t *value)
{
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    bool found = fscanf(file, "%" SCNu64, value) == 1; /* "max" does not parse: no limit */
    fclose(file);
    return found;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* What one directory of a memory controller leaves: its limit less what is charged and cannot be dropped. */
static uint64_t directory_headroom(const char *directory, const char *limit_name, const char *usage_name)
{
    char path[640];
    uint64_t limit = UINT64_MAX;
    uint64_t usage = 0;
    snprintf(path, sizeof(path), "%s/%s", directory, limit_name);
    if (!read_u64_file(path, &limit))
        return UINT64_MAX;
    snprintf(path, sizeof(path), "%s/%s", directory, usage_name);
    read_u64_file(path, &usage);
    FILE *file;
    snprintf(path, sizeof(path), "%s/memory.stat", directory);
    char name[64];
    uint64_t value;
    if ((file = fopen(path, "re"))) {
        while (fscanf(file, "%63s %" SCNu64, name, &value) == 2) {
            if (strcmp(name, "inactive_file") == 0 || strcmp(name, "active_file") == 0)
                usage -= min_u64(usage, value);
        }
        fclose(file);
    }
    return limit > usage ? limit - usage : 0;
}

/* The tightest limit from the process's own cgroup up to the root. */
static uint64_t hierarchy_headroom(const char *root, char *path, const char *limit_name,
                                   const char *usage_name)
{
    uint64_t headroom = UINT64_MAX;
    for (;;) {
        char directory[560];
        snprintf(directory, sizeof(directory), "%s%s", root, path);
        headroom = min_u64(headroom, directory_headroom(directory, limit_name, usage_name));
        char *slash = strrchr(path, '/');
        if (!slash)
            return headroom;
        *slash = 0;
    }
}

static uint64_t cgroup_headroom(void)
{
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (!file)
        return UINT64_MAX;
    uint64_t headroom = UINT64_MAX;
    char line[512];
    while (fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = 0;
        if (strcmp(path, "/") == 0)
            path[0] = 0;
        if (controllers[1] == 0) { /* v2 */
            headroom =
                min_u64(headroom, hierarchy_headroom("/sys/fs/cgroup", path, "memory.max", "memory.current"));
        } else if (strstr(controllers + 1, "memory")) {
            headroom =
                min_u64(headroom, hierarchy_headroom("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes",
                                                     "memory.usage_in_bytes"));
        }
    }
    fclose(file);
    return headroom;
}

uint64_t machine_memory_available(void)
{
    uint64_t available = UINT64_MAX;
    read_kib_field("/proc/meminfo", "MemAvailable", &available);
    return min_u64(available, cgroup_headroom());
}

bool machine_drive_bytes_read(const char *path, uint64_t *bytes)
{
    enum {
        SECTOR_BYTES = 512
    }; /* of the counters, whatever the drive's are (Documentation/block/stat.rst) */
    struct stat info;
    if (stat(path, &info) < 0)
        return false;
    char name[80];
    snprintf(name, sizeof(name), "/sys/dev/block/%u:%u/stat", major(info.st_dev), minor(info.st_dev));
    FILE *file = fopen(name, "re");
    if (!file)
        return false;
    uint64_t sectors;
    bool found = fscanf(file, "%*u %*u %" SCNu64, &sectors) == 1;
    fclose(file);
    if (found)
        *bytes = sectors * SECTOR_BYTES;
    return found;
}
