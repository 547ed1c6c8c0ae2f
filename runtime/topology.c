#include "runtime/topology.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_SIZE = 1024, LINE_SIZE = 4096 };

/* First line of the file that the arguments name. */
__attribute__((format(printf, 2, 3))) static bool read_line(char line[LINE_SIZE], const char *format, ...)
{
    char path[PATH_SIZE];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(path, sizeof(path), format, args);
    va_end(args);
    if (length < 0 || length >= (int)sizeof(path))
        return false;
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    bool ok = fgets(line, LINE_SIZE, file) != NULL;
    fclose(file);
    return ok;
}

/* "0-3,8" -> set. False if it is not such a list or names no CPU. */
static bool parse_cpu_list(const char *text, cpu_set_t *set)
{
    CPU_ZERO(set);
    while (*text && *text != '\n') {
        char *end;
        unsigned long first = strtoul(text, &end, 10);
        if (end == text)
            return false;
        unsigned long last = first;
        if (*end == '-') {
            text = end + 1;
            last = strtoul(text, &end, 10);
            if (end == text)
                return false;
        }
        for (unsigned long cpu = first; cpu <= last && cpu < CPU_SETSIZE; cpu++)
            CPU_SET(cpu, set);
        text = *end == ',' ? end + 1 : end;
        if (*end != ',' && *end && *end != '\n')
            return false;
    }
    return CPU_COUNT(set) > 0;
}

/* ---- cores ---- */

/* A core counts through the first of its hardware threads that may be used. */
static bool is_first_of_core(const char *root, int cpu, const cpu_set_t *usable)
{
    static const char *const names[] = {"core_cpus_list", "thread_siblings_list"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char line[LINE_SIZE];
        cpu_set_t siblings;
        if (!read_line(line, "%s/sys/devices/system/cpu/cpu%d/topology/%s", root, cpu, names[i]) ||
            !parse_cpu_list(line, &siblings))
            continue;
        for (int other = 0; other < cpu; other++) {
            if (CPU_ISSET(other, &siblings) && CPU_ISSET(other, usable))
                return false;
        }
        return true;
    }
    return true;
}

/* CPUs whose speed, by a file that each of them has, is near the best one's. False if one lacks it. */
static bool fast_by_file(const char *root, const char *name, const cpu_set_t *usable, cpu_set_t *fast)
{
    /* Turbo limits of equal cores differ by a tenth; efficient and fast ones by a third and more. */
    enum { NEAR_PERCENT = 75 };
    static const cpu_set_t none;
    uint64_t best = 0;
    uint64_t speeds[CPU_SETSIZE] = {0};
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        char line[LINE_SIZE];
        if (!CPU_ISSET(cpu, usable))
            continue;
        if (!read_line(line, "%s/sys/devices/system/cpu/cpu%d/%s", root, cpu, name) ||
            sscanf(line, "%" SCNu64, &speeds[cpu]) != 1)
            return false;
        best = speeds[cpu] > best ? speeds[cpu] : best;
    }
    *fast = none;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, usable) && speeds[cpu] >= best / 100 * NEAR_PERCENT)
            CPU_SET(cpu, fast);
    }
    return true;
}

static void find_fast(const char *root, const cpu_set_t *usable, cpu_set_t *fast)
{
    char line[LINE_SIZE];
    cpu_set_t cores;
    if (read_line(line, "%s/sys/devices/cpu_core/cpus", root) && parse_cpu_list(line, &cores)) {
        CPU_AND(fast, &cores, usable); /* Intel hybrid; its efficient cores are in cpu_atom */
        if (CPU_COUNT(fast) > 0)
            return;
    }
    if (fast_by_file(root, "cpu_capacity", usable, fast) ||
        fast_by_file(root, "cpufreq/cpuinfo_max_freq", usable, fast))
        return;
    *fast = *usable;
}

/* ---- cgroup limits ---- */

static double min_limit(double a, double b)
{
    return a > 0.0 && (b <= 0.0 || a < b) ? a : b;
}

static double directory_quota(const char *directory, bool v2)
{
    char line[LINE_SIZE];
    double quota = 0.0;
    double period = 0.0;
    if (v2) {
        if (!read_line(line, "%s/cpu.max", directory) || sscanf(line, "%lf %lf", &quota, &period) != 2)
            return 0.0; /* "max": no limit */
    } else if (!read_line(line, "%s/cpu.cfs_quota_us", directory) || sscanf(line, "%lf", &quota) != 1 ||
               !read_line(line, "%s/cpu.cfs_period_us", directory) || sscanf(line, "%lf", &period) != 1) {
        return 0.0;
    }
    return quota > 0.0 && period > 0.0 ? quota / period : 0.0;
}

/* The tightest limit from the process's own cgroup up to the root. */
static double hierarchy_quota(const char *root, const char *mount, char *path, bool v2)
{
    double quota = 0.0;
    for (;;) {
        char directory[PATH_SIZE];
        int length = snprintf(directory, sizeof(directory), "%s%s%s", root, mount, path);
        if (length > 0 && length < (int)sizeof(directory))
            quota = min_limit(directory_quota(directory, v2), quota);
        char *slash = strrchr(path, '/');
        if (!slash)
            return quota;
        *slash = 0;
    }
}

static bool has_cpu_controller(char *controllers)
{
    for (char *name; (name = strsep(&controllers, ",")) != NULL;) {
        if (strcmp(name, "cpu") == 0)
            return true;
    }
    return false;
}

static double read_quota(const char *root)
{
    char line[LINE_SIZE];
    snprintf(line, sizeof(line), "%s/proc/self/cgroup", root);
    FILE *file = fopen(line, "re");
    if (!file)
        return 0.0;
    double quota = 0.0;
    while (fgets(line, sizeof(line), file)) { /* "7:cpu,cpuacct:/path", v2 "0::/path" */
        line[strcspn(line, "\n")] = 0;
        char *path = line;
        strsep(&path, ":");
        char *controllers = strsep(&path, ":");
        if (!path)
            continue;
        bool v2 = controllers[0] == 0;
        if (v2)
            quota = min_limit(hierarchy_quota(root, "/sys/fs/cgroup", path, true), quota);
        else if (has_cpu_controller(controllers))
            quota = min_limit(hierarchy_quota(root, "/sys/fs/cgroup/cpu", path, false), quota);
    }
    fclose(file);
    return quota;
}

/* ---- */

void topology_read(struct topology *t, const char *root, const cpu_set_t *allowed)
{
    char line[LINE_SIZE];
    cpu_set_t usable = *allowed;
    cpu_set_t online;
    if (read_line(line, "%s/sys/devices/system/cpu/online", root) && parse_cpu_list(line, &online))
        CPU_AND(&usable, allowed, &online);
    cpu_set_t fast;
    find_fast(root, &usable, &fast);
    *t = (struct topology){.quota = read_quota(root)};
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &usable))
            continue;
        t->logical++;
        if (!is_first_of_core(root, cpu, &usable))
            continue;
        t->physical++;
        t->performance += CPU_ISSET(cpu, &fast) != 0;
    }
    t->logical += t->logical == 0;
    t->physical += t->physical == 0;
    t->performance += t->performance == 0;
}

void topology_read_own(struct topology *t)
{
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) /* more CPUs than the set can hold */
        memset(&allowed, 0xff, sizeof(allowed));
    topology_read(t, "", &allowed);
}

uint32_t topology_candidates(const struct topology *t, uint32_t most,
                             struct thread_candidate candidates[MAX_THREAD_CANDIDATES])
{
    const struct thread_candidate all[MAX_THREAD_CANDIDATES] = {
        {t->performance, "performance cores"}, {t->physical, "physical cores"}, {t->logical, "logical CPUs"}};
    if (t->quota > 0.0 && t->quota < (double)most)
        most = (uint32_t)t->quota + ((double)(uint32_t)t->quota < t->quota);
    uint32_t n = 0;
    for (uint32_t i = 0; i < MAX_THREAD_CANDIDATES; i++) {
        struct thread_candidate c = all[i];
        if (i == 0 && t->performance == t->physical)
            continue; /* one kind of core: their plain name */
        if (c.n > most)
            c = (struct thread_candidate){most, t->quota > 0.0 ? "the CPU limit" : c.what};
        if (n == 0 || c.n > candidates[n - 1].n)
            candidates[n++] = c;
    }
    return n;
}
