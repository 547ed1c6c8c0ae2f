"""`inspect` on headers of real models: parameters, active parameters, shard bytes, token cycle, KV bytes per token. The files
are sparse: a header, then holes up to the model's full size.
"""

import json
import os
import unittest

import gguf_tool
import harness
import model_shapes


def supported():
    """The architectures that penstock names when it refuses one."""
    with harness.tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "unknown.gguf")
        metadata = {"general.architecture": (gguf_tool.STRING, "unknown-architecture")}
        gguf_tool.write(gguf_tool.Gguf(metadata, []), path)
        message = harness.run("inspect", path).message
    return message.strip().rsplit("supported are ", 1)[1].split(", ")


def near(value, published):
    """Within 3 % and what rounding took away from the published number."""
    digit = 0.5 if isinstance(published, int) else 0.05
    return abs(value / 1e9 - published) <= 0.03 * published + digit


class Totals(harness.TestCase):
    def inspect(self, model):
        path = self.path("model.gguf")
        try:
            gguf_tool.write_sparse(model.header(), path)
        except OSError as error:
            raise unittest.SkipTest(f"no sparse file of this size can be made here: {error}") from None
        self.addCleanup(lambda: os.path.exists(path) and os.remove(path))
        return json.loads(self.ok("inspect", path, "--json").text)

    def test_every_family_has_a_model_here(self):
        self.assertEqual(set(supported()) - {model.arch for model in model_shapes.all_models()}, set())

    def test_totals_follow_from_the_config(self):
        names = supported()
        for model in model_shapes.all_models():
            if model.arch not in names:
                continue
            with self.subTest(model=model.name):
                totals = self.inspect(model)
                expected = model.expected()
                self.assertEqual({key: totals[key] for key in expected}, expected)

    def test_a_window_of_0_lets_all_layers_of_llama4_see_all(self):
        model = next(m for m in model_shapes.all_models() if m.arch == "llama4")
        model.keys({"attention.sliding_window": 0})
        model.cells = [(0, *cell[1:]) for cell in model.cells]
        totals, expected = self.inspect(model), model.expected()
        self.assertEqual({key: totals[key] for key in expected}, expected)

    def test_a_shared_expert_that_the_metadata_knows_of_is_there(self):
        model = next(m for m in model_shapes.all_models() if m.arch == "granitemoe")
        model.keys(expert_shared_feed_forward_length=1024)
        path = self.path("model.gguf")
        gguf_tool.write_sparse(model.header(), path)
        self.assertIn("blk.0.ffn_gate_shexp.weight: tensor is missing", self.fails("inspect", path))

    def test_totals_are_the_published_ones(self):
        for model in model_shapes.all_models():
            if not model.published:
                continue
            with self.subTest(model=model.name):
                expected = model.expected()
                everything, active = model.published
                self.assertTrue(near(expected["parameters"] - model.skipped_values, everything), expected["parameters"])
                matrix = model.vocab * model.embd
                counts = [expected["active_parameters"] + n * matrix for n in (-1, 0, 1)]
                self.assertTrue(any(near(count, active) for count in counts), counts)

    def test_a_header_of_a_large_model_is_read_at_once(self):
        model = next(m for m in model_shapes.all_models() if m.name == "DeepSeek-V3")
        path = self.path("large.gguf")
        gguf_tool.write_sparse(model.header(), path)
        result = self.ok("inspect", path)
        self.assertLess(result.peak_rss, 64 << 20, str(result))


if __name__ == "__main__":
    harness.main()
