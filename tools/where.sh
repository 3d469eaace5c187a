#!/bin/bash
# Says where make demo has left things: what root cloned out of others' reach was set up elsewhere, and ran elsewhere.
#
# Usage: tools/where.sh [ARGUMENT OF aiflow demo …]
set -euo pipefail
cd "$(dirname "$0")/.."
echo "aiflow: the command is $PWD/.venv/bin/aiflow; \". $PWD/.venv/bin/activate\" makes it just \"aiflow\""
case " $* " in *' --report'* | *' --json '*) exit ;; esac # the demo has said it, or shall say nothing else
echo "aiflow: the picture is $(tools/as-user.sh pwd | tail -n 1)/demo-report.png"
