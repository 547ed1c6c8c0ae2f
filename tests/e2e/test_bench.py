"""bench decode and prefill write records that agree with themselves, and bench sweep measures every cell of its grid
exactly once, whatever happens to it on the way. That figures are near the truth is not for a test: it would depend on timings."""

import csv
import io
import itertools
import json
import os
import signal
import time

import harness
from harness import BUNDLED_MODEL

FIELDS = {
    "kind", "model", "arch", "file_bytes", "ram", "io_limit", "prefetch", "prefetch_used", "queue_depth", "threads", "chunk", "policy", "flags",
    "repeat", "replay", "tokens", "tokens_per_s", "first_token_s", "compute_s", "stall_s", "bookkeeping_s", "parts_s",
    "hit_rate", "bytes_per_token", "bytes_read", "drive_bytes_per_s", "drive_limit_bytes_per_s", "drive_utilisation",
    "bound_tokens_per_s", "of_bound", "cycles", "peak_rss", "machine", "time",
}  # fmt: skip
MACHINE = {"cpu", "cores", "memory", "drive", "kernel"}


def read_lines(path):
    return [json.loads(line) for line in harness.read_bytes(path).decode().splitlines()]


class Case(harness.TestCase):
    def assert_near(self, a, b):
        self.assertAlmostEqual(a, b, delta=1e-6 * max(abs(a), abs(b)))

    def check_record(self, record):
        """What must hold of any record."""
        self.assertLessEqual(FIELDS, set(record))
        self.assertEqual(set(record["machine"]), MACHINE)
        self.assertEqual((record["model"], record["arch"], record["replay"]), ("fable-moe", "qwen3moe", None))
        self.assertEqual(record["file_bytes"], os.path.getsize(BUNDLED_MODEL))
        seconds = record["tokens"] / record["tokens_per_s"]
        self.assert_near(record["compute_s"] + record["stall_s"] + record["bookkeeping_s"], seconds)
        self.assertLessEqual(sum(record["parts_s"].values()) - record["parts_s"]["other"], seconds)
        self.assertTrue(0 < record["first_token_s"] <= seconds * 1.000001)
        self.assertTrue(0 <= record["hit_rate"] <= 1)
        self.assert_near(record["bytes_per_token"], record["bytes_read"] / record["tokens"])
        self.assert_near(record["drive_bytes_per_s"], record["bytes_read"] / seconds)
        self.assert_near(record["of_bound"], record["tokens_per_s"] / record["bound_tokens_per_s"])
        # Computing alone is never slower than computing and waiting.
        self.assertLessEqual(record["bound_tokens_per_s"], record["tokens"] / (seconds - record["stall_s"]) * 1.000001)
        limit = record["drive_limit_bytes_per_s"]
        if limit is None:
            self.assertIsNone(record["drive_utilisation"])
        else:
            self.assert_near(record["drive_utilisation"], record["drive_bytes_per_s"] / limit)


class Records(Case):
    def test_one_line_per_pass(self):
        for kind, flags in (("decode", ()), ("prefill", ("--chunk", 8))):
            with self.subTest(kind=kind):
                path = self.path(kind)
                command = ("bench", kind, "-m", BUNDLED_MODEL, "-n", 20, *flags, "--ram", "12M", "--prefetch", "off",
                           "--threads", 2, "--io-limit", "400M", "--queue-depth", 4, "--warm-up", 1, "--repeat", 3,
                           "--probe", 0.05, "--json-lines", path)  # fmt: skip
                if harness.is_slow():
                    command = tuple("64M" if word == "12M" else word for word in command)
                result = self.ok(*command)
                records = read_lines(path)
                self.assertEqual([record["repeat"] for record in records], [1, 2, 3])
                for record in records:
                    self.check_record(record)
                    self.assertEqual(record["kind"], kind)
                    self.assertEqual((record["tokens"], record["prefetch"], record["threads"]), (20, "off", 2))
                    self.assertEqual((record["queue_depth"], record["policy"]), (4, "context"))
                    self.assertEqual(record["io_limit"], 400 << 20)
                    self.assertEqual(record["flags"], "--tokens random:1 --warm-up 1")
                    self.assertEqual(record["chunk"], 8 if kind == "prefill" else 1)
                    self.assertGreater(record["drive_limit_bytes_per_s"], 0)
                    self.assertGreater(record["cycles"], 1)
                for label in ("tokens/s", "stall", "bookkeeping", "drive in use", "reached", "median", "least", "most"):
                    self.assertIn(label, result.text)
                self.ok(*command)
                self.assertEqual(len(read_lines(path)), 6)  # appended

    def test_counts_are_those_of_the_statistics(self):
        path = self.path("records")
        command = ("bench", "decode", "-m", BUNDLED_MODEL, "-n", 12, "--warm-up", 1, "--repeat", 2, "--prefetch", "off")
        _, stats = self.statistics(*command, "--ram", harness.smallest_budget(*command) + (4 << 20), "--json-lines", path)
        records = read_lines(path)
        self.assertEqual(stats["trunk_layers_resident"], 6)  # else layers are being read ahead when a pass ends
        self.assertGreater(stats["expert_misses"], 0)
        asked = 2 * 12 * 6 * 4
        self.assertEqual(sum(record["bytes_read"] for record in records), stats["bytes_demand"])
        self.assert_near(sum(record["hit_rate"] for record in records) / 2, stats["expert_hits"] / asked)
        self.assertAlmostEqual(sum(record["stall_s"] for record in records), stats["stall_s"], delta=1e-4)
        rates = sorted(record["tokens_per_s"] for record in records)
        for rate, expected in zip(rates, stats["rates_tok_s"]):
            self.assertAlmostEqual(rate, expected, delta=1e-5 * rate)
        self.assertEqual(records[0]["ram"], stats["budget_bytes"])
        self.assertTrue(0 < records[0]["peak_rss"] <= records[1]["peak_rss"] <= stats["peak_rss_bytes"])
        self.assertAlmostEqual(records[0]["cycles"], stats["cache_cycles"], places=4)

    def test_everything_in_memory_reads_nothing(self):
        path = self.path("records")
        self.ok("bench", "decode", "-m", BUNDLED_MODEL, "-n", 6, "--tokens", "greedy", "--warm-up", 1, "--prefetch", "off", "--ram", "1G", "--probe", 0,
                "--json-lines", path)  # fmt: skip
        (record,) = read_lines(path)
        self.check_record(record)
        self.assertEqual((record["hit_rate"], record["bytes_read"], record["stall_s"]), (1, 0, 0))
        self.assertIsNone(record["drive_limit_bytes_per_s"])
        self.assert_near(record["of_bound"], 1)  # computing is the bound, and all there is

    def test_limit_stands_for_the_drive(self):
        path = self.path("records")
        self.ok(*harness.streaming("bench", "decode", "-m", BUNDLED_MODEL, "-n", 6, "--probe", 0, "--io-limit", "64M",
                                   "--json-lines", path))  # fmt: skip
        (record,) = read_lines(path)
        self.check_record(record)
        self.assertEqual(record["drive_limit_bytes_per_s"], 64 << 20)

    def test_records_on_stdout_leave_it_to_them(self):
        result = self.ok("bench", "decode", "-m", BUNDLED_MODEL, "-n", 4, "--probe", 0, "--json-lines", "-")
        self.check_record(json.loads(result.text))
        self.assertIn("bookkeeping", result.message)

    def test_file_that_cannot_be_written_is_found_before_measuring(self):
        line = self.fails("bench", "decode", "-m", BUNDLED_MODEL, "-n", 4, "--probe", 0, "--json-lines", self.path("absent/records"))
        self.assertIn("absent/records", line)

    def test_what_else_was_asked_for_is_told(self):
        path = self.path("records")
        for flags in ("--tokens greedy --kv q8_0", "--tokens random:2 --direct off --top-k 2 --drop-below 0.1 --substitute"):
            self.ok("bench", "decode", "-m", BUNDLED_MODEL, "-n", 4, "--probe", 0, "--json-lines", path, *flags.split())
            words = flags.split()
            words[2:2] = ["--warm-up", "0"]
            self.assertEqual(read_lines(path)[-1]["flags"], " ".join(words))

    def test_prefetch_without_memory_for_predictions_was_off(self):
        if harness.is_slow():
            self.skipTest("a sanitizer's own memory leaves no budget that is just enough")
        path = self.path("records")
        for ram, used in (("1G", "auto"), (None, "off")):
            command = ("bench", "decode", "-m", BUNDLED_MODEL, "-n", 4, "--probe", 0, "--prefetch", "auto", "--json-lines", path)
            result = self.ok(*command, "--ram", ram) if ram else self.ok(*harness.streaming(*command))
            record = read_lines(path)[-1]
            self.assertEqual((record["prefetch"], record["prefetch_used"]), ("auto", used))
            self.assertEqual("off in effect" in result.text, used == "off")

    def test_a_line_that_was_cut_off_spoils_itself_alone(self):
        path = self.path("records")
        harness.write_bytes(path, b'{"kind":"dec')
        self.ok("bench", "decode", "-m", BUNDLED_MODEL, "-n", 4, "--probe", 0, "--json-lines", path)
        cut, whole = harness.read_bytes(path).splitlines()
        self.assertEqual(cut, b'{"kind":"dec')
        self.check_record(json.loads(whole))


class Sweep(Case):
    LIMITS = ("64M", "none")

    def setUp(self):
        super().setUp()
        self.directory = self.path("sweep")
        least = harness.smallest_budget("bench", "decode", "-m", BUNDLED_MODEL, "-n", 4)
        # Room above the least: a sanitizer's own memory differs between processes.
        self.rams = [least + (4 << 20), least + (48 << 20)]

    def command(self, *flags, rams=None, repeat=2, n=4, directory=None):
        return ("bench", "sweep", "-m", BUNDLED_MODEL, "--ram", harness.comma_list(rams or self.rams),
                "--io-limit", harness.comma_list(self.LIMITS), "--prefetch", "off,auto", "-n", n, "--probe", 0,
                "--warm-up", 0, "--threads", 1, "--repeat", repeat, "-o", directory or self.directory, *flags)  # fmt: skip

    def records(self):
        return read_lines(os.path.join(self.directory, "records.jsonl"))

    def check_complete(self, repeat=2, rams=None):
        """Each cell of the grid exactly once per repeat; CSV equals JSON lines."""
        records = self.records()
        grid = set(itertools.product(range(1, repeat + 1), rams or self.rams, (64 << 20, 0), ("off", "auto")))
        visited = [(r["repeat"], r["ram"], r["io_limit"], r["prefetch"]) for r in records]
        self.assertEqual(len(visited), len(grid))
        self.assertEqual(set(visited), grid)
        for record in records:
            self.check_record(record)
        self.check_csv(records)
        return visited

    def check_csv(self, records):
        text = harness.read_bytes(os.path.join(self.directory, "records.csv")).decode()
        rows = list(csv.DictReader(io.StringIO(text)))
        self.assertEqual(len(rows), len(records))
        for row, record in zip(rows, records):
            flat = {}
            for name, value in record.items():
                inner = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
                flat.update(inner)
            self.assertEqual(set(row), set(flat))
            for name, value in flat.items():
                if isinstance(value, str) or value is None:
                    self.assertEqual(row[name], value or "", name)
                else:
                    self.assertEqual(float(row[name]), value, name)

    def test_grid_is_complete_and_interleaved(self):
        result = self.ok(*self.command())
        visited = self.check_complete()
        self.assertEqual([cell[0] for cell in visited], [1] * 8 + [2] * 8)  # a whole round before the next one
        first, second = ([cell[1:] for cell in visited[at : at + 8]] for at in (0, 8))
        self.assertNotEqual(first, sorted(first))
        self.assertNotEqual(first, second)
        # The order is the seed's.
        harness.shutil.rmtree(self.directory)
        self.ok(*self.command())
        self.assertEqual(self.check_complete(), visited)
        # Progress with time left; a row per cell at the end.
        self.assertEqual(len([line for line in result.message.splitlines() if line.startswith("[")]), 16)
        self.assertRegex(result.message, r"\[16/16\] .* 0 s left")
        self.assertEqual(len([line for line in result.text.splitlines() if line.startswith("decode ")]), 8)

    def test_done_is_not_done_again_and_longer_lists_add(self):
        self.ok(*self.command(repeat=1, rams=self.rams[:1]))
        before = self.records()
        self.assertNotIn("[", self.ok(*self.command(repeat=1, rams=self.rams[:1])).message)
        self.assertEqual(self.records(), before)
        self.ok(*self.command())
        self.assertEqual(self.records()[: len(before)], before)
        self.check_complete()

    def kill_after(self, n, number):
        """Ends a sweep once n records are there."""
        process = harness.Process(self.command(n=24))
        path = os.path.join(self.directory, "records.jsonl")
        deadline = time.monotonic() + harness.options.timeout
        while not (os.path.exists(path) and harness.read_bytes(path).count(b"\n") >= n):
            self.assertIsNone(process.popen.poll(), "ended by itself")
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.002)
        process.popen.send_signal(number)
        return process.finish()

    def test_killed_sweep_goes_on(self):
        for n in (1, 6):
            self.kill_after(n, signal.SIGKILL)
        path = os.path.join(self.directory, "records.jsonl")
        whole = harness.read_bytes(path)
        self.assertTrue(6 <= whole.count(b"\n") < 16)
        # A line that was cut off in the middle.
        harness.write_bytes(path, whole + whole.splitlines()[0][:100])
        self.ok(*self.command(n=24))
        self.assertEqual(harness.read_bytes(path)[: len(whole)], whole)
        self.check_complete()

    def test_interrupt_leaves_what_can_be_gone_on_with(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            result = self.kill_after(len(self.records()) + 2 if os.path.exists(self.directory) else 2, number)
            self.assertIn("the same command goes on", self.assert_one_error(result, 130))
            self.check_csv(self.records())
        self.assertLess(len(self.records()), 16)
        self.ok(*self.command(n=24))
        self.check_complete()

    def test_budgets_that_are_too_small_are_left_out(self):
        result = self.ok(*self.command(rams=["64K", "1M", *self.rams], repeat=1))
        said = [line for line in result.message.splitlines() if "too small" in line]
        self.assertEqual(len(said), 2, result)
        self.assertIn("64.0 KiB", said[0])
        self.check_complete(repeat=1)
        line = self.assert_one_error(harness.run(*self.command(rams=["64K", "1M"])), 1)
        self.assertIn("smallest that works", line)

    def test_both_kinds_and_every_axis(self):
        self.ok("bench", "sweep", "-m", BUNDLED_MODEL, "--ram", "1G", "--kind", "prefill,decode", "--threads", "1,2",
                "--queue-depth", "2,auto", "--chunk", "4,auto", "-n", 8, "--probe", 0, "--warm-up", 0, "--repeat", 1,
                "-o", self.directory)  # fmt: skip
        cells = {(r["kind"], r["threads"], r["queue_depth"] == 2, r["chunk"] == 4) for r in self.records()}
        self.assertEqual(len(self.records()), 16)
        kinds = set(itertools.product(("prefill",), (1, 2), (True, False), (True, False)))
        # One token at a time makes no longer chunks.
        kinds |= set(itertools.product(("decode",), (1, 2), (True, False), (False,)))
        self.assertEqual(cells, kinds)

    def test_memory_is_that_of_the_cell(self):
        if harness.is_slow():
            self.skipTest("sanitizers and emulators take memory of their own")
        self.ok(*self.command(repeat=1, rams=self.rams[::-1]))
        for record in self.records():
            self.assertLessEqual(record["peak_rss"], record["ram"])

    def test_another_model_or_other_settings_are_refused(self):
        self.ok(*self.command(repeat=1))
        before = self.records()
        self.assertIn("n=4", self.assert_one_error(harness.run(*self.command(n=5)), 2))
        other = self.path("other.gguf")
        self.ok("synth", "--like", "qwen3-30b-a3b", "--layers", 1, "--vocab", 512, "-o", other)
        command = [other if word == BUNDLED_MODEL else word for word in self.command(rams=["1G"])]
        self.assertIn("another model", self.assert_one_error(harness.run(*command), 2))
        self.assertEqual(self.records(), before)

    def test_flags_without_a_field_are_settings_too(self):
        packed = self.path("packed")
        self.ok("pack", BUNDLED_MODEL, packed, "--zstd", "off")
        command = [packed if word == BUNDLED_MODEL else word for word in self.command(rams=["1G"], repeat=1)]
        self.ok(*command, "--verify", "always")
        self.assertIn("--verify always", self.assert_one_error(harness.run(*command), 2))

    def test_names_of_any_bytes(self):
        """Which are not JSON."""
        tokens = os.fsencode(self.path("tokens-")) + b"\xff"
        model = os.fsencode(self.path("m")) + b"\xff.gguf"
        harness.write_bytes(tokens, b"1,2,3,4,5,6,7,8")
        harness.copy(BUNDLED_MODEL, model)
        command = [os.fsdecode(model) if word == BUNDLED_MODEL else word for word in self.command("--tokens", os.fsdecode(tokens), repeat=1)]
        self.ok(*command)
        self.assertNotIn("[", self.ok(*command).message)
        self.assertRegex(self.records()[0]["flags"], r"^--tokens .*/tokens-\? --warm-up 0$")

    def test_last_line_without_its_end(self):
        """A whole record stays, part of one goes."""
        self.ok(*self.command(repeat=1))
        path = os.path.join(self.directory, "records.jsonl")
        whole = harness.read_bytes(path)
        harness.write_bytes(path, whole[:-1])
        self.assertNotIn("[", self.ok(*self.command(repeat=1)).message)
        self.assertEqual(harness.read_bytes(path), whole)
        harness.write_bytes(path, whole[:-2])
        self.assertIn("[8/8]", self.ok(*self.command(repeat=1)).message)
        self.check_complete(repeat=1)

    def test_table_that_cannot_be_written_leaves_nothing_beside_it(self):
        os.makedirs(os.path.join(self.directory, "records.csv"))
        self.assertIn("records.csv: cannot write", self.assert_one_error(harness.run(*self.command(repeat=1)), 1))
        self.assertEqual(sorted(os.listdir(self.directory)), ["records.csv", "records.jsonl"])

    def test_records_of_others_stay_and_what_is_none_is_named(self):
        os.mkdir(self.directory)
        path = os.path.join(self.directory, "records.jsonl")
        harness.write_bytes(path, b'{"kind":"io","bytes_per_s":1}\n')
        self.ok(*self.command(repeat=1))
        records = self.records()
        self.assertEqual(records[0], {"kind": "io", "bytes_per_s": 1})
        self.check_csv(records[1:])
        self.assertEqual(len(records), 9)
        harness.write_bytes(path, b"nonsense\n" + harness.read_bytes(path))
        self.assertIn("line 1", self.assert_one_error(harness.run(*self.command(repeat=1)), 1))

    def test_two_at_once_are_refused(self):
        process = harness.Process(self.command("--seed", 2, n=200))
        path = os.path.join(self.directory, "records.jsonl")
        while not (os.path.exists(path) and os.path.getsize(path)):
            self.assertIsNone(process.popen.poll(), "ended by itself")
            time.sleep(0.002)
        self.assertIn("another sweep", self.assert_one_error(harness.run(*self.command(n=200)), 1))
        process.popen.send_signal(signal.SIGINT)
        process.finish()

    def test_bad_arguments(self):
        sweep = ("bench", "sweep", "-m", BUNDLED_MODEL, "-o", self.directory)
        for flags in (
            (),  # no budgets
            ("--ram", ""),
            ("--ram", "4G,"),
            ("--ram", "0"),
            ("--ram", "much"),
            ("--ram", "1G", "--io-limit", "1G;2G"),
            ("--ram", "1G", "--prefetch", "on"),
            ("--ram", "1G", "--queue-depth", "5000"),
            ("--ram", "1G", "--threads", "1.5"),
            ("--ram", "1G", "--threads", "-1"),
            ("--ram", "1G", "--kind", "decode,sing"),
            ("--ram", "1G", "--repeat", 0),
            ("--ram", "1G", "--kind", "prefill", "--tokens", "greedy"),
            ("--ram", harness.comma_list(range(1, 66))),
            ("--ram", harness.comma_list(range(1, 65)), "--threads", harness.comma_list(range(1, 65)),
             "--prefetch", "off,auto"),
            ("--ram", "1G", "--warm", "on"),
        ):  # fmt: skip
            with self.subTest(flags=flags):
                self.fails(*sweep, *flags, code=2)
        self.assertFalse(os.path.exists(self.directory))
        self.fails("bench", "sweep", "-m", BUNDLED_MODEL, "--ram", "1G", code=2)
        self.fails("bench", "sweep", "-m", self.path("absent.gguf"), "--ram", "1G", "-o", self.directory)
        self.fails("bench", "sweep", "-m", BUNDLED_MODEL, "--ram", "1G", "-o", self.path("a/b/c"))
        self.assertIn("--prefetch off,auto", self.ok("bench", "sweep", "--help").text)


if __name__ == "__main__":
    harness.main()
