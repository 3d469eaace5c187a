#!/bin/bash
# Makes the source distribution, in dist/, and installs it with pip on a minimal Debian that has DPDK's headers and a
# compiler: aiflow demo as an ordinary user there, then the tests of round trips. tools/debian-root.sh says what that
# Debian has of this machine.
#
# Usage: tools/sdist-test.sh SUITE           as root; SUITE is bookworm (DPDK 22.11), trixie (24.11) or sid
#        KEEP=1 keeps the tree.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { printf 'aiflow: %s\n' "$*" >&2; exit 1; }
if [ "${1:-}" != --inside ]; then
    tools/setup.sh dev
    rm -rf dist/aiflow_dpdk-*.tar.gz build/sdist
    .venv/bin/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")' >/dev/null
fi
sdist=$(echo dist/aiflow_dpdk-*.tar.gz)
[ -f "$sdist" ] || fail "there is no source distribution in dist"
source tools/debian-root.sh
tests="tests/ports/test_roundtrip.py tests/ports/test_between_processes.py tests/unit/test_encode.py"

inside 'apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
    ca-certificates gcc libc6-dev libdpdk-dev pkg-config python3-dev python3-venv >/dev/null'
inside 'useradd --create-home user && python3 -m venv /opt/venv'
cp "$sdist" "$root/opt/"
cp -r tests pyproject.toml "$root/home/user/"
chmod -R a+rX "$root/home/user"
echo "aiflow: pip install $(basename "$sdist") on $suite, DPDK $(inside 'pkg-config --modversion libdpdk')"
inside "/opt/venv/bin/pip -qq --disable-pip-version-check install '/opt/$(basename "$sdist")[demo]' \
    hypothesis pytest pytest-benchmark pytest-timeout"

# runs a command as the ordinary user, without any capability
as_user() {
    inside "cd /home/user && setpriv --reuid=user --regid=user --clear-groups --inh-caps=-all --bounding-set=-all \
        --no-new-privs env HOME=/home/user TMPDIR=/tmp PATH=/opt/venv/bin:/usr/bin:/bin $1"
}
as_user 'aiflow doctor'
as_user 'aiflow demo --seconds 1 --report /tmp/demo.png' | tee "$root/demo.out"
grep -q '^512/512 images identical' "$root/demo.out" || fail "the demo did not deliver 512 of 512 on $suite"
pytest="python -m pytest -q -o cache_dir=/tmp/pytest -m 'not soak and not slow' $tests"
as_user "$pytest" || { [ -n "${AIFLOW_RETRY:-}" ] && as_user "$pytest --last-failed"; }
echo "aiflow: the source distribution works on $suite"
