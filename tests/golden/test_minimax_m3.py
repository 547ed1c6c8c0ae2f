"""minimax-m3, for which there is no golden model: a small random one is made here, and tests/data/minimax-m3.f32 has the logits
that llama.cpp v0.5.0 computes for it, with flash attention (without it, it does not choose blocks) and K and V in F16.

    test_minimax_m3.py --write PATH      writes the model, for whoever makes the logits anew
"""

import array
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))

import gguf_tool
import harness

U32, F32, BOOL, STRING = 4, 6, 7, 8
N_EMBD, N_VOCAB, N_LAYERS, N_DENSE, N_EXPERT, N_FF, N_FF_DENSE = 64, 64, 3, 1, 8, 32, 96
N_HEAD, N_KV_HEAD, HEAD, N_ROT, INDEX = 4, 2, 32, 16, 32
BLOCK, CHOSEN = 32, 3
TOKENS = [(7 * i * i + 31 * i + 5) % (N_VOCAB - 2) + 1 for i in range(150)]
REFERENCE = os.path.join(harness.ROOT, "tests", "data", "minimax-m3.f32")
NUMBERS = {
    "vocab_size": N_VOCAB,
    "context_length": 4096,
    "embedding_length": N_EMBD,
    "block_count": N_LAYERS,
    "feed_forward_length": N_FF_DENSE,
    "leading_dense_block_count": N_DENSE,
    "attention.head_count": N_HEAD,
    "attention.head_count_kv": N_KV_HEAD,
    "attention.key_length": HEAD,
    "attention.value_length": HEAD,
    "rope.dimension_count": N_ROT,
    "expert_count": N_EXPERT,
    "expert_used_count": 2,
    "expert_feed_forward_length": N_FF,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "attention.indexer.head_count": N_KV_HEAD,
    "attention.indexer.key_length": INDEX,
    "attention.indexer.top_k": CHOSEN,
    "attention.indexer.block_size": BLOCK,
    "attention.indexer.local_blocks": 1,
}
FACTORS = {"attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 5e6, "expert_weights_scale": 2.0}


class Maker:
    """Tensors in F32, uniformly distributed: the same numbers on every machine."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.tensors = []

    def add(self, name, shape, middle, spread):
        count = 1
        for side in shape:
            count *= side
        values = array.array("f", (middle + spread * self.random.uniform(-1, 1) for _ in range(count)))
        self.tensors.append(gguf_tool.Tensor(name, shape, 0, values.tobytes()))

    def matrix(self, name, *shape):
        self.add(name + ".weight", list(shape), 0.0, 2.0 / shape[0] ** 0.5)

    def norm(self, name, width):
        self.add(name + ".weight", [width], 1.0, 0.3)


def model(**changed):
    maker = Maker(7)
    maker.add("token_embd.weight", [N_EMBD, N_VOCAB], 0.0, 1.5)
    maker.norm("output_norm", N_EMBD)
    maker.matrix("output", N_EMBD, N_VOCAB)
    for il in range(N_LAYERS):
        add_layer(maker, f"blk.{il}.", il < N_DENSE)
    metadata = {"general.architecture": (STRING, "minimax-m3"), "tokenizer.ggml.model": (STRING, "no_vocab")}
    metadata.update({f"minimax-m3.{key}": (U32, value) for key, value in {**NUMBERS, **changed}.items()})
    metadata.update({f"minimax-m3.{key}": (F32, value) for key, value in FACTORS.items()})
    metadata["minimax-m3.expert_weights_norm"] = (BOOL, True)
    return gguf_tool.Gguf(metadata, maker.tensors)


def add_layer(maker, prefix, dense):
    maker.norm(prefix + "attn_norm", N_EMBD)
    maker.matrix(prefix + "attn_q", N_EMBD, N_HEAD * HEAD)
    maker.matrix(prefix + "attn_k", N_EMBD, N_KV_HEAD * HEAD)
    maker.matrix(prefix + "attn_v", N_EMBD, N_KV_HEAD * HEAD)
    maker.norm(prefix + "attn_q_norm", HEAD)
    maker.norm(prefix + "attn_k_norm", HEAD)
    maker.matrix(prefix + "attn_output", N_HEAD * HEAD, N_EMBD)
    maker.norm(prefix + "ffn_norm", N_EMBD)
    if dense:
        add_ffn(maker, prefix, "", N_FF_DENSE)
        return
    maker.matrix(prefix + "ffn_gate_inp", N_EMBD, N_EXPERT)
    maker.add(prefix + "exp_probs_b.bias", [N_EXPERT], 0.0, 0.1)
    add_ffn(maker, prefix, "_exps", N_FF, N_EXPERT)
    add_ffn(maker, prefix, "_shexp", N_FF)
    maker.matrix(prefix + "indexer.q_proj", N_EMBD, N_KV_HEAD * INDEX)
    maker.matrix(prefix + "indexer.k_proj", N_EMBD, INDEX)
    maker.norm(prefix + "indexer.q_norm", INDEX)
    maker.norm(prefix + "indexer.k_norm", INDEX)


def add_ffn(maker, prefix, suffix, width, *n):
    maker.matrix(f"{prefix}ffn_gate{suffix}", N_EMBD, width, *n)
    maker.matrix(f"{prefix}ffn_up{suffix}", N_EMBD, width, *n)
    maker.matrix(f"{prefix}ffn_down{suffix}", width, N_EMBD, *n)


class MinimaxM3(harness.TestCase):
    def made(self, **changed):
        return gguf_tool.write(model(**changed), self.path("model.gguf"))

    def test_matches_llama_cpp_where_blocks_are_chosen(self):
        reference = harness.floats(harness.read_bytes(REFERENCE))
        for level in harness.cpu_levels():
            with self.subTest(cpu=level):
                logits = harness.floats(self.logits(self.made(), TOKENS, "--kv", "f16", "--cpu", level))
                self.assertEqual(len(logits), len(reference))
                difference = harness.Difference(logits, reference, N_VOCAB, range(len(TOKENS)))
                self.assertTrue(difference.within({"max_abs": 3e-4, "rms": 3e-5}), str(difference))

    def test_the_choice_matters(self):
        every = {"attention.indexer.top_k": 16}
        narrow, wide = self.logits(self.made(), TOKENS), self.logits(self.made(**every), TOKENS)
        seen_by_both = 4 * N_VOCAB * BLOCK * CHOSEN
        self.assertEqual(narrow[:seen_by_both], wide[:seen_by_both])
        self.assertNotEqual(narrow[seen_by_both:], wide[seen_by_both:])

    def test_same_for_any_chunk_threads_and_budget(self):
        path = self.made()
        for kv in ("f32", "f16", "q8_0"):
            expected = self.logits(path, TOKENS, "--kv", kv)
            smallest = harness.tight_budget(*harness.logits_command(path, TOKENS, "--kv", kv, "--chunk", 33))
            axis = (("--chunk", 1, "--threads", 2), ("--chunk", 7, "--threads", 3), ("--chunk", 33, "--ram", smallest))
            for flags in axis:
                with self.subTest(kv=kv, flags=" ".join(map(str, flags))):
                    self.assert_same_logits(self.logits(path, TOKENS, "--kv", kv, *flags), expected)

    def test_numbers_that_do_not_fit_are_refused(self):
        for key, value in (
            ("attention.indexer.block_size", 0),
            ("attention.indexer.block_size", 100000),
            ("attention.indexer.local_blocks", 4),
            ("attention.indexer.head_count", 4),
            ("attention.indexer.key_length", 8),
        ):
            with self.subTest(key=key, value=value):
                line = self.fails("run", "-m", self.made(**{key: value}), "--prompt-tokens", "1,2", "-n", 1, "--print", "tokens")
                self.assertIn("attention.indexer", line)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        gguf_tool.write(model(), sys.argv[2])
    else:
        harness.main()
