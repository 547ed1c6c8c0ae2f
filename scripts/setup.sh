#!/usr/bin/env bash
# Installs what penstock is built from, on Debian 12 and Ubuntu 22.04 or newer. Installs nothing that is there.
#
# Usage: scripts/setup.sh [--tests]
#   --tests   also what scripts/test.sh needs: Python, gnuplot, clang, clang-format, the Arm cross compiler and qemu
set -euo pipefail

have_command() { command -v "$1" >/dev/null; }
have_library() { have_command pkg-config && pkg-config --exists "$1"; }
# Its pkg-config file is not in every release's package.
have_mimalloc() { [ -n "$(find /usr/lib /usr/lib64 /usr/local/lib -name libmimalloc.so -print -quit 2>/dev/null)" ]; }
have_libc_headers() { [ -e /usr/include/stdio.h ]; }

missing=()
need() { # PACKAGE PROBE...: the package is missing when the probe fails
    local package=$1
    shift
    "$@" || missing+=("$package")
}

need gcc have_command gcc
need libc6-dev have_libc_headers
need cmake have_command cmake
need ninja-build have_command ninja
need pkg-config have_command pkg-config
need libpcre2-dev have_library libpcre2-8
need libjansson-dev have_library jansson
need liburing-dev have_library liburing
need libzstd-dev have_library libzstd
need libxxhash-dev have_library libxxhash
need libmimalloc-dev have_mimalloc
need libcmocka-dev have_library cmocka
if [ "${1:-}" = --tests ]; then
    need python3 have_command python3
    need gnuplot-nox have_command gnuplot
    need clang-14 have_command clang-14
    need clang-format-14 have_command clang-format-14
    need gcc-aarch64-linux-gnu have_command aarch64-linux-gnu-gcc
    need libc6-dev-arm64-cross test -e /usr/aarch64-linux-gnu/lib/crti.o
    need qemu-user have_command qemu-aarch64
elif [ $# -gt 0 ]; then
    echo "setup: unknown option $1 (there is only --tests)" >&2
    exit 2
fi
[ ${#missing[@]} -eq 0 ] && exit 0

fail() {
    echo "setup: missing: ${missing[*]}: $1" >&2
    exit 1
}
have_command apt-get || fail "no apt-get here: install them with this system's package manager"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    have_command sudo || fail "neither root nor sudo: have an administrator run: apt-get install ${missing[*]}"
    as_root=(sudo)
    [ -t 0 ] || as_root+=(-n) # nobody is there to type a password
fi

echo "setup: installing ${missing[*]}" >&2
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >&2; }
# An unreachable third-party list need not stop the installation: only the installation itself must succeed.
apt update || true
apt install -y --no-install-recommends "${missing[@]}" || fail "apt-get install failed (see above)"
