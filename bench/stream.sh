#!/usr/bin/env bash
# How near decoding comes to its bound when the model is larger than memory: one run of `bench decode` under a hard
# memory limit, one of the drive alone (fio), one with everything resident, side by side.
#
# Usage: bench/stream.sh MODEL [RAM [LIMIT_BYTES [TOKENS]]]     (default: 4.8G, 5 GiB, 64 tokens)
# The bound is min(1/t_io, 1/t_compute): t_io = bytes read per token over the drive's rate in fio (1 MiB random reads,
# depth 8, direct); t_compute = time per token with everything resident (skipped where the machine has not the memory).
# Needs fio and jq; the hard limit needs a memory controller that this user may write (cgroup v1 or v2).
set -euo pipefail
model=${1:?usage: bench/stream.sh MODEL [RAM [LIMIT_BYTES [TOKENS]]]}
ram=${2:-4.8G}
limit=${3:-$((5 << 30))}
tokens=${4:-64}
threads=${THREADS:-2}
penstock=${PENSTOCK:-$(dirname "${BASH_SOURCE[0]}")/../build/penstock}
stats=$(mktemp -d)
. "$(dirname "${BASH_SOURCE[0]}")/memory_group.sh"
cleanup() {
    rm -rf "$stats"
    memory_group_remove
}
trap cleanup EXIT

decode() { # STATS TOKENS WRAPPER...
    local out=$1 n=$2
    shift 2
    "$@" "$penstock" bench decode -m "$model" --tokens random:1 -n "$n" --threads "$threads" --ram "$budget" \
        --probe 0 --stats "$out" >&2
}

drive_rate() { # bytes per second
    fio --name=drive --filename="$model" --readonly --rw=randread --bs=1M --iodepth=8 --direct=1 --ioengine=libaio \
        --runtime=5 --time_based --output-format=json | jq '.jobs[0].read.bw_bytes'
}

memory_group_make "$limit"
cached_before=$(awk '/^Cached:/{print $2 * 1024}' /proc/meminfo)
rate_before=$(drive_rate)
budget=$ram decode "$stats/streamed" "$tokens" memory_group_run
rate_after=$(drive_rate)
cached_after=$(awk '/^Cached:/{print $2 * 1024}' /proc/meminfo)
peak=$(memory_group_peak)
resident=null
if [ "$(awk '/^MemAvailable:/{print int($2 / 1024)}' /proc/meminfo)" -gt $(($(stat -c %s "$model") / 1000000)) ]; then
    # Longer, so that filling the cache weighs little; what it waited for reads is not compute.
    budget=auto decode "$stats/resident" $((tokens * 8)) env
    resident=$(jq '(.decode_s - .stall_s) / .generated_tokens' "$stats/resident")
fi
jq --argjson before "$rate_before" --argjson after "$rate_after" --argjson resident "$resident" --argjson peak "$peak" \
    --argjson limit "$limit" --argjson cached "$((cached_after - cached_before))" '
    (($before + $after) / 2) as $rate | (.bytes_demand + .bytes_speculative) as $read |
    # What was read ahead in vain does not raise the bound.
    (($read - .bytes_wasted) / .generated_tokens) as $bytes |
    ($bytes / $rate) as $t_io | (if $resident then ([$t_io, $resident] | max) else $t_io end) as $t |
    {decode_tok_s, drive_gb_s: ($rate / 1e9), read_mb_per_token: ($bytes / 1e6), read_gb_s: ($read / .decode_s / 1e9),
     t_io_s: $t_io, t_compute_s: $resident, bound_tok_s: (1 / $t), of_bound: (.decode_tok_s * $t),
     hit_rate: (.expert_hits / (.expert_hits + .expert_late + .expert_misses)),
     wasted_share: (.bytes_wasted / $read), stall_s, peak_rss_bytes, budget_bytes,
     group_peak_bytes: $peak, group_limit_bytes: $limit, page_cache_growth_bytes: $cached}' "$stats/streamed"
