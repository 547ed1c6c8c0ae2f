"""Streaming decides when bytes arrive, never what is computed: logits are the same to the bit along every axis.

Each case varies one setting against one baseline with everything resident. Three models: the bundled one, whose
experts are a multiple of any cache tried here, and two golden ones (F16 in three layers, K-quants).
"""

import os

import harness
from harness import BUNDLED_MODEL, shared

AMPLE = ("--ram", "1G")
PROMPT = "Once upon a time"


def made_up(n):
    return [(7 * i * i + 31 * i + 5) % 190 + 1 for i in range(n)]


def some_tokens():
    return made_up(16 if harness.is_slow() else 40)


def present(paths):
    return [path for path in paths if os.path.exists(path)]


def models():
    golden = [shared("golden", "base", "qwen3moe.gguf"), shared("golden", "quant", "qwen3moe-Q4_K_M.gguf")]
    return [BUNDLED_MODEL] + present(golden)[-1 if harness.is_slow() else 0 :]


def models_with_blocks():
    """Whose attention works on blocks of tokens, with what is left of a block carried from chunk to chunk."""
    return present([shared("golden", "base", "deepseek4.gguf"), shared("golden", "base", "qwen4exp.gguf")])


# Golden models whose layers are of kinds that the three above lack.
FAMILIES = (
    "kimi-linear",
    "lfm2moe",
    "nemotron_h_moe",
    "qwen35moe",
    "qwen3next",
)


def smallest_for_logits(model, *flags):
    return harness.tight_budget(*harness.logits_command(model, some_tokens(), *flags))


def budgets(model, smallest):
    """From the refused minimum to almost everything resident."""
    steps = (0, 0.02, 0.5) if harness.is_slow() else (0, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0)
    return [int(smallest + share * os.path.getsize(model)) for share in steps]


class Exactness(harness.TestCase):
    def assert_axis(self, *axis, base=()):
        """axis: flag tuples, each of which must give the baseline's bytes, for every model."""
        for model in models():
            expected = self.logits(model, some_tokens(), *base, *AMPLE)
            self.assertEqual(len(expected) % (4 * len(some_tokens())), 0)
            for flags in axis:
                with self.subTest(model=os.path.basename(model), flags=" ".join(map(str, flags))):
                    self.assert_same_logits(self.logits(model, some_tokens(), *base, *flags), expected)

    def test_logits_depend_on_the_tokens(self):
        # The comparison below would also pass for a program that writes zeros.
        for model in models():
            other = some_tokens()[:-1] + [some_tokens()[-1] + 1]
            self.assertFalse(self.logits(model, some_tokens()) == self.logits(model, other))
            values = harness.floats(self.logits(model, some_tokens()))
            self.assertGreater(max(values) - min(values), 1.0)

    def test_same_for_any_budget(self):
        for model in models():
            expected = self.logits(model, some_tokens(), *AMPLE)
            for ram in budgets(model, smallest_for_logits(model)):
                with self.subTest(model=os.path.basename(model), ram=ram):
                    self.assert_same_logits(self.logits(model, some_tokens(), "--ram", ram), expected)

    def test_same_for_any_thread_count(self):
        self.assert_axis(*(("--threads", n) for n in (1, 2, 3)))

    def test_same_for_any_thread_count_when_streaming(self):
        expected = self.logits(BUNDLED_MODEL, some_tokens(), *AMPLE)
        for threads in (1, 2, 3):
            smallest = smallest_for_logits(BUNDLED_MODEL, "--threads", threads)
            with self.subTest(threads=threads):
                streamed = self.logits(BUNDLED_MODEL, some_tokens(), "--ram", smallest, "--threads", threads)
                self.assert_same_logits(streamed, expected)

    def test_same_for_either_io_backend(self):
        backends = ["threads"] + (["uring"] if harness.has_uring() else [])
        self.assert_axis(*(("--io", backend) for backend in backends))

    def test_same_with_and_without_direct_io(self):
        self.assert_axis(*(("--direct", on) for on in ("on", "off")))

    def test_same_for_any_queue_depth(self):
        self.assert_axis(*(("--queue-depth", n) for n in (1, 2, 64)))

    def test_same_for_any_chunk(self):
        self.assert_axis(*(("--chunk", n) for n in (1, 7, len(some_tokens()))))

    def test_same_for_any_chunk_with_f32_activations(self):
        self.assert_axis(*(("--chunk", n) for n in (1, 7)), base=("--activations", "f32"))

    def test_same_for_any_chunk_with_rounded_kv(self):
        for kv in ("f16", "q8_0"):
            self.assert_axis(("--chunk", 1), ("--chunk", 7), ("--threads", 3), base=("--kv", kv))

    def test_same_for_any_chunk_and_threads_in_a_context_of_many_segments(self):
        tokens = made_up(300 if harness.is_slow() else 700)
        model = BUNDLED_MODEL
        axis = [("--chunk", 3, "--threads", 3), ("--chunk", 50), ("--chunk", 1, "--threads", 2), ("--threads", 1)]
        for kv in ("q8_0", "f32")[: 1 if harness.is_slow() else 2]:
            base = ("--kv", kv, "--ctx", len(tokens), *AMPLE)
            expected = self.logits(model, tokens, *base)
            for flags in axis[: 2 if harness.is_slow() else 4]:
                with self.subTest(kv=kv, flags=" ".join(map(str, flags))):
                    self.assert_same_logits(self.logits(model, tokens, *base, *flags), expected)

    def test_same_for_any_chunk_where_attention_works_on_blocks(self):
        for model in models_with_blocks():
            # The windows move after 500 tokens or so.
            for n, kv in ((700, "q8_0"), (300, "f32"), (1400, "f16"))[: 1 if harness.is_slow() else 3]:
                tokens = made_up(n)
                base = ("--kv", kv, "--ctx", n)
                expected = self.logits(model, tokens, *base, *AMPLE)
                axis = [("--chunk", 1, "--threads", 2), ("--chunk", 7, "--threads", 1), ("--chunk", 64, "--threads", 3)]
                axis += [("--chunk", 300, "--prefetch", "off"), ("--chunk", 5, "--ram", "6M"), ("--chunk", 129, "--cpu", "scalar")]
                for flags in axis[: 2 if harness.is_slow() else len(axis)]:
                    if "--cpu" in flags:
                        expected = self.logits(model, tokens, *base, *AMPLE, "--cpu", "scalar")
                    with self.subTest(model=os.path.basename(model), kv=kv, flags=" ".join(map(str, flags))):
                        self.assert_same_logits(self.logits(model, tokens, *base, *flags), expected)

    def test_same_for_any_chunk_on_every_instruction_set(self):
        for level in harness.cpu_levels():
            self.assert_axis(*(("--chunk", n, "--threads", 3) for n in (1, 7)), base=("--cpu", level))

    @harness.needs_shared("golden", "base")
    def test_same_for_any_chunk_threads_and_prefetch_in_every_family(self):
        for family in FAMILIES:
            model = shared("golden", "base", family + ".gguf")
            for level in harness.cpu_levels()[-1 if harness.is_slow() else 0 :]:
                for base in (("--cpu", level), ("--cpu", level, "--activations", "f32")):
                    expected = self.logits(model, some_tokens(), *base, *AMPLE)
                    for flags in self.family_axes(model, base):
                        with self.subTest(model=family, flags=" ".join(map(str, (*base, *flags)))):
                            self.assert_same_logits(self.logits(model, some_tokens(), *base, *flags), expected)

    def family_axes(self, model, base):
        yield from (("--chunk", 1), ("--chunk", 7, "--threads", 2), ("--chunk", 64, "--threads", 1))
        yield from (("--prefetch", "off"), ("--threads", 3, "--chunk", 3))
        for flags in ((), ("--chunk", 1)):
            yield (*flags, "--ram", smallest_for_logits(model, *base, *flags))

    def test_same_for_any_cache_policy(self):
        policies = harness.cache_policies()
        self.assertGreater(len(policies), 1)
        expected = self.logits(BUNDLED_MODEL, some_tokens(), *AMPLE)
        for policy in policies:
            flags = ("--cache-policy", policy, "--chunk", 4)
            smallest = smallest_for_logits(BUNDLED_MODEL, *flags)
            for ram in (smallest, smallest + (1 << 20), smallest + (4 << 20)):
                with self.subTest(policy=policy, ram=ram):
                    self.assert_same_logits(self.logits(BUNDLED_MODEL, some_tokens(), *flags, "--ram", ram), expected)

    def test_same_with_and_without_prefetch_at_any_budget(self):
        for model in models():
            expected = self.logits(model, some_tokens(), *AMPLE)
            for ram in budgets(model, smallest_for_logits(model, "--chunk", 5)):
                for flags in (("--prefetch", "off"), ("--chunk", 1), ("--chunk", 5, "--queue-depth", 1)):
                    with self.subTest(model=os.path.basename(model), ram=ram, flags=" ".join(map(str, flags))):
                        logits = self.logits(model, some_tokens(), *flags, "--ram", ram, "--io-limit", "2G")
                        self.assert_same_logits(logits, expected)

    def test_prefix_is_not_changed_by_what_follows(self):
        for model in models():
            whole = self.logits(model, some_tokens())
            beginning = self.logits(model, some_tokens()[:11])
            self.assert_same_logits(beginning, whole[: len(beginning)])

    def test_same_text_along_every_axis(self):
        arguments = ("run", "-m", BUNDLED_MODEL, "-p", PROMPT, "-n", 24, "--temp", 0)
        expected = self.ok(*arguments, *AMPLE).stdout
        self.assertGreater(len(expected), 24)
        axes = [("--ram", ram) for ram in budgets(BUNDLED_MODEL, harness.tight_budget(*arguments))]
        axes += [("--threads", 1), ("--threads", 3), ("--io", "threads"), ("--direct", "off"), ("--chunk", 1)]
        for flags in axes:
            with self.subTest(flags=" ".join(map(str, flags))):
                self.assertEqual(self.ok(*arguments, *flags).stdout, expected)

    def test_sampled_text_depends_on_the_seed_alone(self):
        arguments = ("run", "-m", BUNDLED_MODEL, "-p", PROMPT, "-n", 24, "--temp", 1, "--threads", 1, "--seed")
        smallest = harness.tight_budget(*arguments, 1)
        texts = [self.ok(*arguments, seed, *AMPLE).stdout for seed in (1, 2, 3)]
        self.assertGreater(len(set(texts)), 1)
        for seed, text in zip((1, 2, 3), texts):
            self.assertEqual(self.ok(*arguments, seed, "--ram", smallest).stdout, text)


if __name__ == "__main__":
    harness.main()
