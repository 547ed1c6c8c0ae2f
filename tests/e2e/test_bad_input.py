"""Bad files, bad flags, bad budgets: each ends in exit code 1 or 2 and one line that says what is wrong, never in a crash."""

import copy
import os
import random
import struct

import gguf_tool
import harness
from harness import BUNDLED_MODEL, shared

HUGE_COUNTS = (1 << 20, 1 << 32, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1)
RUN = ("--prompt-tokens", "1,2", "-n", 1, "--temp", 0, "--print", "tokens")
USABLE_WITHOUT = {"output.weight"}  # the embedding stands in for it


def small_model():
    """A model that is quick to copy: a golden one where there is one."""
    golden = shared("golden", "base", "qwen3moe.gguf")
    return golden if os.path.exists(golden) else BUNDLED_MODEL


class BadFile(harness.TestCase):
    def refused(self, path, *mentions):
        line = self.fails("run", "-m", path, *RUN)
        for mention in mentions:
            self.assertIn(mention, line)
        return line

    def refused_bytes(self, data, *mentions):
        path = self.path("bad.gguf")
        harness.write_bytes(path, data)
        return self.refused(path, *mentions)

    def refused_model(self, model, *mentions, **false_values):
        return self.refused_bytes(gguf_tool.to_bytes(model, **false_values), *mentions)

    def model(self):
        if not hasattr(self, "_model"):
            self._model = gguf_tool.read(small_model())
        return gguf_tool.Gguf(dict(self._model.metadata), [copy.copy(t) for t in self._model.tensors])

    def test_unchanged_copy_is_accepted(self):
        # Else every refusal below might be for another reason.
        path = gguf_tool.write(self.model(), self.path("good.gguf"))
        self.ok("run", "-m", path, *RUN)

    def test_no_model_there(self):
        self.refused(self.path("absent.gguf"), "absent.gguf")
        self.refused(self._directory.name, self._directory.name)
        self.refused_bytes(b"")
        self.refused("/dev/null")
        self.refused("/dev/zero")
        fifo = self.path("fifo.gguf")
        os.mkfifo(fifo)
        self.refused(fifo)

    def test_path_in_a_message_stays_on_one_line(self):
        self.refused(self.path("two\nlines\x1b[31m.gguf"))

    def test_unreadable_file(self):
        path = harness.copy(small_model(), self.path("secret.gguf"))
        os.chmod(path, 0)
        wrapper = ()
        if os.geteuid() == 0:
            os.chmod(self._directory.name, 0o755)
            wrapper = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
            try:
                if harness.run("--help", wrapper=wrapper).code != 0:
                    raise OSError
            except OSError:
                self.skipTest("root reads everything, and cannot run the program as somebody else here")
        line = self.fails("run", "-m", path, *RUN, wrapper=wrapper)
        self.assertIn("secret.gguf", line)

    def test_truncated_in_the_header(self):
        data = harness.read_bytes(small_model())
        header = gguf_tool.read(small_model()).header_bytes
        for length in range(1, header, 4096 if header > 16384 else 997 if harness.is_slow() else 61):
            with self.subTest(length=length):
                self.refused_bytes(data[:length])

    def test_truncated_in_a_header_with_a_vocabulary(self):
        header = gguf_tool.read(BUNDLED_MODEL).header_bytes
        for length in range(4096, header + 4096, 4096):
            with self.subTest(length=length):
                self.refused(harness.copy(BUNDLED_MODEL, self.path("bad.gguf"), length))

    def test_truncated_in_the_data(self):
        data = harness.read_bytes(small_model())
        header = gguf_tool.read(small_model()).header_bytes
        for share in (0, 0.1, 0.5, 0.9):
            length = header + int((len(data) - header) * share)
            with self.subTest(length=length):
                self.refused_bytes(data[:length])
        self.refused_bytes(data[:-64])

    def test_wrong_magic_or_version(self):
        for magic in (b"GGML", b"gguf", b"FUGG", b"\0\0\0\0"):
            self.refused_model(self.model(), magic=magic)
        for version in (0, 1, 4, 99, 0x03000000):
            self.refused_model(self.model(), version=version)

    def test_huge_counts(self):
        for count in HUGE_COUNTS:
            with self.subTest(count=count):
                self.refused_model(self.model(), n_tensors=count)
                self.refused_model(self.model(), n_metadata=count)

    def test_huge_lengths(self):
        data = gguf_tool.to_bytes(self.model())
        name = self.model().tensors[-1].name.encode()
        for text in (b"general.architecture", self.model().arch.encode(), name):
            packed = struct.pack("<Q", len(text)) + text
            self.assertIn(packed, data)
            for length in HUGE_COUNTS:
                with self.subTest(text=text, length=length):
                    self.refused_bytes(data.replace(packed, struct.pack("<Q", length) + text, 1))

    def test_huge_arrays(self):
        model = self.model()
        model.metadata = {"test.array": (gguf_tool.ARRAY, (gguf_tool.U32, [1, 2, 3])), **model.metadata}
        data = gguf_tool.to_bytes(model)
        packed = struct.pack("<IQI", gguf_tool.U32, 3, 1)
        self.assertEqual(data.count(packed), 1)
        for count in HUGE_COUNTS:
            for item_type in (gguf_tool.U32, gguf_tool.STRING, gguf_tool.ARRAY, 77):
                with self.subTest(count=count, item_type=item_type):
                    self.refused_bytes(data.replace(packed, struct.pack("<IQI", item_type, count, 1)))

    def test_deeply_nested_arrays(self):
        model = self.model()
        model.metadata["test.nested"] = (gguf_tool.ARRAY, (gguf_tool.U32, [7]))
        data = gguf_tool.to_bytes(model)
        innermost = struct.pack("<IQI", gguf_tool.U32, 1, 7)
        self.assertEqual(data.count(innermost), 1)
        level = struct.pack("<IQ", gguf_tool.ARRAY, 1)
        for depth in (8, 100000):  # multiples of 8 keep the tensor data aligned
            harness.write_bytes(self.path("nested.gguf"), data.replace(innermost, depth * level + innermost))
            result = harness.run("run", "-m", self.path("nested.gguf"), *RUN)
            with self.subTest(depth=depth):
                self.assert_clean(result)
                self.assertIn(result.code, (0, 1), str(result))

    def test_unknown_architecture(self):
        model = self.model()
        model.metadata["general.architecture"] = (gguf_tool.STRING, "nonesuch")
        self.refused_model(model, "nonesuch")
        del model.metadata["general.architecture"]
        self.refused_model(model, "general.architecture")
        model.metadata["general.architecture"] = (gguf_tool.U32, 7)
        self.refused_model(model, "general.architecture")

    def test_unknown_block_format(self):
        for type_id in (4, 999, 0xFFFFFFFF):
            model = self.model()
            model.tensors[-1].type_id = type_id
            self.refused_model(model, model.tensors[-1].name, str(type_id))

    def test_missing_tensor(self):
        for i, tensor in list(enumerate(self.model().tensors))[:: 5 if harness.is_slow() else 1]:
            if tensor.name in USABLE_WITHOUT:
                continue
            model = self.model()
            del model.tensors[i]
            with self.subTest(tensor=tensor.name):
                self.refused_model(model, tensor.name)

    def test_wrong_shape(self):
        for i, tensor in list(enumerate(self.model().tensors))[:: 5 if harness.is_slow() else 1]:
            for shape in (tensor.shape[:-1] + [tensor.shape[-1] - 1], tensor.shape + [2], [0] + tensor.shape[1:]):
                model = self.model()
                model.tensors[i].shape = shape
                with self.subTest(tensor=tensor.name, shape=shape):
                    line = self.refused_model(model)
                    # Where two tensors disagree, either is the wrong one.
                    self.assertTrue(any(other.name in line for other in model.tensors), line)

    def test_overflowing_shape(self):
        for shape in ([1 << 32, 1 << 32], [(1 << 63), 2], [32, 1 << 59], [32] * 4, [32] * 5):
            model = self.model()
            model.tensors[0].shape = shape
            with self.subTest(shape=shape):
                self.refused_model(model)

    def test_misplaced_data(self):
        for offset in (1, 1 << 40, (1 << 64) - 32, (1 << 64) - 1):
            model = self.model()
            model.tensors[-1].false_offset = offset
            with self.subTest(offset=offset):
                self.refused_model(model, model.tensors[-1].name)

    def test_same_tensor_twice(self):
        model = self.model()
        model.tensors.append(copy.copy(model.tensors[0]))
        self.refused_model(model, model.tensors[0].name)

    def test_bad_alignment(self):
        # A file laid out for 32, whatever it claims.
        model = self.model()
        model.metadata["general.alignment"] = (gguf_tool.U32, 32)
        data = gguf_tool.to_bytes(model)
        key = b"general.alignment" + struct.pack("<I", gguf_tool.U32)
        self.assertEqual(data.count(key + struct.pack("<I", 32)), 1)
        for alignment in (0, 3, 1 << 31):
            with self.subTest(alignment=alignment):
                self.refused_bytes(data.replace(key + struct.pack("<I", 32), key + struct.pack("<I", alignment)))

    def test_hyperparameters_out_of_range(self):
        changes = {
            "block_count": (0, 1000, 1 << 31),
            "embedding_length": (0, 1, 1 << 31),
            "expert_count": (0, 7, 1 << 31),
            "expert_used_count": (0, 1000, 1 << 31),
            "attention.head_count": (0, 3, 1 << 31),
            "attention.head_count_kv": (0, 3, 1 << 31),
            "attention.key_length": (0, 1, 1 << 31),
        }
        for suffix, values in changes.items():
            for value in values:
                model = self.model()
                key = f"{model.arch}.{suffix}"
                self.assertIn(key, model.metadata)
                model.metadata[key] = (gguf_tool.U32, value)
                with self.subTest(key=key, value=value):
                    self.refused_model(model)

    def test_hyperparameter_missing_or_of_wrong_type(self):
        arch = self.model().arch
        for suffix in ("block_count", "embedding_length", "expert_count", "expert_used_count", "attention.head_count"):
            key = f"{arch}.{suffix}"
            missing, mistyped = self.model(), self.model()
            del missing.metadata[key]
            mistyped.metadata[key] = (gguf_tool.STRING, "eight")
            with self.subTest(key=key):
                self.refused_model(missing)
                self.refused_model(mistyped, key)

    def test_split_set_with_a_part_missing_or_wrong(self):
        paths = gguf_tool.split(self.model(), self.path("set"), 3)
        os.rename(paths[1], self.path("aside"))
        self.refused(paths[0], os.path.basename(paths[1]))
        harness.copy(paths[2], paths[1])
        self.refused(paths[0])
        os.replace(self.path("aside"), paths[1])
        os.truncate(paths[2], os.path.getsize(paths[2]) // 2)
        self.refused(paths[0], os.path.basename(paths[2]))

    def test_no_single_changed_byte_crashes(self):
        data = harness.read_bytes(small_model())
        header = gguf_tool.read(small_model()).header_bytes
        dice = random.Random(20260)
        for _ in range(40 if harness.is_slow() else 250):
            at = dice.randrange(header)
            changed = bytearray(data)
            changed[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, changed[at] ^ (1 << dice.randrange(8))))
            path = self.path("changed.gguf")
            harness.write_bytes(path, changed)
            result = harness.run("run", "-m", path, *RUN, "--ram", "256M")
            with self.subTest(at=at, value=changed[at]):
                self.assert_clean(result)
                self.assertIn(result.code, (0, 1), str(result))
                if result.code:
                    self.assert_one_error(result, 1)


class BadBudget(harness.TestCase):
    def test_refusal_names_the_smallest_that_works(self):
        for flags in ((), ("--ctx", 64), ("--kv", "f16"), ("--threads", 1), ("--io", "threads")):
            with self.subTest(flags=flags):
                command = ("run", "-m", BUNDLED_MODEL, "--prompt-tokens", "1", "-n", 1, *flags, "--ram")
                smallest = harness.smallest_budget(*command[:-1])
                self.ok(*command, smallest)
                self.assert_one_error(harness.run(*command, smallest * 9 // 10), 1)

    def test_too_small_for_anything(self):
        for ram in ("1", "4K", "1M"):
            self.fails("run", "-m", BUNDLED_MODEL, "-p", "x", "-n", 1, "--ram", ram)

    def test_absurdly_large_is_accepted(self):
        self.ok("run", "-m", BUNDLED_MODEL, "-p", "x", "-n", 1, "--ram", "1000T")


class BadUsage(harness.TestCase):
    def test_is_refused_with_exit_code_2(self):
        model = ("-m", BUNDLED_MODEL)
        prompt = ("-p", "x")
        for arguments in (
            ("nonesuch",),
            ("run", *model, *prompt, "--no-such-flag"),
            ("run", *model, *prompt, "-Z"),
            ("run", *prompt),
            ("run", *model),
            ("run", *model, "-p"),
            ("run", *model, *prompt, "--ram", "banana"),
            ("run", *model, *prompt, "--ram", "12X"),
            ("run", *model, *prompt, "--ram", "-5"),
            ("run", *model, *prompt, "--ram", "99999999999999999999"),
            ("run", *model, *prompt, "--threads", "many"),
            ("run", *model, *prompt, "--threads", "100000"),
            ("run", *model, *prompt, "-n", "1.5"),
            ("run", *model, *prompt, "--temp", "warm"),
            ("run", *model, *prompt, "--temp", "nan"),
            ("run", *model, *prompt, "--kv", "q17"),
            ("run", *model, *prompt, "--io", "tape"),
            ("run", *model, *prompt, "--direct", "maybe"),
            ("run", *model, *prompt, "--cpu", "z80"),
            ("run", *model, *prompt, "--cache-policy", "nonesuch"),
            ("run", *model, "--prompt-tokens", "1,x,3"),
            ("run", *model, *prompt, "surplus"),
            ("eval", "nonesuch"),
            ("eval", "logits", *model, "--tokens", "1"),
            ("eval", "ppl", *model),
            ("inspect",),
            ("bench", "nonesuch"),
        ):
            with self.subTest(arguments=arguments):
                self.fails(*arguments, code=2)

    def test_command_is_needed(self):
        for command in ((), ("eval",), ("bench",)):
            result = harness.run(*command)
            self.assertEqual(result.code, 2, str(result))
            self.assertIn("usage", result.message)

    def test_instruction_set_that_the_machine_lacks(self):
        lacking = [level for level in harness.CPU_LEVELS if level not in harness.cpu_levels()]
        self.assertTrue(lacking, "no machine has all of them")
        for level in lacking:
            line = self.fails("run", "-m", BUNDLED_MODEL, *RUN, "--cpu", level, code=2)
            self.assertIn(f"this machine has no {level}", line)

    def test_token_out_of_range(self):
        for token in (-1, 2048, 1 << 31, 1 << 40):
            result = harness.run("run", "-m", BUNDLED_MODEL, "--prompt-tokens", f"1,{token}", "-n", 1)
            self.assertIn(result.code, (1, 2), str(result))
            self.assert_one_error(result, result.code)

    def test_prompt_longer_than_the_context(self):
        tokens = harness.comma_list([1] * 40)
        arguments = ("run", "-m", BUNDLED_MODEL, "--prompt-tokens", tokens, "-n", 1, "--ctx")
        line = self.assert_one_error(harness.run(*arguments, 32), 1)
        self.assertIn("32", line)
        self.ok(*arguments, 41)

    def test_text_prompt_for_a_model_without_text(self):
        path = shared("golden", "base", "qwen3moe.gguf")
        if not os.path.exists(path):
            self.skipTest("the golden models are not there")
        self.assertIn("vocabulary", self.fails("run", "-m", path, "-p", "hello", "-n", 1))

    def test_prompt_file_absent_or_empty(self):
        self.assert_one_error(harness.run("run", "-m", BUNDLED_MODEL, "-f", self.path("absent.txt"), "-n", 1), 1)
        harness.write_bytes(self.path("empty.txt"), b"")
        result = harness.run("run", "-m", BUNDLED_MODEL, "-f", self.path("empty.txt"), "-n", 1)
        self.assert_clean(result)
        self.assertIn(result.code, (0, 1, 2))

    def test_prompt_of_any_bytes(self):
        harness.write_bytes(self.path("bytes.txt"), bytes(range(1, 256)) * 2)
        result = harness.run("run", "-m", BUNDLED_MODEL, "-f", self.path("bytes.txt"), "-n", 1, "--temp", 0)
        self.assert_clean(result)
        self.assertIn(result.code, (0, 1))

    def test_help_is_there_for_every_command(self):
        self.assertIn("usage", self.ok("--help").text.lower())
        commands = (["run"], ["inspect"], ["eval"], ["eval", "logits"], ["eval", "ppl"], ["eval", "kl"], ["bench"])
        for command in (*commands, ["bench", "decode"], ["synth"]):
            with self.subTest(command=command):
                text = self.ok(*command, "--help").text
                self.assertIn("penstock " + " ".join(command), text)


if __name__ == "__main__":
    harness.main()
