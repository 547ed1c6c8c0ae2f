"""Packed containers as storage/packed.h describes them."""

import json
import os
import struct

ALIGN = 4096
BLOCK = 16384  # of a trunk tensor, with a checksum of its own


class Container:
    """What a test has to know of a container, from the description in storage/packed.h."""

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            block = file.read(ALIGN)
            magic, _, n_files = struct.unpack_from("<8sII", block)
            assert magic == b"penstock"
            self.header_at, self.header_bytes, _, self.index_at, self.index_bytes, _ = struct.unpack_from("<6Q", block, 40)
            file.seek(self.index_at)
            index = file.read(self.index_bytes)
        _, n_tensors, n_layers, n_shards, n_blocks = struct.unpack_from("<4IQ", index)
        at = 24
        self.files = []
        for _ in range(n_files):
            _, length = struct.unpack_from("<QI", index, at)
            name = index[at + 12 : at + 12 + length].decode()
            self.files.append(os.path.join(os.path.dirname(path), name) if name else path)
            at += 12 + length
        at = (at + 7) // 8 * 8
        self.trunk = [struct.unpack_from("<QQ", index, at + 16 * i)[0] for i in range(n_tensors)]
        at += 16 * n_tensors + 8 * n_blocks
        self.codecs = [index[at + 16 * i : at + 16 * i + 12] for i in range(n_layers)]
        at += 16 * n_layers
        self.extents = []  # (file, offset, bytes)
        for i in range(n_shards):
            file, _, offset, size, _ = struct.unpack_from("<IIQQQ", index, at + 32 * i)
            self.extents.append((file, offset, size))
        at += 32 * n_shards
        (note_bytes,) = struct.unpack_from("<Q", index, at)
        self.note = json.loads(index[at + 8 : at + 8 + note_bytes])

    @property
    def is_compressed(self):
        return any(any(codecs) for codecs in self.codecs)
