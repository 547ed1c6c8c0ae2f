"""`pack` and `unpack`: a model comes back to the byte however it was packed; a pack that was killed goes on and ends with the same
bytes; one that fails leaves nothing; damage is found.

PENSTOCK_PACK_KILLS=50 kills that many packs at random moments instead of a few.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import gguf_tool
import harness
from container import ALIGN, Container
from harness import BUNDLED_MODEL

MODES = {
    "off": ("--zstd", "off"),
    "level": ("--zstd", 1),
    "auto on a slow drive": ("--zstd", "auto", "--io-limit", "10M"),
}


def tree(directory):
    """{relative path: contents} of all files below a directory."""
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, directory)] = harness.read_bytes(path)
    return found


class Case(harness.TestCase):
    def directory(self, *names):
        path = self.path(os.path.join(*names))
        os.makedirs(path, exist_ok=True)
        return path

    def synth(self, name, *flags):
        """A model whose experts are small, of any type."""
        shape = ("--layers", 2, "--embd", 256, "--heads", 4, "--kv-heads", 2, "--head-dim", 64, "--vocab", 64)
        path = self.path(name)
        self.ok("synth", "-o", path, "--like", "qwen3-30b-a3b", *shape, "--top-k", 2, *flags)
        return path

    def bf16_model(self, experts=16):
        return self.synth("bf16.gguf", "--type", "bf16", "--experts", experts, "--expert-ff", 512)

    def flip(self, path, offset, bit):
        with open(path, "r+b") as file:
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 1 << bit]))


class RoundTrip(Case):
    def assert_same_tensors(self, ours, theirs, name=""):
        a, b = gguf_tool.read(ours), gguf_tool.read(theirs)
        self.assertEqual(a.metadata, b.metadata, name)
        self.assertEqual([(t.name, t.shape, t.type_id) for t in a.tensors], [(t.name, t.shape, t.type_id) for t in b.tensors], name)
        for x, y in zip(a.tensors, b.tensors):
            # The last one's padding may be absent in the original.
            n = min(len(x.data), len(y.data))
            self.assertTrue(x.data[:n] == y.data[:n] and not any(x.data[n:]), f"{name}: {x.name} differs")

    def there_and_back(self, model, *flags):
        """Packs and unpacks; returns the container and the GGUF that came back."""
        packed, back = self.path("round.pack"), self.path("round.gguf")
        self.ok("pack", model, packed, "--force", *flags)
        self.ok("unpack", packed, back, "--force")
        self.assertFalse([name for name in os.listdir(os.path.dirname(packed)) if "partial" in name])
        return Container(packed), back

    def stripes(self):
        return ("--stripe", ",".join(self.directory(name) for name in ("drive 1", "drive2", "drive3")))

    def test_bundled_model_comes_back_to_the_byte(self):
        for name, flags in MODES.items():
            for stripes in ((), self.stripes()):
                with self.subTest(mode=name, stripes=bool(stripes)):
                    _, back = self.there_and_back(BUNDLED_MODEL, *flags, *stripes)
                    self.assertEqual(harness.read_bytes(back), harness.read_bytes(BUNDLED_MODEL))

    def test_every_type_comes_back(self):
        types = harness.choices("--type", "synth", "--like", "qwen3-30b-a3b", "-o", self.path("x"))
        for type_name in types[:: 4 if harness.is_slow() else 1]:
            model = self.synth("typed.gguf", "--type", type_name, "--experts", 3, "--expert-ff", 256, "--force")
            for name, flags in MODES.items():
                with self.subTest(type=type_name, mode=name):
                    _, back = self.there_and_back(model, *flags)
                    self.assertEqual(harness.read_bytes(back), harness.read_bytes(model))

    def test_floats_shrink_and_say_so(self):
        model = self.bf16_model()
        for name in ("level", "auto on a slow drive"):
            container, back = self.there_and_back(model, *MODES[name])
            self.assertTrue(container.is_compressed)
            self.assertLess(sum(size for _, _, size in container.extents), 0.85 * os.path.getsize(model))
            self.assertEqual(harness.read_bytes(back), harness.read_bytes(model))
            self.assertTrue(container.note["kinds"])
        container, _ = self.there_and_back(model, "--zstd", "off")
        self.assertFalse(container.is_compressed)
        self.assertFalse(container.note["kinds"])

    def test_auto_leaves_alone_what_a_fast_drive_brings_sooner(self):
        container, _ = self.there_and_back(self.bf16_model(4), "--zstd", "auto", "--io-limit", "1T")
        self.assertFalse(container.is_compressed)

    def test_same_bytes_for_any_number_of_threads(self):
        model = self.bf16_model(8)
        results = []
        for threads in (1, 2, 5):
            self.there_and_back(model, "--zstd", 1, "--threads", threads)
            results.append(harness.read_bytes(self.path("round.pack")))
        self.assertEqual(results[0], results[1])
        self.assertEqual(results[0], results[2])

    def test_stripes_share_each_layer_evenly(self):
        container, _ = self.there_and_back(BUNDLED_MODEL, "--zstd", "off", *self.stripes())
        self.assertEqual(len(container.files), 4)
        for layer in range(6):
            files = [file for file, _, _ in container.extents[layer * 32 : layer * 32 + 32]]
            counts = [files.count(number) for number in range(4)]
            self.assertEqual(counts[0], 0)
            self.assertLessEqual(max(counts[1:]) - min(counts[1:]), 1)

    def test_container_can_move_with_its_stripes(self):
        home = self.directory("home")
        drives = [self.directory("home", name) for name in ("a", "b")]
        self.ok("pack", BUNDLED_MODEL, os.path.join(home, "m.pack"), "--zstd", "off", "--stripe", ",".join(drives))
        os.rename(home, self.path("elsewhere"))
        self.ok("unpack", self.path("elsewhere/m.pack"), self.path("m.gguf"))
        self.assertEqual(harness.read_bytes(self.path("m.gguf")), harness.read_bytes(BUNDLED_MODEL))
        shutil.rmtree(self.path("elsewhere/b"))
        self.assertIn("m.pack.2", self.fails("unpack", self.path("elsewhere/m.pack"), self.path("m2.gguf")))

    def test_order_of_a_trace(self):
        trace = self.path("t.trace")
        self.ok("trace", "-m", BUNDLED_MODEL, "-p", "Once upon a time", "-n", 20, "-o", trace)
        uses = {}
        with open(trace, encoding="utf-8") as file:
            for line in file:
                words = line.split()
                if words[0] == "experts":
                    for word in words[2:]:
                        key = int(words[1]), int(word.split(":")[0])
                        uses[key] = uses.get(key, 0) + 1
        container, back = self.there_and_back(BUNDLED_MODEL, "--zstd", "off", "--order", trace)
        self.assertEqual(harness.read_bytes(back), harness.read_bytes(BUNDLED_MODEL))
        for layer in range(6):
            by_place = sorted(range(32), key=lambda e, layer=layer: container.extents[layer * 32 + e][1])
            self.assertEqual(by_place, sorted(range(32), key=lambda e, layer=layer: (-uses.get((layer, e), 0), e)))

    def test_trace_of_another_model_is_refused(self):
        model = self.bf16_model(4)
        trace = self.path("t.trace")
        self.ok("trace", "-m", model, "--prompt-tokens", "1,2", "-n", 2, "-o", trace)
        line = self.fails("pack", BUNDLED_MODEL, self.path("m.pack"), "--order", trace, code=2)
        self.assertIn("another model", line)
        self.assertEqual(sorted(os.listdir(self.path("."))), ["bf16.gguf", "t.trace"])

    def test_split_model_comes_back_as_one_file(self):
        original = gguf_tool.read(BUNDLED_MODEL)
        for first_empty in (False, True):
            prefix = self.path(f"set{first_empty:d}")
            parts = gguf_tool.split(original, prefix, 3, metadata_only_first=first_empty)
            for flags in MODES.values():
                _, back = self.there_and_back(parts[1], *flags)
                self.assert_same_tensors(back, BUNDLED_MODEL)

    def test_header_is_kept_to_the_byte(self):
        changed = gguf_tool.read(BUNDLED_MODEL)
        changed.metadata["general.alignment"] = (gguf_tool.U32, 256)
        changed.metadata["some.array"] = (gguf_tool.ARRAY, (gguf_tool.STRING, ["", "x" * 5000]))
        changed.tensors.reverse()
        model = gguf_tool.write(changed, self.path("changed.gguf"))
        _, back = self.there_and_back(model, "--zstd", 1)
        self.assertEqual(harness.read_bytes(back), harness.read_bytes(model))

    def test_dense_model(self):
        model = self.path("dense.gguf")
        shape = ("--layers", 1, "--embd", 64, "--heads", 1, "--kv-heads", 1, "--head-dim", 64, "--vocab", 32, "--ff", 64)
        self.ok("synth", "-o", model, "--arch", "llama", "--experts", 0, *shape)
        for flags in (*MODES.values(), self.stripes()):
            container, back = self.there_and_back(model, *flags)
            self.assertEqual(container.extents, [])
            self.assertEqual(harness.read_bytes(back), harness.read_bytes(model))

    @harness.needs_shared("golden", "manifest.json")
    def test_every_golden_model_comes_back(self):
        for model in harness.golden_manifest()["models"][:: 6 if harness.is_slow() else 1]:
            path = harness.shared("golden", model["file"])
            if not os.path.exists(path):
                continue
            with self.subTest(model=model["id"]):
                _, back = self.there_and_back(path, "--zstd", 1, *self.stripes())
                self.assert_same_tensors(back, path, model["id"])


class Logits(Case):
    """Where the bytes come from is nothing to the results."""

    def modes(self):
        drives = ",".join(self.directory(name) for name in ("drive1", "drive2"))
        return {**MODES, "striped": ("--zstd", 1, "--stripe", drives)}

    def check(self, model, tokens, modes):
        expected = self.logits(model, tokens)
        for number, name in enumerate(modes):
            with self.subTest(model=model, mode=name):
                packed = self.path(f"{os.path.basename(model)}.{number}.pack")
                self.ok("pack", model, packed, *self.modes()[name])
                self.assert_same_logits(self.logits(packed, tokens), expected)
                # A few pages more than the smallest: what the process takes differs that much from run to run.
                tight = ("--ram", harness.tight_budget(*harness.logits_command(packed, tokens)) + (128 << 10))
                self.assert_same_logits(self.logits(packed, tokens, *tight), expected)
        self.ok("unpack", packed, self.path("back.gguf"), "--force")
        self.assert_same_logits(self.logits(self.path("back.gguf"), tokens), expected)
        for name, _ in tree(self.path(".")).items():
            os.remove(self.path(name))

    def test_bundled_model(self):
        self.check(BUNDLED_MODEL, range(1, 30), self.modes())

    def test_floats(self):
        self.check(self.bf16_model(), range(1, 30), self.modes())

    @harness.needs_shared("golden", "manifest.json")
    def test_golden_models(self):
        for model in harness.golden_manifest()["models"][:: 8 if harness.is_slow() else 1]:
            path = harness.shared("golden", model["file"])
            if os.path.exists(path):
                self.check(path, harness.golden_tokens()[:24], ("off", "striped"))


class Killed(Case):
    def model(self):
        """One that takes a while to pack with --zstd 19."""
        return self.bf16_model(8)

    def command(self, model, home, *flags):
        stripes = [self.directory(home, name) for name in ("drive1", "drive2")]
        return ("pack", model, self.path(os.path.join(home, "m.pack")), *flags, "--stripe", ",".join(stripes))

    def is_done(self, home):
        """Also when it was killed between its last step and its exit."""
        names = list(tree(self.path(home)))
        return "m.pack" in names and not any(".partial" in name for name in names)

    def assert_leaves_the_same(self, home, whole):
        ours = tree(self.path(home))
        self.assertEqual(sorted(ours), sorted(whole))
        for name in whole:
            self.assertTrue(ours[name] == whole[name], f"{name} differs")

    def test_resumed_pack_equals_an_undisturbed_one(self):
        model = self.model()
        n = int(os.environ.get("PENSTOCK_PACK_KILLS", "3" if harness.is_slow() else "8"))
        moments = random.Random(n)
        flags_of = [("--zstd", "off", "--threads", 1), ("--zstd", 12, "--threads", 2)]
        for flags in flags_of:
            seconds = self.ok(*self.command(model, "whole", *flags)).seconds
            whole = tree(self.path("whole"))
            for number in range((n + 1) // len(flags_of)):
                home = f"killed{number}"
                for _ in range(moments.randint(1, 3)):
                    process = harness.Process(self.command(model, home, *flags))
                    time.sleep(moments.random() * seconds * 1.1)
                    process.popen.kill()
                    result = process.finish()
                    if result.code == 0:
                        break
                    self.assertFalse(os.path.exists(self.path(f"{home}/m.pack")) and "m.pack.partial" in os.listdir(self.path(home)))
                if not self.is_done(home):
                    self.ok(*self.command(model, home, *flags))
                self.assert_leaves_the_same(home, whole)
                shutil.rmtree(self.path(home))
            shutil.rmtree(self.path("whole"))

    def interrupt(self, command, home):
        """Stops a pack when some of its experts are on the drive."""
        process = harness.Process(command)
        journal = self.path(f"{home}/m.pack.partial-journal")
        deadline = time.monotonic() + 60
        sizes = set()
        while len(sizes) < 4 and time.monotonic() < deadline and process.popen.poll() is None:
            if os.path.exists(journal):
                sizes.add(os.path.getsize(journal))
            time.sleep(0.005)
        process.popen.send_signal(signal.SIGINT)
        result = process.finish()
        line = self.assert_one_error(result, 130)
        self.assertIn("the same command goes on", line)
        return result

    def test_interrupted_pack_goes_on_where_it_was(self):
        model = self.model()
        flags = ("--zstd", 19, "--threads", 1)
        self.ok(*self.command(model, "whole", *flags))
        whole = tree(self.path("whole"))
        self.interrupt(self.command(model, "stopped", *flags), "stopped")
        self.assertNotIn("m.pack", os.listdir(self.path("stopped")))
        before = os.path.getsize(self.path("stopped/drive1/m.pack.1.partial"))
        self.assertGreater(before, ALIGN)
        result = self.ok(*self.command(model, "stopped", *flags, "--json"))
        self.assertIn("going on", result.message)
        self.assertEqual(json.loads(result.text)["start"], "resumed")
        self.assert_leaves_the_same("stopped", whole)

    def test_killed_pack_keeps_what_was_measured_first(self):
        """Figures of --zstd auto differ from run to run, and are in the container: all that follows is by the first ones."""
        flags = ("--zstd", "auto", "--io-limit", "1M", "--threads", 1)
        model = self.bf16_model(8 if harness.is_slow() else 64)
        moments = random.Random(2)
        latest, n_killed = 0.2, 0
        while n_killed < (1 if harness.is_slow() else 3):
            process = harness.Process(self.command(model, "killed", *flags))
            journal = self.path("killed/m.pack.partial-journal")
            while process.popen.poll() is None and not (os.path.exists(journal) and os.path.getsize(journal)):
                time.sleep(0.001)
            time.sleep(moments.random() * latest)
            process.popen.kill()
            process.finish()
            if self.is_done("killed"):  # faster than that
                latest /= 2
                shutil.rmtree(self.path("killed"))
                continue
            n_killed += 1
            shutil.copytree(self.path("killed"), self.path("whole"))
            result = self.ok(*self.command(model, "whole", *flags))
            self.assertIn("going on", result.message)
            self.assertEqual(Container(self.path("whole/m.pack")).note["zstd"], "auto")
            for _ in range(2):
                process = harness.Process(self.command(model, "killed", *flags))
                time.sleep(moments.random() * 0.5)
                process.popen.kill()
                process.finish()
            if not self.is_done("killed"):
                self.ok(*self.command(model, "killed", *flags))
            self.assert_leaves_the_same("killed", tree(self.path("whole")))
            for home in ("killed", "whole"):
                shutil.rmtree(self.path(home))

    def test_interrupted_before_it_has_decided_it_leaves_nothing(self):
        process = harness.Process(self.command(self.model(), "stopped", "--zstd", 19))
        while process.popen.poll() is None and not os.path.exists(self.path("stopped/m.pack.partial-journal")):
            time.sleep(0.001)
        process.popen.send_signal(signal.SIGINT)
        line = self.assert_one_error(process.finish(), 130)
        self.assertIn("nothing was kept", line)
        self.assertEqual(tree(self.path("stopped")), {})

    def test_killed_unpack_is_taken_over(self):
        packed, back = self.path("m.pack"), self.path("back.gguf")
        self.ok("pack", BUNDLED_MODEL, packed, "--zstd", "off")
        harness.write_bytes(back + ".partial", b"left" * 10_000_000)
        self.ok("unpack", packed, back)
        self.assertEqual(harness.read_bytes(back), harness.read_bytes(BUNDLED_MODEL))
        self.assertEqual(sorted(tree(self.path("."))), ["back.gguf", "m.pack"])

    def test_other_options_or_another_source_start_over(self):
        model = self.model()
        flags = ("--zstd", 19, "--threads", 1)
        for change in ("options",) if harness.is_slow() else ("options", "stripes", "source"):
            with self.subTest(change=change):
                home = f"changed-{change}"
                self.interrupt(self.command(model, home, *flags), home)
                command = self.command(model, home, *flags)
                if change == "options":
                    command = self.command(model, home, "--zstd", "off")
                elif change == "stripes":
                    command = ("pack", model, self.path(f"{home}/m.pack"), "--zstd", "off")
                else:
                    os.utime(model)
                result = self.ok(*command)
                self.assertIn("starting over", result.message)
                self.assertFalse([name for name in tree(self.path(home)) if "partial" in name])
                self.ok("unpack", self.path(f"{home}/m.pack"), self.path(f"{home}.gguf"))
                self.assertEqual(harness.read_bytes(self.path(f"{home}.gguf")), harness.read_bytes(model))

    def test_what_a_damaged_journal_tells_of_does_not_count(self):
        model = self.model()
        flags = ("--zstd", 19, "--threads", 1)
        self.ok(*self.command(model, "whole", *flags))
        whole = tree(self.path("whole"))
        for damage in ("flip", "data cut") if harness.is_slow() else ("flip", "cut", "data cut", "empty"):
            with self.subTest(damage=damage):
                home = "damaged-" + damage.replace(" ", "-")
                self.interrupt(self.command(model, home, *flags), home)
                journal = self.path(f"{home}/m.pack.partial-journal")
                if damage == "flip":
                    self.flip(journal, os.path.getsize(journal) - 60, 3)
                elif damage == "cut":
                    os.truncate(journal, os.path.getsize(journal) - 20)
                elif damage == "data cut":
                    os.truncate(self.path(f"{home}/drive1/m.pack.1.partial"), ALIGN + 100)
                else:
                    os.truncate(journal, 0)
                self.ok(*self.command(model, home, *flags))
                self.assert_leaves_the_same(home, whole)

    def test_two_packs_of_one_container_do_not_meet(self):
        model = self.model()
        flags = ("--zstd", 19, "--threads", 1)
        first = harness.Process(self.command(model, "both", *flags))
        journal = self.path("both/m.pack.partial-journal")
        while not os.path.exists(journal) or not os.path.getsize(journal):
            time.sleep(0.005)
        self.assertIn("another penstock", self.fails(*self.command(model, "both", *flags), code=2))
        self.assertEqual(first.finish().code, 0)


class Failures(Case):
    def left(self):
        return sorted(tree(self.path(".")))

    def test_full_disk(self):
        unshare = ["unshare", "--user", "--map-root-user", "--mount"]
        if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
            self.skipTest("no mount name space to be had")
        small, packed = self.directory("small"), self.path("m.pack")
        self.ok("pack", BUNDLED_MODEL, packed, "--zstd", "off")
        check = f'"$@"; code=$?; [ -z "$(find {small} -type f)" ] || exit 99; exit $code'
        script = f"mount -t tmpfs -o size=8m none {small} || exit 77; {check}"
        for command in (
            ("pack", BUNDLED_MODEL, f"{small}/m.pack", "--zstd", "off"),
            ("pack", BUNDLED_MODEL, f"{small}/m.pack", "--zstd", 1),
            ("pack", BUNDLED_MODEL, self.path("other.pack"), "--zstd", "off", "--stripe", small),
            ("unpack", packed, f"{small}/m.gguf"),
        ):
            with self.subTest(command=command[0], flags=command[3:]):
                result = harness.run(*command, wrapper=[*unshare, "sh", "-c", script, "sh"])
                if result.code == 77:
                    self.skipTest("no tmpfs to be had")
                line = self.assert_one_error(result, 1)
                self.assertIn("no room", line)
                self.assertIn("missing", line)
                self.assertEqual(self.left(), ["m.pack"])

    def test_write_that_fails_half_way(self):
        packed = self.path("m.pack")
        self.ok("pack", BUNDLED_MODEL, packed, "--zstd", "off")
        for blocks in (16, 4096, 20000):  # of 512 bytes or 1 KiB, as the shell has it
            limited = ("sh", "-c", f"trap '' XFSZ; ulimit -f {blocks // 2}; exec \"$@\"", "sh")
            for command in (("pack", BUNDLED_MODEL, self.path("new.pack"), "--zstd", "off"), ("unpack", packed, self.path("new.gguf"))):
                line = self.assert_one_error(harness.run(*command, wrapper=limited), 1)
                self.assertRegex(line, "write failed at offset|no room|cannot be cut|cannot be extended")
                self.assertEqual(self.left(), ["m.pack"])

    def test_flipped_bits_are_found(self):
        packed = self.path("m.pack")
        drives = ",".join(self.directory(name) for name in ("a", "b"))
        model = self.bf16_model(6)
        choose = random.Random(7)
        ways = (("--zstd", 1, "--stripe", drives), ("--zstd", 1), ("--zstd", "off"))
        for flags in ways[: 1 if harness.is_slow() else 3]:
            self.ok("pack", model, packed, "--force", *flags)
            container = Container(packed)
            damage = [(shard, choose.choice(("first", "any", "last"))) for shard in range(len(container.extents))]
            for shard, where in damage[:: 4 if harness.is_slow() else 1]:
                file, offset, size = container.extents[shard]
                at = offset + {"first": 0, "any": choose.randrange(size), "last": size - 1}[where]
                bit = choose.randrange(8)
                self.flip(container.files[file], at, bit)
                line = self.fails("unpack", packed, self.path("back.gguf"))
                self.assertIn(f"layer {shard // 6}, expert {shard % 6}: ", line)
                self.assertIn(f"{os.path.basename(container.files[file])}: extent at offset {offset}: ", line)
                self.assertFalse(os.path.exists(self.path("back.gguf")))
                self.flip(container.files[file], at, bit)
            for offset in [offset for offset in container.trunk if offset][:: 9 if harness.is_slow() else 3]:
                self.flip(packed, offset, choose.randrange(8))
                line = self.fails("unpack", packed, self.path("back.gguf"))
                self.assertIn(f"offset {offset}: checksum differs", line)
                os.remove(packed)
                self.ok("pack", model, packed, "--force", *flags)
            self.assertEqual([name for name in self.left() if "partial" in name], [])

    def test_input_that_ends_half_way(self):
        model = self.bf16_model(24)
        process = harness.Process(("pack", model, self.path("m.pack"), "--zstd", 19, "--threads", 1))
        journal = self.path("m.pack.partial-journal")
        while process.popen.poll() is None and not (os.path.exists(journal) and os.path.getsize(journal)):
            time.sleep(0.002)
        process.popen.send_signal(signal.SIGSTOP)
        os.truncate(model, os.path.getsize(model) // 2)
        process.popen.send_signal(signal.SIGCONT)
        line = self.assert_one_error(process.finish(), 1)
        self.assertRegex(line, r"bf16.gguf: read failed at offset \d+: ")
        self.assertEqual(self.left(), ["bf16.gguf"])

    def test_names_that_are_taken(self):
        packed, drive = self.path("m.pack"), self.directory("drive")
        model = harness.copy(BUNDLED_MODEL, self.path("m.gguf"))
        harness.write_bytes(packed, b"precious")
        harness.write_bytes(self.path("drive/n.pack.1"), b"precious")
        for command, says in (
            (("pack", model, packed), "m.pack: exists"),
            (("pack", model, self.path("n.pack"), "--stripe", drive), "n.pack.1: exists"),
            (("pack", model, model, "--force"), "what is to be packed"),
            (("pack", model, self.path("drive")), "not a regular file"),
            (("pack", model, self.path("x.pack"), "--stripe", f"{drive},{self.path('.')}/drive/"), "given twice"),
            (("pack", model, self.path("x.pack"), "--stripe", f"{drive},,"), "--stripe"),
        ):
            self.assertIn(says, self.fails(*command, code=2), command)
        self.assertIn("No such file", self.fails("pack", model, self.path("none/x.pack")))
        self.assertIn("No such file", self.fails("pack", model, self.path("x.pack"), "--stripe", self.path("none")))
        self.assertIn("directory", self.fails("pack", model, self.path("x.pack"), "--stripe", model))
        self.assertEqual(harness.read_bytes(packed), b"precious")
        self.assertEqual(self.left(), ["drive/n.pack.1", "m.gguf", "m.pack"])
        self.ok("pack", model, packed, "--zstd", "off", "--force")
        self.assertIn("m.gguf: exists", self.fails("unpack", packed, model, code=2))
        self.assertIn("what is to be unpacked", self.fails("unpack", packed, packed, "--force", code=2))

    def test_input_that_has_the_partial_files_name_is_kept(self):
        model, packed = self.path("m.partial"), self.path("n.partial")
        harness.copy(BUNDLED_MODEL, model)
        self.ok("pack", model, packed, "--zstd", "off")
        whole = harness.read_bytes(packed)
        self.assertIn("m.partial: is what is to be packed", self.fails("pack", model, self.path("m"), code=2))
        self.assertIn("n.partial: is what is to be unpacked", self.fails("unpack", packed, self.path("n"), code=2))
        self.assertEqual(harness.read_bytes(model), harness.read_bytes(BUNDLED_MODEL))
        self.assertEqual(harness.read_bytes(packed), whole)
        self.assertEqual(self.left(), ["m.partial", "n.partial"])

    def test_replaced_container_leaves_no_data_files(self):
        packed, drives = self.path("m.pack"), [self.directory("a"), self.directory("b")]
        self.ok("pack", BUNDLED_MODEL, packed, "--zstd", "off", "--stripe", ",".join(drives))
        self.assertEqual(self.left(), ["a/m.pack.1", "b/m.pack.2", "m.pack"])
        self.ok("pack", BUNDLED_MODEL, packed, "--zstd", "off", "--stripe", drives[0], "--force")
        self.assertEqual(self.left(), ["a/m.pack.1", "m.pack"])
        self.ok("pack", BUNDLED_MODEL, packed, "--zstd", "off", "--force")
        self.assertEqual(self.left(), ["m.pack"])

    def test_bad_usage(self):
        packed = self.path("m.pack")
        for command in (
            ("pack", BUNDLED_MODEL),
            ("pack", BUNDLED_MODEL, packed, "--zstd", 23),
            ("pack", BUNDLED_MODEL, packed, "--zstd", "much"),
            ("pack", BUNDLED_MODEL, packed, "--io-limit", "fast"),
            ("unpack", BUNDLED_MODEL),
        ):
            self.fails(*command, code=2)
        self.fails("pack", self.path("none.gguf"), packed)
        self.assertIn("not a container", self.fails("unpack", BUNDLED_MODEL, self.path("x.gguf")))
        self.ok("pack", BUNDLED_MODEL, packed, "--zstd", "off")
        self.assertIn("unpack it first", self.fails("pack", packed, self.path("again.pack")))
        self.assertEqual(self.left(), ["m.pack"])
        self.ok("pack", BUNDLED_MODEL, packed, "--zstd", "off", "--force", "--stripe", self.directory("drive"))
        self.assertIn("name the main file", self.fails("pack", self.path("drive/m.pack.1"), self.path("again.pack")))


if __name__ == "__main__":
    harness.main()
