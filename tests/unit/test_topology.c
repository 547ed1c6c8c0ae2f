/* Topology from made-up /sys and /proc trees. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/topology.h"

static char root[64];

static int make_root(void **state)
{
    (void)state;
    strcpy(root, "/tmp/penstock-topology-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static int remove_root(void **state)
{
    (void)state;
    return nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof(full), "%s%s", root, path);
    for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = 0;
        mkdir(full, 0755);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void put_cpu(int cpu, const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/%s", cpu, name);
    put(path, text);
}

static void put_siblings(int cpu, const char *list)
{
    put_cpu(cpu, "topology/thread_siblings_list", list);
}

static struct topology read_cpus(int n_cpus)
{
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    for (int cpu = 0; cpu < n_cpus; cpu++)
        CPU_SET(cpu, &allowed);
    struct topology t;
    topology_read(&t, root, &allowed);
    return t;
}

static void assert_topology(struct topology t, uint32_t performance, uint32_t physical, uint32_t logical)
{
    assert_int_equal(t.performance, performance);
    assert_int_equal(t.physical, physical);
    assert_int_equal(t.logical, logical);
}

static void assert_candidates(const struct topology *t, uint32_t n, const uint32_t expected[])
{
    struct thread_candidate candidates[MAX_THREAD_CANDIDATES];
    assert_int_equal(topology_candidates(t, 256, candidates), n);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(candidates[i].n, expected[i]);
}

/* 2 performance cores of two threads, CPUs 0-3, and 8 efficient ones, 4-11. */
static void put_intel_hybrid(void)
{
    put("/sys/devices/system/cpu/online", "0-11\n");
    put("/sys/devices/cpu_core/cpus", "0-3\n");
    put("/sys/devices/cpu_atom/cpus", "4-11\n");
    for (int cpu = 0; cpu < 12; cpu++) {
        char list[32];
        if (cpu < 4)
            snprintf(list, sizeof(list), "%d-%d\n", cpu / 2 * 2, cpu / 2 * 2 + 1);
        else
            snprintf(list, sizeof(list), "%d\n", cpu);
        put_cpu(cpu, "topology/core_cpus_list", list);
        put_siblings(cpu, list);
    }
}

static void intel_hybrid_has_three_candidates(void **state)
{
    (void)state;
    put_intel_hybrid();
    struct topology t = read_cpus(12);
    assert_topology(t, 2, 10, 12);
    assert_true(t.quota == 0.0);
    assert_candidates(&t, 3, (const uint32_t[]){2, 10, 12});
}

static void affinity_to_efficient_cores_leaves_one_kind(void **state)
{
    (void)state;
    put_intel_hybrid();
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    for (int cpu = 6; cpu < 10; cpu++)
        CPU_SET(cpu, &allowed);
    struct topology t;
    topology_read(&t, root, &allowed);
    assert_topology(t, 4, 4, 4);
    assert_candidates(&t, 1, (const uint32_t[]){4});
}

static void second_hardware_thread_counts_where_the_first_is_not_allowed(void **state)
{
    (void)state;
    put_intel_hybrid();
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    CPU_SET(1, &allowed);
    CPU_SET(2, &allowed);
    CPU_SET(3, &allowed);
    struct topology t;
    topology_read(&t, root, &allowed);
    assert_topology(t, 2, 2, 3);
}

static void amd_with_two_threads_a_core_has_two_candidates(void **state)
{
    (void)state;
    put("/sys/devices/system/cpu/online", "0-15\n");
    for (int cpu = 0; cpu < 16; cpu++) {
        char list[32], frequency[16];
        snprintf(list, sizeof(list), "%d,%d\n", cpu % 8, cpu % 8 + 8);
        put_siblings(cpu, list);
        snprintf(frequency, sizeof(frequency), "%d\n", 5100000 - cpu % 8 * 80000); /* preferred cores */
        put_cpu(cpu, "cpufreq/cpuinfo_max_freq", frequency);
    }
    struct topology t = read_cpus(16);
    assert_topology(t, 8, 8, 16);
    assert_candidates(&t, 2, (const uint32_t[]){8, 16});
}

static void arm_capacities_tell_big_from_little(void **state)
{
    (void)state;
    static const char *const capacity[8] = {"446\n", "446\n", "446\n", "446\n",
                                            "850\n", "850\n", "850\n", "1024\n"};
    for (int cpu = 0; cpu < 8; cpu++) {
        char list[32];
        snprintf(list, sizeof(list), "%d\n", cpu);
        put_siblings(cpu, list);
        put_cpu(cpu, "cpu_capacity", capacity[cpu]);
    }
    struct topology t = read_cpus(8);
    assert_topology(t, 4, 8, 8);
    assert_candidates(&t, 2, (const uint32_t[]){4, 8});
}

static void frequencies_tell_dense_cores(void **state)
{
    (void)state;
    for (int cpu = 0; cpu < 12; cpu++) {
        char list[32];
        snprintf(list, sizeof(list), "%d\n", cpu);
        put_siblings(cpu, list);
        put_cpu(cpu, "cpufreq/cpuinfo_max_freq", cpu < 4 ? "5157000\n" : "3300000\n");
    }
    assert_topology(read_cpus(12), 4, 12, 12);
}

static void offline_cpus_do_not_count(void **state)
{
    (void)state;
    put("/sys/devices/system/cpu/online", "0,2-3\n");
    for (int cpu = 0; cpu < 4; cpu++) {
        if (cpu != 1)
            put_siblings(cpu, cpu < 2 ? "0\n" : "2-3\n");
    }
    assert_topology(read_cpus(4), 2, 2, 3);
}

static void without_files_each_cpu_is_a_core(void **state)
{
    (void)state;
    struct topology t = read_cpus(6);
    assert_topology(t, 6, 6, 6);
    assert_true(t.quota == 0.0);
    assert_candidates(&t, 1, (const uint32_t[]){6});
}

static void files_of_nonsense_are_as_good_as_none(void **state)
{
    (void)state;
    put("/sys/devices/system/cpu/online", "many\n");
    put("/sys/devices/cpu_core/cpus", "3-\n");
    put_siblings(0, "");
    put_siblings(1, "x\n");
    put_siblings(2, "2-\n");
    put_siblings(3, "3;2\n");
    put_cpu(0, "cpu_capacity", "fast\n");
    put("/proc/self/cgroup", "0::/\nnonsense\n1:cpu\n");
    put("/sys/fs/cgroup/cpu.max", "lots\n");
    struct topology t = read_cpus(4);
    assert_topology(t, 4, 4, 4);
    assert_true(t.quota == 0.0);
}

static void no_allowed_cpu_is_one(void **state)
{
    (void)state;
    assert_topology(read_cpus(0), 1, 1, 1);
}

static void container_quota_is_rounded_up(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/\n");
    put("/sys/fs/cgroup/cpu.max", "150000 100000\n");
    struct topology t = read_cpus(8);
    assert_true(t.quota == 1.5);
    assert_candidates(&t, 1, (const uint32_t[]){2});
}

static void tightest_limit_of_the_hierarchy_holds(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/a/b\n");
    put("/sys/fs/cgroup/a/cpu.max", "300000 100000\n");
    put("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    assert_true(read_cpus(8).quota == 3.0);
    put("/sys/fs/cgroup/a/b/cpu.max", "50000 100000\n");
    struct topology t = read_cpus(8);
    assert_true(t.quota == 0.5);
    assert_candidates(&t, 1, (const uint32_t[]){1});
}

static void version_1_quota_holds(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "9:cpuset:/x\n4:cpu,cpuacct:/docker/1\n");
    put("/sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us", "250000\n");
    put("/sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us", "100000\n");
    assert_true(read_cpus(8).quota == 2.5);
    put("/sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us", "-1\n");
    assert_true(read_cpus(8).quota == 0.0);
}

static void quota_and_most_cut_candidates(void **state)
{
    (void)state;
    assert_candidates(&(struct topology){8, 16, 24, 10.0}, 2, (const uint32_t[]){8, 10});
    assert_candidates(&(struct topology){8, 16, 24, 100.0}, 3, (const uint32_t[]){8, 16, 24});
    assert_candidates(&(struct topology){200, 300, 600, 0.0}, 2, (const uint32_t[]){200, 256});
}

#define TREE_TEST(name) cmocka_unit_test_setup_teardown(name, make_root, remove_root)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TREE_TEST(intel_hybrid_has_three_candidates),
        TREE_TEST(affinity_to_efficient_cores_leaves_one_kind),
        TREE_TEST(second_hardware_thread_counts_where_the_first_is_not_allowed),
        TREE_TEST(amd_with_two_threads_a_core_has_two_candidates),
        TREE_TEST(arm_capacities_tell_big_from_little),
        TREE_TEST(frequencies_tell_dense_cores),
        TREE_TEST(offline_cpus_do_not_count),
        TREE_TEST(without_files_each_cpu_is_a_core),
        TREE_TEST(files_of_nonsense_are_as_good_as_none),
        TREE_TEST(no_allowed_cpu_is_one),
        TREE_TEST(container_quota_is_rounded_up),
        TREE_TEST(tightest_limit_of_the_hierarchy_holds),
        TREE_TEST(version_1_quota_holds),
        TREE_TEST(quota_and_most_cut_candidates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
