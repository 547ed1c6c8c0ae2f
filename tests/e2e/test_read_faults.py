"""Reads fail, come up short or are interrupted: the failure is reported, or nothing changes. No wrong answer.

The shim in fault_pread.c stands in for the drive. It is preloaded, so the program has to be linked dynamically.
"""

import os

import harness
import table_model
from container import BLOCK, Container
from harness import BUNDLED_MODEL

PROMPT = ("-p", "Once upon a time", "-n", 24, "--temp", 0)


class FailingReads(harness.TestCase):
    def setUp(self):
        super().setUp()
        if not harness.options.fault_library:
            self.skipTest("no --fault-library")

    def environment(self, kind, after=0, every=1):
        return {
            "LD_PRELOAD": harness.options.fault_library,
            "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0",
            "FAULT_PREAD_KIND": kind,
            "FAULT_PREAD_AFTER": str(after),
            "FAULT_PREAD_EVERY": str(every),
            "FAULT_PREAD_COUNT": self.path("count"),
        }

    def command(self):
        command = ("run", "-m", BUNDLED_MODEL, *PROMPT, "--io", "threads")
        # Room for the shim and for what shared libraries take, which differs a little from start to start.
        return (*command, "--ram", harness.smallest_budget(*command) + (1 << 20))

    def total_reads(self):
        self.ok(*self.command(), env=self.environment("none"))
        self.assertTrue(os.path.exists(self.path("count")), "the shim was not loaded")
        total = int(harness.read_bytes(self.path("count")))
        self.assertGreater(total, 100, "reads do not go through pread")
        return total

    def test_failed_read_is_reported_with_file_and_offset(self):
        total = self.total_reads()
        for kind in ("eio", "eof"):
            for share in (0, 0.1, 0.5, 0.8):
                with self.subTest(kind=kind, after=share):
                    result = harness.run(*self.command(), env=self.environment(kind, int(total * share)))
                    line = self.assert_one_error(result, 1)
                    self.assertIn(os.path.basename(BUNDLED_MODEL), line)
                    self.assertRegex(line, r"offset \d+")

    def test_text_before_the_failure_is_right(self):
        whole = self.ok(*self.command()).stdout
        result = harness.run(*self.command(), env=self.environment("eio", int(self.total_reads() * 0.7)))
        written = result.stdout.rstrip(b"\n")
        self.assertGreater(len(written), 0)
        self.assertTrue(whole.startswith(written), str(result))

    def test_short_and_interrupted_reads_change_nothing(self):
        whole = self.ok(*self.command()).stdout
        self.total_reads()
        for kind in ("short", "eintr"):
            with self.subTest(kind=kind):
                result = self.ok(*self.command(), env=self.environment(kind, every=2))
                self.assertEqual(result.stdout, whole)

    @table_model.needed
    def test_a_bit_that_flips_once_is_read_again(self):
        """In a packed model's trunk, and in a table of which rows are read."""
        model, packed = self.path("table.gguf"), self.path("table.pack")
        table_model.write(model)
        self.ok("pack", model, packed, "--zstd", "off")
        table, _ = table_model.place(model, packed)
        command = ("run", "-m", packed, "--prompt-tokens", "5,6,7,8", "-n", 4, "--temp", 0, "--print", "tokens")
        command = (*command, "--io", "threads", "--ram", "1G")
        whole = self.ok(*command).stdout
        trunk = next(offset for offset in Container(packed).trunk if offset not in (0, table))
        for place in (trunk, table + BLOCK - 1, table + BLOCK):
            env = {**self.environment("flip"), "FAULT_PREAD_PLACE": str(place)}
            result = self.ok(*command, env=env)
            self.assertEqual(result.stdout, whole)
            self.assertIn("sound when read again: 1", result.message)


if __name__ == "__main__":
    harness.main()
