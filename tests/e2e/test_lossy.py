"""Lossy modes change what they say and nothing else, count it, and `eval kl` measures it."""

import array
import json
import math
import os
import sys

import harness
from harness import BUNDLED_MODEL

TOKENS = [(7 * i * i + 31 * i + 5) % 190 + 1 for i in range(40)]
N_VOCAB, N_LAYERS, N_EXPERTS, K = 2048, 6, 32, 4  # of the bundled model
CHOICES = len(TOKENS) * N_LAYERS * K
AMPLE = ("--ram", "1G")
# The cache's state decides what lossy modes do: nothing may arrive that was not asked for.
ONE_BY_ONE = ("--chunk", 1, "--prefetch", "off")
ROW = 4 * N_VOCAB
TINY = ("--layers", 3, "--embd", 64, "--heads", 2, "--kv-heads", 2, "--head-dim", 32, "--ctx", 128)
TINY_EXPERTS = ("--experts", 8, "--top-k", 3, "--expert-ff", 64)


def parts(stats):
    return {name: stats["choices_" + name] for name in ("trimmed", "dropped", "substituted")}


class LossyCase(harness.TestCase):
    def evaluate(self, *flags, model=BUNDLED_MODEL):
        """Logits, statistics and the lines on stderr that tell of lossy modes."""
        out = self.path("logits.f32")
        result, stats = self.statistics(*harness.logits_command(model, TOKENS, *flags, out=out))
        lines = [line for line in result.message.splitlines() if line.startswith("lossy: ")]
        return harness.read_bytes(out), stats, lines

    def budget(self, slots, *flags):
        """A budget with about that many slots of the bundled model."""
        smallest = harness.smallest_budget(*harness.logits_command(BUNDLED_MODEL, TOKENS, *flags))
        return ("--ram", smallest + (1 << 20) + slots * 3 * 256 * 128 // 32 * 34)


class Off(LossyCase):
    def test_nothing_is_changed_and_nothing_is_said(self):
        for flags in (AMPLE, self.budget(8, *ONE_BY_ONE)):
            exact, stats, lines = self.evaluate(*ONE_BY_ONE, *flags)
            self.assertEqual(lines, [])
            self.assertEqual(stats["choices"], CHOICES)
            self.assertEqual(parts(stats), {"trimmed": 0, "dropped": 0, "substituted": 0})
            self.assert_same_logits(self.evaluate(*ONE_BY_ONE, *flags, "--drop-below", 0)[0], exact)


class TopK(LossyCase):
    def test_own_number_changes_nothing(self):
        exact, experts = self.logits(BUNDLED_MODEL, TOKENS, experts=True)
        for number in (K, "own"):
            logits, chosen = self.logits(BUNDLED_MODEL, TOKENS, "--top-k", number, experts=True)
            self.assert_same_logits(logits, exact)
            self.assertTrue(chosen == experts)

    def test_fewer_are_the_best_of_the_models_own(self):
        exact, experts = self.logits(BUNDLED_MODEL, TOKENS, experts=True)
        own = harness.ints(experts)
        for n in range(1, K):
            with self.subTest(n=n):
                logits, experts = self.logits(BUNDLED_MODEL, TOKENS, "--top-k", n, experts=True)
                self.assertFalse(logits == exact)
                chosen = harness.ints(experts)
                self.assertEqual(len(chosen), len(TOKENS) * N_LAYERS * n)
                # In layer 0 the router sees the same residual stream: the first token's is its embedding alone.
                self.assertEqual(chosen[:n], own[:n])

    def test_trimmed_choices_are_counted_exactly(self):
        for n in range(1, K + 1):
            _, stats, lines = self.evaluate("--top-k", n, *ONE_BY_ONE)
            self.assertEqual(stats["choices"], CHOICES)
            self.assertEqual(parts(stats), {"trimmed": CHOICES // K * (K - n), "dropped": 0, "substituted": 0})
            self.assertEqual(stats["expert_hits"] + stats["expert_misses"], CHOICES // K * n)
            share = f"{100 * (K - n) / K:.2f}"
            self.assertEqual(
                lines, [f"lossy: of {CHOICES} choices of experts {share}% trimmed, 0.00% dropped, 0.00% substituted"]
            )

    def test_memory_plan_and_token_cycle_follow(self):
        cycle = self.evaluate()[1]["token_cycle_bytes"]
        smallest = []
        for n in range(1, K + 1):
            stats = self.evaluate("--top-k", n)[1]
            self.assertEqual(stats["token_cycle_bytes"] * K, cycle * n)
            smallest.append(stats["activation_bytes"])
        self.assertEqual(smallest, sorted(smallest))
        self.assertLess(smallest[0], smallest[-1])

    def test_result_does_not_depend_on_memory_threads_or_chunks(self):
        expected = self.logits(BUNDLED_MODEL, TOKENS, "--top-k", 2, *AMPLE)
        for flags in (self.budget(0, "--top-k", 2), ("--threads", 3), ("--chunk", 1), ("--chunk", 7)):
            with self.subTest(flags=flags):
                self.assert_same_logits(self.logits(BUNDLED_MODEL, TOKENS, "--top-k", 2, *flags), expected)

    def test_every_architecture_takes_it(self):
        for arch in harness.choices("--arch", "synth", "-o", self.path("x")):
            with self.subTest(arch=arch):
                path = self.path(f"{arch}.gguf")
                self.ok("synth", "-o", path, "--arch", arch, *TINY, *TINY_EXPERTS, "--vocab", 200)
                exact, stats, _ = self.evaluate(model=path)
                self.assertEqual(stats["choices"], len(TOKENS) * 3 * 3)
                self.assert_same_logits(self.evaluate("--top-k", 3, model=path)[0], exact)
                two, stats, _ = self.evaluate("--top-k", 2, model=path)
                self.assertEqual(stats["choices_trimmed"], len(TOKENS) * 3)
                self.assertFalse(two == exact)

    def test_run_and_bench_take_it(self):
        for command in (
            ("run", "-m", BUNDLED_MODEL, "-p", "Once upon a time", "-n", 8, "--temp", 0),
            ("bench", "decode", "-m", BUNDLED_MODEL, "-n", 8),
        ):
            result, stats = self.statistics(*command, "--top-k", 1)
            self.assertRegex(result.message, r"lossy: of \d+ choices of experts 75.00% trimmed, 0.00% dropped")
            self.assertEqual(stats["choices_trimmed"] * K, stats["choices"] * (K - 1))

    def test_numbers_that_do_not_fit_are_refused(self):
        command = ("run", "-m", BUNDLED_MODEL, "-p", "x", "-n", 1, "--top-k")
        for number in (K + 1, 99):
            line = self.fails(*command, number, code=2)
            self.assertIn(f"{number} is more than the {K} experts", line)
            self.assertIn("--sample-top-k", line)
        for number in (0, -1, "2.5", "many", 1 << 40):
            self.assertIn("--top-k", self.fails(*command, number, code=2))
        dense = self.path("dense.gguf")
        self.ok("synth", "-o", dense, "--arch", "llama", *TINY, "--experts", 0, "--ff", 64, "--vocab", 200)
        self.assertIn("--top-k", self.fails(*harness.logits_command(dense, [1], "--top-k", 1), code=2))
        self.ok(*harness.logits_command(dense, [1], "--drop-below", 0.5, "--substitute"))

    def test_sampler_keeps_its_own(self):
        command = ("run", "-m", BUNDLED_MODEL, "-p", "Once upon a time", "-n", 16)
        greedy = self.ok(*command, "--temp", 0).stdout
        self.assertEqual(self.ok(*command, "--temp", 1, "--seed", 3, "--sample-top-k", 1).stdout, greedy)


class Missing(LossyCase):
    """--drop-below and --substitute, which act on experts that are not in memory."""

    def test_cold_first_token_drops_all_but_its_first_expert(self):
        dropped, _, _ = self.evaluate("--drop-below", 1, *ONE_BY_ONE, *AMPLE)
        first_only, _, _ = self.evaluate("--top-k", 1, *AMPLE)
        self.assert_same_logits(dropped[:ROW], first_only[:ROW])

    def test_cold_first_token_has_no_substitutes(self):
        exact, _, _ = self.evaluate(*AMPLE)
        substituted, stats, _ = self.evaluate("--substitute", *ONE_BY_ONE, *AMPLE)
        self.assert_same_logits(substituted[:ROW], exact[:ROW])
        self.assertGreater(stats["choices_substituted"], 0)  # later tokens miss what the first did not read
        self.assertFalse(substituted == exact)

    def test_dropped_and_read_experts_add_up(self):
        for below in (0.15, 1):
            for ram in (AMPLE, self.budget(16, *ONE_BY_ONE)):
                with self.subTest(below=below, ram=ram):
                    _, stats, _ = self.evaluate("--drop-below", below, *ONE_BY_ONE, *ram)
                    used = stats["expert_hits"] + stats["expert_misses"]
                    self.assertGreater(stats["choices_dropped"], 0)
                    self.assertEqual(used + stats["choices_dropped"], CHOICES)
                    self.assertEqual(stats["choices_substituted"], 0)
                    if below == 1:  # only a first expert is ever read
                        self.assertLessEqual(stats["expert_misses"], CHOICES // K)

    def test_substitutes_are_all_in_memory(self):
        ram = self.budget(60, *ONE_BY_ONE)
        _, exact, _ = self.evaluate(*ONE_BY_ONE, *ram)
        _, stats, _ = self.evaluate("--substitute", *ONE_BY_ONE, *ram)
        self.assertGreater(stats["choices_substituted"], 0)
        self.assertEqual(stats["choices_dropped"], 0)
        self.assertEqual(stats["expert_hits"] + stats["expert_misses"], CHOICES)
        self.assertLess(stats["expert_misses"], exact["expert_misses"])

    def test_more_is_dropped_and_less_read_the_higher_the_share(self):
        ram = self.budget(16, *ONE_BY_ONE)
        last = {"choices_dropped": 0, "bytes_demand": math.inf}
        for below in (0, 0.1, 0.2, 0.4):
            _, stats, _ = self.evaluate("--drop-below", below, *ONE_BY_ONE, *ram)
            self.assertGreaterEqual(stats["choices_dropped"], last["choices_dropped"])
            self.assertLess(stats["bytes_demand"], last["bytes_demand"])
            last = stats

    def test_a_share_no_weight_is_below_changes_nothing(self):
        exact, _, _ = self.evaluate()
        logits, stats, lines = self.evaluate("--drop-below", 1e-9, *ONE_BY_ONE)
        self.assertEqual(stats["choices_dropped"], 0)
        self.assertEqual(len(lines), 1)
        self.assert_same_logits(logits, exact)

    def test_modes_combine_and_the_line_says_what_the_statistics_say(self):
        flags = ("--top-k", 3, "--drop-below", 0.15, "--substitute")
        _, stats, lines = self.evaluate(*flags, *ONE_BY_ONE, *self.budget(40, *ONE_BY_ONE))
        for part, count in parts(stats).items():
            self.assertGreater(count, 0)
            self.assertIn(f"{100 * count / CHOICES:.2f}% {part}", lines[0])
        self.assertEqual(len(lines), 1)
        used = stats["expert_hits"] + stats["expert_misses"]
        self.assertEqual(used + stats["choices_dropped"] + stats["choices_trimmed"], CHOICES)

    def test_chunks_drop_only_what_no_token_of_theirs_needs(self):
        _, alone, _ = self.evaluate("--drop-below", 0.3, *ONE_BY_ONE, *self.budget(16))
        _, chunk, _ = self.evaluate("--drop-below", 0.3, "--chunk", len(TOKENS), "--prefetch", "off", *self.budget(16))
        self.assertGreater(alone["choices_dropped"], chunk["choices_dropped"])

    def test_result_repeats_where_the_cache_fills_the_same_way(self):
        # With room for every expert nothing leaves, so threads and reads cannot change what is in memory when.
        flags = ("--drop-below", 0.2, "--substitute", *ONE_BY_ONE, *AMPLE)
        first, stats, _ = self.evaluate(*flags)
        self.assertGreater(stats["choices_dropped"] + stats["choices_substituted"], 0)
        for varied in (("--threads", 1), ("--threads", 3), ("--io", "threads"), ("--queue-depth", 1)):
            self.assert_same_logits(self.evaluate(*flags, *varied)[0], first)

    def test_every_layout_of_weights_takes_them(self):
        for arch in harness.choices("--arch", "synth", "-o", self.path("x")):
            with self.subTest(arch=arch):
                path = self.path(f"{arch}.gguf")
                self.ok("synth", "-o", path, "--arch", arch, *TINY, *TINY_EXPERTS, "--vocab", 200)
                logits, stats, _ = self.evaluate("--drop-below", 0.3, "--substitute", *ONE_BY_ONE, model=path)
                self.assertGreater(stats["choices_dropped"] + stats["choices_substituted"], 0)
                self.assertTrue(all(map(math.isfinite, harness.floats(logits))))

    def test_shares_that_are_none_are_refused(self):
        for share in (2, -0.1, "nan", "some"):
            line = self.fails("run", "-m", BUNDLED_MODEL, "-p", "x", "-n", 1, "--drop-below", share, code=2)
            self.assertIn("--drop-below", line)

    def test_help_says_that_memory_decides(self):
        text = " ".join(self.ok("run", "--help").text.lower().split())
        self.assertEqual(text.count("what is in memory then decides what is computed"), 2)


class Perplexity(LossyCase):
    def test_lossy_modes_are_measured_and_reported(self):
        harness.write_bytes(self.path("text.txt"), b"Once upon a time there was a little dog. " * 40)
        command = ("eval", "ppl", "-m", BUNDLED_MODEL, "-f", self.path("text.txt"), "--ctx", 64, "--json", *ONE_BY_ONE)
        exact = json.loads(self.ok(*command).text)
        self.assertEqual(json.loads(self.ok(*command, "--top-k", K).text), exact)
        for flags in (("--top-k", 1), ("--drop-below", 1), ("--substitute",)):
            result, stats = self.statistics(*command, *flags)
            self.assertNotEqual(json.loads(result.text)["perplexity"], exact["perplexity"])
            self.assertEqual(result.message.count("lossy: of "), 1)
            self.assertEqual(stats["choices"], stats["prompt_tokens"] * N_LAYERS * K)
            self.assertGreater(sum(parts(stats).values()), 0)


def raw(rows):
    values = array.array("f", [value for row in rows for value in row])
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def softmax(row):
    """In double, of the values as float32 holds them."""
    row = array.array("f", row)
    top = max(row)
    total = math.fsum(math.exp(x - top) for x in row)
    return [math.exp(x - top) / total for x in row]


class Divergence(harness.TestCase):
    def write(self, name, rows):
        harness.write_bytes(self.path(name), raw(rows))
        return self.path(name)

    def kl(self, a, b, *flags):
        return json.loads(self.ok("eval", "kl", a, b, "--json", *flags).text)

    def rows(self, seed, n=200, width=7):
        return [[math.sin(seed * 31 + 1.7 * t + 0.9 * i * (seed + 1)) * 4 for i in range(width)] for t in range(n)]

    def test_of_a_file_with_itself_is_zero(self):
        for rows in (self.rows(1), [[3e38, -3e38, 0.0]], [[-3e38] * 5], [[1000.0, 999.0]]):
            path = self.write("a.f32", rows)
            found = self.kl(path, path, "--vocab", len(rows[0]))
            self.assertEqual((found["kl"], found["kl_p99"], found["kl_max"]), (0, 0, 0))
            self.assertEqual((found["top_agreement"], found["top_delta_p"]), (1, 0))
            self.assertEqual(found["tokens"], len(rows))

    def test_of_two_rows_is_what_a_hand_computes(self):
        # (1/2, 1/4, 1/4) against (1/4, 1/2, 1/4), and (1/8, 1/8, 3/4) against three thirds; logits are free up to a sum.
        a = [[math.log(p) + 700 for p in (0.5, 0.25, 0.25)], [math.log(p) for p in (0.125, 0.125, 0.75)]]
        b = [[math.log(p) - 90 for p in (0.25, 0.5, 0.25)], [5.0, 5.0, 5.0]]
        found = self.kl(self.write("a.f32", a), self.write("b.f32", b), "--vocab", 3)
        first = 0.25 * math.log(2)
        second = math.log(3) + 0.25 * math.log(0.125) + 0.75 * math.log(0.75)
        self.assertAlmostEqual(found["kl"], (first + second) / 2, delta=1e-4)  # 700 + ln p in float32
        self.assertAlmostEqual(found["kl_max"], second, delta=1e-6)
        self.assertEqual(found["kl_max_token"], 1)
        self.assertEqual(found["top_agreement"], 0)
        self.assertAlmostEqual(found["top_delta_p"], (0.25 + (0.75 - 1 / 3)) / 2, delta=1e-4)

    def test_of_many_rows_matches_the_definition(self):
        a, b = self.rows(1), self.rows(2)
        each, agree, delta = [], 0, 0.0
        for row_a, row_b in zip(a, b):
            p, q = softmax(row_a), softmax(row_b)
            each.append(math.fsum(x * math.log(x / y) for x, y in zip(p, q)))
            top = p.index(max(p))
            agree += top == q.index(max(q))
            delta += abs(p[top] - q[top])
        found = self.kl(self.write("a.f32", a), self.write("b.f32", b), "--vocab", 7)
        self.assertAlmostEqual(found["kl"], math.fsum(each) / 200, delta=1e-8)
        self.assertAlmostEqual(found["kl_p99"], sorted(each)[197], delta=1e-7)
        self.assertAlmostEqual(found["kl_max"], max(each), delta=1e-7)
        self.assertEqual(found["kl_max_token"], each.index(max(each)))
        self.assertAlmostEqual(found["top_agreement"], agree / 200, delta=1e-9)
        self.assertAlmostEqual(found["top_delta_p"], delta / 200, delta=1e-8)
        self.assertGreater(found["kl"], 0.1)

    def test_table_says_the_same(self):
        paths = self.write("a.f32", self.rows(1)), self.write("b.f32", self.rows(2))
        found = self.kl(*paths, "--vocab", 7)
        text = self.ok("eval", "kl", *paths, "--vocab", 7).text
        self.assertIn(f"{found['kl']:.6f} nats", text)
        self.assertIn(f"{100 * found['top_agreement']:.2f}%", text)
        self.assertIn("200 tokens", text)

    def test_of_two_settings_of_one_model(self):
        exact, lossy = self.path("exact.f32"), self.path("lossy.f32")
        self.ok(*harness.logits_command(BUNDLED_MODEL, TOKENS, out=exact))
        last = 0.0
        for n in (3, 2, 1):
            self.ok(*harness.logits_command(BUNDLED_MODEL, TOKENS, "--top-k", n, out=lossy))
            found = self.kl(exact, lossy, "-m", BUNDLED_MODEL)
            self.assertEqual(found["tokens"], len(TOKENS))
            self.assertGreater(found["kl"], last)
            last = found["kl"]
        self.assertEqual(self.kl(exact, lossy, "--vocab", N_VOCAB), found)

    def test_logits_of_a_text_come_in_windows(self):
        harness.write_bytes(self.path("text.txt"), b"The big dog ran to the old mill. " * 20)
        a, b = self.models()
        files = [self.path("a.f32"), self.path("b.f32")]
        for model, file in zip((a, b), files):
            flags = ("-o", file, "--ctx", 16, "--experts", self.path("experts.i32"))
            self.ok("eval", "logits", "-m", model, "-f", self.path("text.txt"), *flags)
        expected = self.kl(a, b, "-f", self.path("text.txt"), "--ctx", 16)
        self.assertEqual(self.kl(*files, "--vocab", N_VOCAB), expected)
        experts = harness.ints(harness.read_bytes(self.path("experts.i32")))
        self.assertEqual(len(experts), expected["tokens"] * 3 * 3)  # layers, experts per token
        self.assertTrue(all(0 <= expert < 8 for expert in experts))
        self.assertGreater(len(set(experts)), 1)
        for given in ((), ("--tokens", "1", "-f", self.path("text.txt"))):
            self.fails("eval", "logits", "-m", a, "-o", files[0], *given, code=2)

    def models(self):
        paths = []
        for seed in (1, 2):
            paths.append(self.path(f"{seed}.gguf"))
            flags = ("--arch", "qwen3moe", *TINY_EXPERTS, "--vocab-from", BUNDLED_MODEL, "--seed", seed)
            self.ok("synth", "-o", paths[-1], *TINY, *flags)
        return paths

    def test_of_two_models_is_that_of_their_logits(self):
        models = self.models()
        files = [self.path("a.f32"), self.path("b.f32")]
        for model, file in zip(models, files):
            self.ok(*harness.logits_command(model, TOKENS, out=file))
        expected = self.kl(*files, "--vocab", N_VOCAB)
        self.assertGreater(expected["kl"], 0.01)
        self.assertEqual(self.kl(*models, "--tokens", harness.comma_list(TOKENS)), expected)
        self.assertEqual(self.kl(*models, "--tokens", harness.comma_list(TOKENS), "--chunk", 3), expected)

    def test_of_two_models_on_a_text_in_windows(self):
        a, b = self.models()
        harness.write_bytes(self.path("text.txt"), b"The big dog ran to the old mill. " * 20)
        for ctx in (16, 64):
            found = self.kl(a, b, "-f", self.path("text.txt"), "--ctx", ctx)
            self.assertGreater(found["tokens"], 100)
            self.assertGreater(found["kl"], 0.01)
            same = self.kl(a, a, "-f", self.path("text.txt"), "--ctx", ctx)
            self.assertEqual((same["kl"], same["top_agreement"], same["tokens"]), (0, 1, found["tokens"]))

    def test_two_models_leave_no_file_behind_and_share_one_budget(self):
        a, b = self.models()
        directory = self.path("temporary")
        os.mkdir(directory)
        arguments = ("eval", "kl", a, b, "--tokens", harness.comma_list(TOKENS))
        # The second finds the process a little larger than the first did.
        ram = harness.smallest_budget(*arguments) + (8 << 20 if harness.is_slow() else 1 << 20)
        result = self.ok(*arguments, "--ram", ram, env={"TMPDIR": directory})
        self.assertEqual(os.listdir(directory), [])
        if not harness.is_slow():
            self.assertLessEqual(result.peak_rss, ram)
        missing = self.path("no-such-directory")
        line = self.assert_one_error(harness.run(*arguments, env={"TMPDIR": missing}), 1)
        self.assertIn(missing, line)

    def test_values_that_are_no_logits_are_named(self):
        good = self.write("good.f32", [[1.0, 2.0, 3.0]] * 4)
        for value, word in ((math.nan, "not a number"), (math.inf, "infinite"), (-math.inf, "infinite")):
            rows = [[1.0, 2.0, 3.0] for _ in range(4)]
            rows[2][1] = value
            bad = self.write("bad.f32", rows)
            for pair in ((good, bad), (bad, good)):
                line = self.fails("eval", "kl", *pair, "--vocab", 3)
                self.assertIn(f"{bad}: token 2: logit 1 is {word}", line)

    def test_files_that_do_not_fit_are_refused(self):
        a = self.write("a.f32", [[1.0, 2.0, 3.0]] * 4)
        for name, rows in (("longer", 5), ("shorter", 3)):
            line = self.fails("eval", "kl", a, self.write(name, [[1.0, 2.0, 3.0]] * rows), "--vocab", 3)
            self.assertIn(f"{rows}", line)
        self.assertIn("vocabulary", self.fails("eval", "kl", a, a, "--vocab", 5))
        self.assertIn("vocabulary", self.fails("eval", "kl", a, a, "-m", BUNDLED_MODEL))
        cut = self.path("cut.f32")
        harness.copy(a, cut, 47)
        self.assertIn(cut, self.fails("eval", "kl", a, cut, "--vocab", 3))
        harness.write_bytes(self.path("empty"), b"")
        self.assertIn("empty", self.fails("eval", "kl", self.path("empty"), self.path("empty"), "--vocab", 3))
        for absent in ((a, self.path("absent")), (self.path("absent"), a)):
            self.assertIn("absent", self.fails("eval", "kl", *absent, "--vocab", 3))
        for odd in (self._directory.name, "/dev/zero"):
            self.assertIn("regular", self.fails("eval", "kl", a, odd, "--vocab", 3))

    def test_models_that_do_not_fit_are_refused(self):
        a, _ = self.models()
        other = self.path("other.gguf")
        self.ok("synth", "-o", other, "--arch", "qwen3moe", *TINY, *TINY_EXPERTS, "--vocab", 200)
        self.assertIn("vocabulary", self.fails("eval", "kl", a, other, "--tokens", "1,2"))
        cut = harness.copy(a, self.path("cut.gguf"), 5000)
        self.assertIn("cut.gguf", self.fails("eval", "kl", a, cut, "--tokens", "1,2"))
        self.assertIn("absent.txt", self.fails("eval", "kl", a, a, "-f", self.path("absent.txt")))
        self.assert_one_error(harness.run("eval", "kl", a, a, "--tokens", f"1,{N_VOCAB}"), 2)

    def test_flags_that_do_not_fit_are_refused(self):
        file = self.write("a.f32", [[1.0, 2.0]])
        model = BUNDLED_MODEL
        for arguments in (
            (file,),
            (file, file),
            (file, file, "--vocab", 0),
            (file, file, "--vocab", 2, "-m", model),
            (file, file, "--vocab", 2, "--tokens", "1"),
            (file, file, "--vocab", 2, "-f", file),
            (model, file, "--tokens", "1"),
            (file, model, "--vocab", 2),
            (model, model),
            (model, model, "--tokens", "1", "-f", file),
            (model, model, "--tokens", "1", "--vocab", N_VOCAB),
            (model, model, "--tokens", "1", "-m", model),
            (model, model, "--tokens", ""),
            (model, model, "--tokens", "1,x"),
            (model, model, "--tokens", "1", "--top-k", 99),
        ):
            with self.subTest(arguments=arguments):
                self.fails("eval", "kl", *arguments, code=2)


if __name__ == "__main__":
    harness.main()
