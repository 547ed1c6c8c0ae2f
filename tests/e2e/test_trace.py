"""trace writes what the model does, in the format that runtime/route_trace.h documents; simulate replays it, and its hit
rates are those of a live run."""

import json
import math
import os

import harness
from harness import BUNDLED_MODEL

PROMPT = "433,418,262,394"
LAYERS, EXPERTS, TOP_K = 6, 32, 4
EXPERT_BYTES = 3 * 256 * 128 // 32 * 34
RESIDENT_VARIES = (1 << 20) // EXPERT_BYTES  # slots, from one start to the next


class Trace:
    """A trace read by its documentation alone."""

    def __init__(self, path):
        self.layers, self.tokens = [], []
        with open(path, encoding="utf-8") as file:
            assert next(file) == "# penstock routing trace v1\n"
            for line in file:
                words = line.rstrip("\n").split(" ")
                if words[0] == "#":
                    self._header(words[1:])
                elif words[0] == "token":
                    self.tokens.append((int(words[1]), words[2], words[3], {}, []))
                elif words[0] == "experts":
                    self.tokens[-1][3][int(words[1])] = [pair(word) for word in words[2:]]
                elif words[0] == "ahead":
                    self.tokens[-1][4].append((*map(int, words[1:4]), [pair(word) for word in words[4:]]))
                else:
                    raise AssertionError(line)

    def _header(self, words):
        if words[0].startswith("layer="):
            self.layers.append({key: int(value) for key, value in (word.split("=") for word in words)})

    @property
    def experts(self):
        """[token][layer] lists of ids, best first."""
        return [[[expert for expert, _ in chosen[layer]] for layer in sorted(chosen)] for _, _, _, chosen, _ in self.tokens]


def pair(word):
    expert, value = word.split(":")
    return int(expert), float(value)


class Case(harness.TestCase):
    def record(self, *flags, name="t.trace"):
        path = self.path(name)
        self.ok("trace", "-m", BUNDLED_MODEL, "-o", path, *flags)
        return path

    def simulate(self, trace, *flags):
        result = self.ok("simulate", trace, "--json", *flags)
        self.assertEqual(result.message, "")
        return json.loads(result.text)

    def outcome(self, trace, policy, *flags):
        """The one result of a policy at one size."""
        results = self.simulate(trace, "--policy", policy, *flags)["results"]
        self.assertEqual([result["policy"] for result in results], [policy, "belady"])
        return results[0]

    def files(self):
        return sorted(os.listdir(os.path.dirname(self.path("x"))))


class Recording(Case):
    def test_holds_the_prompt_and_the_greedy_tokens(self):
        trace = Trace(self.record("--prompt-tokens", PROMPT, "-n", 6))
        generated = self.generate(BUNDLED_MODEL, PROMPT.split(","), 6)
        self.assertEqual([token[0] for token in trace.tokens], list(range(10)))
        self.assertEqual([int(token[1]) for token in trace.tokens], [*map(int, PROMPT.split(",")), *generated])
        self.assertEqual([token[2] for token in trace.tokens], 4 * ["prefill"] + 6 * ["decode"])

    def test_has_the_experts_that_the_router_chose(self):
        trace = Trace(self.record("--tokens", "random:3", "-n", 12))
        tokens = [token[1] for token in trace.tokens]
        _, ids = self.logits(BUNDLED_MODEL, tokens, "--kv", "f16", experts=True)
        flat = [expert for token in trace.experts for layer in token for expert in layer]
        self.assertEqual(flat, list(harness.ints(ids)))
        for _, _, _, chosen, _ in trace.tokens:
            for experts in chosen.values():
                weights = [weight for _, weight in experts]
                self.assertAlmostEqual(sum(weights), 1.0, places=4)
                self.assertEqual(weights, sorted(weights, reverse=True))

    def test_header_has_the_facts_of_the_model(self):
        layers = Trace(self.record("--prompt-tokens", "1", "-n", 0)).layers
        self.assertEqual([layer["layer"] for layer in layers], list(range(LAYERS)))
        for layer in layers:
            self.assertEqual(layer["experts"], EXPERTS)
            self.assertEqual(layer["expert_bytes"], EXPERT_BYTES)

    def test_chunks_of_a_prompt_leave_no_trace_but_in_predictions(self):
        prompt = ",".join(str(7 * i % 500) for i in range(1, 41))
        one = Trace(self.record("--prompt-tokens", prompt, "-n", 3, "--chunk", 1))
        many = Trace(self.record("--prompt-tokens", prompt, "-n", 3, "--chunk", 16))
        self.assertEqual([token[:4] for token in one.tokens], [token[:4] for token in many.tokens])
        self.assertEqual({tokens for token in one.tokens for _, _, tokens, _ in token[4]}, {1})
        self.assertEqual({tokens for token in many.tokens for _, _, tokens, _ in token[4]}, {1, 8, 16})

    def test_predictions_are_ranked_and_name_later_layers(self):
        trace = Trace(self.record("--tokens", "random:1", "-n", 8))
        seen = set()
        for position, _, _, _, ahead in trace.tokens:
            for layer, distance, _, experts in ahead:
                seen.add((layer, distance))
                self.assertLess(distance, 3)
                self.assertLess(layer, LAYERS)
                self.assertEqual(len({expert for expert, _ in experts}), len(experts))
                for expert, probability in experts:
                    self.assertLess(expert, EXPERTS)
                    self.assertTrue(0 <= probability <= 1)
        self.assertEqual(seen, {(layer, distance) for layer in range(LAYERS) for distance in range(min(3, layer + 1))})

    def test_streams_the_same_from_the_smallest_budget(self):
        command = ("trace", "-m", BUNDLED_MODEL, "--tokens", "random:2", "-n", 16, "-o", self.path("small"))
        self.ok(*command, "--ram", harness.smallest_budget(*command))
        ample = Trace(self.record("--tokens", "random:2", "-n", 16))
        self.assertEqual(Trace(self.path("small")).experts, ample.experts)

    def test_existing_recording_is_replaced_whole(self):
        path = self.record("--prompt-tokens", "1", "-n", 5)
        self.assertEqual(self.record("--prompt-tokens", "1", "-n", 0), path)
        self.assertEqual(len(Trace(path).tokens), 1)
        self.assertEqual(self.files(), ["t.trace"])


class BadRecording(Case):
    def refused(self, *flags, code=1, output=None, **process):
        output = output or self.path("t.trace")
        result = harness.run("trace", "-m", BUNDLED_MODEL, "-o", output, *flags, **process)
        self.assertEqual(self.files(), [])
        return self.assert_one_error(result, code)

    def test_needs_exactly_one_input(self):
        self.assertIn("give one of", self.refused(code=2))
        self.assertIn("give one of", self.refused("-p", "a", "--prompt-tokens", "1", code=2))
        self.assertIn("not both", self.refused("-p", "a", "--tokens", "random:1", code=2))
        self.assertIn("empty", self.refused("-p", "", code=2))
        self.assertIn("number", self.refused("--tokens", "random:x", code=2))

    def test_token_outside_the_vocabulary_leaves_no_file(self):
        self.assertIn("99999", self.refused("--prompt-tokens", "1,99999", code=2))

    def test_path_that_cannot_be_written(self):
        self.assertIn("not a regular file", self.refused("-p", "a", output="/dev/full"))
        self.assertIn("not a regular file", self.refused("-p", "a", output=os.path.dirname(self.path("x"))))
        self.assertIn("No such file", self.refused("-p", "a", output=self.path("no/t.trace")))

    def test_full_disk(self):
        limited = ("sh", "-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh")
        self.assertIn("cannot write", self.refused("--tokens", "random:1", "-n", 200, wrapper=limited))

    def test_budget_too_small_leaves_no_file(self):
        self.assertIn("smallest that works", self.refused("-p", "a", "--ram", "64K"))

    def test_model_without_experts(self):
        path = self.path("dense.gguf")
        shape = ("--layers", 1, "--embd", 64, "--heads", 1, "--kv-heads", 1, "--head-dim", 64, "--vocab", 32, "--ff", 64)
        self.ok("synth", "-o", path, "--arch", "llama", "--experts", 0, *shape)
        line = self.fails("trace", "-m", path, "--prompt-tokens", "1", "-o", self.path("t"))
        self.assertIn("no experts", line)


class ReplayIsLive(Case):
    """The same code sees the same accesses: hits are equal, not about equal."""

    def live(self, *command):
        _, stats = self.statistics(*command, "--prefetch", "off")
        self.assertEqual(stats["expert_late"], 0)
        return stats

    def check(self, trace, policy, stats):
        outcome = self.outcome(trace, policy, "--ram", stats["slots"] * EXPERT_BYTES)
        self.assertEqual(outcome["slots"], stats["slots"])
        self.assertEqual(outcome["accesses"], stats["expert_hits"] + stats["expert_misses"])
        self.assertEqual(outcome["hits"], stats["expert_hits"])
        return outcome

    def test_bench_decode(self):
        command = ("bench", "decode", "-m", BUNDLED_MODEL, "-n", 96, "--tokens", "random:1")
        trace = self.record("--tokens", "random:1", "-n", 96)
        for policy in harness.cache_policies():
            smallest = harness.smallest_budget(*command, "--cache-policy", policy, "--prefetch", "off")
            rates = []
            for ram in (smallest + (2 << 20), smallest + (4 << 20), smallest + (8 << 20)):
                with self.subTest(policy=policy, ram=ram):
                    stats = self.live(*command, "--cache-policy", policy, "--ram", ram)
                    rates.append(self.check(trace, policy, stats)["hit_rate"])
            self.assertTrue(rates[0] < rates[1] < rates[2] < 1, rates)

    def test_run(self):
        trace = self.record("--prompt-tokens", "433", "-n", 63)
        command = ("run", "-m", BUNDLED_MODEL, "--prompt-tokens", "433", "-n", 64, "--temp", 0, "--warm", "off")
        ram = harness.smallest_budget(*command, "--prefetch", "off") + (4 << 20)
        self.check(trace, "lru", self.live(*command, "--cache-policy", "lru", "--ram", ram))


class Simulating(Case):
    def test_figures_are_what_the_help_says(self):
        trace = self.record("--tokens", "random:1", "-n", 40)
        report = self.simulate(trace, "--ram", "10%,3M,100%", "--io-rate", "64M", "--compute-ms", 20, "--skip", 8)
        self.assertEqual((report["tokens"], report["counted"]), (40, 32))
        self.assertEqual((report["layers"], report["experts"], report["top_k"]), (LAYERS, LAYERS * EXPERTS, TOP_K))
        self.assertEqual(report["token_cycle"], LAYERS * TOP_K)
        self.assertEqual(report["expert_bytes"], EXPERT_BYTES)
        policies = [*harness.cache_policies(), "belady"]
        self.assertEqual([result["policy"] for result in report["results"]], 3 * policies)
        slots = {result["slots"] for result in report["results"]}
        self.assertEqual(slots, {19, (3 << 20) // EXPERT_BYTES, 192})
        for result in report["results"]:
            misses = result["accesses"] - result["hits"]
            self.assertEqual(result["accesses"], 32 * LAYERS * TOP_K)
            self.assertAlmostEqual(result["hit_rate"], result["hits"] / result["accesses"])
            self.assertLessEqual(result["cold_misses"], misses)
            self.assertAlmostEqual(result["bytes_per_token"], misses / 32 * EXPERT_BYTES, places=1)
            seconds = max(0.02, result["bytes_per_token"] / (64 << 20))
            self.assertAlmostEqual(result["tok_s"], 1 / seconds, places=4)
            self.assertAlmostEqual(result["cycles"], result["slots"] / (LAYERS * TOP_K))
            if result["slots"] == 192:
                self.assertEqual(misses, result["cold_misses"])

    def test_no_policy_beats_belady(self):
        trace = self.record("--tokens", "random:4", "-n", 60)
        results = self.simulate(trace)["results"]
        best = {result["slots"]: result["hits"] for result in results if result["policy"] == "belady"}
        self.assertGreater(len(best), 3)
        for result in results:
            self.assertLessEqual(result["hits"], best[result["slots"]])
            if result["gap_closed"] is not None:
                self.assertLessEqual(result["gap_closed"], 1)

    def test_table_has_a_row_per_size_and_policy_and_a_dash_for_what_is_not_known(self):
        trace = self.record("--tokens", "random:1", "-n", 20)
        lines = self.ok("simulate", trace, "--ram", "20%,50%", "--policy", "lru").text.splitlines()
        rows = [line.split() for line in lines if line.endswith(" -")]
        self.assertEqual([row[5] if "iB" in row[1] else row[4] for row in rows], ["lru", "belady", "lru", "belady"])

    def test_whole_budgets_are_divided_as_the_plan_divides_them(self):
        trace = self.record("--tokens", "random:1", "-n", 20)
        ram = harness.smallest_budget("inspect", BUNDLED_MODEL, "--ctx", 64) + (4 << 20)
        plan = json.loads(self.ok("inspect", BUNDLED_MODEL, "--json", "--ram", ram, "--ctx", 64).text)["plans"][0]
        outcome = self.outcome(trace, "context", "-m", BUNDLED_MODEL, "--ram", ram, "--ctx", 64)
        self.assertEqual(outcome["ram_bytes"], ram)
        self.assertGreater(outcome["slots"], 0)
        self.assertLessEqual(abs(outcome["slots"] - plan["slots"]), RESIDENT_VARIES)
        line = self.fails("simulate", trace, "-m", BUNDLED_MODEL, "--ram", "64K")
        self.assertIn("smallest that works", line)

    def test_a_long_recording_takes_no_slots_from_the_plan(self):
        short, long = self.record("--tokens", "random:1", "-n", 2, name="short"), self.path("long")
        text = harness.read_bytes(short)
        start = text.index(b"token ")
        harness.write_bytes(long, text[:start] + 2000 * text[start:])  # megabytes
        ram = harness.smallest_budget("inspect", BUNDLED_MODEL, "--ctx", 64) + (4 << 20)
        flags = ("lru", "-m", BUNDLED_MODEL, "--ctx", 64, "--ram", ram)
        slots = [self.outcome(path, *flags)["slots"] for path in (short, long)]
        self.assertLessEqual(abs(slots[0] - slots[1]), RESIDENT_VARIES)

    def test_recall_of_the_predictor_is_reported_where_it_was_recorded(self):
        trace = self.record("--tokens", "random:1", "-n", 40)
        recalls = self.simulate(trace)["prediction_recall"]
        self.assertTrue(1 > recalls[0] > recalls[2] > TOP_K / EXPERTS, recalls)
        recorded = Trace(trace)
        right = chosen = 0
        for _, _, _, experts, ahead in recorded.tokens:
            for layer, distance, tokens, guesses in ahead:
                if distance == 0:
                    right += len({expert for expert, _ in guesses[:TOP_K]} & {expert for expert, _ in experts[layer]})
                    chosen += TOP_K
        self.assertAlmostEqual(recalls[0], right / chosen)

    def test_others_recordings_without_bytes(self):
        path = self.path("t.jsonl")
        harness.write_bytes(path, b"".join(b'{"tok": %d, "layers": [[%d, 7], [3, 9]]}\n' % (i, i % 7) for i in range(30)))
        outcome = self.outcome(path, "lru", "--ram", "50%")
        self.assertIsNone(outcome["bytes_per_token"])
        self.assertIsNone(outcome["ram_bytes"])
        self.assertEqual(outcome["slots"], 10)
        self.assertIn("--expert-bytes", self.fails("simulate", path, "--ram", "1M", code=2))
        outcome = self.outcome(path, "lru", "--ram", "8K", "--expert-bytes", "1K", "--io-rate", "1M")
        self.assertEqual(outcome["slots"], 8)
        self.assertTrue(math.isclose(outcome["tok_s"], (1 << 20) / outcome["bytes_per_token"], rel_tol=1e-6))
        self.assertEqual(self.outcome(path, "lru", "--ram", "50%", "--experts", "64")["slots"], 64)
        self.assertIn("has 10 experts", self.fails("simulate", path, "--experts", "9", code=2))

    @harness.needs_shared("traces", "qwen3-30b-a3b.route.csv")
    def test_recording_of_a_real_model(self):
        outcome = self.outcome(harness.shared("traces", "qwen3-30b-a3b.route.csv"), "lru", "--ram", "10%")
        self.assertAlmostEqual(outcome["hit_rate"], 0.49, delta=0.005)


class BadSimulation(Case):
    def setUp(self):
        super().setUp()
        self.trace = self.path("t.jsonl")
        harness.write_bytes(self.trace, b'{"layers": [[1, 2], [3, 4]]}\n{"layers": [[1, 5], [0, 4]]}\n')

    def test_flags(self):
        for flags, message in (
            (("--ram", "x"), "not a size nor a percent"),
            (("--ram", ""), "not a size nor a percent"),
            (("--ram", "10%,"), "not a size nor a percent"),
            (("--ram", "0%"), "not a size nor a percent"),
            (("--ram", "101%"), "not a size nor a percent"),
            (("--ram", "nan%"), "not a size nor a percent"),
            (("--ram", "10%"), "too small"),
            (("--policy", "x"), "unknown"),
            (("--policy", "lru,,"), "unknown"),
            (("--skip", "2"), "leaves none"),
            (("--compute-ms", "-1"), "--compute-ms"),
        ):
            with self.subTest(flags=flags):
                self.assertIn(message, self.fails("simulate", self.trace, *flags, code=2))

    def test_another_model(self):
        self.assertIn("MoE layers", self.fails("simulate", self.trace, "-m", BUNDLED_MODEL, code=2))

    def test_files(self):
        bad = self.path("bad")
        directory = os.path.dirname(bad)
        self.assertIn("No such file", self.fails("simulate", bad))
        self.assertIn("Is a directory", self.fails("simulate", directory))
        self.assertIn("line 1", self.fails("simulate", BUNDLED_MODEL))
        self.assertIn("line 1", self.fails("simulate", "/dev/null"))
        self.assertIn("line 1", self.fails("simulate", "/dev/zero"))
        recorded = harness.read_bytes(self.record("--tokens", "random:1", "-n", 4))
        harness.write_bytes(bad, recorded[:-9])
        self.assertIn(f"line {recorded.count(10)}", self.fails("simulate", bad))
        harness.write_bytes(bad, recorded.replace(b"\nexperts 5 ", b"\nexperts 5 32:0.1 ", 1))
        self.assertRegex(self.fails("simulate", bad), r"bad: line \d+: layer 5 has experts 0 to 31, not 32")


if __name__ == "__main__":
    harness.main()
