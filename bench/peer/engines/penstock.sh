#!/usr/bin/env bash
# penstock, by the contract of ../README.md. PENSTOCK: the program. FLAGS: more flags for it.
set -euo pipefail
if [ "$1" = install ]; then exit; fi
shift
model=$1 tokens=$2 prefill=$3 decode=$4 threads=$5 repeat=$6
penstock=${PENSTOCK:-$(dirname "${BASH_SOURCE[0]}")/../../../build/penstock}
read -r -a flags <<<"${FLAGS-}"

bench() { # WHAT N
    "$penstock" bench "$1" -m "$model" -n "$2" --tokens "$tokens" --threads "$threads" --warm-up 1 --repeat "$repeat" \
        "${flags[@]}" --probe 0 --stats - 2>/dev/null
}

prefill_stats=$(bench prefill "$prefill")
decode_stats=$(bench decode "$decode")
jq -cn --argjson p "$prefill_stats" --argjson d "$decode_stats" '
    {engine: "penstock", cpu: $d.cpu, prefill_tok_s: $p.rates_tok_s, decode_tok_s: $d.rates_tok_s,
     prefill_parts_s: $p.parts_s, decode_parts_s: $d.parts_s, decode_stall_s: $d.stall_s}'
