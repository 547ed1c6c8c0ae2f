"""`inspect`, `plan` figures and `simulate` of packed models: bytes read are those stored, bytes held those unpacked."""

import json
import os

import harness

MODEL = harness.shared("golden", "base", "qwen3moe-BF16.gguf")


class InspectPacked(harness.TestCase):
    def inspect(self, path, *flags):
        return json.loads(self.ok("inspect", path, "--json", *flags).stdout)

    def packed(self, *flags):
        if not os.path.exists(MODEL):
            self.skipTest("no golden models")
        out = self.path("model.pack")
        self.ok("pack", MODEL, out, *flags)
        return MODEL, out

    def test_container_is_described(self):
        stripes = [self.path("one"), self.path("two")]
        for folder in stripes:
            os.mkdir(folder)
        source, out = self.packed("--zstd", 3, "--stripe", ",".join(stripes))
        plain, packed = self.inspect(source), self.inspect(out)
        self.assertIsNone(plain["packed"])
        what = packed["packed"]
        self.assertEqual((what["version"], what["unpacked_bytes"]), (2, plain["file_bytes"]))
        self.assertEqual(len(what["files"]), 3)
        for file in what["files"]:
            self.assertEqual(os.path.getsize(file["path"]), file["bytes"])
        self.assertEqual(sum(file["bytes"] for file in what["files"]), packed["file_bytes"])
        (kind,) = what["layers"]
        self.assertEqual([part["part"] for part in kind["parts"]], ["gate", "up", "down"])
        self.assertEqual({(part["type"], part["codec"]) for part in kind["parts"]}, {("bf16", "zstd-floats")})
        self.assertEqual(sum(part["bytes"] for part in kind["parts"]), kind["bytes"])
        self.assertEqual((kind["layers"], kind["bytes"]), (plain["moe_layers"], plain["expert_bytes"]))
        self.assertLess(kind["stored_bytes"], kind["bytes"])
        self.assertAlmostEqual(kind["ratio"], kind["stored_bytes"] / kind["bytes"], places=6)
        self.assertEqual(what["note"]["zstd"], 3)
        for key in ("expert_bytes", "shard_bytes", "trunk_bytes", "parameters", "shards"):
            self.assertEqual(packed[key], plain[key], key)
        # A token reads what is stored; layers of this model are alike, but for rounding down of their means.
        stored = kind["stored_bytes"] / packed["shards"] * packed["experts_used"] * packed["moe_layers"]
        self.assertAlmostEqual(packed["token_cycle_bytes"], stored, delta=2 * packed["moe_layers"])
        self.assertLess(packed["token_cycle_bytes"], plain["token_cycle_bytes"])
        text = self.ok("inspect", out).text
        for words in ("packed container, version 2", "data file", "zstd-floats", stripes[1]):
            self.assertIn(words, text)

    def test_figures_of_packing_are_told_as_pack_told_them(self):
        if not os.path.exists(MODEL):
            self.skipTest("no golden models")
        out = self.path("model.pack")
        told = self.ok("pack", MODEL, out, "--zstd", "auto", "--io-limit", "100M").text.splitlines()[:-1]
        self.assertIn("105 MB/s from the drive", told[0])
        self.assertTrue(told[-1].startswith("reading and unpacking is predicted"))
        lines = self.ok("inspect", out).text.splitlines()
        first = lines.index("at packing: " + told[0])
        self.assertEqual(lines[first + 1 : first + len(told)], told[1:])
        self.assertEqual(sum(line.startswith("* ") for line in told), 3)

    def test_missing_drive_is_named(self):
        folder = self.path("drive")
        os.mkdir(folder)
        _, out = self.packed("--zstd", "off", "--stripe", folder)
        os.rename(folder, folder + ".away")
        message = self.fails("inspect", out)
        self.assertIn(folder, message)
        self.assertIn("not mounted?", message)

    def test_simulate_reads_what_is_stored(self):
        source, out = self.packed("--zstd", 3)
        trace = self.path("routing.trace")
        self.ok("trace", "-m", source, "--prompt-tokens", "1,5,9,17,33,21,60,7", "-n", 8, "-o", trace, "--ignore-end")
        ours, theirs = (
            json.loads(self.ok("simulate", trace, "--model", model, "--ram", "50%", "--json").stdout) for model in (out, source)
        )
        self.assertEqual(theirs["read_bytes"], theirs["expert_bytes"])
        self.assertEqual(ours["expert_bytes"], theirs["expert_bytes"])
        self.assertLess(ours["read_bytes"], ours["expert_bytes"])
        for x, y in zip(ours["results"], theirs["results"]):
            self.assertEqual((x["slots"], x["hits"]), (y["slots"], y["hits"]))
            self.assertAlmostEqual(x["bytes_per_token"] * theirs["read_bytes"], y["bytes_per_token"] * ours["read_bytes"], delta=1e3)


if __name__ == "__main__":
    harness.main()
