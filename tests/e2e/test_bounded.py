"""Peak memory stays within --ram: as the program counts it, as /proc shows it, and as a hard cgroup limit enforces it."""

import contextlib
import json
import os

import harness
from harness import BUNDLED_MODEL

RUN = ("run", "-m", BUNDLED_MODEL, "-p", "One day, a girl named", "-n", 48, "--temp", 0)
CGROUP = "/sys/fs/cgroup"


def own_cgroup(controller):
    """This process's folder in the v1 hierarchy of a controller, or in v2's for controller ""."""
    with open("/proc/self/cgroup", encoding="ascii") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controller in controllers.split(","):
                return path.lstrip("/")
    return None


def memory_cgroups():
    """Folders in which a memory-limited cgroup can perhaps be made, with the names of limit and peak."""
    v1, v2 = own_cgroup("memory"), own_cgroup("")
    if v1 is not None:
        yield os.path.join(CGROUP, "memory", v1), "memory.limit_in_bytes", "memory.max_usage_in_bytes"
    if v2 is not None:
        yield os.path.join(CGROUP, v2), "memory.max", "memory.peak"


@contextlib.contextmanager
def limited_cgroup(limit):
    """(procs file, peak file) of a new cgroup with a hard limit; None where this process may not make one."""
    for parent, limit_name, peak_name in memory_cgroups():
        path = os.path.join(parent, f"penstock-test-{os.getpid()}")
        try:
            os.mkdir(path)
        except OSError:
            continue
        try:
            with open(os.path.join(path, limit_name), "w", encoding="ascii") as file:
                file.write(str(limit))
        except OSError:
            os.rmdir(path)
            continue
        try:
            yield os.path.join(path, "cgroup.procs"), os.path.join(path, peak_name)
        finally:
            os.rmdir(path)
        return
    yield None


class Bounded(harness.TestCase):
    def setUp(self):
        super().setUp()
        if harness.is_slow():
            self.skipTest("a sanitizer's or an emulator's own memory is not penstock's")

    def budgets(self):
        smallest = harness.smallest_budget(*RUN)
        return [smallest, smallest + (1 << 20), smallest + (4 << 20), smallest + (9 << 20), 64 << 20]

    def run_within(self, budget, *flags):
        result, stats = self.statistics(*RUN, "--ram", budget, *flags)
        self.assertLessEqual(stats["peak_rss_bytes"], budget, str(result))
        self.assertLessEqual(result.peak_rss, budget, str(result))
        # Both ways to count see the same process.
        self.assertGreater(stats["peak_rss_bytes"], 0.9 * result.peak_rss)
        self.assertEqual(stats["budget_bytes"], budget)
        return stats

    def test_peak_memory_stays_within_every_budget(self):
        for budget in self.budgets():
            with self.subTest(budget=budget):
                self.run_within(budget)

    def test_peak_memory_stays_within_the_budget_on_every_path(self):
        budget = self.budgets()[1]
        axes = [("--io", "threads"), ("--direct", "off"), ("--threads", 1), ("--threads", 8), ("--kv", "f16"), ("--kv", "q8_0")]
        axes += [("--queue-depth", 1), ("--ctx", 128)]
        axes += [("--cache-policy", policy) for policy in harness.cache_policies()]
        for flags in axes:
            with self.subTest(flags=" ".join(map(str, flags))):
                needed = harness.smallest_budget(*RUN, *flags)
                self.run_within(max(budget, needed), *flags)

    def test_a_third_of_the_file_is_enough(self):
        third = os.path.getsize(BUNDLED_MODEL) // 3
        stats = self.run_within(third)
        self.assertGreater(stats["expert_misses"], 0)
        self.assertGreater(stats["bytes_demand"], 0)

    def test_more_memory_means_fewer_bytes_read(self):
        read = [self.run_within(budget)["bytes_demand"] for budget in self.budgets()]
        self.assertEqual(read, sorted(read, reverse=True))
        self.assertLess(read[-1], read[0] / 2)

    def test_the_parts_of_the_plan_fit_the_budget(self):
        for budget in self.budgets():
            stats = self.run_within(budget)
            self.assertLessEqual(stats["trunk_bytes"] + stats["kv_bytes"] + stats["cache_bytes"], budget)
            self.assertGreater(stats["slots"], 0)

    def test_survives_a_cgroup_whose_hard_limit_is_the_budget(self):
        tried = 0
        for budget in self.budgets()[:3]:
            with limited_cgroup(budget) as cgroup:
                if cgroup is None:
                    break
                tried += 1
                procs, peak = cgroup
                enter = ("sh", "-c", f'echo $$ >"{procs}" && exec "$@"', "sh")
                limited = self.ok(*RUN, "--ram", budget, wrapper=enter)
                self.assertEqual(limited.stdout, self.ok(*RUN).stdout)
                if os.path.exists(peak):
                    self.assertLessEqual(int(harness.read_bytes(peak)), budget)
        if not tried:
            self.skipTest("no cgroup with a memory limit can be made here")

    def test_auto_budget_respects_a_cgroup_limit(self):
        limit = 48 << 20
        with limited_cgroup(limit) as cgroup:
            if cgroup is None:
                self.skipTest("no cgroup with a memory limit can be made here")
            path = self.path("stats.json")
            enter = ("sh", "-c", f'echo $$ >"{cgroup[0]}" && exec "$@"', "sh")
            self.ok(*RUN, "--ram", "auto", "--stats", path, wrapper=enter)
            self.assertLessEqual(json.loads(harness.read_bytes(path))["budget_bytes"], limit)


if __name__ == "__main__":
    harness.main()
