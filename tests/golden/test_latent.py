"""Latent attention beyond what the golden files have: other ways to store it, rounded activations, long choices of cells, and
files whose numbers do not fit.
"""

import array
import json
import math
import os
import random
import statistics
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))

import gguf_tool
import harness
from gguf_tool import ARRAY, U32
from harness import needs_shared, shared

F16, Q8_0, F32_VALUE, BOOL = 1, 8, 6, 7
EXACT = ("--activations", "f32")
AXES = (
    ("--chunk", 1, "--threads", 2),
    ("--chunk", 7, "--threads", 1),
    ("--chunk", 13, "--threads", 3),
    ("--chunk", 64, "--threads", 2, "--prefetch", "off"),
)
LONG = [(7 * i * i + 31 * i + 5) % 190 + 1 for i in range(170)]

manifest_present = needs_shared("golden", "manifest.json")


def read(model_id):
    return gguf_tool.read(shared("golden", harness.golden_model(model_id)["file"]))


def set_value(gguf, suffix, value, kind=U32):
    gguf.metadata[f"{gguf.arch}.{suffix}"] = (kind, value)


def halves(tensor):
    return array.array("H", tensor.data[: 2 * math.prod(tensor.shape)])


def join_kv_b(gguf):
    """attn_k_b and attn_v_b back to the attn_kv_b that files had before llama.cpp split it, and its metadata."""
    for k_b in [tensor for tensor in gguf.tensors if tensor.name.endswith("attn_k_b.weight")]:
        v_b = gguf.tensor(k_b.name.replace("attn_k_b", "attn_v_b"))
        nope, rank, n_head = k_b.shape
        k, v = halves(k_b), halves(v_b)
        rows = array.array("H")
        for head in range(n_head):
            for i in range(nope):
                rows.extend(k[(head * rank + r) * nope + i] for r in range(rank))
            size = v_b.shape[1] * rank
            rows.extend(v[head * size : (head + 1) * size])
        name = k_b.name.replace("attn_k_b", "attn_kv_b")
        at = gguf.tensors.index(k_b)
        gguf.tensors[at] = gguf_tool.Tensor(name, [rank, n_head * (nope + v_b.shape[1])], F16, rows.tobytes())
        gguf.tensors.remove(v_b)
    set_value(gguf, "attention.head_count_kv", gguf.value(f"{gguf.arch}.attention.head_count"))
    for kind in ("key", "value"):
        key = f"{gguf.arch}.attention.{kind}_length"
        gguf.metadata[key] = gguf.metadata.pop(key + "_mla")
    return gguf


def reshape(gguf, n_head, nope, n_rot, head_v, rank, q_rank):
    """Random attention of another shape in place of the model's."""
    width = gguf.value(f"{gguf.arch}.embedding_length")
    shapes = {
        "attn_q_a.weight": [width, q_rank],
        "attn_q_a_norm.weight": [q_rank],
        "attn_q_b.weight": [q_rank, n_head * (nope + n_rot)],
        "attn_kv_a_mqa.weight": [width, rank + n_rot],
        "attn_kv_a_norm.weight": [rank],
        "attn_k_b.weight": [nope, rank, n_head],
        "attn_v_b.weight": [rank, head_v, n_head],
        "attn_output.weight": [n_head * head_v, width],
    }
    draw = random.Random(7)
    for tensor in gguf.tensors:
        shape = shapes.get(tensor.name.split(".", 2)[-1])
        if shape:
            norm = len(shape) == 1
            spread = 0.1 if norm else shape[0] ** -0.5
            values = [draw.gauss(norm, spread) for _ in range(math.prod(shape))]
            tensor.shape, tensor.data = shape, struct.pack(f"<{len(values)}{'f' if norm else 'e'}", *values)
    set_value(gguf, "attention.head_count", n_head)
    set_value(gguf, "rope.dimension_count", n_rot)
    set_value(gguf, "attention.q_lora_rank", q_rank)
    set_value(gguf, "attention.kv_lora_rank", rank)
    set_value(gguf, "attention.key_length_mla", nope + n_rot)
    set_value(gguf, "attention.value_length_mla", head_v)
    return gguf


def q8_0(values):
    blocks = []
    for i in range(0, len(values), 32):
        block = values[i : i + 32]
        scale = struct.unpack("<e", struct.pack("<e", max(map(abs, block)) / 127))[0]
        quantized = (max(-127, min(127, round(x / scale))) if scale else 0 for x in block)
        blocks.append(struct.pack("<e32b", scale, *quantized))
    return b"".join(blocks)


def quantize(gguf):
    """Every matrix that can be to Q8_0."""
    for tensor in gguf.tensors:
        if tensor.type_id == F16 and tensor.shape[0] % 32 == 0:
            count = len(halves(tensor))
            tensor.data = q8_0(struct.unpack(f"<{count}e", tensor.data[: 2 * count]))
            tensor.type_id = Q8_0
    return gguf


class LatentAttention(harness.TestCase):
    def save(self, gguf, name="model.gguf"):
        return gguf_tool.write(gguf, self.path(name))

    def assert_axes(self, path, tokens, *base):
        expected = self.logits(path, tokens, *base)
        for flags in AXES[: 2 if harness.is_slow() else None]:
            with self.subTest(flags=" ".join(map(str, flags + base))):
                self.assert_same_logits(self.logits(path, tokens, *base, *flags), expected)
        return harness.floats(expected)

    def kv_bytes(self, path):
        return json.loads(self.ok("inspect", path, "--json").stdout)["kv_bytes_per_token_f32"]

    @manifest_present
    def test_the_cache_holds_one_latent_row_per_token_and_layer(self):
        for model_id, values in (("deepseek2", 3 * 80), ("mistral4", 3 * 80), ("glm-dsa", 3 * 80 + 2 * 64)):
            with self.subTest(model=model_id):
                self.assertEqual(self.kv_bytes(shared("golden", harness.golden_model(model_id)["file"])), 4 * values)

    @manifest_present
    def test_same_along_every_axis(self):
        for model_id in ("deepseek2", "deepseek2-lite", "mistral4", "glm-dsa"):
            for kv in ("q8_0", "f32")[: 1 if harness.is_slow() else 2]:
                with self.subTest(model=model_id):
                    self.assert_axes(shared("golden", harness.golden_model(model_id)["file"]), LONG, "--kv", kv)

    @manifest_present
    def test_files_with_attn_kv_b_in_one_part_give_the_same(self):
        for model_id in ("deepseek2", "deepseek2-lite", "mistral4"):
            with self.subTest(model=model_id):
                model = harness.golden_model(model_id)
                path = self.save(join_kv_b(read(model_id)))
                self.assertEqual(self.kv_bytes(path), 4 * 3 * 4 * (48 + 32))
                logits = harness.floats(self.logits(path, harness.golden_tokens(), *EXACT))
                reference = harness.floats(harness.read_bytes(shared("golden", model["exact"]["logits"])))
                difference = harness.Difference(logits, reference, model["n_vocab"], range(model["n_prompt"]))
                self.assertTrue(difference.within(model["tolerance"]["exact"]), str(difference))
                self.assert_axes(path, LONG)

    @manifest_present
    def test_either_form_of_attn_kv_b_gives_the_same_in_other_shapes(self):
        shapes = ((1, 64, 32, 32, 32, 32), (3, 32, 64, 96, 160, 64), (20, 48, 8, 64, 72, 40), (70, 32, 2, 32, 64, 32))
        for shape in shapes:
            with self.subTest(shape=shape):
                split = reshape(read("deepseek2"), *shape)
                tokens = LONG[:60]
                latent = self.assert_axes(self.save(split), tokens, *EXACT)
                expanded = harness.floats(self.logits(self.save(join_kv_b(split)), tokens, *EXACT))
                # At some positions the last bits may decide the choice of experts.
                differences = [abs(a - b) for a, b in zip(latent, expanded)]
                rows = [max(differences[i : i + 192]) for i in range(0, len(latent), 192)]
                self.assertLess(statistics.quantiles(rows, n=10)[7], 1e-3)
                self.assertGreater(max(latent) - min(latent), 1.0)

    @manifest_present
    def test_quantized_projections_of_heads(self):
        for model_id in ("deepseek2", "deepseek2-lite", "glm-dsa"):
            for joined in (False, True):
                if joined and model_id == "glm-dsa":
                    continue
                with self.subTest(model=model_id, joined=joined):
                    gguf = join_kv_b(read(model_id)) if joined else read(model_id)
                    path = self.save(quantize(gguf))
                    rounded = self.assert_axes(path, LONG[:90])
                    exact = harness.floats(self.logits(path, LONG[:90], *EXACT))
                    # Of logits with a deviation of 2; at some positions rounding changes the choice of experts.
                    difference = statistics.median(abs(a - b) for a, b in zip(rounded, exact))
                    self.assertGreater(difference, 0)
                    self.assertLess(difference, 0.2)

    @manifest_present
    def test_a_choice_of_all_cells_is_plain_attention(self):
        gguf = read("glm-dsa")
        set_value(gguf, "attention.indexer.top_k", 1000)
        plain = self.logits(self.save(gguf), LONG)
        set_value(gguf, "attention.indexer.top_k", 100)
        chosen = self.logits(self.save(gguf), LONG)
        row = 192 * 4
        self.assert_same_logits(chosen[: 100 * row], plain[: 100 * row])
        for position in range(100, len(LONG)):
            self.assertNotEqual(chosen[position * row : (position + 1) * row], plain[position * row : (position + 1) * row])

    @manifest_present
    def test_choices_of_any_size_do_not_depend_on_chunks(self):
        for top_k in (64, 169, 1, 5, 70)[: 2 if harness.is_slow() else 5]:
            gguf = read("glm-dsa")
            set_value(gguf, "attention.indexer.top_k", top_k)
            path = self.save(gguf)
            for kv in ("f16", "f32", "q8_0")[: 1 if harness.is_slow() else 3]:
                with self.subTest(top_k=top_k):
                    self.assert_axes(path, LONG, "--kv", kv)
            self.assert_same_logits(self.logits(path, LONG, "--ctx", len(LONG)), self.logits(path, LONG))

    @manifest_present
    def test_copies_of_an_index_in_layers_that_take_over_a_choice_are_of_no_use(self):
        gguf = read("glm-dsa")
        expected = self.logits(self.save(gguf), LONG)
        for tensor in [tensor for tensor in gguf.tensors if tensor.name.startswith("blk.0.indexer.")]:
            name = tensor.name.replace("blk.0.", "blk.1.")
            gguf.tensors.append(gguf_tool.Tensor(name, tensor.shape, tensor.type_id, tensor.data))
        self.assert_same_logits(self.logits(self.save(gguf), LONG), expected)

    def check_refused(self, gguf, word):
        line = self.fails("run", "-m", self.save(gguf), "--prompt-tokens", "1,2", "-n", 1, "--print", "tokens")
        self.assertIn(word, line)

    @manifest_present
    def test_numbers_that_do_not_fit_are_refused(self):
        cases = (
            ("deepseek2", "attention.kv_lora_rank", 0, "rank"),
            ("deepseek2", "attention.kv_lora_rank", 1 << 31, "rank"),
            ("deepseek2", "attention.kv_lora_rank", 32, "attn_kv_a_mqa"),
            ("deepseek2", "attention.q_lora_rank", 0, "attn_q.weight"),
            ("deepseek2", "attention.q_lora_rank", 1 << 31, "rank"),
            ("deepseek2", "attention.key_length_mla", 16, "head dimensions"),
            ("deepseek2", "attention.key_length_mla", 1 << 31, "head dimensions"),
            ("deepseek2", "attention.value_length_mla", 0, "attn_k_b"),
            ("deepseek2", "attention.value_length_mla", 64, "attn_v_b"),
            ("deepseek2", "attention.head_count", 0, "head"),
            ("deepseek2", "attention.head_count", 1 << 20, "attn_q_b"),
            ("deepseek2", "attention.head_count", 1 << 31, "range"),
            ("deepseek2", "rope.dimension_count", 15, "rope"),
            ("mistral4", "attention.temperature_length", 0, "temperature_length"),
            ("glm-dsa", "attention.indexer.head_count", 0, "indexer"),
            ("glm-dsa", "attention.indexer.head_count", 1 << 31, "indexer"),
            ("glm-dsa", "attention.indexer.key_length", 0, "indexer"),
            ("glm-dsa", "attention.indexer.key_length", 48, "indexer"),
            ("glm-dsa", "attention.indexer.key_length", 96, "indexer"),
            ("glm-dsa", "attention.indexer.key_length", 1 << 31, "indexer"),
            ("glm-dsa", "attention.indexer.top_k", 0, "top 0"),
            ("glm-dsa", "attention.q_lora_rank", 0, "attn_q.weight"),
        )
        for model_id, key, value, word in cases:
            with self.subTest(model=model_id, key=key, value=value):
                gguf = read(model_id)
                set_value(gguf, key, value)
                self.check_refused(gguf, word)
        for types in ([False, True, True], [True, True, True], [True, False]):
            with self.subTest(types=types):
                gguf = read("glm-dsa")
                set_value(gguf, "attention.indexer.types", (BOOL, types), ARRAY)
                self.check_refused(gguf, "indexer")
        gguf = read("deepseek2")
        set_value(gguf, "rope.scaling.factor", -40.0, F32_VALUE)
        self.check_refused(gguf, "rope.scaling")

    @manifest_present
    def test_missing_and_surplus_tensors_are_refused(self):
        for model_id, name in (
            ("deepseek2", "attn_k_b.weight"),
            ("deepseek2", "attn_v_b.weight"),
            ("deepseek2", "attn_q_a_norm.weight"),
            ("deepseek2-lite", "attn_q.weight"),
            ("glm-dsa", "indexer.k_norm.bias"),
        ):
            with self.subTest(model=model_id, name=name):
                gguf = read(model_id)
                gguf.tensors.remove(gguf.tensor("blk.2." + name))
                self.check_refused(gguf, "blk.2." + name)
        joined = join_kv_b(read("deepseek2"))
        gguf = read("deepseek2")
        gguf.tensors.append(joined.tensor("blk.1.attn_kv_b.weight"))
        self.check_refused(gguf, "blk.1.attn_kv_b.weight")


if __name__ == "__main__":
    harness.main()
