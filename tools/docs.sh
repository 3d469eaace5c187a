#!/bin/bash
# Builds the documentation site in build/docs/html. A warning of Sphinx is an error, and so is a dead link between
# pages. The notebooks run, so their outputs are those of this tree. AIFLOW_DOCS_NOTEBOOKS=off leaves them out.
#
# Usage: tools/docs.sh [OPTION OF sphinx-build ...]
set -euo pipefail
cd "$(dirname "$0")/.."
[ ! -d .venv/bin ] || PATH=$PWD/.venv/bin:$PATH

# The kernels of the notebooks open local ports: in a directory of their own, with a short name.
AIFLOW_RUNTIME_DIR=$(mktemp -d /tmp/aiflow-docs-XXXXXX)
export AIFLOW_RUNTIME_DIR
trap 'rm -rf "$AIFLOW_RUNTIME_DIR"' EXIT

sphinx-build -q -W --keep-going -b html -d build/docs/doctrees -c docs/site "$@" . build/docs/html
python tools/site_links.py build/docs/html
echo "aiflow: the site is in build/docs/html: open build/docs/html/index.html"
