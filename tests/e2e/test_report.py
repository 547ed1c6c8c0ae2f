"""bench report and scripts/plot: plots and a page from a folder of records, which are made up here so that what they must say is
known."""

import html.parser
import json
import os
import random
import re
import shutil
import struct
import subprocess
import unittest
import xml.dom.minidom

import harness

GIB = 1 << 30
BUDGETS = {3 * GIB: 0.9, 6 * GIB: 3.0, 12 * GIB: 7.2}  # bytes: token cycles
MISSED = {3 * GIB: 1.2e9, 6 * GIB: 0.6e9, 12 * GIB: 0.3e9}  # bytes read per token
LIMITS = {int(0.6e9): 0.6e9, int(1.2e9): 1.2e9, 0: 2.4e9}  # what is asked for, 0: nothing; what the drive then gives
COMPUTE_S, BOOKKEEPING_S = 0.18, 0.02
PARTS = {"trunk": 0.05, "experts": 0.09, "attention": 0.02, "router": 0.01, "norms": 0.005, "sync": 0.005, "other": 0.02}
MACHINE = {"cpu": "Example CPU <9>", "cores": 4, "memory": 16 * GIB, "drive": "nvme0n1 'Fast & Co'", "kernel": "Linux 6.1"}
NOISE = (1.0, 0.97, 1.02)  # of repeats: their median is as without
DIRECTORY = {"decode-1-drive", "decode-1-cache", "decode-1-parts", "prefill-1-chunk", "prefill-1-parts", "io-1-reads", "io-2-reads"}


def rate(ram, limit):
    """Reading and computing one after the other."""
    return 1.0 / (COMPUTE_S + BOOKKEEPING_S + MISSED[ram] / LIMITS[limit])


def model_record(kind, ram, limit, repeat, tokens_per_s, **more):
    step = 1.0 / tokens_per_s
    bound = min(1.0 / (COMPUTE_S + BOOKKEEPING_S), LIMITS[limit] / MISSED[ram])
    return {
        "kind": kind, "model": "shape's `model`", "arch": "qwen3moe", "file_bytes": 17200000000, "ram": ram, "io_limit": limit,
        "prefetch": "auto", "queue_depth": 32, "threads": 2, "chunk": 1, "policy": "decay", "repeat": repeat, "replay": None,
        "tokens": 64, "tokens_per_s": tokens_per_s, "first_token_s": 1.0, "compute_s": 64 * COMPUTE_S,
        "stall_s": 64 * (step - COMPUTE_S - BOOKKEEPING_S), "bookkeeping_s": 64 * BOOKKEEPING_S,
        "parts_s": {name: 64 * seconds for name, seconds in PARTS.items()}, "hit_rate": 1.0 - MISSED[ram] / 1.4e9,
        "bytes_per_token": MISSED[ram], "bytes_read": int(64 * MISSED[ram]), "drive_bytes_per_s": MISSED[ram] * tokens_per_s,
        "drive_limit_bytes_per_s": LIMITS[limit], "drive_utilisation": 0.5, "bound_tokens_per_s": bound,
        "of_bound": tokens_per_s / bound, "cycles": BUDGETS[ram], "peak_rss": ram, "machine": MACHINE, "time": 1700000000 + repeat,
        **more,
    }  # fmt: skip


def decode_records():
    return [
        model_record("decode", ram, limit, repeat, rate(ram, limit) * noise)
        for repeat, noise in enumerate(NOISE, 1)
        for ram in BUDGETS
        for limit in LIMITS
    ]


def prefill_records():
    return [
        model_record("prefill", ram, 0, repeat, 60.0 * (1 - 2 ** (-chunk / 256)) * noise, chunk=chunk, tokens=2048)
        for repeat, noise in enumerate(NOISE, 1)
        for ram in (3 * GIB, 12 * GIB)
        for chunk in (64, 128, 256, 512, 1024)
    ]


def drive_rate(block, depth):
    return 2.4e9 * (1 - 2 ** (-block * depth / 2**20))


def io_records():
    """As bench io --json prints them: repeats within a record, and what it concludes in a last one."""
    common = {"kind": "io", "place": "a file", "backend": "uring", "direct": True, "extent_bytes": 4194304, "shards": False, "time": 1700000000}
    records = [
        {
            **common, "pattern": pattern, "block_bytes": block, "queue_depth": depth, "bytes_per_s": drive_rate(block, depth),
            "repeats": [drive_rate(block, depth) * noise for noise in NOISE], "iops": 1000, "p50_us": 100, "p99_us": 300,
        }
        for pattern in ("random", "sequential")
        for depth in (1, 4, 16, 64)
        for block in (4096, 16384, 65536, 262144, 1048576, 4194304)
    ]  # fmt: skip
    return records + [{**records[0], "kind": "io_saturation"}]


class Page(html.parser.HTMLParser):
    """A page whose elements must be closed in order; collects its cells, notes, ids and references."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.notes, self.machines, self.ids, self.references, self.used = [], [], [], [], [], [], set()
        self.captions = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "p":
            self.notes.append("")
        elif tag == "figcaption":
            self.captions.append("")
        elif tag == "li":
            self.machines.append("")

    def handle_startendtag(self, tag, attributes):
        self.used.add(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name.split(":")[-1] in ("href", "src", "srcset", "action", "data"):
                self.references.append(value)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        elif self.open and self.open[-1] == "p":
            self.notes[-1] += data
        elif "figcaption" in self.open:
            self.captions[-1] += data
        elif self.open and self.open[-1] == "li":
            self.machines[-1] += data


class Case(harness.TestCase):
    def folder(self, records, junk=()):
        """records in a shuffled order, as an interleaved sweep has them; then lines as they are."""
        os.mkdir(self.path("results"))
        records = list(records)
        random.Random(1).shuffle(records)
        with open(self.path("results/records.jsonl"), "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.writelines(junk)
        return self.path("results")

    def page(self, folder):
        return Page(harness.read_bytes(os.path.join(folder, "report.html")).decode("utf-8"))

    def images(self, folder):
        return {os.path.splitext(name)[0] for name in os.listdir(os.path.join(folder, "plots")) if name.endswith(".svg")}


@unittest.skipUnless(shutil.which("gnuplot"), "gnuplot is not installed")
class Report(Case):
    def test_all_plots_are_drawn(self):
        folder = self.folder(decode_records() + prefill_records() + io_records())
        result = self.ok("bench", "report", folder)
        self.assertEqual(result.message, "")
        self.assertEqual(self.images(folder), DIRECTORY)
        for name in DIRECTORY:
            stem = os.path.join(folder, "plots", name)
            svg = xml.dom.minidom.parse(stem + ".svg")
            self.assertEqual(svg.documentElement.tagName, "svg")
            png = harness.read_bytes(stem + ".png")
            self.assertEqual(png[:8], b"\x89PNG\r\n\x1a\n")
            self.assertEqual(struct.unpack(">II", png[16:24]), (1920, 1120))

    def data(self, folder, name, block):
        """Rows of a data block of a plot's script."""
        with open(os.path.join(folder, "plots", name + ".gp"), encoding="utf-8") as file:
            found = re.search(rf"^\${block} << EOD\n(.*?)^EOD$", file.read(), re.DOTALL | re.MULTILINE)
        return [[float(word) for word in line.split()] for line in found[1].splitlines()]

    def assert_rows(self, rows, expected):
        self.assertEqual(len(rows), len(expected), rows)
        for row, wanted in zip(rows, expected):
            for value, of in zip(row, wanted, strict=True):
                self.assertAlmostEqual(value, of, delta=1e-6 * of)

    def test_points_are_medians_with_least_and_most(self):
        folder = self.folder(decode_records() + prefill_records() + io_records())
        self.ok("bench", "report", folder)
        speeds = [(LIMITS[limit] / 1e9, rate(6 * GIB, limit)) for limit in sorted(LIMITS, key=LIMITS.get)]
        expected = [(drive, speed, speed * 0.97, speed * 1.02) for drive, speed in speeds]
        self.assert_rows(self.data(folder, "decode-1-drive", "speed1"), expected)
        speeds = [(BUDGETS[ram], rate(ram, 0)) for ram in BUDGETS]
        expected = [(cycles, speed, speed * 0.97, speed * 1.02) for cycles, speed in speeds]
        self.assert_rows(self.data(folder, "decode-1-cache", "speed2"), expected)
        blocks = [(4096 * 4**i, drive_rate(4096 * 4**i, 16) / 1e9) for i in range(6)]
        expected = [(block, speed, speed * 0.97, speed * 1.02) for block, speed in blocks]
        self.assert_rows(self.data(folder, "io-1-reads", "reads2"), expected)

    def test_knee_is_farthest_above_the_straight_line(self):
        folder = self.folder(decode_records())
        self.ok("bench", "report", folder)
        knees = self.data(folder, "decode-1-cache", "knees")[1:]
        self.assert_rows(knees, [(3.0, rate(6 * GIB, limit)) for limit in sorted(LIMITS, key=LIMITS.get)])
        text = harness.read_bytes(os.path.join(folder, "report.html")).decode("utf-8")
        self.assertIn("Knee of tokens/s (no limit: 2.4 GB/s): 3 cycles, RAM 6 GiB.", text)

    def test_bounds_are_drawn(self):
        folder = self.folder(decode_records())
        self.ok("bench", "report", folder)
        script = harness.read_bytes(os.path.join(folder, "plots", "decode-1-drive.gp")).decode("utf-8")
        slopes = [float(slope) for slope in re.findall(r"([0-9.]+)\*x with lines", script)]
        self.assert_rows([slopes], [[1e9 / missed for missed in MISSED.values()] * 2])  # for SVG and PNG
        computing = float(re.search(r"([0-9.]+) with lines dt 4 .* title 'computing alone'", script)[1])
        fastest = 1.02 / (COMPUTE_S + BOOKKEEPING_S)  # noise changes the time of all parts alike
        self.assertTrue(0.999 / (COMPUTE_S + BOOKKEEPING_S) <= computing <= fastest, computing)

    def test_page_is_whole_and_needs_nothing_else(self):
        folder = self.folder(decode_records() + prefill_records() + io_records())
        self.ok("bench", "report", folder)
        page = self.page(folder)
        self.assertEqual([ref for ref in page.references if not ref.startswith("#")], [])
        self.assertEqual([ref for ref in page.references if ref[1:] not in page.ids], [])
        self.assertEqual(len(page.ids), len(set(page.ids)))
        self.assertFalse(page.used & {"script", "link", "img", "iframe", "object"})
        text = harness.read_bytes(os.path.join(folder, "report.html")).decode("utf-8")
        self.assertNotRegex(text, r"@import|url\((?!#)")
        self.assertEqual(text.count("<svg"), len(DIRECTORY))
        self.assertEqual(page.machines, ["Example CPU <9>, 4 cores, 16.0 GiB; drive: nvme0n1 'Fast & Co'; Linux 6.1"])

    def test_table_says_what_twice_would_bring(self):
        folder = self.folder(decode_records())
        self.ok("bench", "report", folder)
        rows = self.page(folder).rows[1:]
        cells = [(ram, limit) for ram in BUDGETS for limit in sorted(LIMITS, key=LIMITS.get)]
        self.assertEqual(len(rows), len(cells))
        for row, (ram, limit) in zip(rows, cells):
            with self.subTest(ram=ram, limit=limit):
                self.assertEqual(row[0], f"{ram / GIB:#.3g} GiB")
                self.assertAlmostEqual(float(row[3]), rate(ram, limit), delta=0.006 * rate(ram, limit))
                self.check_gain(row[-2], ram, limit, lambda r, l: (r, {600000000: 1200000000, 1200000000: 0}.get(l)))
                self.check_gain(row[-1], ram, limit, lambda r, l: (2 * r, l))

    def check_gain(self, text, ram, limit, twice):
        known = rate(ram, limit)
        to_ram, to_limit = twice(ram, limit)
        if to_ram in BUDGETS and to_limit in LIMITS:
            self.assertEqual(text, f"\u00d7{rate(to_ram, to_limit) / known:.2f}")
            return
        work = COMPUTE_S + BOOKKEEPING_S
        reading = MISSED[ram] / (2 * LIMITS[limit]) if to_limit is None else 0.0
        at_most = float(re.fullmatch(r"not measured \(at most \u00d7([0-9.]+)\)", text)[1])
        self.assertAlmostEqual(at_most, 1 / max(work, reading) / known, delta=0.006)

    def test_between_two_measurements_the_gain_is_interpolated(self):
        records = [model_record("decode", ram, 0, 1, rate(ram, 0)) for ram in (3 * GIB, 12 * GIB)]
        folder = self.folder(records)
        self.ok("bench", "report", folder)
        rows = self.page(folder).rows[1:]
        between = (2 * rate(3 * GIB, 0) + rate(12 * GIB, 0)) / 3  # at 6 GiB
        self.assertEqual(rows[0][-1], f"\u00d7{between / rate(3 * GIB, 0):.2f}")
        self.assertTrue(rows[0][-2].startswith("not measured"), rows[0])

    def test_the_drive_is_the_same_for_all_budgets(self):
        """One bad probe of nine does not move a point along the axis."""
        records = decode_records()
        records[0]["drive_limit_bytes_per_s"] *= 0.1
        folder = self.folder(records)
        self.ok("bench", "report", folder)
        drives = {row[2] for row in self.page(folder).rows[1:]}
        self.assertEqual(drives, {"600 MB/s", "1.2 GB/s", "2.4 GB/s"})

    def test_different_settings_are_not_mixed(self):
        records = decode_records() + [{**record, "threads": 1} for record in decode_records()]
        folder = self.folder(records)
        self.ok("bench", "report", folder)
        self.assertEqual(self.images(folder), {f"decode-{i}-{name}" for i in (1, 2) for name in ("drive", "cache", "parts")})
        self.assertEqual(len([row for row in self.page(folder).rows if "GiB" in row[0]]), 18)

    def test_what_was_asked_for_tells_cells_apart_and_what_was_in_effect_is_said(self):
        records = [
            {**record, "prefetch": asked, "prefetch_used": "off", "flags": flags}
            for record in decode_records()
            for asked, flags in (("off", "--tokens random:1"), ("auto", "--tokens random:1"), ("off", "--tokens greedy"))
        ]
        folder = self.folder(records)
        self.ok("bench", "report", folder)
        page = self.page(folder)
        self.assertEqual(len([row for row in page.rows if "GiB" in row[0]]), 27)
        sections = sorted(note for note in page.notes if "64 tokens" in note)
        for section, (asked, flags, off) in zip(
            sections, (("auto", "random:1", True), ("off", "greedy", False), ("off", "random:1", False)), strict=True
        ):
            self.assertIn(f"prefetch {asked}, ", section)
            self.assertIn(f"; --tokens {flags}", section)
            self.assertIn("3 repeats", section)
            self.assertEqual("prefetch was off in 9 of 9 cells" in section, off)

    def test_reads_under_different_limits_are_not_mixed(self):
        folder = self.folder([{**record, "io_limit": limit} for limit in (1 << 29, 1 << 30) for record in io_records()])
        self.ok("bench", "report", folder)
        sections = [note for note in self.page(folder).notes if "extents of" in note]
        self.assertEqual(len(sections), 4)
        for limit in ("512 MiB", "1.00 GiB"):
            self.assertEqual(len([note for note in sections if f"limit per second {limit}" in note]), 2, sections)

    def test_reads_into_other_memory_are_not_mixed(self):
        folder = self.folder([{**record, "memory_bytes": size} for size in (1 << 20, 1 << 26) for record in io_records()])
        self.ok("bench", "report", folder)
        sections = [note for note in self.page(folder).notes if "extents of" in note]
        self.assertEqual(len(sections), 4)
        self.assertEqual(len([note for note in sections if "into memory of 64.0 MiB" in note]), 2)

    def test_rates_below_a_gigabyte_are_told_in_megabytes(self):
        slow = [{**r, "io_limit": r["io_limit"] // 10, "drive_limit_bytes_per_s": r["drive_limit_bytes_per_s"] / 10} for r in decode_records()]
        folder = self.folder(slow)
        self.ok("bench", "report", folder)
        self.assertEqual({row[2] for row in self.page(folder).rows[1:]}, {"60 MB/s", "120 MB/s", "240 MB/s"})
        script = harness.read_bytes(os.path.join(folder, "plots", "decode-1-drive.gp")).decode("utf-8")
        self.assertIn("'SSD throughput, MB/s'", script)
        cache = harness.read_bytes(os.path.join(folder, "plots", "decode-1-cache.gp")).decode("utf-8")
        self.assertEqual(re.findall(r"title '([^']+/s)'", cache.split("set terminal png")[0]), ["SSD 60 MB/s", "SSD 120 MB/s", "no limit: 240 MB/s"])
        self.assertEqual([row[0] for row in self.data(folder, "decode-1-drive", "speed0")], [60, 120, 240])

    def test_a_long_subtitle_takes_two_lines(self):
        folder = self.folder([{**record, "flags": "--tokens random:1 " + "--word " * 40} for record in decode_records()])
        self.ok("bench", "report", folder)
        with open(os.path.join(folder, "plots", "decode-1-drive.gp"), encoding="utf-8") as file:
            lines = re.findall(r"^set label [23] '(.*)' at screen", file.read().split("set terminal png")[0], re.MULTILINE)
        self.assertEqual(len(lines), 2)
        self.assertIn("64 tokens, prefetch auto", lines[0])
        self.assertIn("--word", lines[1])
        for line in lines:
            self.assertTrue(90 < len(line) <= 113, line)  # a quote is written twice
            self.assertFalse(line.startswith(" "), line)

    def test_an_image_that_was_not_written_whole_is_an_error(self):
        """As on a full drive, of which gnuplot says nothing."""
        os.mkdir(self.path("bin"))
        program = self.path("bin/gnuplot")
        harness.write_bytes(program, f"#!/bin/sh\nPATH={os.environ['PATH']}\ngnuplot \"$@\" || exit\n"
                            "for i in *.png; do [ ! -f $i ] || : >$i; done\n".encode())  # fmt: skip
        os.chmod(program, 0o755)
        folder = self.folder(decode_records())
        result = harness.run("bench", "report", folder, env={"PATH": self.path("bin") + ":" + os.environ["PATH"]})
        self.assertIn("decode-1-drive.png: gnuplot did not write it whole", self.assert_one_error(result, 1))
        self.assertFalse(os.path.exists(os.path.join(folder, "report.html")))

    def test_a_large_grid_is_thinned_and_what_is_drawn_is_said(self):
        records = [
            {**model_record("decode", 3 * GIB, 0, 1, 0.1 * (i + j)), "ram": (2 + i) * GIB, "cycles": 2 + i, "io_limit": j * 10**8,
             "drive_limit_bytes_per_s": j * 1e8}
            for i in range(1, 21)
            for j in range(1, 10)
        ]  # fmt: skip
        folder = self.folder(records)
        self.assertEqual(self.ok("bench", "report", folder).message, "")
        page = self.page(folder)
        self.assertEqual(len([row for row in page.rows if "GiB" in row[0]]), 180)  # the table has all
        captions = "".join(page.captions)
        for said in ("8 of 20 budgets.", "8 of 9 limits.", "7 of 20 budgets, 6 of 9 limits."):
            self.assertIn("Drawn, for lack of room: " + said, captions)
        scripts = {}
        for name in ("drive", "cache", "parts"):
            with open(os.path.join(folder, "plots", f"decode-1-{name}.gp"), encoding="utf-8") as file:
                scripts[name] = file.read().split("set terminal png")[0]
        drawn = re.findall(r"title 'RAM (\S+) GiB'", scripts["drive"])
        self.assertEqual((len(drawn), drawn[0], drawn[-1]), (8, "3", "22"))  # the least and the most are
        for name, curves in (("drive", 8), ("cache", 16)):
            styles = re.findall(r"with yerrorlines lw 2 lc rgb '(\S+)' pt (\d+)", scripts[name])
            self.assertEqual((len(styles), len(set(styles))), (curves, 8))  # no two of a panel look alike
        self.assertEqual(len(self.data(folder, "decode-1-cache", "speed0")), 20)  # points of a curve all stay
        blocks = re.findall(r"^\$bars\d+ << EOD\n(.*?)^EOD$", scripts["parts"], re.DOTALL | re.MULTILINE)
        self.assertEqual([len(block.splitlines()) for block in blocks], [6] * 7)

    def test_a_small_grid_is_drawn_whole(self):
        folder = self.folder(decode_records() + prefill_records() + io_records())
        self.ok("bench", "report", folder)
        captions = self.page(folder).captions
        self.assertEqual(len(captions), len(DIRECTORY))
        self.assertEqual([caption for caption in captions if "Drawn" in caption], [])

    def test_records_of_reads_say_their_machine(self):
        other = {**MACHINE, "drive": "sda Slow"}
        folder = self.folder([{**record, "machine": machine} for machine in (MACHINE, other) for record in io_records()])
        self.ok("bench", "report", folder)
        page = self.page(folder)
        text = "Example CPU <9>, 4 cores, 16.0 GiB; drive: {}; Linux 6.1"
        self.assertEqual(page.machines, [text.format(machine["drive"]) for machine in (MACHINE, other)])
        sections = [note for note in page.notes if "extents of" in note]
        self.assertEqual(len(sections), 4, page.notes)  # of two patterns
        self.assertEqual(len([note for note in sections if "sda Slow" in note]), 2)
        scripts = [harness.read_bytes(os.path.join(folder, "plots", f"io-{i}-reads.gp")).decode("utf-8") for i in range(1, 5)]
        self.assertEqual(len([script for script in scripts if "Example CPU <9>, 4 cores" in script]), 4)

    def test_replayed_records_have_their_own_section(self):
        folder = self.folder(decode_records() + [{**record, "replay": "a.trace"} for record in decode_records()])
        self.ok("bench", "report", folder)
        self.assertEqual(self.images(folder), {f"decode-{i}-{name}" for i in (1, 2) for name in ("drive", "cache", "parts")})
        page = self.page(folder)
        self.assertEqual(len([row for row in page.rows if "GiB" in row[0]]), 18)
        replayed = ["routing replayed from a.trace" in note for note in page.notes if "64 tokens" in note]
        self.assertEqual(sorted(replayed), [False, True])
        # What matters most is not what a long title is cut off at.
        for i, said in enumerate(replayed, 1):
            with open(os.path.join(folder, "plots", f"decode-{i}-drive.gp"), encoding="utf-8") as file:
                self.assertEqual("routing replayed from a.trace" in file.read(), said)

    def test_what_was_not_measured_is_left_out_with_a_note(self):
        record = model_record("decode", 3 * GIB, 0, 1, rate(3 * GIB, 0), drive_limit_bytes_per_s=None, parts_s=None, compute_s=None)
        folder = self.folder([record])
        result = self.ok("bench", "report", folder)
        self.assertEqual(self.images(folder), set())
        for name in ("drive", "cache", "parts"):
            self.assertIn(f"decode-1-{name} left out: ", result.message)
        page = self.page(folder)
        notes = [note for note in page.notes if "no plot" in note or "Not measured" in note]
        self.assertEqual(len(notes), 5, page.notes)
        self.assertEqual([row[-2:] for row in page.rows[1:]], [["not measured", "not measured"]])

    def test_names_and_figures_out_of_place_do_no_harm(self):
        names = {"model": "a'\"\\`@x\n$(ls) <b>&" + "\u00e9" * 200, "policy": "${x}\t'", "replay": "--><script>"}
        records = [{**record, **names} for record in decode_records()]
        for field in ("cycles", "drive_limit_bytes_per_s", "bytes_per_token", "hit_rate", "stall_s", "of_bound", "time"):
            for value in (1e300, 1e-300, -5, 0, "x", [1], None):
                records.append({**records[0], field: value})
        folder = self.folder(records)
        result = self.ok("bench", "report", folder)
        self.assertEqual(result.message, "")
        self.assertEqual(self.images(folder), {"decode-1-drive", "decode-1-cache", "decode-1-parts"})
        for name in self.images(folder):
            xml.dom.minidom.parse(os.path.join(folder, "plots", name + ".svg"))
        self.assertNotIn("script", self.page(folder).used)

    def test_bad_lines_are_named_and_skipped(self):
        good = decode_records()
        bad = ["{\n", "[1]\n", '{"kind": "other"}\n', "\n", json.dumps({**good[0], "tokens_per_s": "fast"}) + "\n", '{"kind": "decode", "ram"']
        folder = self.folder(good, bad)
        result = self.ok("bench", "report", folder)
        skipped = [int(n) for n in re.findall(r"records\.jsonl: line (\d+) skipped: ", result.message)]
        self.assertEqual(skipped, [len(good) + i for i in (1, 2, 3, 5, 6)])
        self.assertEqual(len(result.message.splitlines()), 5)
        self.assertEqual(len(self.page(folder).rows), 10)

    def test_script_draws_the_plots_alone(self):
        folder = self.folder(decode_records())
        script = os.path.join(harness.ROOT, "scripts", "plot")
        if harness.options.emulator:
            self.skipTest("the script runs the program itself")
        environment = {**os.environ, "PENSTOCK": harness.options.penstock}
        done = subprocess.run([script, folder], env=environment, capture_output=True, timeout=120, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.images(folder), {"decode-1-drive", "decode-1-cache", "decode-1-parts"})
        self.assertFalse(os.path.exists(os.path.join(folder, "report.html")))


class Refusal(Case):
    def test_folder_without_records(self):
        os.mkdir(self.path("empty"))
        self.assertIn("records.jsonl: No such file", self.fails("bench", "report", self.path("empty")))
        self.assertIn("no record in it", self.fails("bench", "report", self.folder([])))

    def test_without_gnuplot(self):
        folder = self.folder(decode_records())
        line = self.fails("bench", "report", folder, env={"PATH": self.path("nowhere")})
        self.assertIn("gnuplot: not found: install it", line)
        self.assertEqual(os.listdir(folder), ["records.jsonl"])


if __name__ == "__main__":
    harness.main()
