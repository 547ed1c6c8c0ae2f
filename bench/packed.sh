#!/usr/bin/env bash
# What a container is worth: `bench decode` of one model in several files (its GGUF, containers made of it by `pack`), in turns.
#
# Usage: bench/packed.sh RAM MODEL.gguf PACKED...
# Prints one JSON object per file: tokens/s, bytes read per token and hit rate (medians of the rounds), and the ratio of its speed to the first
# file's: the median of the rounds, and each.
# ROUNDS (5), TOKENS (32), THREADS, IO_LIMIT (bytes per second, none), LIMIT (a hard memory limit for each run, in bytes; needs a memory
# controller that this user may write), FLAGS (more flags for every run), PENSTOCK (the program). Needs jq.
set -euo pipefail
ram=${1:?usage: bench/packed.sh RAM MODEL.gguf PACKED...}
shift
here=$(dirname "${BASH_SOURCE[0]}")
penstock=${PENSTOCK:-$here/../build/penstock}
rounds=${ROUNDS:-5}
read -r -a flags <<<"${FLAGS-}"
work=$(mktemp -d)
wrapper=()
. "$here/memory_group.sh"
cleanup() {
    rm -rf "$work"
    [ -z "${LIMIT-}" ] || memory_group_remove
}
trap cleanup EXIT
if [ -n "${LIMIT-}" ]; then
    memory_group_make "$LIMIT"
    wrapper=(memory_group_run)
fi

decode() { # FILE ROUND NUMBER
    "${wrapper[@]}" "$penstock" bench decode -m "$1" --tokens random:1 -n "${TOKENS:-32}" --warm-up 1 --repeat 1 --ram "$ram" --probe 0 \
        --threads "${THREADS:-2}" --io-limit "${IO_LIMIT:-0}" "${flags[@]}" --json-lines "$work/records" >/dev/null 2>"$work/log" || {
        tail -n 1 "$work/log" >&2
        return 1
    }
    jq -c --arg file "$1" --argjson round "$2" --argjson number "$3" '{$file, $round, $number, tokens_per_s, bytes_per_token, hit_rate, stall_s,
        compute_s}' <(tail -n 1 "$work/records")
}

for ((round = 0; round < rounds; round++)); do
    # Each round starts with another file, so that none always runs after the same one.
    for ((i = 0; i < $#; i++)); do
        number=$(((i + round) % $#))
        file=("${@:number+1:1}")
        decode "${file[0]}" "$round" "$number"
    done
done | jq -s -c 'def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
    (map(select(.number == 0)) | map({key: (.round | tostring), value: .tokens_per_s}) | from_entries) as $first |
    group_by(.number)[] | {file: .[0].file, tok_s: (map(.tokens_per_s) | median), mb_per_token: (map(.bytes_per_token) | median / 1e6),
     hit_rate: (map(.hit_rate) | median), stall_s: (map(.stall_s) | median), compute_s: (map(.compute_s) | median),
     ratios: map(.tokens_per_s / $first[.round | tostring] * 1000 | round / 1000)} | .ratio = (.ratios | median)'
