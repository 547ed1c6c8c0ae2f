#!/usr/bin/env bash
# penstock and another engine on the same file, tokens and threads, in turns: prefill and decode, everything resident or under
# the same memory limit.
#
# Usage: bench/peer/run.sh [--json] MODEL [ENGINE...]     (default engine: llama-cpp; a script of bench/peer/engines)
# PREFILL, DECODE (512, 64; with LIMIT 32, 32): tokens; THREADS (2); ROUNDS (3; with LIMIT 1): of all engines in turn, after one
# that is thrown away; REPEAT (2; with LIMIT 1): measurements per round; VOCAB (32000): ids are drawn below it; WRAP: a command that
# each engine's turn is run through. LIMIT (such as 5G): memory that each engine may have, page cache included: a control group's
# hard limit, of which penstock's --ram is 96 %; peak memory and bytes read are in the table then. Prints a table of medians with penstock's ratio to each engine, or with --json all figures. Needs jq.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
json=
if [ "${1-}" = --json ]; then json=1 && shift; fi
model=${1:?usage: bench/peer/run.sh [--json] MODEL [ENGINE...]}
shift
engines=(penstock "${@:-llama-cpp}")
limit=${LIMIT:+$(numfmt --from=iec "$LIMIT")}
prefill=${PREFILL:-${limit:+32}} decode=${DECODE:-${limit:+32}} rounds=${ROUNDS:-${limit:+1}} repeat=${REPEAT:-${limit:+1}}
prefill=${prefill:-512} decode=${decode:-64} rounds=${rounds:-3} repeat=${repeat:-2} threads=${THREADS:-2}
. "$here/../memory_group.sh"
if [ -n "$limit" ]; then
    export FLAGS="--ram $((limit / 25 * 24)) ${FLAGS-}" REPACK=off # repacked weights are a second copy: the kernel would end it
fi
read -r -a wrap <<<"${WRAP-}"
work=$(mktemp -d)
trap 'rm -rf "$work"; memory_group_remove' EXIT

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

bytes_read_of_shell() { # from drives, by this shell and its children that have ended
    awk '/^read_bytes/ {print $2}' "/proc/$$/io"
}

# A turn under the limit, with what it took.
limited_turn() { # ENGINE REPEAT
    local before result
    memory_group_make "$limit"
    before=$(bytes_read_of_shell)
    result=$(memory_group_run "$here/engines/$1.sh" measure "$model" "$work/tokens" "$prefill" "$decode" "$threads" "$2")
    jq -c --argjson peak "$(memory_group_peak)" --argjson read "$(($(bytes_read_of_shell) - before))" \
        '. + {peak_bytes: $peak, bytes_read: $read}' <<<"$result"
    memory_group_remove
}

for ((round = 0; round <= rounds; round++)); do
    for engine in "${engines[@]}"; do
        if [ -n "$limit" ]; then
            [ "$round" -gt 0 ] || continue # nothing stays in memory for a later round
            limited_turn "$engine" "$repeat" >"$work/turn"
        elif [ "$round" -eq 0 ]; then
            turn "$engine" 1 >/dev/null # touches the memory that the host has to find first
            continue
        else
            turn "$engine" "$repeat" >"$work/turn"
        fi
        jq -c --arg name "$engine" --argjson round "$round" '{name: $name, round: $round} + .' "$work/turn"
    done
done >"$work/turns"

jq -s --arg model "$(basename "$model")" --argjson threads "$threads" --argjson prefill "$prefill" --argjson decode "$decode" '
    def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
    def summary(key): [.[] | .[key][]] | {median: median, min: min, max: max};
    def times: . * 100 | round / 100;
    . as $turns |
    (group_by(.name) | map({name: .[0].name, engine: .[0].engine, prefill_tok_s: summary("prefill_tok_s"),
                            decode_tok_s: summary("decode_tok_s"), peak_bytes: (map(.peak_bytes // 0) | max),
                            bytes_read: (map(.bytes_read // 0) | add)})) as $engines |
    ($engines[] | select(.name == "penstock")) as $ours |
    {model: $model, threads: $threads, prefill: $prefill, decode: $decode,
     engines: ($engines | map(. + {penstock_prefill_ratio: ($ours.prefill_tok_s.median / .prefill_tok_s.median | times),
                                   penstock_decode_ratio: ($ours.decode_tok_s.median / .decode_tok_s.median | times)})),
     turns: $turns}' "$work/turns" >"$work/result"
if [ -n "$json" ]; then
    cat "$work/result"
    exit
fi
jq -r --arg limit "$limit" '
    def one: if . < 10 then . * 100 | round / 100 else . * 10 | round / 10 end | tostring;
    def cell: "\(.median | one) (\(.min | one)-\(.max | one))";
    def gb: . / 1e7 | round / 100 | tostring;
    "\(.model), \(.threads) threads\(if $limit != "" then ", memory limit \($limit) bytes" else "" end), tok/s: median (least-most)", "",
    "| engine | prefill \(.prefill) | penstock is | decode \(.decode) | penstock is |\(if $limit != "" then " peak GB | read GB |" else "" end)",
    "| --- | --- | --- | --- | --- |\(if $limit != "" then " --- | --- |" else "" end)",
    (.engines | sort_by(.name != "penstock")[] | (if .name == "penstock" then ["", ""] else
        [.penstock_prefill_ratio, .penstock_decode_ratio] | map("\(.)x") end) as [$prefill, $decode] |
     "| \(.engine) | \(.prefill_tok_s | cell) | \($prefill) | \(.decode_tok_s | cell) | \($decode) |\(if $limit != "" then " \(.peak_bytes | gb) | \(.bytes_read | gb) |" else "" end)")
' "$work/result"
