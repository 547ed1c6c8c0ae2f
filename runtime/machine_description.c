#include "runtime/machine_description.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "runtime/topology.h"

/* Control characters would tear a record's line; white space at the end is padding. */
static void clean(char *text)
{
    size_t length = strlen(text);
    while (length > 0 && (unsigned char)text[length - 1] <= ' ')
        text[--length] = 0;
    for (char *at = text; *at; at++) {
        if ((unsigned char)*at < ' ' || (unsigned char)*at > '~')
            *at = '?';
    }
}

/* "model name : ..." of x86, "Model : ..." of some others. */
static void describe_cpu(char out[MACHINE_TEXT_SIZE])
{
    FILE *file = fopen("/proc/cpuinfo", "re");
    char line[512];
    while (file && !out[0] && fgets(line, sizeof(line), file)) {
        const char *colon = strchr(line, ':');
        bool names = strncmp(line, "model name", 10) == 0 || strncmp(line, "Model", 5) == 0;
        if (!names || !colon)
            continue;
        snprintf(out, MACHINE_TEXT_SIZE, "%s", colon + 1 + strspn(colon + 1, " "));
        clean(out);
    }
    if (file)
        fclose(file);
}

/* The first line of DIRECTORY/NAME; false: there is none. */
static bool read_line(const char *directory, const char *name, char *out, size_t size)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    FILE *file = fopen(path, "re");
    bool found = file && fgets(out, (int)size, file);
    if (file)
        fclose(file);
    if (found)
        clean(out);
    return found && out[0];
}

/* A block device's name and what its maker, or the volume manager, calls it. A partition's disk is one folder up. */
static bool describe_device(dev_t device, char out[MACHINE_TEXT_SIZE])
{
    char link[64], folder[PATH_MAX], model[96] = "";
    snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(device), minor(device));
    if (!realpath(link, folder))
        return false;
    const char *const name = strrchr(folder, '/') + 1;
    snprintf(out, MACHINE_TEXT_SIZE, "%.30s", name);
    if (read_line(folder, "partition", model, sizeof(model)))
        *strrchr(folder, '/') = 0;
    model[0] = 0;
    if (read_line(folder, "device/model", model, sizeof(model)) ||
        read_line(folder, "dm/name", model, sizeof(model))) {
        size_t length = strlen(out);
        snprintf(out + length, MACHINE_TEXT_SIZE - length, " %s", model);
    }
    return true;
}

/* Filesystems without a block device of their own: "overlay", "nfs server:/path". */
static void describe_filesystem(dev_t device, char out[MACHINE_TEXT_SIZE])
{
    FILE *file = fopen("/proc/self/mountinfo", "re");
    char line[4096];
    while (file && !out[0] && fgets(line, sizeof(line), file)) {
        unsigned device_major, device_minor;
        const char *after = strstr(line, " - ");
        char type[48], source[72];
        if (sscanf(line, "%*d %*d %u:%u", &device_major, &device_minor) != 2 || !after ||
            device_major != major(device) || device_minor != minor(device) ||
            sscanf(after, " - %47s %71s", type, source) != 2)
            continue;
        if (strcmp(type, source) == 0)
            snprintf(out, MACHINE_TEXT_SIZE, "%s", type);
        else
            snprintf(out, MACHINE_TEXT_SIZE, "%s %s", type, source);
        clean(out);
    }
    if (file)
        fclose(file);
}

void machine_describe(struct machine_description *d, const char *path)
{
    *d = (struct machine_description){0};
    struct topology topology;
    topology_read_own(&topology);
    d->cores = topology.physical;
    d->memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    describe_cpu(d->cpu);
    struct stat file;
    if (stat(path, &file) == 0 && !describe_device(file.st_dev, d->drive))
        describe_filesystem(file.st_dev, d->drive);
    struct utsname system;
    if (uname(&system) == 0)
        snprintf(d->kernel, sizeof(d->kernel), "%.40s %.80s", system.sysname, system.release);
}
