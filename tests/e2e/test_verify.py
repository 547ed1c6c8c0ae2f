"""Checksums of packed models: what --verify compares, that damage is an error which names its place, and that streaming a
container gives the same bits as its GGUF, within the budget."""

import os
import random
import re

import harness
import table_model
from container import BLOCK
from harness import BUNDLED_MODEL, shared

TOKENS = [(7 * i * i + 31 * i + 5) % 190 + 1 for i in range(40)]
AMPLE = ("--ram", "1G")
MODES = ("off", "first", "always")
DAMAGED_EXPERT = re.compile(r"layer \d+, expert \d+: (\S+): extent at offset (\d+): checksum differs")
DAMAGED_TENSOR = re.compile(r"penstock: \S+\.\S+: (\S+): block at offset (\d+): checksum differs")


def models():
    golden = (shared("golden", "base", "qwen3moe.gguf"), shared("golden", "quant", "qwen3moe-Q4_K_M.gguf"))
    return [BUNDLED_MODEL] + [path for path in golden if os.path.exists(path)]


class Verify(harness.TestCase):
    def pack(self, model, level):
        """Each under its own name, as budgets are remembered by command line."""
        packed = self.path(f"{os.path.basename(model)}-{level}.pack")
        self.ok("pack", model, packed, "--zstd", level)
        return packed

    def test_streamed_containers_give_the_same_bits_in_the_same_budget(self):
        for model in models() + [table_model.SOURCE] * os.path.exists(table_model.SOURCE):
            expected = self.logits(model, TOKENS, *AMPLE)
            for level in ("off", 1):
                packed = self.pack(model, level)
                for mode in MODES:
                    flags = ("--verify", mode, "--chunk", 4, "--cache-policy", "lru")
                    with self.subTest(model=os.path.basename(model), zstd=level, verify=mode):
                        ram = harness.tight_budget(*harness.logits_command(packed, TOKENS, *flags))
                        logits = self.logits(packed, TOKENS, *flags, "--ram", ram)
                        self.assert_same_logits(logits, expected)
                        self.assert_checks(packed, level, *flags)

    def assert_checks(self, packed, level, *flags):
        mode = flags[1]
        command = ("run", "-m", packed, "--prompt-tokens", harness.comma_list(TOKENS), "-n", 8, *flags)
        command += ("--temp", 0, "--print", "tokens")
        ram = harness.tight_budget(*command)
        _, stats = self.statistics(*command, "--ram", ram)
        self.assertEqual(stats["bytes_unpacked"] > 0, level != "off")
        self.assertEqual(stats["checked"] > 0, mode != "off")
        if mode == "always":
            self.assertGreater(stats["checked"], stats["expert_misses"])
        self.assertEqual(stats["reread_sound"], 0)
        if not harness.options.sanitizer:
            self.assertLessEqual(stats["peak_rss_bytes"], ram)

    def test_flipped_bits_are_errors_that_name_their_place(self):
        """Or of no consequence: padding of the trunk, and experts that no token needs."""
        model = models()[-1]
        expected = self.logits(model, TOKENS, *AMPLE)
        generator = random.Random(3)
        for level in ("off", 1):
            packed = self.pack(model, level)
            sound = harness.read_bytes(packed)
            kinds = {"expert": 0, "tensor": 0}
            for budget in (AMPLE, ("--ram", harness.tight_budget(*harness.logits_command(packed, TOKENS)))):
                for _ in range(12):
                    at = generator.randrange(len(sound) // 3, len(sound)) & ~1
                    self.flip(packed, sound, at, 1 << generator.randrange(8))
                    result = harness.run(*harness.logits_command(packed, TOKENS, "--verify", "always", *budget))
                    if result.code == 0:
                        self.assert_same_logits(self.logits(packed, TOKENS, *budget), expected)
                        continue
                    line = self.assert_one_error(result, 1)
                    self.count_damage(kinds, line, packed, at, len(sound))
            self.assertGreater(kinds["expert"], 0)
            self.flip_trunk(kinds, packed, sound)
            self.assertGreater(kinds["tensor"], 0)

    def flip(self, packed, sound, at, bit):
        harness.write_bytes(packed, sound[:at] + bytes([sound[at] ^ bit]) + sound[at + 1 :])

    def count_damage(self, kinds, line, packed, at, size):
        named = DAMAGED_EXPERT.search(line)
        kinds["expert" if named else "tensor"] += 1
        named = named or DAMAGED_TENSOR.search(line)
        self.assertTrue(named, line)
        self.assertEqual(named[1], packed)
        self.assertTrue(int(named[2]) <= at < size, (line, at))

    def flip_trunk(self, kinds, packed, sound):
        """The trunk comes before the experts, behind header and index."""
        half = len(sound) // 2
        for at in range(8192, half, max(1, half // 60)):
            self.flip(packed, sound, at, 1)
            result = harness.run(*harness.logits_command(packed, TOKENS, *AMPLE))
            line = "" if result.code == 0 else self.assert_one_error(result, 1)
            if DAMAGED_TENSOR.search(line):
                self.count_damage(kinds, line, packed, at, len(sound))
                return

    def packed_table(self):
        model = self.path("table.gguf")
        table_model.write(model)
        packed = self.pack(model, "off")
        return model, packed, *table_model.place(model, packed)

    @table_model.needed
    def test_tables_read_by_rows_give_the_same_bits_and_flipped_ones_are_found(self):
        model, packed, start, size = self.packed_table()
        expected = self.logits(model, TOKENS, *AMPLE)
        sound = harness.read_bytes(packed)
        generator = random.Random(5)
        places = [0, BLOCK - 1, BLOCK, 2 * BLOCK - 1, size - 1] + [generator.randrange(size) for _ in range(5)]
        for mode in ("first", "always"):
            flags = ("--verify", mode, "--chunk", 11, *AMPLE)
            self.assert_same_logits(self.logits(packed, TOKENS, *flags), expected)
            for at in places:
                self.flip(packed, sound, start + at, 1 << generator.randrange(8))
                result = harness.run(*harness.logits_command(packed, TOKENS, *flags))
                if result.code == 0:
                    self.assertGreaterEqual(at, 2 * BLOCK)  # every token reads of the blocks before
                    continue
                line = self.assert_one_error(result, 1)
                block = start + at // BLOCK * BLOCK
                self.assertIn(f"{table_model.TABLE}: {packed}: block at offset {block}: checksum differs", line)
            harness.write_bytes(packed, sound)
        self.flip(packed, sound, start, 1)
        self.ok(*harness.logits_command(packed, TOKENS, "--verify", "off", *AMPLE))

    @table_model.needed
    def test_a_table_is_checked_once_or_each_time(self):
        """All else fits in memory, and is read once."""
        _, packed, _, _ = self.packed_table()
        checked = {}
        for mode in MODES:
            command = ("run", "-m", packed, "--prompt-tokens", harness.comma_list(TOKENS), "-n", 8, "--verify", mode)
            _, stats = self.statistics(*command, *AMPLE, "--temp", 0, "--print", "tokens")
            checked[mode] = stats["checked"]
        self.assertEqual(checked["off"], 0)
        self.assertLess(checked["first"], checked["always"])

    def test_a_gguf_has_nothing_to_verify(self):
        expected = self.logits(BUNDLED_MODEL, TOKENS)
        self.assert_same_logits(self.logits(BUNDLED_MODEL, TOKENS, "--verify", "off"), expected)
        for mode in ("first", "always"):
            line = self.fails(*harness.logits_command(BUNDLED_MODEL, TOKENS, "--verify", mode), code=2)
            self.assertIn("--verify", line)
            self.assertIn(BUNDLED_MODEL, line)
            self.assertIn("checksums", line)


if __name__ == "__main__":
    harness.main()
