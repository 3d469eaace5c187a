#!/bin/bash
# The tests on a network card that QEMU emulates. On Debian 13 they run here. Elsewhere debootstrap makes a Debian 13
# first, whose QEMU has Intel's igb, and the tests run from a clone there.
#
# Usage: tools/nic.sh test|soak|boot [ARGS …]    AIFLOW_NIC=required: a machine that cannot run them is an error
#                                                AIFLOW_NIC_SUITE=bookworm: on a Debian 12, with the QEMU of backports
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?usage: tools/nic.sh test|soak|boot}
shift

skip() {
    [ "${AIFLOW_NIC:-}" != required ] || { printf 'aiflow: nic-%s: %s\n' "$kind" "$*" >&2 && exit 1; }
    printf 'aiflow: nic-%s is skipped: %s\n' "$kind" "$*"
    exit 0
}

[ "$(uname -m)" = x86_64 ] || skip "the emulated machine is an x86_64, and this one is not"
[ "$(id -u)" -eq 0 ] || skip "needs root: the guest reads this machine's files as they are"
command -v apt-get >/dev/null || skip "needs Debian's packages of QEMU and of a kernel"
wanted=${AIFLOW_NIC_SUITE:-trixie}
arguments=
[ $# -eq 0 ] || arguments=$(printf '%q ' "$@") # make's shell takes the quotes off again
here=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
case $here in
    "$wanted" | forky | sid) exec tools/in-reach.sh make --no-print-directory "nic-$kind-here" "ARGS=$arguments" ;;
esac
command -v debootstrap >/dev/null || skip "needs debootstrap here: apt-get install debootstrap"
exec tools/fresh.sh "$wanted" "nic-$kind ARGS=$(printf %q "$arguments")"
