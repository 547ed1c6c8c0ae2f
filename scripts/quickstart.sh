#!/usr/bin/env bash
# From a fresh clone to text: installs what is missing, builds, and runs a model that is larger than its memory budget.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
cmake --preset release >/dev/null
cmake --build --preset release --target penstock

model=bench/models/fable-moe-q8_0.gguf
ram=12M
prompt="Once upon a time"
echo "$model is $(($(stat -c %s "$model") >> 20)) MiB; penstock gets $ram for everything."
echo "prompt: $prompt"
build/penstock run -m "$model" --ram "$ram" -p "$prompt" -n 64 --temp 0 --stats -
