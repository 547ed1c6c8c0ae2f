#!/usr/bin/env bash
# Installs what is missing, builds every variant with warnings as errors, and runs the tests of each.
#
# Usage: scripts/test.sh [--quick] [STAGE...]
#   --quick   only the release stage
#   STAGE     release      everything, optimised
#             clang        built with clang; unit tests
#             no-uring     built without io_uring or optimisation; unit tests of what runs on several threads
#             asan         everything, under AddressSanitizer and UndefinedBehaviorSanitizer
#             tsan         what runs on several threads, under ThreadSanitizer
#             tsan-all     everything under it; only when asked for
#             aarch64      cross-compiled; unit and golden tests under qemu
# Ends with CTest's summary of every stage; the exit code is 0 only when all of them passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    sed -n '2,/^set/{/^set/!p}' "$0" | cut -c3-
}

all_stages=(release clang no-uring asan tsan aarch64)
stages=()
for argument in "$@"; do
    case $argument in
    --quick) stages=(release) ;;
    --help | -h)
        usage
        exit 0
        ;;
    release | clang | no-uring | asan | tsan | tsan-all | aarch64) stages+=("$argument") ;;
    *)
        echo "test: unknown argument $argument" >&2
        usage >&2
        exit 2
        ;;
    esac
done
[ ${#stages[@]} -gt 0 ] || stages=("${all_stages[@]}")

scripts/setup.sh --tests

jobs=$(nproc)
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

build() { # DIRECTORY CONFIGURE-ARGUMENT...
    local directory=$1
    shift
    cmake "$@" -DPENSTOCK_WERROR=ON >"$logs/configure" || {
        cat "$logs/configure"
        return 1
    }
    cmake --build "$directory" -j "$jobs"
}

# ThreadSanitizer cannot map its shadow where the kernel randomises addresses widely.
fixed_addresses=()
setarch "$(uname -m)" -R true 2>/dev/null && fixed_addresses=(setarch "$(uname -m)" -R)

run_ctest() { # DIRECTORY CTEST-ARGUMENT...
    local directory=$1
    shift
    "${fixed_addresses[@]}" ctest --test-dir "$directory" --output-on-failure --no-tests=error -j "$jobs" "$@"
}

stage_release() { build build --preset release && run_ctest build; }
stage_asan() { build build-asan --preset asan && run_ctest build-asan; }
stage_tsan() { build build-tsan --preset tsan && run_ctest build-tsan -L threads; }
stage_tsan-all() { build build-tsan --preset tsan && run_ctest build-tsan; }
stage_clang() {
    build build-clang -S . -B build-clang -G Ninja -DCMAKE_C_COMPILER=clang-14 && run_ctest build-clang -L unit
}
stage_no-uring() {
    build build-no-uring -S . -B build-no-uring -G Ninja -DPENSTOCK_URING=OFF -DCMAKE_BUILD_TYPE=Debug &&
        run_ctest build-no-uring -L unit -L threads
}
stage_aarch64() {
    scripts/aarch64-sysroot.sh && build build-aarch64 --preset aarch64 &&
        run_ctest build-aarch64 -L 'unit|golden'
}

failed=()
for stage in "${stages[@]}"; do
    echo "==== $stage"
    started=$SECONDS
    # In a condition, so that one stage's failure does not end the others; errexit is off inside, hence the && chains.
    if ! "stage_$stage" 2>&1 | tee "$logs/$stage.log"; then
        failed+=("$stage")
    fi
    echo "==== $stage took $((SECONDS - started)) s"
done

# The summaries once more, where they are looked for: those that passed, then those that did not.
summary() {
    echo
    echo "==== $1"
    sed -n '/tests passed, /,$p' "$logs/$1.log" | grep . || echo "$1 did not come as far as its tests"
}
for stage in "${stages[@]}"; do
    [[ " ${failed[*]} " == *" $stage "* ]] || summary "$stage"
done
for stage in "${failed[@]}"; do
    summary "$stage"
done
[ ${#failed[@]} -eq 0 ]
