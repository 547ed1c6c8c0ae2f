"""`bench io`: every setting once, nothing left behind, nothing of a model written, and errors that name what to do.
Nothing here asks for a speed."""

import json
import os
import shutil
import signal
import subprocess
import time

import gguf_tool
import harness
from harness import BUNDLED_MODEL

QUICK = ("--seconds", 0, "--repeat", 1)


def objects(text):
    return [json.loads(line) for line in text.splitlines()]


def cell_key(cell):
    return tuple(cell[name] for name in ("pattern", "backend", "direct", "extent_bytes", "block_bytes", "queue_depth"))


class OwnFile(harness.TestCase):
    def setUp(self):
        super().setUp()
        os.mkdir(self.path("drive"))

    def bench(self, *flags):
        result = self.ok("bench", "io", "--dir", self.path("drive"), "--size", "1M", *QUICK, *flags)
        self.assertEqual(os.listdir(self.path("drive")), [])
        return result

    def test_every_combination_is_measured_once(self):
        flags = ("--extent", "4K,64K,2M", "--block", "4K,32K", "--queue-depth", "1,3", "--io", "threads", "--direct", "off")
        cells = objects(self.bench(*flags, "--json").text)
        saturation = cells.pop()
        # 2M is more than the file: it is read whole. A block larger than the extent is the extent.
        random = [("random", "threads", False, e, b, d)
                  for e, blocks in ((4096, (4096,)), (65536, (4096, 32768)), (1 << 20, (4096, 32768)))
                  for b in blocks for d in (1, 3)]
        sequential = [("sequential", "threads", False, 1 << 20, b, d) for b in (4096, 32768) for d in (1, 3)]
        self.assertEqual([cell_key(c) for c in cells], random + sequential)
        for cell in cells:
            self.assertEqual(cell["kind"], "io")
            self.assertEqual(cell["file_bytes"], 1 << 20)
            self.assertEqual(cell["bytes_read"], cell["extents"] * cell["extent_bytes"])
            self.assertEqual(cell["reads"] * cell["block_bytes"], cell["bytes_read"])
            self.assertGreater(cell["extents"], 0)
            self.assertEqual(len(cell["repeats"]), 1)
            self.assertTrue(cell["machine"]["drive"])  # of a directory, too
            self.assertLessEqual(cell["p50_us"], cell["p99_us"])
        best = max(c["bytes_per_s"] for c in cells if c["pattern"] == "random")
        enough = [c for c in cells if c["pattern"] == "random" and c["bytes_per_s"] >= 0.97 * best]
        least = min(enough, key=lambda c: (c["extent_bytes"], c["queue_depth"], c["block_bytes"]))
        self.assertEqual(saturation["kind"], "io_saturation")
        self.assertEqual(cell_key(saturation), cell_key(least))
        self.assertAlmostEqual(saturation["best_bytes_per_s"] / best, 1)

    def test_place_is_told_from_the_root_and_may_be_of_any_bytes(self):
        os.mkdir(os.fsencode(self.path("d")) + b"\xff")
        told = os.path.join(os.path.realpath(self.path("")), "d?")
        flags = ("--size", "1M", *QUICK, "--extent", "64K", "--block", "64K", "--queue-depth", "2", "--io", "threads", "--json")
        objects_told = objects(self.ok("bench", "io", "--dir", os.path.relpath(os.fsdecode(os.fsencode(self.path("d")) + b"\xff")), *flags).text)
        self.assertEqual({one["place"] for one in objects_told}, {told})

    def test_repeats_are_kept_and_their_median_is_the_rate(self):
        flags = ("--extent", "64K", "--block", "64K", "--queue-depth", "2", "--pattern", "random", "--io", "threads")
        for cell in objects(self.bench(*flags, "--repeat", 5, "--json").text)[:-1]:
            self.assertEqual(len(cell["repeats"]), 5)
            self.assertEqual(cell["repeats"], sorted(cell["repeats"]))
            self.assertAlmostEqual(cell["bytes_per_s"] / cell["repeats"][2], 1)

    def test_text_has_the_table_and_one_sentence(self):
        text = self.bench("--queue-depth", "2", "--block", "64K", "--io", "threads", "--direct", "off").text
        # Extents of 64K, 256K, 1M and 4M, which is 1M of this file; sequential once.
        self.assertEqual(len([line for line in text.splitlines() if line.startswith(("random", "sequential"))]), 4)
        self.assertIn("The least that saturates the drive: random extents of", text.splitlines()[-1])

    def test_depth_that_threads_do_not_reach_is_left_out(self):
        flags = ("--extent", "64K", "--block", "64K", "--pattern", "random", "--io", "threads", "--direct", "off")
        result = self.bench(*flags, "--queue-depth", "2,64", "--json")
        self.assertEqual([c["queue_depth"] for c in objects(result.text)[:-1]], [2])
        self.assertIn("left out: threads: at most 16", result.message)
        self.assertIn("16", self.fails("bench", "io", "--dir", self.path("drive"), "--size", "1M", *QUICK, *flags,
                                       "--queue-depth", 64))

    def wait_until_it_reads(self, popen):
        until = time.monotonic() + 60
        while time.monotonic() < until:
            n_threads = len(os.listdir(f"/proc/{popen.pid}/task"))
            if n_threads > 1 and any(".penstock-bench" in file for file in harness.open_files(popen.pid)):
                return
            time.sleep(0.01)
        self.fail("the file was never read")

    def test_interrupt_leaves_nothing(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with self.subTest(signal=number):
                process = harness.Process(
                    ("bench", "io", "--dir", self.path("drive"), "--size", "1M", "--io", "threads", "--seconds", 600)
                )
                self.wait_until_it_reads(process.popen)
                process.popen.send_signal(number)
                result = process.finish()
                self.assertEqual(os.listdir(self.path("drive")), [])
                if number != signal.SIGKILL:
                    self.assert_one_error(result, 130)


class Model(harness.TestCase):
    FLAGS = (*QUICK, "--queue-depth", "1,4", "--block", "64K,8M", "--io", "threads", "--direct", "off", "--json")

    def test_reads_its_experts_and_leaves_it_as_it_is(self):
        path = harness.copy(BUNDLED_MODEL, self.path("model.gguf"))
        os.chmod(path, 0o444)
        before = os.stat(path).st_mtime_ns
        cells = objects(self.ok("bench", "io", "-m", path, *self.FLAGS).text)
        random = [c for c in cells if c["kind"] == "io" and c["pattern"] == "random"]
        self.assertEqual(len(random), 4)
        self.assertTrue(all(c["shards"] for c in random))
        # Three parts of 256 x 128 values in Q8_0, each rounded to whole units of 4096 bytes.
        part = 256 * 128 // 32 * 34
        for cell in random:
            self.assertGreaterEqual(cell["bytes_read"], cell["extents"] * 3 * part)
            self.assertLessEqual(cell["bytes_read"], cell["extents"] * cell["extent_bytes"])
        self.assertEqual(os.stat(path).st_mtime_ns, before)
        self.assertEqual(harness.read_bytes(path), harness.read_bytes(BUNDLED_MODEL))

    def test_machine_and_time_are_those_of_other_records(self):
        before = int(time.time())
        cells = objects(self.ok("bench", "io", "-m", BUNDLED_MODEL, *self.FLAGS).text)[:-1]
        decoding = ("bench", "decode", "-m", BUNDLED_MODEL, "-n", 1, "--probe", 0, "--json-lines", "-")
        (record,) = objects(self.ok(*decoding).text)
        self.assertEqual(set(record["machine"]), {"cpu", "cores", "memory", "drive", "kernel"})
        self.assertTrue(record["machine"]["drive"])
        for cell in cells:
            self.assertEqual(cell["machine"], record["machine"])
            self.assertTrue(before <= cell["time"] <= record["time"])

    def test_extents_of_any_size_instead(self):
        cells = objects(self.ok("bench", "io", "-m", BUNDLED_MODEL, "--extent", "128K", *self.FLAGS).text)
        self.assertEqual({c["extent_bytes"] for c in cells}, {128 << 10})
        self.assertFalse(any(c["shards"] for c in cells))

    def test_split_set_is_read_whole(self):
        parts = gguf_tool.split(gguf_tool.read(BUNDLED_MODEL), self.path("set"), 3)
        cells = objects(self.ok("bench", "io", "-m", parts[0], *self.FLAGS).text)
        self.assertEqual(cells[0]["file_bytes"], sum(map(os.path.getsize, parts)))


class Errors(harness.TestCase):
    def fails_with(self, *flags, code, says):
        line = self.fails("bench", "io", *QUICK, *flags, code=code)
        for text in says:
            self.assertIn(text, line)

    def test_directory_missing(self):
        self.fails_with("--dir", self.path("none"), code=1, says=("none", "No such file"))

    def test_directory_is_a_file(self):
        harness.write_bytes(self.path("file"), b"")
        self.fails_with("--dir", self.path("file"), "--size", "1M", code=1, says=("Not a directory",))

    def test_directory_not_writable(self):
        # Of /proc nobody may make a file, root neither.
        self.fails_with("--dir", "/proc", code=1, says=("/proc", "--dir"))

    def test_more_than_is_free(self):
        self.fails_with("--dir", self.path("."), "--size", "900000T", code=1, says=("no space", "--size"))

    def test_disk_full(self):
        unshare = ["unshare", "--user", "--map-root-user", "--mount"]
        if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
            self.skipTest("no mount name space to be had")
        os.mkdir(self.path("small"))
        script = f"mount -t tmpfs -o size=4m none {self.path('small')} || exit 77; exec \"$@\""
        command = [*unshare, "sh", "-c", script, "sh"]
        result = harness.run("bench", "io", "--dir", self.path("small"), "--size", "8M", *QUICK, wrapper=command)
        if result.code == 77:
            self.skipTest("no tmpfs to be had")
        self.assertIn("4.00 MiB are free", self.assert_one_error(result, 1))
        # What fits without a size.
        flags = ("--io", "threads", "--queue-depth", 1, "--direct", "off", "--json")
        result = harness.run("bench", "io", "--dir", self.path("small"), *QUICK, *flags, wrapper=command)
        self.assertEqual(result.code, 0, str(result))
        self.assertEqual(objects(result.text)[0]["file_bytes"], 2 << 20)

    def test_model_missing_or_none(self):
        self.fails_with("-m", self.path("none.gguf"), code=1, says=("none.gguf",))
        harness.write_bytes(self.path("bad.gguf"), b"no model" * 1000)
        self.fails_with("-m", self.path("bad.gguf"), code=1, says=("bad.gguf",))

    def test_flags(self):
        for flags, says in (
            (("--extent", "64K,7"), "--extent"),
            (("--extent", ""), "--extent"),
            (("--block", "64K,,1M"), "--block"),
            (("--block", "2G"), "--block"),
            (("--queue-depth", "0"), "--queue-depth"),
            (("--queue-depth", "1,2000"), "--queue-depth"),
            (("--queue-depth", ",".join(map(str, range(1, 19)))), "more than 16"),
            (("-m", BUNDLED_MODEL, "--dir", "."), "--model"),
            (("--size", "10"), "--size"),
        ):
            with self.subTest(flags=flags):
                self.fails_with(*flags, code=2, says=(says,))


if __name__ == "__main__":
    harness.main()
