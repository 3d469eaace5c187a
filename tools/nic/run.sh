#!/bin/bash
# Boots an emulated machine with four Intel igb ports (82576) over this machine's files, and runs tests/nic in it.
#
# The guest's root is this machine's root, read-only over 9p, with its writes in memory: the package and its environment
# run as they were built. Pure emulation: no KVM. What comes out lies in build/nic/share1 (and share2): console.log,
# results.txt, wire.pcap.
#
#   hub 0: nic0, nic1, and a virtio card that the guest's kernel drives       hub 1: nic2, nic3
#
# It has one processor. With two, one boot or run in four failed with QEMU 10.0: the timer's interrupt stayed in service
# for ever, or the assertion in iotlb_to_section failed. So that two cores are used, all tests run in two machines.
#
# The second serial port of the guest leads to QEMU's own monitor: the tests cut links and pull cards themselves.
#
# Usage: tools/nic/run.sh test|soak [PYTEST-ARGUMENT …]       as root, on a Debian whose QEMU has igb (8.0 and later)
#        tools/nic/run.sh boot [TIMES]                        boots it, and runs nothing; 10 times
#        AIFLOW_NIC_KERNEL=…                                  more words for the kernel's command line
#        AIFLOW_NIC_MEMORY=2560                               a guest's MiB
#        AIFLOW_NIC_IOMMU_BITS=48                             width of the cards' addresses: 48, or 39 as in soak
#        AIFLOW_SOAK_FRAMES=1e6                               as in CONTRIBUTING.md; the guest gets it
set -euo pipefail
cd "$(dirname "$0")/../.."
kind=${1:-test}
shift || true
work=$PWD/build/nic
seconds=${AIFLOW_NIC_SECONDS:-600}
boot_seconds=90
python=.venv/bin/python
address_bits=48
if [ "$kind" = soak ]; then
    address_bits=39                  # as many machines have
    seconds=${AIFLOW_NIC_SECONDS:-0} # no limit
fi
level=quiet
[ "$kind" != boot ] || level=loglevel=7

say() { printf 'aiflow: %s\n' "$*"; }
fail() { printf 'aiflow: %s\n' "$*" >&2; exit 1; }
apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >/dev/null; }

backports=/etc/apt/sources.list.d/aiflow-nic.list # while QEMU is installed from there
guest=
end_guest() {
    [ -z "$guest" ] || { kill "$guest" 2>/dev/null && wait "$guest" 2>/dev/null; } || true
    guest=
}
finish() {
    local children
    children=$(jobs -p)
    # shellcheck disable=SC2086
    [ -z "$children" ] || { kill $children 2>/dev/null && wait $children 2>/dev/null; } || true
    rm -f "$backports"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

has_igb() { qemu-system-x86_64 -device help 2>/dev/null | grep -q '"igb"'; }

qemu_with_igb() {
    has_igb && return
    # Debian 12 has QEMU 7.2; its backports have a later one.
    local site suite
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    site=$(apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' |
        awk -v suite="$suite" '$2 == suite { print $1; exit }')
    say "QEMU from $suite-backports"
    echo "deb $site $suite-backports main" >"$backports"
    apt update
    apt install -y --no-install-recommends -t "$suite-backports" qemu-system-x86
    rm "$backports"
    has_igb || fail "this QEMU has no igb: it needs version 8.0 or later"
}

download_kernel() {
    local package
    package=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1)
    [ -n "$package" ] && (cd "$work/kernel" && apt download "$package")
}

kernel() { # unpacks Debian's kernel and its modules, without installing them
    [ ! -f "$work/kernel/unpacked" ] || return 0
    rm -rf "$work/kernel"
    mkdir -p "$work/kernel"
    chmod 777 "$work/kernel" # apt downloads as a user of its own
    download_kernel || { apt update && download_kernel; } || fail "apt has no linux-image-amd64" # its lists grow old
    dpkg-deb --fsys-tarfile "$work"/kernel/*.deb | tar -x -C "$work/kernel" --wildcards \
        './boot/vmlinuz-*' '*/modules.builtin' '*/kernel/drivers/*' '*/kernel/fs/*' '*/kernel/net/*' '*/kernel/lib/*' \
        '*/kernel/virt/*'
    rm "$work"/kernel/*.deb
    touch "$work/kernel/unpacked"
}

mkdir -p "$work"
began=$SECONDS
qemu_with_igb
kernel & # while the pictures are cut
unpacking=$!
$python tests/nic/images.py "$work/images.npz"
wait "$unpacking" || fail "the kernel could not be unpacked"
$python tools/nic/initramfs.py "$work/kernel" tools/nic/init.sh "$work/initrd"
say "the machine is ready after $((SECONDS - began)) s"

# The kernel measures the processor's clock and tests its timer while it starts: on a busy host with wrong results.
gcc -O2 -o "$work/clock" tools/nic/clock.c
khz=$("$work/clock")

cards=()
for number in 0 1 2 3; do
    place=$((number + 8))
    cards+=(-netdev "hubport,id=wire$number,hubid=$((number / 2))"
        -device "pcie-root-port,id=slot$number,bus=pcie.0,chassis=$place,slot=$place,addr=$place"
        -device "igb,id=nic$number,bus=slot$number,netdev=wire$number,mac=52:54:00:00:00:0$number,rombar=0")
done
machine() { # QEMU says of the hubs that they lead nowhere else
    exec timeout --kill-after=10 "$seconds" \
        qemu-system-x86_64 \
        -M q35 -accel tcg,thread=multi -cpu max -smp 1 -m "${AIFLOW_NIC_MEMORY:-2560}" -nodefaults -no-user-config \
        -display none -no-reboot -kernel "$work"/kernel/boot/vmlinuz-* -initrd "$work/initrd" \
        -append "console=ttyS0 $level ${AIFLOW_NIC_KERNEL:-} panic=-1 intel_iommu=on hugepages=320 mitigations=off \
tsc=reliable tsc_early_khz=$khz no_timer_check rcupdate.rcu_cpu_stall_timeout=8 aiflow.at=$PWD" \
        -device "intel-iommu,intremap=on,aw-bits=${AIFLOW_NIC_IOMMU_BITS:-$address_bits}" \
        -chardev "file,id=console,path=$share/console.log" -serial chardev:console \
        -chardev "socket,id=guest,path=$monitor,server=on,wait=off" -serial chardev:guest \
        -chardev "socket,id=monitor,path=$monitor" -mon chardev=monitor,mode=control \
        -fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap \
        -device virtio-9p-pci,fsdev=root,mount_tag=root \
        -fsdev "local,id=share,path=$share,security_model=none" -device virtio-9p-pci,fsdev=share,mount_tag=share \
        "${cards[@]}" \
        -netdev hubport,id=wire4,hubid=0 -device virtio-net-pci,id=eth,netdev=wire4,mac=52:54:00:00:00:09 \
        -object "filter-dump,id=tap,netdev=wire0,file=$share/wire.pcap,status=off" \
        </dev/null 2> >(grep -v 'is not connected to host network' >&2)
}

prepare() { # NUMBER [PYTEST-ARGUMENT …]: what machine NUMBER shares with this one
    share=$work/share$1
    monitor=$work/monitor$1
    shift
    rm -rf "$share"
    mkdir -p "$share"
    ln "$work/images.npz" "$share"
    printf '%s\n' "$kind" "$@" >"$share/arguments"
    env | grep '^AIFLOW_SOAK_' >"$share/environment" || true
}

lost_an_interrupt() { grep -qs 'kthread timer wakeup' "$share/console.log"; }

start() { # whether the machine has booted; $guest is its process
    local since=$SECONDS
    rm -f "$monitor" "$share/booted" "$share/status" "$share/results.txt" "$share/dmesg.log"
    machine &
    guest=$!
    until [ -e "$share/booted" ]; do
        if [ $((SECONDS - since)) -ge "$boot_seconds" ] || ! kill -0 "$guest" 2>/dev/null || lost_an_interrupt; then
            say "the guest has not booted within $((SECONDS - since)) s"
            tail -n 20 "$share/console.log" >&2 || true
            end_guest
            return 1
        fi
        sleep 0.2
    done
}

to_its_end() { # waits for the guest, unless it hangs
    while kill -0 "$guest" 2>/dev/null; do
        if lost_an_interrupt; then
            say "the guest hangs: QEMU has lost an interrupt"
            [ ! -f "$share/results.txt" ] || cat "$share/results.txt"
            end_guest
            return 1
        fi
        sleep 0.5
    done
    status=0
    wait "$guest" || status=$?
    guest=
    [ "$status" -ne 134 ] || { say "QEMU ended with a failed assertion" && return 1; }
}

run_tests() { # NUMBER [PYTEST-ARGUMENT …]: in machine NUMBER, which starts again if it hangs
    local status='' attempt began=$SECONDS
    trap end_guest EXIT
    trap 'exit 143' TERM
    prepare "$@"
    for attempt in 1 2 3; do # on a busy host QEMU's processor may lose an interrupt, and then waits for ever
        if start && to_its_end; then break; fi
        status=''
    done
    [ -n "$status" ] || fail "the guest hung each time; $share has the console of the last"
    [ -f "$share/status" ] || {
        [ ! -f "$share/results.txt" ] || cat "$share/results.txt"
        tail -n 40 "$share/console.log" >&2
        [ "$status" -ne 124 ] || fail "the guest did not end within $seconds s (AIFLOW_NIC_SECONDS)"
        fail "the guest ended without a result (QEMU: $status)"
    }
    cat "$share/results.txt"
    [ "$(cat "$share/status")" -eq 0 ] || {
        tail -n 30 "$share/dmesg.log" >&2
        fail "tests in the guest failed; $share has its console and dmesg"
    }
    say "machine $1 ran for $((SECONDS - began)) s"
}

if [ "$kind" = boot ]; then
    failed=0
    prepare 1
    for ((number = 1; number <= ${1:-10}; number++)); do
        if start; then
            wait "$guest" || true
            guest=
            say "boot $number: $(sed -n 's/^aiflow: booted //p' "$share/console.log")"
        else
            failed=$((failed + 1))
            cp "$share/console.log" "$work/console-$number.log"
        fi
    done
    say "$failed of $((number - 1)) boots failed; $work has the consoles of those"
    exit $((failed > 0))
fi

# In the background, so that a signal ends the wait, and then the machines.
if [ "$kind" = soak ] || [ $# -gt 0 ]; then
    run_tests 1 tests/nic "$@" &
    wait $!
    exit
fi
run_tests 1 tests/nic/guest_2_slices.py tests/nic/guest_3_memory.py &
first=$!
run_tests 2 tests/nic/guest_1_*.py tests/nic/guest_2_reference.py tests/nic/guest_4_gone.py >"$work/machine2.log" 2>&1 &
second=$!
failed=0
wait "$first" || failed=1
wait "$second" || failed=1
cat "$work/machine2.log"
[ "$failed" -eq 0 ] || exit 1
$python tests/nic/capture.py "$work/share1/wire.pcap" "$work/images.npz"
