#!/bin/bash
# Installs the wheel of tools/wheel.sh with other Pythons of this machine, each in a virtual environment of its own
# below build/, and runs the tests of round trips there, as this user.
#
# Usage: tools/wheel-python.sh PYTHON …      such as python3.12 python3.13, or paths; each with the module venv
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { printf 'aiflow: %s\n' "$*" >&2; exit 1; }
[ $# -gt 0 ] || fail "usage: tools/wheel-python.sh PYTHON …"
wheel=$(echo "$PWD"/build/wheel/dist/*-abi3-*.whl)
[ -f "$wheel" ] || fail "there is no wheel in build/wheel/dist: make wheel"
tests="tests/ports/test_roundtrip.py tests/ports/test_between_processes.py tests/unit/test_encode.py"
for python; do
    version=$("$python" -c 'import platform; print(platform.python_version())') || fail "$python does not run"
    place=$PWD/build/wheel/python-$version
    rm -rf "$place"
    mkdir -p "$place"
    "$python" -m venv "$place/venv"
    "$place/venv/bin/pip" -qq --disable-pip-version-check install "$wheel" \
        hypothesis pytest pytest-benchmark pytest-timeout
    cp -r tests pyproject.toml "$place" # not in this tree, whose package would be taken
    (
        cd "$place"
        for command in "aiflow doctor" "python -m pytest -q -p no:cacheprovider -m 'not soak and not slow' $tests"; do
            eval "venv/bin/$command"
        done
    )
    rm -rf "$place"
    echo "aiflow: the wheel works with Python $version"
done
