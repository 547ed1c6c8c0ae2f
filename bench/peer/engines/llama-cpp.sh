#!/usr/bin/env bash
# llama.cpp v0.5.0, by the contract of ../README.md: the prebuilt library of an npm package, driven by llama-cpp.c.
# Everything goes to ${XDG_CACHE_HOME:-~/.cache}/penstock/peer. REPACK=off: without its repacking of weights.
set -euo pipefail
version=3.22.1 # of @node-llama-cpp: llama.cpp v0.5.0
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/penstock/peer/llama-cpp-$version
case $(uname -m) in
    x86_64) platform=linux-x64 ;;
    aarch64) platform=linux-arm64 ;;
    *) echo "llama-cpp: no prebuilt library for $(uname -m)" >&2 && exit 1 ;;
esac
library=$cache/node_modules/@node-llama-cpp/$platform/bins/$platform

install_peer() {
    if [ ! -d "$library" ]; then
        mkdir -p "$cache"
        npm install --prefix "$cache" --no-save --no-audit --no-fund --ignore-scripts \
            "@node-llama-cpp/$platform@$version" >&2
    fi
    grep -q '"release":"v0.5.0"' "$library/_nlcBuildMetadata.json"
    if [ ! "$cache/llama-cpp" -nt "$here/llama-cpp.c" ]; then
        "${CC:-cc}" -O2 -std=gnu11 "$here/llama-cpp.c" -o "$cache/llama-cpp" -ldl
    fi
}

case $1 in
    install) install_peer ;;
    measure)
        shift
        exec "$cache/llama-cpp" "$library" "$@" "${REPACK:-on}"
        ;;
    logits) # MODEL TOKENS_FILE N
        shift
        exec "$cache/llama-cpp" "$library" "$@"
        ;;
esac
