#!/bin/bash
# Throughput of the wheel over that of this tree's own build, in pairs: bench/paired.py. Above 1 the wheel is faster.
# Of several wheels in build/wheel/dist it takes the one that pip prefers for the Python of .venv.
#
# Usage: bench/wheel-pairs.sh [ARGUMENT of paired.py …]        default: --pairs 40
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- --pairs 40
tree=build/wheel/tree
rm -rf "$tree"
.venv/bin/python -m pip -qq --disable-pip-version-check install --no-deps --no-index \
    --find-links build/wheel/dist --target "$tree" aiflow-dpdk
cp -r bench "$tree/"
exec .venv/bin/python bench/paired.py . "$tree" "$@"
