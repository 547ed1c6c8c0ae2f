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


class Refused(harness.TestCase):
    def refused(self, name, change):
        gguf = gguf_tool.read(golden(name))
        change(gguf)
        path = self.path(name + ".gguf")
        gguf_tool.write(gguf, path)
        return self.fails("run", "-m", path, "--prompt-tokens", "1,2", "-n", 1, "--print", "tokens")

    def check_numbers(self, name, keys):
        """Each key with numbers that no model has: one error that names what is wrong, never a crash."""
        for key in keys:
            for value in (0, 3, 1 << 31, (1 << 32) - 1):
                with self.subTest(model=name, key=key, value=value):

                    def change(gguf):
                        gguf.metadata[f"{name}.{key}"] = (gguf_tool.U32, value)

                    self.refused(name, change)

    @golden_present
    def test_numbers_out_of_range(self):
        ssm = [f"ssm.{key}" for key in ("inner_size", "state_size", "group_count", "time_step_rank", "conv_kernel")]
        for name in ("qwen3next", "qwen35moe"):
            self.check_numbers(name, ssm)

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
    def test_vectors_that_are_not_f32(self):
        def change(gguf):
            tensor = gguf.tensor("blk.0.ssm_norm.weight")
            tensor.type_id = 1
            tensor.data = struct.pack(f"<{tensor.shape[0]}e", *([1.0] * tensor.shape[0]))

        self.assertIn("ssm_norm", self.refused("qwen3next", change))


if __name__ == "__main__":
    harness.main()
