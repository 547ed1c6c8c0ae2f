"""bench decode and prefill write records that agree with themselves. That figures are near the truth is not for a test: it
would depend on timings."""

import json
import os

import harness
from harness import BUNDLED_MODEL

FIELDS = {
    "kind", "model", "arch", "file_bytes", "ram", "io_limit", "prefetch", "queue_depth", "threads", "chunk", "policy",
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
        command = harness.streaming(*command, "--json-lines", path)
        _, stats = self.statistics(*command)
        records = read_lines(path)
        asked = 2 * 12 * 6 * 4
        self.assertEqual(sum(record["bytes_read"] for record in records), stats["bytes_demand"])
        self.assert_near(sum(record["hit_rate"] for record in records) / 2, stats["expert_hits"] / asked)
        self.assertAlmostEqual(sum(record["stall_s"] for record in records), stats["stall_s"], delta=1e-4)
        rates = sorted(record["tokens_per_s"] for record in records)
        for rate, expected in zip(rates, stats["rates_tok_s"]):
            self.assertAlmostEqual(rate, expected, delta=1e-5 * rate)
        self.assertEqual(records[0]["ram"], stats["budget_bytes"])
        self.assertEqual(records[-1]["peak_rss"], stats["peak_rss_bytes"])
        self.assertAlmostEqual(records[0]["cycles"], stats["cache_cycles"], places=4)

    def test_everything_in_memory_reads_nothing(self):
        path = self.path("records")
        self.ok("bench", "decode", "-m", BUNDLED_MODEL, "-n", 6, "--warm-up", 1, "--prefetch", "off", "--ram", "1G", "--probe", 0,
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

    def test_file_that_cannot_be_written(self):
        result = harness.run("bench", "decode", "-m", BUNDLED_MODEL, "-n", 4, "--probe", 0, "--json-lines",
                             self.path("absent/records"))  # fmt: skip
        self.assertIn("absent/records", self.assert_one_error(result, 1))


if __name__ == "__main__":
    harness.main()
