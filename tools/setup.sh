#!/bin/bash
# All set-up a target needs: Debian packages, a virtual environment in .venv, the compiled modules in place.
# It returns at once when nothing changed.
#
# Usage: tools/setup.sh demo|ports|dev|bench|nic|docs|pictures (extras of pyproject.toml; PYTHON=… names an interpreter)
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022 # an ordinary user must be able to run the environment that root makes
profile=${1:?usage: tools/setup.sh demo|ports|dev|bench|nic|docs|pictures}
venv=.venv
stamps=$venv/stamps

say() { printf 'aiflow: %s\n' "$*"; }
fail() { printf 'aiflow: %s\n' "$*" >&2; exit 1; }

# --- Debian packages: only those that are missing, and only this step as root -------------------------------------

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

wanted_packages() {
    local groups
    case $profile in
        demo) groups=build ;;
        ports) groups='build|test' ;;
        dev) groups='build|test|fuzz' ;;
        bench) groups='build|test|fuzz|bench' ;;
        nic) groups='build|nic' ;;
        docs) groups=build ;;
        pictures) groups='build|docs' ;;
        *) fail "unknown profile '$profile': demo, ports, dev, bench, nic, docs or pictures" ;;
    esac
    awk -v groups="^($groups)\$" '/^[^#]/ && $2 ~ groups { print $1 }' tools/apt-packages.txt
}

install_packages() {
    local missing=() package
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        pkg-config --exists libdpdk 2>/dev/null && return
        fail "this is no Debian: install the packages of tools/apt-packages.txt by hand (Fedora: dnf install gcc" \
            "dpdk-devel pkgconf-pkg-config python3-devel iproute nftables ethtool)"
    fi
    for package in $(wanted_packages); do
        dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q 'ok installed$' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null ||
        fail "Debian packages are missing and there is no sudo. As root: apt-get install ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    as_root apt-get -qq update ||
        fail "apt-get update failed; as root: apt-get install ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" \
        >/dev/null || fail "apt-get install failed: ${missing[*]}"
}

# Programs of packages whose installation would start a service: the package is unpacked into build/, no more.
unpack_programs() {
    local package place=$PWD/build/programs fresh
    case $profile in ports | dev | bench) ;; *) return 0 ;; esac
    for package in $(awk '/^[^#]/ && $2 == "unpack" { print $1 }' tools/apt-packages.txt); do
        ! command -v "$package" >/dev/null && [ ! -x "$place/$package" ] || continue
        command -v apt-get >/dev/null || { say "no $package here: its tests are skipped" && continue; }
        say "unpacking $package from its Debian package"
        fresh=$(mktemp -d)
        (cd "$fresh" && { apt-get -qq download "$package" 2>/dev/null || { as_root apt-get -qq update &&
            apt-get -qq download "$package"; }; } && dpkg-deb -x ./*.deb . && mkdir -p "$place" &&
            mv "usr/bin/$package" "$place/") ||
            say "$package cannot be unpacked, so its tests are skipped; apt-get download $package says why"
        rm -rf "$fresh"
    done
}

# --- virtual environment ------------------------------------------------------------------------------------------

# Prints the interpreter behind $1 when it can serve: 3.11 or later, able to make environments, with its C headers.
# Under root an ordinary user must be able to run it, too (so it cannot lie in root's home).
interpreter() {
    local real
    real=$("$1" -c '
import sys, sysconfig, pathlib, ensurepip, venv
if sys.version_info < (3, 11) or not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
    sys.exit(1)
print(getattr(sys, "_base_executable", sys.executable))' 2>/dev/null) || return 1
    if [ "$(id -u)" -eq 0 ]; then
        # through sh: setpriv itself still has root's capabilities when it looks its command up
        (cd / && setpriv --reuid=nobody --regid=nogroup --clear-groups sh -c 'exec "$0" -c ""' "$real" 2>/dev/null) ||
            return 1
    fi
    printf '%s\n' "$real"
}

choose_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        interpreter "$PYTHON" && return
        fail "PYTHON=$PYTHON cannot serve: it must be 3.11 or later, with venv and its C headers," \
            "and not in root's home"
    fi
    for candidate in python3 /usr/bin/python3; do
        interpreter "$candidate" && return
    done
    fail "no Python 3.11 or later with venv and C headers found; PYTHON=… names one"
}

make_venv() {
    local python
    if [ -x $venv/bin/python ] && $venv/bin/python -c '' 2>/dev/null && [ -f $stamps/venv ]; then return; fi
    python=$(choose_python)
    say "making a virtual environment in .venv with $python"
    rm -rf $venv
    "$python" -m venv $venv
    mkdir -p $stamps
    : >$stamps/venv
}

pip() { $venv/bin/python -m pip -qq --disable-pip-version-check "$@"; }

# Installs the extras' requirements; $stamps/NAME holds the lines that were last installed.
install_requirements() {
    local extra=$1 wanted
    wanted=$($venv/bin/python tools/requirements.py "$extra")
    if [ -f "$stamps/$extra" ] && [ "$wanted" = "$(cat "$stamps/$extra")" ]; then return; fi
    say "installing Python packages of the extra '$extra'"
    printf '%s\n' "$wanted" >"$stamps/$extra.new"
    pip install -r "$stamps/$extra.new"
    mv "$stamps/$extra.new" "$stamps/$extra"
}

# The photographs in scikit-image, without the packages that its code needs: their installation takes half a minute.
install_photographs() {
    $venv/bin/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("skimage") is None)' ||
        pip install --no-deps --no-compile scikit-image
}

# The peers of the benchmarks. One that cannot be installed here is missing from the tables, no more.
install_peers() {
    local wanted line failed=
    wanted=$($venv/bin/python tools/requirements.py peers)
    if [ -f "$stamps/peers" ] && [ "$wanted" = "$(cat "$stamps/peers")" ]; then return; fi
    say "installing the peers of the benchmarks"
    if ! printf '%s\n' "$wanted" | pip install -r /dev/stdin; then
        while read -r line; do
            pip install "$line" || { failed=yes && say "$line cannot be installed: the benchmarks leave it out"; }
        done <<<"$wanted"
    fi
    [ -n "$failed" ] || printf '%s\n' "$wanted" >"$stamps/peers"
}

# --- compiled modules ---------------------------------------------------------------------------------------------

sources_changed() {
    local source
    [ -f $stamps/build ] || return 0
    for source in $(find aiflow -name '*.pyx'); do
        compgen -G "${source%.pyx}.*.so" >/dev/null || return 0
    done
    [ -n "$(find aiflow include setup.py pyproject.toml tools/dpdk_flags.py \
        \( -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name 'setup.py' -o -name 'pyproject.toml' \
        -o -name 'dpdk_flags.py' \) -newer $stamps/build -print -quit)" ]
}

build_in_place() {
    sources_changed || return 0
    say "compiling"
    touch $stamps/build.new # a file that changes during the build counts as newer
    pip install --no-build-isolation --no-deps --editable .
    mv $stamps/build.new $stamps/build
}

install_packages
mkdir -p build
exec 9>build/.lock
flock 9 # two makes at once: the second finds it done
unpack_programs
make_venv
case $profile in
    demo | nic | docs) extra=$profile ;;
    pictures) extra=docs ;;
    *) extra=dev ;;
esac
[ ! -f $stamps/dev ] || extra=dev # it has all of the others
install_requirements "$extra"
[ "$profile" != bench ] || install_peers
[ "$profile" != nic ] || install_photographs
build_in_place
