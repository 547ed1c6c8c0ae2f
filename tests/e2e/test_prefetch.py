"""Reading ahead: what the statistics say of it adds up, and it is off where it is told to be or has nothing to do."""

import json
import os

import harness
from harness import BUNDLED_MODEL

LAYERS, TOP_K = 6, 4


class Prefetch(harness.TestCase):
    def stats(self, *flags, n=60):
        result = self.ok("bench", "decode", "-m", BUNDLED_MODEL, "-n", n, "--threads", 2, "--stats", "-", *flags)
        return json.loads(result.stdout)

    def budget(self, share):
        smallest = harness.smallest_budget("bench", "decode", "-m", BUNDLED_MODEL, "-n", 60, "--threads", 2)
        return int(smallest + share * os.path.getsize(BUNDLED_MODEL))

    def test_every_expert_asked_for_is_a_hit_late_or_a_miss(self):
        for share in (0.1, 0.3, 0.6):
            for flags in ((), ("--prefetch", "off"), ("--io", "threads", "--io-limit", "100M")):
                with self.subTest(share=share, flags=flags):
                    s = self.stats("--ram", self.budget(share), *flags)
                    asked = s["expert_hits"] + s["expert_late"] + s["expert_misses"]
                    self.assertEqual(asked, 60 * LAYERS * TOP_K)

    def test_experts_are_read_ahead_and_mostly_used(self):
        # How many of them begin before they are asked for is a matter of timing.
        s = self.stats("--ram", self.budget(0.3), "--io-limit", "200M", "--tokens", "greedy")
        self.assertGreater(s["bytes_useful"] + s["bytes_late"], 0)
        self.assertLess(s["bytes_wasted"], 0.15 * (s["bytes_demand"] + s["bytes_speculative"]))

    def test_off_reads_nothing_ahead_and_gives_its_memory_to_the_cache(self):
        ram = self.budget(0.3)
        off, auto = self.stats("--ram", ram, "--prefetch", "off"), self.stats("--ram", ram)
        for key in ("bytes_speculative", "bytes_useful", "bytes_late", "bytes_wasted", "expert_late",
                    "predictor_bytes", "predictor_s"):
            self.assertEqual(off[key], 0, key)
        self.assertNotIn("predicted_1_recall", off)
        self.assertGreater(auto["predictor_bytes"], 0)
        self.assertGreaterEqual(off["cache_bytes"], auto["cache_bytes"])

    def test_predictions_are_better_than_chance_and_steep(self):
        s = self.stats("--ram", self.budget(0.3), "--tokens", "greedy")
        for distance in range(3):
            precision, recall = s[f"predicted_{distance}_precision"], s[f"predicted_{distance}_recall"]
            self.assertEqual(len(precision), len(recall))
            self.assertGreater(precision[0], 2 * TOP_K / 32)
            self.assertGreater(precision[0], precision[-1])
            self.assertEqual(recall, sorted(recall))
            self.assertLessEqual(recall[-1], 1.0)

    def test_nothing_is_read_ahead_once_everything_is_in_memory(self):
        s = self.stats("--ram", "1G", n=200)
        self.assertEqual(s["slots"], s["shards"])
        self.assertLessEqual(s["bytes_demand"] + s["bytes_speculative"], 2 * os.path.getsize(BUNDLED_MODEL))


if __name__ == "__main__":
    harness.main()
