"""What every end-to-end test shares: runs the built program, finds models, reads what comes back.

A test file ends with harness.main(). CTest gives the paths; by hand it is enough to say

    python3 tests/e2e/test_exactness.py --penstock build/penstock [-v] [CASE...]

Only Python's standard library is used. Data made elsewhere lies in --shared; cases that need it are skipped where it is
absent, the others run on the bundled model.
"""

import argparse
import array
import functools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUNDLED_MODEL = os.path.join(ROOT, "bench", "models", "fable-moe-q8_0.gguf")
SKIPPED = 77  # exit code by which CTest knows that nothing was tested

# Filled by main() before any test runs.
options = types.SimpleNamespace(
    penstock=os.path.join(ROOT, "build", "penstock"),
    shared=os.path.join(ROOT, "..", "shared"),
    fault_library=None,
    emulator=[],
    sanitizer="",
    timeout=120.0,
)


class Result:
    """One finished run: exit code, output, and the largest resident set that was seen from outside."""

    def __init__(self, args, code, stdout, stderr, peak_rss, seconds):
        self.args = args
        self.code = code
        self.stdout = stdout
        self.stderr = stderr
        self.peak_rss = peak_rss
        self.seconds = seconds

    @property
    def text(self):
        return self.stdout.decode("utf-8", "replace")

    @property
    def message(self):
        return self.stderr.decode("utf-8", "replace")

    def __str__(self):
        command = " ".join(_shorten(arg) for arg in self.args)
        return f"\n$ {command}\nexit code {self.code}\nstdout: {_shorten(self.text, 600)}\nstderr: {_shorten(self.message, 3000)}"


def _shorten(text, length=160):
    return text if len(text) <= length else text[: length // 2] + " ... " + text[-length // 2 :]


class Process:
    """A penstock process that is under way; its memory is watched until it ends."""

    def __init__(self, args, env=None, stdout=subprocess.PIPE, wrapper=()):
        self.args = [*wrapper, *options.emulator, options.penstock, *map(str, args)]
        self.started = time.monotonic()
        self.popen = subprocess.Popen(
            self.args,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            # Without a home no working set is kept: a run must not depend on what an earlier one left behind.
            env={**{k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}, **(env or {})},
            # Python ignores SIGPIPE, and children inherit that: give them the usual disposition.
            restore_signals=True,
        )
        self.peak_rss = 0
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self):
        # VmHWM only grows, so the last value read is the peak up to a millisecond before the end.
        while self.popen.returncode is None:
            try:
                with open(f"/proc/{self.popen.pid}/status", encoding="ascii") as status:
                    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read())
            except OSError:
                return
            if peak:
                self.peak_rss = max(self.peak_rss, int(peak.group(1)) * 1024)
            time.sleep(0.001)

    def finish(self, timeout=None):
        try:
            stdout, stderr = self.popen.communicate(timeout=timeout or options.timeout)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            stdout, stderr = self.popen.communicate()
            raise AssertionError(
                "no end after the time limit" + str(Result(self.args, None, stdout or b"", stderr, 0, 0))
            ) from None
        self._watcher.join()
        seconds = time.monotonic() - self.started
        return Result(self.args, self.popen.returncode, stdout or b"", stderr, self.peak_rss, seconds)


def run(*args, timeout=None, **process):
    return Process(args, **process).finish(timeout)


class TestCase(unittest.TestCase):
    maxDiff = 2000

    def setUp(self):
        self._directory = tempfile.TemporaryDirectory(prefix="penstock-test-")
        self.addCleanup(self._directory.cleanup)

    def path(self, name):
        """A path in this case's own directory, which goes away afterwards."""
        return os.path.join(self._directory.name, name)

    def ok(self, *args, **process):
        """Runs a command that must succeed."""
        result = run(*args, **process)
        self.assert_clean(result)
        self.assertEqual(result.code, 0, str(result))
        return result

    def fails(self, *args, code=1, **process):
        """Runs a command that must fail up front: nothing on stdout, one line on stderr. Returns that line."""
        result = run(*args, **process)
        line = self.assert_one_error(result, code)
        self.assertEqual(result.message, line + "\n", str(result))
        self.assertEqual(result.stdout, b"", str(result))
        return line

    def assert_clean(self, result):
        self.assertGreaterEqual(result.code, 0, "killed by a signal" + str(result))
        self.assertNotRegex(result.message, r"Sanitizer|runtime error:", str(result))

    def assert_one_error(self, result, code):
        """Exactly one line `penstock: ...`, the last one on stderr."""
        self.assert_clean(result)
        self.assertEqual(result.code, code, str(result))
        lines = [line for line in result.message.splitlines() if line.startswith("penstock: ")]
        self.assertEqual(len(lines), 1, str(result))
        self.assertEqual(result.message.splitlines()[-1], lines[0], str(result))
        return lines[0]

    def assert_same_logits(self, ours, theirs):
        """Equal to the bit; says where the first difference is instead of printing both."""
        if ours != theirs:
            self.assertEqual(len(ours), len(theirs))
            at = next(i for i in range(0, len(ours), 4) if ours[i : i + 4] != theirs[i : i + 4])
            pair = floats(ours[at : at + 4])[0], floats(theirs[at : at + 4])[0]
            self.fail(f"logit {at // 4} of {len(ours) // 4} is {pair[0]!r}, not {pair[1]!r}")

    def logits(self, model, tokens, *flags, experts=None, **process):
        """The raw bytes that `eval logits` writes; with experts, also the chosen experts' ids."""
        out = self.path("logits.f32")
        if experts:
            flags += ("--experts", self.path("experts.i32"))
        self.ok(*logits_command(model, tokens, *flags, out=out), **process)
        if experts:
            return read_bytes(out), read_bytes(self.path("experts.i32"))
        return read_bytes(out)

    def generate(self, model, tokens, n, *flags):
        """Greedy continuation of token ids, as ids."""
        args = ["--prompt-tokens", comma_list(tokens), "-n", n, "--temp", 0, "--print", "tokens"]
        result = self.ok("run", "-m", model, *args, *flags)
        return [int(word) for word in result.text.split()]

    def statistics(self, *args):
        """Runs a command with --stats; returns the result and the statistics."""
        path = self.path("stats.json")
        result = self.ok(*args, "--stats", path)
        return result, json.loads(read_bytes(path))


def read_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def write_bytes(path, data):
    with open(path, "wb") as file:
        file.write(data)


def floats(data):
    values = array.array("f")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def ints(data):
    values = array.array("i")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def comma_list(values):
    return ",".join(map(str, values))


# ---- Sizes and budgets ----

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SMALLEST = re.compile(r"smallest that works is (\d+)([KMGT]?)\b")


@functools.lru_cache(maxsize=None)
def smallest_budget(*command):
    """The smallest --ram that works for a command, in bytes, as the refusal of a tiny one names it."""
    result = run(*command, "--ram", "64K")
    named = _SMALLEST.search(result.message)
    if result.code != 1 or not named:
        raise AssertionError("a budget of 64K was not refused with the smallest that works" + str(result))
    return int(named[1]) * _UNITS.get(named[2], 1)


def tight_budget(*command):
    """One that a run of the command surely gets by with: a sanitizer's own memory, which the plan counts as the process's, differs
    by megabytes from run to run."""
    return smallest_budget(*command) + (4 << 20 if options.sanitizer else 0)


def streaming(*command):
    """The command with the smallest budget, so that most experts are read again and again."""
    return (*command, "--ram", tight_budget(*command))


def logits_command(model, tokens, *flags, out=os.devnull):
    return ("eval", "logits", "-m", model, "--tokens", comma_list(tokens), "-o", out, *flags)


@functools.lru_cache(maxsize=None)
def choices(flag, *command):
    """The values that a flag lists when it is given an unknown one."""
    result = run(*command, flag, "no-such-value")
    listed = result.message.strip().rsplit("one of ", 1)
    if result.code != 2 or len(listed) != 2:
        raise AssertionError(f"{flag} does not list its values" + str(result))
    return [word for word in re.split(r"[,\s]+|\bor\b", listed[1]) if word]


def cache_policies():
    return choices("--cache-policy", "run", "-m", BUNDLED_MODEL, "-p", "x")


CPU_LEVELS = ("scalar", "avx2", "avx512", "neon")


@functools.lru_cache(maxsize=None)
def cpu_levels():
    """Instruction-set levels that this machine can run."""
    probe = logits_command(BUNDLED_MODEL, [1], "--cpu")
    levels = [level for level in CPU_LEVELS if run(*probe, level).code == 0]
    assert "scalar" in levels, "--cpu scalar must work everywhere"
    return levels


def open_files(pid):
    """What a running process has open, as paths; it may open and close meanwhile."""
    paths = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            paths.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
        except FileNotFoundError:
            pass
    return paths


@functools.lru_cache(maxsize=None)
def has_uring():
    return run("run", "-m", BUNDLED_MODEL, "-p", "x", "-n", "1", "--io", "uring").code == 0


# ---- Comparing ----


class Difference:
    """Largest and root-mean-square difference of two rows sets, over chosen rows."""

    def __init__(self, ours, theirs, width, rows):
        self.largest = 0.0
        square = 0.0
        for row in rows:
            for i in range(row * width, (row + 1) * width):
                delta = abs(ours[i] - theirs[i])
                square += delta * delta
                if not delta <= self.largest:  # a NaN becomes the largest
                    self.largest = delta
        self.rms = math.sqrt(square / max(1, len(rows) * width))

    def within(self, tolerance):
        return self.largest <= tolerance["max_abs"] and self.rms <= tolerance["rms"]

    def __str__(self):
        return f"max {self.largest:.3g}, rms {self.rms:.3g}"


def two_best(row):
    """(index, value) of the largest and the second largest."""
    first, second = sorted(range(len(row)), key=lambda i: (-row[i], i))[:2]
    return (first, row[first]), (second, row[second])


# ---- Data ----


def shared(*parts):
    return os.path.join(options.shared, *parts)


def needs_shared(*parts):
    """Skips a case where ../shared lacks a path."""

    def decorate(function):
        @functools.wraps(function)
        def wrapped(self, *args):
            if not os.path.exists(shared(*parts)):
                self.skipTest(f"{os.path.join(*parts)} is not in the shared data")
            return function(self, *args)

        return wrapped

    return decorate


@functools.lru_cache(maxsize=None)
def golden_manifest():
    with open(shared("golden", "manifest.json"), encoding="utf-8") as file:
        return json.load(file)


def golden_model(model_id):
    return next(model for model in golden_manifest()["models"] if model["id"] == model_id)


def golden_tokens():
    return golden_manifest()["tokens"][0]["values"]


def copy(source, target, length=None):
    """A copy that may be changed; with length, of the first bytes only."""
    if length is None:
        shutil.copyfile(source, target)
    else:
        with open(source, "rb") as file:
            write_bytes(target, file.read(length))
    os.chmod(target, 0o644)
    return target


def is_slow():
    """Sanitizers and emulation take ten times as long: cases thin out their loops."""
    return bool(options.sanitizer or options.emulator)


def main():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--penstock", default=options.penstock)
    parser.add_argument("--shared", default=options.shared)
    parser.add_argument("--fault-library", default=None)
    parser.add_argument("--emulator", default="", help="command that runs the program, words separated by ;")
    parser.add_argument("--sanitizer", default="")
    given, rest = parser.parse_known_args()
    options.penstock = os.path.abspath(given.penstock)
    options.shared = os.path.abspath(given.shared)
    options.fault_library = given.fault_library
    options.emulator = [word for word in given.emulator.split(";") if word]
    options.sanitizer = given.sanitizer
    options.timeout = 600.0 if is_slow() else 120.0
    signal.signal(signal.SIGINT, signal.default_int_handler)
    program = unittest.main(argv=[sys.argv[0], *rest], exit=False, verbosity=2)
    outcome = program.result
    if not outcome.wasSuccessful():
        sys.exit(1)
    sys.exit(SKIPPED if outcome.testsRun == len(outcome.skipped) else 0)
