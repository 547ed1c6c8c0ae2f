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
    *("io_backend", "direct", "parts_s"),
}
PARTS = {"trunk", "experts", "attention", "router", "norms", "sync", "other"}
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

    def test_bench_prefill_measures_what_it_was_asked_for(self):
        arguments = ("bench", "prefill", "-m", BUNDLED_MODEL, "-n", 50, "--chunk", 20, "--warm-up", 1, "--repeat", 3)
        _, stats = self.statistics(*arguments)
        self.assertLessEqual(STATISTICS, set(stats))
        self.assertEqual(stats["prompt_tokens"], 3 * 50)
        self.assertEqual(stats["generated_tokens"], 0)
        self.assertEqual(len(stats["rates_tok_s"]), 3)
        self.assertEqual(stats["prefill_tok_s"], sorted(stats["rates_tok_s"])[1])

    def test_warm_up_leaves_no_trace_in_the_counts(self):
        # Greedy passes are alike: the first reads all that the others use.
        arguments = ("bench", "decode", "-m", BUNDLED_MODEL, "-n", 6, "--tokens", "greedy", "--warm-up", 1, "--repeat", 2, "--ram", "1G")
        _, stats = self.statistics(*arguments)
        self.assertEqual(stats["generated_tokens"], 2 * 6)
        self.assertEqual((stats["expert_hits"], stats["expert_misses"]), (2 * 6 * 6 * 4, 0))
        low, high = stats["rates_tok_s"]
        self.assertAlmostEqual(stats["decode_tok_s"], (low + high) / 2, delta=1e-5 * high)

    def test_each_pass_is_fed_other_tokens(self):
        arguments = ("bench", "decode", "-m", BUNDLED_MODEL, "-n", 6, "--warm-up", 1, "--ram", "1G")
        _, stats = self.statistics(*arguments)
        self.assertGreater(stats["expert_misses"], 0)

    def test_parts_of_a_step_make_up_the_time_of_computing(self):
        for threads in (1, 2):
            arguments = ("bench", "decode", "-m", BUNDLED_MODEL, "-n", 12, "--warm-up", 1, "--threads", threads)
            _, stats = self.statistics(*arguments)
            parts = stats["parts_s"]
            self.assertEqual(set(parts), PARTS)
            self.assertAlmostEqual(sum(parts.values()), stats["compute_s"], delta=1e-3 * stats["compute_s"])
            for part in PARTS - {"sync", "other"}:
                self.assertGreater(parts[part], 0, part)
            self.assertEqual(parts["sync"] > 0, threads > 1)

    def test_bench_prefill_refuses_what_has_no_prompt(self):
        self.fails("bench", "prefill", "-m", BUNDLED_MODEL, "--tokens", "greedy", code=2)


class BenchKernels(harness.TestCase):
    TINY = ("bench", "kernels", "--rows", 40, "--cols", 256, "--memory", "1M", "--seconds", 0, "--threads", 2)
    BATCHES = (1, 8, 512)

    def test_json_has_every_format_of_the_table(self):
        formats = harness.choices("--format", "bench", "kernels")
        self.assertGreaterEqual(len(formats), 9)
        report = json.loads(self.ok(*self.TINY, "--json").text)
        self.assertEqual((report["rows"], report["cols"], report["threads"]), (40, 256, 2))
        self.assertIn(report["cpu"], harness.choices("--cpu", "bench", "kernels"))
        for peak in ("read_gb_s", "int8_gop_s", "f32_gflop_s"):
            self.assertGreater(report[peak], 0)
        results = report["results"]
        self.assertEqual([(r["format"], r["tokens"]) for r in results], [(f, n) for f in formats for n in self.BATCHES])
        for result in results:
            for figure in ("gb_s", "gop_s", "of_read", "of_peak"):
                self.assertGreater(result[figure], 0, result)
            # Bits per weight, from the two rates of the same passes: 1 to 32, with scales.
            bits = 8 * result["gb_s"] / (result["gop_s"] / (2 * result["tokens"]))
            self.assertTrue(1 < bits < 33, result)

    def test_table_has_a_line_per_format_and_batch(self):
        text = self.ok(*self.TINY, "--format", "Q8_0", "--cpu", "scalar").text
        rows = [line.split() for line in text.splitlines() if line.startswith("Q8_0")]
        self.assertEqual([int(row[1]) for row in rows], list(self.BATCHES))
        self.assertTrue(text.startswith("scalar, 2 threads"), text)

    def test_every_level_of_this_machine_runs(self):
        for level in harness.choices("--cpu", "bench", "kernels"):
            result = harness.run(*self.TINY, "--cpu", level, "--json")
            if result.code == 2:
                self.assertIn(level, self.assert_one_error(result, 2))
            else:
                self.assertEqual(json.loads(result.text)["cpu"], level)

    def test_shapes_that_no_format_has_are_refused(self):
        self.assertIn("300", self.fails("bench", "kernels", "--cols", 300, code=2))


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

    def test_every_weight_type_streams_exactly(self):
        for weights in harness.choices("--type", "synth", "-o", self.path("x")):
            with self.subTest(type=weights):
                flags = ("--arch", "qwen3moe", *TINY_EXPERTS, "--type", weights)
                self.check_streams_exactly(self.synth(f"{weights}.gguf", *flags))

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
