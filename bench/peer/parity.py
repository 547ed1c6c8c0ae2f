#!/usr/bin/env python3
"""Logits of penstock and of llama.cpp v0.5.0, side by side, on random models of other shapes than the golden ones.

    bench/peer/parity.py GOLDEN_BASE_FOLDER [--arch NAME]... [--count N] [--seed S] [--formats] [--keep FOLDER]

For each golden model of an architecture, N models of the same layers but other widths, heads, experts, windows and weights,
all in F32, are written and given to both engines: 48 tokens, K and V in F32. Both compute the same function, so logits may differ
by rounding alone; where a router's choice is nearly a tie, a position may differ for good, so a tenth of the positions may.
With --formats penstock gets the matrices in a mix of F16, BF16, Q8_0 and Q4_0 and keeps activations in F32, llama.cpp the same values
in F32. Needs what bench/peer/run.sh needs. Exit code 1: some model differs.
"""

import argparse
import array
import math
import os
import random
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))

import gguf_tool

N_TOKENS = 48
F32, F16, Q4_0, Q8_0, I32, BF16 = 0, 1, 2, 8, 26, 30
EXACT = 2e-4  # largest difference of a logit, for logits that spread by about 2
EXACT_BY_ARCH = {"gemma4": 2e-2}  # llama.cpp looks GELU up by an argument rounded to F16

# Widths by the golden models' own tensor names. c: see Config; l: a layer's numbers.
SHAPES = {
    "token_embd.weight": lambda c, l: [c.E, c.V],
    "output.weight": lambda c, l: [c.E, c.V],
    "output.bias": lambda c, l: [c.V],
    "output_norm.weight": lambda c, l: [c.E],
    "output_norm.bias": lambda c, l: [c.E],
    "token_embd_norm.weight": lambda c, l: [c.E],
    "rope_freqs.weight": lambda c, l: [c.n_rot_freqs // 2],
    "rope_factors_long.weight": lambda c, l: [c.n_rot // 2],
    "rope_factors_short.weight": lambda c, l: [c.n_rot // 2],
    "attn_norm.weight": lambda c, l: [c.E],
    "attn_norm.bias": lambda c, l: [c.E],
    "attn_q.weight": lambda c, l: [c.E, l.q],
    "attn_k.weight": lambda c, l: [c.E, l.k],
    "attn_v.weight": lambda c, l: [c.E, l.v],
    "attn_qkv.weight": lambda c, l: [c.E, l.qkv],
    "attn_q.bias": lambda c, l: [l.q],
    "attn_k.bias": lambda c, l: [l.k],
    "attn_v.bias": lambda c, l: [l.v],
    "attn_q_norm.weight": lambda c, l: [l.q if c.norm_rows else l.dk],
    "attn_k_norm.weight": lambda c, l: [l.k if c.norm_rows else l.dk],
    "attn_sinks.weight": lambda c, l: [l.h],
    "attn_gate.weight": lambda c, l: [c.E, l.h if c.arch == "step35" else c.inner if l.recurrent else l.h * l.dv],
    "attn_output.weight": lambda c, l: [l.out, c.E],
    "attn_output.bias": lambda c, l: [c.E],
    "attn_q_a.weight": lambda c, l: [c.E, c.q_rank],
    "attn_q_a_norm.weight": lambda c, l: [c.q_rank],
    "attn_q_b.weight": lambda c, l: [c.q_rank, l.h * c.mla_k],
    "attn_kv_a_mqa.weight": lambda c, l: [c.E, c.kv_rank + c.n_rot],
    "attn_kv_a_norm.weight": lambda c, l: [c.kv_rank],
    "attn_k_b.weight": lambda c, l: [c.mla_k - c.n_rot, c.kv_rank, l.h],
    "attn_v_b.weight": lambda c, l: [c.kv_rank, c.mla_v, l.h],
    "indexer.k_norm.weight": lambda c, l: [c.index_dim],
    "indexer.k_norm.bias": lambda c, l: [c.index_dim],
    "indexer.proj.weight": lambda c, l: [c.E, c.index_heads],
    "indexer.attn_k.weight": lambda c, l: [c.E, c.index_dim],
    "indexer.attn_q_b.weight": lambda c, l: [c.q_rank, c.index_heads * c.index_dim],
    "ffn_norm.weight": lambda c, l: [c.E],
    "ffn_norm.bias": lambda c, l: [c.E],
    "post_attention_norm.weight": lambda c, l: [c.E],
    "post_ffw_norm.weight": lambda c, l: [c.E],
    "post_ffw_norm_1.weight": lambda c, l: [c.E],
    "post_ffw_norm_2.weight": lambda c, l: [c.E],
    "pre_ffw_norm_2.weight": lambda c, l: [c.E],
    "layer_output_scale.weight": lambda c, l: [1],
    "ffn_gate.weight": lambda c, l: [c.E, c.FF],
    "ffn_up.weight": lambda c, l: [c.E, c.FF],
    "ffn_down.weight": lambda c, l: [c.FF, c.E],
    "ffn_gate_inp.weight": lambda c, l: [c.E, c.N],
    "ffn_gate_inp.bias": lambda c, l: [c.N],
    "ffn_gate_inp.scale": lambda c, l: [c.E],
    "exp_probs_b.bias": lambda c, l: [c.N],
    "ffn_gate_exps.weight": lambda c, l: [c.E, c.FX, c.N],
    "ffn_up_exps.weight": lambda c, l: [c.E, c.FX, c.N],
    "ffn_down_exps.weight": lambda c, l: [c.FX, c.E, c.N],
    "ffn_gate_up_exps.weight": lambda c, l: [c.E, 2 * c.FX, c.N],
    "ffn_gate_exps.bias": lambda c, l: [c.FX, c.N],
    "ffn_up_exps.bias": lambda c, l: [c.FX, c.N],
    "ffn_down_exps.bias": lambda c, l: [c.E, c.N],
    "ffn_down_exps.scale": lambda c, l: [c.N],
    "ffn_gate_inp_shexp.weight": lambda c, l: [c.E],
    "ffn_gate_shexp.weight": lambda c, l: [c.E, c.FS],
    "ffn_up_shexp.weight": lambda c, l: [c.E, c.FS],
    "ffn_down_shexp.weight": lambda c, l: [c.FS, c.E],
    "ssm_conv1d.weight": lambda c, l: [c.taps, c.conv_width],
    "ssm_conv1d.bias": lambda c, l: [c.conv_width],
    "ssm_dt.bias": lambda c, l: [c.h * c.kda if c.kda else c.v_heads],
    "ssm_a": lambda c, l: [1, c.h] if c.kda else [1, c.v_heads] if c.mamba else [c.v_heads],
    "ssm_d": lambda c, l: [1, c.v_heads],
    "ssm_ba.weight": lambda c, l: [c.E, 2 * c.v_heads],
    "ssm_beta.weight": lambda c, l: [c.E, c.h if c.kda else c.v_heads],
    "ssm_alpha.weight": lambda c, l: [c.E, c.v_heads],
    "ssm_norm.weight": lambda c, l: [c.kda] if c.kda else [c.inner // c.groups, c.groups] if c.mamba else [c.state],
    "ssm_in.weight": lambda c, l: [c.E, 2 * c.inner + 2 * c.groups * c.state + c.v_heads],
    "ssm_out.weight": lambda c, l: [c.inner, c.E],
    "ssm_conv1d_q.weight": lambda c, l: [c.taps, 1, c.h * c.kda, 1],
    "ssm_conv1d_k.weight": lambda c, l: [c.taps, 1, c.h * c.kda, 1],
    "ssm_conv1d_v.weight": lambda c, l: [c.taps, 1, c.h * c.kda, 1],
    "ssm_f_a.weight": lambda c, l: [c.E, c.kda],
    "ssm_f_b.weight": lambda c, l: [c.kda, c.h * c.kda],
    "ssm_g_a.weight": lambda c, l: [c.E, c.kda],
    "ssm_g_b.weight": lambda c, l: [c.kda, c.h * c.kda],
    "nextn.eh_proj.weight": lambda c, l: [2 * c.E, c.E],
    "nextn.enorm.weight": lambda c, l: [c.E],
    "nextn.hnorm.weight": lambda c, l: [c.E],
    "nextn.shared_head_norm.weight": lambda c, l: [c.E],
    "shortconv.in_proj.weight": lambda c, l: [c.E, 3 * c.E],
    "shortconv.conv.weight": lambda c, l: [c.taps, c.E],
    "shortconv.out_proj.weight": lambda c, l: [c.E, c.E],
}

NORM_ROWS = {"olmoe", "minimax-m2"}
SQUARE = {"olmoe", "qwen2moe", "bailingmoe2", "lfm2moe", "phimoe"}  # heads x head size is the embedding's width
SAME_SHAPES = {"deepseek4", "qwen4exp"}  # other weights only
UNGROUPED = {"olmoe", "dots1"}  # as many KV heads as heads
GATED_Q = {"qwen3next", "qwen35moe"}
TIED_WIDTHS = {"llama", "hunyuan-moe", "granitemoe", "phimoe", "olmoe", "minimax-m2"}  # experts have the dense width's key


class Layer:
    pass


class Config:
    """New sizes for a golden file, written into its metadata."""

    def __init__(self, gguf, rng):
        self.gguf, self.arch = gguf, gguf.arch
        self.norm_rows = self.arch in NORM_ROWS
        self.n_layers = self.get("block_count")
        self.choose(rng)
        self.store()
        self.layers = [self.layer(il) for il in range(self.n_layers)]

    def get(self, suffix, default=None):
        return self.gguf.value(f"{self.arch}.{suffix}", default)

    def set(self, suffix, value):
        key = f"{self.arch}.{suffix}"
        if key not in self.gguf.metadata:
            return
        kind, old = self.gguf.metadata[key]
        if kind == gguf_tool.ARRAY:
            value = (old[0], [value if item else 0 for item in old[1]] if not isinstance(value, list) else value)
        self.gguf.metadata[key] = (kind, value)

    def choose(self, rng):
        dim = rng.choice([32, 48, 64, 96])
        self.kv = rng.choice([1, 2, 3])
        self.h = self.kv * (1 if self.arch in UNGROUPED else rng.choice([1, 2, 4]))
        self.dk = self.dv = dim
        self.E = self.h * dim if self.arch in SQUARE else 32 * rng.choice([2, 3, 5, 6])
        self.V = rng.choice([130, 200, 257])
        groups = self.get("expert_group_count", 1)
        self.N = 4 * groups * rng.choice([1, 2, 3]) if groups > 1 else rng.choice([5, 8, 12, 20])
        self.top = 1 if self.get("expert_used_count") == 1 else rng.choice([2, 3, 4])
        self.FX = 32 * rng.choice([1, 2, 3])
        self.FF = self.FX if self.arch in TIED_WIDTHS else 32 * rng.choice([2, 3, 4])
        shared = self.get("expert_shared_count", 1) or 1
        self.FS = self.FX * shared if not self.get("expert_shared_feed_forward_length") else 32 * shared * rng.choice([1, 2])
        self.window = rng.choice([5, 12, 24])
        self.choose_heads(rng)
        self.choose_mla(rng)
        self.choose_recurrent(rng)

    def choose_heads(self, rng):
        swa = self.get("attention.key_length_swa")
        self.dk_swa = rng.choice([32, 48]) if swa else None
        if self.get("attention.value_length") != self.get("attention.key_length") and not self.get("attention.kv_lora_rank"):
            self.dv = rng.choice([32, 64])
        part = 2 if (self.get("rope.dimension_count") or self.dk) < self.get("attention.key_length", 0) else 1
        self.n_rot = self.dk // part // 2 * 2
        self.n_rot_freqs = self.dk if self.arch == "step35" else self.n_rot

    def choose_mla(self, rng):
        self.kv_rank = 0
        if not self.get("attention.kv_lora_rank"):
            return
        self.kv_rank = 32 * rng.choice([1, 2, 3])
        self.q_rank = 32 * rng.choice([1, 2]) if self.get("attention.q_lora_rank") else 0
        self.n_rot = rng.choice([16, 32])
        self.mla_k = self.n_rot + rng.choice([32, 64])
        self.mla_v = rng.choice([32, 64])
        # With few heads scores are often 0 for all of them, and which of equal cells are chosen is chance.
        self.index_heads, self.index_dim = rng.choice([16, 32]), 32 * rng.choice([2, 4])
        self.kv = 1
        self.dk, self.dv = self.kv_rank + self.n_rot, self.kv_rank

    def choose_recurrent(self, rng):
        self.kda = rng.choice([32, 64]) if self.get("kda.head_dim") else 0
        self.mamba = self.arch == "nemotron_h_moe"
        self.taps = self.get("ssm.conv_kernel") or self.get("shortconv.l_cache") or 0
        if not self.get("ssm.state_size"):
            return
        self.state = rng.choice([32, 64])
        self.groups = rng.choice([1, 2])
        self.v_heads = self.groups * rng.choice([1, 2, 4])
        self.inner = self.v_heads * (32 if self.mamba else self.state)
        self.conv_width = self.inner + 2 * self.groups * self.state

    def store(self):
        pairs = {
            "embedding_length": self.E,
            "vocab_size": self.V,
            "feed_forward_length": self.FF if not self.mamba else self.FX,
            "attention.head_count_kv": self.kv,
            "attention.key_length": self.dk,
            "attention.value_length": self.dv,
            "attention.key_length_swa": self.dk_swa,
            "attention.value_length_swa": self.dk_swa,
            "rope.dimension_count": self.n_rot,
            "rope.dimension_count_swa": self.dk_swa,
            "expert_count": self.N,
            "expert_used_count": self.top,
            "expert_feed_forward_length": self.FX,
            "expert_shared_feed_forward_length": self.FS,
            "attention.sliding_window": self.window,
            "attention.head_count": self.h,
        }
        if self.kv_rank:
            pairs |= {"attention.kv_lora_rank": self.kv_rank, "attention.q_lora_rank": self.q_rank}
            pairs |= {"attention.key_length_mla": self.mla_k, "attention.value_length_mla": self.mla_v}
            pairs |= {"attention.indexer.head_count": self.index_heads, "attention.indexer.key_length": self.index_dim}
        if self.kda:
            pairs["kda.head_dim"] = self.kda
        if self.get("ssm.state_size"):
            pairs |= {"ssm.state_size": self.state, "ssm.group_count": self.groups, "ssm.time_step_rank": self.v_heads}
            pairs["ssm.inner_size"] = self.inner
        if self.get("rope.dimension_sections"):
            quarter = self.n_rot // 8
            pairs["rope.dimension_sections"] = [self.n_rot // 2 - 2 * quarter, quarter, quarter, 0]
        for suffix, value in pairs.items():
            self.set(suffix, value)

    def of_layer(self, suffix, il, default):
        value = self.get(suffix, default)
        return value[il] if isinstance(value, list) else value

    def layer(self, il):
        l = Layer()
        l.h, l.kv = self.of_layer("attention.head_count", il, self.h), self.of_layer("attention.head_count_kv", il, self.kv)
        windowed = self.of_layer("attention.sliding_window_pattern", il, False)
        l.dk, l.dv = (self.dk_swa, self.dk_swa) if windowed and self.dk_swa else (self.dk, self.dv)
        names = {tensor.name for tensor in self.gguf.tensors if tensor.name.startswith(f"blk.{il}.")}
        l.recurrent = any("ssm_" in name or "shortconv" in name for name in names)
        l.q, l.k, l.v = l.h * l.dk * (2 if self.arch in GATED_Q else 1), l.kv * l.dk, l.kv * l.dv
        l.out = l.h * l.dv
        l.qkv = l.q + l.k + l.v
        if self.kv_rank:
            l.q, l.out = l.h * self.mla_k, l.h * self.mla_v
        if l.recurrent and self.kda:
            l.q = l.k = l.v = l.out = self.h * self.kda
        elif l.recurrent and self.arch in GATED_Q:
            l.qkv = self.conv_width
        return l

    def shape(self, name):
        il, short = None, name
        if name.startswith("blk."):
            _, il, short = name.split(".", 2)
        shape = SHAPES[short](self, self.layers[int(il)] if il is not None else None)
        if short == "attn_q_norm.weight" and self.arch in GATED_Q:
            shape = [self.dk]
        return shape


def values(rng, name, shape):
    """Random weights under which activations keep their size."""
    n = math.prod(shape)
    gauss = rng.gauss
    if "norm" in name and name.endswith("weight") or name.endswith(".scale") or "output_scale" in name:
        return [1.0 + gauss(0, 0.1) for _ in range(n)]
    if name.endswith("rope_freqs.weight") or "rope_factors" in name:
        return [1.0 + abs(gauss(0, 1.0)) for _ in range(n)]
    if name.endswith("ssm_a"):
        return [-math.exp(gauss(-1.0, 0.5)) for _ in range(n)]
    if name.endswith(".bias") or name.endswith("ssm_d") or len(shape) == 1:
        return [gauss(0, 0.2) for _ in range(n)]
    scale = (2.0 if "gate_inp" in name else 1.0) / math.sqrt(shape[0] if shape[0] > 8 else 1)
    return [gauss(0, scale) for _ in range(n)]


def bf16(x):
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def block_q8_0(x):
    d = max(map(abs, x)) / 127 or 1.0
    return struct.pack("<e32b", d, *(max(-127, min(127, round(v / d))) for v in x))


def block_q4_0(x):
    largest = max(x, key=abs)
    d = largest / -8 or 1.0
    q = [max(0, min(15, int(v / d + 8.5))) for v in x]
    return struct.pack("<e", d) + bytes(q[i] | q[i + 16] << 4 for i in range(16))


def decode(kind, data):
    """The values that stored ones stand for."""
    if kind == F16:
        return struct.unpack(f"<{len(data) // 2}e", data)
    if kind == BF16:
        return [struct.unpack("<f", struct.pack("<I", bits << 16))[0] for bits in array.array("H", data)]
    if kind == F32:
        return array.array("f", data)
    size = 34 if kind == Q8_0 else 18
    x = []
    for at in range(0, len(data), size):
        d, block = struct.unpack_from("<e", data, at)[0], data[at + 2 : at + size]
        q = struct.unpack("<32b", block) if kind == Q8_0 else [b % 16 - 8 for b in block] + [b // 16 - 8 for b in block]
        x += [d * v for v in q]
    return x


def encode(kind, x):
    if kind == F32:
        return array.array("f", x).tobytes()
    if kind == F16:
        return struct.pack(f"<{len(x)}e", *x)
    if kind == BF16:
        return array.array("H", map(bf16, x)).tobytes()
    block = block_q8_0 if kind == Q8_0 else block_q4_0
    return b"".join(block(x[i : i + 32]) for i in range(0, len(x), 32))


def short_name(name):
    return name.split(".", 2)[2] if name.startswith("blk.") else name


def kind_of(kinds, rng, tensor, shape):
    """One kind per name. Small tensors stay as they are in the golden file, which has them in F32."""
    kind = kinds.setdefault(short_name(tensor.name), rng.choice([F16, BF16, Q8_0, Q8_0, Q4_0]))
    return F32 if tensor.type_id == F32 or shape[0] % 32 != 0 else kind


def make_model(path, golden, seed, formats):
    rng = random.Random(seed)
    gguf = gguf_tool.read(golden)
    config = None if gguf.arch in SAME_SHAPES else Config(gguf, rng)
    kinds = {}
    for tensor in gguf.tensors:
        if tensor.type_id == I32:
            continue
        shape = config.shape(tensor.name) if config else tensor.shape
        kind = kind_of(kinds, rng, tensor, shape) if formats else F32
        tensor.shape, tensor.type_id = shape, kind
        tensor.data = encode(kind, values(rng, tensor.name, shape))
    write(path, gguf)
    for tensor in (tensor for tensor in gguf.tensors if tensor.type_id != I32):
        tensor.data, tensor.type_id = encode(F32, decode(tensor.type_id, tensor.data)), F32
    write(path + ".f32", gguf)
    return gguf


def write(path, gguf):
    with open(path, "wb") as file:
        file.write(gguf_tool.to_bytes(gguf))


def floats(data):
    result = array.array("f")
    result.frombytes(data)
    return result


def run(command):
    done = subprocess.run(command, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(" ".join(command[:2]) + ": " + done.stderr.decode("utf-8", "replace").strip().splitlines()[-1])
    return done.stdout


def compare(path, gguf, work):
    n_vocab = gguf.tensor("token_embd.weight").shape[1]
    rng = random.Random(7)
    tokens = ",".join(str(rng.randrange(n_vocab)) for _ in range(N_TOKENS))
    tokens_file = os.path.join(work, "tokens")
    with open(tokens_file, "w") as file:
        file.write(tokens)
    theirs = floats(run([os.path.join(HERE, "engines", "llama-cpp.sh"), "logits", path + ".f32", tokens_file, str(N_TOKENS)]))
    out = os.path.join(work, "logits")
    penstock = os.environ.get("PENSTOCK", os.path.join(ROOT, "build", "penstock"))
    run([penstock, "eval", "logits", "-m", path, "--tokens", tokens, "-o", out, "--kv", "f32", "--activations", "f32"])
    with open(out, "rb") as file:
        ours = floats(file.read())
    if len(ours) != len(theirs):
        raise RuntimeError(f"{len(ours)} logits, llama.cpp has {len(theirs)}")
    rows = [
        [abs(a - b) for a, b in zip(ours[i : i + n_vocab], theirs[i : i + n_vocab])] for i in range(0, len(ours), n_vocab)
    ]
    spread = math.sqrt(sum(x * x for x in theirs) / len(theirs)) / 2 or 1.0
    worst = [max(row) / spread for row in rows]
    limit = EXACT_BY_ARCH.get(gguf.arch, EXACT)
    n_bad = sum(1 for d in worst if not d <= limit)
    return n_bad, sorted(worst)[len(worst) // 2], max(worst)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--arch", action="append")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--formats", action="store_true")
    parser.add_argument("--keep")
    options = parser.parse_args()
    run([os.path.join(HERE, "engines", "llama-cpp.sh"), "install"])
    failed = 0
    with tempfile.TemporaryDirectory() as work:
        for name in sorted(os.listdir(options.folder)):
            golden, extension = os.path.splitext(name)
            if extension != ".gguf" or golden.endswith(("-F32", "-BF16")) or (options.arch and golden not in options.arch):
                continue
            for i in range(options.count):
                path = os.path.join(options.keep or work, f"{golden}-{options.seed + i}.gguf")
                try:
                    gguf = make_model(path, os.path.join(options.folder, name), options.seed + i, options.formats)
                    n_bad, median, most = compare(path, gguf, work)
                    ok = n_bad <= N_TOKENS // 10
                    text = f"{n_bad} of {N_TOKENS} positions differ; median {median:.1e}, most {most:.1e}"
                except KeyError as error:
                    ok, text = True, f"skipped: no shape for {error}"
                except RuntimeError as error:
                    ok, text = False, str(error)
                failed += not ok
                print(f"{'ok  ' if ok else 'FAIL'} {golden} seed {options.seed + i}: {text}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
