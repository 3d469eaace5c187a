#!/bin/bash
# The one list of lint commands: make lint, CI and pre-commit run them from here. Every check runs, then the failed
# ones are named. Nothing is changed in the tree and nothing is fetched.
#
# Usage: tools/lint.sh [CHECK ...]       default: all; tools/lint.sh --list names them
set -uo pipefail
cd "$(dirname "$0")/.."
[ ! -d .venv/bin ] || PATH=$PWD/.venv/bin:$PATH

checks=(texts words limits ruff format clang-format mypy cython-lint codespell)

check() {
    case $1 in
        texts) tools/texts.sh ;;
        words) python tools/words.py ;;
        limits) python tools/sizes.py ;;
        ruff) ruff check --quiet . ;;
        format) ruff format --quiet --check . ;;
        clang-format) clang_format ;;
        mypy) mypy --no-error-summary ;;
        cython-lint) cython-lint aiflow ;;
        codespell) codespell ;;
        *) echo "no such check: ${checks[*]}" && return 2 ;;
    esac
}

clang_format() {
    find include tests/core tests/fuzz bench tools -name '*.[ch]' -print0 | xargs -0 clang-format --dry-run -Werror
}

if [ "${1:-}" = --list ]; then
    printf '%s\n' "${checks[@]}"
    exit
fi
[ $# -gt 0 ] || set -- "${checks[@]}"
failed=()
for name; do
    check "$name" || failed+=("$name")
done
[ ${#failed[@]} -eq 0 ] || {
    echo "aiflow: lint failed: ${failed[*]}" >&2
    exit 1
}
