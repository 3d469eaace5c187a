#!/bin/bash
# Runs the tests marked unit or sanitize on a build with GCC's sanitizers. That build is kept in build/sanitize.
#
# Usage: [AIFLOW_SANITIZE=address,undefined] [MARKS="root and not soak"] tools/sanitize.sh [PYTEST ARGUMENT …]
set -euo pipefail
cd "$(dirname "$0")/.."
export AIFLOW_SANITIZE=${AIFLOW_SANITIZE:-address,undefined}
python=.venv/bin/python
lib=$PWD/build/sanitize/lib

echo "aiflow: compiling with -fsanitize=$AIFLOW_SANITIZE"
$python setup.py --quiet build --build-lib "$lib"

# The interpreter is not instrumented, so the run-time library must be loaded first. The leak checker is off, because
# Python keeps memory until it exits. The tests themselves check that no mbuf leaks.
preload=""
for library in asan ubsan; do
    path=$(gcc -print-file-name=lib$library.so)
    case $path in /*) preload+="$path " ;; esac
done
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1${UBSAN_OPTIONS:+:$UBSAN_OPTIONS}
# PYTHONSAFEPATH: a child process started in the checkout must not find the ordinary build there.
export PYTHONPATH=$lib PYTHONSAFEPATH=1 PYTHONMALLOC=malloc
LD_PRELOAD=$preload $python -c '
import aiflow, sys
assert aiflow.__file__.startswith(sys.argv[1]), aiflow.__file__' "$lib"
# tests/project looks at sources, pages and packages: the sanitizers see nothing of ours in them. The others that are
# left out compile C programs with sanitizers of their own, in every run of the tests.
LD_PRELOAD=$preload exec $python -m pytest -m "${MARKS:-(unit or sanitize) and not soak}" --timeout=600 \
    --ignore=tests/project --ignore=tests/unit/test_core.py --ignore=tests/unit/test_headers.py \
    --ignore=tests/unit/test_simulator.py --ignore=tests/unit/test_golden.py --ignore=tests/unit/test_fuzz.py "$@"
