"""Headers that lie: every number of every architecture's metadata changed in turn, every key and every tensor left out in
turn. Penstock loads what still makes sense, and computes; it refuses the rest with one line. It never crashes, hangs or
takes more memory than it was given.

All of it takes minutes: a fixed sample runs unless PENSTOCK_ALL_HEADERS is set.
"""

import copy
import os
import sys
import zlib

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))

import gguf_tool
import harness
from harness import needs_shared, shared
from test_golden import supported_models

RAM = 64 << 20

U32, I32, F32, U64, STRING, ARRAY, BOOL = gguf_tool.U32, gguf_tool.I32, gguf_tool.F32, gguf_tool.U64, gguf_tool.STRING, gguf_tool.ARRAY, 7
I64, F64 = 11, 12
FLOATS = (F32, F64)
HUGE = {U32: 2**32 - 1, I32: 2**31 - 1, U64: 2**64 - 1, F32: 3e38, BOOL: True}


def changed_numbers(type_id, value):
    """(what was done, stored value) for a number or a truth value."""
    yield "a text", (STRING, str(value))
    yield "in an array", (ARRAY, (type_id, [value]))
    yield "in an array of arrays", (ARRAY, (ARRAY, [(type_id, [value])]))
    yield "0", (type_id, type(value)(0))
    if type_id == BOOL:
        yield "not", (BOOL, not value)
        yield "a number", (U32, 2)
        return
    yield "1", (type_id, type(value)(1))
    yield "-1", (F32, -1.0) if type_id in FLOATS else (I32, -1)
    yield "largest", (type_id, HUGE[type_id])
    yield "larger", (F64, 1e308) if type_id in FLOATS else (U64, 2**63 + 7)
    yield "halved", (type_id, value / 2 if type_id in FLOATS else value // 2)
    yield "doubled", (type_id, value * 2)
    if type_id in FLOATS:
        yield "not a number", (type_id, float("nan"))
        yield "infinite", (type_id, float("inf"))
        yield "tiny", (type_id, 1e-38)
    else:
        yield "one more", (type_id, value + 1)
        yield "one less", (type_id, max(0, value - 1))
        yield "a million", (type_id, 1000000)
        yield "a fraction", (F32, value + 0.5)


def changed_arrays(item_type, items):
    yield "empty", (ARRAY, (item_type, []))
    yield "short", (ARRAY, (item_type, items[:-1]))
    yield "long", (ARRAY, (item_type, items + items))
    yield "of texts", (ARRAY, (STRING, [str(item) for item in items]))
    yield "only its first", (item_type, items[0])
    yield "reversed", (ARRAY, (item_type, items[::-1]))
    for name, item in (("zeros", 0), ("ones", 1), ("largest", HUGE.get(item_type, 1)), ("a million", 1000000)):
        yield name, (ARRAY, (item_type, [bool(item) if item_type == BOOL else type(items[0])(item)] * len(items)))
    for at in (0, len(items) - 1):
        one = list(items)
        one[at] = not one[at] if item_type == BOOL else one[at] * 2 + 1
        yield f"item {at} changed", (ARRAY, (item_type, one))


def changes(content):
    """(name, function that changes a copy) for each header to try."""
    prefix = content.arch + "."

    def put(key, stored):
        return lambda copied: copied.metadata.__setitem__(key, stored)

    for key, (type_id, value) in content.metadata.items():
        yield f"{key}: left out", lambda copied, key=key: copied.metadata.pop(key)
        if not key.startswith(prefix):
            continue
        if type_id == STRING:
            variants = [("another", (STRING, "other")), ("empty", (STRING, "")), ("a number", (U32, 3))]
        else:
            variants = changed_arrays(*value) if type_id == ARRAY else changed_numbers(type_id, value)
        for name, stored in variants:
            yield f"{key}: {name}", put(key, stored)
    for at, tensor in enumerate(content.tensors):
        yield f"{tensor.name}: left out", lambda copied, at=at: copied.tensors.pop(at)
        for name, shape in (("narrower", [max(1, tensor.shape[0] // 2)] + tensor.shape[1:]), ("reversed", tensor.shape[::-1])):
            if shape != tensor.shape:
                yield f"{tensor.name}: {name}", lambda copied, at=at, shape=shape: setattr(copied.tensors[at], "shape", shape)
        if tensor.type_id == 0:
            yield f"{tensor.name}: in f16", lambda copied, at=at: setattr(copied.tensors[at], "type_id", 1)


def is_ffn(name):
    return "ffn_" in name and "norm" not in name or "exp_probs" in name


def is_attention(name):
    return "attn_" in name and "attn_norm" not in name and "attn_output" not in name


def missing_branches(content):
    """As changes; a layer without FFN or without attention, and numbers that agree with it."""

    def leave_out(is_part, il, key, stored):
        def change(copied):
            copied.tensors = [t for t in copied.tensors if not (t.name.startswith(f"blk.{il}.") and is_part(t.name))]
            copied.metadata.pop(f"{content.arch}.{key}", None)
            if stored:
                copied.metadata[f"{content.arch}.{key}"] = stored

        return change

    for il in (0, 1):
        for stored in (None, (U32, 0), (U32, 5)):
            yield f"layer {il} without FFN, of width {stored}", leave_out(is_ffn, il, "feed_forward_length", stored)
        yield f"layer {il} without attention", leave_out(is_attention, il, "attention.head_count_kv", (U32, 0))
    yield "without experts", leave_out(is_ffn, 1, "expert_count", (U32, 0))


class HostileHeaders(harness.TestCase):
    def check(self, path):
        # Two tokens, then a third with what the first two left.
        command = harness.logits_command(path, [1, 2, 3], "--chunk", 2, "--ram", RAM, "--ctx", 16)
        result = harness.run(*command, timeout=None if harness.is_slow() else 30)
        self.assert_clean(result)
        self.assertIn(result.code, (0, 1), str(result))
        if result.code == 1:
            line = self.assert_one_error(result, 1)
            self.assertEqual(result.message, line + "\n", str(result))
        if not harness.options.sanitizer:
            self.assertLess(result.peak_rss, RAM + (16 << 20), str(result))

    def check_all(self, make, one_in):
        for model in supported_models():
            if model["kind"] != "base" or model["id"].endswith(("-BF16", "-F32")):
                continue
            content = gguf_tool.read(shared("golden", model["file"]))
            path = self.path("changed.gguf")
            for name, change in make(content):
                if zlib.crc32(f"{model['id']}/{name}".encode()) % one_in:
                    continue
                copied = gguf_tool.Gguf(dict(content.metadata), [copy.copy(tensor) for tensor in content.tensors])
                change(copied)
                gguf_tool.write(copied, path)
                with self.subTest(model=model["id"], change=name):
                    self.check(path)

    @needs_shared("golden", "manifest.json")
    def test_changed_headers_are_computed_or_refused(self):
        one_in = 160 if harness.is_slow() else 16
        self.check_all(changes, 1 if os.environ.get("PENSTOCK_ALL_HEADERS") else one_in)

    @needs_shared("golden", "manifest.json")
    def test_layers_without_a_branch_are_computed_or_refused(self):
        self.check_all(missing_branches, 12 if harness.is_slow() else 1)


if __name__ == "__main__":
    harness.main()
