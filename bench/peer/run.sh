#!/usr/bin/env bash
# penstock and another engine on the same file, tokens and threads, in turns: prefill and decode, everything resident.
#
# Usage: bench/peer/run.sh [--json] MODEL [ENGINE...]     (default engine: llama-cpp; a script of bench/peer/engines)
# PREFILL, DECODE (512, 64): tokens; THREADS (2); ROUNDS (3): of all engines in turn, after one that is thrown away;
# REPEAT (2): measurements per round; VOCAB (32000): ids are drawn below it; WRAP: a command that each engine's turn is run
# through. Prints a table of medians with penstock's ratio to each engine, or with --json all figures. Needs jq.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
json=
if [ "${1-}" = --json ]; then json=1 && shift; fi
model=${1:?usage: bench/peer/run.sh [--json] MODEL [ENGINE...]}
shift
engines=(penstock "${@:-llama-cpp}")
prefill=${PREFILL:-512} decode=${DECODE:-64} threads=${THREADS:-2} rounds=${ROUNDS:-3} repeat=${REPEAT:-2}
read -r -a wrap <<<"${WRAP-}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for engine in "${engines[@]}"; do
    "$here/engines/$engine.sh" install
done
# A linear congruential generator: the same ids everywhere.
awk -v n=$((prefill > decode ? prefill : decode)) -v vocab="${VOCAB:-32000}" 'BEGIN {
    x = 1
    for (i = 0; i < n; i++) { x = (x * 16807) % 2147483647; printf "%s%d", i ? "," : "", x % vocab } }' >"$work/tokens"

turn() { # ENGINE REPEAT
    "${wrap[@]}" "$here/engines/$1.sh" measure "$model" "$work/tokens" "$prefill" "$decode" "$threads" "$2"
}

for ((round = 0; round <= rounds; round++)); do
    for engine in "${engines[@]}"; do
        if [ "$round" -eq 0 ]; then
            turn "$engine" 1 >/dev/null # touches the memory that the host has to find first
        else
            turn "$engine" "$repeat" | jq -c --arg name "$engine" --argjson round "$round" '{name: $name, round: $round} + .'
        fi
    done
done >"$work/turns"

jq -s --arg model "$(basename "$model")" --argjson threads "$threads" --argjson prefill "$prefill" --argjson decode "$decode" '
    def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
    def summary(key): [.[] | .[key][]] | {median: median, min: min, max: max};
    def times: . * 100 | round / 100;
    . as $turns |
    (group_by(.name) | map({name: .[0].name, engine: .[0].engine, prefill_tok_s: summary("prefill_tok_s"),
                            decode_tok_s: summary("decode_tok_s")})) as $engines |
    ($engines[] | select(.name == "penstock")) as $ours |
    {model: $model, threads: $threads, prefill: $prefill, decode: $decode,
     engines: ($engines | map(. + {penstock_prefill_ratio: ($ours.prefill_tok_s.median / .prefill_tok_s.median | times),
                                   penstock_decode_ratio: ($ours.decode_tok_s.median / .decode_tok_s.median | times)})),
     turns: $turns}' "$work/turns" >"$work/result"
if [ -n "$json" ]; then
    cat "$work/result"
    exit
fi
jq -r '
    def one: . * 10 | round / 10 | tostring;
    def cell: "\(.median | one) (\(.min | one)-\(.max | one))";
    "\(.model), \(.threads) threads, tok/s: median (least-most)", "",
    "| engine | prefill \(.prefill) | penstock is | decode \(.decode) | penstock is |", "| --- | --- | --- | --- | --- |",
    (.engines | sort_by(.name != "penstock")[] | (if .name == "penstock" then ["", ""] else
        [.penstock_prefill_ratio, .penstock_decode_ratio] | map("\(.)x") end) as [$prefill, $decode] |
     "| \(.engine) | \(.prefill_tok_s | cell) | \($prefill) | \(.decode_tok_s | cell) | \($decode) |")
' "$work/result"
