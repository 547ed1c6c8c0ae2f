"""Reads a GGUF file into plain lists, and writes it back after a test has changed them.

Values keep their stored type, tensors their raw bytes, so that what is written differs from what was read only by
the change. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little-endian).
"""

import math
import struct

STRING, ARRAY = 8, 9
U16, U32, I32, F32, U64 = 2, 4, 5, 6, 10
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
DEFAULT_ALIGNMENT = 32

# (values, bytes) of a block of the types that tests write without data
_BLOCKS = {0: (1, 4), 1: (1, 2), 8: (32, 34), 12: (256, 144), 14: (256, 210), 20: (32, 18), 26: (1, 4), 39: (32, 17)}


class Tensor:
    """Without data it takes up its room in a file that is written by write_sparse."""

    def __init__(self, name, shape, type_id, data=None):
        self.name = name
        self.shape = shape  # innermost dimension first, as stored
        self.type_id = type_id
        self.data = data
        self.false_offset = None  # written instead of the right one

    @property
    def n_values(self):
        return math.prod(self.shape)

    @property
    def n_bytes(self):
        if self.data is not None:
            return len(self.data)
        values, size = _BLOCKS[self.type_id]
        assert self.shape[0] % values == 0, (self.name, self.shape, self.type_id)
        return self.n_values // values * size


class Gguf:
    """metadata: {key: (type, value)}, an array's value being (item type, items)."""

    def __init__(self, metadata, tensors, header_bytes=0):
        self.metadata = metadata
        self.tensors = tensors
        self.header_bytes = header_bytes

    def value(self, key, default=None):
        stored = self.metadata.get(key)
        if stored is None:
            return default
        return stored[1][1] if stored[0] == ARRAY else stored[1]

    @property
    def arch(self):
        return self.value("general.architecture")

    def tensor(self, name):
        return next(tensor for tensor in self.tensors if tensor.name == name)


class _Reader:
    def __init__(self, data):
        self.data = data
        self.at = 0

    def scalar(self, code):
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self):
        length = self.scalar("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "surrogateescape")

    def value(self, type_id):
        if type_id == STRING:
            return self.string()
        if type_id == ARRAY:
            item_type, count = self.scalar("I"), self.scalar("Q")
            return item_type, [self.value(item_type) for _ in range(count)]
        return self.scalar(_SCALARS[type_id])


def _align(position, alignment):
    return (position + alignment - 1) // alignment * alignment


def read(path):
    with open(path, "rb") as file:
        reader = _Reader(file.read())
    magic, version = reader.scalar("4s"), reader.scalar("I")
    assert magic == b"GGUF" and version == 3, path
    n_tensors, n_metadata = reader.scalar("Q"), reader.scalar("Q")
    metadata = {}
    for _ in range(n_metadata):
        key = reader.string()
        type_id = reader.scalar("I")
        metadata[key] = (type_id, reader.value(type_id))
    rows = []
    for _ in range(n_tensors):
        name = reader.string()
        shape = [reader.scalar("Q") for _ in range(reader.scalar("I"))]
        rows.append((name, shape, reader.scalar("I"), reader.scalar("Q")))
    alignment = metadata.get("general.alignment", (U32, DEFAULT_ALIGNMENT))[1]
    start = _align(reader.at, alignment)
    # A tensor's bytes end where the next one begins: types need no size table here, and padding travels along.
    ends = sorted(row[3] for row in rows)[1:] + [len(reader.data) - start]
    end_of = dict(zip(sorted(row[3] for row in rows), ends))
    tensors = [
        Tensor(name, shape, type_id, reader.data[start + offset : start + end_of[offset]])
        for name, shape, type_id, offset in rows
    ]
    return Gguf(metadata, tensors, start)


def _pack_string(text):
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _pack_value(type_id, value):
    if type_id == STRING:
        return _pack_string(value)
    if type_id == ARRAY:
        item_type, items = value
        return struct.pack("<IQ", item_type, len(items)) + b"".join(_pack_value(item_type, item) for item in items)
    return struct.pack("<" + _SCALARS[type_id], value)


def _header(gguf, n_tensors=None, n_metadata=None, version=3, magic=b"GGUF"):
    """What comes before the data, padded, and the size of the data."""
    alignment = gguf.value("general.alignment", DEFAULT_ALIGNMENT)
    head = [
        magic,
        struct.pack(
            "<IQQ",
            version,
            len(gguf.tensors) if n_tensors is None else n_tensors,
            len(gguf.metadata) if n_metadata is None else n_metadata,
        ),
    ]
    for key, (type_id, value) in gguf.metadata.items():
        head += [_pack_string(key), struct.pack("<I", type_id), _pack_value(type_id, value)]
    offset = 0
    for tensor in gguf.tensors:
        stated = offset if tensor.false_offset is None else tensor.false_offset
        dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        head += [_pack_string(tensor.name), dimensions, struct.pack("<IQ", tensor.type_id, stated)]
        offset += _align(tensor.n_bytes, alignment)
    header = b"".join(head)
    return header + bytes(_align(len(header), alignment) - len(header)), offset


def to_bytes(gguf, **false_values):
    """The file. The counts, version and magic may be given false values, to make a malformed one."""
    alignment = gguf.value("general.alignment", DEFAULT_ALIGNMENT)
    parts = [_header(gguf, **false_values)[0]]
    for tensor in gguf.tensors:
        parts += [tensor.data, bytes(_align(len(tensor.data), alignment) - len(tensor.data))]
    return b"".join(parts)


def write_sparse(gguf, path):
    """A file of the right size in which only the header takes up room: its data are holes. Returns its size."""
    header, n_data = _header(gguf)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + n_data)
    return len(header) + n_data


def write(gguf, path, **false_values):
    with open(path, "wb") as file:
        file.write(to_bytes(gguf, **false_values))
    return path


def split(gguf, prefix, n_parts, metadata_only_first=False):
    """Writes the model as prefix-00001-of-0000N.gguf and so on, the way llama-gguf-split does. Returns the paths."""
    n_data = n_parts - 1 if metadata_only_first else n_parts
    groups = [gguf.tensors[i * len(gguf.tensors) // n_data : (i + 1) * len(gguf.tensors) // n_data] for i in range(n_data)]
    if metadata_only_first:
        groups.insert(0, [])
    paths = []
    for number, tensors in enumerate(groups):
        metadata = dict(gguf.metadata) if number == 0 else {}
        metadata["split.no"] = (U16, number)
        metadata["split.count"] = (U16, n_parts)
        metadata["split.tensors.count"] = (I32, len(gguf.tensors))
        paths.append(write(Gguf(metadata, tensors), f"{prefix}-{number + 1:05d}-of-{n_parts:05d}.gguf"))
    return paths


class SentencePieceTokenizer:
    """A plain SentencePiece BPE encoder for "llama" vocabularies, to know the ids behind a prompt's text."""

    def __init__(self, gguf):
        self.pieces = gguf.value("tokenizer.ggml.tokens")
        self.scores = gguf.value("tokenizer.ggml.scores")
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}

    def encode(self, text):
        symbols = list(("\u2581" + text).replace(" ", "\u2581"))
        while True:
            pairs = [
                (-self.scores[self.ids[left + right]], i)
                for i, (left, right) in enumerate(zip(symbols, symbols[1:]))
                if left + right in self.ids
            ]
            if not pairs:
                break
            _, i = min(pairs)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        ids = []
        for symbol in symbols:
            fallback = [self.ids[f"<0x{byte:02X}>"] for byte in symbol.encode()] if symbol not in self.ids else []
            ids += fallback or [self.ids[symbol]]
        return ids

    def decode(self, ids):
        data = b""
        for i in ids:
            piece = self.pieces[i]
            is_byte = len(piece) == 6 and piece.startswith("<0x")
            data += bytes([int(piece[3:5], 16)]) if is_byte else piece.replace("\u2581", " ").encode()
        return data.decode("utf-8", "replace")
