#!/usr/bin/env bash
# How well `bench io` agrees with fio: both in turns on the same file, uring, O_DIRECT.
#
# Usage: bench/io.sh FILE.gguf [SECONDS [ROUNDS]]     (default: 2 s each, whole ones, 3 rounds; the file is only read)
# Prints one JSON object per case: GB/s, p50 and p99 of both in microseconds, medians of the rounds, and the ratio of rates
# (penstock over fio), median and per round. others_gb_s: what the drive read for others during penstock's runs, the most of
# the rounds; where that is much, the figures are worth nothing. huge_pages: fio read into huge pages, as penstock does; that takes
# reserved ones (sysctl vm.nr_hugepages=32 before, =0 after), without them fio reads into small pages. Needs fio and jq.
# CASES: "pattern size depth;..."; PENSTOCK: the program.
set -euo pipefail
file=${1:?usage: bench/io.sh FILE.gguf [SECONDS [ROUNDS]]}
seconds=${2:-2}
rounds=${3:-3}
cases=${CASES:-random 1M 8;random 64K 16;sequential 512K 4}
penstock=${PENSTOCK:-$(dirname "${BASH_SOURCE[0]}")/../build/penstock}

fio_memory=()
if [ "$(awk '/HugePages_Free/ { print $2 }' /proc/meminfo)" -ge 32 ]; then
    fio_memory=(--iomem=mmaphuge --hugepage-size=2m)
fi

# Random places at multiples of 4 KiB, as an expert has in a GGUF file and as penstock draws them.
with_fio() { # PATTERN SIZE DEPTH
    local rw="randread"
    [ "$1" = random ] || rw="read"
    fio --name=x --filename="$file" --readonly --rw=$rw --bs="${2,,}" --iodepth="$3" --ioengine=io_uring --direct=1 \
        --blockalign=4k --norandommap --randseed="$RANDOM" --runtime="$seconds" --time_based "${fio_memory[@]}" --output-format=json |
        jq -c '.jobs[0].read | {who: "fio", rate: (.bw_bytes / 1e9), p50_us: (.clat_ns.percentile["50.000000"] / 1e3),
            p99_us: (.clat_ns.percentile["99.000000"] / 1e3)}'
}

# Into as much memory as fio has: one place per read in flight.
with_penstock() { # PATTERN SIZE DEPTH
    "$penstock" bench io -m "$file" --pattern "$1" --extent "$2" --block "$2" --queue-depth "$3" --io uring --direct on \
        --memory "$(($(numfmt --from=iec "$2") * $3))" --seconds "$seconds" --repeat 1 --json |
        jq -c 'select(.kind == "io") | {who: "penstock", rate: (.bytes_per_s / 1e9), p50_us, p99_us,
            others: ((.drive_bytes_per_s // 0) / 1e9 - .bytes_per_s / 1e9)}'
}

IFS=';' read -r -a list <<<"$cases"
for ((round = 0; round < rounds; round++)); do
    for case in "${list[@]}"; do
        read -r pattern size depth <<<"$case"
        for who in fio penstock; do
            "with_$who" "$pattern" "$size" "$depth" |
                jq -c --arg case "$case" --argjson round "$round" '. + {case: $case, round: $round}'
        done
    done
done | jq -s -c --argjson huge "$([ ${#fio_memory[@]} -gt 0 ] && echo true || echo false)" 'def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
    def show: {gb_s: (map(.rate) | median * 1000 | round / 1000), p50_us: (map(.p50_us) | median | round),
        p99_us: (map(.p99_us) | median | round)};
    group_by(.case)[] | group_by(.round) as $rounds |
    [$rounds[] | (map(select(.who == "penstock"))[0].rate / map(select(.who == "fio"))[0].rate)] as $ratios |
    {case: .[0].case, huge_pages: $huge, fio: (map(select(.who == "fio")) | show), penstock: (map(select(.who == "penstock")) | show),
     others_gb_s: (map(.others // 0) | max * 1000 | round / 1000),
     ratio: ($ratios | median * 1000 | round / 1000), ratios: ($ratios | map(. * 1000 | round / 1000))}'
