#!/usr/bin/env bash
# What reading ahead is worth: decoding with `--prefetch auto` against `off`, run in turns, on text of the model's own.
#
# Usage: bench/prefetch.sh [--grid] [MODEL [RAM [TOKENS [REPEATS]]]]
#        (default: the quick-start model, room for a quarter of its experts, 200 tokens, 7 pairs; 3 with --grid)
# Prints one JSON object per setting. ratio: how much faster auto is, the median over pairs of runs next to each other.
# Without --grid: one setting, with an I/O limit (LIMIT, bytes/s) at which reading takes as long as computing: bytes
# read per token / limit = compute per token, both of a run without prefetch. With --grid: every combination of RAMS
# (default: the budgets that `inspect` plans for), FACTORS (of that limit; 0: no limit) and DEPTHS (queue depths), then
# the worst one.
# Needs jq. THREADS, FLAGS and PENSTOCK: compute threads, more flags for every run, the program. A small model computes so
# fast that the limit is above what a drive gives: THREADS=1 FLAGS="--cpu scalar" brings it down.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
grid=
if [ "${1-}" = --grid ]; then
    grid=1
    shift
fi
model=${1:-$here/models/fable-moe-q8_0.gguf}
penstock=${PENSTOCK:-$here/../build/penstock}
shape=$("$penstock" inspect "$model" --json)
ram=${2:-$(jq '.minimum_budget_bytes + .expert_bytes / 4 | floor' <<<"$shape")}
tokens=${3:-200}
repeats=${4:-$((grid ? 3 : 7))}
threads=${THREADS:-2}
read -r -a flags <<<"${FLAGS-}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Routing follows the text, so random tokens would say little about a trained model.
write_tokens() {
    local prompt=(--prompt-tokens 1)
    [ "$(jq .has_tokenizer <<<"$shape")" = false ] || prompt=(-p "Once upon a time")
    "$penstock" run -m "$model" "${prompt[@]}" -n "$tokens" --ignore-end --seed 1 --threads "$threads" --warm off \
        --print tokens >"$work/tokens" 2>"$work/log" || failed
}

failed() {
    tail -n 1 "$work/log" >&2
    return 1
}

decode() { # STATS RAM LIMIT DEPTH PREFETCH
    "$penstock" bench decode -m "$model" --tokens "$work/tokens" -n "$tokens" --threads "$threads" --ram "$2" \
        --io-limit "$3" --queue-depth "$4" --prefetch "$5" "${flags[@]}" --probe 0 --stats "$1" >/dev/null 2>"$work/log" || failed
}

# The limit changes what is computed while reads land, so it is found in a few steps.
balanced_limit() { # RAM DEPTH
    local limit=0 next i
    for _ in 1 2 3 4 5; do
        for i in 1 2 3; do
            decode "$work/probe.$i" "$1" "$limit" "$2" off || return 1
        done
        next=$(jq -s 'sort_by(.compute_s)[1] | if .compute_s > 0 then .bytes_demand / .compute_s | floor else 0 end' \
            "$work"/probe.*)
        [ "$next" -gt 0 ] || break # everything is in memory
        if awk -v a="$limit" -v b="$next" 'BEGIN { exit !(a > 0.97 * b && a < 1.03 * b) }'; then
            break
        fi
        limit=$next
    done
    echo "$limit"
}

compare() { # RAM LIMIT DEPTH
    local i order
    rm -f "$work"/off.* "$work"/auto.*
    for ((i = 0; i < repeats; i++)); do
        # Turn about, so that neither is always the one that runs on a warm machine.
        order=(off auto)
        [ $((i % 2)) = 0 ] || order=(auto off)
        for prefetch in "${order[@]}"; do
            decode "$work/$prefetch.$(printf %04d "$i")" "$1" "$2" "$3" "$prefetch" || return 1
        done
    done
    jq -n -c --slurpfile off <(cat "$work"/off.*) --slurpfile auto <(cat "$work"/auto.*) --argjson limit "$2" \
        --argjson depth "$3" '
        def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
        def of(key): map(key) | median;
        [range($off | length) | $off[.].decode_s / $auto[.].decode_s] as $ratios |
        ($auto | of(.bytes_demand + .bytes_speculative)) as $read |
        {ratio: ($ratios | median), ratio_min: ($ratios | min), ratio_max: ($ratios | max),
         off_tok_s: ($off | of(.decode_tok_s)), auto_tok_s: ($auto | of(.decode_tok_s)),
         budget_bytes: $off[0].budget_bytes, slots: $off[0].slots, auto_slots: $auto[0].slots, shards: $off[0].shards,
         io_limit: $limit, queue_depth: $depth, pairs: ($off | length),
         off_io_s: (if $limit > 0 then ($off | of(.bytes_demand)) / $limit else null end),
         off_compute_s: ($off | of(.compute_s)), off_stall_s: ($off | of(.stall_s)),
         auto_stall_s: ($auto | of(.stall_s)), threshold: ($auto | of(.prefetch_threshold)),
         width: ($auto | of(.prefetch_width)), predictor_s: ($auto | of(.predictor_s)),
         off_bytes: ($off | of(.bytes_demand)), auto_bytes: $read, bytes_speculative: ($auto | of(.bytes_speculative)),
         bytes_useful: ($auto | of(.bytes_useful)), bytes_late: ($auto | of(.bytes_late)),
         bytes_wasted: ($auto | of(.bytes_wasted)),
         wasted_share: (if $read > 0 then ($auto | of(.bytes_wasted)) / $read else 0 end)}'
}

run_grid() {
    local budget balanced factor depth
    for budget in ${RAMS:-$(jq -r '.plans[].budget_bytes' <<<"$shape")}; do
        if ! balanced=$(balanced_limit "$budget" 0); then
            echo "budget $budget: left out" >&2
            continue
        fi
        for factor in ${FACTORS:-0.25 0.5 1 2 4 0}; do
            for depth in ${DEPTHS:-1 4 32}; do
                # A budget may suit one setting and not another.
                compare "$budget" "$(jq -n "$balanced * $factor | floor")" "$depth" ||
                    echo "budget $budget, depth $depth: left out" >&2
            done
        done
    done | tee "$work/grid"
    jq -s -c 'if length == 0 then error("no setting ran") else
        {settings: length, worst: min_by(.ratio), median_ratio: (map(.ratio) | sort | .[length / 2 | floor]),
         most_wasted_share: (map(.wasted_share) | max)} end' "$work/grid"
}

write_tokens
if [ -n "$grid" ]; then
    run_grid
else
    compare "$ram" "${LIMIT:-$(balanced_limit "$ram" 0)}" "${DEPTH:-0}"
fi
