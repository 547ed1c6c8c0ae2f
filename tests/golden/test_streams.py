"""deepseek4 and qwen4exp beyond what the golden files have: choices of few blocks, and files whose numbers do not fit."""

import array
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))

import gguf_tool
import harness
from harness import needs_shared, shared

U32, U64, ARRAY = 4, 10, 9
TOKENS = [(7 * i * i + 31 * i + 5) % 190 + 1 for i in range(150)]

golden_present = needs_shared("golden", "base", "qwen4exp.gguf")


def read(model_id):
    return gguf_tool.read(shared("golden", "base", f"{model_id}.gguf"))


class Streams(harness.TestCase):
    def changed(self, model_id, numbers):
        content = read(model_id)
        for key, value in numbers.items():
            kind = (ARRAY, (U32, value)) if isinstance(value, list) else (U32, value)
            content.metadata[f"{model_id}.{key}"] = kind
        return gguf_tool.write(content, self.path("changed.gguf"))

    def refuse(self, path, name):
        line = self.fails("run", "-m", path, "--prompt-tokens", "1,2", "-n", 1, "--print", "tokens")
        self.assertIn(name, line)

    @golden_present
    def test_same_for_any_chunk_when_few_blocks_are_chosen(self):
        for model_id, numbers in (
            ("qwen4exp", {"attention.indexer.top_k": 16}),
            ("qwen4exp", {"attention.indexer.top_k": 10, "attention.compress_ratios": [0, 3]}),
            ("deepseek4", {"attention.indexer.top_k": 2, "attention.sliding_window": 5}),
        ):
            path = self.changed(model_id, numbers)
            for kv in ("f32", "f16", "q8_0"):
                expected = self.logits(path, TOKENS, "--kv", kv)
                smallest = harness.tight_budget(*harness.logits_command(path, TOKENS, "--kv", kv, "--chunk", 33))
                for flags in (("--chunk", 1, "--threads", 2), ("--chunk", 7, "--threads", 3), ("--chunk", 33, "--ram", smallest)):
                    with self.subTest(model=model_id, kv=kv, flags=" ".join(map(str, flags))):
                        self.assert_same_logits(self.logits(path, TOKENS, "--kv", kv, *flags), expected)

    @golden_present
    def test_the_choice_matters(self):
        for model_id, whole in (("qwen4exp", 19), ("deepseek4", 4 * 3 - 1)):
            golden = self.logits(shared("golden", "base", f"{model_id}.gguf"), TOKENS)
            few = self.changed(model_id, {"attention.indexer.top_k": 16 if model_id == "qwen4exp" else 2})
            logits = self.logits(few, TOKENS)
            row = len(golden) // len(TOKENS)
            with self.subTest(model=model_id):
                self.assertEqual(logits[: whole * row], golden[: whole * row])
                self.assertNotEqual(logits[whole * row :], golden[whole * row :])

    @golden_present
    def test_numbers_that_do_not_fit_are_refused(self):
        for model_id, key, value in (
            ("deepseek4", "attention.compress_ratios", [0, 5, 128]),
            ("deepseek4", "attention.sliding_window", 0),
            ("deepseek4", "attention.indexer.key_length", 16),
            ("deepseek4", "attention.indexer.head_count", 0),
            ("deepseek4", "attention.output_group_count", 3),
            ("deepseek4", "attention.output_lora_rank", 1 << 30),
            ("deepseek4", "attention.head_count_kv", 2),
            ("deepseek4", "hyper_connection.count", 0),
            ("deepseek4", "hyper_connection.count", 9),
            ("deepseek4", "hyper_connection.sinkhorn_iterations", 0),
            ("qwen4exp", "hyper_connection.count", 1),
            ("qwen4exp", "hyper_connection.low_rank", 0),
            ("qwen4exp", "attention.indexer.top_k", 0),
            ("qwen4exp", "attention.indexer.key_length", 40),
            ("qwen4exp", "attention.compress_ratios", [0, 1 << 20]),
            ("qwen4exp", "ple.layers", [1]),
            ("qwen4exp", "ple.layers", [0, 1]),
            ("qwen4exp", "ple.ngram_size", 1),
            ("qwen4exp", "ple.ngram_size", 100),
            ("qwen4exp", "ple.heads_per_ngram", 1 << 19),
            ("qwen4exp", "ple.conv_kernel", 0),
            ("qwen4exp", "ple.layer_multipliers", [3, 5]),
            ("qwen4exp", "ple.head_vocab_sizes", [251, 241, 0, 233]),
            ("qwen4exp", "ple.head_vocab_sizes", [251, 241, 239, 234]),
            ("qwen4exp", "ple.head_offsets", [0, 251, 1 << 31, 731]),
        ):
            with self.subTest(model=model_id, key=key, value=value):
                self.refuse(self.changed(model_id, {key: value}), model_id)

    @golden_present
    def test_experts_of_a_token_that_there_are_not_are_an_error(self):
        content = read("deepseek4")
        table = content.tensor("blk.0.ffn_gate_tid2eid.weight")
        for expert in (8, -1):
            ids = array.array("i", table.data[: 4 * 2 * 192])
            ids[2 * 7] = expert
            table.data = ids.tobytes()
            path = gguf_tool.write(content, self.path("changed.gguf"))
            with self.subTest(expert=expert):
                self.ok(*harness.logits_command(path, [1, 2, 3]))
                line = self.assert_one_error(harness.run(*harness.logits_command(path, [1, 7, 3])), 1)
                self.assertIn("blk.0", line)
                self.assertIn("token 7", line)


if __name__ == "__main__":
    harness.main()
