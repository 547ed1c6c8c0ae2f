"""bench --replay: another run's routing on the weights at hand. The cache is asked for what was recorded, so that its hits are
those that simulate counts, and those of the run that was recorded."""

import json
import os
import random

import harness
from harness import BUNDLED_MODEL

LAYERS, EXPERTS, TOP_K = 6, 32, 4
EXPERT_BYTES = 3 * 256 * 128 // 32 * 34
SHAPE = ("--layers", LAYERS, "--embd", 256, "--heads", 8, "--kv-heads", 4, "--head-dim", 32, "--experts", EXPERTS, "--top-k", TOP_K)
SHAPE += ("--expert-ff", 128, "--vocab", 512, "--ctx", 256, "--type", "q8_0")
TOKENS = 60
AMPLE = 40  # MiB in which all experts stay


def made_up(seed, tokens=TOKENS, layers=LAYERS, experts=EXPERTS, top_k=TOP_K):
    """A trace in which experts are used unequally and often again, and a few layers of tokens were not recorded."""
    rng = random.Random(seed)
    lines = ["# penstock routing trace v1", "# model=made up", f"# arch=qwen3moe top_k={top_k}"]
    lines += [f"# layer={layer} experts={experts} expert_bytes={EXPERT_BYTES}" for layer in range(layers)]
    last = [list(range(top_k)) for _ in range(layers)]
    for token in range(tokens):
        lines.append(f"token {token} - decode")
        for layer in range(layers):
            if layer > 0 and rng.random() < 0.05:
                continue
            kept = [expert for expert in last[layer] if rng.random() < 0.5]
            while len(kept) < top_k:
                expert = int(experts * rng.random() ** 2)
                if expert not in kept:
                    kept.append(expert)
            last[layer] = kept
            lines.append(" ".join(["experts", str(layer), *map(str, kept)]))
    return lines


def visits(lines):
    """[token]{layer: set of experts} of a trace in our own format."""
    tokens = []
    for line in lines:
        words = line.split(" ")
        if words[0] == "token":
            tokens.append({})
        elif words[0] == "experts":
            tokens[-1][int(words[1])] = {int(word.split(":")[0]) for word in words[2:]}
    return tokens


class Case(harness.TestCase):
    def setUp(self):
        super().setUp()
        self.model = self.synth("moe.gguf")

    def synth(self, name, *shape):
        path = self.path(name)
        self.ok("synth", "--arch", "qwen3moe", "-o", path, *SHAPE, *shape)
        return path

    def write(self, name, lines):
        path = self.path(name)
        harness.write_bytes(path, ("\n".join(lines) + "\n").encode())
        return path

    def record(self, *flags):
        path = self.path("recorded.trace")
        self.ok("trace", "-m", BUNDLED_MODEL, "-o", path, *flags)
        return path

    def replay(self, trace, more, *flags, kind="decode", model=None, n=TOKENS):
        """With the smallest budget and so many MiB more: what a sanitizer takes of it is its own."""
        command = ("bench", kind, "-m", model or self.model, "-n", n, "--replay", trace, *flags)
        return self.statistics(*command, "--ram", harness.smallest_budget(*command) + (more << 20))

    def simulate(self, trace, policy, slots):
        size = ("--ram", slots * EXPERT_BYTES, "--expert-bytes", EXPERT_BYTES, "--experts", EXPERTS)
        return json.loads(self.ok("simulate", trace, "--json", "--policy", policy, *size).text)["results"][0]

    def assert_simulated(self, stats, trace, policy):
        outcome = self.simulate(trace, policy, stats["slots"])
        self.assertEqual(outcome["slots"], stats["slots"])
        self.assertEqual(outcome["accesses"], stats["expert_hits"] + stats["expert_late"] + stats["expert_misses"])
        self.assertEqual(outcome["hits"], stats["expert_hits"])
        self.assertGreaterEqual(stats["bytes_demand"], stats["expert_misses"] * EXPERT_BYTES)
        return outcome

    def with_slots(self, slots, ram, command):
        """Statistics of a run with so many slots: what a process takes besides differs a little between runs."""
        for _ in range(20):
            _, stats = self.statistics(*command, "--ram", ram)
            if stats["slots"] == slots:
                return stats
            ram += (slots - stats["slots"]) * EXPERT_BYTES * 3 // 4
        raise AssertionError(f"no run had {slots} slots")


class HitsAreThoseOfSimulate(Case):
    def test_under_every_policy_and_budget(self):
        trace = self.write("t.trace", made_up(1))
        for policy in harness.cache_policies():
            flags = ("--cache-policy", policy, "--prefetch", "off")
            rates = []
            for more in (4, 7, 11):
                with self.subTest(policy=policy, more=more):
                    _, stats = self.replay(trace, more, *flags)
                    rates.append(self.assert_simulated(stats, trace, policy)["hit_rate"])
            self.assertTrue(rates[0] < rates[1] < rates[2] < 1, rates)

    def test_a_trace_shorter_than_the_run_is_repeated(self):
        lines = made_up(2)
        once, twice = self.write("once", lines), self.write("twice", lines + lines[lines.index("token 0 - decode") :])
        _, stats = self.replay(once, 6, n=2 * TOKENS)
        self.assert_simulated(stats, twice, harness.cache_policies()[0])

    def test_each_pass_begins_with_the_first_token(self):
        trace = self.write("t.trace", made_up(3))
        _, stats = self.replay(trace, AMPLE, "--warm-up", 1, "--repeat", 2, n=7)
        wanted = 2 * sum(len(experts) for token in visits(made_up(3))[:7] for experts in token.values())
        self.assertEqual((stats["expert_hits"], stats["expert_misses"]), (wanted, 0))

    def test_a_long_trace_stays_within_the_budget(self):
        if harness.is_slow():
            self.skipTest("a sanitizer's or an emulator's own memory is not penstock's")
        short, long = self.write("short", made_up(7, 20)), self.write("long", made_up(7, 6000))
        command = ("bench", "decode", "-m", self.model, "-n", 20, "--ram", "14M", "--replay")
        _, small = self.statistics(*command, short)
        result, large = self.statistics(*command, long)
        self.assertGreater(large["process_bytes"], small["process_bytes"] + (1 << 20))
        self.assertLess(large["slots"], small["slots"])
        self.assertGreater(large["slots"], 0)
        self.assertLessEqual(result.peak_rss, 14 << 20)

    def test_prefill_token_by_token(self):
        trace = self.write("t.trace", made_up(4))
        _, stats = self.replay(trace, 6, "--chunk", 1, kind="prefill")
        self.assert_simulated(stats, trace, harness.cache_policies()[0])

    def test_prefill_in_chunks_asks_for_each_expert_once_a_chunk(self):
        trace = self.write("t.trace", made_up(5))
        _, stats = self.replay(trace, AMPLE, "--chunk", 16, kind="prefill")
        tokens = visits(made_up(5))
        wanted = 0
        for start in range(0, TOKENS, 16):
            chunk = tokens[start : start + 16]
            wanted += sum(len(set().union(*(token.get(layer, set()) for token in chunk))) for layer in range(LAYERS))
        self.assertEqual(stats["expert_hits"] + stats["expert_misses"], wanted)

    def test_sorted_ids_of_others(self):
        rng = random.Random(6)
        tokens = [[sorted(rng.sample(range(EXPERTS), TOP_K)) for _ in range(LAYERS)] for _ in range(TOKENS)]
        trace = self.write("t.jsonl", [json.dumps({"tok": i, "layers": layers}) for i, layers in enumerate(tokens)])
        _, stats = self.replay(trace, 6)
        self.assert_simulated(stats, trace, harness.cache_policies()[0])

    @harness.needs_shared("traces", "qwen3-30b-a3b.route.csv")
    def test_recording_of_a_real_model(self):
        trace = harness.shared("traces", "qwen3-30b-a3b.route.csv")
        shape = ("--layers", 48, "--embd", 64, "--heads", 2, "--kv-heads", 2, "--experts", 128, "--top-k", 8, "--expert-ff", 32)
        model = self.synth("qwen.gguf", *shape)
        self.assertIn("add --top-k 6", self.fails("bench", "decode", "-m", model, "--replay", trace, code=2))
        result, stats = self.replay(trace, 12, "--top-k", 6, model=model, n=156)
        self.assertLess(stats["slots"], stats["shards"])
        size = ("--ram", f"{100 * (stats['slots'] + 0.1) / stats['shards']}%")
        policy = harness.cache_policies()[0]
        outcome = json.loads(self.ok("simulate", trace, "--json", "--policy", policy, *size).text)["results"][0]
        self.assertEqual((outcome["slots"], outcome["hits"]), (stats["slots"], stats["expert_hits"]))
        self.assertEqual(stats["replayed"], ["experts", "weights"])
        self.assertIn("27 of 7488 layer visits were not recorded", result.message)


class OwnRecording(Case):
    """The trace of a run gives that run's reads, on its own weights and on others of the same shape."""

    def setUp(self):
        super().setUp()
        self.trace = self.record("--tokens", "random:1", "-n", TOKENS)

    def test_same_bytes_are_read(self):
        if harness.is_slow():
            self.skipTest("a sanitizer's memory differs from start to start, and with it the number of slots")
        flags = ("--prefetch", "off", "-n", TOKENS, "--tokens", "random:1", "-m", BUNDLED_MODEL)
        ram = harness.smallest_budget("bench", "decode", *flags) + (4 << 20)
        _, original = self.statistics("bench", "decode", *flags, "--ram", ram)
        self.assertGreater(original["expert_misses"], 0)
        self.assertIsNone(original["replay"])
        own = self.with_slots(original["slots"], ram, ("bench", "decode", *flags, "--replay", self.trace))
        for key in ("expert_hits", "expert_misses", "trunk_layers_resident", "bytes_demand"):
            self.assertEqual(own[key], original[key])
        synthetic = ("bench", "decode", "-m", self.model, "-n", TOKENS, "--prefetch", "off", "--replay", self.trace)
        other = self.with_slots(original["slots"], ram, synthetic)
        self.assertEqual(other["expert_hits"], original["expert_hits"])

    def test_recorded_predictions_are_read_ahead(self):
        result, stats = self.replay(self.trace, 5, "--io-limit", "400M")
        self.assertEqual(stats["replay"], "recorded.trace")
        self.assertEqual(stats["replayed"], ["experts", "weights", "predictions"])
        self.assertIn(f"predictions of {TOKENS - 1} of {TOKENS} tokens", result.message)
        self.assertGreater(stats["bytes_useful"] + stats["bytes_late"], 0)
        self.assertFalse([key for key in stats if key.startswith("predicted_")])
        # A predictor that knows nothing of the routing is right by chance; the recorded one was not.
        self.assertGreater(stats["bytes_useful"] + stats["bytes_late"], stats["bytes_wasted"])

    def test_prefetch_is_off_where_nothing_was_predicted(self):
        result, stats = self.replay(self.write("t.trace", made_up(1)), 5)
        self.assertEqual(stats["replayed"], ["experts"])
        self.assertEqual((stats["bytes_speculative"], stats["predictor_bytes"]), (0, 0))
        self.assertIn("prefetch is off: no predictions to replay", result.message)
        result, stats = self.replay(self.trace, 5, "--prefetch", "off")
        self.assertEqual(stats["replayed"], ["experts", "weights"])
        self.assertNotIn("prefetch is off", result.message)

    def test_what_is_real_is_one_line(self):
        result, _ = self.replay(self.trace, AMPLE)
        lines = [line for line in result.message.splitlines() if line.startswith("replay of recorded.trace (fable-moe): ")]
        self.assertEqual(len(lines), 1, result.message)
        self.assertIn("real: attention", lines[0])
        self.assertIn("logits mean nothing", lines[0])


class Sweep(Case):
    N = 40

    def sweep(self, trace, ram, *flags):
        # No warm-up: the cache is empty at first, as simulate's is.
        return ("bench", "sweep", "-m", self.model, "--ram", ram, "--replay", trace, "-n", self.N, "--warm-up", 0, "--repeat", 1,
                "--probe", 0, "--threads", 1, "-o", self.path("sweep"), *flags)  # fmt: skip

    def records(self):
        with open(self.path("sweep/records.jsonl"), encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def alone(self, trace, like):
        """The record of bench decode, and its slots, with a cache as large as that of a cell."""
        lines, ram = self.path("alone.jsonl"), like["ram"]
        for _ in range(20):
            _, stats = self.statistics("bench", "decode", "-m", self.model, "--ram", ram, "--replay", trace, "-n", self.N, "--prefetch",
                                       "off", "--probe", 0, "--threads", 1, "--json-lines", lines)  # fmt: skip
            with open(lines, encoding="utf-8") as file:
                record = json.loads(file.readlines()[-1])
            if record["cycles"] == like["cycles"]:
                return record, stats["slots"]
            ram += int((like["cycles"] - record["cycles"]) * LAYERS * TOP_K * EXPERT_BYTES * 3 / 4)
        raise AssertionError(f"no run had a cache of {like['cycles']} cycles")

    def test_hits_are_those_of_bench_decode_and_simulate(self):
        trace = self.write("t.trace", made_up(8))
        least = harness.smallest_budget("bench", "decode", "-m", self.model, "-n", self.N, "--replay", trace)
        rams = harness.comma_list([least + (5 << 20), least + (8 << 20)])
        result = self.ok(*self.sweep(trace, rams, "--prefetch", "off,auto"))
        said = [line for line in result.message.splitlines() if line.startswith("replay of t.trace (made up): ")]
        self.assertEqual(len(said), 1, result.message)
        self.assertIn("prefetch is off: no predictions to replay", said[0])
        records = self.records()
        asked = {(r["replay"], r["prefetch"], r["prefetch_used"], r["cell"].split("prefetch=")[1].split()[0]) for r in records}
        self.assertEqual(asked, {("t.trace", "off", "off", "off"), ("t.trace", "auto", "off", "auto")})
        self.assertEqual(len(records), 4)
        if harness.is_slow():
            return  # a sanitizer's memory differs from start to start, and with it the number of slots
        for record in records:
            with self.subTest(ram=record["ram"], cell=record["cell"]):
                alone, slots = self.alone(trace, record)
                self.assertEqual(record["hit_rate"], alone["hit_rate"])
                self.assertTrue(0 < record["hit_rate"] < 1)
                simulated = self.simulate(self.write("begin.trace", made_up(8, self.N)), record["policy"], slots)
                self.assertAlmostEqual(record["hit_rate"], simulated["hit_rate"])

    def test_recorded_predictions_are_replayed_where_they_are_asked_for(self):
        trace = self.record("--tokens", "random:1", "-n", TOKENS)
        self.ok(*self.sweep(trace, "1G", "--prefetch", "off,auto"))
        self.assertEqual({(r["prefetch"], r["prefetch_used"]) for r in self.records()}, {("off", "off"), ("auto", "auto")})

    def test_sweeps_with_and_without_do_not_mix(self):
        trace = self.write("t.trace", made_up(9))
        self.ok(*self.sweep(trace, "1G"))
        before = self.records()
        self.ok(*self.sweep(trace, "1G"))
        without = [word for word in self.sweep(trace, "1G") if word not in ("--replay", trace)]
        self.assertIn("replay=t.trace", self.fails(*without, code=2))
        os.mkdir(self.path("elsewhere"))
        self.assertNotIn("[1/", self.ok(*self.sweep(harness.copy(trace, self.path("elsewhere/t.trace")), "1G")).message)
        self.write("t.trace", made_up(10))  # the same name, another recording
        self.assertIn("other settings", self.fails(*self.sweep(trace, "1G"), code=2))
        self.assertEqual(self.records(), before)

    def test_refusals_are_those_of_bench_decode(self):
        trace = self.write("t.trace", made_up(1, experts=16))
        self.assertIn("has 16 experts", self.fails(*self.sweep(trace, "1G"), code=2))
        self.assertIn("none", self.fails(*self.sweep(self.path("none"), "1G")))
        self.assertIn("logits of a replay", self.fails(*self.sweep(trace, "1G", "--tokens", "greedy"), code=2))
        self.assertFalse(os.path.exists(self.path("sweep")))


class Refusals(Case):
    def refused(self, trace, *flags, model=None, kind="decode"):
        return self.fails("bench", kind, "-m", model or self.model, "--replay", trace, *flags, code=2)

    def test_another_shape(self):
        for shape, message in (
            ({"layers": 5}, "has 5 MoE layers, the model 6"),
            ({"experts": 16}, "has 16 experts in MoE layer 0, the model 32"),
            ({"top_k": 5}, "has 5 experts per token, the model 4"),
            ({"top_k": 3}, "has 3 experts per token, the model would use 4: add --top-k 3"),
        ):
            with self.subTest(**shape):
                trace = self.write("t.trace", made_up(1, **shape))
                self.assertIn(message, self.refused(trace))
                self.assertIn("t.trace", self.refused(trace, kind="prefill"))
        trace = self.write("few.trace", made_up(1, top_k=3))
        _, stats = self.replay(trace, AMPLE, "--top-k", 3)
        self.assertEqual(stats["replay"], "few.trace")
        self.assertIn("would use 4", self.refused(self.write("t", made_up(1, top_k=3)), "--top-k", 4))

    def test_experts_beyond_the_models(self):
        trace = self.write("t.jsonl", [json.dumps({"layers": LAYERS * [[1, 2, 3, EXPERTS]]})])
        self.assertIn("at least 33 experts in MoE layer 0, the model 32", self.refused(trace))

    def test_a_model_without_experts(self):
        dense = self.path("dense.gguf")
        shape = ("--layers", 1, "--embd", 64, "--heads", 1, "--kv-heads", 1, "--head-dim", 64, "--vocab", 32, "--ff", 64)
        self.ok("synth", "-o", dense, "--arch", "llama", "--experts", 0, *shape)
        self.assertIn("the model 0", self.refused(self.write("t", made_up(1)), model=dense))

    def test_what_would_go_by_the_logits_or_the_router(self):
        trace = self.write("t.trace", made_up(1))
        self.assertIn("logits of a replay mean nothing", self.refused(trace, "--tokens", "greedy"))
        self.assertIn("leave them out", self.refused(trace, "--drop-below", 0.1))
        self.assertIn("leave them out", self.refused(trace, "--substitute"))
        self.assertIn("--replay", self.fails("run", "-m", self.model, "--prompt-tokens", "1", "--replay", trace, code=2))

    def test_files(self):
        missing = self.fails("bench", "decode", "-m", self.model, "--replay", self.path("none"))
        self.assertIn("No such file", missing)
        self.assertIn("line 1", self.fails("bench", "decode", "-m", self.model, "--replay", self.model))
        self.assertEqual(sorted(os.listdir(self.path(""))), ["moe.gguf"])


if __name__ == "__main__":
    harness.main()
