"""The trained models write what llama.cpp writes from the same files, streamed from a third of them and fully resident.

reference.json holds llama.cpp's greedy continuations and perplexities, and how they were made.
"""

import json
import os
import re

import gguf_tool
import harness
from harness import needs_shared, shared

N_TOKENS = 48
AMPLE = "1G"
AS_MADE = ("--kv", "f16")  # how llama.cpp was run
CLOSE_CALL = 0.02  # logits: two correct programs may choose differently below this
PERPLEXITY_SHARE = 0.005


def reference():
    with open(shared("models", "reference.json"), encoding="utf-8") as file:
        return json.load(file)


def third(path, *command):
    """A third of the file, or the smallest budget that works where the program itself needs more."""
    return max(os.path.getsize(path) // 3, harness.smallest_budget(*command))


class Reference(harness.TestCase):
    def check_departure(self, path, prompt, ids, expected):
        """A text that differs must part at a token where the best two logits are almost equal, one being llama.cpp's."""
        tokenizer = gguf_tool.SentencePieceTokenizer(gguf_tool.read(path))
        prompt_ids = tokenizer.encode(prompt)
        common = 0
        while common < len(ids) and expected.startswith(tokenizer.decode(ids[: common + 1])):
            common += 1
        row = harness.floats(self.logits(path, prompt_ids + ids[:common], *AS_MADE))[-len(tokenizer.pieces) :]
        (best, first), (other, second) = harness.two_best(row)
        where = f"after {tokenizer.decode(ids[:common])!r}: {first} for {best}, {second} for {other}"
        self.assertEqual(best, ids[common], where)
        self.assertLess(first - second, CLOSE_CALL, where)
        self.assertTrue(expected.startswith(tokenizer.decode(ids[:common] + [other])), where)

    @needs_shared("models", "reference.json")
    def test_greedy_text_is_llama_cpps(self):
        for name, texts in reference()["greedy"].items():
            path = shared("models", name)
            for prompt, expected in list(texts.items())[: 2 if harness.is_slow() else None]:
                command = ("run", "-m", path, "-p", prompt, "-n", N_TOKENS, "--temp", 0, *AS_MADE)
                for ram in (third(path, *command), AMPLE):
                    with self.subTest(model=name, ram=ram, prompt=prompt):
                        self.check_text(path, prompt, expected, *command, "--ram", ram)

    def check_text(self, path, prompt, expected, *command):
        text = self.ok(*command).text
        if text.rstrip("\n") != expected.rstrip("\n"):
            ids = [int(word) for word in self.ok(*command, "--print", "tokens").text.split()]
            self.check_departure(path, prompt, ids, expected)

    @needs_shared("models", "reference.json")
    def test_perplexity_is_llama_cpps(self):
        if harness.is_slow():
            self.skipTest("thousands of tokens take minutes here")
        for name, (expected, _) in reference()["perplexity"].items():
            path = shared("models", name)
            printed = set()
            command = ("eval", "ppl", "-m", path, "-f", shared("models", "valid.txt"), "--ctx", 256, *AS_MADE)
            both = name == os.path.basename(harness.BUNDLED_MODEL)
            for ram in (third(path, *command), AMPLE)[: 2 if both else 1]:
                with self.subTest(model=name, ram=ram):
                    result = self.ok(*command, "--ram", ram)
                    found = re.search(r"perplexity ([0-9]+\.[0-9]+)", result.text)
                    self.assertIsNotNone(found, str(result))
                    printed.add(found[1])
                    share = abs(float(found[1]) / float(expected) - 1)
                    self.assertLess(share, PERPLEXITY_SHARE, str(result))
            self.assertEqual(len(printed), 1, "the budget changed the perplexity")

    @needs_shared("models", "fable-moe-q8_0.gguf")
    def test_bundled_model_is_the_shared_one(self):
        self.assertTrue(
            harness.read_bytes(harness.BUNDLED_MODEL) == harness.read_bytes(shared("models", "fable-moe-q8_0.gguf"))
        )

    def test_bundled_model_writes_its_story(self):
        result = self.ok("run", "-m", harness.BUNDLED_MODEL, "-p", "Once upon a time", "-n", N_TOKENS, "--temp", 0)
        self.assertIn("there was a little girl named Lily", result.text)


if __name__ == "__main__":
    harness.main()
