"""Headers of real models: the keys and tensors that their GGUF files have, by each model's config.json and the names that
llama.cpp's converters give (convert_hf_to_gguf.py, gguf-py/gguf/constants.py). Beside each header stands what follows from
the config alone, for comparison with what penstock makes of the header.
"""

import gguf_tool

F32, Q8_0, Q4_K, IQ4_NL, I32, MXFP4 = 0, 8, 12, 20, 26, 39
SOFTMAX, SIGMOID, SQRT_SOFTPLUS = 1, 2, 4

_BLOCK = {Q8_0: (32, 34), Q4_K: (256, 144), IQ4_NL: (32, 18), MXFP4: (32, 17)}
_KV_BYTES = {"f32": lambda n: 4 * n, "f16": lambda n: 2 * n, "q8_0": lambda n: n // 32 * 34}


def _stored(value):
    """A value with the type that gguf-py gives it."""
    if isinstance(value, bool):
        return 7, value
    if isinstance(value, int):
        return gguf_tool.U32, value
    if isinstance(value, float):
        return gguf_tool.F32, value
    if isinstance(value, str):
        return gguf_tool.STRING, value
    item = 7 if isinstance(value[0], bool) else gguf_tool.F32 if isinstance(value[0], float) else gguf_tool.I32
    item = 11 if item == gguf_tool.I32 and max(value) >= 2**31 else item
    return gguf_tool.ARRAY, (item, value)


class Model:
    """A header under construction. `published` is (all, active) parameters in billions, as the model's makers state them:
    without the layers that predict further tokens, and with, without or with one of the two matrices over the vocabulary.
    """

    def __init__(self, name, arch, layers, embd, vocab, ctx, published=None, nextn=0, tied=False, norm=True):
        self.name, self.arch, self.embd, self.vocab, self.published = name, arch, embd, vocab, published
        self.trunk_layers, self.nextn, self.tied = layers, nextn, tied
        self.n_experts = self.used = 0
        self.expert_bytes = {}  # of one expert, by layer
        self.cells = []  # (window, KV heads, k, v, index) of each layer that has any
        self.blocks = []  # (tokens, values of two rows kept per block) of each layer that has any
        self.state_floats = 0
        self.looked_up = 0  # values of tables in rows that a token does not read
        self.stays_in_file = 0  # bytes of a table that no memory is planned for
        self.metadata = {"general.architecture": (gguf_tool.STRING, arch), "general.name": (gguf_tool.STRING, name)}
        self.tensors = []
        self.keys(block_count=layers + nextn, context_length=ctx, embedding_length=embd, vocab_size=vocab)
        if nextn:
            self.keys(nextn_predict_layers=nextn)
        self.metadata["general.file_type"] = (gguf_tool.U32, 15)
        self.metadata["general.quantization_version"] = (gguf_tool.U32, 2)
        self.metadata["tokenizer.ggml.model"] = (gguf_tool.STRING, "no_vocab")
        self.matrix("token_embd.weight", embd, vocab)
        if norm:
            self.vector("output_norm.weight", embd)
        if not tied:
            self.matrix("output.weight", embd, vocab)

    # ---- keys ----

    def keys(self, more=None, **named):
        for key, value in {**named, **(more or {})}.items():
            self.metadata[f"{self.arch}.{key}"] = _stored(value)

    def attention_keys(self, heads, kv, k=None, v=None, rot=None, base=10000.0, eps="layer_norm_rms_epsilon"):
        self.keys({"attention.head_count": heads, "attention.head_count_kv": kv, f"attention.{eps}": 1e-6, "rope.freq_base": base})
        if k:
            self.keys({"attention.key_length": k, "attention.value_length": v or k})
        if rot:
            self.keys({"rope.dimension_count": rot})

    def expert_keys(self, n, used, ff=None, gating=None, scale=None, norm=None, shared=None, shared_ff=None, dense=None, groups=None):
        self.n_experts, self.used = n, used
        self.keys(expert_count=n, expert_used_count=used)
        optional = {
            "expert_feed_forward_length": ff,
            "expert_gating_func": gating,
            "expert_weights_scale": scale,
            "expert_weights_norm": norm,
            "expert_shared_count": shared,
            "expert_shared_feed_forward_length": shared_ff,
            "leading_dense_block_count": dense,
            "expert_group_count": groups and groups[0],
            "expert_group_used_count": groups and groups[1],
        }
        self.keys({key: value for key, value in optional.items() if value is not None})

    def yarn(self, factor, original, **more):
        self.keys({"rope.scaling.type": "yarn", "rope.scaling.factor": factor, "rope.scaling.original_context_length": original})
        self.keys({f"rope.scaling.{key}": value for key, value in more.items()})

    # ---- tensors ----

    def matrix(self, name, *shape, type_id=Q8_0):
        self.tensors.append(gguf_tool.Tensor(name, list(shape), type_id))

    def vector(self, name, *shape):
        self.matrix(name, *shape, type_id=F32)

    def norms(self, il, *names):
        for name in names:
            self.vector(f"blk.{il}.{name}.weight", self.embd)

    def projections(self, il, **shapes):
        for name, shape in shapes.items():
            self.matrix(f"blk.{il}.{name}.weight", *shape)

    def keeps(self, il, window, kv, k, v, index=0):
        """Only layers of the trunk are computed, so only they have a cache."""
        if il < self.trunk_layers:
            self.cells.append((window, kv, k, v, index))

    def attention(self, il, heads, kv, k, v=None, window=0, bias="", norm=None, fused=False, has_v=True):
        v = v or k
        self.keeps(il, window, kv, k, v)
        rows = {"q": heads * k, "k": kv * k, "v": kv * v}
        if fused:
            self.projections(il, attn_qkv=(self.embd, sum(rows.values())))
        else:
            self.projections(il, **{f"attn_{n}": (self.embd, r) for n, r in rows.items() if n != "v" or has_v})
        self.projections(il, attn_output=(heads * v, self.embd))
        for name in bias:
            full, n = ("output", self.embd) if name == "o" else (name, rows[name])
            self.vector(f"blk.{il}.attn_{full}.bias", n)
        if norm:
            for name in "qk":
                self.vector(f"blk.{il}.attn_{name}_norm.weight", k if norm == "head" else rows[name])

    def latent_attention(self, il, heads, q_rank, rank, nope, rot, v, index=0):
        self.keeps(il, 0, 1, rank + rot, 0, index)
        if q_rank:
            self.projections(il, attn_q_a=(self.embd, q_rank), attn_q_b=(q_rank, heads * (nope + rot)))
            self.vector(f"blk.{il}.attn_q_a_norm.weight", q_rank)
        else:
            self.projections(il, attn_q=(self.embd, heads * (nope + rot)))
        self.projections(il, attn_kv_a_mqa=(self.embd, rank + rot), attn_k_b=(nope, rank, heads), attn_v_b=(rank, v, heads))
        self.vector(f"blk.{il}.attn_kv_a_norm.weight", rank)
        self.projections(il, attn_output=(heads * v, self.embd))

    def latent_keys(self, heads, q_rank, rank, nope, rot, v, base):
        self.attention_keys(heads, 1, rank + rot, rank, rot, base)
        self.keys({"attention.kv_lora_rank": rank, "attention.key_length_mla": nope + rot, "attention.value_length_mla": v})
        if q_rank:
            self.keys({"attention.q_lora_rank": q_rank})

    def dense(self, il, ff):
        self.projections(il, ffn_gate=(self.embd, ff), ffn_up=(self.embd, ff), ffn_down=(ff, self.embd))

    def shared(self, il, ff, gated=True):
        if gated:
            self.projections(il, ffn_gate_shexp=(self.embd, ff))
        self.projections(il, ffn_up_shexp=(self.embd, ff), ffn_down_shexp=(ff, self.embd))

    def experts(self, il, ff, type_id=None, gated=True, fused=False, router_bias=False, select_bias=False, biases=False, scale=False):
        """Router and routed experts of a layer."""
        n, embd = self.n_experts, self.embd
        self.vector(f"blk.{il}.ffn_gate_inp.weight", embd, n)
        if router_bias:
            self.vector(f"blk.{il}.ffn_gate_inp.bias", n)
        if select_bias:
            self.vector(f"blk.{il}.exp_probs_b.bias", n)
        ups = [("gate_up", 2 * ff)] if fused else [("gate", ff), ("up", ff)] if gated else [("up", ff)]
        size = 0
        for part, cols, rows in [(part, embd, rows) for part, rows in ups] + [("down", ff, embd)]:
            stored = type_id if type_id is not None else Q4_K if cols % 256 == 0 else IQ4_NL
            self.matrix(f"blk.{il}.ffn_{part}_exps.weight", cols, rows, n, type_id=stored)
            values, block = _BLOCK[stored]
            size += rows * (cols // values * block)
            if biases:
                self.vector(f"blk.{il}.ffn_{part}_exps.bias", rows, n)
                size += 4 * rows
        if scale:
            self.vector(f"blk.{il}.ffn_down_exps.scale", n)
            size += 4
        if il < self.trunk_layers:
            self.expert_bytes[il] = size

    def next_token(self, il, *more, embedding=False, head_norm=True):
        """What a layer for the prediction of further tokens has beside its block."""
        self.projections(il, **{"nextn.eh_proj": (2 * self.embd, self.embd)})
        self.norms(il, "nextn.enorm", "nextn.hnorm", *more)
        if head_norm:
            self.norms(il, "nextn.shared_head_norm")
        if embedding:
            self.projections(il, **{n: (self.embd, self.vocab) for n in ("nextn.embed_tokens", "nextn.shared_head_head")})

    @property
    def all_layers(self):
        return range(self.trunk_layers + self.nextn)

    # ---- what follows ----

    def _is_skipped(self, name):
        return name.startswith("blk.") and int(name.split(".")[1]) >= self.trunk_layers

    def expected(self):
        """The totals by inspect's names."""
        routed = lambda t: "_exps." in t.name and not self._is_skipped(t.name)
        values = sum(t.n_values for t in self.tensors)
        expert_values = sum(t.n_values for t in self.tensors if routed(t))
        skipped = [t for t in self.tensors if self._is_skipped(t.name)]
        active = values - expert_values - sum(t.n_values for t in skipped) + expert_values // self.n_experts * self.used
        if not self.tied:
            active -= (self.vocab - 1) * self.embd
        active -= self.looked_up
        expert_bytes = sum(self.expert_bytes.values()) * self.n_experts
        all_bytes = sum(t.n_bytes for t in self.tensors)
        totals = {
            "architecture": self.arch,
            "layers": self.trunk_layers,
            "moe_layers": len(self.expert_bytes),
            "vocab_size": self.vocab,
            "parameters": values,
            "active_parameters": active,
            "expert_bytes": expert_bytes,
            "trunk_bytes": all_bytes - expert_bytes - sum(t.n_bytes for t in skipped) - self.stays_in_file,
            "shards": len(self.expert_bytes) * self.n_experts,
            "shard_bytes": max(self.expert_bytes.values()),
            "shard_bytes_min": min(self.expert_bytes.values()),
            "token_cycle_bytes": sum(self.expert_bytes.values()) * self.used,
            "windowed_layers": sum(window > 0 for window, *_ in self.cells),
        }
        for kv_type, row in _KV_BYTES.items():
            sizes = [(window, kv * (row(k) + row(v)) + row(index)) for window, kv, k, v, index in self.cells]
            blocks = sum(-(-(row(x) + row(y)) // tokens) for tokens, x, y in self.blocks)
            totals[f"kv_bytes_per_token_{kv_type}"] = sum(size for window, size in sizes if window == 0) + blocks
            totals[f"kv_fixed_bytes_{kv_type}"] = sum(window * size for window, size in sizes) + 4 * self.state_floats
        return totals

    @property
    def skipped_values(self):
        return sum(t.n_values for t in self.tensors if self._is_skipped(t.name))

    def header(self):
        return gguf_tool.Gguf(self.metadata, self.tensors)


# ---- the models ----


def _mixtral(name, layers, embd, heads, ff, vocab, published):
    m = Model(name, "llama", layers, embd, vocab, 32768, published)
    m.attention_keys(heads, 8, rot=128, base=1e6)
    m.keys(feed_forward_length=ff)
    m.expert_keys(8, 2)
    for il in m.all_layers:
        m.attention(il, heads, 8, 128)
        m.norms(il, "attn_norm", "ffn_norm")
        m.experts(il, ff)
    return m


def _olmoe():
    m = Model("OLMoE-1B-7B", "olmoe", 16, 2048, 50304, 4096, (6.92, 1.28))
    m.attention_keys(16, 16, base=10000.0)
    m.keys(feed_forward_length=1024)
    m.expert_keys(64, 8)
    for il in m.all_layers:
        m.attention(il, 16, 16, 128, norm="row")
        m.norms(il, "attn_norm", "ffn_norm")
        m.experts(il, 1024)
    return m


def _qwen2moe(name, layers, embd, heads, kv, ff, shared, n, used, published):
    m = Model(name, "qwen2moe", layers, embd, 151936, 32768, published)
    m.attention_keys(heads, kv, base=1e6)
    m.keys(feed_forward_length=shared)
    m.expert_keys(n, used, ff, shared_ff=shared)
    for il in m.all_layers:
        m.attention(il, heads, kv, 128, bias="qkv")
        m.norms(il, "attn_norm", "ffn_norm")
        m.experts(il, ff)
        m.vector(f"blk.{il}.ffn_gate_inp_shexp.weight", embd)
        m.shared(il, shared)
    return m


def _qwen3moe(name, layers, embd, heads, ff, dense_ff, published):
    m = Model(name, "qwen3moe", layers, embd, 151936, 262144, published)
    m.attention_keys(heads, 4, 128, base=1e7)
    m.keys(feed_forward_length=dense_ff)
    m.expert_keys(128, 8, ff)
    for il in m.all_layers:
        m.attention(il, heads, 4, 128, norm="head")
        m.norms(il, "attn_norm", "ffn_norm")
        m.experts(il, ff)
    return m


def _gpt_oss(name, layers, n, published):
    m = Model(name, "gpt-oss", layers, 2880, 201088, 131072, published)
    m.attention_keys(64, 8, 64, base=150000.0)
    m.keys({"feed_forward_length": 2880, "attention.sliding_window": 128})
    m.expert_keys(n, 4, 2880)
    m.yarn(32.0, 4096)
    for il in m.all_layers:
        m.attention(il, 64, 8, 64, window=128 if il % 2 == 0 else 0, bias="qkvo")
        m.vector(f"blk.{il}.attn_sinks.weight", 64)
        m.norms(il, "attn_norm", "post_attention_norm")
        m.experts(il, 2880, MXFP4, router_bias=True, biases=True)
    return m


def _glm4moe(name, layers, embd, n, ff, dense_ff, dense, norm, published):
    m = Model(name, "glm4moe", layers, embd, 151552, 131072, published, nextn=1)
    m.attention_keys(96, 8, 128, rot=64, base=1e6)
    m.keys(feed_forward_length=dense_ff)
    m.expert_keys(n, 8, ff, SIGMOID, 1.0, True, 1, dense=dense, groups=(1, 1))
    for il in m.all_layers:
        m.attention(il, 96, 8, 128, bias="qkv", norm=norm)
        m.norms(il, "attn_norm", "post_attention_norm")
        if il < dense:
            m.dense(il, dense_ff)
        else:
            m.experts(il, ff, select_bias=True)
            m.shared(il, ff)
        if il >= layers:
            m.next_token(il, embedding=True)
    return m


def _bailingmoe2(name, layers, embd, heads, ff, dense_ff, published, nextn=0):
    m = Model(name, "bailingmoe2", layers, embd, 157184, 32768, published, nextn=nextn)
    m.attention_keys(heads, 4, 128, rot=64, base=600000.0)
    m.keys(feed_forward_length=dense_ff)
    m.keys({"rope.scaling.type": "none"})
    m.expert_keys(256, 8, ff, SIGMOID, 2.5, True, 1, ff, 1, groups=(8, 4))
    for il in m.all_layers:
        m.attention(il, heads, 4, 128, norm="head", fused=True)
        m.norms(il, "attn_norm", "ffn_norm")
        if il == 0:
            m.dense(il, dense_ff)
        else:
            m.experts(il, ff, select_bias=True)
            m.shared(il, ff)
        if il >= layers:
            m.next_token(il, "layer_output_norm")
    return m


def _dots1():
    m = Model("dots.llm1.inst", "dots1", 62, 4096, 152064, 32768, (142, 14))
    m.attention_keys(32, 32, 128, base=1e7)
    m.keys(feed_forward_length=10944)
    m.expert_keys(128, 6, 1408, SIGMOID, 2.5, True, 2, dense=1, groups=(1, 1))
    for il in m.all_layers:
        m.attention(il, 32, 32, 128, norm="head")
        m.norms(il, "attn_norm", "ffn_norm")
        if il == 0:
            m.dense(il, 10944)
        else:
            m.experts(il, 1408, select_bias=True)
            m.shared(il, 2816)
    return m


def _ernie():
    m = Model("ERNIE-4.5-21B-A3B", "ernie4_5-moe", 28, 2560, 103424, 131072, (21.9, 3), tied=True)
    m.attention_keys(20, 4, 128, base=500000.0)
    m.keys(feed_forward_length=12288, interleave_moe_layer_step=1)
    m.expert_keys(64, 6, 1536, shared=2, shared_ff=3072, dense=1)
    for il in m.all_layers:
        m.attention(il, 20, 4, 128)
        m.norms(il, "attn_norm", "ffn_norm")
        if il == 0:
            m.dense(il, 12288)
        else:
            m.experts(il, 1536, select_bias=True)
            m.shared(il, 3072)
    return m


def _hunyuan():
    m = Model("Hunyuan-A13B", "hunyuan-moe", 32, 4096, 128167, 262144, (80, 13), tied=True)
    m.attention_keys(32, 8, 128, base=11158840.0)
    m.keys({"feed_forward_length": 3072, "rope.scaling.type": "none", "rope.scaling.factor": 1.0})
    m.keys({"rope.scaling.original_context_length": 262144})
    m.expert_keys(64, 8, 3072, shared=1, shared_ff=3072)
    for il in m.all_layers:
        m.attention(il, 32, 8, 128, norm="head")
        m.norms(il, "attn_norm", "ffn_norm")
        m.experts(il, 3072)
        m.shared(il, 3072)
    return m


def _granite():
    m = Model("granite-3.1-3b-a800m", "granitemoe", 32, 1536, 49155, 131072, (3.3, 0.8), tied=True)
    m.attention_keys(24, 8, rot=64, base=5e6)
    m.keys({"feed_forward_length": 512, "attention.scale": 0.015625, "embedding_scale": 12.0, "residual_scale": 0.22})
    m.keys(logit_scale=6.0)
    m.expert_keys(40, 8)
    for il in m.all_layers:
        m.attention(il, 24, 8, 64)
        m.norms(il, "attn_norm", "ffn_norm")
        m.experts(il, 512)
    return m


def _phimoe():
    m = Model("Phi-3.5-MoE", "phimoe", 32, 4096, 32064, 131072, (41.9, 6.6))
    m.attention_keys(32, 8, rot=128)
    m.keys({"feed_forward_length": 6400, "attention.sliding_window": 131072, "rope.scaling.attn_factor": 1.1902})
    m.keys({"rope.scaling.original_context_length": 4096, "rope.scaling.type": "longrope"})
    m.expert_keys(16, 2)
    m.vector("output_norm.bias", 4096)
    m.vector("output.bias", 32064)
    m.vector("rope_factors_long.weight", 64)
    m.vector("rope_factors_short.weight", 64)
    for il in m.all_layers:
        m.attention(il, 32, 8, 128, bias="qkvo")
        m.norms(il, "attn_norm", "ffn_norm")
        m.vector(f"blk.{il}.attn_norm.bias", 4096)
        m.vector(f"blk.{il}.ffn_norm.bias", 4096)
        m.experts(il, 6400)
    return m


def _minimax_m2():
    m = Model("MiniMax-M2", "minimax-m2", 62, 3072, 200064, 196608, (230, 10))
    m.attention_keys(48, 8, 128, rot=64, base=5e6)
    m.keys(feed_forward_length=1536)
    m.expert_keys(256, 8, 1536, SIGMOID)
    for il in m.all_layers:
        m.attention(il, 48, 8, 128, norm="row")
        m.norms(il, "attn_norm", "ffn_norm")
        m.experts(il, 1536, select_bias=True)
    return m


def _llama4(name, n, step, published):
    m = Model(name, "llama4", 48, 5120, 202048, 1048576, published)
    m.attention_keys(40, 8, 128, rot=128, base=500000.0)
    m.keys(feed_forward_length=16384, interleave_moe_layer_step=step)
    m.expert_keys(n, 1, 8192)
    if n == 16:
        m.vector("rope_freqs.weight", 64)
    for il in m.all_layers:
        m.attention(il, 40, 8, 128, window=8192 if il % 4 != 3 else 0)
        m.norms(il, "attn_norm", "ffn_norm")
        if il % step == step - 1:
            m.experts(il, 8192)
            m.shared(il, 8192)
        else:
            m.dense(il, 16384)
    return m


def _gemma4():
    m = Model("gemma-4-26B-A4B", "gemma4", 30, 2816, 262144, 262144, (25.2, 3.8), tied=True)
    full = [il % 6 == 5 for il in m.all_layers]
    m.attention_keys(16, [2 if f else 8 for f in full], 512, rot=512, base=1e6)
    m.keys({"attention.key_length_swa": 256, "attention.value_length_swa": 256, "rope.dimension_count_swa": 256})
    m.keys({"rope.freq_base_swa": 10000.0, "attention.sliding_window": 1024, "attention.shared_kv_layers": 0})
    m.keys({"attention.sliding_window_pattern": [not f for f in full], "embedding_length_per_layer_input": 0})
    m.keys(final_logit_softcapping=30.0, feed_forward_length=2112)
    m.expert_keys(128, 8, 704)
    m.vector("rope_freqs.weight", 256)
    norms = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2")
    for il in m.all_layers:
        k, kv = (512, 2) if full[il] else (256, 8)
        m.attention(il, 16, kv, k, window=0 if full[il] else 1024, norm="head", has_v=not full[il])
        for head in "qk":
            m.tensors[-2 if head == "q" else -1].shape = [k]
        m.norms(il, *norms)
        m.vector(f"blk.{il}.layer_output_scale.weight", 1)
        m.vector(f"blk.{il}.ffn_gate_inp.scale", 2816)
        m.dense(il, 2112)
        m.experts(il, 704, fused=True, scale=True)
    return m


def _mimo2():
    m = Model("MiMo-V2-Flash", "mimo2", 48, 4096, 152576, 262144, (309, 15), nextn=3)
    windowed = [il >= 48 or (il % 6 != 5 and il > 0) for il in m.all_layers]
    m.attention_keys(64, [8 if w else 4 for w in windowed], 192, 128, rot=64, base=5e6)
    m.keys({"attention.sliding_window": 128, "attention.sliding_window_pattern": [int(w) for w in windowed]})
    m.keys({"rope.freq_base_swa": 10000.0, "attention.value_scale": 0.707, "feed_forward_length": 16384})
    m.expert_keys(256, 8, 2048, SIGMOID, norm=True, groups=(1, 1))
    for il in m.all_layers:
        m.attention(il, 64, 8 if windowed[il] else 4, 192, 128, window=128 if windowed[il] else 0, fused=True)
        m.norms(il, "attn_norm", "ffn_norm")
        if windowed[il]:
            m.vector(f"blk.{il}.attn_sinks.weight", 64)
        if il == 0 or il >= 48:
            m.dense(il, 16384)
        else:
            m.experts(il, 2048, select_bias=True)
        if il >= 48:
            m.next_token(il, "layer_output_norm", head_norm=False)
    return m


def _step35():
    m = Model("Step-3.5-Flash", "step35", 45, 4096, 128896, 262144, (196, 11), nextn=3)
    windowed = [il % 4 != 0 for il in m.all_layers]
    m.attention_keys([96 if w else 64 for w in windowed], [8] * 48, 128, base=5e6)
    m.keys({"attention.sliding_window": 512, "attention.sliding_window_pattern": windowed, "rope.freq_base_swa": 10000.0})
    m.keys({"feed_forward_length": 11264, "moe_every_n_layers": 1})
    m.keys(swiglu_clamp_exp=[0.0] * 43 + [7.0] * 2 + [0.0] * 3, swiglu_clamp_shexp=[0.0] * 44 + [16.0] + [0.0] * 3)
    m.expert_keys(288, 8, 1280, SIGMOID, 3.0, True, shared_ff=1280, dense=3)
    m.vector("rope_freqs.weight", 64)
    for il in m.all_layers:
        heads = 96 if windowed[il] else 64
        m.attention(il, heads, 8, 128, window=512 if windowed[il] else 0, norm="head")
        m.projections(il, attn_gate=(4096, heads))
        m.norms(il, "attn_norm", "ffn_norm")
        if il < 3 or il >= 45:
            m.dense(il, 11264)
        else:
            m.experts(il, 1280, select_bias=True)
            m.shared(il, 1280)
        if il >= 45:
            m.next_token(il, embedding=True)
    return m


def _exaone():
    m = Model("K-EXAONE-236B-A23B", "exaone-moe", 48, 6144, 153600, 262144, (236, 23), nextn=1)
    m.attention_keys(64, 8, 128, base=1e6)
    m.keys({"attention.sliding_window": 128, "attention.sliding_window_pattern": [il % 4 != 3 for il in range(48)]})
    m.keys({"feed_forward_length": 18432, "rope.scaling.type": "none"})
    m.expert_keys(128, 8, 2048, SIGMOID, 2.5, True, 1, 2048, 1, groups=(1, 1))
    for il in m.all_layers:
        m.attention(il, 64, 8, 128, window=128 if il % 4 != 3 else 0, norm="head")
        m.norms(il, "attn_norm", "ffn_norm")
        if il == 0 or il >= 48:
            m.dense(il, 18432)
        else:
            m.experts(il, 2048, select_bias=True)
            m.shared(il, 2048)
        if il >= 48:
            m.next_token(il)
    return m


def _afmoe():
    m = Model("Trinity-Mini", "afmoe", 32, 2048, 200192, 131072, (26, 3))
    m.attention_keys(32, 4, 128, rot=128)
    m.keys({"feed_forward_length": 6144, "attention.sliding_window": 2048})
    m.expert_keys(128, 8, 1024, SIGMOID, 2.826, True, 1, dense=2, groups=(1, 1))
    for il in m.all_layers:
        m.attention(il, 32, 4, 128, window=2048 if il % 4 != 3 else 0, norm="head")
        m.projections(il, attn_gate=(2048, 4096))
        m.norms(il, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        if il < 2:
            m.dense(il, 6144)
        else:
            m.experts(il, 1024, select_bias=True)
            m.shared(il, 1024)
    return m


def _cohere2moe():
    """Of the size of the family (30B, 3B active); its makers' config.json is not at hand."""
    m = Model("Cohere2 MoE", "cohere2moe", 49, 2048, 262144, 262144, tied=True, nextn=1)
    m.attention_keys(32, 4, 128, rot=128, base=50000.0, eps="layer_norm_epsilon")
    m.keys({"attention.sliding_window": 4096, "attention.sliding_window_pattern": [il % 4 != 0 for il in m.all_layers]})
    m.keys({"feed_forward_length": 6144, "logit_scale": 0.25, "rope.scaling.type": "none"})
    m.expert_keys(128, 8, 768, SIGMOID, norm=True, shared=1, shared_ff=768, dense=1)
    for il in m.all_layers:
        m.attention(il, 32, 4, 128, window=4096 if il % 4 != 0 else 0)
        m.norms(il, "attn_norm")
        if il == 0:
            m.dense(il, 6144)
        else:
            m.experts(il, 768)
            m.shared(il, 768)
        if il >= 49:
            m.next_token(il)
    return m


def _deepseek2(name, arch, layers, embd, vocab, heads, mla, experts, ff, dense_ff, dense, shared, published, nextn=0, index=0, **more):
    m = Model(name, arch, layers, embd, vocab, more.pop("ctx", 163840), published, nextn=nextn)
    q_rank, rank, nope, rot, v = mla
    m.latent_keys(heads, q_rank, rank, nope, rot, v, more.pop("base", 10000.0))
    m.keys(feed_forward_length=dense_ff)
    m.expert_keys(*experts, ff, more.pop("gating", SIGMOID), more.pop("scale", 2.5), True, shared, dense=dense, groups=more.pop("groups", (1, 1)))
    factor = more.pop("factor", 0.0)
    if factor:
        m.yarn(factor, 4096, yarn_log_multiplier=0.1, yarn_beta_fast=32.0, yarn_beta_slow=1.0)
    select = more.pop("select", True)
    m.keys(more.pop("keys", {}))
    assert not more, more
    for il in m.all_layers:
        m.latent_attention(il, heads, q_rank, rank, nope, rot, v, index)
        if index:
            m.projections(il, **{"indexer.attn_q_b": (q_rank, 32 * index), "indexer.attn_k": (embd, index)})
            m.vector(f"blk.{il}.indexer.proj.weight", embd, 32)
            m.vector(f"blk.{il}.indexer.k_norm.weight", index)
            m.vector(f"blk.{il}.indexer.k_norm.bias", index)
        m.norms(il, "attn_norm", "ffn_norm")
        if il < dense:
            m.dense(il, dense_ff)
        else:
            m.experts(il, ff, select_bias=select)
            m.shared(il, ff * shared)
        if il >= layers:
            m.next_token(il, embedding=True)
    return m


def _delta_net(name, arch, layers, embd, vocab, heads, v_heads, n, used, published, nextn=0):
    """qwen3next and qwen35moe: every fourth layer attends, the others have 16 key heads of 128."""
    m = Model(name, arch, layers, embd, vocab, 262144, published, nextn=nextn)
    inner, keys = 128 * v_heads, 2 * 128 * 16
    ff = 512 if embd == 2048 else 1024
    m.attention_keys(heads, 2, 256, rot=64, base=1e7)
    m.keys({"ssm.conv_kernel": 4, "ssm.state_size": 128, "ssm.group_count": 16, "ssm.time_step_rank": v_heads})
    m.keys({"ssm.inner_size": inner, "full_attention_interval": 4})
    m.expert_keys(n, used, ff, shared_ff=ff)
    if arch == "qwen3next":
        m.keys(feed_forward_length=5120)
    else:
        m.keys({"rope.dimension_sections": [11, 11, 10, 0]})
    for il in m.all_layers:
        if il % 4 == 3 or il >= layers:
            m.keeps(il, 0, 2, 256, 256)
            m.projections(il, attn_q=(embd, 2 * heads * 256), attn_k=(embd, 512), attn_v=(embd, 512), attn_output=(heads * 256, embd))
            m.vector(f"blk.{il}.attn_q_norm.weight", 256)
            m.vector(f"blk.{il}.attn_k_norm.weight", 256)
        else:
            m.state_floats += v_heads * 128 * 128 + 3 * (inner + keys)
            m.projections(il, attn_qkv=(embd, inner + keys), attn_gate=(embd, inner), ssm_out=(inner, embd))
            for part in ("ba",) if arch == "qwen3next" else ("beta", "alpha"):
                m.projections(il, **{f"ssm_{part}": (embd, 2 * v_heads if part == "ba" else v_heads)})
            m.vector(f"blk.{il}.ssm_conv1d.weight", 4, inner + keys)
            m.vector(f"blk.{il}.ssm_dt.bias", v_heads)
            m.vector(f"blk.{il}.ssm_a", v_heads)
            m.vector(f"blk.{il}.ssm_norm.weight", 128)
        m.norms(il, "attn_norm", "post_attention_norm")
        m.experts(il, ff)
        m.vector(f"blk.{il}.ffn_gate_inp_shexp.weight", embd)
        m.shared(il, ff)
        if il >= layers:
            m.next_token(il)
    return m


def _lfm2moe():
    m = Model("LFM2-8B-A1B", "lfm2moe", 24, 2048, 65536, 128000, (8.3, 1.5), tied=True, norm=False)
    m.vector("token_embd_norm.weight", 2048)
    attends = [il in (2, 6, 10, 14, 18, 21) for il in m.all_layers]
    m.attention_keys(32, [8 if a else 0 for a in attends], base=1e6)
    m.keys({"feed_forward_length": 7168, "shortconv.l_cache": 3})
    m.expert_keys(32, 4, 1792, SIGMOID, dense=2)
    for il in m.all_layers:
        if attends[il]:
            m.attention(il, 32, 8, 64, norm="head")
        else:
            m.state_floats += 2 * 2048
            m.projections(il, **{"shortconv.in_proj": (2048, 6144), "shortconv.out_proj": (2048, 2048)})
            m.vector(f"blk.{il}.shortconv.conv.weight", 3, 2048)
        m.norms(il, "attn_norm", "ffn_norm")
        if il < 2:
            m.dense(il, 7168)
        else:
            m.experts(il, 1792, select_bias=True)
    return m


def _nemotron():
    pattern = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
    m = Model("Nemotron-3-Nano-30B-A3B", "nemotron_h_moe", 52, 2688, 131072, 262144, (31.6, 3.2))
    m.attention_keys(32, [2 if c == "*" else 0 for c in pattern], 128)
    m.keys({"attention.layer_norm_epsilon": 1e-5, "feed_forward_length": [1856 if c == "E" else 0 for c in pattern]})
    m.keys({"ssm.conv_kernel": 4, "ssm.inner_size": 4096, "ssm.state_size": 128, "ssm.group_count": 8, "ssm.time_step_rank": 64})
    m.keys({"rope.dimension_count": 84, "rope.scaling.finetuned": False})
    m.expert_keys(128, 6, 1856, SIGMOID, 2.5, True, 1, 3712, groups=(1, 1))
    conv = 4096 + 2 * 8 * 128
    for il, kind in enumerate(pattern):
        m.norms(il, "attn_norm")
        if kind == "M":
            m.state_floats += 4096 * 128 + 3 * conv
            m.projections(il, ssm_in=(2688, 4096 + conv + 64), ssm_out=(4096, 2688))
            m.vector(f"blk.{il}.ssm_conv1d.weight", 4, conv)
            m.vector(f"blk.{il}.ssm_conv1d.bias", conv)
            m.vector(f"blk.{il}.ssm_dt.bias", 64)
            m.vector(f"blk.{il}.ssm_a", 1, 64)
            m.vector(f"blk.{il}.ssm_d", 1, 64)
            m.vector(f"blk.{il}.ssm_norm.weight", 512, 8)
        elif kind == "*":
            m.attention(il, 32, 2, 128)
        else:
            m.experts(il, 1856, Q8_0, gated=False, select_bias=True)
            m.shared(il, 3712, gated=False)
    return m


def _kimi_linear():
    m = Model("Kimi-Linear-48B-A3B", "kimi-linear", 27, 2304, 163840, 1048576, (49.1, 3))
    full = [il % 4 == 3 or il == 26 for il in m.all_layers]
    m.attention_keys(32, [1 if f else 0 for f in full], 576, 512, rot=64)
    m.keys({"attention.kv_lora_rank": 512, "attention.key_length_mla": 192, "attention.value_length_mla": 128})
    m.keys({"ssm.conv_kernel": 4, "kda.head_dim": 128, "feed_forward_length": 9216})
    m.expert_keys(256, 8, 1024, SIGMOID, 2.446, True, 1, dense=1, groups=(1, 1))
    for il in m.all_layers:
        if full[il]:
            m.latent_attention(il, 32, 0, 512, 128, 64, 128)
        else:
            m.state_floats += 32 * 128 * 128 + 3 * 3 * 4096
            m.projections(il, attn_q=(2304, 4096), attn_k=(2304, 4096), attn_v=(2304, 4096), attn_output=(4096, 2304))
            m.projections(il, ssm_f_a=(2304, 128), ssm_f_b=(128, 4096), ssm_g_a=(2304, 128), ssm_g_b=(128, 4096), ssm_beta=(2304, 32))
            for part in "qkv":
                m.vector(f"blk.{il}.ssm_conv1d_{part}.weight", 4, 1, 4096, 1)
            m.vector(f"blk.{il}.ssm_a", 1, 32)
            m.vector(f"blk.{il}.ssm_dt.bias", 4096)
            m.vector(f"blk.{il}.ssm_norm.weight", 128)
        m.norms(il, "attn_norm", "ffn_norm")
        if il == 0:
            m.dense(il, 9216)
        else:
            m.experts(il, 1024, select_bias=True)
            m.shared(il, 1024)
    return m


def _minimax_m3():
    m = Model("MiniMax-M3", "minimax-m3", 60, 6144, 200064, 1048576, (428, 23))
    m.attention_keys(64, 4, 128, rot=64, base=5e6)
    m.keys(feed_forward_length=12288)
    m.expert_keys(128, 4, 3072, SIGMOID, 2.0, True, 1, dense=3)
    m.keys({f"attention.indexer.{k}": n for k, n in (("head_count", 4), ("key_length", 128), ("top_k", 16), ("block_size", 128), ("local_blocks", 1))})
    for il in m.all_layers:
        indexed = il >= 3
        m.attention(il, 64, 4, 128, norm="head")
        m.norms(il, "attn_norm", "ffn_norm")
        if indexed:
            m.cells[-1] = (0, 4, 128, 128, 128)
            m.projections(il, **{"indexer.q_proj": (6144, 512), "indexer.k_proj": (6144, 128)})
            m.vector(f"blk.{il}.indexer.q_norm.weight", 128)
            m.vector(f"blk.{il}.indexer.k_norm.weight", 128)
            m.experts(il, 3072, select_bias=True)
            m.shared(il, 3072)
        else:
            m.dense(il, 12288)
    return m


def _hyper(m, il, streams):
    """The tensors that mix four streams before attention and FFN."""
    mixes = streams * streams + 2 * streams
    for part in ("attn", "ffn"):
        m.vector(f"blk.{il}.hc_{part}_fn.weight", streams * m.embd, mixes)
        m.vector(f"blk.{il}.hc_{part}_base.weight", mixes)
        m.vector(f"blk.{il}.hc_{part}_scale.weight", 3)


def _compressor(m, il, prefix, block, width):
    """Blocks of 4 tokens overlap, so that they have twice the width."""
    wide = 2 * width if block == 4 else width
    m.projections(il, **{f"{prefix}_kv": (m.embd, wide), f"{prefix}_gate": (m.embd, wide)})
    m.vector(f"blk.{il}.{prefix}_ape.weight", wide, block)
    m.vector(f"blk.{il}.{prefix}_norm.weight", width)
    return wide


def _deepseek4():
    m = Model("DeepSeek-V4-Flash", "deepseek4", 43, 4096, 129280, 1048576, (284, 13))
    ratios = [0, 0] + [4, 128] * 20 + [4]
    m.attention_keys(64, 1, 512, rot=64)
    m.keys({"attention.q_lora_rank": 1024, "attention.sliding_window": 128, "attention.compress_ratios": ratios})
    m.keys({"attention.indexer.head_count": 64, "attention.indexer.key_length": 128, "attention.indexer.top_k": 512})
    m.keys({"attention.output_group_count": 8, "attention.output_lora_rank": 1024, "attention.compress_rope_freq_base": 160000.0})
    m.keys({"hyper_connection.count": 4, "hyper_connection.sinkhorn_iterations": 20, "hyper_connection.epsilon": 1e-6})
    m.keys(hash_layer_count=3, swiglu_clamp_exp=[10.0] * 43, swiglu_clamp_shexp=[10.0] * 43, embedding_length_out=16384)
    m.yarn(16.0, 65536, yarn_beta_fast=32.0, yarn_beta_slow=1.0)
    m.keys(feed_forward_length=2048)
    m.expert_keys(256, 6, 2048, SQRT_SOFTPLUS, 1.5, True, 1)
    m.vector("output_hc_fn.weight", 16384, 4)
    m.vector("output_hc_base.weight", 4)
    m.vector("output_hc_scale.weight", 1)
    for il, ratio in enumerate(ratios):
        m.keeps(il, 128, 1, 512, 0)
        m.projections(il, attn_q_a=(4096, 1024), attn_q_b=(1024, 32768), attn_kv=(4096, 512))
        m.projections(il, attn_output_a=(4096, 8192), attn_output_b=(8192, 4096))
        m.vector(f"blk.{il}.attn_q_a_norm.weight", 1024)
        m.vector(f"blk.{il}.attn_kv_a_norm.weight", 512)
        m.vector(f"blk.{il}.attn_sinks.weight", 64)
        kept = 0
        if ratio:
            kept += 2 * _compressor(m, il, "attn_compressor", ratio, 512)
        if ratio == 4:
            kept += 2 * _compressor(m, il, "indexer_compressor", ratio, 128)
            m.projections(il, **{"indexer.attn_q_b": (1024, 8192)})
            m.vector(f"blk.{il}.indexer.proj.weight", 4096, 64)
        if ratio:
            m.blocks.append((ratio, 512, 128 if ratio == 4 else 0))
            m.state_floats += kept * ratio * (2 if ratio == 4 else 1)
        _hyper(m, il, 4)
        m.norms(il, "attn_norm", "ffn_norm")
        m.experts(il, 2048, select_bias=il >= 3)
        m.shared(il, 2048)
        if il < 3:
            m.matrix(f"blk.{il}.ffn_gate_tid2eid.weight", 6, 129280, type_id=I32)
            m.looked_up += 6 * (129280 - 1)
    return m


def _qwen4exp():
    """A shape of the family's size; its makers' config.json is not at hand."""
    layers, embd, streams, rank, v_heads, ngram = 48, 2048, 4, 64, 32, 128
    m = Model("Qwen4 experimental", "qwen4exp", layers, embd, 248320, 262144, norm=False)
    inner, keys, sizes = 128 * v_heads, 2 * 128 * 16, [1000003, 1000033, 1000037, 1000039]
    m.attention_keys(16, 2, 256, rot=64, base=1e7)
    m.keys({"ssm.conv_kernel": 4, "ssm.state_size": 128, "ssm.group_count": 16, "ssm.time_step_rank": v_heads})
    m.keys({"ssm.inner_size": inner, "full_attention_interval": 4, "rope.dimension_sections": [11, 11, 10, 0]})
    m.keys({"hyper_connection.count": streams, "hyper_connection.low_rank": rank, "embedding_length_out": streams * embd})
    m.keys({"attention.indexer.head_count": 4, "attention.indexer.key_length": 128, "attention.indexer.top_k": 2048})
    m.keys({"attention.compress_ratios": [4 if il % 4 == 3 else 0 for il in range(layers)]})
    m.keys({"ple.layers": [0], "ple.ngram_size": 3, "ple.heads_per_ngram": 2, "ple.conv_kernel": 4, "ple.eos_token_id": 0})
    m.keys({"embedding_length_per_layer_input": ngram, "ple.layer_multipliers": [17592186044423, 8796093022237, 4398046511119]})
    m.keys({"ple.head_offsets": [sum(sizes[:i]) for i in range(4)], "ple.head_vocab_sizes": sizes})
    m.expert_keys(256, 8, 512, shared_ff=512)
    m.matrix("per_layer_token_embd.weight", ngram, sum(sizes))
    m.looked_up = ngram * (sum(sizes) - 4)
    m.stays_in_file = m.tensors[-1].n_bytes
    m.vector("output_hc_norm.weight", embd, streams)
    m.matrix("output_hc_down.weight", streams * embd, rank)
    m.matrix("output_hc_up.weight", rank, streams * embd)
    for il in m.all_layers:
        if il % 4 == 3:
            m.keeps(il, 0, 2, 256, 256)
            m.blocks.append((4, 128, 0))
            m.state_floats += 4 * 128
            m.projections(il, attn_q=(embd, 8192), attn_k=(embd, 512), attn_v=(embd, 512), attn_output=(4096, embd))
            m.projections(il, **{"indexer.q_proj": (embd, 512), "indexer.k_proj": (embd, 128)})
            for name, width in (("attn_q_norm", 256), ("attn_k_norm", 256), ("indexer.q_norm", 128), ("indexer.k_norm", 128)):
                m.vector(f"blk.{il}.{name}.weight", width)
        else:
            m.state_floats += v_heads * 128 * 128 + 3 * (inner + keys)
            m.projections(il, attn_qkv=(embd, inner + keys), attn_gate=(embd, inner), ssm_out=(inner, embd))
            m.projections(il, ssm_beta=(embd, v_heads), ssm_alpha=(embd, v_heads))
            m.vector(f"blk.{il}.ssm_conv1d.weight", 4, inner + keys)
            m.vector(f"blk.{il}.ssm_dt.bias", v_heads)
            m.vector(f"blk.{il}.ssm_a", v_heads)
            m.vector(f"blk.{il}.ssm_norm.weight", 128)
        if il == 0:
            m.state_floats += 9 * streams * embd + 2
            m.projections(il, ple_key=(4 * ngram, streams * embd), ple_value=(4 * ngram, embd))
            for part in ("key", "query", "conv"):
                m.vector(f"blk.{il}.ple_norm_{part}.weight", embd, streams)
            m.vector(f"blk.{il}.ple_conv1d.weight", 4, streams * embd)
        for part in ("attn", "ffn"):
            m.vector(f"blk.{il}.hc_{part}_norm.weight", embd, streams)
            wide = streams * embd
            m.projections(il, **{f"hc_{part}_down": (wide, rank), f"hc_{part}_up": (rank, wide), f"hc_{part}_inject": (wide, streams)})
        m.experts(il, 512)
        m.vector(f"blk.{il}.ffn_gate_inp_shexp.weight", embd)
        m.shared(il, 512)
    return m


def all_models():
    yield _mixtral("Mixtral-8x7B", 32, 4096, 32, 14336, 32000, (46.7, 12.9))
    yield _mixtral("Mixtral-8x22B", 56, 6144, 48, 16384, 32768, (141, 39))
    yield _olmoe()
    yield _qwen2moe("Qwen1.5-MoE-A2.7B", 24, 2048, 16, 16, 1408, 5632, 60, 4, (14.3, 2.7))
    yield _qwen2moe("Qwen2-57B-A14B", 28, 3584, 28, 4, 2560, 20480, 64, 8, (57.4, 14.2))
    yield _qwen3moe("Qwen3-30B-A3B", 48, 2048, 32, 768, 6144, (30.5, 3.3))
    yield _qwen3moe("Qwen3-235B-A22B", 94, 4096, 64, 1536, 12288, (235, 22))
    yield _gpt_oss("gpt-oss-20b", 24, 32, (20.9, 3.6))
    yield _gpt_oss("gpt-oss-120b", 36, 128, (116.8, 5.1))
    yield _glm4moe("GLM-4.5-Air", 46, 4096, 128, 1408, 10944, 1, None, (106, 12))
    yield _glm4moe("GLM-4.5", 92, 5120, 160, 1536, 12288, 3, "head", (355, 32))
    yield _bailingmoe2("Ling-mini-2.0", 20, 2048, 16, 512, 5120, (16.3, 1.4))
    yield _bailingmoe2("Ling-flash-2.0", 32, 4096, 32, 1024, 9216, (103, 6.1), nextn=1)
    yield _dots1()
    yield _ernie()
    yield _hunyuan()
    yield _granite()
    yield _phimoe()
    yield _minimax_m2()
    yield _llama4("Llama-4-Scout-17B-16E", 16, 1, (109, 17))
    yield _llama4("Llama-4-Maverick-17B-128E", 128, 2, (400, 17))
    yield _gemma4()
    yield _mimo2()
    yield _step35()
    yield _exaone()
    yield _afmoe()
    yield _cohere2moe()
    lite = {"gating": SOFTMAX, "scale": 1.0, "factor": 40.0, "select": False}
    yield _deepseek2("DeepSeek-V2-Lite", "deepseek2", 27, 2048, 102400, 16, (0, 512, 128, 64, 128), (64, 6), 1408, 10944, 1, 2, (15.7, 2.4), **lite)
    v3 = (1536, 512, 128, 64, 128)
    yield _deepseek2("DeepSeek-V3", "deepseek2", 61, 7168, 129280, 128, v3, (256, 8), 2048, 18432, 3, 1, (671, 37), groups=(8, 4), factor=40.0)
    yield _deepseek2("Kimi-K2", "deepseek2", 61, 7168, 163840, 64, v3, (384, 8), 2048, 18432, 1, 1, (1026, 32), scale=2.827, factor=32.0)
    flash = (768, 512, 192, 64, 256)
    yield _deepseek2("GLM-4.7-Flash", "deepseek2", 47, 2048, 154880, 20, flash, (64, 4), 1536, 10240, 1, 1, (30, 3), nextn=1, scale=1.8, base=1e6)
    small = {"factor": 128.0, "gating": SOFTMAX, "scale": 1.0, "select": False, "ctx": 1048576}
    small["keys"] = {"attention.temperature_scale": 0.1, "attention.temperature_length": 8192}
    yield _deepseek2("Mistral-Small-4", "mistral4", 36, 4096, 131072, 32, (1024, 256, 64, 64, 128), (128, 4), 2048, 12288, 0, 1, (119, 6.5), **small)
    indexed = {"attention.indexer.head_count": 32, "attention.indexer.key_length": 128, "attention.indexer.top_k": 2048}
    glm5 = (2048, 512, 192, 64, 256)
    yield _deepseek2("GLM-5", "glm-dsa", 78, 6144, 154880, 64, glm5, (256, 8), 2048, 12288, 3, 1, (744, 40), nextn=1, index=128, base=1e6, ctx=202752, keys=indexed)
    yield _delta_net("Qwen3-Next-80B-A3B", "qwen3next", 48, 2048, 151936, 16, 32, 512, 10, (80, 3))
    yield _delta_net("Qwen3.5-35B-A3B", "qwen35moe", 40, 2048, 248320, 16, 32, 256, 8, (35, 3), nextn=1)
    yield _delta_net("Qwen3.5-397B-A17B", "qwen35moe", 60, 4096, 248320, 32, 64, 512, 10, (397, 17))
    yield _lfm2moe()
    yield _nemotron()
    yield _kimi_linear()
    yield _minimax_m3()
    yield _deepseek4()
    yield _qwen4exp()
