#!/usr/bin/env bash
# How well `plan` predicts: one plan, then `bench decode` at each of its budgets, in rounds.
#
# Usage: bench/plan.sh MODEL [RAMS [TOKENS [ROUNDS]]]     (default: three that plan chooses, 64 tokens, 3 rounds)
# Prints one JSON object per budget: tokens/s predicted and measured (median of the rounds), both from an empty cache,
# and their ratio. Every round has a plan of its own, so that a machine that slows down slows both.
# Needs jq. THREADS, FLAGS and PENSTOCK: compute threads, more flags for every run, the program.
set -euo pipefail
model=${1:?usage: bench/plan.sh MODEL [RAMS [TOKENS [ROUNDS]]]}
rams=${2-}
tokens=${3:-64}
rounds=${4:-3}
penstock=${PENSTOCK:-$(dirname "${BASH_SOURCE[0]}")/../build/penstock}
read -r -a flags <<<"--threads ${THREADS:-2} ${FLAGS-}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

predict() { # FILE
    "$penstock" plan -m "$model" ${rams:+--ram "$rams"} -n "$tokens" "${flags[@]}" --json >"$1"
}

if [ -z "$rams" ]; then
    predict "$work/shape"
    # The smallest, the middle and the largest that the machine has room for.
    rams=$(jq -r '[.budgets[] | select(.fits and .within_machine) | .ram_bytes] |
        [.[0], .[length / 2 | floor], .[-1]] | unique | join(",")' "$work/shape")
fi
for ((round = 0; round < rounds; round++)); do
    predict "$work/plan.$round"
    for ram in $(jq -r '.budgets[] | select(.fits) | .ram_bytes' "$work/plan.$round"); do
        "$penstock" bench decode -m "$model" -n "$tokens" --ram "$ram" "${flags[@]}" --probe 0 --stats "$work/stats" >/dev/null 2>&1
        jq -c --argjson ram "$ram" --slurpfile plan "$work/plan.$round" '
            ($plan[0].budgets[] | select(.ram_bytes == $ram)) as $p |
            {ram_bytes: $ram, predicted: $p.tok_s, measured: .decode_tok_s, hit_predicted: $p.hit_rate,
             hit_measured: (.expert_hits / ([.expert_hits + .expert_late + .expert_misses, 1] | max))}' "$work/stats"
    done
done >"$work/all"
jq -s -c 'def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
    group_by(.ram_bytes)[] |
    {ram_bytes: .[0].ram_bytes, predicted_tok_s: (map(.predicted) | median), measured_tok_s: (map(.measured) | median),
     ratio: (map(.predicted / .measured) | median), ratios: map(.predicted / .measured * 1000 | round / 1000),
     hit_predicted: (map(.hit_predicted) | median), hit_measured: (map(.hit_measured) | median)}' "$work/all"
