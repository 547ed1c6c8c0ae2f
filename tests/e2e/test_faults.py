"""The world changes while text is being made: files shrink, stdout breaks, the user interrupts."""

import os
import signal
import subprocess
import time

import harness
from harness import BUNDLED_MODEL

PROMPT = ("-p", "Once upon a time", "-n", 24, "--temp", 0)
LONG = ("-p", "Once upon a time", "-n", 200, "--temp", 0)
SLOW_DRIVE = ("--io-limit", "16M")  # 2.5 MB per token: slow enough to act in between


def backends():
    return ("threads", "uring") if harness.has_uring() else ("threads",)


class ShrinkingFile(harness.TestCase):
    def test_file_truncated_while_running(self):
        for backend in backends():
            for direct in ("on", "off"):
                for share in (0.5, 0):
                    with self.subTest(io=backend, direct=direct, left=share):
                        self.check(share, "--io", backend, "--direct", direct)

    def check(self, share, *flags):
        path = harness.copy(BUNDLED_MODEL, self.path("model.gguf"))
        process = harness.Process(harness.streaming("run", "-m", path, *LONG, *SLOW_DRIVE, *flags))
        self.assertTrue(process.popen.stdout.read(1), "no text at all")
        os.truncate(path, int(os.path.getsize(path) * share))
        line = self.assert_one_error(process.finish(), 1)
        self.assertIn("model.gguf", line)


class BrokenOutput(harness.TestCase):
    def test_full_device(self):
        with open("/dev/full", "wb") as full:
            self.assert_one_error(harness.run("run", "-m", BUNDLED_MODEL, *PROMPT, stdout=full), 1)
            self.assert_one_error(harness.run("inspect", BUNDLED_MODEL, stdout=full), 1)
            self.assert_one_error(harness.run("--help", stdout=full), 1)

    def test_closed_pipe(self):
        for command in (("run", "-m", BUNDLED_MODEL, *PROMPT), ("inspect", BUNDLED_MODEL)):
            with self.subTest(command=command[0]):
                reader, writer = os.pipe()
                os.close(reader)
                try:
                    self.assert_one_error(harness.run(*command, stdout=writer), 1)
                finally:
                    os.close(writer)

    def test_reader_that_leaves_stops_the_generation(self):
        process = harness.Process(harness.streaming("run", "-m", BUNDLED_MODEL, *LONG, *SLOW_DRIVE))
        self.assertTrue(process.popen.stdout.read(1))
        process.popen.stdout.close()
        started = time.monotonic()
        self.assertEqual(process.popen.wait(harness.options.timeout), 1)
        self.assertLess(time.monotonic() - started, 30 if harness.is_slow() else 10)
        process.popen.stderr.close()

    def test_results_that_cannot_be_written(self):
        absent = self.path("absent/file")
        tokens = ("-m", BUNDLED_MODEL, "--tokens", "1,2,3")
        for path in (absent, "/dev/full"):
            with self.subTest(path=path):
                self.assert_one_error(harness.run("eval", "logits", *tokens, "-o", path), 1)
                self.assert_one_error(harness.run("run", "-m", BUNDLED_MODEL, *PROMPT, "--stats", path), 1)

    def test_no_standard_output_at_all(self):
        closed = ("sh", "-c", 'exec "$@" >&-', "sh")
        result = harness.run("run", "-m", BUNDLED_MODEL, *PROMPT, wrapper=closed, stdout=subprocess.DEVNULL)
        self.assert_clean(result)
        self.assertIn(result.code, (0, 1), str(result))


class Interrupt(harness.TestCase):
    LIMIT = 2.0  # seconds from Ctrl-C to the end

    def interrupt(self, process, number):
        sent = time.monotonic()
        process.popen.send_signal(number)
        result = process.finish()
        self.assertEqual(result.code, 130, str(result))
        self.assertLess(time.monotonic() - sent, self.LIMIT * (10 if harness.is_slow() else 1), str(result))
        self.assertNotRegex(result.message, r"Sanitizer|runtime error:")
        return result

    def test_stops_the_text_where_it_is(self):
        arguments = ("run", "-m", BUNDLED_MODEL, *LONG)
        whole = self.ok(*arguments).stdout
        for backend in backends():
            process = harness.Process(harness.streaming(*arguments, "--io", backend, *SLOW_DRIVE))
            first = process.popen.stdout.read(1)
            result = self.interrupt(process, signal.SIGINT)
            written = (first + result.stdout).rstrip(b"\n")
            self.assertTrue(whole.startswith(written), str(result))
            self.assertLess(len(written), len(whole) / 2)

    def test_stops_a_long_prompt(self):
        tokens = harness.comma_list((i * 37) % 2000 + 3 for i in range(200))
        arguments = ("-m", BUNDLED_MODEL, "--prompt-tokens", tokens, "-n", 1, "--io-limit", "1M", "--chunk", 8)
        process = harness.Process(harness.streaming("run", *arguments))
        time.sleep(4.0 if harness.is_slow() else 1.0)
        self.assertIsNone(process.popen.poll(), "too quick to be interrupted")
        self.assertEqual(self.interrupt(process, signal.SIGINT).stdout.strip(), b"")


if __name__ == "__main__":
    harness.main()
