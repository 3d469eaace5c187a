#!/bin/bash
# Throughput of the wheel over that of this tree's own build, in pairs: bench/paired.py. Above 1 the wheel is faster.
#
# Usage: bench/wheel-pairs.sh [ARGUMENT of paired.py …]        default: --pairs 40
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- --pairs 40
tree=build/wheel/tree
ls build/wheel/dist/*-abi3-*.whl >/dev/null 2>&1 ||
    { echo "aiflow: there is no wheel in build/wheel/dist: make wheel" >&2; exit 1; }
rm -rf "$tree"
.venv/bin/python -m pip -qq --disable-pip-version-check install --no-deps --no-index \
    --find-links build/wheel/dist --target "$tree" aiflow-dpdk
cp -r bench "$tree/"
exec .venv/bin/python bench/paired.py . "$tree" "$@"
