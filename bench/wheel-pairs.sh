#!/bin/bash
# Throughput of the wheel over that of this tree's own build, in pairs: bench/paired.py. Above 1 the wheel is faster.
#
# Usage: bench/wheel-pairs.sh [ARGUMENT of paired.py …]        default: --pairs 40
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- --pairs 40
tree=build/wheel/tree
rm -rf "$tree"
.venv/bin/python -m pip -qq --disable-pip-version-check install --no-deps --target "$tree" build/wheel/dist/*.whl
cp -r bench "$tree/"
exec .venv/bin/python bench/paired.py . "$tree" "$@"
