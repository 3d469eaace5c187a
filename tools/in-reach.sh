#!/bin/bash
# Runs a command in the checkout, or in a copy where other users cannot read root's checkout: it lies in root's home,
# or was cloned under umask 077. The demo and some tests run as an ordinary user.
#
# Usage: tools/in-reach.sh COMMAND [ARGUMENT …]
set -euo pipefail
cd "$(dirname "$0")/.."

readable_by_others() {
    (cd / && setpriv --reuid=nobody --regid=nogroup --clear-groups \
        sh -c 'test -x "$1/aiflow" -a -r "$1/aiflow/__init__.py" -a -r "$1/pyproject.toml"' sh "$1")
}

if [ "$(id -u)" -ne 0 ] || readable_by_others "$PWD"; then exec "$@"; fi

copy=/var/cache/aiflow/checkout-$(printf %s "$PWD" | cksum | cut -d' ' -f1)
umask 022
mkdir -p "$copy"
printf 'aiflow: other users cannot read %s; working on a copy in %s\n' "$PWD" "$copy"
find "$copy" -mindepth 1 -maxdepth 1 ! -name .venv ! -name build ! -name aiflow -exec rm -rf {} +
[ ! -d "$copy/aiflow" ] || find "$copy/aiflow" -type f ! -name '*.so' -delete
tar -c --mode=a+rX --exclude=./.venv --exclude=./build --exclude='*.so' --exclude=__pycache__ . |
    tar -x -p -C "$copy" --no-same-owner
cd "$copy"
exec "$@"
