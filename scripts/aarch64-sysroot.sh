#!/usr/bin/env bash
# Fills build-aarch64-sysroot/ with the arm64 libraries that penstock links, for the aarch64 preset.
#
# The packages are downloaded with a private apt state and unpacked, not installed: the machine's own packages
# and its list of architectures stay as they are, and no root is needed. Does nothing when all is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sysroot=$PWD/build-aarch64-sysroot
packages=(libpcre2-8-0 libpcre2-dev libjansson4 libjansson-dev libcmocka0 libcmocka-dev liburing2 liburing-dev
    libzstd1 libzstd-dev libxxhash0 libxxhash-dev)
[ "$(cat "$sysroot/complete" 2>/dev/null)" = "${packages[*]}" ] && exit 0

fail() {
    echo "aarch64-sysroot: $1" >&2
    exit 1
}
command -v apt-get >/dev/null || fail "no apt-get: unpack arm64 builds of ${packages[*]} into $sysroot"

state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/debs"
: >"$state/status"
options=(-qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=
    -o Dir::State="$state" -o Dir::State::Lists="$state/lists" -o Dir::State::status="$state/status"
    -o Dir::Cache="$state/cache")
# Debian's archive has every architecture; Ubuntu keeps arm64 on other hosts than amd64.
# shellcheck source=/dev/null
. /etc/os-release
if [ "$ID" = ubuntu ]; then
    echo "deb http://ports.ubuntu.com/ubuntu-ports $VERSION_CODENAME main universe" >"$state/sources.list"
    options+=(-o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=-)
fi
# Lists of third parties may lack arm64: only the download itself must succeed.
apt-get "${options[@]}" update || true
(cd "$state/debs" && apt-get "${options[@]}" download "${packages[@]}") ||
    fail "cannot fetch arm64 packages: ${packages[*]}"

rm -rf "$sysroot"
mkdir -p "$sysroot"
for deb in "$state"/debs/*.deb; do
    dpkg-deb -x "$deb" "$sysroot"
done
echo "${packages[*]}" >"$sysroot/complete"
