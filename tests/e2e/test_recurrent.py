"""Models with recurrent layers: tensors that files hold in other ways, and files that do not fit together.

A golden model is rewritten so that its mathematics stays the same; then its logits do, too.
"""

import struct

import gguf_tool
import harness
from harness import shared

TOKENS = [(7 * i * i + 31 * i + 5) % 190 + 1 for i in range(40)]
EXACT = ("--activations", "f32")

golden_present = harness.needs_shared("golden", "base")


def golden(name):
    return shared("golden", "base", name + ".gguf")


def rows_of(tensor):
    """The rows of a matrix as bytes."""
    n_rows = tensor.shape[1]
    size = len(tensor.data) // n_rows
    return [tensor.data[i * size : (i + 1) * size] for i in range(n_rows)]


class Layouts(harness.TestCase):
    def rewritten(self, name, change):
        gguf = gguf_tool.read(golden(name))
        change(gguf)
        path = self.path(name + ".gguf")
        gguf_tool.write(gguf, path)
        return path

    def check_same(self, name, change, *flags):
        expected = self.logits(golden(name), TOKENS, *flags)
        self.assert_same_logits(self.logits(self.rewritten(name, change), TOKENS, *flags), expected)

    @golden_present
    def test_qwen3next_products_of_one_tensor_by_key_head(self):
        # As the first converters wrote them: per key head its rows of q, k, v and z.
        def fuse(gguf):
            groups = gguf.value("qwen3next.ssm.group_count")
            key = gguf.value("qwen3next.ssm.state_size")
            values = gguf.value("qwen3next.ssm.inner_size") // groups
            for qkv in [t for t in gguf.tensors if t.name.endswith("attn_qkv.weight")]:
                gate = gguf.tensor(qkv.name.replace("attn_qkv", "attn_gate"))
                rows, z = rows_of(qkv), rows_of(gate)
                fused = []
                for head in range(groups):
                    q, k, v = head * key, groups * key + head * key, 2 * groups * key + head * values
                    fused += rows[q : q + key] + rows[k : k + key] + rows[v : v + values]
                    fused += z[head * values : (head + 1) * values]
                qkv.name = qkv.name.replace("attn_qkv", "ssm_in")
                qkv.shape = [qkv.shape[0], len(fused)]
                qkv.data = b"".join(fused)
                gguf.tensors.remove(gate)

        self.check_same("qwen3next", fuse)
        self.check_same("qwen3next", fuse, *EXACT, "--chunk", 1)

    @golden_present
    def test_nemotron_experts_on_a_latent_row(self):
        # A row of 128 that holds the 96 values elsewhere, and experts whose columns and rows moved along with them.
        width, latent = 96, 128
        place = [(7 * i + 3) % latent for i in range(width)]

        def change(gguf):
            gguf.metadata["nemotron_h_moe.moe_latent_size"] = (gguf_tool.U32, latent)
            for up in [t for t in gguf.tensors if t.name.endswith("ffn_up_exps.weight")]:
                layer = up.name.split(".")[1]
                self.move_experts(up, gguf.tensor(f"blk.{layer}.ffn_down_exps.weight"), place, latent)
                down_rows = [[1.0 if place[i] == j else 0.0 for i in range(width)] for j in range(latent)]
                up_rows = [[1.0 if place[i] == j else 0.0 for j in range(latent)] for i in range(width)]
                for name, rows in (("down", down_rows), ("up", up_rows)):
                    data = b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)
                    name = f"blk.{layer}.ffn_latent_{name}.weight"
                    gguf.tensors.append(gguf_tool.Tensor(name, [len(rows[0]), len(rows)], 0, data))

        path = self.rewritten("nemotron_h_moe", change)
        expected, their_experts = self.logits(golden("nemotron_h_moe"), TOKENS, *EXACT, experts=True)
        logits, experts = self.logits(path, TOKENS, *EXACT, experts=True)
        self.assertEqual(experts, their_experts)
        pairs = zip(harness.floats(logits), harness.floats(expected))
        self.assertLess(max(abs(a - b) for a, b in pairs), 1e-4)  # sums run in another order
        self.assert_same_logits(self.logits(path, TOKENS, *EXACT, "--chunk", 1), logits)
        self.assert_same_logits(
            self.logits(path, TOKENS, "--chunk", 1), self.logits(path, TOKENS, "--chunk", 9, "--threads", 3)
        )

    @golden_present
    def test_nemotron_layer_without_experts(self):
        # The shared expert as a dense FFN, beside experts that give nothing but a constant row.
        shift = [0.01 * (i % 7 - 3) for i in range(96)]
        scale = 2.5  # of the sum of an expert's weights, which is 1

        def constant_experts(gguf):
            down = gguf.tensor("blk.3.ffn_down_exps.weight")
            down.data = bytes(len(down.data))
            n_experts = down.shape[2]
            data = struct.pack("<96f", *(x / scale for x in shift)) * n_experts
            gguf.tensors.append(gguf_tool.Tensor("blk.3.ffn_down_exps.bias", [96, n_experts], 0, data))

        def dense(gguf):
            for side in ("up", "down"):
                gguf.tensors.remove(gguf.tensor(f"blk.3.ffn_{side}_exps.weight"))
                gguf.tensor(f"blk.3.ffn_{side}_shexp.weight").name = f"blk.3.ffn_{side}.weight"
            gguf.tensors.remove(gguf.tensor("blk.3.ffn_gate_inp.weight"))
            gguf.tensors.remove(gguf.tensor("blk.3.exp_probs_b.bias"))
            gguf.tensors.append(gguf_tool.Tensor("blk.3.ffn_up.bias", [96], 0, bytes(4 * 96)))
            gguf.tensors.append(gguf_tool.Tensor("blk.3.ffn_down.bias", [96], 0, struct.pack("<96f", *shift)))
            item_type, widths = gguf.metadata["nemotron_h_moe.feed_forward_length"][1]
            gguf.metadata["nemotron_h_moe.feed_forward_length"] = (gguf_tool.ARRAY, (item_type, [*widths[:3], 96]))

        expected = harness.floats(self.logits(self.rewritten("nemotron_h_moe", constant_experts), TOKENS, *EXACT))
        logits = harness.floats(self.logits(self.rewritten("nemotron_h_moe", dense), TOKENS, *EXACT))
        self.assertLess(max(abs(a - b) for a, b in zip(logits, expected)), 1e-4)

    @golden_present
    def test_pairs_of_no_section_are_not_rotated(self):
        # An infinite divisor of its frequency keeps a pair still, too.
        def sections(values, divisors):
            def change(gguf):
                item_type = gguf.metadata["qwen35moe.rope.dimension_sections"][1][0]
                gguf.metadata["qwen35moe.rope.dimension_sections"] = (gguf_tool.ARRAY, (item_type, values))
                data = struct.pack("<8f", *divisors)
                gguf.tensors.append(gguf_tool.Tensor("rope_freqs.weight", [8], 0, data))

            return self.logits(self.rewritten("qwen35moe", change), TOKENS)

        still = float("inf")
        self.assert_same_logits(sections([0, 0, 0, 1], [1] * 8), sections([3, 3, 3, 0], [still] * 8))
        third = [1, 1, still, 1, 1, still, 1, 1]  # axis 2 has no pairs
        self.assert_same_logits(sections([3, 3, 0, 2], [1] * 8), sections([3, 3, 3, 0], third))
        self.assertNotEqual(sections([3, 3, 3, 0], [1] * 8), sections([3, 3, 3, 0], third))

    @staticmethod
    def move_experts(up, down, place, latent):
        """F16 experts [n_experts][n_ff][width] and [n_experts][width][n_ff] to a width of latent."""
        (width, n_ff, n_experts), value = up.shape, 2
        out = bytearray(n_experts * n_ff * latent * value)
        for row in range(n_experts * n_ff):
            for i in range(width):
                at, to = (row * width + i) * value, (row * latent + place[i]) * value
                out[to : to + value] = up.data[at : at + value]
        up.data, up.shape = bytes(out), [latent, n_ff, n_experts]
        out = bytearray(n_experts * n_ff * latent * value)
        for expert in range(n_experts):
            for i in range(width):
                at, to = (expert * width + i) * n_ff * value, (expert * latent + place[i]) * n_ff * value
                out[to : to + n_ff * value] = down.data[at : at + n_ff * value]
        down.data, down.shape = bytes(out), [n_ff, latent, n_experts]


class Refused(harness.TestCase):
    def refused(self, name, change):
        gguf = gguf_tool.read(golden(name))
        change(gguf)
        path = self.path(name + ".gguf")
        gguf_tool.write(gguf, path)
        return self.fails("run", "-m", path, "--prompt-tokens", "1,2", "-n", 1, "--print", "tokens")

    def check_numbers(self, name, keys, but=()):
        """Each key with numbers that no model has: one error that names what is wrong, never a crash."""
        for key in keys:
            for value in (0, 5, 1 << 31, (1 << 32) - 1):
                if (key, value) in but:
                    continue
                with self.subTest(model=name, key=key, value=value):

                    def change(gguf):
                        gguf.metadata[f"{name}.{key}"] = (gguf_tool.U32, value)

                    self.refused(name, change)

    @golden_present
    def test_numbers_out_of_range(self):
        ssm = [f"ssm.{key}" for key in ("inner_size", "state_size", "group_count", "time_step_rank", "conv_kernel")]
        for name in ("qwen3next", "qwen35moe"):
            self.check_numbers(name, ssm)
        self.check_numbers("lfm2moe", ["shortconv.l_cache"])
        self.check_numbers("kimi-linear", ["ssm.conv_kernel", "kda.head_dim", "attention.head_count"])
        self.check_numbers("nemotron_h_moe", [*ssm, "moe_latent_size"], but=[("moe_latent_size", 0)])

    @golden_present
    def test_a_recurrent_layer_without_its_tensors(self):
        def drop(suffix):
            def change(gguf):
                gguf.tensors = [t for t in gguf.tensors if t.name != "blk.0." + suffix]

            return change

        for suffix in ("attn_qkv.weight", "attn_gate.weight", "ssm_conv1d.weight", "ssm_a", "ssm_ba.weight"):
            self.assertIn("blk.0." + suffix, self.refused("qwen3next", drop(suffix)))

    @golden_present
    def test_an_interval_of_zero(self):
        def change(gguf):
            gguf.metadata["qwen3next.full_attention_interval"] = (gguf_tool.U32, 0)

        self.assertIn("full_attention_interval", self.refused("qwen3next", change))

    @golden_present
    def test_a_product_for_a_latent_row_without_the_other(self):
        def change(gguf):
            data = struct.pack("<9216f", *([0.0] * 9216))
            gguf.tensors.append(gguf_tool.Tensor("blk.1.ffn_latent_down.weight", [96, 96], 0, data))

        self.assertIn("blk.1.ffn_latent_up.weight", self.refused("nemotron_h_moe", change))

    @golden_present
    def test_sections_of_nothing(self):
        def change(gguf):
            item_type = gguf.metadata["qwen35moe.rope.dimension_sections"][1][0]
            gguf.metadata["qwen35moe.rope.dimension_sections"] = (gguf_tool.ARRAY, (item_type, [0] * 4))

        self.assertIn("dimension_sections", self.refused("qwen35moe", change))

    @golden_present
    def test_vectors_that_are_not_f32(self):
        def change(gguf):
            tensor = gguf.tensor("blk.0.ssm_norm.weight")
            n = len(tensor.data) // 4
            tensor.type_id = 1
            tensor.data = struct.pack(f"<{n}e", *([1.0] * n))

        for name in ("qwen3next", "nemotron_h_moe"):
            self.assertIn("ssm_norm", self.refused(name, change))


if __name__ == "__main__":
    harness.main()
