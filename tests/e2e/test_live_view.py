"""--stats live on a pseudo-terminal: the text is untouched, the panel stands below it, and the terminal is left clean."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

import harness
from harness import BUNDLED_MODEL

PROMPT = ("-p", "Once upon a time", "--temp", 0)
SHORT = ("run", "-m", BUNDLED_MODEL, *PROMPT, "-n", 24)
SLOW = ("run", "-m", BUNDLED_MODEL, *PROMPT, "-n", 200, "--io-limit", "16M")
LONG_PROMPT = harness.comma_list((i * 37) % 2000 + 3 for i in range(64))
FIGURES = ("tokens/s", "hits", "stalled", "GB/s", "wasted", "prefetch", "memory", "experts")
NOT_INHERITED = ("LC_ALL", "LC_CTYPE", "COLORTERM", "NO_COLOR", "HOME", "XDG_CACHE_HOME")
COLOURS = {"TERM": "xterm-256color", "LANG": "C.UTF-8"}


def streaming(*command):
    """With the smallest budget; what a sanitizer takes of it differs from start to start."""
    slack = 4 << 20 if harness.options.sanitizer else 0
    return (*command, "--ram", harness.smallest_budget(*command) + slack)


class Screen:
    """As much of a VT100 as the panel needs; anything else is an error."""

    SEQUENCE = re.compile(r"\033(?:\[([?0-9;]*)([A-Za-z])|([78D]))|[\r\n\b]|[^\033\r\n\b]+")

    def __init__(self, rows, cols):
        self.rows, self.cols = rows, cols
        self.lines = [[" "] * cols for _ in range(rows)]
        self.row = self.col = 0
        self.saved = (0, 0)
        self.top, self.bottom = 0, rows - 1
        self.visible = True
        self.colour = "0"
        self.regions = []  # every one that was set, as (top, bottom)

    def feed(self, text):
        at = 0
        while at < len(text):
            match = self.SEQUENCE.match(text, at)
            assert match, f"unknown sequence {text[at:at + 12]!r}"
            at = match.end()
            if match[2]:
                self.control(match[1], match[2])
            elif match[3]:
                self.escape(match[3])
            elif match[0] in "\r\n\b":
                self.move(match[0])
            else:
                for char in match[0]:
                    self.put(char)

    def put(self, char):
        if self.col == self.cols:
            self.col = 0
            self.index()
        self.lines[self.row][self.col] = char
        self.col += 1

    def move(self, char):
        if char == "\n":
            self.index()
        else:
            self.col = 0 if char == "\r" else max(0, self.col - 1)

    def index(self):
        if self.row == self.bottom:
            del self.lines[self.top]
            self.lines.insert(self.bottom, [" "] * self.cols)
        elif self.row < self.rows - 1:
            self.row += 1

    def escape(self, letter):
        if letter == "7":
            self.saved = (self.row, self.col)
        elif letter == "8":
            self.row, self.col = self.saved
        else:
            self.index()

    def control(self, arguments, letter):
        numbers = [int(part or 0) for part in arguments.lstrip("?").split(";")]
        if letter == "m":
            self.colour = arguments or "0"
        elif letter == "H":
            self.row, self.col = min(numbers[0], self.rows) - 1, min(numbers[1], self.cols) - 1
        elif letter == "A":
            self.row = max(0, self.row - numbers[0])
        elif letter in "JK":
            self.erase(self.row + 1 if letter == "K" else self.rows)
        elif letter == "r":
            whole = not arguments
            self.top, self.bottom = (0, self.rows - 1) if whole else (numbers[0] - 1, numbers[1] - 1)
            assert 0 <= self.top < self.bottom < self.rows, "a region of less than two lines"
            self.row = self.col = 0
            self.regions.append((self.top, self.bottom))
        else:
            assert arguments == "?25" and letter in "hl", f"unknown sequence {arguments}{letter}"
            self.visible = letter == "h"

    def erase(self, end):
        self.lines[self.row][self.col :] = [" "] * (self.cols - min(self.col, self.cols))
        for row in range(self.row + 1, end):
            self.lines[row] = [" "] * self.cols

    def text(self):
        return ["".join(line).rstrip() for line in self.lines]

    def __str__(self):
        return "\n".join(self.text())


class Terminal:
    """A program on a pseudo-terminal of a given size; everything that it shows there is kept."""

    def __init__(self, args, rows=24, cols=80, env=None, stdout=None):
        self.master, slave = pty.openpty()
        self.resize(rows, cols)
        inherited = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
        environment = {**inherited, "TERM": "xterm", "LANG": "C", **(env or {})}
        self.args = [*harness.options.emulator, harness.options.penstock, *map(str, args)]
        self.popen = subprocess.Popen(
            self.args, stdin=slave, stdout=stdout or slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.size = rows, cols
        self.bytes = b""

    def resize(self, rows, cols):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def read(self, seconds):
        """What comes within some seconds; False at the end."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the last descriptor of the other side is closed
            return False
        self.bytes += data
        return bool(data)

    def read_until(self, pattern, start=0):
        deadline = time.monotonic() + harness.options.timeout
        while not re.search(pattern, self.bytes[start:]):
            assert time.monotonic() < deadline and self.read(1.0), f"no {pattern!r}\n{self.shown}"

    def finish(self):
        deadline = time.monotonic() + harness.options.timeout
        while self.read(1.0):
            assert time.monotonic() < deadline, f"no end\n{self.shown}"
        os.close(self.master)
        return self.popen.wait()

    def kill(self):
        """For tests that failed."""
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
            os.close(self.master)

    def screen(self):
        screen = Screen(*self.size)
        screen.feed(self.shown)
        return screen

    @property
    def shown(self):
        return self.bytes.decode("utf-8", "replace")


class LiveView(harness.TestCase):
    def start(self, args, rows=24, cols=80, **terminal):
        t = Terminal((*args, "--stats", "live"), rows, cols, **terminal)
        self.addCleanup(t.kill)
        return t

    def start_slow(self, rows=24, cols=80, **terminal):
        """200 tokens at some four a second, two of which are made."""
        t = self.start(streaming(*SLOW), rows, cols, **terminal)
        t.read_until(rb"token [2-9]\d* of 200")
        return t

    def finish(self, terminal, code=0):
        """Waits for the end; the screen, which must be clean."""
        self.assertEqual(terminal.finish(), code, terminal.shown)
        return self.clean_screen(terminal)

    def clean_screen(self, terminal):
        self.assertNotRegex(terminal.shown, r"Sanitizer|runtime error:")
        screen = terminal.screen()
        self.assertEqual((screen.top, screen.bottom), (0, screen.rows - 1), "the scroll region is left behind")
        self.assertTrue(screen.visible, "the cursor is left hidden")
        self.assertEqual(screen.colour, "0", "a colour is left behind")
        self.assertNotRegex(str(screen), r"penstock: (prompt|token) \d+ of|% avg|seldom to often")
        return screen

    def interrupt(self, terminal, number=signal.SIGINT):
        terminal.popen.send_signal(number)
        self.assertEqual(terminal.finish(), 130, terminal.shown)

    def test_text_in_a_file_is_what_it_is_without(self):
        plain = self.ok(*SHORT).stdout
        with open(self.path("text"), "wb") as file:
            screen = self.finish(self.start(SHORT, stdout=file))
        self.assertEqual(harness.read_bytes(self.path("text")), plain)
        self.assertRegex(str(screen), "generated 24")

    def test_text_on_the_same_terminal_stands_above_the_panel(self):
        plain = self.ok(*SHORT).text.split()
        for rows, cols in ((24, 80), (12, 44), (50, 132), (5, 60), (24, 20), (3, 30)):
            with self.subTest(rows=rows, cols=cols):
                t = self.start(SHORT, rows, cols)
                screen = self.finish(t)
                self.assertTrue(screen.regions, "there was no panel")
                # Without escape sequences and the panel's lines, the text is whole and in order.
                text = re.sub(r"\033\[\?25l.*?\033\[\?25h", "", t.shown, flags=re.S)
                text = re.sub(r"\033(\[[?0-9;]*[A-Za-z]|[78D])", "", text)
                self.assertIn(" ".join(plain), " ".join(text.split()))
                self.assertIn("peakmemory", re.sub(r"\s", "", str(screen)))

    def test_panel_shows_every_figure_and_the_map(self):
        for env in ({}, COLOURS, {**COLOURS, "NO_COLOR": "1"}, {"LANG": "en_US.utf8"}):
            with self.subTest(env=env):
                t = self.start_slow(30, 100, env=env)
                t.read_until(rb"of 200(?s:.*)\033\[\?25h", start=t.bytes.rfind(b"of 200"))
                screen = t.screen()
                panel = screen.text()[screen.bottom + 1 :]
                for figure in FIGURES:
                    self.assertIn(figure, "\n".join(panel))
                self.assertIn("of 200", panel[0])
                self.assertIn("in memory", panel[-1])
                self.assertEqual("▀" in t.shown, env == COLOURS)
                self.assertEqual(t.shown.isascii(), not env)
                self.interrupt(t)

    def test_bench_decode_has_one_too(self):
        t = self.start(("bench", "decode", "-m", BUNDLED_MODEL, "-n", 16))
        self.assertRegex(str(self.finish(t)), "generated 16")
        self.assertRegex(t.shown, r"token \d+ of 16")

    def test_long_prompt_shows_its_progress(self):
        args = ("run", "-m", BUNDLED_MODEL, "--prompt-tokens", LONG_PROMPT, "-n", 2, "--chunk", 8, "--io-limit", "32M")
        t = self.start(streaming(*args))
        self.finish(t)
        seen = {int(n) for n in re.findall(r"prompt (\d+) of 64", t.shown)}
        self.assertGreater(len(seen), 3, seen)

    def test_figures_are_drawn_a_few_times_a_second(self):
        started = time.monotonic()
        t = self.start(streaming("run", "-m", BUNDLED_MODEL, *PROMPT, "-n", 300))
        self.finish(t)
        seconds = time.monotonic() - started
        self.assertLess(t.shown.count("\033[?25l"), 8 * seconds + 2)

    def test_interrupt_leaves_the_terminal_clean(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            t = self.start_slow()
            self.interrupt(t, number)
            last = [line for line in self.clean_screen(t).text() if line][-1]
            self.assertRegex(last, "^penstock: ")

    def test_second_interrupt_kills_and_leaves_it_clean(self):
        # Reads of this prompt take long, but the first interrupt may be obeyed before the second one comes.
        args = ("run", "-m", BUNDLED_MODEL, "--prompt-tokens", LONG_PROMPT, "-n", 1, "--io-limit", "256K")
        t = self.start(args)
        t.read_until(rb"prompt \d+ of 64(?s:.*)\033\[\?25h")
        t.popen.send_signal(signal.SIGINT)
        time.sleep(0.02)
        t.popen.send_signal(signal.SIGINT)
        self.assertIn(t.finish(), (-signal.SIGINT, 130))
        self.clean_screen(t)

    def test_stop_takes_the_panel_away_and_it_comes_back(self):
        t = self.start_slow()
        t.popen.send_signal(signal.SIGTSTP)
        os.waitid(os.P_PID, t.popen.pid, os.WSTOPPED)
        while select.select([t.master], [], [], 0.2)[0]:
            t.read(0)
        self.clean_screen(t)
        before = len(t.bytes)
        t.popen.send_signal(signal.SIGCONT)
        t.read_until(rb"\033\[1;\d+r(?s:.*)of 200", start=before)
        self.interrupt(t)

    def test_panel_follows_the_window(self):
        t = self.start_slow()
        sizes = ((40, 100, rb"\033\[1;\d+r"), (8, 60, rb"\033\[1;7r"), (2, 60, rb"\033\[r"), (24, 80, rb"\033\[1;1\dr"))
        for rows, cols, region in sizes:
            before = len(t.bytes)
            t.resize(rows, cols)
            t.read_until(region, start=before)
        self.interrupt(t)
        self.assertRegex(t.shown.rpartition("\033[J\033[r")[2], r"\A\0338\033\[\?25h[^\033]*\Z")

    def test_failure_leaves_the_terminal_clean(self):
        path = harness.copy(BUNDLED_MODEL, self.path("model.gguf"))
        t = self.start(streaming("run", "-m", path, *SLOW[3:]))
        t.read_until(rb"token [2-9]\d* of 200")
        os.truncate(path, 1000)
        self.assertRegex("".join(self.finish(t, code=1).text()), "penstock: .*model.gguf")

    def test_terminal_that_cannot_place_a_panel_gets_its_last_state_as_plain_text(self):
        t = self.start(SHORT, env={"TERM": "dumb", "LANG": "C.UTF-8"})
        self.assertEqual(t.finish(), 0, t.shown)
        self.assertNotIn("\033", t.shown.replace("\r\033[K", ""))  # but for the progress of loading
        for figure in FIGURES:
            self.assertIn(figure, t.shown)

    def test_without_a_terminal_it_is_refused(self):
        for command in (SHORT, ("bench", "decode", "-m", BUNDLED_MODEL)):
            self.assertIn("--stats FILE", self.fails(*command, "--stats", "live", code=2))

    def test_memory_stays_within_the_budget(self):
        if harness.is_slow():
            self.skipTest("sanitizers and emulators take memory of their own")
        args = ("run", "-m", BUNDLED_MODEL, *PROMPT, "-n", 60)
        budget = harness.smallest_budget(*args)
        with open(self.path("text"), "wb") as file:
            t = self.start((*args, "--ram", budget), 60, 200, env=COLOURS, stdout=file)
            self.finish(t)
        peak = re.search(r"peak memory ([\d.]+) MiB", t.shown)
        self.assertLessEqual(float(peak[1]) * (1 << 20), budget * 1.005)  # printed with three digits


if __name__ == "__main__":
    harness.main()
