#!/bin/bash
# Rejects harmful advice in our texts. aiflow on the package index is another project, and pip belongs in a virtual
# environment.
#
# Usage: tools/texts.sh [CHECKOUT]
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"
found=$(git grep -InE \
    -e 'pip[x0-9.]* +install( +-[^ ]+)* +['"\"'"'`]?aiflow([^-_./[:alnum:]]|$)' \
    -e '--break[-]system-packages' \
    -e 'sudo( +-[^ ]+)* +([^ ]*python[0-9.]* +-m +)?pip' \
    -- ':!tests/project/test_install.py' || [ $? -eq 1 ])
[ -z "$found" ] || {
    printf '%s\naiflow: the distribution is aiflow-dpdk, and pip runs in a virtual environment\n' "$found" >&2
    exit 1
}
