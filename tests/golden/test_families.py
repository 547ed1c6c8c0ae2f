"""Every architecture keeps the invariants: logits are the same to the bit for any chunk, thread count, budget and prefetch
setting, with sliding windows and recurrent states as they move on; what a family does not handle is refused."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))

import gguf_tool
import harness
from harness import needs_shared, shared
from test_golden import supported_models, thinned

AMPLE = ("--ram", "1G")

manifest_present = needs_shared("golden", "manifest.json")


def base_models():
    """One file per architecture and variant; formats are the golden test's affair."""
    return [model for model in supported_models() if model["kind"] == "base" and "-F32" not in model["id"] and "-BF16" not in model["id"]]


def long_prompt(model, n):
    return [(7 * i * i + 31 * i + 5) % (model["n_vocab"] - 2) + 1 for i in range(n)]


class Families(harness.TestCase):
    def assert_axis(self, model, tokens, base, axis):
        path = shared("golden", model["file"])
        expected = self.logits(path, tokens, *base, *AMPLE)
        for flags in axis:
            with self.subTest(model=model["id"], flags=" ".join(map(str, flags))):
                self.assert_same_logits(self.logits(path, tokens, *base, *flags), expected)

    @manifest_present
    def test_same_for_any_chunk_threads_and_budget(self):
        tokens = harness.golden_tokens()
        for model in base_models():
            path = shared("golden", model["file"])
            smallest = harness.tight_budget(*harness.logits_command(path, tokens))
            axis = (
                ("--ram", smallest, "--io-limit", "2G", "--threads", 3),
                ("--chunk", 7, "--threads", 3),
                ("--chunk", 1, "--threads", 1),
                ("--ram", smallest + os.path.getsize(path) // 4, "--chunk", 5, "--prefetch", "off"),
            )
            self.assert_axis(model, tokens, (), axis[: 2 if harness.is_slow() else 4])

    @manifest_present
    def test_same_for_any_chunk_with_rounded_kv(self):
        for model in thinned(base_models()):
            axis = (("--chunk", 7, "--threads", 3), ("--chunk", 1))
            for kv in ("q8_0",) if harness.is_slow() else ("q8_0", "f16"):
                self.assert_axis(model, harness.golden_tokens(), ("--kv", kv), axis[: 1 if harness.is_slow() else 2])

    @manifest_present
    def test_same_for_any_chunk_when_windows_have_moved_on(self):
        # In one chunk the cache holds every position; token by token it drops what the windows left behind.
        n = 350 if harness.is_slow() else 700
        axis = (("--chunk", 33, "--threads", 3), ("--chunk", 1))
        for model in base_models():
            tokens = long_prompt(model, n)
            self.assert_axis(model, tokens, ("--ctx", n), axis[: 1 if harness.is_slow() else 2])

    @manifest_present
    def test_prefix_is_not_changed_by_what_follows(self):
        tokens = harness.golden_tokens()
        for model in thinned(base_models()):
            with self.subTest(model=model["id"]):
                path = shared("golden", model["file"])
                beginning = self.logits(path, tokens[:11])
                self.assert_same_logits(beginning, self.logits(path, tokens)[: len(beginning)])

    @manifest_present
    def test_a_tensor_or_key_that_is_not_known_is_refused(self):
        for model in base_models():
            with self.subTest(model=model["id"]):
                keyed, extended = (gguf_tool.read(shared("golden", model["file"])) for _ in range(2))
                keyed.metadata[f"{model['arch']}.attention.secret_factor"] = (gguf_tool.F32, 2.0)
                self.check_refused(keyed, "attention.secret_factor")
                extended.tensors.append(gguf_tool.Tensor("blk.0.attn_secret.weight", [32], 0, bytes(128)))
                self.check_refused(extended, "blk.0.attn_secret.weight")

    def check_refused(self, content, name):
        path = self.path("changed.gguf")
        harness.write_bytes(path, gguf_tool.to_bytes(content))
        line = self.fails("run", "-m", path, "--prompt-tokens", "1,2", "-n", 1, "--print", "tokens")
        self.assertIn(name, line)


if __name__ == "__main__":
    harness.main()
