#!/bin/bash
# Proves the README's two commands on a machine that has neither DPDK nor our dependencies: makes a minimal Debian 12
# with debootstrap, clones the last commit into root's home there, and runs make demo (twice), make test.
# Mirror, pip configuration and extra certificates are this machine's, read when it runs.
#
# Usage: tools/fresh.sh [TARGET …]      as root; default targets: demo demo test. KEEP=1 leaves the tree for a look.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" -eq 0 ] || { echo "aiflow: make fresh needs root (debootstrap, mounts)" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "aiflow: make fresh needs debootstrap: apt-get install debootstrap" >&2; exit 1; }

if [ "${1:-}" != --inside ]; then
    # A mount and process namespace of its own: whatever happens, no mount and no process is left behind.
    root=$(mktemp -d "${TMPDIR:-/var/tmp}/aiflow-fresh-XXXXXX")
    chmod 755 "$root"
    trap '[ -n "${KEEP:-}" ] && echo "aiflow: kept $root" || rm -rf --one-file-system "$root"' EXIT
    unshare --mount --pid --fork --kill-child "$0" --inside "$root" "${@:-demo demo test}"
    exit
fi

root=$2
shift 2
targets=$*

# Debian's own lines of this machine's apt configuration: "SITE SUITE COMPONENT"
apt_lines=$(apt-get indextargets --format '$(ORIGIN)|$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    sed -n 's/^Debian|//p' | sort -u)
mirror=$(awk '$2 == "bookworm" { print $1; exit }' <<<"$apt_lines")
[ -n "$mirror" ] || { echo "aiflow: apt knows no mirror of bookworm here" >&2; exit 1; }
echo "aiflow: debootstrap bookworm"
debootstrap --variant=minbase bookworm "$root" "$mirror" >"$root.log" 2>&1 || { tail "$root.log" >&2; exit 1; }
rm -f "$root.log"
sed 's/^/deb /' <<<"$apt_lines" >"$root/etc/apt/sources.list"
cp /etc/resolv.conf "$root/etc/resolv.conf"
grep -rlE 'Proxy|Valid-Until|Check-Date' /etc/apt/apt.conf.d 2>/dev/null | xargs -r cp -t "$root/etc/apt/apt.conf.d"
mkdir -p "$root/usr/local/share/ca-certificates"
cp -r /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
[ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/pip.conf"

mount --make-rprivate /
mount --bind "$root" "$root" # ip netns exec wants / to be a mount
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
# directories of packages on this machine that pip's configuration names
for directory in $( (pip config list 2>/dev/null || true) | grep -oE '(file://)?/[^ '"'"']+' | sed 's,^file://,,'); do
    [ -d "$directory" ] || continue
    mkdir -p "$root$directory"
    mount --bind -o ro "$directory" "$root$directory"
done

environment=(HOME=/root "TERM=${TERM:-dumb}" LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY "${!PIP_@}" "${!AIFLOW_@}"; do
    [ -z "${!name:-}" ] || environment+=("$name=${!name}")
done
inside() { env -i "${environment[@]}" chroot "$root" sh -c "$1"; }

echo "aiflow: what the README asks for first: git and make"
inside 'apt-get -qq update && apt-get -qq install -y --no-install-recommends git make ca-certificates >/dev/null 2>&1'
inside 'if command -v gcc pkg-config python3 || ls /usr/include/dpdk 2>/dev/null; then echo "not fresh" >&2; exit 1; fi'
git clone --quiet --no-hardlinks "file://$PWD" "$root/root/aiflow"
for target in $targets; do
    echo "aiflow: make $target"
    start=$SECONDS
    inside "cd ~/aiflow && make $target"
    echo "aiflow: make $target took $((SECONDS - start)) s"
done
