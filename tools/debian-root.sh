# A minimal Debian made with debootstrap, for scripts of this directory that begin with
#
#     source tools/debian-root.sh       at the checkout's root; "$@" is SUITE [ARGUMENT …]; fail() is defined
#
# It runs the script a second time, in a mount and process namespace of its own. There the lines after that one run,
# with $root, $suite, inside() and the other arguments as "$@". The mirror, pip's configuration and cache, and extra
# certificates are those of this machine. Nothing is left behind. KEEP=1 keeps the tree.
[ "$(id -u)" -eq 0 ] || fail "a fresh Debian needs root (debootstrap, mounts)"
command -v debootstrap >/dev/null || fail "a fresh Debian needs debootstrap: apt-get install debootstrap"
places=${TMPDIR:-/var/tmp}

if [ "${1:-}" != --inside ]; then
    suite=${1:-bookworm}
    shift || true
    # Trees of runs that were killed. One that lives holds a lock on its tree, and a young one is about to take it.
    for stale in "$places"/aiflow-fresh-*; do
        [ -n "$(find "$stale" -maxdepth 0 -type d -mmin +1 2>/dev/null)" ] && [ ! -e "$stale/kept" ] || continue
        flock -n "$stale" rm -rf --one-file-system "$stale" || true
    done
    root=$(mktemp -d "$places/aiflow-fresh-XXXXXX")
    exec 9<"$root" # what runs below keeps it open, and so the lock, until the last of it ends
    flock -n 9 || fail "another run has taken $root away; start again"
    chmod 755 "$root"
    # A mount and process namespace of its own: whatever happens, no mount and no process is left behind.
    unshare --mount --pid --fork --kill-child "$0" --inside "$root" "$suite" "$@" &
    child=$!
    finish() {
        local tries
        [ -z "$child" ] || { kill -KILL "$child" 2>/dev/null && wait "$child" 2>/dev/null; } || true
        [ -z "${KEEP:-}" ] || { touch "$root/kept" && echo "aiflow: kept $root" && return; }
        for tries in 1 2 3 4 5 6 7 8 9 10; do # what dies with the child may still write
            rm -rf --one-file-system "$root" 2>/dev/null && break || sleep 0.5
        done
    }
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    status=0
    wait "$child" || status=$?
    child= # its number may be another's by now
    exit "$status"
fi

root=$2
suite=$3
shift 3

# Debian's own lines of this machine's apt configuration, "SITE RELEASE COMPONENT", changed to the suite. sid has no
# other releases, such as updates.
debian_lines() {
    apt-get indextargets --format '$(ORIGIN)|$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        sed -n 's/^Debian|//p' | sort -u | awk -v suite="$suite" '
            suite == "sid" && $2 ~ /-/ { next }
            { sub(/^[^-]*/, suite, $2); print }'
}
lines=$(debian_lines)
if [ -z "$lines" ]; then # images of containers have no lists
    apt-get -qq update || fail "apt-get update failed: mend apt's configuration first"
    lines=$(debian_lines)
fi
mirror=$(awk -v suite="$suite" '$2 == suite { print $1; exit }' <<<"$lines")
[ -n "$mirror" ] || fail "apt knows no mirror of Debian here: name one in its sources"
echo "aiflow: debootstrap $suite"
debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$root/debootstrap.out" 2>&1 ||
    { tail "$root/debootstrap.out" >&2; fail "debootstrap $suite failed"; }
sed 's/^/deb /' <<<"$lines" >"$root/etc/apt/sources.list"
cp /etc/resolv.conf "$root/etc/resolv.conf"
{ grep -rlE 'Proxy|Valid-Until|Check-Date' /etc/apt/apt.conf.d 2>/dev/null || true; } |
    xargs -r cp -t "$root/etc/apt/apt.conf.d"
if [ -d /usr/local/share/ca-certificates ]; then
    mkdir -p "$root/usr/local/share/ca-certificates"
    cp -r /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
fi
[ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/pip.conf"

echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/aiflow" # it is thrown away: no package waits for the disk
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
if cache=$(pip cache dir 2>/dev/null) && [ -d "$cache" ]; then
    mkdir -p "$root/root/.cache/pip"
    mount --bind "$cache" "$root/root/.cache/pip"
fi

environment=(HOME=/root "TERM=${TERM:-dumb}" LANG=C.UTF-8)
environment+=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY CI "${!PIP_@}" "${!AIFLOW_@}"; do
    case $name in AIFLOW_RUNTIME_DIR) continue ;; esac # a directory of this machine
    [ -z "${!name:-}" ] || environment+=("$name=${!name}")
done
inside() { env -i "${environment[@]}" chroot "$root" sh -c "$1"; }
