"""Golden models: tiny random models for which llama.cpp's numbers are known, compared number for number.

`exact` is the mathematics (weights dequantized, activations in F32), `native` llama.cpp's own output for the file (activations
rounded per weight type). The golden folder's README.md says what may differ where.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))

import gguf_tool
import harness
from harness import needs_shared, shared

ARCHITECTURES = {
    *("afmoe", "bailingmoe2", "cohere2moe", "deepseek2", "deepseek4", "dots1", "ernie4_5-moe", "exaone-moe", "gemma4"),
    *("glm-dsa", "glm4moe", "gpt-oss", "granitemoe", "hunyuan-moe", "kimi-linear", "lfm2moe", "llama", "llama4", "mimo2"),
    *("minimax-m2", "minimax-m3", "mistral4", "nemotron_h_moe", "olmoe", "phimoe", "qwen2moe", "qwen35moe", "qwen3moe"),
    *("qwen3next", "qwen4exp", "step35"),
}
TYPES = {
    *("F32", "F16", "BF16", "I32", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "MXFP4", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0"),
}

# What a Q8_0 KV cache may change, in units of the tolerance for F16. Of 32 normally distributed values the largest has 2.4
# standard deviations s: steps of 2.4 s / 127 are off by 0.0055 s (rms), where F16 is off by 0.0002 s, so the effect should be up to
# 28 times that of F16. The tolerance for F16 is 4 times its effect. Here Q8_0 takes 2.4 to 5.7 of these units.
Q8_0_IN_F16_TOLERANCES = 28 / 4

# By keys that are rounded, too: other cells, other logits.
CHOOSES_CELLS = {"deepseek4", "glm-dsa", "minimax-m3", "qwen4exp"}

EXACT = ("--activations", "f32")
NATIVE = ("--activations", "auto")

manifest_present = needs_shared("golden", "manifest.json")


def file_of(model):
    return shared("golden", model["file"])


def data_of(model, mode, what):
    return harness.read_bytes(shared("golden", model[mode][what]))


def unsupported_types(model):
    return set(model["tensor_bytes_by_type"]) - TYPES


def supported_models():
    models = [
        model
        for model in harness.golden_manifest()["models"]
        if model["arch"] in ARCHITECTURES and not unsupported_types(model)
    ]
    assert models, "the manifest has no model of a supported architecture"
    return models


def thinned(models):
    """Where the same is computed once more in other ways, and that takes ten times as long."""
    return models[:: 4 if harness.is_slow() else 1]


def fragile(model, mode):
    return set(model["routing"]["fragile_positions"][mode])


class Golden(harness.TestCase):
    def compare(self, model, mode, tolerance, logits):
        """Rows of the prompt, but for the positions where the choice of experts is close to a tie."""
        width = model["n_vocab"]
        rows = [row for row in range(model["n_prompt"]) if row not in fragile(model, tolerance)]
        self.assertEqual(len(logits), model["n_prompt"] * width * 4)
        reference = harness.floats(data_of(model, mode, "logits"))
        difference = harness.Difference(harness.floats(logits), reference, width, rows)
        self.assertTrue(difference.within(model["tolerance"][tolerance]), f"{difference}: {model['tolerance'][tolerance]}")

    def compare_experts(self, model, mode, experts):
        k = model["n_expert_used"]
        n_moe = len(model["moe_layers"])
        ours, theirs = harness.ints(experts), harness.ints(data_of(model, mode, "experts"))
        self.assertEqual(len(ours), len(theirs))
        for position in set(range(model["n_prompt"])) - fragile(model, mode):
            for layer in range(n_moe):
                at = (position * n_moe + layer) * k
                self.assertEqual(set(ours[at : at + k]), set(theirs[at : at + k]), f"position {position}, layer {layer}")

    def for_each_model_and_level(self, check, models=None):
        for model in models or supported_models():
            for level in harness.cpu_levels()[-1 if harness.is_slow() else 0 :]:
                with self.subTest(model=model["id"], cpu=level):
                    check(model, level)

    def check_prompt(self, model, level, mode, flags):
        path, tokens = file_of(model), harness.golden_tokens()
        logits, experts = self.logits(path, tokens, *flags, "--cpu", level, experts=True)
        self.compare(model, mode, mode, logits)
        self.compare_experts(model, mode, experts)

    @manifest_present
    def test_f32_activations_match_the_mathematics(self):
        # It is another path through each block format; what an architecture computes is the next test's as well.
        models = [model for model in supported_models() if model["kind"] != "base" or not harness.is_slow()]
        self.for_each_model_and_level(lambda model, level: self.check_prompt(model, level, "exact", EXACT), models)

    @manifest_present
    def test_rounded_activations_match_llama_cpp(self):
        self.for_each_model_and_level(lambda model, level: self.check_prompt(model, level, "native", NATIVE))

    @manifest_present
    def test_f16_kv_cache_stays_within_its_rounding(self):
        for model in thinned(supported_models()):
            with self.subTest(model=model["id"]):
                logits = self.logits(file_of(model), harness.golden_tokens(), *EXACT, "--kv", "f16")
                self.compare(model, "exact", "exact_with_f16_kv", logits)

    @manifest_present
    def test_q8_0_kv_cache_stays_within_its_rounding(self):
        base = [model for model in supported_models() if model["kind"] == "base" and model["arch"] not in CHOOSES_CELLS]
        compared = set()

        def check(model, level):
            if self.check_q8_0_kv(model, level):
                compared.add(model["arch"])

        self.for_each_model_and_level(check, thinned(base))
        self.assertGreater(len(compared), len({model["arch"] for model in thinned(base)}) / 2)

    def check_q8_0_kv(self, model, level):
        """False: some expert is another from so early on that too few positions can be compared."""
        flags = (*EXACT, "--kv", "q8_0", "--cpu", level)
        logits, experts = self.logits(file_of(model), harness.golden_tokens(), *flags, experts=True)
        rows = self.rows_with_the_same_routing(model, "exact", experts)
        if len(rows) < 8:
            return False
        reference = harness.floats(data_of(model, "exact", "logits"))
        difference = harness.Difference(harness.floats(logits), reference, model["n_vocab"], rows)
        tolerance = {name: value * Q8_0_IN_F16_TOLERANCES for name, value in model["tolerance"]["exact_with_f16_kv"].items()}
        self.assertTrue(difference.within(tolerance), f"{difference}: {tolerance}")
        return True

    def rows_with_the_same_routing(self, model, mode, experts):
        """Positions that were computed by the same experts, as was what they attend to: earlier ones in all layers but the last."""
        k = model["n_expert_used"]
        n_moe = len(model["moe_layers"])
        ours, theirs = harness.ints(experts), harness.ints(data_of(model, mode, "experts"))
        rows = []
        for position in range(model["n_prompt"]):
            at = position * n_moe * k
            same = [set(ours[i : i + k]) == set(theirs[i : i + k]) for i in range(at, at + n_moe * k, k)]
            if all(same):
                rows.append(position)
            if not all(same[:-1]):
                break
        return rows

    @manifest_present
    def test_greedy_continuation_is_equal(self):
        self.for_each_model_and_level(self.check_continuation, thinned(supported_models()))

    def check_continuation(self, model, level):
        path, tokens = file_of(model), harness.golden_tokens()
        ids = self.generate(path, tokens, model["n_gen"], *EXACT, "--cpu", level)
        self.assertEqual(ids, model["exact"]["gen_tokens"])
        # Where the best two are closer than the rounding noise, llama.cpp's choice is one of two right ones.
        if model["native"]["gen_min_margin"] > model["tolerance"]["native"]["max_abs"]:
            ids = self.generate(path, tokens, model["n_gen"], *NATIVE, "--cpu", level)
            self.assertEqual(ids, model["native"]["gen_tokens"])

    @manifest_present
    def test_logits_after_each_generated_token_match(self):
        for model in thinned([model for model in supported_models() if "genlogits" in model["exact"]]):
            with self.subTest(model=model["id"]):
                tokens = harness.golden_tokens() + model["exact"]["gen_tokens"]
                width = model["n_vocab"]
                logits = harness.floats(self.logits(file_of(model), tokens, *EXACT, "--chunk", 1))
                difference = harness.Difference(
                    logits[model["n_prompt"] * width :],
                    harness.floats(data_of(model, "exact", "genlogits")),
                    width,
                    range(model["n_gen"]),
                )
                self.assertTrue(difference.within(model["tolerance"]["exact"]), str(difference))

    @manifest_present
    def test_longer_prompts_match(self):
        for model in supported_models():
            if "long" not in model["exact"]:
                continue
            long = model["exact"]["long"]
            tokens = harness.ints(harness.read_bytes(shared("golden", long["tokens"])))
            for level in harness.cpu_levels():
                with self.subTest(model=model["id"], cpu=level):
                    logits = harness.floats(self.logits(file_of(model), tokens, *EXACT, "--cpu", level))
                    reference = harness.floats(harness.read_bytes(shared("golden", long["logits"])))
                    self.assertEqual(len(logits), len(reference))
                    difference = harness.Difference(logits, reference, model["n_vocab"], range(long["n"]))
                    self.assertTrue(difference.within(model["tolerance"]["exact"]), str(difference))

    @manifest_present
    def test_split_sets_give_what_the_single_file_gives(self):
        for model_id in ("qwen3moe", "llama", "qwen3moe-Q4_K_M"):
            path = file_of(harness.golden_model(model_id))
            whole = self.logits(path, harness.golden_tokens())
            for metadata_only_first in (False, True):
                with self.subTest(model=model_id, metadata_only_first=metadata_only_first):
                    prefix = self.path(f"{model_id}-{metadata_only_first}")
                    parts = gguf_tool.split(gguf_tool.read(path), prefix, 4, metadata_only_first)
                    self.assert_same_logits(self.logits(parts[0], harness.golden_tokens()), whole)

    @manifest_present
    def test_the_golden_split_sets_give_what_their_single_files_give(self):
        for split_set in harness.golden_manifest()["splits"]:
            model = harness.golden_model(split_set["same_as"])
            if unsupported_types(model):
                continue
            with self.subTest(first=split_set["files"][0]):
                whole = self.logits(file_of(model), harness.golden_tokens())
                parts = self.logits(shared("golden", split_set["files"][0]), harness.golden_tokens())
                self.assert_same_logits(parts, whole)

    @manifest_present
    def test_other_block_formats_are_refused_by_name(self):
        for model in harness.golden_manifest()["models"]:
            if model["arch"] in ARCHITECTURES and unsupported_types(model):
                with self.subTest(model=model["id"]):
                    self.check_refused(file_of(model), unsupported_types(model))
        for split_set in harness.golden_manifest()["splits"]:
            types = unsupported_types(harness.golden_model(split_set["same_as"]))
            if types:
                self.check_refused(shared("golden", split_set["files"][0]), types)

    @manifest_present
    def test_other_architectures_are_refused_by_name(self):
        for model in harness.golden_manifest()["models"]:
            if model["arch"] not in ARCHITECTURES:
                with self.subTest(model=model["id"]):
                    self.check_refused(file_of(model), {model["arch"]})

    def check_refused(self, path, names):
        line = self.fails("run", "-m", path, "--prompt-tokens", "1,2", "-n", 1, "--print", "tokens")
        without_path = line.replace(path, "").lower()
        self.assertTrue(any(name.lower() in without_path for name in names), line)


if __name__ == "__main__":
    harness.main()
