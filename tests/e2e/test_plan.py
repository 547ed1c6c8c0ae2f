"""plan: its figures are consistent with each other, with `inspect` and with the routing that it is given. That they are
near what `bench decode` measures is bench/plan.sh's to say: a test does not depend on timings."""

import json
import math
import os
import signal
import time

import harness
from harness import BUNDLED_MODEL

LAYERS, EXPERTS, TOP_K = 6, 32, 4


class Case(harness.TestCase):
    def plan(self, *flags, model=BUNDLED_MODEL):
        result = self.ok("plan", "-m", model, "--json", *flags)
        self.assertEqual(result.message, "")
        return json.loads(result.text)

    def budgets(self):
        """One that streams, one in between, one that holds everything."""
        least = harness.smallest_budget("inspect", BUNDLED_MODEL, "--ctx", 64)
        return [least + (3 << 20), least + (10 << 20), least + (48 << 20)]


class Figures(Case):
    def test_every_budget_has_its_row(self):
        rams = self.budgets()
        plan = self.plan("--ram", harness.comma_list(rams))
        self.assertEqual([row["ram_bytes"] for row in plan["budgets"]], rams)
        self.assertEqual(plan["tokens"], 64)
        before = None
        for row in plan["budgets"]:
            self.assertTrue(row["fits"] and row["within_machine"])
            for key in ("tok_s", "tok_s_steady"):
                self.assertTrue(0 < row[key] < math.inf)
            for key in ("hit_rate", "hit_rate_steady"):
                self.assertTrue(0 <= row[key] <= 1)
            missed = LAYERS * TOP_K * (1 - row["hit_rate"]) * plan["probe"]["expert_bytes"]
            self.assertAlmostEqual(row["bytes_per_token"] - row["trunk_bytes_per_token"], missed, delta=1 + missed / 1e6)
            if before:
                self.assertGreaterEqual(row["slots"], before["slots"])
                self.assertGreaterEqual(row["hit_rate"], before["hit_rate"])
            before = row
        self.assertEqual((before["slots"], before["hit_rate_steady"], before["limit"]), (192, 1, "compute"))
        self.assertIn(plan["recommended_ram_bytes"], rams)

    def test_slots_are_those_that_inspect_plans(self):
        ram = self.budgets()[1]
        (row,) = self.plan("--ram", ram)["budgets"]
        shape = json.loads(self.ok("inspect", BUNDLED_MODEL, "--json", "--ram", ram, "--ctx", 64).text)["plans"][0]
        self.assertLessEqual(abs(row["slots"] - shape["slots"]), (1 << 20) // 104448)  # resident size varies
        self.assertEqual(row["shards"], shape["shards"])

    def test_without_budgets_there_are_some(self):
        plan = self.plan()
        rows = plan["budgets"]
        self.assertGreater(len(rows), 4)
        # A sanitizer's own memory grows between the choice of budgets and their plans.
        least = 192 - ((1 << 20) // 104448 if harness.is_slow() else 0)
        self.assertIn(rows[-1]["slots"], range(least, 193))
        self.assertTrue(all(row["fits"] for row in rows))
        self.assertIn(plan["recommended_ram_bytes"], [row["ram_bytes"] for row in rows])
        self.assertIn(plan["knee_ram_bytes"], [None] + [row["ram_bytes"] for row in rows])

    def test_faster_drives_are_never_slower(self):
        for row in self.plan("--ram", harness.comma_list(self.budgets()), "--drives", "100M,1G,10G")["budgets"]:
            self.assertEqual([drive["drive_bytes_s"] for drive in row["drives"]], [100 << 20, 1 << 30, 10 << 30])
            speeds = [drive["tok_s_steady"] for drive in row["drives"]]
            self.assertEqual(speeds, sorted(speeds))

    def test_table_has_what_the_json_has(self):
        rams = self.budgets()
        text = self.ok("plan", "-m", BUNDLED_MODEL, "--ram", harness.comma_list(rams), "--drives", "1G").text
        self.assertEqual(text.count("<- recommended"), 1)
        self.assertIn("192/192", text)
        self.assertIn("1.00 GiB/s", text)
        self.assertIn("recommended: --ram ", text)


class Routing(Case):
    def test_own_recording_is_replayed(self):
        trace = self.path("t")
        self.ok("trace", "-m", BUNDLED_MODEL, "-o", trace, "--tokens", "random:1", "-n", 64)
        ram = self.budgets()[1]
        plan = self.plan("--ram", ram, "--profile", trace)
        slots = plan["budgets"][0]["slots"]
        replayed = json.loads(
            self.ok("simulate", trace, "--json", "--policy", "context", "--ram", f"{100 * slots / 192:.9f}%").text
        )["results"][0]
        self.assertEqual(replayed["slots"], slots)
        self.assertAlmostEqual(plan["budgets"][0]["hit_rate"], replayed["hit_rate"])
        self.assertIn("64 tokens of " + trace, plan["routing"])

    def test_prose_is_kinder_than_chance(self):
        ram = harness.smallest_budget("inspect", BUNDLED_MODEL, "--ctx", 64) + (5 << 20)
        (row,) = self.plan("--ram", ram, "--profile", "text")["budgets"]
        self.assertGreater(row["hit_rate_steady"], row["slots"] / (LAYERS * EXPERTS))

    def test_recording_of_another_model_gives_its_statistics(self):
        trace = self.path("t")
        experts = [f"experts {layer} {layer} {layer + 1} {layer + 2} {layer + 3}" for layer in range(3)]
        lines = ["# penstock routing trace v1", *(f"# layer={layer} experts=64" for layer in range(3))]
        for token in range(6):
            lines += [f"token {token} - decode", *experts]
        harness.write_bytes(trace, ("\n".join(lines) + "\n").encode())
        (row,) = self.plan("--ram", self.budgets()[1], "--profile", trace)["budgets"]
        self.assertGreater(row["hit_rate_steady"], 0.95)  # always the same experts


class BadInput(Case):
    def test_budget_too_small_is_a_row_beside_others(self):
        rows = self.plan("--ram", f"64K,{self.budgets()[1]}")["budgets"]
        self.assertEqual([row["fits"] for row in rows], [False, True])
        self.assertGreater(rows[0]["minimum_bytes"], 1 << 20)

    def test_no_budget_that_works(self):
        line = self.fails("plan", "-m", BUNDLED_MODEL, "--ram", "64K,1M")
        self.assertIn("smallest that works", line)

    def test_flags(self):
        for flags in (
            ("--ram", "no"),
            ("--ram", "4G,,8G"),
            ("--ram", ""),
            ("--ram", harness.comma_list(range(1 << 30, (1 << 30) + 40))),
            ("--drives", "0"),
            ("--drives", "1G,2G,3G,4G,5G,6G,7G,8G,9G"),
            ("-n", 0),
            ("-n", 65, "--ctx", 64),
            ("--warm", "on"),
        ):
            with self.subTest(flags=flags):
                self.fails("plan", "-m", BUNDLED_MODEL, *flags, code=2)

    def test_files(self):
        ram = ("--ram", self.budgets()[1])
        self.assertIn(self.path("none"), self.fails("plan", "-m", self.path("none"), *ram))
        self.assertIn(self.path("none"), self.fails("plan", "-m", BUNDLED_MODEL, *ram, "--profile", self.path("none")))
        trace = self.path("t")
        for text in (b"", b"# penstock routing trace v1\ntoken", b"\0" * 100):
            harness.write_bytes(trace, text)
            self.assertIn(trace, self.fails("plan", "-m", BUNDLED_MODEL, *ram, "--profile", trace))

    def test_model_without_experts(self):
        path = self.path("dense.gguf")
        shape = ("--layers", 4, "--embd", 64, "--heads", 1, "--kv-heads", 1, "--head-dim", 64, "--vocab", 32, "--ff", 64)
        self.ok("synth", "-o", path, "--arch", "llama", "--experts", 0, *shape)
        rows = self.plan(model=path)["budgets"]
        self.assertTrue(all(row["shards"] == 0 and row["tok_s"] > 0 for row in rows))

    def test_interrupt(self):
        process = harness.Process(["plan", "-m", BUNDLED_MODEL, "--io-limit", "1M"])
        time.sleep(1.0)
        os.kill(process.popen.pid, signal.SIGINT)
        self.assert_one_error(process.finish(60), 130)


if __name__ == "__main__":
    harness.main()
