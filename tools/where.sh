#!/bin/bash
# Says where make demo left the command and the picture. tools/in-reach.sh may have moved both to another directory.
#
# Usage: tools/where.sh [ARGUMENT OF aiflow demo …]
set -euo pipefail
cd "$(dirname "$0")/.."
echo "aiflow: the command is $PWD/.venv/bin/aiflow; \". $PWD/.venv/bin/activate\" makes it just \"aiflow\""
case " $* " in *' --report'* | *' --json '*) exit ;; esac # the demo has said so, or must print JSON only
echo "aiflow: the picture is $(tools/as-user.sh pwd | tail -n 1)/demo-report.png"
