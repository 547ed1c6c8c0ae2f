"""The working set is kept from one run to the next: later runs read less, compute the same, and never fail for it."""

import json
import os
import signal
import stat

import harness
from harness import BUNDLED_MODEL

PROMPT = ("-p", "Once upon a time", "--temp", 0)
GENERATE = ("run", "-m", BUNDLED_MODEL, *PROMPT, "-n", 60)
TOKENS = [(7 * i * i + 31 * i + 5) % 190 + 1 for i in range(24)]
N_SHARDS = 6 * 32  # of the bundled model
MARGIN = 1 << 20  # what differs from start to start where sanitizers are built in


class WarmCase(harness.TestCase):
    def setUp(self):
        super().setUp()
        self.cache = self.path("cache")
        os.mkdir(self.cache)
        self.home = {"XDG_CACHE_HOME": self.cache}
        self.smallest = harness.smallest_budget(*GENERATE) + MARGIN
        self.half = self.smallest + os.path.getsize(BUNDLED_MODEL) // 2

    def sets(self, folder=None):
        """Paths of all files that were kept."""
        found = []
        for place, _, names in os.walk(folder or self.cache):
            found += [os.path.join(place, name) for name in names]
        return found

    def the_set(self):
        (path,) = self.sets()
        return path

    def stats(self, *command, env=None):
        path = self.path("stats.json")
        result = self.ok(*command, "--stats", path, env=self.home if env is None else env)
        return result, json.loads(harness.read_bytes(path))

    def assert_silent(self, result):
        self.assertNotIn("penstock: ", result.message, str(result))

    def assert_warning(self, result, text):
        lines = [line for line in result.message.splitlines() if line.startswith("penstock: ")]
        self.assertEqual(len(lines), 1, str(result))
        self.assertRegex(lines[0], "^penstock: warning: --warm: .*" + text)


class SecondRun(WarmCase):
    def test_reads_less_and_says_the_same(self):
        command = (*GENERATE, "--ram", self.half, "--prefetch", "off")
        first, cold = self.stats(*command)
        second, warm = self.stats(*command)
        self.assertEqual(second.stdout, first.stdout)
        self.assertEqual(cold["bytes_warm"], 0)
        self.assertNotIn(" warm,", first.message)
        self.assertGreater(warm["bytes_warm"], 0)
        self.assertRegex(second.message, r" read, [\d.]+ [KM]iB warm, stalled ")
        self.assertLess(warm["bytes_demand"], cold["bytes_demand"])
        self.assertLess(warm["expert_misses"], cold["expert_misses"])
        for result in (first, second):
            self.assert_silent(result)

    def test_first_token_comes_before_anything_is_read_for_the_set(self):
        command = ("run", "-m", BUNDLED_MODEL, *PROMPT, "--ram", "1G", "--prefetch", "off", "-n")
        _, cold = self.stats(*command, 1, "--warm", "off")
        self.stats(*command, 60)
        _, warm = self.stats(*command, 1)
        for key in ("bytes_demand", "bytes_speculative", "expert_hits", "expert_misses"):
            self.assertEqual(warm[key], cold[key])
        self.assertEqual(cold["bytes_speculative"], 0)
        _, stats = self.stats(*command, 60)
        self.assertGreater(stats["bytes_warm"], 0, "a run of one token has lost the set")

    def test_model_may_have_moved(self):
        moved = harness.copy(BUNDLED_MODEL, self.path("moved.gguf"))
        self.stats(*GENERATE, "--ram", self.half)
        harness.write_bytes(self.the_set(), harness.read_bytes(self.the_set())[:-1])
        result = self.ok("run", "-m", moved, *PROMPT, "-n", 4, env=self.home)
        self.assert_warning(result, "do not hold")
        self.the_set()

    def test_another_model_has_a_set_of_its_own(self):
        other = self.path("other.gguf")
        self.ok("synth", "-o", other, "--arch", "qwen3moe", "--layers", 2, "--embd", 64, "--heads", 2, "--kv-heads", 2,
                "--head-dim", 32, "--ctx", 128, "--experts", 8, "--top-k", 2, "--expert-ff", 64, "--vocab", 200)
        self.stats(*GENERATE)
        _, stats = self.stats("run", "-m", other, "--prompt-tokens", "1,2,3", "--print", "tokens", "-n", 4)
        self.assertEqual(stats["bytes_warm"], 0)
        self.assertEqual(len(self.sets()), 2)

    def test_budget_may_have_changed(self):
        text = None
        for ram in ("1G", self.half, self.smallest, "1G", self.smallest):
            with self.subTest(ram=ram):
                result, stats = self.stats(*GENERATE, "--ram", ram)
                text = text or result.stdout
                self.assertEqual(result.stdout, text)
                self.assert_silent(result)
                self.assertLessEqual(os.path.getsize(self.the_set()), 48 + 6 * stats["slots"])

    def test_cache_policy_may_have_changed(self):
        text = None
        for policy in (*harness.cache_policies(), *harness.cache_policies()):
            result, _ = self.stats(*GENERATE, "--ram", self.half, "--cache-policy", policy)
            text = text or result.stdout
            self.assertEqual(result.stdout, text)
            self.assert_silent(result)


class Place(WarmCase):
    def test_is_small_and_private(self):
        self.stats(*GENERATE)
        path = self.the_set()
        self.assertRegex(os.path.relpath(path, self.cache), r"^penstock/[0-9a-f]{16}\.experts$")
        self.assertLessEqual(os.path.getsize(path), 48 + 6 * N_SHARDS)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode), 0o700)

    def test_is_under_home_by_default_and_made_when_missing(self):
        home = self.path("home")
        os.mkdir(home)
        for env in ({"HOME": home}, {"HOME": home, "XDG_CACHE_HOME": "relative"}, {"HOME": home, "XDG_CACHE_HOME": ""}):
            self.assert_silent(self.ok(*GENERATE, env=env))
            (path,) = self.sets(home)
            self.assertEqual(os.path.dirname(path), os.path.join(home, ".cache", "penstock"))
            os.remove(path)
        self.assertEqual(stat.S_IMODE(os.stat(os.path.join(home, ".cache")).st_mode), 0o700)
        self.stats(*GENERATE, env={"HOME": home, "XDG_CACHE_HOME": os.path.join(self.cache, "made")})
        self.assertTrue(self.the_set().startswith(os.path.join(self.cache, "made", "penstock")))

    def test_off_neither_reads_nor_writes(self):
        off = (*GENERATE, "--ram", self.half, "--warm", "off")
        self.stats(*off)
        self.assertEqual(self.sets(), [])
        self.stats(*GENERATE, "--ram", self.half)
        kept = harness.read_bytes(self.the_set())
        _, stats = self.stats(*off, "--seed", 2, "--temp", 1)
        self.assertEqual(stats["bytes_warm"], 0)
        self.assertEqual(harness.read_bytes(self.the_set()), kept)

    def test_without_a_home_nothing_is_kept(self):
        _, stats = self.stats(*GENERATE, env={})
        result, again = self.stats(*GENERATE, env={})
        self.assertEqual((stats["bytes_warm"], again["bytes_warm"]), (0, 0))
        self.assert_silent(result)

    def test_measurements_start_from_an_empty_cache_unless_told(self):
        self.stats(*GENERATE)
        kept = harness.read_bytes(self.the_set())
        out = self.path("logits")
        decode = ("bench", "decode", "-m", BUNDLED_MODEL, "-n", 8, "--ram", self.half)
        for command in (decode, harness.logits_command(BUNDLED_MODEL, TOKENS, "--ram", self.half, out=out)):
            _, stats = self.stats(*command)
            self.assertEqual(stats["bytes_warm"], 0)
            self.assertEqual(harness.read_bytes(self.the_set()), kept)
            file = self.path("named")
            self.stats(*command, "--warm", file)
            harness.write_bytes(file, harness.read_bytes(file)[:-1])
            self.assert_warning(self.ok(*command, "--warm", file), "do not hold")
            self.assert_silent(self.ok(*command, "--warm", file))
            os.remove(file)


class Exact(WarmCase):
    def test_logits_are_the_same_to_the_bit(self):
        file = self.path("set")
        exact = self.logits(BUNDLED_MODEL, TOKENS)
        self.ok(*GENERATE, "--ram", self.half, "--warm", file)
        smallest = harness.smallest_budget(*harness.logits_command(BUNDLED_MODEL, TOKENS)) + MARGIN
        for ram in (smallest, self.half, "1G"):
            for flags in ((), ("--prefetch", "off"), ("--chunk", 1), ("--io", "threads", "--threads", 1),
                          ("--cache-policy", "lru"), ("--io-limit", "50M")):
                with self.subTest(ram=ram, flags=flags):
                    warm = self.logits(BUNDLED_MODEL, TOKENS, "--ram", ram, "--warm", file, *flags)
                    self.assert_same_logits(warm, exact)


class Trouble(WarmCase):
    def test_folder_that_cannot_be_written_is_a_warning(self):
        blocked = self.path("blocked")
        harness.write_bytes(blocked, b"")
        text = self.ok(*GENERATE).stdout
        for env in ({"XDG_CACHE_HOME": blocked}, {"HOME": blocked}, {"HOME": "/proc"}):
            result = self.ok(*GENERATE, env=env)
            self.assert_warning(result, "cannot write")
            self.assertEqual(result.stdout, text)
        self.assert_warning(self.ok(*GENERATE, "--warm", self.path("missing/set")), "cannot write")

    def test_damaged_file_is_a_warning_and_then_replaced(self):
        text = self.ok(*GENERATE, env=self.home).stdout
        path = self.the_set()
        good = harness.read_bytes(path)
        flipped = bytearray(good)
        flipped[100] ^= 4
        newer = bytearray(good)
        newer[8] = 9
        for damaged, message in ((flipped, "checksum"), (good[:-7], "do not hold"), (good[:30], "cut off"),
                                 (good[:5], "is not a working set"), (b"", "is not a working set"),
                                 (newer, "version 9, not 1"), (good + b"x", "do not hold")):
            with self.subTest(message=message):
                harness.write_bytes(path, bytes(damaged))
                result = self.ok(*GENERATE, env=self.home)
                self.assert_warning(result, message)
                self.assertEqual(result.stdout, text)
                self.assert_silent(self.ok(*GENERATE, env=self.home))

    def test_file_given_by_mistake_survives(self):
        model = harness.copy(BUNDLED_MODEL, self.path("model.gguf"))
        notes = self.path("notes")
        harness.write_bytes(notes, b"to be kept")
        for path in (model, notes):
            before = harness.read_bytes(path)
            result = self.ok("run", "-m", model, *PROMPT, "-n", 4, "--warm", path)
            lines = [line for line in result.message.splitlines() if line.startswith("penstock: ")]
            self.assertEqual(len(lines), 2, str(result))
            self.assertRegex(lines[0], "warning: .* is not a working set$")
            self.assertRegex(lines[1], "warning: .* is not a working set: it is not replaced$")
            self.assertTrue(harness.read_bytes(path) == before)
        result = self.ok("run", "-m", model, *PROMPT, "-n", 4, "--warm", "/dev/null")
        self.assertIn("warning: --warm: /dev/null: is not a regular file", result.message)
        self.assertTrue(stat.S_ISCHR(os.stat("/dev/null").st_mode))

    def test_run_that_fails_leaves_the_old_set(self):
        self.fails("run", "-m", BUNDLED_MODEL, *PROMPT, "--ctx", 2, env=self.home)
        self.assertEqual(self.sets(), [])
        self.ok(*GENERATE, env=self.home)
        kept = harness.read_bytes(self.the_set())
        result = harness.run("run", "-m", BUNDLED_MODEL, "-p", "The dragon", "-n", 30, "--stats",
                             self.path("missing/stats"), env=self.home)
        self.assert_one_error(result, 1)
        self.assertEqual(harness.read_bytes(self.the_set()), kept)

    def test_interrupted_run_keeps_its_set(self):
        slow = ("run", "-m", BUNDLED_MODEL, *PROMPT, "-n", 400, "--ignore-end", "--io-limit", "2M")
        process = harness.Process((*slow, "--ram", self.half), env=self.home)
        process.popen.stdout.read(1)
        process.popen.send_signal(signal.SIGINT)
        self.assertEqual(process.finish().code, 130)
        self.assertGreater(os.path.getsize(self.the_set()), 48)
        self.assert_silent(self.ok(*GENERATE, env=self.home))

    def test_runs_at_the_same_time_leave_one_whole_set(self):
        for _ in range(3):
            runs = [harness.Process((*GENERATE, "--ram", self.half), env=self.home) for _ in range(4)]
            results = [process.finish() for process in runs]
            for result in results:
                self.assertEqual(result.code, 0, str(result))
                self.assert_silent(result)
                self.assertEqual(result.stdout, results[0].stdout)
            self.the_set()


if __name__ == "__main__":
    harness.main()
