#!/bin/bash
# Installs the wheel of tools/wheel.sh on a Debian that has neither DPDK nor a compiler, and runs it as an ordinary
# user there: aiflow demo, then the tests of round trips. tools/debian-root.sh says what that Debian has of this
# machine.
#
# Usage: tools/wheel-test.sh SUITE           as root; SUITE is bookworm (Python 3.11), trixie (3.13) or sid (3.14)
#        KEEP=1 keeps the tree.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { printf 'aiflow: %s\n' "$*" >&2; exit 1; }
wheel=$(echo build/wheel/dist/*-abi3-*.whl)
[ -f "$wheel" ] || fail "there is no wheel in build/wheel/dist: make wheel"
source tools/debian-root.sh
tests="tests/ports/test_roundtrip.py tests/ports/test_between_processes.py tests/unit/test_encode.py"

inside 'apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
    python3-venv ca-certificates >/dev/null'
inside 'if command -v gcc || command -v pkg-config || ls /usr/include/dpdk 2>/dev/null ||
    ldconfig -p | grep -E "librte_|libnuma|libbpf|libxdp"; then echo "not clean" >&2; exit 1; fi'
inside 'useradd --create-home user && python3 -m venv /opt/venv'
cp "$wheel" "$root/opt/"
cp -r tests pyproject.toml "$root/home/user/"
chmod -R a+rX "$root/home/user"
echo "aiflow: pip install $(basename "$wheel") on $suite"
inside "/opt/venv/bin/pip -qq --disable-pip-version-check install '/opt/$(basename "$wheel")[demo]' \
    hypothesis pytest pytest-benchmark pytest-timeout"
inside 'set -e; for library in $(find /opt/venv -path "*aiflow*" -name "*.so*"); do
    if ldd "$library" | grep -E "not found|librte|libnuma|libbpf|libxdp" | grep -v "=> /opt/venv/"; then
        echo "$library needs this of the system" >&2; exit 1
    fi
done'

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
echo "aiflow: the wheel works on $suite"
