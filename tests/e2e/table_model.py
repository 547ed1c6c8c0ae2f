"""A model with a table that stays in the file, of which a token needs few rows."""

import os
import random
import unittest

import gguf_tool
from container import Container
from harness import shared

SOURCE = shared("golden", "base", "qwen4exp.gguf")
TABLE = "per_layer_token_embd.weight"
needed = unittest.skipUnless(os.path.exists(SOURCE), "no golden models")


def write(path):
    """The table is of Q8_0, so that rows lie across blocks. All tokens read row 481, the end of which is the start of block 1."""
    model, generator = gguf_tool.read(SOURCE), random.Random(7)
    table, scale = model.tensor(TABLE), bytes([0, 0x1C])
    table.type_id = 8
    table.data = b"".join(scale + generator.randbytes(32) for _ in range(table.shape[1]))
    model.metadata["qwen4exp.ple.head_offsets"] = (9, (10, [481, 251, 492, 731]))
    model.metadata["qwen4exp.ple.head_vocab_sizes"] = (9, (10, [1, 241, 239, 233]))
    gguf_tool.write(model, path)


def place(model, packed):
    """Where the table is in the packed model, and its bytes."""
    tensors = gguf_tool.read(model).tensors
    number = [tensor.name for tensor in tensors].index(TABLE)
    return Container(packed).trunk[number], tensors[number].n_bytes
