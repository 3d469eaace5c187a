#!/bin/bash
# Runs the README's commands on a machine that has neither DPDK nor our dependencies. It makes a minimal Debian with
# debootstrap, clones the last commit into root's home there, and runs make there, once for each target.
# tools/debian-root.sh says what that Debian has of this machine.
#
# Usage: tools/fresh.sh SUITE [TARGET …]      as root; SUITE is bookworm, trixie or sid; the default targets are
#        demo demo test. A target may carry arguments: tools/fresh.sh trixie demo 'test ARGS="-k wire"'.
#        KEEP=1 keeps the tree.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { printf 'aiflow: %s\n' "$*" >&2; exit 1; }
source tools/debian-root.sh
[ $# -gt 0 ] || set -- demo demo test

echo "aiflow: what the README asks for first: git and make"
inside 'apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
    git make ca-certificates >/dev/null'
inside 'if command -v gcc || command -v pkg-config || command -v python3 ||
    ls /usr/include/dpdk 2>/dev/null; then echo "not fresh" >&2; exit 1; fi'
git clone --quiet --no-hardlinks "file://$PWD" "$root/root/aiflow"
for target in "$@"; do
    echo "aiflow: make $target"
    start=$SECONDS
    inside "cd ~/aiflow && make $target"
    echo "aiflow: make $target took $((SECONDS - start)) s"
done
