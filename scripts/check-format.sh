#!/usr/bin/env bash
# Fails, and shows where, when a C source is not formatted as .clang-format says. Usage: check-format.sh [CLANG-FORMAT]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
find kernels storage runtime bench tests \( -name '*.c' -o -name '*.h' -o -name '*.inc' \) -print0 |
    xargs -0 "${1:-clang-format-14}" --dry-run -Werror
