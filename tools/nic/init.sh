#!/bin/busybox sh
# The guest's first process: loads the modules, makes the root, and goes on with tools/nic/guest.sh there.
PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /lower /over /guest
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    insmod "$module" || echo "aiflow: insmod $module failed"
done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /lower
mount -t tmpfs over /over
mkdir /over/up /over/work
mount -t overlay -o lowerdir=/lower,upperdir=/over/up,workdir=/over/work root /guest
mount -t proc proc /guest/proc
mount -t sysfs sys /guest/sys
mount -t devtmpfs dev /guest/dev
mount -t tmpfs run /guest/run
mount -t tmpfs tmp /guest/tmp
mkdir -p /guest/run/share
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none share /guest/run/share
at=$(sed -n 's/.*aiflow.at=\([^ ]*\).*/\1/p' /proc/cmdline)
chroot /guest /bin/bash "$at/tools/nic/guest.sh" "$at" </dev/null
sync
echo o >/proc/sysrq-trigger
sleep 60
