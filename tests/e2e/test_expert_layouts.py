"""The three ways in which files store experts give the same logits: stacked, gate and up fused, one tensor per expert."""

import harness
import gguf_tool
from harness import BUNDLED_MODEL

TOKENS = ",".join(str(7 * i % 2048) for i in range(1, 20))


def slices(tensor):
    n = tensor.shape[2]
    size = len(tensor.data) // n
    return [tensor.data[i * size : (i + 1) * size] for i in range(n)]


def fuse_gate_and_up(model):
    tensors = []
    for tensor in model.tensors:
        if tensor.name.endswith("ffn_up_exps.weight"):
            continue
        if tensor.name.endswith("ffn_gate_exps.weight"):
            up = model.tensor(tensor.name.replace("gate", "up"))
            columns, rows, n = tensor.shape
            data = b"".join(g + u for g, u in zip(slices(tensor), slices(up)))
            name = tensor.name.replace("ffn_gate_exps", "ffn_gate_up_exps")
            tensor = gguf_tool.Tensor(name, [columns, 2 * rows, n], tensor.type_id, data)
        tensors.append(tensor)
    return gguf_tool.Gguf(model.metadata, tensors)


def one_tensor_per_expert(model):
    tensors = []
    for tensor in model.tensors:
        if "_exps.weight" not in tensor.name:
            tensors.append(tensor)
            continue
        for i, data in enumerate(slices(tensor)):
            name = tensor.name.replace("_exps.weight", f".{i}.weight")
            tensors.append(gguf_tool.Tensor(name, list(tensor.shape[:2]), tensor.type_id, data))
    return gguf_tool.Gguf(model.metadata, tensors)


class ExpertLayouts(harness.TestCase):
    def logits(self, path, *flags):
        out = self.path("logits.f32")
        self.ok("eval", "logits", "-m", path, "--tokens", TOKENS, "-o", out, *flags)
        return harness.read_bytes(out)

    def check(self, convert):
        expected = self.logits(BUNDLED_MODEL)
        path = self.path("converted.gguf")
        gguf_tool.write(convert(gguf_tool.read(BUNDLED_MODEL)), path)
        self.assertEqual(self.logits(path), expected)
        command = ("eval", "logits", "-m", path, "--tokens", TOKENS, "-o", self.path("x"), "--chunk", "5")
        budget = harness.smallest_budget(*command)
        self.assertEqual(self.logits(path, "--ram", budget, "--chunk", "5"), expected)

    def test_fused_gate_and_up(self):
        self.check(fuse_gate_and_up)

    def test_one_tensor_per_expert(self):
        self.check(one_tensor_per_expert)


if __name__ == "__main__":
    harness.main()
