"""inspect, bench and synth do what their help says, on the bundled model and on synthetic ones of every architecture."""

import json
import os

import gguf_tool
import harness
from harness import BUNDLED_MODEL

STATISTICS = {
    *("prompt_tokens", "generated_tokens", "prefill_tok_s", "decode_tok_s", "ttft_s"),
    *("expert_hits", "expert_misses", "bytes_demand", "bytes_speculative", "bytes_wasted", "stall_s", "compute_s"),
    *("peak_rss_bytes", "budget_bytes", "trunk_bytes", "kv_bytes", "cache_bytes", "slots", "token_cycle_bytes"),
    *("io_backend", "direct"),
}
RUNNABLE_TYPES = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q4_K_M", "MXFP4"}
RUNNABLE_TYPES |= {"IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0"}
TOKENS = [(i * 13) % 97 for i in range(20)]
TINY = ("--layers", 3, "--embd", 256, "--heads", 4, "--kv-heads", 2, "--head-dim", 64, "--vocab", 128, "--ctx", 128)
TINY_EXPERTS = ("--experts", 8, "--top-k", 2, "--expert-ff", 256)


def last_object(text):
    """The JSON object on the last line that begins one."""
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


class Inspect(harness.TestCase):
    def test_text_names_what_is_in_the_file(self):
        text = self.ok("inspect", BUNDLED_MODEL).text
        self.assertIn("qwen3moe", text)
        self.assertIn("32", text)

    def test_json_is_one_object_with_the_same_facts(self):
        self.assertIn("qwen3moe", json.dumps(json.loads(self.ok("inspect", BUNDLED_MODEL, "--json").text)))

    def test_split_set_is_named_by_its_first_part(self):
        parts = gguf_tool.split(gguf_tool.read(BUNDLED_MODEL), self.path("set"), 3)
        self.assertIn("qwen3moe", self.ok("inspect", parts[0]).text)


class Statistics(harness.TestCase):
    def test_run_reports_every_figure(self):
        _, stats = self.statistics("run", "-m", BUNDLED_MODEL, "-p", "Once upon a time", "-n", 8, "--temp", 0)
        self.assertLessEqual(STATISTICS, set(stats))
        self.assertEqual(stats["prompt_tokens"], 4)
        self.assertEqual(stats["generated_tokens"], 8)
        self.assertGreater(stats["decode_tok_s"], 0)
        self.assertIn(stats["io_backend"], ("uring", "threads"))

    def test_dash_prints_them_after_the_text(self):
        result = self.ok("run", "-m", BUNDLED_MODEL, "-p", "The big dog", "-n", 8, "--temp", 0, "--stats", "-")
        self.assertEqual(last_object(result.text)["generated_tokens"], 8)

    def test_hits_and_misses_count_every_expert_that_was_used(self):
        command = ("run", "-m", BUNDLED_MODEL, "--prompt-tokens", "433", "-n", 9, "--temp", 0)
        _, stats = self.statistics(*command, "--ram", harness.smallest_budget(*command))
        # 6 layers, top 4; the last token is chosen but not fed again.
        self.assertEqual(stats["expert_hits"] + stats["expert_misses"], 9 * 6 * 4)
        self.assertEqual(stats["token_cycle_bytes"], 6 * 4 * 3 * 256 * 128 // 32 * 34)
        self.assertGreaterEqual(stats["bytes_demand"], stats["expert_misses"] * stats["token_cycle_bytes"] // 24)

    def test_bench_decode_measures_what_it_was_asked_for(self):
        for tokens in ("greedy", "random:7"):
            with self.subTest(tokens=tokens):
                arguments = ("bench", "decode", "-m", BUNDLED_MODEL, "-n", 12, "--tokens", tokens)
                _, stats = self.statistics(*arguments)
                self.assertLessEqual(STATISTICS, set(stats))
                self.assertEqual(stats["generated_tokens"], 12)
                self.assertGreater(stats["decode_tok_s"], 0)


class Synth(harness.TestCase):
    def synth(self, name, *flags):
        path = self.path(name)
        self.ok("synth", "-o", path, *TINY, *flags)
        return path

    def check_streams_exactly(self, path):
        """Streamed from the smallest budget, in small chunks, it computes what it computes when resident."""
        ample = self.logits(path, TOKENS, "--ram", "1G")
        values = harness.floats(ample)
        self.assertEqual(len(values), len(TOKENS) * 128)
        self.assertGreater(max(values) - min(values), 1.0)
        ram = harness.smallest_budget(*harness.logits_command(path, TOKENS, "--chunk", 3))
        self.assert_same_logits(self.logits(path, TOKENS, "--chunk", 3, "--ram", ram), ample)

    def test_every_architecture_streams_exactly(self):
        for arch in harness.choices("--arch", "synth", "-o", self.path("x")):
            with self.subTest(arch=arch):
                self.check_streams_exactly(self.synth(f"{arch}.gguf", "--arch", arch, *TINY_EXPERTS))

    def test_every_runnable_weight_type_streams_exactly(self):
        for weights in harness.choices("--type", "synth", "-o", self.path("x")):
            with self.subTest(type=weights):
                flags = ("--arch", "qwen3moe", *TINY_EXPERTS, "--type", weights)
                path = self.synth(f"{weights}.gguf", *flags)
                if weights.upper() in RUNNABLE_TYPES:
                    self.check_streams_exactly(path)
                else:  # for other programs to read
                    self.assertIn(weights, self.fails("run", "-m", path, "--prompt-tokens", "1", "-n", 1, "--print", "tokens"))

    def test_dense_model_runs(self):
        path = self.synth("dense.gguf", "--arch", "llama", "--experts", 0, "--ff", 512)
        ample = self.logits(path, TOKENS, "--ram", "1G")
        self.assert_same_logits(self.logits(path, TOKENS, "--chunk", 3), ample)

    def test_same_seed_gives_the_same_file(self):
        flags = ("--arch", "qwen3moe", *TINY_EXPERTS)
        first = self.synth("a.gguf", *flags, "--seed", 5, "--threads", 1)
        again = self.synth("b.gguf", *flags, "--seed", 5, "--threads", 3)
        other = self.synth("c.gguf", *flags, "--seed", 6)
        self.assertTrue(harness.read_bytes(first) == harness.read_bytes(again))
        self.assertFalse(harness.read_bytes(first) == harness.read_bytes(other))

    def test_takes_the_tokenizer_of_another_model(self):
        path = self.path("text.gguf")
        self.ok("synth", "-o", path, *TINY, "--arch", "qwen3moe", *TINY_EXPERTS, "--vocab-from", BUNDLED_MODEL)
        self.assertEqual(
            gguf_tool.read(path).value("tokenizer.ggml.tokens"),
            gguf_tool.read(BUNDLED_MODEL).value("tokenizer.ggml.tokens"),
        )
        self.ok("run", "-m", path, "-p", "Once", "-n", 2, "--temp", 0)

    def test_does_not_replace_a_file_unasked(self):
        path = self.synth("kept.gguf", "--arch", "qwen3moe", *TINY_EXPERTS)
        before = os.stat(path).st_mtime_ns
        result = harness.run("synth", "-o", path, *TINY, "--arch", "qwen3moe", *TINY_EXPERTS)
        self.assert_one_error(result, 2)
        self.assertEqual(os.stat(path).st_mtime_ns, before)

    def test_device_is_not_overwritten(self):
        result = harness.run("synth", "-o", "/dev/full", "--force", *TINY, "--arch", "qwen3moe", *TINY_EXPERTS)
        self.assert_one_error(result, 2)


if __name__ == "__main__":
    harness.main()
